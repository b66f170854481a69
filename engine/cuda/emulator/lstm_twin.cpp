#include "engine/cuda/emulator/lstm_twin.h"

#include <bit>
#include <cmath>
#include <cstring>
#include <vector>

#include "engine/cuda/emulator/lstm_faults.h"
#include "engine/formats/numbers.h"

namespace sft::cuda::emulator {
namespace {

LstmFault fault = LstmFault::none;

float sigmoid(float x) { return 1 / (1 + std::exp(-x)); }

std::vector<float> read(const void* from, Dtype type, int64_t count) {
  std::vector<float> wide(count);
  to_f32(type, static_cast<const std::byte*>(from), wide.data(), count);
  return wide;
}
void write(const std::vector<float>& values, Dtype type, void* to) {
  from_f32(values.data(), type, static_cast<std::byte*>(to), std::ssize(values));
}

float dot(const float* a, const float* b, int64_t n) {
  float sum = 0;
  for (int64_t k = 0; k < n; ++k) sum += a[k] * b[k];
  return sum;
}
void add(float scale, const float* x, int64_t n, float* to) {
  for (int64_t k = 0; k < n; ++k) to[k] += scale * x[k];
}

// A call, widened. Row of utterance b's frame t: t * batch + b.
class Call {
 public:
  explicit Call(const LstmPass& pass)
      : pass_(pass),
        plan_(*pass.plan),
        type_(plan_.shape.type),
        B_(plan_.batch()),
        K_(plan_.shape.inputs),
        H_(plan_.shape.units),
        D_(plan_.shape.directions),
        rows_(plan_.longest() * B_),
        w_(read(pass.weights, type_, plan_.weight_bytes / bytes_of(type_, 1))),
        x_(read(pass.x, type_, rows_ * K_)),
        saved_(static_cast<float*>(pass.saved)) {
    std::memset(pass.work, 0xFF, plan_.work_bytes);
    if (fault == LstmFault::tf32)
      for (float& v : x_)
        v = std::bit_cast<float>((std::bit_cast<uint32_t>(v) + 0x1000) & ~0x1FFFu);
  }

  void forward() {
    y_.assign(rows_ * D_ * H_, NAN);
    for_utterances([&](int64_t d, int64_t b) {
      std::vector<float> h(H_), c(H_), next(H_);
      for (int64_t step = 0; step < plan_.length(b); ++step) {
        const int64_t row = row_of(d, b, step);
        for (int64_t j = 0; j < H_; ++j) {
          float* kept = saved(d, row) + j * 5;
          for (int gate = 0; gate < 4; ++gate) {
            const float sum = bias(d, gate)[j] + bias(d, gate + 4)[j] +
                              dot(matrix(d, gate) + j * K_, &x_[row * K_], K_) +
                              dot(matrix(d, gate + 4) + j * H_, h.data(), H_);
            kept[gate] = gate == 2 ? std::tanh(sum) : sigmoid(sum);
          }
          c[j] = kept[4] = kept[1] * c[j] + kept[0] * kept[2];
          next[j] = kept[3] * std::tanh(c[j]);
        }
        write(next, type_, next_bytes(next.size()));
        h = read(next_bytes(next.size()), type_, H_);
        std::copy(h.begin(), h.end(), &y_[row * D_ * H_ + d * H_]);
      }
    });
    write(y_, type_, pass_.y);
  }

  void backward() {
    y_ = read(pass_.y, type_, rows_ * D_ * H_);
    const std::vector<float> dy = read(pass_.dy, type_, rows_ * D_ * H_);
    std::vector<float> dx(rows_ * K_, NAN);
    if (pass_.dweights) dw_ = read(pass_.dweights, type_, std::ssize(w_));
    for (int64_t b = 0; b < B_; ++b)
      for (int64_t t = 0; t < plan_.length(b); ++t) std::fill_n(&dx[(t * B_ + b) * K_], K_, 0.0f);
    for_utterances([&](int64_t d, int64_t b) {
      std::vector<float> dh(H_), dc(H_);
      for (int64_t step = plan_.length(b) - 1; step >= 0; --step) {
        const int64_t row = row_of(d, b, step), before = step ? row_of(d, b, step - 1) : -1;
        add(1, &dy[row * D_ * H_ + d * H_], H_, dh.data());
        const std::vector<float> dgates = cell_backward(d, row, before, dh, dc);
        std::fill(dh.begin(), dh.end(), 0.0f);
        for (int gate = 0; gate < 4; ++gate)
          for (int64_t j = 0; j < H_; ++j) {
            const float slope = dgates[gate * H_ + j];
            add(slope, matrix(d, gate) + j * K_, K_, &dx[row * K_]);
            add(slope, matrix(d, gate + 4) + j * H_, H_, dh.data());
            add_to_weights(d, gate, j, slope, row, before);
          }
      }
    });
    write(dx, type_, pass_.dx);
    if (pass_.dweights) write(dw_, type_, pass_.dweights);
  }

 private:
  template <class F>
  void for_utterances(F&& f) {
    for (int64_t d = 0; d < D_; ++d)
      for (int64_t b = 0; b < B_; ++b) f(d, b);
  }
  int64_t row_of(int64_t d, int64_t b, int64_t step) const {
    return (d ? plan_.length(b) - 1 - step : step) * B_ + b;
  }
  const float* matrix(int64_t d, int part) const { return &w_[plan_.places[d][part].matrix]; }
  const float* bias(int64_t d, int part) const { return &w_[plan_.places[d][part].bias]; }
  float* saved(int64_t d, int64_t row) const { return saved_ + (d * rows_ + row) * 5 * H_; }
  void* next_bytes(size_t count) {
    rounded_.resize(bytes_of(type_, static_cast<int64_t>(count)));
    return rounded_.data();
  }

  std::vector<float> cell_backward(int64_t d, int64_t row, int64_t before,
                                   const std::vector<float>& dh, std::vector<float>& dc) const {
    std::vector<float> to(4 * H_);
    for (int64_t j = 0; j < H_; ++j) {
      const float* kept = saved(d, row) + j * 5;
      const float i = kept[0], f = kept[1], g = kept[2], o = kept[3], squashed = std::tanh(kept[4]);
      const float old = before >= 0 ? saved(d, before)[j * 5 + 4] : 0;
      dc[j] += dh[j] * o * (1 - squashed * squashed);
      to[j] = dc[j] * g * i * (1 - i);
      to[H_ + j] = dc[j] * old * f * (1 - f);
      to[2 * H_ + j] = dc[j] * i * (1 - g * g);
      to[3 * H_ + j] = dh[j] * squashed * o * (1 - o);
      dc[j] *= f;
    }
    return to;
  }
  void add_to_weights(int64_t d, int gate, int64_t j, float slope, int64_t row, int64_t before) {
    if (!pass_.dweights) return;
    const LstmPlan::Place &input = plan_.places[d][gate], &state = plan_.places[d][gate + 4];
    dw_[input.bias + j] += slope, dw_[state.bias + j] += slope;
    add(slope, &x_[row * K_], K_, &dw_[input.matrix + j * K_]);
    if (before >= 0) add(slope, &y_[before * D_ * H_ + d * H_], H_, &dw_[state.matrix + j * H_]);
  }

  const LstmPass& pass_;
  const LstmPlan& plan_;
  Dtype type_;
  int64_t B_, K_, H_, D_, rows_;
  std::vector<float> w_, x_, y_, dw_;
  std::vector<std::byte> rounded_;
  float* saved_;
};

void spoil(const LstmPass& pass) {
  if (pass.dy) return;
  static int calls = 0;
  const LstmShape& shape = pass.plan->shape;
  std::vector<float> first = read(pass.y, shape.type, 1);
  if (fault == LstmFault::wrong) first[0] += 0.25f;
  if (fault == LstmFault::unsteady) first[0] = std::nextafter(first[0], calls++ % 2 ? 2.0f : -2.0f);
  write(first, shape.type, pass.y);
}

}  // namespace

void lstm_library_has(LstmFault kind) { fault = kind; }

std::string lstm_twin_name() {
  if (fault == LstmFault::absent) fail(Kind::resource, "no such library here");
  return "the emulator's twin";
}

std::shared_ptr<const LstmPlan> lstm_twin_plan(const LstmShape& shape,
                                               std::span<const int32_t> starts) {
  auto plan = std::make_shared<LstmPlan>(shape, std::vector<int32_t>(starts.begin(), starts.end()));
  int64_t end = 3;
  const auto take = [&](int64_t count) { return std::exchange(end, end + count + 5); };
  for (int part = 7; part >= 0; --part)
    for (int64_t d = 0; d < shape.directions; ++d) {
      plan->places[d][part].bias = take(shape.units);
      plan->places[d][part].matrix = take(shape.units * (part < 4 ? shape.inputs : shape.units));
    }
  plan->weight_bytes = bytes_of(shape.type, end);
  plan->work_bytes = 100;
  plan->saved_bytes =
      bytes_of(Dtype::f32, shape.directions * plan->longest() * plan->batch() * 5 * shape.units);
  return plan;
}

void run_lstm_twin(const LstmPass& pass) {
  if (fault == LstmFault::failing) fail(Kind::resource, "it does not work today");
  Call call(pass);
  if (pass.dy)
    call.backward();
  else
    call.forward();
  if (fault == LstmFault::wrong || fault == LstmFault::unsteady) spoil(pass);
}

}  // namespace sft::cuda::emulator
