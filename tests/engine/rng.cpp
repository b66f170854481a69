#include "engine/rng.h"

#include "tests/doctest.h"

using namespace sft;

// Values of the definition in numpy (64-bit arithmetic, 7 rounds).
TEST_CASE("rng: known answers") {
  EXPECT(fnv1a("enc.3.ffn.dropout") == fnv1a(".dropout", fnv1a("enc.3.ffn")));
  EXPECT(fnv1a("") == 0x811C9DC5u);
  EXPECT(fnv1a("a") == 0xE40C292Cu);
  EXPECT(philox(0x0u, 0u, 0u, 0u, 0x0u) ==
         PhiloxWords{0x5f6fb709u, 0xd893f64u, 0x4f121f81u, 0x4f730a48u});
  EXPECT(philox(0x123456789abcdef0u, 5u, 7u, 11u, 0xf74e274du) ==
         PhiloxWords{0x18f63686u, 0xd0193172u, 0x839dcf42u, 0x324150d7u});
  EXPECT(philox(0xffffffffffffffffu, 4294967295u, 4294967295u, 4294967295u, 0xffffffffu) ==
         PhiloxWords{0x5207ddc2u, 0x45165e59u, 0x4d8ee751u, 0x8c52f662u});
  EXPECT(bits16(philox(3, 2, 5, 4, fnv1a("enc.dropout")), 3) == 46953u);
}

TEST_CASE("rng: draws are uniform, normal, and below n") {
  Draws draws(7, 1, 2, fnv1a("test"));
  double sum = 0, sum_normal = 0, sum_square = 0;
  for (int i = 0; i < 20000; ++i) {
    sum += draws.uniform();
    const double z = draws.normal();
    sum_normal += z, sum_square += z * z;
    EXPECT(draws.below(7) < 7);
  }
  EXPECT(std::abs(sum / 20000 - 0.5) < 5 * std::sqrt(1 / 12.0 / 20000));
  EXPECT(std::abs(sum_normal / 20000) < 5 / std::sqrt(20000.0));
  EXPECT(std::abs(sum_square / 20000 - 1) < 5 * std::sqrt(2 / 20000.0));
}

TEST_CASE("rng: dropout keeps what the contract says") {
  const Dropout half{0.5f, fnv1a("x")};
  EXPECT(half.threshold() == 32768);
  EXPECT(half.scale() == 2.0f);
  EXPECT(!Dropout{});
  EXPECT(Dropout{0.1f, 0}.threshold() == 6554);
}
