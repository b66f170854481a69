// How a device has computed its products and LSTM layers: the algorithm that the library chose for
// each kind of product, and who computed the layers, kept with a run (gemm.txt), so that a run that
// is resumed rounds as it began. The
// library may choose otherwise another time; an algorithm it once gave it repeats bit by bit.
//
//   sft gemm 1
//   by <library, version, device>
//   algorithm <16 digits> ... (8 words, opaque)
//   product <transpose_a transpose_b bias in out M N K lda ldb ldc ldfrom, alignments of A B C from
//            bias, number of an algorithm>
//   lstm <type inputs units directions> <a library and its version, or: our own kernels>
//   end <number of products>
#pragma once

#include <array>
#include <compare>
#include <map>
#include <string>
#include <string_view>

#include "engine/cuda/lstm_pass.h"
#include "engine/tensor.h"

namespace sft::cuda {

struct Gemm;
class Runtime;

// Everything about a product but its addresses, of which the alignment (16 at most: what kernels of
// the library want, and one algorithm for all addresses gives the same bits wherever a tensor
// lies).
struct GemmKey {
  bool transpose_a = false, transpose_b = false, bias = false;
  Dtype in = Dtype::f32, out = Dtype::f32;
  int64_t M = 0, N = 0, K = 0, lda = 0, ldb = 0, ldc = 0, ldfrom = 0;
  uint32_t align_a = 16, align_b = 16, align_c = 16, align_from = 16, align_bias = 16;

  GemmKey() = default;
  explicit GemmKey(const Gemm& product);
  auto operator<=>(const GemmKey&) const = default;
};

using GemmAlgorithm = std::array<uint64_t, 8>;  // what only the library understands

struct GemmChoices {
  std::string by;  // library, version and device; their algorithms mean nothing to others
  std::map<GemmKey, GemmAlgorithm> algorithms;
  std::map<LstmShape, std::string> lstms = {};
};

std::string to_text(const GemmChoices& choices);
// `path` stands in messages: Kind::input for anything that to_text does not write.
GemmChoices parse_gemm_choices(std::string_view text, const std::string& path);

// Replaces the file.
void save_gemm_choices(const Runtime& device, const std::string& path);
// What the device is to say of them: empty, or that (some of) the recorded algorithms are chosen
// anew. No file: nothing was recorded.
std::string load_gemm_choices(Runtime& device, const std::string& path);

}  // namespace sft::cuda
