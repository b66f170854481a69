// Rows of a matrix by index: those that are frames, those that are masked.
#pragma once

#include <span>

#include "engine/context.h"

namespace sft {

// x [T, C], rows [R] distinct -> [R, C].
Tensor take_rows_forward(Context& ctx, Tensor x, std::span<const int32_t> rows);
// dy [R, C] -> dx [T, C], zero in the rows not taken.
void take_rows_backward(Context& ctx, Tensor dy, std::span<const int32_t> rows, Grad dx);

// A copy of x [T, C] whose given rows, ascending, are mask_emb [C] (HuBERT, wav2vec 2.0).
Tensor mask_spans_forward(Context& ctx, Tensor x, Tensor mask_emb, std::span<const int32_t> rows);
// dy [T, C] -> dx [T, C], zero in the given rows; dmask_emb [C], their sum in the order given.
void mask_spans_backward(Context& ctx, Tensor dy, std::span<const int32_t> rows, Grad dx,
                         Grad dmask_emb);

namespace cuda {  // take_rows.cu
[[gnu::weak]] void take_rows_forward(Context& ctx, Tensor x, std::span<const int32_t> rows,
                                     Tensor y);
[[gnu::weak]] void take_rows_backward(Context& ctx, Tensor dy, std::span<const int32_t> rows,
                                      Grad dx);
[[gnu::weak]] void mask_spans_forward(Context& ctx, Tensor x, Tensor mask_emb,
                                      std::span<const int32_t> rows, Tensor y);
[[gnu::weak]] void mask_spans_backward(Context& ctx, Tensor dy, std::span<const int32_t> rows,
                                       Grad dx, Grad dmask_emb);
}  // namespace cuda

}  // namespace sft
