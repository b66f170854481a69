// SpecAugment of hidden features (Park et al. 2019, arXiv:1904.08779): each utterance is warped in
// time, then bands of its columns and spans of its frames are set to zero.
//
//   warp  frames [0, c) become s frames and [c, T) become T - s, each by bicubic resampling: kernel
//         of Keys 1981 with A = -0.75, centres of pixels at 1/2, edges repeated
//   mask  [start, start + width), start below max(1, size - widest of this utterance's masks)
//
// Draws (site "specaugment") of an utterance of T frames and C columns, in this order:
//   if T > 2 time_warp > 0:   c = time_warp + below(T - 2 time_warp), s = c - time_warp + 1 +
//                             below(2 time_warp)
//   freq_masks widths, each below(min(freq_width, C)), then as many starts
//   time_masks widths, each below(min(time_width, T)), then as many starts
// The minimum keeps one mask from covering everything where features or utterances are small.
#pragma once

#include "engine/context.h"
#include "engine/segments.h"

namespace sft {

struct SpecAugment {
  int time_warp = 5;  // window, frames; 0: no warp
  int freq_masks = 4, freq_width = 50;
  int time_masks = 2, time_width = 40;
};

struct SpecAugmentOut {
  Tensor y;  // [T, C]
  // [B, 2 + 2 (freq_masks + time_masks)] i32, saved: c, s, then start and end of masks
  Tensor plan;
};

// x [T, C], rows may be strided. Memory-bound: 8TC bytes.
SpecAugmentOut spec_augment_forward(Context& ctx, Tensor x, const SpecAugment& options,
                                    const Segments& segments);

// dy [T, C] -> dx [T, C]: masked entries pass nothing, the others go where they came from.
void spec_augment_backward(Context& ctx, Tensor dy, Tensor plan, const SpecAugment& options,
                           const Segments& segments, Grad dx);

namespace cuda {  // spec_augment.cu
[[gnu::weak]] void spec_augment_forward(Context& ctx, Tensor x, const SpecAugment& options,
                                        const Segments& segments, const SpecAugmentOut& out);
[[gnu::weak]] void spec_augment_backward(Context& ctx, Tensor dy, Tensor plan,
                                         const SpecAugment& options, const Segments& segments,
                                         Grad dx);
}  // namespace cuda

}  // namespace sft
