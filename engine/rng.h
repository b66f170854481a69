// Random numbers that depend on where they are used and on nothing else (docs/contract.md section
// 6): a mask is the same on every device and thread, in recomputation, after resume, with any batch
// mates.
//
//   Philox4x32, 7 rounds (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3")
//   key      the run's 64-bit seed
//   counter  (call, utterance, update, site); site = 32-bit FNV-1a of the place's name
//   output   4 words = 8 values of 16 bits, low half of word 0 first
//
// philox, bits16 and the whole numbers of Draws are also made by kernels.
#pragma once

#include <cmath>
#include <cstdint>
#include <numbers>
#include <string_view>

#if defined(__CUDACC__)
#define SFT_HOST_DEVICE __host__ __device__
#else
#define SFT_HOST_DEVICE
#endif

namespace sft {

// FNV-1a; continue a hash by passing it on: fnv1a(".dropout", fnv1a("enc.3.ffn")).
constexpr uint32_t fnv1a(std::string_view text, uint32_t hash = 0x811C9DC5u) {
  for (char c : text) hash = (hash ^ static_cast<uint8_t>(c)) * 0x01000193u;
  return hash;
}

struct PhiloxWords {
  uint32_t words[4];

  SFT_HOST_DEVICE constexpr uint32_t operator[](int i) const { return words[i]; }
  bool operator==(const PhiloxWords&) const = default;
};

SFT_HOST_DEVICE constexpr PhiloxWords philox(uint64_t seed, uint32_t call, uint32_t utterance,
                                             uint32_t update, uint32_t site) {
  uint32_t x0 = call, x1 = utterance, x2 = update, x3 = site;
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 7; ++round) {
    const uint64_t a = uint64_t{x0} * 0xD2511F53u, b = uint64_t{x2} * 0xCD9E8D57u;
    const uint32_t y0 = static_cast<uint32_t>(b >> 32) ^ x1 ^ k0;
    const uint32_t y2 = static_cast<uint32_t>(a >> 32) ^ x3 ^ k1;
    x1 = static_cast<uint32_t>(b), x3 = static_cast<uint32_t>(a), x0 = y0, x2 = y2;
    k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
  }
  return {{x0, x1, x2, x3}};
}

// Value i (0..7) of 16 bits of one call.
SFT_HOST_DEVICE constexpr uint32_t bits16(const PhiloxWords& words, int i) {
  return words[i / 2] >> (i % 2 * 16) & 0xFFFFu;
}

// What a step draws from. Has no state: every draw names its place.
struct Rng {
  uint64_t seed = 0;
  uint32_t update = 0;
};

// A place that drops: keep iff the element's 16-bit number >= threshold, then multiply by scale.
// Inside one utterance calls run row by row and every row starts on a fresh call.
struct Dropout {
  float rate = 0;     // [0, 1)
  uint32_t site = 0;  // fnv1a of the place's name (attention probabilities: the head is added)

  uint32_t threshold() const { return static_cast<uint32_t>(std::nearbyint(rate * 65536.0)); }
  float scale() const { return static_cast<float>(1.0 / (1.0 - threshold() / 65536.0)); }
  explicit operator bool() const { return threshold() != 0; }
};

// Other draws: 32-bit words in order, draw i = word i mod 4 of call i / 4.
class Draws {
 public:
  SFT_HOST_DEVICE Draws(uint64_t seed, uint32_t utterance, uint32_t update, uint32_t site)
      : seed_(seed), utterance_(utterance), update_(update), site_(site) {}

  SFT_HOST_DEVICE uint32_t word() {
    if (next_ % 4 == 0) words_ = philox(seed_, next_ / 4, utterance_, update_, site_);
    return words_[next_++ % 4];
  }
  SFT_HOST_DEVICE uint32_t below(uint32_t n) {
    return static_cast<uint32_t>(uint64_t{word()} * n >> 32);
  }
  double uniform() { return (word() + 0.5) / 4294967296.0; }  // (0, 1)
  // Two normals per pair of words (Box-Muller).
  double normal() {
    if (has_spare_) {
      has_spare_ = false;
      return spare_;
    }
    const double radius = std::sqrt(-2 * std::log(uniform()));
    const double angle = 2 * std::numbers::pi * uniform();
    spare_ = radius * std::sin(angle);
    has_spare_ = true;
    return radius * std::cos(angle);
  }

 private:
  uint64_t seed_;
  uint32_t utterance_, update_, site_, next_ = 0;
  PhiloxWords words_{};
  double spare_ = 0;
  bool has_spare_ = false;
};

}  // namespace sft
