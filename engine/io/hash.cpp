#include "engine/io/hash.h"

#ifdef __x86_64__
#include <xxh_x86dispatch.h>  // the widest vectors there are: 32 ms in place of 42 for 377 MB
#else
#include <xxhash.h>
#endif

#include <algorithm>
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

std::string xxh3_of_file(const std::string& path) {
  Xxh3 hash;
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

}  // namespace sft
