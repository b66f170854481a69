// The native Runtime: cudart (linked statically), and cuBLASLt for products.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstring>
#include <optional>

#include "engine/cuda/cublaslt.h"
#include "engine/cuda/runtime.h"

#define CUDA_CHECK(call)                                                      \
  do {                                                                        \
    if (const cudaError_t error = (call); error != cudaSuccess)               \
      fail(Kind::resource, "cuda: {}: {}", #call, cudaGetErrorString(error)); \
  } while (false)

namespace sft::cuda {
namespace {

constexpr int64_t kWorkspace = 32 << 20;  // of a product; what cuBLASLt advises for sm_90
constexpr int64_t kStaging = 16 << 20;    // pinned; what is uploaded goes through it

class Native final : public Runtime {
 public:
  Native() {
    int driver = 0, devices = 0;
    if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0)
      fail(Kind::resource, Hint{"install NVIDIA's driver, or use --device cpu"},
           "cuda: no driver on this machine");
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0)
      fail(Kind::resource, Hint{"see nvidia-smi and CUDA_VISIBLE_DEVICES, or use --device cpu"},
           "cuda: no device (driver {}.{})", driver / 1000, driver % 1000 / 10);
    CUDA_CHECK(cudaSetDevice(0));
    CUDA_CHECK(cudaGetDeviceProperties(&properties_, 0));
    CUDA_CHECK(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
    workspace_ = allocate(kWorkspace);
    CUDA_CHECK(cudaMallocHost(&staging_, kStaging));
  }
  ~Native() override {
    cudaStreamSynchronize(stream_);
    cudaFree(workspace_);
    cudaFreeHost(staging_);
    cudaStreamDestroy(stream_);
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
  void* stream() const override { return stream_; }

  void* allocate(int64_t bytes) override {
    void* memory = nullptr;
    if (cudaMalloc(&memory, bytes) != cudaSuccess) {
      cudaGetLastError();  // this error is not sticky
      fail(Kind::resource, "cuda: out of memory: {} bytes wanted, {} free", bytes, free_bytes());
    }
    return memory;
  }
  void release(void* memory) noexcept override { cudaFree(memory); }

  void fill(void* to, uint8_t byte, int64_t bytes) override {
    CUDA_CHECK(cudaMemsetAsync(to, byte, bytes, stream_));
  }
  void copy(void* to, const void* from, int64_t bytes) override {
    CUDA_CHECK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream_));
  }
  // Waits only when the staging memory has been gone through.
  void upload(void* to, const void* from, int64_t bytes) override {
    const auto *source = static_cast<const char*>(from), *end = source + bytes;
    for (auto* target = static_cast<char*>(to); source < end;) {
      if (staged_ == kStaging) synchronize(), staged_ = 0;
      const int64_t piece = std::min<int64_t>(end - source, kStaging - staged_);
      std::memcpy(staging_ + staged_, source, piece);
      CUDA_CHECK(
          cudaMemcpyAsync(target, staging_ + staged_, piece, cudaMemcpyHostToDevice, stream_));
      staged_ += piece, source += piece, target += piece;
    }
  }
  void download(void* to, const void* from, int64_t bytes) override {
    CUDA_CHECK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, stream_));
    CUDA_CHECK(cudaStreamSynchronize(stream_));
  }
  void synchronize() override { CUDA_CHECK(cudaStreamSynchronize(stream_)); }

  void gemm(const Gemm& g) override {
    if (g.M == 0 || g.N == 0) return;
    if (g.K == 0) return sum_of_nothing(g);
    blas().gemm(g, stream_);
  }
  GemmChoices gemm_choices() const override { return blas().choices(); }
  int64_t use_gemm_choices(const GemmChoices& recorded) override { return blas().use(recorded); }

 private:
  CublasLt& blas() const {
    if (!blas_) blas_.emplace(name(), workspace_, kWorkspace);
    return *blas_;
  }
  // C = beta from + bias, where only beta matters: sums over no frames.
  void sum_of_nothing(const Gemm& g) {
    if (g.beta == 0)
      CUDA_CHECK(
          cudaMemset2DAsync(g.C, bytes_of(g.out, g.ldc), 0, bytes_of(g.out, g.N), g.M, stream_));
  }

  cudaDeviceProp properties_{};
  cudaStream_t stream_ = nullptr;
  void* workspace_ = nullptr;
  char* staging_ = nullptr;
  int64_t staged_ = 0;  // bytes of the staging memory in use, since the stream was last waited for
  mutable std::optional<CublasLt> blas_;  // opened for the first product
};

}  // namespace

std::unique_ptr<Runtime> open_runtime() { return std::make_unique<Native>(); }

void launch_failed(const char* what, const char* file, int line) {
  fail(Kind::resource, "cuda: launch at {}:{}: {}", file, line, what);
}

}  // namespace sft::cuda
