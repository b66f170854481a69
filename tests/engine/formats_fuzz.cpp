// What the fuzzers run (tests/fuzz), here on 100,000 mutations of the golden files each, so that
// every machine does it, with clang or without.
#include <cstring>

#include "engine/io/file.h"
#include "tests/doctest.h"
#include "tests/golden.h"

#define LLVMFuzzerTestOneInput fuzz_gguf
#include "tests/fuzz/gguf.cpp"
#undef LLVMFuzzerTestOneInput
#define LLVMFuzzerTestOneInput fuzz_config
#include "tests/fuzz/config.cpp"
#undef LLVMFuzzerTestOneInput
#define LLVMFuzzerTestOneInput fuzz_safetensors
#include "tests/fuzz/safetensors.cpp"
#undef LLVMFuzzerTestOneInput
#define LLVMFuzzerTestOneInput fuzz_zip
#include "tests/fuzz/zip.cpp"
#undef LLVMFuzzerTestOneInput
#define LLVMFuzzerTestOneInput fuzz_pickle
#include "tests/fuzz/pickle.cpp"
#undef LLVMFuzzerTestOneInput
#define LLVMFuzzerTestOneInput fuzz_torch
#include "tests/fuzz/torch.cpp"
#undef LLVMFuzzerTestOneInput
#define LLVMFuzzerTestOneInput fuzz_vocabulary
#include "tests/fuzz/vocabulary.cpp"
#undef LLVMFuzzerTestOneInput

namespace {

struct Mutator {
  uint64_t state;

  uint64_t below(uint64_t n) {  // xorshift64*
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return (state * 0x2545F4914F6CDD1Dull >> 32) % n;
  }
  void change(std::string& bytes) {
    constexpr uint64_t kExtremes[] = {0, 1, 0x7f, 0xff, 0x7fffffff, 0xffffffff, 1ull << 62, ~0ull};
    const size_t at = below(bytes.size());
    switch (below(6)) {
      case 0:
        bytes[at] = static_cast<char>(below(256));
        break;
      case 1:
        bytes[at] = static_cast<char>(bytes[at] ^ 1 << below(8));
        break;
      case 2:
        std::memcpy(bytes.data() + at, &kExtremes[below(8)],
                    std::min<size_t>(8, bytes.size() - at));
        break;
      case 3:
        bytes.insert(at, bytes.substr(below(bytes.size()), below(64)));
        break;
      case 4:
        bytes.erase(at, below(64));
        break;
      case 5:
        bytes.resize(at);
        break;
    }
    if (bytes.empty()) bytes = "G";
  }
};

// 100,000 mutations of the golden files, in parts that depend on no thread.
void mutate(const std::vector<const char*>& goldens, int (*target)(const uint8_t*, size_t)) {
  constexpr int kParts = 100, kRuns = 1000;
  std::vector<std::string> seeds;
  for (const char* golden : goldens) seeds.push_back(sft::read_text(sft::test::golden(golden)));
  int wrong = 0;
#pragma omp parallel for schedule(dynamic) reduction(+ : wrong)
  for (int part = 0; part < kParts; ++part) {
    Mutator mutator{88172645463325252ull + static_cast<uint64_t>(part) * 0x9E3779B97F4A7C15ull};
    const std::string& seed = seeds[static_cast<size_t>(part) % seeds.size()];
    for (int run = 0; run < kRuns; ++run) {
      std::string bytes = seed;
      for (uint64_t i = 1 + mutator.below(4); i > 0; --i) mutator.change(bytes);
      wrong += target(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()) != 0;
    }
  }
  EXPECT(wrong == 0);
}

}  // namespace

TEST_CASE("gguf: mutated files end in a sound table or an input error") {
  mutate({"containers.gguf"}, fuzz_gguf);
}

TEST_CASE("safetensors: mutated files end in a sound table or an input error") {
  mutate({"containers.safetensors"}, fuzz_safetensors);
}

TEST_CASE("config: mutated JSON ends in a sound configuration or an input error") {
  mutate({"models/hubert-group/config.json", "models/wavlm-layer/config.json",
          "models/data2vec/config.json", "models/wav2vec2-group/config.json"},
         fuzz_config);
}

TEST_CASE("zip: mutated archives end in sound entries or an input error") {
  mutate({"torch/torch-1.zip", "torch/torch-2.zip"}, fuzz_zip);
}

TEST_CASE("pickle: mutated pickles end in a tree or an input error") {
  mutate({"torch/torch-1.legacy", "torch/torch-2.legacy"}, fuzz_pickle);
}

TEST_CASE("torch: mutated files end in tensors inside them or an input error") {
  mutate({"torch/torch-2.zip", "torch/torch-2.legacy"}, fuzz_torch);
}

TEST_CASE("vocabulary: mutated JSON ends in one unit for every output or an input error") {
  mutate({"vocabulary.txt"}, fuzz_vocabulary);
}
