#include "bench/numerics.h"

#include <cmath>

#include "engine/cpu/isa.h"
#include "engine/cpu/narrow.h"
#include "tests/doctest.h"
#include "tests/golden.h"

using namespace sft;

TEST_CASE("numerics: a model is as exact as its class, and the kernels are the chosen ones again") {
  const Config config = open_model(test::golden("models/hubert-layer")).config;
  const std::string isa(cpu::isa());
  const Numerics exact = check_model(config, Math::exact, 0);
  EXPECT(cpu::isa() == isa);
  EXPECT(exact.pass());
  EXPECT(exact.error > 0);  // another instruction set adds in another order
  EXPECT(exact.error < 5e-6);
  for (Math math : {Math::fast16, Math::bf16}) {
    if (!cpu::narrow::available(math)) return test::skip("needs AVX-512 with VNNI and BF16");
    const Numerics narrow = check_model(config, math, 0);
    EXPECT(narrow.pass());
    EXPECT(narrow.error > (math == Math::fast16 ? 1e-4 : 1e-3));
  }
}

TEST_CASE("numerics: an op that computes something else is found") {
  const OpsOptions options{.op = "layer_norm_plain"};
  const auto right = check_ops(options);
  REQUIRE(right.size() == 1);
  EXPECT(right[0].op == "layer_norm_plain");
  EXPECT(right[0].numerics.pass());
  EXPECT(right[0].numerics.error > 0);
  const auto found = std::find_if(op_specs().begin(), op_specs().end(),
                                  [](const OpSpec& s) { return s.name == "layer_norm_plain"; });
  OpSpec spec = *found;
  spec.name = "spoiled layer norm";
  spec.oracle = [oracle = found->oracle](std::span<const Array> x, const Case& c) {
    std::vector<Array> out = oracle(x, c);
    for (double& value : out[0].data) value *= 1.001;
    return out;
  };
  op_specs().push_back(spec);
  const auto wrong = check_ops({.op = "spoiled"});
  op_specs().pop_back();
  REQUIRE(wrong.size() == 1);
  EXPECT(!wrong[0].numerics.pass());
  EXPECT(wrong[0].numerics.error > 1);
  EXPECT(wrong[0].numerics.wrong[0].find("output 0 against the oracle") == 0);
}
