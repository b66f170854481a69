#include "engine/cpu/gelu_table.h"

#include <cmath>
#include <numbers>

namespace sft::cpu {
namespace {

// Coefficients of the polynomial that is f at the Chebyshev nodes of [low, high].
template <int kTerms, class F>
void interpolate(F&& f, double low, double high, double (&c)[kTerms]) {
  double node[kTerms], difference[kTerms];
  for (int i = 0; i < kTerms; ++i) {
    const double angle = std::numbers::pi * (2 * i + 1) / (2 * kTerms);
    node[i] = (low + high) / 2 + (high - low) / 2 * std::cos(angle);
    difference[i] = f(node[i]);
  }
  for (int k = 1; k < kTerms; ++k)
    for (int i = kTerms - 1; i >= k; --i)
      difference[i] = (difference[i] - difference[i - 1]) / (node[i] - node[i - k]);
  for (double& value : c) value = 0;
  for (int i = kTerms - 1; i >= 0; --i) {  // c = c * (d - node) + difference
    for (int j = kTerms - 1; j > 0; --j) c[j] = c[j - 1] - node[i] * c[j];
    c[0] = difference[i] - node[i] * c[0];
  }
}

template <int kTerms, class F>
void fill(F&& f, float (&table)[kTerms][GeluTable::kPieces]) {
  for (int piece = 0; piece < GeluTable::kPieces; ++piece) {
    double c[kTerms];
    interpolate([&](double d) { return f((piece + d) / GeluTable::kInverse); },
                piece == 0 ? 0 : -0.5, 0.5, c);
    for (int i = 0; i < kTerms; ++i) table[i][piece] = static_cast<float>(c[i]);
  }
}

double tail(double t) { return std::erfc(t / std::numbers::sqrt2) / 2; }
double density(double t) { return std::exp(-t * t / 2) / std::sqrt(2 * std::numbers::pi); }

GeluTable make() {
  GeluTable table;
  fill(tail, table.tail);
  fill([](double t) { return 0.5 - tail(t) + t * density(t); }, table.slope);
  return table;
}

}  // namespace

const GeluTable gelu_table = make();

}  // namespace sft::cpu
