// Files of torch.save as PyTorch 1.13 and 2.15 wrote them (tests/golden/make/torch_files.py), and
// those that we write.
#include "engine/formats/torch_file.h"

#include <cmath>
#include <limits>

#include "engine/formats/zip.h"
#include "engine/io/hash.h"
#include "tests/doctest.h"
#include "tests/golden.h"
#include "tests/temporary_folder.h"

using namespace sft;

namespace {

const char* const kFiles[] = {"torch-1.zip", "torch-1.legacy", "torch-2.zip", "torch-2.legacy"};

PickleValue state_of(const TorchFile& file) { return *file.root().find("model"); }

TensorFile tensors_of(const TorchFile& file) {
  const PickleValue state = state_of(file);
  std::vector<TensorInfo> tensors;
  for (size_t i = 0; i < state.size(); i += 2) {
    REQUIRE(TorchFile::is_tensor(state[i + 1]));
    tensors.push_back(file.tensor(state[i + 1], std::string(state[i].text())));
  }
  return file.file(std::move(tensors));
}

std::vector<float> reals(const TensorFile& file, std::string_view name) {
  std::vector<float> out(static_cast<size_t>(file.at(name).shape.count()));
  file.read_f32(file.at(name), out);
  return out;
}

template <class T>
std::vector<T> values(const TensorFile& file, std::string_view name) {
  std::vector<T> out(static_cast<size_t>(file.at(name).shape.count()));
  REQUIRE(out.size() * sizeof(T) == file.at(name).bytes);
  file.read(file.at(name), std::as_writable_bytes(std::span(out)));
  return out;
}

float ramp(int64_t i) { return static_cast<float>(i) / 8 - 2; }

// Elements `indices` of the ramp.
std::vector<float> ramp_at(const std::vector<int64_t>& indices) {
  std::vector<float> out;
  for (int64_t i : indices) out.push_back(ramp(i));
  return out;
}

std::vector<int64_t> counted(int64_t count) {
  std::vector<int64_t> out;
  for (int64_t i = 0; i < count; ++i) out.push_back(i);
  return out;
}

void expect_views(const TensorFile& file) {
  EXPECT(file.at("dense").shape == Shape{2, 3});
  // the older layout aligns nothing
  EXPECT(file.viewable(file.at("dense")) == (file.at("dense").offset % 4 == 0));
  EXPECT(reals(file, "dense") == ramp_at(counted(6)));
  EXPECT(file.at("transposed").shape == Shape{6, 4});
  EXPECT(!file.viewable(file.at("transposed")));
  std::vector<int64_t> transposed;
  for (int64_t i = 0; i < 24; ++i) transposed.push_back(i % 4 * 6 + i / 4);
  EXPECT(reals(file, "transposed") == ramp_at(transposed));
  EXPECT(reals(file, "columns") == ramp_at({1, 2, 3, 7, 8, 9, 13, 14, 15, 19, 20, 21}));
  EXPECT(reals(file, "row") == ramp_at({12, 13, 14, 15, 16, 17}));
  EXPECT(reals(file, "broadcast") == ramp_at({0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2}));
  EXPECT(file.at("tied.a").offset == file.at("tied.b").offset);
  EXPECT(reals(file, "tied.b") == ramp_at(counted(5)));
  EXPECT(reals(file, "parameter") == ramp_at(counted(3)));
  EXPECT(reals(file, "frozen") == ramp_at(counted(4)));
  EXPECT(file.at("scalar").shape == Shape{});
  EXPECT(reals(file, "scalar") == std::vector<float>{2.5f});
  EXPECT(file.at("empty").shape == Shape{0, 3});
  EXPECT(reals(file, "empty").empty());
  EXPECT(file.at("channels_last").shape == Shape{1, 2, 3, 4});
  EXPECT(reals(file, "channels_last") == ramp_at(counted(24)));
  // a part, in whole elements, of a tensor that is not dense
  std::vector<float> part(5);
  file.read(file.at("transposed"), std::as_writable_bytes(std::span(part)), 3 * sizeof(float));
  EXPECT(part == ramp_at({18, 1, 7, 13, 19}));
}

void expect_types(const TensorFile& file) {
  const std::vector<float> numbers = {16, 15, 14, 13, 12, 11};
  for (const char* name : {"float64", "float16", "bfloat16"}) EXPECT(reals(file, name) == numbers);
  EXPECT(file.at("bfloat16").dtype == Dtype::bf16);
  EXPECT(values<int64_t>(file, "int64") == std::vector<int64_t>{16, 15, 14, 13, 12, 11});
  EXPECT(values<int32_t>(file, "int32")[5] == 11);
  EXPECT(values<int16_t>(file, "int16")[5] == 11);
  EXPECT(values<int8_t>(file, "int8")[5] == 11);
  EXPECT(values<uint8_t>(file, "uint8")[5] == 11);
  EXPECT(values<uint8_t>(file, "bool") == std::vector<uint8_t>{1, 0, 1});
  EXPECT(file.at("bool").dtype == Dtype::boolean);
}

void expect_values(PickleValue root) {
  const PickleValue args = *root.find("args");
  REQUIRE(args.is(PickleType::object));
  EXPECT(args.maker().is_global("argparse", "Namespace"));
  EXPECT(args.state().find("encoder_layers")->integer() == 2);
  EXPECT(args.state().find("name")->text() == "tiny");
  EXPECT(args.state().find("eps")->real() == 1e-5);
  EXPECT(args.state().find("flag")->is(PickleType::boolean));
  EXPECT(args.state().find("nothing")->is(PickleType::none));
  const PickleValue numbers = *root.find("numbers");
  const int64_t integers[] = {
      0, -1, 255, 256, 65536, -(int64_t{1} << 31), int64_t{1} << 40, -(int64_t{1} << 62)};
  REQUIRE(numbers.size() == 11);
  for (size_t i = 0; i < 8; ++i) EXPECT(numbers[i].integer() == integers[i]);
  EXPECT(numbers[8].is(PickleType::object));  // 2^100
  EXPECT(numbers[9].real() == 0.1);
  EXPECT(numbers[10].real() == std::numeric_limits<double>::infinity());
  const PickleValue texts = *root.find("texts");
  EXPECT(texts[0].text().empty());
  EXPECT(texts[1].text() == "\xc3\xa9");
  EXPECT(texts[2].text() == std::string(300, 'a'));
  EXPECT(texts[3].text() == "new\nline");
  EXPECT((*root.find("tuple"))[1][1][0].integer() == 3);
  EXPECT((*root.find("set"))[0].integer() == 1);
  EXPECT(root.find("bytes")->is(PickleType::bytes));
  EXPECT(root.find("numpy")->is(PickleType::object));
  EXPECT(root.find("dtype")->is_global("torch", "float16"));
  EXPECT((*root.find("size"))[1].integer() == 3);
  EXPECT((*root.find("default")->find("k"))[0].integer() == 1);
  const PickleValue itself = *root.find("itself");
  EXPECT(*itself.find("again") == itself);
  EXPECT(!root.find("absent"));
}

}  // namespace

TEST_CASE("torch: files of PyTorch 1 and 2, zip and legacy, are read") {
  for (const char* name : kFiles) {
    INFO(std::string(name));
    const TorchFile file(test::golden(std::string("torch/") + name));
    const TensorFile tensors = tensors_of(file);
    EXPECT(tensors.tensors().size() == 21);
    expect_views(tensors);
    expect_types(tensors);
    expect_values(file.root());
  }
}

TEST_CASE("torch: what is written is read back, and is the same every time") {
  const test::TemporaryFolder folder;
  const std::vector<TensorSpec> specs = {
      {"a", {3, 5}, Dtype::f32},       {"b.weight", {7}, Dtype::f16}, {"empty", {0, 2}},
      {"c", {2, 1, 4}, Dtype::bf16},   {"ids", {2}, Dtype::i64},      {"scalar", {}, Dtype::f64},
      {"large", {300, 70}, Dtype::f32}};
  const TorchTree root = TorchTree::dict(
      {{"cfg", TorchTree::dict({{"n", TorchTree::integer(-(int64_t{1} << 40))},
                                {"p", TorchTree::real(0.1)},
                                {"on", TorchTree::boolean(true)},
                                {"list", TorchTree::list({TorchTree::text("x\n"), {}})}})},
       {"model", TorchTree::tensors()}});
  const auto content = [](const TensorSpec& spec) {
    std::vector<std::byte> bytes(static_cast<size_t>(bytes_of(spec.dtype, spec.shape.count())));
    for (size_t i = 0; i < bytes.size(); ++i)
      bytes[i] = static_cast<std::byte>(i * 31 + spec.name.size());
    return bytes;
  };
  for (const bool in_order : {true, false}) {  // appended; placed in pieces, from the end
    TensorWriter writer = create_torch(folder / (in_order ? "a.pt" : "b.pt"), root, specs);
    for (size_t i = 0; i < specs.size(); ++i) {
      const size_t t = in_order ? i : specs.size() - 1 - i;
      const std::vector<std::byte> bytes = content(specs[t]);
      const std::span<const std::byte> all(bytes);
      if (in_order) {
        writer.append(all);
      } else if (!bytes.empty()) {
        const size_t half = bytes.size() / 2;
        writer.place(t, half, all.subspan(half));
        writer.place(t, 0, all.first(half));
      }
    }
    writer.finish();
  }
  EXPECT(xxh3_of_file(folder / "a.pt") == xxh3_of_file(folder / "b.pt"));
  const TorchFile file(folder / "a.pt");
  const TensorFile tensors = tensors_of(file);
  for (const TensorSpec& spec : specs) {
    EXPECT(tensors.at(spec.name).shape == spec.shape);
    EXPECT(tensors.at(spec.name).dtype == spec.dtype);
    std::vector<std::byte> got(tensors.at(spec.name).bytes);
    tensors.read(tensors.at(spec.name), got);
    EXPECT(got == content(spec));
    EXPECT(tensors.at(spec.name).offset % 64 == 0);
  }
  const PickleValue cfg = *file.root().find("cfg");
  EXPECT(cfg.find("n")->integer() == -(int64_t{1} << 40));
  EXPECT(cfg.find("p")->real() == 0.1);
  EXPECT((*cfg.find("list"))[0].text() == "x\n");
  EXPECT((*cfg.find("list"))[1].is(PickleType::none));
}

TEST_CASE("zip: sums, whole and in parts; 64-bit sizes and places") {
  const std::string text = "123456789, and so on for more than sixteen bytes";
  const auto bytes = std::as_bytes(std::span(text.data(), text.size()));
  EXPECT(crc32(bytes.first(9)) == 0xcbf43926);  // the check value of CRC-32/ISO-HDLC
  for (size_t cut = 0; cut <= bytes.size(); ++cut) {
    const uint32_t left = crc32(bytes.first(cut)), right = crc32(bytes.subspan(cut));
    EXPECT(crc32(bytes.subspan(cut), left) == crc32(bytes));
    EXPECT(combined_crc32(left, right, bytes.size() - cut) == crc32(bytes));
  }
  // An archive of 13 GB, most of it a hole in the file.
  const test::TemporaryFolder folder;
  ZipLayout zip;
  const uint64_t large = 13'000'000'001;
  zip.add({"x/data/0", large, 0});
  zip.add({"x/data/1", 9, crc32(bytes.first(9))});
  {
    OutputFile file(folder / "large.zip");
    const auto write = [&](uint64_t offset, std::string_view part) {
      file.write_at(offset, std::as_bytes(std::span(part.data(), part.size())));
    };
    for (size_t i = 0; i < 2; ++i) write(zip.offset(i) - zip.head(i).size(), zip.head(i));
    write(zip.offset(1), text.substr(0, 9));
    write(zip.end(), zip.directory());
    file.commit();
  }
  const InputFile file(folder / "large.zip");
  const std::vector<ZipEntry> entries = parse_zip(file.path(), file.map(Advice::random));
  REQUIRE(entries.size() == 2);
  EXPECT(entries[0].bytes == large);
  EXPECT(entries[1].offset == zip.offset(1));
  EXPECT(entries[1].offset > large);
  EXPECT(entries[1].bytes == 9);
}
