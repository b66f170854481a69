// A library's kernel beside ours: shown if its numbers agree.
#include "bench/yardstick.h"

#include <algorithm>

#include "bench/ops.h"
#include "tests/doctest.h"

using namespace sft;

namespace {

// What the oracle says, times a factor, half as fast each time it is asked.
class Twin final : public Yardstick {
 public:
  Twin(const YardstickOf& of, double factor) : output_(of.op.oracle(of.inputs, of.bench)[0]) {
    for (double& x : output_.data) x *= factor;
  }
  std::string name() const override { return "a twin"; }
  Array output() override { return output_; }
  double seconds(int64_t) override { return seconds_ *= 2; }

 private:
  Array output_;
  double seconds_ = 1;
};

struct Outcome {
  std::vector<KernelRow> rows;
  std::vector<std::string> said;
};

Outcome with(const MakeYardstick& yardstick, Math math) {
  const auto found = std::ranges::find(op_specs(), "layer_norm", &OpSpec::name);
  OpSpec spec = *found;
  spec.name = "yardstick norm", spec.cases = {{.frames = {3, 1}, .dims = {48}, .bench = true}};
  op_specs().push_back(spec);
  Outcome outcome;
  outcome.rows = bench_ops({.op = "yardstick norm",
                            .repeats = 3,
                            .where = {Device::cuda, math},
                            .region_seconds = 1e-5,
                            .rotated_bytes = 100,
                            .yardstick = yardstick,
                            .say = [&](const std::string& s) { outcome.said.push_back(s); }},
                           [](auto, auto) {});
  op_specs().pop_back();
  REQUIRE(outcome.rows.size() == 2);
  EXPECT(outcome.rows[1].peer == 0);  // backward
  return outcome;
}

MakeYardstick twin(double factor) {
  return [factor](const YardstickOf& of) { return std::make_unique<Twin>(of, factor); };
}

}  // namespace

TEST_CASE("yardstick: how far two outputs are from each other") {
  const Array ours{.shape = {3, 2}, .data = {3, 4, 0, 0, 5, 0}};
  EXPECT(disagreement(ours, ours) == 0);
  EXPECT(disagreement(ours, {.shape = {2, 2}, .data = {3, 4, 7, 7}}) == 0);  // between utterances
  EXPECT(disagreement(ours, {.shape = {3, 2}, .data = {3, 4, 0, 0, 5, 12}}) ==
         doctest::Approx(12 / std::sqrt(25 + 169)));
  const Array none{.shape = {1, 2}, .data = {0, 0}};
  EXPECT(!(disagreement(none, none) <= 1));
}

TEST_CASE("yardstick: timed beside an op with which it agrees, and only then") {
  if (const std::string why = no_gpu(); !why.empty()) return test::skip(why);
  for (Math math : {Math::exact, Math::bf16}) {
    const Outcome right = with(twin(1), math);
    EXPECT(right.rows[0].peer == 8);  // the median of 4, 8 and 16, after a warm-up
    EXPECT(right.rows[0].in_turn);
    REQUIRE(right.said.size() == 1);
    EXPECT(right.said[0].starts_with("yardstick norm[2x4; 48]: a twin is off by "));
    const Outcome wrong = with(twin(1.1), math);
    EXPECT(wrong.rows[0].peer == 0);
    REQUIRE(wrong.said.size() == 1);
    EXPECT(wrong.said[0].ends_with(": not timed"));
  }
}

TEST_CASE("yardstick: a library that is missing, and an op it does not have") {
  if (const std::string why = no_gpu(); !why.empty()) return test::skip(why);
  const Outcome missing = with(
      [](const YardstickOf&) -> std::unique_ptr<Yardstick> {
        fail(Kind::resource, "libnone.so: no such library");
      },
      Math::exact);
  EXPECT(missing.rows[0].peer == 0);
  REQUIRE(missing.said.size() == 1);
  EXPECT(missing.said[0].ends_with(": no yardstick: libnone.so: no such library"));
  const Outcome none = with([](const YardstickOf&) { return nullptr; }, Math::exact);
  EXPECT(none.rows[0].peer == 0);
  EXPECT(none.said.empty());
}
