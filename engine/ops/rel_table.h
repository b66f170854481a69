// The table of WavLM's relative position bias by distance, from one row per bucket of distances
// (Chen et al. 2022, arXiv:2110.13900, after Raffel et al. 2020, arXiv:1910.10683):
//
//   table[h, d] = embedding[buckets[d], h]
//
// Small, and made once for all layers; attention.h says which distance d stands for.
#pragma once

#include <span>

#include "engine/context.h"

namespace sft {

// embedding [N, H] f32; buckets [2R + 1] in [0, N) -> table [H, 2R + 1] f32.
Tensor rel_table_forward(Context& ctx, Tensor embedding, std::span<const int32_t> buckets);

// Sums by ascending d; rows of buckets that nothing falls into are 0.
void rel_table_backward(Context& ctx, Tensor dtable, std::span<const int32_t> buckets,
                        Grad dembedding);

namespace cuda {  // rel_table.cu
[[gnu::weak]] void rel_table_forward(Context& ctx, Tensor embedding,
                                     std::span<const int32_t> buckets, Tensor table);
[[gnu::weak]] void rel_table_backward(Context& ctx, Tensor dtable, std::span<const int32_t> buckets,
                                      Grad dembedding);
}  // namespace cuda

}  // namespace sft
