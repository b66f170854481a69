#include "bench/mix.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <numeric>
#include <string_view>

namespace sft {
namespace {

constexpr int kRate = 16000, kTenth = kRate / 10;
constexpr std::array kMixed{3, 5, 7, 9, 10, 12, 14, 15};  // seconds
constexpr int kGroup = 16, kGroups = 30;                  // of the recipe, and of one corpus
constexpr double kTie = 1e-9;  // so that other programs round the same way
constexpr int kMany = kGroup * kGroups;
constexpr std::string_view kOfficial = "official:", kFixed = "fixed:";

// Seconds at these shares of a corpus.
constexpr std::array kShares{0.0, 0.01, 0.05, 0.10, 0.25, 0.50, 0.75, 0.90, 0.95, 0.99, 0.995, 1.0};
struct Quantiles {
  std::string_view name;
  std::array<double, kShares.size()> seconds;
};
constexpr Quantiles kCorpora[] = {
    {"ls-train", {1.3, 2.5, 4.2, 6.4, 11.4, 13.8, 15.3, 16.7, 17.3, 18.1, 18.4, 24.5}},
    {"ted3", {0.5, 0.9, 1.5, 2.1, 3.7, 6.0, 8.3, 10.3, 11.4, 14.0, 14.9, 33.0}},
    {"ls-test", {1.3, 2.0, 2.3, 2.7, 3.7, 5.8, 9.6, 14.6, 17.8, 25.5, 28.4, 35.0}},
    {"kw", {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}},
};

const Quantiles* corpus_named(std::string_view mix) {
  const auto found = std::ranges::find(kCorpora, mix, &Quantiles::name);
  return found == std::end(kCorpora) ? nullptr : found;
}

// 0: not a fixed length.
int fixed_seconds(std::string_view mix) {
  int seconds = 0;
  if (!mix.starts_with(kFixed)) return 0;
  const char *begin = mix.data() + kFixed.size(), *end = mix.data() + mix.size();
  const auto [stop, error] = std::from_chars(begin, end, seconds);
  return error == std::errc() && stop == end && seconds >= 1 && seconds <= 600 ? seconds : 0;
}

int32_t samples_at(const Quantiles& corpus, double share) {
  size_t i = 1;
  while (i + 1 < kShares.size() && kShares[i] < share) ++i;
  const double part = (share - kShares[i - 1]) / (kShares[i] - kShares[i - 1]);
  const double seconds = std::lerp(corpus.seconds[i - 1], corpus.seconds[i], part);
  return kTenth * static_cast<int32_t>(std::floor(10 * seconds + 0.5 + kTie));
}

std::vector<int32_t> evenly(const Quantiles& corpus, int count) {
  std::vector<int32_t> samples;
  for (int i = 0; i < count; ++i) samples.push_back(samples_at(corpus, (i + 0.5) / count));
  return samples;
}

int64_t total(const std::vector<int32_t>& samples) {
  return std::accumulate(samples.begin(), samples.end(), int64_t{0});
}

// The group whose audio is nearest to the mean of all.
std::vector<int32_t> usual_group(const Quantiles& corpus) {
  const std::vector<int32_t> all = evenly(corpus, kMany);
  const int64_t mean = total(all) / kGroups;
  std::vector<int32_t> nearest;
  for (auto at = all.begin(); at != all.end(); at += kGroup) {
    const std::vector<int32_t> group(at, at + kGroup);
    if (nearest.empty() || std::abs(total(group) - mean) < std::abs(total(nearest) - mean))
      nearest = group;
  }
  return nearest;
}

}  // namespace

bool is_mix(const std::string& mix) {
  if (mix.starts_with(kOfficial)) return corpus_named(mix.substr(kOfficial.size()));
  return mix == "mixed" || fixed_seconds(mix) || corpus_named(mix);
}

std::vector<int32_t> mix_samples(const std::string& mix, int batch) {
  if (mix.starts_with(kOfficial)) return usual_group(*corpus_named(mix.substr(kOfficial.size())));
  if (const Quantiles* corpus = corpus_named(mix)) return evenly(*corpus, batch);
  std::vector<int32_t> samples;
  for (size_t b = 0; b < static_cast<size_t>(batch); ++b)
    samples.push_back(kRate * (mix == "mixed" ? kMixed[b % kMixed.size()] : fixed_seconds(mix)));
  return samples;
}

int batch_of(const std::string& mix, double seconds) {
  const double mean = static_cast<double>(total(mix_samples(mix, kMany))) / kMany / kRate;
  return std::max(1, static_cast<int>(std::lround(seconds / mean)));
}

int32_t longest_of(const std::string& mix) { return std::ranges::max(mix_samples(mix, kMany)); }

int usual_batch(const std::string& mix, bool extracts) {
  if (mix.starts_with(kOfficial)) return kGroup;
  if (!mix.starts_with(kFixed)) return 8;
  return mix == "fixed:5" && !extracts ? 4 : 1;
}

}  // namespace sft
