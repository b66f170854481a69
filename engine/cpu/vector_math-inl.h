// Elementary functions on vectors of floats, for every target. Included like simd-inl.h.
//
// Polynomials are minimax fits of the relative error (Lawson's reweighted least squares on 1500
// Chebyshev nodes, in double); tests/engine/vector_math.cpp holds the bounds stated here. NaN in,
// NaN out. Results that would be smaller than 2^-125 may be zero.
#if defined(SFT_VECTOR_MATH_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef SFT_VECTOR_MATH_INL_H
#undef SFT_VECTOR_MATH_INL_H
#else
#define SFT_VECTOR_MATH_INL_H
#endif

#include <hwy/highway.h>

#include "engine/cpu/gelu_table.h"
#include "engine/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace sft::HWY_NAMESPACE {

// ln 2 in two parts; the product of the first with an integer below 2^9 is exact.
constexpr float kLn2High = 0x1.62e4p-1f, kLn2Low = 0x1.7f7d1cf79abcap-20;
constexpr float kLog2E = 0x1.715476p0f;

// c[0] + c[1] x + ...
template <size_t N>
HWY_INLINE Vec polynomial(Vec x, const float (&c)[N]) {
  Vec y = set(c[N - 1]);
  for (size_t i = N - 1; i-- > 0;) y = hn::MulAdd(y, x, set(c[i]));
  return y;
}

// e^r for |r| <= ln 2 / 2: 1 + r + r^2 P(r), 3e-9.
HWY_INLINE Vec exp_reduced(Vec r) {
  constexpr float c[] = {4.999999404e-1f, 1.666651517e-1f, 4.166845605e-2f, 8.369410411e-3f,
                         1.381316106e-3f};
  return hn::MulAdd(hn::Mul(r, r), polynomial(r, c), hn::Add(r, set(1)));
}

// x 2^n for n in [-126, 127].
template <class Int>
HWY_INLINE Vec scale_by_power(Vec x, Int n) {
  const hn::RebindToSigned<Lanes> di;
  const auto bits = hn::ShiftLeft<23>(hn::Add(n, hn::Set(di, 127)));
  return hn::Mul(x, hn::BitCast(Lanes(), bits));
}

// e^x; 2 ulp. Zero below -86.99, infinite above ln of the largest float.
HWY_INLINE Vec exp(Vec x) {
  const hn::RebindToSigned<Lanes> di;
  const auto n = hn::NearestInt(hn::Mul(x, set(kLog2E)));
  const Vec whole = hn::ConvertTo(Lanes(), n);
  const Vec r = hn::NegMulAdd(whole, set(kLn2Low), hn::NegMulAdd(whole, set(kLn2High), x));
  const Vec p = exp_reduced(r);
  const Vec y = scale_by_power(hn::Add(p, p), hn::Sub(n, hn::Set(di, 1)));  // n may be 128
  const Vec finite = hn::IfThenElse(hn::Gt(x, set(88.7228355f)), hn::Inf(Lanes()), y);
  return hn::IfThenElse(hn::Lt(x, set(-86.99f)), zero(), finite);
}

// 2^x for x up to 127, -100 for all that is less; 2e-7 relative.
HWY_INLINE Vec exp2(Vec x) {
  constexpr float c[] = {0.6931472f,   0.24022648f,   0.055503324f,
                         0.009618437f, 0.0013398874f, 0.00015353362f};
  const hn::RebindToSigned<Lanes> di;
  x = hn::IfThenElse(hn::Lt(x, set(-100)), set(-100), x);  // NaN stays NaN
  // The last bits of `whole` are round(x) + 127.
  const Vec shift = set(0x1.8p23f + 127), whole = hn::Add(x, shift);
  const Vec r = hn::Sub(x, hn::Sub(whole, shift));
  const Vec power = hn::BitCast(Lanes(), hn::ShiftLeft<23>(hn::BitCast(di, whole)));
  return hn::Mul(hn::MulAdd(r, polynomial(r, c), set(1)), power);
}

// 1 / x of normal numbers whose inverse is normal; 3e-7 relative.
HWY_INLINE Vec reciprocal(Vec x) {
#if HWY_ARCH_X86
  const Vec r = hn::ApproximateReciprocal(x);
  return hn::MulAdd(r, hn::NegMulAdd(x, r, set(1)), r);
#else
  return hn::Div(set(1), x);
#endif
}

// What GELU and its derivative are made of. With t = min(|x|, 13) and the Gaussian integral Phi:
//   e = exp(-t^2 / 2),  Phi(-t) = e R(t),  R(t) = u P(u), u = 1 / (1 + 0.3 t), 1.3e-7 relative,
// so that the negative tail keeps its relative accuracy.
struct Gaussian {
  Vec t, e, ratio;
};

HWY_INLINE Gaussian gaussian(Vec x) {
  constexpr float c[] = {1.196245402e-1f,  1.208263114e-1f, 9.946507215e-2f,  1.300325841e-1f,
                         -5.645000935e-2f, 2.093462795e-1f, -1.589336544e-1f, 3.608882055e-2f};
  const Vec size = hn::Abs(x), limit = set(13);
  const Vec t = hn::IfThenElse(hn::Gt(size, limit), limit, size);  // NaN stays NaN
  const Vec half = hn::Mul(t, set(-0.5f));
  const auto n = hn::NearestInt(hn::Mul(hn::Mul(half, set(kLog2E)), t));
  const Vec whole = hn::ConvertTo(Lanes(), n);
  // With a fused multiply-add t^2 / 2 is never rounded.
  const Vec r = hn::MulAdd(half, t, hn::Mul(whole, set(-kLn2High)));
  const Vec e = scale_by_power(exp_reduced(hn::NegMulAdd(whole, set(kLn2Low), r)), n);
  const Vec u = reciprocal(hn::MulAdd(t, set(0.3f), set(1)));
  return {t, e, hn::Mul(u, polynomial(u, c))};
}

HWY_INLINE Vec gelu_of(Vec x, const Gaussian& g) {
  const Vec tail = hn::Mul(g.e, g.ratio);
  return hn::NegMulAdd(g.t, tail, hn::Max(zero(), x));
}

HWY_INLINE Vec gelu_slope_of(Vec x, const Gaussian& g) {
  constexpr float density = 0.398942280f;  // 1 / sqrt(2 pi)
  const Vec d = hn::Mul(g.e, hn::NegMulAdd(g.t, set(density), g.ratio));
  return hn::IfThenElse(hn::Lt(x, zero()), d, hn::Sub(set(1), d));
}

// What gelu_of and gelu_slope_of share; Gaussian without a table.
#if HWY_TARGET == HWY_AVX3

// t = min(|x|, GeluTable::kEnd) = (piece + d) / kInverse: half the instructions of Gaussian.
struct GeluPiece {
  Vec t, d;
  __m512i piece;
};

HWY_INLINE GeluPiece gelu_parts(Vec x) {
  using Table = cpu::GeluTable;
  const Vec t = hn::Min(set(Table::kEnd), hn::Abs(x));  // NaN stays NaN
  const Vec shift = set(0x1.8p23f), inverse = set(Table::kInverse);
  const Vec whole = hn::MulAdd(t, inverse, shift);  // its last bits: the nearest piece
  return {t, hn::MulSub(t, inverse, hn::Sub(whole, shift)), _mm512_castps_si512(whole.raw)};
}

template <int kTerms>
HWY_INLINE Vec in_pieces(const float (&table)[kTerms][cpu::GeluTable::kPieces],
                         const GeluPiece& g) {
  const auto look_up = [&](const float* c) {
    return Vec{_mm512_permutex2var_ps(_mm512_load_ps(c), g.piece, _mm512_load_ps(c + 16))};
  };
  Vec y = look_up(table[kTerms - 1]);
#pragma GCC unroll 8
  for (int i = kTerms - 1; i-- > 0;) y = hn::MulAdd(y, g.d, look_up(table[i]));
  return y;
}

HWY_INLINE Vec gelu_of(Vec x, const GeluPiece& g) {
  const Vec y = hn::NegMulAdd(g.t, in_pieces(cpu::gelu_table.tail, g), hn::Max(zero(), x));
  const auto far = hn::Lt(x, set(-cpu::GeluTable::kEnd));
  if (hn::AllFalse(Lanes(), far)) [[likely]]
    return y;
  return hn::IfThenElse(far, gelu_of(x, gaussian(x)), y);
}

HWY_INLINE Vec gelu_slope_of(Vec x, const GeluPiece& g) {
  const Vec sign = hn::And(x, hn::SignBit(Lanes()));
  return hn::Add(set(0.5f), hn::Xor(in_pieces(cpu::gelu_table.slope, g), sign));
}

#else
HWY_INLINE Gaussian gelu_parts(Vec x) { return gaussian(x); }
#endif

// x Phi(x), the erf form (Hendrycks & Gimpel 2016, arXiv:1606.08415); error below
// 1.5e-7 max(1, |x|), and below 1e-6 |gelu(x)| for x in [-12, 0]; in pieces 2.5 ulp from -4.5 on.
// One core of an Intel Emerald Rapids, from the L1 cache: 3.7 G/s in pieces, 1.8 without; the slope
// 4.7 and 1.7.
HWY_INLINE Vec gelu(Vec x) { return gelu_of(x, gelu_parts(x)); }

// Phi(x) + x exp(-x^2 / 2) / sqrt(2 pi); error below 3e-7.
HWY_INLINE Vec gelu_slope(Vec x) { return gelu_slope_of(x, gelu_parts(x)); }

// 1 / (1 + e^-x); 3e-7 relative.
HWY_INLINE Vec sigmoid(Vec x) { return hn::Div(set(1), hn::Add(set(1), exp(hn::Neg(x)))); }

// 3e-7 relative: an odd polynomial up to 0.6, 1 - 2 / (e^2|x| + 1) beyond.
HWY_INLINE Vec tanh(Vec x) {
  constexpr float c[] = {-3.333329856e-1f, 1.333192438e-1f, -5.378383026e-2f, 2.079597302e-2f,
                         -5.895158742e-3f};
  const Vec square = hn::Mul(x, x), t = hn::Abs(x);
  const Vec small = hn::MulAdd(hn::Mul(x, square), polynomial(square, c), x);
  const Vec big = hn::Sub(set(1), hn::Div(set(2), hn::Add(exp(hn::Add(t, t)), set(1))));
  return hn::IfThenElse(hn::Lt(t, set(0.6f)), small, hn::CopySign(big, x));
}

// Natural logarithm of a positive normal number; 2e-7 relative.
// x = 2^k m, m in [sqrt(1/2), sqrt 2); log m = f - f^2 / 2 + f^3 P(f), f = m - 1.
HWY_INLINE Vec log(Vec x) {
  constexpr float c[] = {3.333333135e-1f, -2.500081956e-1f, 2.000122666e-1f, -1.662335694e-1f,
                         1.420175731e-1f, -1.316018254e-1f, 1.276157796e-1f, -7.634497434e-2f};
  const hn::RebindToSigned<Lanes> di;
  constexpr int32_t root_half = 0x3F3504F3;  // bits of sqrt(1/2)
  const auto bits = hn::BitCast(di, x);
  const auto k = hn::ShiftRight<23>(hn::Sub(bits, hn::Set(di, root_half)));
  const Vec m = hn::BitCast(Lanes(), hn::Sub(bits, hn::ShiftLeft<23>(k)));
  const Vec f = hn::Sub(m, set(1)), square = hn::Mul(f, f), power = hn::ConvertTo(Lanes(), k);
  const Vec tail = hn::MulAdd(hn::Mul(square, f), polynomial(f, c), hn::Mul(power, set(kLn2Low)));
  const Vec low = hn::NegMulAdd(square, set(0.5f), tail);
  return hn::MulAdd(power, set(kLn2High), hn::Add(f, low));
}

}  // namespace sft::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
