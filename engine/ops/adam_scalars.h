// What is the same for all elements of an update by Adam: worked out on the host, or by one thread
// of a device, with the same bits.
#pragma once

#include <cmath>

#include "engine/ops/adam.h"

namespace sft {

struct AdamScalars {
  bool applied;               // false: the update is skipped
  float clip, decay, shrink;  // g' = clip g + decay p; p starts from shrink p
  float beta1, one_minus_beta1, beta2, one_minus_beta2;
  float rate, root_scale, eps;  // p -= rate m / (root_scale sqrt(v) + eps)
};

// x^n by squaring: only products, each rounded by itself, where every pow() has bits of its own.
SFT_HOST_DEVICE inline double power(double x, int64_t n) {
  const auto product = [](double a, double b) {
#if defined(__CUDA_ARCH__)
    return __dmul_rn(a, b);
#else
    return a * b;
#endif
  };
  double y = 1;
  for (; n > 0; n /= 2, x = product(x, x))
    if (n % 2) y = product(y, x);
  return y;
}

// step: 1 at the first update of the range.
SFT_HOST_DEVICE inline AdamScalars adam_scalars(const AdamRule& rule, double norm, double loss,
                                                int64_t step) {
  const double room = rule.clip / (norm + 1e-6);
  const double bias1 = 1 - power(rule.beta1, step), bias2 = 1 - power(rule.beta2, step);
  const double lr = rule.lr, decay = rule.weight_decay;  // their product is exact
  const auto finite = [](double x) { return x - x == 0; };
  return {.applied = finite(norm) && finite(loss),
          .clip = static_cast<float>(room < 1 ? room : 1),
          .decay = rule.decoupled ? 0 : rule.weight_decay,
          .shrink = rule.decoupled ? static_cast<float>(1 - lr * decay) : 1,
          .beta1 = rule.beta1,
          .one_minus_beta1 = static_cast<float>(1 - double{rule.beta1}),
          .beta2 = rule.beta2,
          .one_minus_beta2 = static_cast<float>(1 - double{rule.beta2}),
          .rate = static_cast<float>(lr / bias1),
          .root_scale = static_cast<float>(1 / sqrt(bias2)),
          .eps = rule.eps};
}

}  // namespace sft
