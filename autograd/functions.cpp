#include "autograd/functions.h"

#include "engine/ops/cross_entropy.h"
#include "engine/ops/layer_norm.h"

namespace sft {

Var cross_entropy(Tape& t, Var logits, std::span<const int32_t> labels,
                  std::span<const float> weights) {
  const CrossEntropyOut out = cross_entropy_forward(t.ctx, logits, labels);
  return t.record("cross_entropy", out.losses, {logits}, [=](Tape& t, Tensor) {
    const Grad dlogits = t.grad(logits);
    cross_entropy_backward(t.ctx, logits, labels, weights, out.lse, dlogits);
  });
}

Var layer_norm(Tape& t, Var x, Var weight, Var bias, float eps) {
  const LayerNormOut out = layer_norm_forward(t.ctx, x, weight, bias, eps);
  return t.record("layer_norm", out.y, {x, weight, bias}, [=](Tape& t, Tensor dy) {
    const Grad dx = t.grad(x), dweight = t.grad(weight), dbias = t.grad(bias);
    layer_norm_backward(t.ctx, dy, x, weight, out.mean, out.rstd, dx, dweight, dbias);
  });
}

}  // namespace sft
