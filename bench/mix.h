// Lengths of the utterances of a model bench (bench/lengths.md): noise of one length, a fixed list,
// or as they are spread in a corpus.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace sft {

// fixed:SECONDS; mixed; ls-train, ted3, ls-test, kw; official:MIX, which is one group of the
// fine-tuning recipe: 16 neighbours of that mix, sorted.
bool is_mix(const std::string& mix);

// Samples (16 kHz) of so many utterances: of a corpus at evenly spaced quantiles, in tenths of a
// second. official: `batch` is 16.
std::vector<int32_t> mix_samples(const std::string& mix, int batch);

// How many utterances are about so much audio; at least one.
int batch_of(const std::string& mix, double seconds);
int32_t longest_of(const std::string& mix);  // samples
// Where nobody asks for another.
int usual_batch(const std::string& mix, bool extracts);

}  // namespace sft
