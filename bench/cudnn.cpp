// cuDNN's own calls, not its graphs: what they compute is fixed, so that little can be wrong here.
#include <cuda_runtime.h>
#include <cudnn.h>

#include <algorithm>
#include <cmath>

#include "bench/yardstick.h"
#include "engine/cuda/shared_library.h"
#include "engine/formats/numbers.h"

#define CUDA_CHECK(call)                                                      \
  do {                                                                        \
    if (const cudaError_t error = (call); error != cudaSuccess)               \
      fail(Kind::resource, "cuda: {}: {}", #call, cudaGetErrorString(error)); \
  } while (false)
#define CUDNN_CHECK(call)                                                         \
  do {                                                                            \
    if (const cudnnStatus_t status = (call); status != CUDNN_STATUS_SUCCESS)      \
      fail(Kind::resource, "cuDNN: {}: {}", #call, cudnn().error_string(status)); \
  } while (false)

namespace sft {
namespace {

struct Cudnn {
  // X(member, function)
#define SFT_CUDNN(X)                                        \
  X(create, cudnnCreate)                                    \
  X(destroy, cudnnDestroy)                                  \
  X(error_string, cudnnGetErrorString)                      \
  X(version, cudnnGetVersion)                               \
  X(set_stream, cudnnSetStream)                             \
  X(create_tensor, cudnnCreateTensorDescriptor)             \
  X(destroy_tensor, cudnnDestroyTensorDescriptor)           \
  X(set_tensor, cudnnSetTensor4dDescriptor)                 \
  X(set_tensor_nd, cudnnSetTensorNdDescriptor)              \
  X(create_filter, cudnnCreateFilterDescriptor)             \
  X(destroy_filter, cudnnDestroyFilterDescriptor)           \
  X(set_filter, cudnnSetFilter4dDescriptor)                 \
  X(create_convolution, cudnnCreateConvolutionDescriptor)   \
  X(destroy_convolution, cudnnDestroyConvolutionDescriptor) \
  X(set_convolution, cudnnSetConvolution2dDescriptor)       \
  X(set_math, cudnnSetConvolutionMathType)                  \
  X(find_algorithm, cudnnFindConvolutionForwardAlgorithm)   \
  X(convolve, cudnnConvolutionForward)                      \
  X(create_dropout, cudnnCreateDropoutDescriptor)           \
  X(destroy_dropout, cudnnDestroyDropoutDescriptor)         \
  X(set_dropout, cudnnSetDropoutDescriptor)                 \
  X(create_rnn, cudnnCreateRNNDescriptor)                   \
  X(destroy_rnn, cudnnDestroyRNNDescriptor)                 \
  X(set_rnn, cudnnSetRNNDescriptor_v8)                      \
  X(create_rnn_data, cudnnCreateRNNDataDescriptor)          \
  X(destroy_rnn_data, cudnnDestroyRNNDataDescriptor)        \
  X(set_rnn_data, cudnnSetRNNDataDescriptor)                \
  X(weight_bytes, cudnnGetRNNWeightSpaceSize)               \
  X(weight_place, cudnnGetRNNWeightParams)                  \
  X(memory_bytes, cudnnGetRNNTempSpaceSizes)                \
  X(rnn_forward, cudnnRNNForward)
#define SFT_DECLARE(member, function) decltype(&function) member;
  SFT_CUDNN(SFT_DECLARE)
#undef SFT_DECLARE

  Cudnn() {
    const cuda::SharedLibrary so("libcudnn.so.9");
#define SFT_BIND(member, function) so.bind(member, #function);
    SFT_CUDNN(SFT_BIND)
#undef SFT_BIND
  }
#undef SFT_CUDNN
};

const Cudnn& cudnn() {
  static const Cudnn library;
  return library;
}

cudnnDataType_t type_of(Dtype dtype) {
  return dtype == Dtype::bf16 ? CUDNN_DATA_BFLOAT16 : CUDNN_DATA_FLOAT;
}

// Device memory of its own: a yardstick takes nothing from the arenas of the op beside it.
class Memory {
 public:
  explicit Memory(int64_t bytes) : bytes_(bytes) {
    CUDA_CHECK(cudaMalloc(&data_, static_cast<size_t>(std::max<int64_t>(bytes, 1))));
    CUDA_CHECK(cudaMemset(data_, 0, static_cast<size_t>(bytes)));
  }
  Memory(const std::vector<double>& values, Dtype dtype)
      : Memory(bytes_of(dtype, std::ssize(values))) {
    write(0, values, dtype);
  }
  ~Memory() { cudaFree(data_); }
  Memory(const Memory&) = delete;

  void write(int64_t at, const std::vector<double>& values, Dtype dtype) {
    const std::vector<float> wide(values.begin(), values.end());
    std::vector<std::byte> bytes(bytes_of(dtype, std::ssize(wide)));
    from_f32(wide.data(), dtype, bytes.data(), std::ssize(wide));
    CUDA_CHECK(cudaMemcpy(data() + at, bytes.data(), bytes.size(), cudaMemcpyHostToDevice));
  }
  std::vector<double> read(Dtype dtype, int64_t count) const {
    std::vector<std::byte> bytes(bytes_of(dtype, count));
    std::vector<float> wide(count);
    CUDA_CHECK(cudaMemcpy(bytes.data(), data_, bytes.size(), cudaMemcpyDeviceToHost));
    to_f32(dtype, bytes.data(), wide.data(), count);
    return {wide.begin(), wide.end()};
  }
  char* data() const { return static_cast<char*>(data_); }
  int64_t bytes() const { return bytes_; }

 private:
  int64_t bytes_;
  void* data_ = nullptr;
};

// A stream, a handle, and copies of x that together exceed what a cache holds.
class OnCudnn : public Yardstick {
 public:
  OnCudnn(const std::vector<double>& x, Dtype dtype, int64_t rotated_bytes) : dtype_(dtype) {
    CUDA_CHECK(cudaStreamCreate(&stream_));
    CUDNN_CHECK(cudnn().create(&handle_));
    CUDNN_CHECK(cudnn().set_stream(handle_, stream_));
    const int64_t bytes = bytes_of(dtype, std::ssize(x));
    for (int64_t made = 0; made == 0 || (made < rotated_bytes && copies_.size() < 256);
         made += bytes)
      copies_.push_back(std::make_unique<Memory>(x, dtype));
  }

  ~OnCudnn() override {
    cudaStreamSynchronize(stream_);
    for (auto undo = undo_.rbegin(); undo != undo_.rend(); ++undo) (*undo)();
    cudnn().destroy(handle_);
    cudaStreamDestroy(stream_);
  }

  std::string name() const override {
    const size_t version = cudnn().version();
    return fmt::format("cuDNN {}.{}.{}", version / 10000, version / 100 % 100, version % 100);
  }
  double seconds(int64_t calls) override {
    cudaEvent_t begin, end;
    float milliseconds = 0;
    CUDA_CHECK(cudaEventCreate(&begin));
    CUDA_CHECK(cudaEventCreate(&end));
    CUDA_CHECK(cudaEventRecord(begin, stream_));
    for (int64_t i = 0; i < calls; ++i)
      call(copies_[static_cast<size_t>(i) % copies_.size()]->data());
    CUDA_CHECK(cudaEventRecord(end, stream_));
    CUDA_CHECK(cudaEventSynchronize(end));
    CUDA_CHECK(cudaEventElapsedTime(&milliseconds, begin, end));
    cudaEventDestroy(begin), cudaEventDestroy(end);
    return milliseconds / 1e3 / static_cast<double>(calls);
  }

 protected:
  virtual void call(const void* x) = 0;
  template <class Create, class Destroy, class T>
  void make(Create create, Destroy destroy, T& descriptor) {
    CUDNN_CHECK(create(&descriptor));
    undo_.push_back([destroy, made = descriptor] { destroy(made); });
  }
  void call_once() {
    call(copies_[0]->data());
    CUDA_CHECK(cudaStreamSynchronize(stream_));
  }

  Dtype dtype_;
  cudaStream_t stream_ = nullptr;
  cudnnHandle_t handle_ = nullptr;
  std::vector<std::unique_ptr<Memory>> copies_;
  std::vector<std::function<void()>> undo_;  // of descriptors
};

// conv_strided without bias and norm; its GELU is no part of what is timed.
class Convolution final : public OnCudnn {
 public:
  explicit Convolution(const YardstickOf& of)
      : OnCudnn(of.inputs[0].data, of.compute, of.rotated_bytes),
        C_(of.bench.dims[1]),
        T_((of.inputs[0].shape[0] - of.bench.dims[2]) / of.bench.dims[3] + 1),
        weight_(taps_first(of.inputs[1]), of.compute),
        y_(bytes_of(of.compute, T_ * C_)) {
    const auto Cin = static_cast<int>(of.bench.dims[0]), Cout = static_cast<int>(C_);
    const auto K = static_cast<int>(of.bench.dims[2]), stride = static_cast<int>(of.bench.dims[3]);
    const cudnnDataType_t type = type_of(of.compute);
    make(cudnn().create_tensor, cudnn().destroy_tensor, x_desc_);
    make(cudnn().create_tensor, cudnn().destroy_tensor, y_desc_);
    make(cudnn().create_filter, cudnn().destroy_filter, weight_desc_);
    make(cudnn().create_convolution, cudnn().destroy_convolution, convolution_);
    CUDNN_CHECK(cudnn().set_tensor(x_desc_, CUDNN_TENSOR_NHWC, type, 1, Cin, 1,
                                   static_cast<int>(of.inputs[0].shape[0])));
    CUDNN_CHECK(
        cudnn().set_tensor(y_desc_, CUDNN_TENSOR_NHWC, type, 1, Cout, 1, static_cast<int>(T_)));
    CUDNN_CHECK(cudnn().set_filter(weight_desc_, type, CUDNN_TENSOR_NHWC, Cout, Cin, 1, K));
    CUDNN_CHECK(cudnn().set_convolution(convolution_, 0, 0, 1, stride, 1, 1,
                                        CUDNN_CROSS_CORRELATION, CUDNN_DATA_FLOAT));
    CUDNN_CHECK(cudnn().set_math(
        convolution_, of.compute == Dtype::bf16 ? CUDNN_TENSOR_OP_MATH : CUDNN_FMA_MATH));
    choose_algorithm();
  }

  Array output() override {
    call_once();
    Array y{.shape = {T_, C_}, .data = y_.read(dtype_, T_ * C_)};
    for (double& v : y.data) v *= 0.5 * std::erfc(-v / std::sqrt(2.0));
    return y;
  }

 private:
  // [Cout, Cin, K] -> [Cout, K, Cin]
  static std::vector<double> taps_first(const Array& weight) {
    const int64_t Cout = weight.shape[0], Cin = weight.shape[1], K = weight.shape[2];
    std::vector<double> to(weight.data.size());
    for (int64_t o = 0; o < Cout; ++o)
      for (int64_t i = 0; i < Cin; ++i)
        for (int64_t k = 0; k < K; ++k)
          to[(o * K + k) * Cin + i] = weight.data[(o * Cin + i) * K + k];
    return to;
  }
  // The fastest of those that it tries.
  void choose_algorithm() {
    cudnnConvolutionFwdAlgoPerf_t tried[8];
    int count = 0;
    CUDNN_CHECK(cudnn().find_algorithm(handle_, x_desc_, weight_desc_, convolution_, y_desc_, 8,
                                       &count, tried));
    if (count == 0 || tried[0].status != CUDNN_STATUS_SUCCESS)
      fail(Kind::resource, "cuDNN: no algorithm for this convolution");
    algorithm_ = tried[0].algo;
    CUDNN_CHECK(cudnn().set_math(convolution_, tried[0].mathType));
    work_ = std::make_unique<Memory>(static_cast<int64_t>(tried[0].memory));
  }
  void call(const void* x) override {
    const float one = 1, zero = 0;
    CUDNN_CHECK(cudnn().convolve(handle_, &one, x_desc_, x, weight_desc_, weight_.data(),
                                 convolution_, algorithm_, work_->data(),
                                 static_cast<size_t>(work_->bytes()), &zero, y_desc_, y_.data()));
  }

  int64_t C_, T_;
  Memory weight_, y_;
  std::unique_ptr<Memory> work_;
  cudnnTensorDescriptor_t x_desc_ = nullptr, y_desc_ = nullptr;
  cudnnFilterDescriptor_t weight_desc_ = nullptr;
  cudnnConvolutionDescriptor_t convolution_ = nullptr;
  cudnnConvolutionFwdAlgo_t algorithm_{};
};

// Utterances of one length: time-major, so that no lengths are needed.
class Lstm final : public OnCudnn {
 public:
  explicit Lstm(const YardstickOf& of)
      : OnCudnn(time_first(of.inputs[0], of.bench.B()), of.compute, of.rotated_bytes),
        T_(of.bench.frames[0]),
        B_(of.bench.B()),
        H_(of.bench.dims[1]),
        D_(of.bench.dims[2]),
        y_(bytes_of(of.compute, T_ * B_ * D_ * H_)) {
    describe(static_cast<int>(of.bench.dims[0]));
    size_t bytes = 0, work = 0, saved = 0;
    CUDNN_CHECK(cudnn().weight_bytes(handle_, rnn_, &bytes));
    CUDNN_CHECK(
        cudnn().memory_bytes(handle_, rnn_, CUDNN_FWD_MODE_TRAINING, x_desc_, &work, &saved));
    weights_ = std::make_unique<Memory>(static_cast<int64_t>(bytes));
    work_ = std::make_unique<Memory>(static_cast<int64_t>(work));
    saved_ = std::make_unique<Memory>(static_cast<int64_t>(saved));
    for (int64_t d = 0; d < D_; ++d)
      place_weights(static_cast<int>(d), of.inputs.subspan(1 + 4 * d, 4));
  }

  Array output() override {
    call_once();
    const std::vector<double> theirs = y_.read(dtype_, T_ * B_ * D_ * H_);
    Array y{.shape = {T_ * B_, D_ * H_}, .data = std::vector<double>(theirs.size())};
    for (int64_t b = 0; b < B_; ++b)
      for (int64_t t = 0; t < T_; ++t)
        std::copy_n(theirs.begin() + (t * B_ + b) * D_ * H_, D_ * H_,
                    y.data.begin() + (b * T_ + t) * D_ * H_);
    return y;
  }

 private:
  static std::vector<double> time_first(const Array& x, int64_t B) {
    const int64_t T = x.shape[0] / B, K = x.shape[1];
    std::vector<double> to(x.data.size());
    for (int64_t b = 0; b < B; ++b)
      for (int64_t t = 0; t < T; ++t)
        std::copy_n(x.data.begin() + (b * T + t) * K, K, to.begin() + (t * B + b) * K);
    return to;
  }

  void describe(int K) {
    const cudnnDataType_t type = type_of(dtype_);
    const auto T = static_cast<int>(T_), B = static_cast<int>(B_), H = static_cast<int>(H_),
               D = static_cast<int>(D_);
    make(cudnn().create_dropout, cudnn().destroy_dropout, dropout_);
    CUDNN_CHECK(cudnn().set_dropout(dropout_, handle_, 0, nullptr, 0, 0));
    make(cudnn().create_rnn, cudnn().destroy_rnn, rnn_);
    CUDNN_CHECK(cudnn().set_rnn(rnn_, CUDNN_RNN_ALGO_STANDARD, CUDNN_LSTM, CUDNN_RNN_DOUBLE_BIAS,
                                D == 2 ? CUDNN_BIDIRECTIONAL : CUDNN_UNIDIRECTIONAL,
                                CUDNN_LINEAR_INPUT, type, CUDNN_DATA_FLOAT,
                                dtype_ == Dtype::bf16 ? CUDNN_TENSOR_OP_MATH : CUDNN_FMA_MATH, K, H,
                                H, 1, dropout_, CUDNN_RNN_PADDED_IO_ENABLED));
    const std::vector<int> lengths(B_, T);
    float fill = 0;
    for (auto [desc, width] : {std::pair{&x_desc_, K}, {&y_desc_, D * H}}) {
      make(cudnn().create_rnn_data, cudnn().destroy_rnn_data, *desc);
      CUDNN_CHECK(cudnn().set_rnn_data(*desc, type, CUDNN_RNN_DATA_LAYOUT_SEQ_MAJOR_UNPACKED, T, B,
                                       width, lengths.data(), &fill));
    }
    const int dims[] = {D, B, H}, strides[] = {B * H, H, 1};
    make(cudnn().create_tensor, cudnn().destroy_tensor, state_);
    CUDNN_CHECK(cudnn().set_tensor_nd(state_, type, 3, dims, strides));
    make(cudnn().create_tensor, cudnn().destroy_tensor, matrix_);
    make(cudnn().create_tensor, cudnn().destroy_tensor, bias_);
  }

  // w_ih, w_hh, b_ih, b_hh, whose gates are in cuDNN's order (i, f, g, o): 0 to 3 of the input, 4
  // to 7 of h.
  void place_weights(int direction, std::span<const Array> w) {
    for (int gate = 0; gate < 8; ++gate) {
      void *matrix = nullptr, *bias = nullptr;
      CUDNN_CHECK(cudnn().weight_place(handle_, rnn_, direction,
                                       static_cast<size_t>(weights_->bytes()), weights_->data(),
                                       gate, matrix_, &matrix, bias_, &bias));
      const auto part = [&](const Array& all) {
        const auto count = std::ssize(all.data) / 4;
        const auto first = all.data.begin() + gate % 4 * count;
        return std::vector<double>(first, first + count);
      };
      const auto at = [&](void* place) { return static_cast<char*>(place) - weights_->data(); };
      weights_->write(at(matrix), part(w[gate / 4]), dtype_);
      weights_->write(at(bias), part(w[2 + gate / 4]), dtype_);
    }
  }

  void call(const void* x) override {
    CUDNN_CHECK(cudnn().rnn_forward(
        handle_, rnn_, CUDNN_FWD_MODE_TRAINING, nullptr, x_desc_, x, y_desc_, y_.data(), state_,
        nullptr, nullptr, state_, nullptr, nullptr, static_cast<size_t>(weights_->bytes()),
        weights_->data(), static_cast<size_t>(work_->bytes()), work_->data(),
        static_cast<size_t>(saved_->bytes()), saved_->data()));
  }

  int64_t T_, B_, H_, D_;
  Memory y_;
  std::unique_ptr<Memory> weights_, work_, saved_;
  cudnnRNNDescriptor_t rnn_ = nullptr;
  cudnnDropoutDescriptor_t dropout_ = nullptr;
  cudnnRNNDataDescriptor_t x_desc_ = nullptr, y_desc_ = nullptr;
  cudnnTensorDescriptor_t state_ = nullptr, matrix_ = nullptr, bias_ = nullptr;
};

bool one_length(const Case& c) {
  return c.B() > 0 && std::ranges::all_of(c.frames, [&](int32_t n) { return n == c.frames[0]; });
}

}  // namespace

std::unique_ptr<Yardstick> cudnn_yardstick(const YardstickOf& what) {
  if (what.op.name == "conv_strided") return std::make_unique<Convolution>(what);
  if (what.op.name == "lstm" && one_length(what.bench)) return std::make_unique<Lstm>(what);
  return nullptr;
}

}  // namespace sft
