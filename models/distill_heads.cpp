#include "models/distill_heads.h"

#include "engine/ops/linear.h"
#include "engine/ops/transpose.h"

namespace sft {

DistillHeads::DistillHeads(const Config& config) {
  const auto n = static_cast<int64_t>(config.pretrain.distill.size()), C = config.width;
  if (n == 0) return;
  up = Linear(C, n * C);
  weight.shape = {n, C, C};
  bias.shape = {n, C};
}

void DistillHeads::operator()(Tape& t, Var h, std::span<Var> states) const {
  const Tensor both = gelu(t, up(t, h));
  const Tensor w = weight.var, b = bias.var;
  const int64_t C = w.width();
  for (size_t i = 0; i < states.size(); ++i) {
    ScratchScope scratch(t.ctx.scratch);
    const auto n = static_cast<int64_t>(i);
    const Tensor outputs = transpose(t.ctx, w.slice(n, 1).reshaped({C, C}));
    states[i] =
        Var{linear_forward(t.ctx, both.columns(n * C, C), outputs, b.slice(n, 1).reshaped({C}))};
  }
}

}  // namespace sft
