// Files written by the libraries of the formats' own authors (tests/golden/make/containers.py).
#include <cmath>
#include <cstring>
#include <limits>

#include "engine/formats/gguf.h"
#include "engine/formats/numbers.h"
#include "engine/formats/safetensors.h"
#include "tests/doctest.h"
#include "tests/golden.h"

using namespace sft;

namespace {

template <class T>
std::vector<T> values(const TensorFile& file, std::string_view name) {
  const TensorInfo& tensor = file.at(name);
  std::vector<T> out(static_cast<size_t>(tensor.shape.count()));
  REQUIRE(out.size() * sizeof(T) == tensor.bytes);
  file.read(tensor, std::as_writable_bytes(std::span(out)));
  return out;
}

std::vector<float> reals(const TensorFile& file, std::string_view name) {
  std::vector<float> out(static_cast<size_t>(file.at(name).shape.count()));
  file.read_f32(file.at(name), out);
  return out;
}

// -4, -3.875, ... 3.875
std::vector<float> eighths() {
  std::vector<float> out;
  for (int i = -32; i < 32; ++i) out.push_back(static_cast<float>(i) / 8);
  return out;
}

void expect_tensors(const TensorFile& file) {
  EXPECT(file.at("enc.0.attn.q.weight").shape == Shape{3, 4});
  EXPECT(reals(file, "enc.0.attn.q.weight") ==
         std::vector<float>{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11});
  EXPECT(file.at("conv.0.weight").shape == Shape{2, 1, 10});
  EXPECT(reals(file, "conv.0.weight")[19] == 19.0f / 16);
  EXPECT(file.at("half").dtype == Dtype::f16);
  EXPECT(reals(file, "half") == eighths());
  EXPECT(values<int64_t>(file, "ids") == std::vector<int64_t>{1, -2, int64_t{1} << 40});
  EXPECT(values<double>(file, "exact") == std::vector<double>{1.0 / 3, 1e300});
  EXPECT(values<int8_t>(file, "small") == std::vector<int8_t>{-1, 0, 1});
}

}  // namespace

TEST_CASE("gguf: a file of gguf-py is read") {
  const TensorFile file = open_gguf(test::golden("containers.gguf"));
  const Metadata& m = file.metadata();
  EXPECT(m.string("general.architecture") == "hubert");
  EXPECT(m.string("general.name") == "tiny \xc3\xa9");
  EXPECT(m.integer("hubert.block_count") == 12);
  EXPECT(m.real("hubert.attention.layer_norm_epsilon") == 1e-5);
  EXPECT(m.boolean("hubert.attention.pre_norm"));
  EXPECT(m.integer("t.u8") == 255);
  EXPECT(m.integer("t.i8") == -1);
  EXPECT(m.integer("t.u16") == 65535);
  EXPECT(m.integer("t.i16") == -2);
  EXPECT(m.integer("t.i32") == -3);
  EXPECT(m.unsigned_integer("t.u64") == ~uint64_t{0});
  EXPECT(m.integer("t.i64") == -(int64_t{1} << 62));
  EXPECT(m.real("t.f64") == 1.0 / 3);
  EXPECT(m.integers("t.kernels") == std::vector<int64_t>{10, 3, 3});
  EXPECT(m.reals("t.reals") == std::vector<double>{0.5, 0.1});
  EXPECT(m.integers("t.flags") == std::vector<int64_t>{1, 0});
  EXPECT(m.strings("t.units") == std::vector<std::string>{"|", "E"});
  expect_tensors(file);
  EXPECT(file.at("brain").dtype == Dtype::bf16);
  EXPECT(reals(file, "brain") == eighths());
}

TEST_CASE("safetensors: a file of the safetensors library is read") {
  const TensorFile file = open_safetensors(test::golden("containers.safetensors"));
  EXPECT(file.metadata().string("made") == "by hand");
  expect_tensors(file);
  EXPECT(file.at("flag").dtype == Dtype::boolean);
  EXPECT(values<uint8_t>(file, "flag") == std::vector<uint8_t>{1, 0});
  EXPECT(file.at("scalar").shape == Shape{});
  EXPECT(values<uint8_t>(file, "scalar") == std::vector<uint8_t>{7});
}

TEST_CASE("numbers: q8_0 has the bits of gguf-py") {
  const TensorFile file = open_gguf(test::golden("containers.gguf"));
  std::vector<std::byte> stored(file.at("quantised").bytes), ours(stored.size());
  REQUIRE(stored.size() == 68);
  file.read(file.at("quantised"), stored);
  f32_to_q8_0(eighths().data(), ours.data(), 64);
  EXPECT(stored == ours);
  const std::vector<float> back = reals(file, "quantised");
  for (size_t i = 0; i < back.size(); ++i)
    EXPECT(std::abs(back[i] - eighths()[i]) <= 4.0f / 254 + 4.0f / 2048);
}

TEST_CASE("numbers: every f16 and bf16 goes to f32 and back") {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto half = static_cast<uint16_t>(bits);
    float value;
    uint16_t back;
    f16_to_f32(&half, &value, 1);
    f32_to_f16(&value, &back, 1);
    const bool nan = (bits & 0x7fff) > 0x7c00;
    EXPECT(std::isnan(value) == nan);
    EXPECT((nan ? (back & 0x7fff) > 0x7c00 : back == half));
    const int exponent = static_cast<int>(bits >> 10 & 31),
              fraction = static_cast<int>(bits & 1023);
    const float magnitude = exponent == 31 ? std::numeric_limits<float>::infinity()
                            : exponent == 0
                                ? std::ldexp(static_cast<float>(fraction), -24)
                                : std::ldexp(static_cast<float>(fraction + 1024), exponent - 25);
    if (!nan) EXPECT(value == (bits & 0x8000 ? -magnitude : magnitude));
    bf16_to_f32(&half, &value, 1);
    f32_to_bf16(&value, &back, 1);
    EXPECT((std::isnan(value) ? (back & 0x7fff) > 0x7f80 : back == half));
  }
}

TEST_CASE("numbers: narrowing rounds to nearest, ties to even, and overflows to infinity") {
  const auto f16 = [](float value) {
    uint16_t half;
    f32_to_f16(&value, &half, 1);
    return half;
  };
  const auto bf16 = [](float value) {
    uint16_t half;
    f32_to_bf16(&value, &half, 1);
    return half;
  };
  EXPECT(f16(1 + 1.0f / 2048) == 0x3c00);
  EXPECT(f16(1 + 3.0f / 2048) == 0x3c02);
  EXPECT(f16(std::nextafter(1 + 1.0f / 2048, 2.0f)) == 0x3c01);
  EXPECT(f16(65519.0f) == 0x7bff);
  EXPECT(f16(65520.0f) == 0x7c00);
  EXPECT(f16(-1e30f) == 0xfc00);
  EXPECT(f16(std::ldexp(1.0f, -25)) == 0);  // half of the smallest: to even
  EXPECT(f16(std::nextafter(std::ldexp(1.0f, -25), 1.0f)) == 1);
  EXPECT(f16(std::ldexp(3.0f, -25)) == 2);
  EXPECT(bf16(1 + 1.0f / 256) == 0x3f80);
  EXPECT(bf16(1 + 3.0f / 256) == 0x3f82);
  EXPECT(bf16(std::numeric_limits<float>::max()) == 0x7f80);
  std::vector<float> block(32, 1.0f);
  std::byte stored[34];
  block[7] = std::numeric_limits<float>::infinity();
  f32_to_q8_0(block.data(), stored, 32);
  q8_0_to_f32(stored, block.data(), 32);
  EXPECT(std::isnan(block[0]));
  std::fill(block.begin(), block.end(), 1e-40f);
  f32_to_q8_0(block.data(), stored, 32);
  q8_0_to_f32(stored, block.data(), 32);
  EXPECT(block[0] == 0.0f);
}
