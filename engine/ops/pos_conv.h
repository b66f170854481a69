// Positional convolution (wav2vec 2.0, Baevski et al. 2020, arXiv:2006.11477): grouped, over the
// frames of each utterance, with GELU and the residual:
//
//   pre[t, o] = bias[o] + sum_ij weight[o, i, j] x[t + j - floor(K / 2), group(o) C / G + i]
//   y = x + GELU(pre)
//
// or the convolution alone, y = pre, as data2vec stacks it. Frames outside the utterance count as
// zero. Taps that meet only such frames are skipped.
#pragma once

#include "engine/context.h"
#include "engine/segments.h"

namespace sft {

struct PosConvOut {
  Tensor y;    // [T, C]
  Tensor pre;  // [T, C], saved if keep
};

enum class PosConv { residual, alone };  // y = x + GELU(pre), whose pre may be saved; y = pre

// x [T, C]; weight [C, C / groups, K]; bias [C].
PosConvOut pos_conv_forward(Context& ctx, Tensor x, Tensor weight, Tensor bias, int groups,
                            Segments segments, PosConv kind, bool keep);
// pre empty: of the convolution alone.
void pos_conv_backward(Context& ctx, Tensor dy, Tensor x, Tensor weight, Tensor pre, int groups,
                       Segments segments, Grad dx, Grad dweight, Grad dbias);

namespace cuda {  // pos_conv.cu
[[gnu::weak]] void pos_conv_forward(Context& ctx, Tensor x, Tensor weight, Tensor bias, int groups,
                                    Segments segments, PosConv kind, const PosConvOut& out);
[[gnu::weak]] void pos_conv_backward(Context& ctx, Tensor dy, Tensor x, Tensor weight, Tensor pre,
                                     int groups, Segments segments, Grad dx, Grad dweight,
                                     Grad dbias);
}  // namespace cuda

}  // namespace sft
