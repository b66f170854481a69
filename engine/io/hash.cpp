#include "engine/io/hash.h"

#ifdef __x86_64__
#include <cpuid.h>
#include <immintrin.h>
#include <xxh_x86dispatch.h>  // the widest vectors there are: 32 ms in place of 42 for 377 MB
#else
#include <xxhash.h>
#endif

#include <algorithm>
#include <bit>
#include <cstring>
#include <vector>

#include "engine/check.h"
#include "engine/io/file.h"

namespace sft {

void Xxh3::Free::operator()(XXH3_state_s* state) const { XXH3_freeState(state); }

Xxh3::Xxh3() : state_(XXH3_createState()) {
  if (!state_) throw std::bad_alloc();
  XXH3_128bits_reset(state_.get());
}

void Xxh3::update(std::span<const std::byte> bytes) {
  XXH3_128bits_update(state_.get(), bytes.data(), bytes.size());
}

std::string Xxh3::digest() const {
  const XXH128_hash_t hash = XXH3_128bits_digest(state_.get());
  return fmt::format("{:016x}{:016x}", hash.high64, hash.low64);
}

namespace {

// The whole file through update(), piece by piece.
template <class Hash>
std::string of_file(const std::string& path) {
  Hash hash;
  const InputFile file(path);
  std::vector<std::byte> buffer(std::min<uint64_t>(file.size(), 1 << 20));
  for (uint64_t offset = 0; offset < file.size();) {
    const auto piece =
        std::span(buffer).first(std::min<uint64_t>(file.size() - offset, buffer.size()));
    file.read_at(offset, piece);
    hash.update(piece);
    offset += piece.size();
  }
  return hash.digest();
}

}  // namespace

std::string xxh3_of_file(const std::string& path) { return of_file<Xxh3>(path); }

// ---- SHA-256

namespace {

using State = std::array<uint32_t, 8>;

constexpr size_t kBlock = 64;
alignas(16) constexpr std::array<uint32_t, 64> kRounds = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

void add_block(State& state, const std::byte* block) {
  std::array<uint32_t, 64> w;
  for (size_t i = 0; i < 16; ++i) {
    std::memcpy(&w[i], block + 4 * i, 4);
    w[i] = __builtin_bswap32(w[i]);
  }
  for (size_t i = 16; i < 64; ++i) {
    const uint32_t a = w[i - 15], b = w[i - 2];
    w[i] = w[i - 16] + w[i - 7] + (std::rotr(a, 7) ^ std::rotr(a, 18) ^ a >> 3) +
           (std::rotr(b, 17) ^ std::rotr(b, 19) ^ b >> 10);
  }
  auto [a, b, c, d, e, f, g, h] = state;
  for (size_t i = 0; i < 64; ++i) {
    const uint32_t t1 = h + (std::rotr(e, 6) ^ std::rotr(e, 11) ^ std::rotr(e, 25)) +
                        ((e & f) ^ (~e & g)) + kRounds[i] + w[i];
    const uint32_t t2 =
        (std::rotr(a, 2) ^ std::rotr(a, 13) ^ std::rotr(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
    h = g, g = f, f = e, e = d + t1, d = c, c = b, b = a, a = t1 + t2;
  }
  const State added = {a, b, c, d, e, f, g, h};
  for (size_t i = 0; i < 8; ++i) state[i] += added[i];
}

#ifdef __x86_64__
bool has_sha_instructions() {
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b >> 29 & 1);
}

// The instructions hold the state as (a, b, e, f) and (c, d, g, h), and do two rounds each.
__attribute__((target("sha,sse4.1,ssse3"))) void add_blocks_sha(State& state, const std::byte* at,
                                                                size_t blocks) {
  const __m128i swap = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);
  auto* words = reinterpret_cast<__m128i*>(state.data());
  const __m128i dcba = _mm_shuffle_epi32(_mm_loadu_si128(words), 0xb1);
  const __m128i hgfe = _mm_shuffle_epi32(_mm_loadu_si128(words + 1), 0x1b);
  __m128i abef = _mm_alignr_epi8(dcba, hgfe, 8), cdgh = _mm_blend_epi16(hgfe, dcba, 0xf0);
  for (; blocks > 0; --blocks, at += kBlock) {
    const __m128i before_abef = abef, before_cdgh = cdgh;
    __m128i w[4];
    for (int i = 0; i < 4; ++i)
      w[i] = _mm_shuffle_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at) + i), swap);
    for (int i = 0; i < 16; ++i) {
      const __m128i now = w[i & 3];
      const __m128i sum =
          _mm_add_epi32(now, _mm_load_si128(reinterpret_cast<const __m128i*>(kRounds.data()) + i));
      cdgh = _mm_sha256rnds2_epu32(cdgh, abef, sum);
      abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(sum, 0x0e));
      if (i >= 12) continue;
      const __m128i third = w[(i + 2) & 3], fourth = w[(i + 3) & 3];
      w[i & 3] = _mm_sha256msg2_epu32(_mm_add_epi32(_mm_sha256msg1_epu32(now, w[(i + 1) & 3]),
                                                    _mm_alignr_epi8(fourth, third, 4)),
                                      fourth);
    }
    abef = _mm_add_epi32(abef, before_abef), cdgh = _mm_add_epi32(cdgh, before_cdgh);
  }
  const __m128i feba = _mm_shuffle_epi32(abef, 0x1b), dchg = _mm_shuffle_epi32(cdgh, 0xb1);
  _mm_storeu_si128(words, _mm_blend_epi16(feba, dchg, 0xf0));
  _mm_storeu_si128(words + 1, _mm_alignr_epi8(dchg, feba, 8));
}
#endif

void add_blocks(State& state, const std::byte* at, size_t blocks) {
#ifdef __x86_64__
  static const bool fast = has_sha_instructions();
  if (fast) return add_blocks_sha(state, at, blocks);
#endif
  for (; blocks > 0; --blocks, at += kBlock) add_block(state, at);
}

}  // namespace

void Sha256::update(std::span<const std::byte> bytes) {
  const size_t held = bytes_ % kBlock;
  bytes_ += bytes.size();
  if (held > 0) {
    const size_t taken = std::min(bytes.size(), kBlock - held);
    std::copy_n(bytes.begin(), taken, rest_.begin() + static_cast<std::ptrdiff_t>(held));
    bytes = bytes.subspan(taken);
    if (held + taken < kBlock) return;
    add_blocks(state_, rest_.data(), 1);
  }
  add_blocks(state_, bytes.data(), bytes.size() / kBlock);
  const auto tail = bytes.last(bytes.size() % kBlock);
  std::copy(tail.begin(), tail.end(), rest_.begin());
}

std::string Sha256::digest() const {
  State state = state_;
  std::array<std::byte, 2 * kBlock> end{};  // 0x80, zeros, the length in bits
  const size_t held = bytes_ % kBlock, blocks = held + 9 > kBlock ? 2 : 1;
  std::copy_n(rest_.begin(), held, end.begin());
  end[held] = std::byte{0x80};
  const uint64_t bits = __builtin_bswap64(8 * bytes_);
  std::memcpy(end.data() + blocks * kBlock - sizeof bits, &bits, sizeof bits);
  add_blocks(state, end.data(), blocks);
  std::string out;
  for (uint32_t word : state) out += fmt::format("{:08x}", word);
  return out;
}

std::string sha256_of_file(const std::string& path) { return of_file<Sha256>(path); }

}  // namespace sft
