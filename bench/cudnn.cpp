// cuDNN's own calls where it has them, and its graph of one operation for attention, which it has
// as nothing else.
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>

#include "bench/yardstick.h"
#include "engine/cuda/cudnn_library.h"
#include "engine/formats/numbers.h"

#define CUDA_CHECK(call)                                                      \
  do {                                                                        \
    if (const cudaError_t error = (call); error != cudaSuccess)               \
      fail(Kind::resource, "cuda: {}: {}", #call, cudaGetErrorString(error)); \
  } while (false)
namespace sft {
namespace {

using cuda::cudnn;

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
    cudnn().destroy(handle_);
    cudaStreamDestroy(stream_);
  }

  std::string name() const override { return cudnn().name(); }
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
  void call_once() {
    call(copies_[0]->data());
    CUDA_CHECK(cudaStreamSynchronize(stream_));
  }

  Dtype dtype_;
  cudaStream_t stream_ = nullptr;
  cudnnHandle_t handle_ = nullptr;
  std::vector<std::unique_ptr<Memory>> copies_;
  cuda::CudnnDescriptors descriptors_;
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
    const cudnnDataType_t type = cuda::cudnn_type(of.compute);
    x_desc_ = descriptors_.make(cudnn().create_tensor, cudnn().destroy_tensor);
    y_desc_ = descriptors_.make(cudnn().create_tensor, cudnn().destroy_tensor);
    weight_desc_ = descriptors_.make(cudnn().create_filter, cudnn().destroy_filter);
    convolution_ = descriptors_.make(cudnn().create_convolution, cudnn().destroy_convolution);
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

// A descriptor of a graph, destroyed with its owner.
class Node {
 public:
  explicit Node(cudnnBackendDescriptorType_t type) {
    CUDNN_CHECK(cudnn().create_backend(type, &descriptor_));
  }
  ~Node() { cudnn().destroy_backend(descriptor_); }
  Node(const Node&) = delete;

  template <class T>
  Node& set(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type,
            const std::vector<T>& values) {
    CUDNN_CHECK(cudnn().set_backend(descriptor_, name, type, std::ssize(values), values.data()));
    return *this;
  }
  Node& set(cudnnBackendAttributeName_t name, const Node& to) {
    return set(name, CUDNN_TYPE_BACKEND_DESCRIPTOR, std::vector{to.descriptor_});
  }
  Node& set(cudnnBackendAttributeName_t name, const std::vector<int64_t>& values) {
    return set(name, CUDNN_TYPE_INT64, values);
  }
  Node& finish() {
    CUDNN_CHECK(cudnn().finish_backend(descriptor_));
    return *this;
  }
  cudnnBackendDescriptor_t get() const { return descriptor_; }

 private:
  cudnnBackendDescriptor_t descriptor_ = nullptr;
};

// Attention in 16 bits of utterances of one length, without bias and dropout; forward, without the
// sums that a way back would want. Needs cuDNN 9.13.
class Attention final : public OnCudnn {
 public:
  static bool has(const YardstickOf& of) {
    const auto& frames = of.bench.frames;
    return of.op.name == "attention" && of.compute == Dtype::bf16 && !of.bench.training &&
           std::ranges::all_of(frames, [&](int64_t n) { return n == frames[0]; });
  }
  explicit Attention(const YardstickOf& of)
      : OnCudnn(of.inputs[0].data, of.compute, of.rotated_bytes),
        B_(of.bench.B()),
        T_(of.bench.frames[0]),
        H_(of.bench.dims[0]),
        D_(of.bench.dims[1]),
        scale_(1 / std::sqrt(static_cast<float>(D_))),
        y_(bytes_of(of.compute, B_ * T_ * H_ * D_)) {
    const Node &q = matrix(kQ, 3), &k = matrix(kK, 3), &v = matrix(kV, 3), &y = matrix(kY, 1);
    Node& scale = node(CUDNN_BACKEND_TENSOR_DESCRIPTOR);
    scale.set(CUDNN_ATTR_TENSOR_IS_BY_VALUE, CUDNN_TYPE_BOOLEAN, std::vector<char>{1});
    tensor(scale, kScale, CUDNN_DATA_FLOAT, {1, 1, 1, 1}, {1, 1, 1, 1});
    Node& attend = node(CUDNN_BACKEND_OPERATION_SDPA_FWD_DESCRIPTOR);
    attend.set(CUDNN_ATTR_OPERATION_SDPA_FWD_QDESC, q)
        .set(CUDNN_ATTR_OPERATION_SDPA_FWD_KDESC, k)
        .set(CUDNN_ATTR_OPERATION_SDPA_FWD_VDESC, v)
        .set(CUDNN_ATTR_OPERATION_SDPA_FWD_ODESC, y)
        .set(CUDNN_ATTR_OPERATION_SDPA_FWD_SCALEDESC, scale)
        .finish();
    Node& graph = node(CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
    graph.set(CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, std::vector{handle_})
        .set(CUDNN_ATTR_OPERATIONGRAPH_OPS, attend)
        .finish();
    plan(graph);
  }

  Array output() override {
    call_once();
    const int64_t rows = B_ * T_, C = H_ * D_;
    return {.shape = {rows, C}, .data = y_.read(dtype_, rows * C)};
  }

 private:
  enum Uid : int64_t { kQ = 1, kK, kV, kY, kScale };

  static void tensor(Node& node, Uid uid, cudnnDataType_t type, const std::vector<int64_t>& dims,
                     const std::vector<int64_t>& strides) {
    node.set(CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, std::vector{type})
        .set(CUDNN_ATTR_TENSOR_DIMENSIONS, dims)
        .set(CUDNN_ATTR_TENSOR_STRIDES, strides)
        .set(CUDNN_ATTR_TENSOR_UNIQUE_ID, {uid})
        .set(CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, {16})
        .finish();
  }
  // Lives as long as what refers to it.
  Node& node(cudnnBackendDescriptorType_t type) {
    return *nodes_.emplace_back(std::make_unique<Node>(type));
  }
  // [B, H, T, D], one of `beside` that lie side by side in each row.
  const Node& matrix(Uid uid, int64_t beside) {
    Node& made = node(CUDNN_BACKEND_TENSOR_DESCRIPTOR);
    const int64_t row = beside * H_ * D_;
    tensor(made, uid, cuda::cudnn_type(dtype_), {B_, H_, T_, D_}, {T_ * row, D_, row, 1});
    return made;
  }
  // The first that it can do of the ways that it advises.
  void plan(const Node& graph) {
    Node& advice = node(CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
    advice.set(CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, graph)
        .set(CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, std::vector{CUDNN_HEUR_MODE_A})
        .finish();
    std::vector<const Node*> ways;
    std::vector<cudnnBackendDescriptor_t> list;
    for (int i = 0; i < 8; ++i) {
      ways.push_back(&node(CUDNN_BACKEND_ENGINECFG_DESCRIPTOR));
      list.push_back(ways.back()->get());
    }
    int64_t count = 0;
    CUDNN_CHECK(cudnn().get_backend(advice.get(), CUDNN_ATTR_ENGINEHEUR_RESULTS,
                                    CUDNN_TYPE_BACKEND_DESCRIPTOR, std::ssize(list), &count,
                                    list.data()));
    for (int64_t i = 0; i < std::min(count, std::ssize(list)) && !plan_; ++i) {
      Node& plan = node(CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
      plan.set(CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, std::vector{handle_})
          .set(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, *ways[i]);
      if (cudnn().finish_backend(plan.get()) == CUDNN_STATUS_SUCCESS) plan_ = &plan;
    }
    if (!plan_) fail(Kind::resource, "cuDNN: no way to compute this attention");
    int64_t bytes = 0;
    CUDNN_CHECK(cudnn().get_backend(plan_->get(), CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE,
                                    CUDNN_TYPE_INT64, 1, &count, &bytes));
    work_ = std::make_unique<Memory>(bytes);
  }
  void call(const void* x) override {
    char* qkv = static_cast<char*>(const_cast<void*>(x));
    const int64_t part = bytes_of(dtype_, H_ * D_);
    Node pack(CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR);
    pack.set(CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, {kQ, kK, kV, kY, kScale})
        .set(CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR,
             std::vector<void*>{qkv, qkv + part, qkv + 2 * part, y_.data(), &scale_})
        .set(CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR,
             std::vector<void*>{work_->data()})
        .finish();
    CUDNN_CHECK(cudnn().execute_backend(handle_, plan_->get(), pack.get()));
  }

  int64_t B_, T_, H_, D_;
  float scale_;
  Memory y_;
  std::unique_ptr<Memory> work_;
  std::vector<std::unique_ptr<Node>> nodes_;
  Node* plan_ = nullptr;
};

}  // namespace

std::unique_ptr<Yardstick> cudnn_yardstick(const YardstickOf& what) {
  if (what.op.name == "conv_strided") return std::make_unique<Convolution>(what);
  if (Attention::has(what)) return std::make_unique<Attention>(what);
  return nullptr;
}

}  // namespace sft
