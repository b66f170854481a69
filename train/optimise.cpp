#include "train/optimise.h"

#include "engine/cuda/gemm.h"
#include "engine/ops/grad_norm.h"

namespace sft {
namespace {

void update(Context& ctx, ParamStore& store, const ParamStore::Range& range, const AdamRule& rule,
            Tensor loss, Tensor norm) {
  AdamRange all{.p = store.part(store.master(), range),
                .g = store.part(store.grad(), range),
                .m = store.part(store.moment1(), range),
                .v = store.part(store.moment2(), range),
                .steps = store.steps(range)};
  Prepared::Form* copy = ctx.gpu ? cuda::bf16_copy(store.prepared(), all.p.data) : nullptr;
  if (copy && !copy->current) copy = nullptr;
  if (copy) all.copy = Tensor(copy->memory.get(), all.p.shape, Dtype::bf16, Device::cuda);
  adam(ctx, all, rule, norm, loss);
  if (ctx.dry) return;
  store.weights_changed(range);
  if (copy) copy->current = true;
}

}  // namespace

void optimise(Context& ctx, ParamStore& store, const AdamRule& rule, Tensor loss, Tensor norm) {
  if (!ctx.dry) store.zero_unwritten();
  grad_norm(ctx, store.gradients(), norm);
  for (const ParamStore::Range& range : store.ranges())
    if (range.active && range.count()) update(ctx, store, range, rule, loss, norm);
}

}  // namespace sft
