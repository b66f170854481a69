#include <array>
#include <cmath>
#include <numeric>

#include "engine/formats/gguf.h"
#include "engine/formats/npy.h"
#include "engine/formats/numbers.h"
#include "engine/formats/safetensors.h"
#include "engine/io/hash.h"
#include "tests/doctest.h"
#include "tests/temporary_folder.h"

using namespace sft;
using test::TemporaryFolder;

namespace {

Metadata one_of_each() {
  Metadata m;
  m.set("general.architecture", "hubert");
  m.set("general.alignment", int64_t{32});
  m.set("a.bool", true);
  m.set("a.count", int64_t{768});
  m.set("a.negative", int64_t{-5});
  m.set("a.large", int64_t{1} << 40);
  m.set("a.very_negative", -(int64_t{1} << 40));
  m.set("a.seed", ~uint64_t{0});
  m.set("a.eps", 1e-5);
  m.set("a.pi", 3.14159265358979);
  m.set("a.tenth", 0.1);
  m.set("a.text", "two\nlines \"quoted\"");
  m.set("a.kernels", std::vector<int64_t>{10, 3, 3});
  m.set("a.signed", std::vector<int64_t>{-1, 2});
  m.set("a.wide", std::vector<int64_t>{-1, int64_t{1} << 40});
  m.set("a.none", std::vector<int64_t>{});
  m.set("a.rates", std::vector<double>{0.1, 0.5});
  m.set("a.exact", std::vector<double>{1.0 / 3});
  m.set("a.labels", std::vector<std::string>{"|", "E", ""});
  return m;
}

std::vector<float> ramp(int64_t count) {
  std::vector<float> values(static_cast<size_t>(count));
  for (size_t i = 0; i < values.size(); ++i) values[i] = std::sin(static_cast<float>(i)) * 3;
  return values;
}

const std::vector<TensorSpec> kSpecs = {
    {"enc.0.ffn.up.weight", {3, 64}, Dtype::f32},
    {"enc.0.ffn.up.bias", {5}, Dtype::f16},
    {"conv.0.weight", {4, 1, 10}, Dtype::bf16},
    {"labels", {7}, Dtype::i64},
    {"half", {1, 2, 3, 4}, Dtype::f64},
    {"nothing", {0, 3}, Dtype::f32},
    {"scalar", {1}, Dtype::i8},
};

// Every tensor filled with bytes that tell where they belong.
std::vector<std::byte> content(const TensorSpec& spec) {
  std::vector<std::byte> bytes(static_cast<size_t>(bytes_of(spec.dtype, spec.shape.count())));
  for (size_t i = 0; i < bytes.size(); ++i)
    bytes[i] = static_cast<std::byte>(i * 7 + spec.name.size());
  return bytes;
}

void fill(TensorWriter writer) {
  for (const TensorSpec& spec : std::vector(writer.tensors())) {
    std::vector<std::byte> bytes = content(spec);
    if (bytes.size() > 8) {  // in two pieces
      writer.append(std::span(bytes).first(8));
      writer.append(std::span(bytes).subspan(8));
    } else {
      writer.write(spec.name, Tensor(bytes.data(), spec.shape, spec.dtype));
    }
  }
  writer.finish();
}

void expect_content(const TensorFile& file, const std::vector<TensorSpec>& specs) {
  REQUIRE(file.tensors().size() == specs.size());
  for (const TensorSpec& spec : specs) {
    INFO(spec.name);
    const TensorInfo& info = file.at(spec.name);
    EXPECT(info.shape == spec.shape);
    EXPECT(info.dtype == spec.dtype);
    const std::vector<std::byte> wanted = content(spec);
    REQUIRE(info.bytes == wanted.size());
    std::vector<std::byte> got(wanted.size());
    file.read(info, got);
    EXPECT(got == wanted);
    const Tensor view = file.view(info);
    const auto* data = static_cast<const std::byte*>(view.data);
    EXPECT(std::equal(wanted.begin(), wanted.end(), data));
  }
}

}  // namespace

TEST_CASE("metadata: getters say what is missing or of another type") {
  const Metadata m = [] {
    Metadata m("m.gguf");
    m.set("n", uint64_t{3});
    m.set("n", int64_t{4});
    m.set("name", "x");
    m.set("list", std::vector<int64_t>{1, 2});
    return m;
  }();
  EXPECT(m.entries().size() == 3);
  EXPECT(m.integer("n") == 4);
  EXPECT(m.unsigned_integer("n") == 4);
  EXPECT(m.real("n") == 4.0);
  EXPECT(m.reals("list") == std::vector<double>{1, 2});
  const Error missing = test::error_of([&] { m.string("label"); });
  EXPECT(missing.kind == Kind::input);
  EXPECT(missing.message == "m.gguf: key label is missing");
  EXPECT(test::error_of([&] { m.integer("name"); }).message ==
         "m.gguf: key name is \"x\" (expected an integer)");
  EXPECT(test::error_of([&] { m.strings("list"); }).message ==
         "m.gguf: key list is [1, 2] (expected a list of strings)");
}

TEST_CASE("gguf: what is written is read back, metadata and bytes") {
  const TemporaryFolder folder;
  fill(create_gguf(folder / "a.gguf", one_of_each(), kSpecs));
  const TensorFile file = open_tensor_file(folder / "a.gguf");
  EXPECT(file.metadata() == one_of_each());
  expect_content(file, kSpecs);
  for (size_t i = 0; i < kSpecs.size(); ++i) {
    EXPECT(file.tensors()[i].name == kSpecs[i].name);
    EXPECT(file.tensors()[i].offset % 32 == 0);
  }
  EXPECT(file.find("other") == nullptr);
  EXPECT(test::error_of([&] { file.at("other"); }).message ==
         folder / "a.gguf: tensor other is missing");
  fill(create_gguf(folder / "b.gguf", one_of_each(), kSpecs));
  EXPECT(xxh3_of_file(folder / "a.gguf") == xxh3_of_file(folder / "b.gguf"));
}

TEST_CASE("safetensors: what is written is read back, metadata and bytes") {
  const TemporaryFolder folder;
  Metadata strings;
  strings.set("title", "a \"quoted\"\n line");
  fill(create_safetensors(folder / "a.safetensors", strings, kSpecs));
  const TensorFile file = open_tensor_file(folder / "a.safetensors");
  EXPECT(file.metadata().string("format") == "pt");
  EXPECT(file.metadata().string("title") == "a \"quoted\"\n line");
  expect_content(file, kSpecs);
  for (const TensorInfo& tensor : file.tensors()) EXPECT(file.viewable(tensor));
  EXPECT(file.tensors().front().name == "half");
  fill(create_safetensors(folder / "b", strings, kSpecs));
  EXPECT(xxh3_of_file(folder / "a.safetensors") == xxh3_of_file(folder / "b"));
}

TEST_CASE("formats: real tensors are converted on the way in and out") {
  const TemporaryFolder folder;
  const std::vector<float> values = ramp(96 * 1024);  // more than one chunk
  const Tensor tensor(const_cast<float*>(values.data()), {96, 1024});
  const std::pair<Dtype, float> types[] = {{Dtype::f32, 0.0f},
                                           {Dtype::f64, 0.0f},
                                           {Dtype::f16, 3.0f / 2048},
                                           {Dtype::bf16, 3.0f / 256},
                                           {Dtype::q8_0, 3.0f / 254 + 3.0f / 2048}};
  for (const auto& [dtype, tolerance] : types) {
    INFO(name(dtype));
    TensorWriter writer =
        create_gguf(folder / "m", Metadata(), {{"x", tensor.shape, dtype}}, Existing::replace);
    writer.write("x", tensor);
    writer.finish();
    const TensorFile file = open_gguf(folder / "m");
    EXPECT(file.metadata().has("general.quantization_version") == (dtype == Dtype::q8_0));
    std::vector<float> read(values.size());
    file.read_f32(file.at("x"), read);
    float worst = 0;
    for (size_t i = 0; i < read.size(); ++i) worst = std::max(worst, std::abs(read[i] - values[i]));
    EXPECT(worst <= tolerance);
    EXPECT((worst > 0) == (tolerance > 0));
  }
}

TEST_CASE("formats: a writer refuses what a reader would") {
  const TemporaryFolder folder;
  const auto refused = [&](std::vector<TensorSpec> specs) {
    const Error a = test::error_of([&] { create_gguf(folder / "x", Metadata(), specs); });
    return a.kind == Kind::internal || a.kind == Kind::input;
  };
  EXPECT(refused({{"x", {2}}, {"x", {2}}}));
  EXPECT(refused({{"a\nb", {2}}}));
  EXPECT(refused({{"../a", {2}}}));
  EXPECT(refused({{std::string(64, 'x'), {2}}}));
  EXPECT(refused({{"x", {2, 33}, Dtype::q8_0}}));
  EXPECT(refused({{"x", {2}, Dtype::u8}}));
  TensorWriter writer = create_gguf(folder / "x", Metadata(), {{"a", {2}}, {"b", {2}}});
  std::array<float, 3> values{};
  EXPECT(test::error_of([&] { writer.write("b", Tensor(values.data(), {2})); }).kind ==
         Kind::internal);
  EXPECT(test::error_of([&] { writer.write("a", Tensor(values.data(), {3})); }).kind ==
         Kind::internal);
  EXPECT(test::error_of([&] { writer.append(std::as_bytes(std::span(values))); }).kind ==
         Kind::internal);
  EXPECT(test::error_of([&] { writer.finish(); }).kind == Kind::internal);
}

TEST_CASE("tensor files: another head is written where it is as long") {
  const TemporaryFolder folder;
  const std::vector<TensorSpec> specs = {{"x", {2}}};
  Metadata before, after, longer;
  before.set("a.text", "one"), after.set("a.text", "two"),
      longer.set("a.text", std::string(64, '3'));
  TensorWriter writer = create_gguf(folder / "a", before, specs);
  const std::array<float, 2> values = {1, 2};
  writer.write("x", Tensor(const_cast<float*>(values.data()), {2}));
  EXPECT(test::error_of([&] { writer.replace_head(gguf_head("a", longer, specs)); }).kind ==
         Kind::internal);
  writer.replace_head(gguf_head("a", after, specs));
  writer.finish();
  const TensorFile file = open_gguf(folder / "a");
  EXPECT(file.metadata().string("a.text") == "two");
  EXPECT(file.view(file.at("x")).f32()[1] == 2);
}

TEST_CASE("numbers: the first that is not finite, at any place and length") {
  constexpr float kLargest = std::numeric_limits<float>::max();
  for (int64_t count : {0, 1, 15, 17, 33, 4095, 4096, 4099, 9000}) {
    std::vector<float> values(static_cast<size_t>(count), -kLargest);
    EXPECT(first_not_finite(values.data(), count) == count);
    for (int64_t at = 0; at < count; at += count < 40 ? 1 : 271) {
      for (float bad : {INFINITY, -INFINITY, NAN, -NAN}) {
        values[at] = values[count - 1] = bad;
        EXPECT(first_not_finite(values.data(), count) == at);
        values[at] = values[count - 1] = kLargest;
      }
    }
  }
}

TEST_CASE("npy: version 1.0 head, then the values") {
  const TemporaryFolder folder;
  const std::vector<float> values = ramp(12);
  const Tensor tensor(const_cast<float*>(values.data()), {3, 4});
  write_npy(folder / "a.npy", tensor);
  const std::string text = read_text(folder / "a.npy");
  REQUIRE(text.size() == 128 + 48);
  EXPECT(text.substr(0, 10) == std::string("\x93NUMPY\x01\x00\x76\x00", 10));
  EXPECT(text.find("{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }   ") == 10);
  EXPECT(text[127] == '\n');
  EXPECT(std::memcmp(text.data() + 128, values.data(), 48) == 0);
  write_npy(folder / "b.npy", tensor.columns(1, 2));
  const std::string part = read_text(folder / "b.npy");
  REQUIRE(part.size() == 128 + 24);
  EXPECT(std::memcmp(part.data() + 128 + 8, values.data() + 5, 8) == 0);
  write_npy(folder / "c.npy", tensor.reshaped({12}));
  EXPECT(read_text(folder / "c.npy").find("'shape': (12, ), }") != std::string::npos);
}
