#include "train/schedule.h"

#include "tests/doctest.h"
#include "tests/golden_signal.h"

using namespace sft;

TEST_CASE("schedule: tri-stage factors are those of the golden file") {
  const test::GoldenFile golden("schedule.safetensors");
  for (const int64_t steps : {1, 7, 10, 20, 33}) {
    const std::vector<float> expected = golden.values(fmt::format("factor.{}", steps));
    const Schedule schedule{.steps = steps};
    for (int64_t u = 0; u < steps; ++u)
      EXPECT(schedule.factor(u) == doctest::Approx(expected[static_cast<size_t>(u)]).epsilon(1e-6));
  }
  for (const int64_t steps : {30000, 50000}) {
    const std::vector<float> spots = golden.values(fmt::format("spots.{}", steps));
    const Schedule schedule{.steps = steps};
    for (size_t i = 0; i < spots.size(); i += 2)
      EXPECT(schedule.factor(static_cast<int64_t>(spots[i])) ==
             doctest::Approx(spots[i + 1]).epsilon(1e-6));
  }
}

TEST_CASE("schedule: corners are integer divisions, the head-only phase ends with the ramp") {
  for (int64_t steps = 1; steps < 3000; ++steps) {
    const Schedule schedule{.steps = steps};
    REQUIRE(schedule.warmup_end() == steps / 10);
    REQUIRE(schedule.hold_end() == steps / 10 + 4 * steps / 10);
    REQUIRE(head_only_steps(steps, 0.1) == steps / 10);
  }
  EXPECT(head_only_steps(50, 0) == 0);
  EXPECT(head_only_steps(50, 1) == 50);
}

TEST_CASE("schedule: linear falls from the end of the ramp, constant stays") {
  const Schedule linear{.kind = "linear", .steps = 100, .warmup = 0.2};
  EXPECT(linear.factor(0) == 0);
  EXPECT(linear.factor(19) == doctest::Approx(0.95));
  EXPECT(linear.factor(20) == 1);
  EXPECT(linear.factor(60) == doctest::Approx(0.5));
  const Schedule constant{.kind = "constant", .steps = 100};
  EXPECT(constant.factor(99) == 1);
  EXPECT(std::string(constant.phase(5)) == "warmup");
  EXPECT(std::string(Schedule{.steps = 100}.phase(50)) == "decay");
}
