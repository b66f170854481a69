// Which frames masked prediction hides (Baevski et al. 2020, arXiv:2006.11477): a union of spans,
// as fairseq draws them for one utterance; masked counts are not equalised across a batch.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/rng.h"

namespace sft {

// Rows of one utterance to mask, ascending. n = frames, l = length:
//   K = max(min_masks, floor(prob n / l + u)) spans, u uniform;
//   starts: K different ones below n - l, or below K + 1 where n - l <= K; spans are cut at n.
// So the last frame is masked only where n - l <= K.
// Draws (site "mask_spans"): u; then the starts, by a partial Fisher-Yates shuffle from the front:
// start i changes places with start i + below(N - i) of the N possible ones.
std::vector<int32_t> span_mask(int32_t frames, double prob, int32_t length, int32_t min_masks,
                               Draws& draws);
// As many rows as any draws may mask.
int32_t most_masked(int32_t frames, double prob, int32_t length, int32_t min_masks);

}  // namespace sft
