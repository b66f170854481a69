// The bits of dropout, against numbers drawn by the definition (docs/contract.md section 6; made
// with numpy) and against engine/rng.h.
#include <string>

#include "engine/ops/dropout.h"
#include "tests/doctest.h"
#include "tests/op_spec.h"

using namespace sft;

namespace {

constexpr uint64_t kSeed = 0x123456789ABCDEF0;
constexpr uint32_t kUpdate = 5;

// Which elements of ones [T, C] are kept, row by row: x or a dot.
std::vector<std::string> kept(std::vector<int32_t> lengths, std::vector<int32_t> utterances,
                              int64_t C, Dropout dropout) {
  OpRun run(/*poison=*/true, kSeed, kUpdate);
  const SegmentList segments(lengths, utterances);
  const Tensor x = run.ctx.activation({segments.view().total(), C});
  for (int64_t i = 0; i < x.count(); ++i) x.f32()[i] = 1;
  const Tensor y = dropout_forward(run.ctx, x, dropout, segments.view());
  std::vector<std::string> rows;
  for (int64_t t = 0; t < y.rows(); ++t) {
    rows.emplace_back();
    for (int64_t c = 0; c < C; ++c) {
      const float value = y.row(t)[c];
      rows.back() += value == 0 ? '.' : value == dropout.scale() ? 'x' : '?';
    }
  }
  return rows;
}

}  // namespace

TEST_CASE("dropout: bits of the definition") {
  const Dropout dropout{.rate = 0.3f, .site = fnv1a("enc.3.ffn.dropout")};
  const std::vector<std::string> expected = {".xx.xxxxxx.xxxx.x.x.", "xxx..xx.xxxxx..x...x",
                                             "xxx.x.xxxxxxxx.xxxxx", "xxx...xxxx.x.xxx.xx.",
                                             "xxx...x.xx.x..xxx.xx"};
  EXPECT(kept({3, 2}, {3, 7}, 20, dropout) == expected);
}

TEST_CASE("dropout: long rows draw as engine/rng.h does") {
  const Dropout dropout{.rate = 0.1f, .site = fnv1a("enc.dropout")};
  for (const int64_t C : {1, 15, 512, 1100}) {
    const auto rows = kept({2, 1}, {9, 4}, C, dropout);
    for (int64_t t = 0; t < 3; ++t)
      for (int64_t c = 0; c < C; ++c) {
        const auto call = static_cast<uint32_t>((t == 2 ? 0 : t) * ((C + 7) / 8) + c / 8);
        const PhiloxWords words = philox(kSeed, call, t == 2 ? 4 : 9, kUpdate, dropout.site);
        const bool keep = bits16(words, static_cast<int>(c % 8)) >= dropout.threshold();
        REQUIRE(rows[t][c] == (keep ? 'x' : '.'));
      }
  }
}

TEST_CASE("dropout: the rate is checked, and so are the segments") {
  EXPECT(test::error_of([] { kept({2}, {0}, 8, {.rate = 1}); }).message.find("dropout is 1") !=
         std::string::npos);
  OpRun run(true);
  EXPECT(test::error_of([&] {
           dropout_forward(run.ctx, run.ctx.activation({3, 8}), {.rate = 0.5f}, {});
         }).kind == Kind::internal);
}
