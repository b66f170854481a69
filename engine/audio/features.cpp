#include "engine/audio/features.h"

#include <algorithm>
#include <cmath>
#include <complex>
#include <numbers>

#include "engine/check.h"

namespace sft {
namespace {

constexpr int kLength = 400, kShift = 160, kFft = 512, kRate = 16000;
constexpr int kMel = 80, kMfccMel = 23, kCepstra = 13;
constexpr double kPreEmphasis = 0.97, kLowest = 20, kLifter = 22;
constexpr double kFloor = 0x1p-23;  // float32 epsilon; reached near silence
constexpr int64_t kParallel = 64;   // frames worth another thread

double mel_of(double hz) { return 1127 * std::log(1 + hz / 700); }

std::vector<double> make_window(MelSpectrum::Window kind) {
  std::vector<double> window(kLength);
  for (int i = 0; i < kLength; i++) {
    const double cosine = std::cos(2 * std::numbers::pi * i / (kLength - 1));
    window[i] = kind == MelSpectrum::Window::hamming ? 0.54 - 0.46 * cosine
                                                     : std::pow(0.5 - 0.5 * cosine, 0.85);
  }
  return window;
}

void check_samples(std::span<const float> samples, int64_t least) {
  if (static_cast<int64_t>(samples.size()) < least)
    fail(Kind::input, "features: {} samples at 16 kHz (expected at least {})", samples.size(),
         least);
}

// [F, bins] log energies of all frames.
std::vector<double> spectrogram(const MelSpectrum& mel, std::span<const float> samples) {
  const int64_t frames = frames_at_100hz(static_cast<int64_t>(samples.size()));
  std::vector<double> energies(static_cast<size_t>(frames * mel.bins()));
#pragma omp parallel for schedule(static) if (frames > kParallel)
  for (int64_t t = 0; t < frames; t++)
    mel(samples.data() + t * kShift, energies.data() + t * mel.bins());
  return energies;
}

// Columns to mean 0 and unbiased deviation 1, in place; x [frames, width].
void normalise(std::vector<double>& x, int64_t frames, int width) {
  for (int c = 0; c < width; c++) {
    double mean = 0, square = 0;
    for (int64_t t = 0; t < frames; t++) mean += x[t * width + c];
    mean /= static_cast<double>(frames);
    for (int64_t t = 0; t < frames; t++) {
      x[t * width + c] -= mean;
      square += x[t * width + c] * x[t * width + c];
    }
    const double scale = 1 / (1e-10 + std::sqrt(square / static_cast<double>(frames - 1)));
    for (int64_t t = 0; t < frames; t++) x[t * width + c] *= scale;
  }
}

// to = sum over k = 1, 2 of k (x[t + k] - x[t - k]) / 10, edges repeated, for 13 of 39 columns.
void delta(std::vector<double>& x, int64_t frames, int from, int to) {
  constexpr int width = 3 * kCepstra;
  auto row = [&](int64_t t) {
    return x.data() + std::clamp<int64_t>(t, 0, frames - 1) * width + from;
  };
  for (int64_t t = 0; t < frames; t++)
    for (int c = 0; c < kCepstra; c++)
      x[t * width + to + c] =
          (row(t + 1)[c] - row(t - 1)[c] + 2 * (row(t + 2)[c] - row(t - 2)[c])) / 10;
}

}  // namespace

int64_t frames_at_100hz(int64_t samples) {
  return samples < kLength ? 0 : 1 + (samples - kLength) / kShift;
}

MelSpectrum::MelSpectrum(Window window, int bins)
    : window_(make_window(window)), fft_(kFft / 2, false) {
  const double low = mel_of(kLowest), step = (mel_of(kRate / 2) - low) / (bins + 1);
  for (int b = 0; b < bins; b++) {
    Filter filter{0, {}};
    for (int k = 0; k < kFft / 2; k++) {  // the Nyquist bin has no weight
      const double x = (mel_of(1.0 * k * kRate / kFft) - low) / step - b;  // in (0, 2) inside
      const double weight = std::min(x, 2 - x);
      if (weight <= 0) continue;
      if (filter.weights.empty()) filter.first = k;
      filter.weights.push_back(weight);
    }
    filters_.push_back(std::move(filter));
  }
}

void MelSpectrum::operator()(const float* frame, double* energies) const {
  double x[kFft] = {}, mean = 0;
  for (int i = 0; i < kLength; i++) mean += frame[i];
  mean /= kLength;
  double previous = frame[0] - mean;  // the first sample is its own predecessor
  for (int i = 0; i < kLength; i++) {
    const double centred = frame[i] - mean;
    x[i] = (centred - kPreEmphasis * previous) * window_[i];
    previous = centred;
  }
  std::complex<double> spectrum[kFft / 2];
  fft_.transform_real(x, spectrum);
  spectrum[0] = spectrum[0].real();  // kissfft keeps the Nyquist bin in its imaginary part
  double power[kFft / 2];
  for (int k = 0; k < kFft / 2; k++) power[k] = std::norm(spectrum[k]);
  for (size_t b = 0; b < filters_.size(); b++) {
    const Filter& filter = filters_[b];
    double energy = 0;
    for (size_t i = 0; i < filter.weights.size(); i++)
      energy += filter.weights[i] * power[filter.first + static_cast<int>(i)];
    energies[b] = std::log(std::max(energy, kFloor));
  }
}

LogMel80::LogMel80() : mel_(MelSpectrum::Window::hamming, kMel) {}

std::vector<float> LogMel80::operator()(std::span<const float> samples) const {
  check_samples(samples, kLength + kShift);
  const int64_t frames = frames_at_100hz(static_cast<int64_t>(samples.size()));
  std::vector<double> energies = spectrogram(mel_, samples);
  normalise(energies, frames, kMel);
  std::vector<float> out;
  out.reserve(static_cast<size_t>((frames + 1) / 2 * kMel));
  for (int64_t t = 0; t < frames; t += 2)
    out.insert(out.end(), energies.begin() + t * kMel, energies.begin() + (t + 1) * kMel);
  return out;
}

Mfcc39::Mfcc39() : mel_(MelSpectrum::Window::povey, kMfccMel) {
  for (int i = 0; i < kCepstra; i++) {
    const double lifter = 1 + kLifter / 2 * std::sin(std::numbers::pi * i / kLifter);
    const double norm = std::sqrt((i == 0 ? 1.0 : 2.0) / kMfccMel);
    for (int n = 0; n < kMfccMel; n++)
      dct_.push_back(norm * std::cos(std::numbers::pi / kMfccMel * (n + 0.5) * i) * lifter);
  }
}

std::vector<float> Mfcc39::operator()(std::span<const float> samples) const {
  check_samples(samples, kLength);
  const int64_t frames = frames_at_100hz(static_cast<int64_t>(samples.size()));
  const std::vector<double> energies = spectrogram(mel_, samples);
  std::vector<double> x(static_cast<size_t>(frames * 3 * kCepstra));
  for (int64_t t = 0; t < frames; t++)
    for (int i = 0; i < kCepstra; i++) {
      double sum = 0;
      for (int n = 0; n < kMfccMel; n++) sum += energies[t * kMfccMel + n] * dct_[i * kMfccMel + n];
      x[t * 3 * kCepstra + i] = sum;
    }
  delta(x, frames, 0, kCepstra);
  delta(x, frames, kCepstra, 2 * kCepstra);
  return {x.begin(), x.end()};
}

}  // namespace sft
