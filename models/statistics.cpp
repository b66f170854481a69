#include "models/statistics.h"

#include <algorithm>
#include <cmath>
#include <span>

#include "engine/check.h"
#include "engine/formats/numbers.h"

namespace sft {
namespace {

constexpr int64_t kLeastJudged = 16384, kLeastRows = 8;
// Fresh matrices of a HuBERT 128 wide are at most at 3.3; after 1000 updates of pre-training those
// of its layers are between 15 and 258, and the feature projection is at 7.6.
constexpr double kRandom = 5;
constexpr double kFarFromRandom = 20;

// Values as f32: a view, or converted.
class Values {
 public:
  explicit Values(const Tensor& tensor) {
    const auto count = static_cast<size_t>(tensor.count());
    if (tensor.dtype == Dtype::f32) {
      all_ = {static_cast<const float*>(tensor.data), count};
      return;
    }
    converted_.resize(count);
    to_f32(tensor.dtype, static_cast<const std::byte*>(tensor.data), converted_.data(),
           tensor.count());
    all_ = converted_;
  }
  std::span<const float> all() const { return all_; }

 private:
  std::vector<float> converted_;
  std::span<const float> all_;
};

// In standard deviations: how far the variance of `values` is from what independent ones have.
double spread(const std::vector<double>& values, double expected) {
  const auto n = static_cast<double>(values.size());
  double mean = 0, squares = 0;
  for (double x : values) mean += x / n;
  for (double x : values) squares += (x - mean) * (x - mean);
  return std::abs(squares / n / expected - 1) / std::sqrt(2 / n);
}

// values [rows, columns], all finite and not all the same.
double structure_of(std::span<const float> values, int64_t rows, double mean, double variance) {
  const int64_t columns = std::ssize(values) / rows;
  std::vector<double> row_norm(rows), row_sum(rows), column_norm(columns), column_sum(columns);
  double fourth = 0;
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < columns; ++c) {
      const double x = values[r * columns + c] - mean, square = x * x;
      row_norm[r] += square, row_sum[r] += x;
      column_norm[c] += square, column_sum[c] += x;
      fourth += square * square;
    }
  const auto n = static_cast<double>(values.size());
  const double kurtosis = fourth / n / (variance * variance);
  const double of_square = variance * variance * (kurtosis - 1);
  return std::max({spread(row_norm, static_cast<double>(columns) * of_square),
                   spread(column_norm, static_cast<double>(rows) * of_square),
                   spread(row_sum, static_cast<double>(columns) * variance),
                   spread(column_sum, static_cast<double>(rows) * variance),
                   (kurtosis - 3) / std::sqrt(24 / n)});
}

// First the moments that need no mean.
TensorStatistics ranges(std::span<const float> values) {
  TensorStatistics s{.count = std::ssize(values)};
  double sum = 0;
  bool first = true;
  for (float x : values) {
    s.zeros += x == 0;
    if (!std::isfinite(x)) {
      ++s.not_finite;
      continue;
    }
    s.min = first ? x : std::min(s.min, x), s.max = first ? x : std::max(s.max, x);
    first = false;
    sum += x;
  }
  s.mean = sum / static_cast<double>(std::max<int64_t>(1, s.count - s.not_finite));
  return s;
}

}  // namespace

TensorStatistics statistics(const Tensor& tensor) {
  const Values values(tensor);
  TensorStatistics s = ranges(values.all());
  double squares = 0;
  for (float x : values.all())
    if (std::isfinite(x)) squares += (x - s.mean) * (x - s.mean);
  const double variance =
      squares / static_cast<double>(std::max<int64_t>(1, s.count - s.not_finite));
  s.deviation = std::sqrt(variance);
  const int64_t rows = tensor.shape.rank() > 1 ? tensor.shape[0] : 1;
  if (s.count >= kLeastJudged && rows >= kLeastRows && s.count / rows >= kLeastRows &&
      s.not_finite == 0 && s.min < s.max)
    s.structure = structure_of(values.all(), rows, s.mean, variance);
  return s;
}

std::vector<NamedStatistics> statistics(const ModelFile& model) {
  std::vector<NamedStatistics> all;
  std::vector<const Tensor*> tensors;
  for (const auto& [name, tensor] : model.tensors.tensors) {
    all.push_back({name, tensor.shape, tensor.dtype, {}});
    tensors.push_back(&tensor);
  }
#pragma omp parallel for schedule(dynamic, 1)
  for (size_t i = 0; i < all.size(); ++i) all[i].values = statistics(*tensors[i]);
  return all;
}

namespace {

class Judge {
 public:
  explicit Judge(const std::vector<NamedStatistics>& tensors) : tensors_(tensors) {
    int64_t far = 0, judged = 0;
    for (const NamedStatistics& t : tensors)
      if (is_convolution(t.name) && t.values.structure >= 0)
        ++judged, far += t.values.structure > kFarFromRandom;
    convolutions_trained_ = 2 * far > judged;
  }

  // Empty: nothing is suspicious.
  std::string why(const NamedStatistics& t) const {
    const TensorStatistics& s = t.values;
    if (s.not_finite) return fmt::format("{} values are not finite", s.not_finite);
    if (t.name == "mask_emb" || is_bias(t.name) || s.count < 2) return "";
    if (s.min == s.max) {
      const bool norm_at_start = is_norm(t.name) && s.min != 0 && !constant(bias_of(t.name));
      return norm_at_start ? "" : fmt::format("every value is {}", s.min);
    }
    if (s.structure >= 0 && 2 * s.zeros > s.count)
      return fmt::format("{} of {} values are 0", s.zeros, s.count);
    if (s.structure < 0 || s.structure >= kRandom || t.name.starts_with("pretrain.")) return "";
    if (is_convolution(t.name) && !convolutions_trained_) return "";
    return fmt::format("random numbers, as far as rows and columns tell ({:.1f} sigma)",
                       s.structure);
  }

 private:
  static bool is_bias(std::string_view name) {
    return name.ends_with(".bias") || name.ends_with(".b_ih") || name.ends_with(".b_hh");
  }
  static bool is_norm(std::string_view name) {
    return name.find("norm.") != std::string_view::npos;
  }
  // They learn slowest: pre-training scales their gradients down.
  static bool is_convolution(std::string_view name) {
    return name.starts_with("conv.") && !is_norm(name) && !is_bias(name);
  }
  static std::string bias_of(const std::string& weight) {
    return weight.substr(0, weight.rfind('.')) + ".bias";
  }
  bool constant(const std::string& name) const {
    for (const NamedStatistics& t : tensors_)
      if (t.name == name) return t.values.min == t.values.max;
    return true;
  }

  const std::vector<NamedStatistics>& tensors_;
  bool convolutions_trained_ = false;
};

}  // namespace

std::vector<Suspicion> suspicions(const std::vector<NamedStatistics>& tensors) {
  const Judge judge(tensors);
  std::vector<Suspicion> found;
  for (const NamedStatistics& t : tensors)
    if (const std::string why = judge.why(t); !why.empty()) found.push_back({t.name, why});
  return found;
}

}  // namespace sft
