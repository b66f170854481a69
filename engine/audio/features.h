// Log-mel and MFCC features as Kaldi computes them, on samples in [-1, 1) at 16 kHz, no dither
// (models.md 4.1 and 6.1; Povey et al. 2011):
//
//   samples -> frames of 400 every 160 -> minus mean -> pre-emphasis 0.97 -> window -> |FFT 512|^2
//           -> triangular mel filters, 20 to 8000 Hz -> log(max(energy, 2^-23)) [-> DCT, lifter]
//
// S samples give F = 1 + floor((S - 400) / 160) frames at 100 Hz. Everything is computed in double
// and rounded once (a float FFT misses weak bins beside strong ones by 1e-2 in the log). The
// objects hold the tables; they are immutable, so one may serve many threads. Frames are shared
// out by OpenMP, each is computed alone: the same bits for any number of threads.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include <kissfft/kissfft.hh>

namespace sft {

// F: whole 25 ms frames in `samples` samples, 0 below 400.
int64_t frames_at_100hz(int64_t samples);

// Log-mel energies, the first half of both features below.
class MelSpectrum {
 public:
  enum class Window { hamming, povey };  // povey: Hann ^ 0.85
  MelSpectrum(Window window, int bins);
  int bins() const { return static_cast<int>(filters_.size()); }
  // frame: 400 samples; energies: bins() values, log.
  void operator()(const float* frame, double* energies) const;

 private:
  struct Filter {  // weights of the spectrum's bins first, first + 1, ...
    int first;
    std::vector<double> weights;
  };
  std::vector<double> window_;
  std::vector<Filter> filters_;
  kissfft<double> fft_;
};

// DeCoAR 2.0's input: 80 log-mel with a Hamming window, mean and (unbiased) variance normalised
// over the utterance per bin, every second frame kept: [S] -> [ceil(F / 2), 80] at 50 Hz.
// Fewer than 2 frames (560 samples) is an error (input).
class LogMel80 {
 public:
  static constexpr int64_t kBins = 80;
  LogMel80();
  std::vector<float> operator()(std::span<const float> samples) const;

 private:
  MelSpectrum mel_;
};

// HuBERT's first k-means targets: 13 cepstra (C0 kept) of 23 log-mel with a Povey window, their
// deltas and the deltas of those: [S] -> [F, 39] at 100 Hz. Fewer than 400 samples is an error.
class Mfcc39 {
 public:
  Mfcc39();
  std::vector<float> operator()(std::span<const float> samples) const;

 private:
  MelSpectrum mel_;
  std::vector<double> dct_;  // [13, 23], orthonormal DCT-II times the lifter
};

}  // namespace sft
