// GELU and its slope in pieces, for vectors that look numbers up among 32.
#pragma once

namespace sft::cpu {

// Piece j holds t = (j + d) kWidth, |d| <= 1/2, as polynomials in d, coefficient by coefficient:
//   tail   Phi(-t), the Gaussian integral; 1.3e-7 relative up to 5.3, 3e-7 at the end
//   slope  1/2 - Phi(-t) + t phi(t), which is GELU'(t) - 1/2; 1e-7 absolute
// Chebyshev interpolation, computed in double when the program starts.
struct GeluTable {
  static constexpr int kPieces = 32, kTailTerms = 7, kSlopeTerms = 5;
  static constexpr float kWidth = 0.2f, kInverse = 5, kEnd = 6.29f;

  alignas(64) float tail[kTailTerms][kPieces];
  alignas(64) float slope[kSlopeTerms][kPieces];
};

extern const GeluTable gelu_table;

}  // namespace sft::cpu
