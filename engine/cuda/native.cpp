// The native Driver: cudart (linked statically), cuBLASLt for products, cuDNN for LSTM layers.
#include <cuda_runtime.h>
#include <cxxabi.h>

#include <array>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>
#include <unordered_map>
#include <vector>

#include "engine/cuda/cublaslt.h"
#include "engine/cuda/cudnn_lstm.h"
#include "engine/cuda/driver.h"
#include "engine/cuda/gemm.h"
#include "engine/device.h"

#define CUDA_CHECK(call)                                                              \
  do {                                                                                \
    if (const cudaError_t error = (call); error != cudaSuccess) failed(error, #call); \
  } while (false)

namespace sft::cuda {
namespace {

constexpr int64_t kWorkspace = 32 << 20;  // of a product; what cuBLASLt advises for sm_90

// A kernel that goes wrong takes everything on the device with it, and is noticed by a later call.
void check_device(std::string_view where) {
  cudaGetLastError();
  // A call that does nothing, and may be made while a stream is captured.
  cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
  cudaThreadExchangeStreamCaptureMode(&mode);
  const cudaError_t error = cudaFree(nullptr);
  cudaThreadExchangeStreamCaptureMode(&mode);
  if (error != cudaSuccess) device_lost(where, cudaGetErrorString(error));
}

[[noreturn]] void failed(cudaError_t error, std::string_view where) {
  check_device(where);
  fail(Kind::resource, "cuda: {}: {}", where, cudaGetErrorString(error));
}

// A library says no more than that it failed, whatever became of the device.
template <class Call>
void by_library(Call call) {
  try {
    call();
  } catch (const Error& error) {
    check_device(error.message);
    throw;
  }
}

dim3 extent(const Extent& e) { return {e.x, e.y, e.z}; }

// How much shared memory each kernel may use; grows as launches ask for more.
class SharedMemory {
 public:
  void allow(const KernelCall& call) {
    uint32_t& allowed = allowed_[call.function];
    if (call.shared_bytes <= allowed) return;
    if (call.shared_bytes > 48 << 10)
      CUDA_CHECK(cudaFuncSetAttribute(call.function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      static_cast<int>(call.shared_bytes)));
    allowed = call.shared_bytes;
  }

 private:
  std::unordered_map<const void*, uint32_t> allowed_;  // bytes
};

// Captured from a stream; its nodes are known by the order of the commands.
class Captured final : public Graph {
 public:
  Captured(cudaGraph_t graph, size_t begin, std::vector<cudaGraphNode_t> nodes,
           SharedMemory& shared)
      : graph_(graph), begin_(begin), nodes_(std::move(nodes)), shared_(shared) {}
  ~Captured() override {
    cudaGraphExecDestroy(exec_);
    cudaGraphDestroy(graph_);
  }
  void instantiate(cudaStream_t stream) {
    CUDA_CHECK(cudaGraphInstantiate(&exec_, graph_, 0));
    stream_ = stream;
  }
  void patch(const Commands& commands, size_t i) override {
    node_ = nodes_[i - begin_];
    if (const auto* kernel = std::get_if<Kernel>(&commands[i])) {
      Commands::Args args;
      return patch(commands.call(*kernel, args));
    }
    std::visit(
        [&]<class C>(const C& command) {
          if constexpr (std::is_same_v<C, Fill> || std::is_same_v<C, Copy> ||
                        std::is_same_v<C, Upload>)
            patch(command);
        },
        commands[i]);
  }
  void launch() override { CUDA_CHECK(cudaGraphLaunch(exec_, stream_)); }

 private:
  void patch(const KernelCall& call) {
    shared_.allow(call);
    const cudaKernelNodeParams params{.func = const_cast<void*>(call.function),
                                      .gridDim = extent(call.grid),
                                      .blockDim = extent(call.block),
                                      .sharedMemBytes = call.shared_bytes,
                                      .kernelParams = const_cast<void**>(call.args)};
    CUDA_CHECK(cudaGraphExecKernelNodeSetParams(exec_, node_, &params));
  }
  void patch(const Fill& fill) {
    const cudaMemsetParams params{.dst = fill.to,
                                  .pitch = 0,
                                  .value = fill.byte,
                                  .elementSize = 1,
                                  .width = static_cast<size_t>(fill.bytes),
                                  .height = 1};
    CUDA_CHECK(cudaGraphExecMemsetNodeSetParams(exec_, node_, &params));
  }
  void patch(const Copy& copy) {
    CUDA_CHECK(cudaGraphExecMemcpyNodeSetParams1D(exec_, node_, copy.to, copy.from, copy.bytes,
                                                  cudaMemcpyDeviceToDevice));
  }
  void patch(const Upload& upload) {
    CUDA_CHECK(cudaGraphExecMemcpyNodeSetParams1D(exec_, node_, upload.to, upload.from,
                                                  upload.bytes, cudaMemcpyDefault));
  }

  cudaGraph_t graph_;
  size_t begin_;  // command of the first node
  std::vector<cudaGraphNode_t> nodes_;
  SharedMemory& shared_;
  cudaGraphNode_t node_ = nullptr;
  cudaGraphExec_t exec_ = nullptr;
  cudaStream_t stream_ = nullptr;
};

// "void sft::cuda::(anonymous namespace)::norm_kernel<float, 4>(int)" -> "norm_kernel<float, 4>"
std::string short_name(std::string name) {
  for (const char* prefix : {"sft::cuda::(anonymous namespace)::", "sft::cuda::", "void "})
    for (size_t at; (at = name.find(prefix)) != name.npos;) name.erase(at, std::strlen(prefix));
  const size_t arguments = name.rfind('(');
  return arguments == name.npos || arguments == 0 ? name : name.substr(0, arguments);
}

DeviceFacts look_around() {
  DeviceFacts facts{.program = CUDART_VERSION};
  if (cudaDriverGetVersion(&facts.driver) != cudaSuccess) facts.driver = 0;
  if (cudaGetDeviceCount(&facts.devices) != cudaSuccess) facts.devices = 0;
  cudaDeviceProp properties{};
  if (!facts.devices || cudaGetDeviceProperties(&properties, 0) != cudaSuccess) return facts;
  facts.name = properties.name, facts.major = properties.major, facts.minor = properties.minor;
  cudaFuncAttributes attributes{};
  facts.has_code = cudaFuncGetAttributes(&attributes, some_kernel()) == cudaSuccess;
  cudaGetLastError();  // none of these is sticky
  return facts;
}

class Native final : public Driver {
 public:
  Native() {
    check_usable(look_around());
    // Before there are threads. cuDNN asks cuBLAS, which with buffers of two sizes, as it has them
    // by itself, takes one or the other as they are free, and rounds otherwise.
    setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:2", /*overwrite=*/0);
    CUDA_CHECK(cudaSetDevice(0));
    CUDA_CHECK(cudaGetDeviceProperties(&properties_, 0));
    for (cudaStream_t* stream : {&stream_, &aside_})
      CUDA_CHECK(cudaStreamCreateWithFlags(stream, cudaStreamNonBlocking));
    CUDA_CHECK(cudaEventCreateWithFlags(&sent_, cudaEventDisableTiming));
    workspace_ = allocate(kWorkspace);
    for (cudaEvent_t& event : events_)
      CUDA_CHECK(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
  }
  ~Native() override {
    for (cudaStream_t stream : {stream_, aside_}) cudaStreamSynchronize(stream);
    cudaFree(workspace_);
    for (cudaEvent_t event : events_) cudaEventDestroy(event);
    for (cudaEvent_t moment : moments_) cudaEventDestroy(moment);
    cudaEventDestroy(sent_);
    for (cudaStream_t stream : {stream_, aside_}) cudaStreamDestroy(stream);
  }

  std::string name() const override {
    return fmt::format("{}, sm_{}{}, {} multiprocessors", properties_.name, properties_.major,
                       properties_.minor, properties_.multiProcessorCount);
  }
  int64_t free_bytes() const override {
    size_t free = 0, total = 0;
    CUDA_CHECK(cudaMemGetInfo(&free, &total));
    return static_cast<int64_t>(free);
  }
  int multiprocessors() const override { return properties_.multiProcessorCount; }

  void* allocate(int64_t bytes) override {
    void* memory = nullptr;
    if (cudaMalloc(&memory, bytes) != cudaSuccess) {
      cudaGetLastError();  // this error is not sticky
      fail(Kind::resource, "cuda: out of memory: {} bytes wanted, {} free", bytes, free_bytes());
    }
    return memory;
  }
  void release(void* memory) noexcept override { cudaFree(memory); }

  void* allocate_pinned(int64_t bytes) override {
    void* memory = nullptr;
    CUDA_CHECK(cudaMallocHost(&memory, bytes));
    return memory;
  }
  void release_pinned(void* memory) noexcept override { cudaFreeHost(memory); }

  void run(const KernelCall& call) override {
    // Asked for before the kernel can take the device with it.
    const std::string name = synchronous_ ? kernel_name(call.function) : "kernel";
    const auto where = [&] {
      return fmt::format("{} launched at {}:{}", name, call.file, call.line);
    };
    shared_.allow(call);
    const cudaError_t error =
        cudaLaunchKernel(call.function, extent(call.grid), extent(call.block),
                         const_cast<void**>(call.args), call.shared_bytes, stream_);
    if (error != cudaSuccess) failed(error, where());
    if (synchronous_) finish(where());
  }
  void run(const Fill& f) override { CUDA_CHECK(cudaMemsetAsync(f.to, f.byte, f.bytes, stream_)); }
  void run(const Copy& c) override {
    CUDA_CHECK(cudaMemcpyAsync(c.to, c.from, c.bytes, cudaMemcpyDeviceToDevice, stream_));
  }
  void run(const Upload& u) override {
    CUDA_CHECK(cudaMemcpyAsync(u.to, u.from, u.bytes, cudaMemcpyDefault, stream_));
  }
  void download(void* to, const void* from, int64_t bytes) override {
    CUDA_CHECK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, stream_));
  }
  void send(void* to, const void* from, int64_t bytes) override {
    CUDA_CHECK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, aside_));
  }
  void receive() override {
    CUDA_CHECK(cudaEventRecord(sent_, aside_));
    CUDA_CHECK(cudaStreamWaitEvent(stream_, sent_, 0));
  }
  void mark(int event) override { CUDA_CHECK(cudaEventRecord(events_[event], stream_)); }
  void wait_for(int event) override { CUDA_CHECK(cudaEventSynchronize(events_[event])); }
  void wait() override { CUDA_CHECK(cudaStreamSynchronize(stream_)); }

  std::unique_ptr<Graph> capture(const Commands& commands, size_t begin, size_t end) override {
    std::vector<cudaGraphNode_t> nodes;
    CUDA_CHECK(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal));
    cudaGraph_t graph = nullptr;
    try {
      for (size_t i = begin; i < end; ++i) {
        cuda::run(*this, commands, i);
        // A product is as many nodes as its library likes.
        nodes.push_back(std::holds_alternative<Gemm>(commands[i]) ? nullptr : newest_node());
      }
    } catch (...) {  // an error ends the capture as well
      cudaStreamEndCapture(stream_, &graph);
      if (graph) cudaGraphDestroy(graph);
      throw;
    }
    CUDA_CHECK(cudaStreamEndCapture(stream_, &graph));
    auto captured = std::make_unique<Captured>(graph, begin, std::move(nodes), shared_);
    captured->instantiate(stream_);
    return captured;
  }

  void run(const Gemm& g) override {
    if (g.K == 0) return sum_of_nothing(g);
    by_library([&] { blas().gemm(g, stream_); });
    if (synchronous_) finish(fmt::format("product of {} x {} x {}", g.M, g.N, g.K));
  }
  void run(const LstmPass& pass) override {
    by_library([&] { lstms().run(pass); });
    if (synchronous_) finish("LSTM layer of the library");
  }
  std::string lstm_library() override { return lstms().name(); }
  std::shared_ptr<const LstmPlan> lstm_plan(const LstmShape& shape,
                                            std::span<const int32_t> starts) override {
    return lstms().plan(shape, starts);
  }
  int64_t moment() override {
    if (used_moments_ == moments_.size()) CUDA_CHECK(cudaEventCreate(&moments_.emplace_back()));
    CUDA_CHECK(cudaEventRecord(moments_[used_moments_], stream_));
    return static_cast<int64_t>(used_moments_++);
  }
  double seconds(int64_t from, int64_t to) override {
    float milliseconds = 0;
    CUDA_CHECK(cudaEventSynchronize(moments_.at(to)));
    CUDA_CHECK(cudaEventElapsedTime(&milliseconds, moments_.at(from), moments_.at(to)));
    return milliseconds / 1e3;
  }
  void forget_moments() override { used_moments_ = 0; }
  std::string kernel_name(const void* function) const override {
    const char* mangled = nullptr;
    if (cudaFuncGetName(&mangled, function) != cudaSuccess || !mangled) return {};
    int status = 0;
    const std::unique_ptr<char, decltype(&std::free)> whole(
        abi::__cxa_demangle(mangled, nullptr, nullptr, &status), &std::free);
    return short_name(whole ? whole.get() : mangled);
  }

  GemmChoices gemm_choices() const override { return blas().choices(); }
  int64_t use_gemm_choices(const GemmChoices& recorded) override { return blas().use(recorded); }

 private:
  CublasLt& blas() const {
    if (!blas_) blas_.emplace(name(), workspace_, kWorkspace);
    return *blas_;
  }
  CudnnLstms& lstms() {
    if (!lstms_) lstms_.emplace(stream_);
    return *lstms_;
  }
  void finish(std::string_view what) {
    if (const cudaError_t error = cudaStreamSynchronize(stream_); error != cudaSuccess)
      failed(error, what);
  }
  // The stream is a chain: its newest node is what the next one would wait for. (Without `edges`
  // the query fails behind kernels that the library lets overlap.)
  cudaGraphNode_t newest_node() {
    cudaStreamCaptureStatus status{};
    const cudaGraphNode_t* last = nullptr;
    const cudaGraphEdgeData* edges = nullptr;
    size_t count = 0;
    CUDA_CHECK(cudaStreamGetCaptureInfo(stream_, &status, nullptr, nullptr, &last, &edges, &count));
    CHECK(count == 1, "cuda: {} captured nodes are the newest", count);
    return last[0];
  }

  // C = beta from + bias, where only beta matters: sums over no frames.
  void sum_of_nothing(const Gemm& g) {
    if (g.beta == 0)
      CUDA_CHECK(
          cudaMemset2DAsync(g.C, bytes_of(g.out, g.ldc), 0, bytes_of(g.out, g.N), g.M, stream_));
  }

  cudaDeviceProp properties_{};
  cudaStream_t stream_ = nullptr, aside_ = nullptr;
  cudaEvent_t sent_ = nullptr;  // the newest copy on aside_
  std::vector<cudaEvent_t> moments_;
  size_t used_moments_ = 0;
  void* workspace_ = nullptr;
  std::array<cudaEvent_t, kEvents> events_{};
  SharedMemory shared_;
  const bool synchronous_ = synchronous();
  mutable std::optional<CublasLt> blas_;  // opened for the first product
  std::optional<CudnnLstms> lstms_;       // ... for the first LSTM layer
};

}  // namespace

std::unique_ptr<Driver> open_driver() { return std::make_unique<Native>(); }

}  // namespace sft::cuda
