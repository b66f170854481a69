#include "engine/io/hash.h"

#include <openssl/evp.h>
#include <xxhash.h>

#include <algorithm>
#include <vector>

#include "engine/check.h"
#include "engine/io/file.h"

namespace sft {

namespace {

std::string hex(std::span<const unsigned char> bytes) {
  std::string out;
  for (unsigned char b : bytes) out += fmt::format("{:02x}", b);
  return out;
}

// Calls use(piece) with the file from start to end.
template <class F>
void for_each_piece(const InputFile& file, F&& use) {
  std::vector<std::byte> buffer(std::min<uint64_t>(file.size(), 1 << 20));
  for (uint64_t offset = 0; offset < file.size();) {
    const auto piece =
        std::span(buffer).first(std::min<uint64_t>(file.size() - offset, buffer.size()));
    file.read_at(offset, piece);
    use(std::span<const std::byte>(piece));
    offset += piece.size();
  }
}

class Sha256 {
 public:
  Sha256() { require(context_ && EVP_DigestInit_ex(context_.get(), EVP_sha256(), nullptr)); }
  void update(std::span<const std::byte> bytes) {
    require(EVP_DigestUpdate(context_.get(), bytes.data(), bytes.size()));
  }
  std::string digest() {
    unsigned char bytes[EVP_MAX_MD_SIZE];
    unsigned length = 0;
    require(EVP_DigestFinal_ex(context_.get(), bytes, &length));
    return hex({bytes, length});
  }

 private:
  static void require(bool ok) {
    if (!ok) fail(Kind::internal, "OpenSSL cannot compute SHA-256");
  }
  struct Free {
    void operator()(EVP_MD_CTX* context) const { EVP_MD_CTX_free(context); }
  };
  std::unique_ptr<EVP_MD_CTX, Free> context_{EVP_MD_CTX_new()};
};

}  // namespace

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
  for_each_piece(InputFile(path), [&](std::span<const std::byte> piece) { hash.update(piece); });
  return hash.digest();
}

std::string sha256_of_file(const std::string& path) {
  Sha256 hash;
  for_each_piece(InputFile(path), [&](std::span<const std::byte> piece) { hash.update(piece); });
  return hash.digest();
}

std::string sha256_of(std::span<const std::byte> bytes) {
  Sha256 hash;
  hash.update(bytes);
  return hash.digest();
}

}  // namespace sft
