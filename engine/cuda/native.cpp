// The native Runtime: cudart (linked statically) and cuBLASLt (opened at the first product).
#include <cublasLt.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <optional>

#include "engine/cuda/runtime.h"
#include "engine/cuda/shared_library.h"

#define CUDA_CHECK(call)                                                      \
  do {                                                                        \
    if (const cudaError_t error = (call); error != cudaSuccess)               \
      fail(Kind::resource, "cuda: {}: {}", #call, cudaGetErrorString(error)); \
  } while (false)
#define CUBLAS_CHECK(call)                                                              \
  do {                                                                                  \
    if (const cublasStatus_t status = (call); status != CUBLAS_STATUS_SUCCESS)          \
      fail(Kind::resource, "cublasLt: {}: status {}", #call, static_cast<int>(status)); \
  } while (false)

namespace sft::cuda {
namespace {

constexpr int64_t kWorkspace = 32 << 20;  // of a product; what cuBLASLt advises for sm_90
constexpr int64_t kStaging = 16 << 20;    // pinned; what is uploaded goes through it

struct CublasLt {
  decltype(&cublasLtCreate) create;
  decltype(&cublasLtMatmul) matmul;
  decltype(&cublasLtMatmulDescCreate) desc_create;
  decltype(&cublasLtMatmulDescSetAttribute) desc_set;
  decltype(&cublasLtMatmulDescDestroy) desc_destroy;
  decltype(&cublasLtMatrixLayoutCreate) layout_create;
  decltype(&cublasLtMatrixLayoutDestroy) layout_destroy;
  decltype(&cublasLtMatmulPreferenceCreate) preference_create;
  decltype(&cublasLtMatmulPreferenceSetAttribute) preference_set;
  decltype(&cublasLtMatmulPreferenceDestroy) preference_destroy;
  decltype(&cublasLtMatmulAlgoGetHeuristic) heuristic;
  cublasLtHandle_t handle = nullptr;

  CublasLt() {
    const SharedLibrary so("libcublasLt.so.13");
    so.bind(create, "cublasLtCreate");
    so.bind(matmul, "cublasLtMatmul");
    so.bind(desc_create, "cublasLtMatmulDescCreate");
    so.bind(desc_set, "cublasLtMatmulDescSetAttribute");
    so.bind(desc_destroy, "cublasLtMatmulDescDestroy");
    so.bind(layout_create, "cublasLtMatrixLayoutCreate");
    so.bind(layout_destroy, "cublasLtMatrixLayoutDestroy");
    so.bind(preference_create, "cublasLtMatmulPreferenceCreate");
    so.bind(preference_set, "cublasLtMatmulPreferenceSetAttribute");
    so.bind(preference_destroy, "cublasLtMatmulPreferenceDestroy");
    so.bind(heuristic, "cublasLtMatmulAlgoGetHeuristic");
    CUBLAS_CHECK(create(&handle));
  }
};

cudaDataType_t type_of(Dtype dtype) { return dtype == Dtype::bf16 ? CUDA_R_16BF : CUDA_R_32F; }

// Bytes that the address is a multiple of; kernels of the library want 16 at most, and one
// algorithm for all addresses gives the same bits wherever a tensor lies.
uint32_t alignment_of(const void* address) {
  const auto bits = reinterpret_cast<uintptr_t>(address) | 16;
  return static_cast<uint32_t>(bits & -bits);
}

// Everything about a product but its addresses, of which the alignment.
struct Key {
  bool transpose_a, transpose_b, bias;
  int64_t M, N, K, lda, ldb, ldc, ldfrom;
  Dtype in, out;
  uint32_t align_a, align_b, align_c, align_from, align_bias;

  explicit Key(const Gemm& g)
      : transpose_a(g.transpose_a),
        transpose_b(g.transpose_b),
        bias(g.bias),
        M(g.M),
        N(g.N),
        K(g.K),
        lda(g.lda),
        ldb(g.ldb),
        ldc(g.ldc),
        ldfrom(g.from ? g.ldfrom : g.ldc),
        in(g.in),
        out(g.out),
        align_a(alignment_of(g.A)),
        align_b(alignment_of(g.B)),
        align_c(alignment_of(g.C)),
        align_from(alignment_of(g.from ? g.from : g.C)),
        align_bias(alignment_of(g.bias)) {}
  auto operator<=>(const Key&) const = default;
};

struct Plan {
  cublasLtMatmulDesc_t desc = nullptr;
  cublasLtMatrixLayout_t a = nullptr, b = nullptr, from = nullptr, c = nullptr;
  cublasLtMatmulAlgo_t algorithm{};
};

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
    const Plan& plan = plan_for(g);
    if (g.bias) set(plan.desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, g.bias);
    const float one = 1;
    // The library is column-major: C^T = op(B)^T op(A)^T.
    CUBLAS_CHECK(blas().matmul(blas().handle, plan.desc, &one, g.B, plan.a, g.A, plan.b, &g.beta,
                               g.from ? g.from : g.C, plan.from, g.C, plan.c, &plan.algorithm,
                               workspace_, kWorkspace, stream_));
  }

 private:
  CublasLt& blas() {
    if (!blas_) blas_.emplace();
    return *blas_;
  }

  const Plan& plan_for(const Gemm& g) {
    const Key key(g);
    if (const auto it = plans_.find(key); it != plans_.end()) return it->second;
    return plans_[key] = make_plan(g, key);
  }

  cublasLtMatrixLayout_t layout(Dtype dtype, bool transposed, int64_t rows, int64_t columns,
                                int64_t ld) {
    cublasLtMatrixLayout_t made = nullptr;
    if (transposed) std::swap(rows, columns);
    CUBLAS_CHECK(blas().layout_create(&made, type_of(dtype), columns, rows, ld));
    return made;
  }

  template <class T>
  void set(cublasLtMatmulDesc_t desc, cublasLtMatmulDescAttributes_t attribute, T value) {
    CUBLAS_CHECK(blas().desc_set(desc, attribute, &value, sizeof value));
  }

  Plan make_plan(const Gemm& g, const Key& key) {
    Plan plan;
    CUBLAS_CHECK(blas().desc_create(&plan.desc, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    const auto operation = [](bool transposed) { return transposed ? CUBLAS_OP_T : CUBLAS_OP_N; };
    set(plan.desc, CUBLASLT_MATMUL_DESC_TRANSA, operation(g.transpose_b));
    set(plan.desc, CUBLASLT_MATMUL_DESC_TRANSB, operation(g.transpose_a));
    if (g.bias) {
      set(plan.desc, CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
      set(plan.desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, g.bias);
      set(plan.desc, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, type_of(g.out));
    }
    plan.a = layout(g.in, g.transpose_b, g.K, g.N, g.ldb);
    plan.b = layout(g.in, g.transpose_a, g.M, g.K, g.lda);
    plan.from = layout(g.out, false, g.M, g.N, key.ldfrom);
    plan.c = layout(g.out, false, g.M, g.N, g.ldc);
    choose_algorithm(g, key, plan);
    return plan;
  }

  void choose_algorithm(const Gemm& g, const Key& key, Plan& plan) {
    cublasLtMatmulPreference_t preference = nullptr;
    CUBLAS_CHECK(blas().preference_create(&preference));
    const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t attribute, auto value) {
      CUBLAS_CHECK(blas().preference_set(preference, attribute, &value, sizeof value));
    };
    prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, uint64_t{kWorkspace});
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, key.align_b);
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, key.align_a);
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, key.align_from);
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, key.align_c);
    cublasLtMatmulHeuristicResult_t best{};
    int found = 0;
    CUBLAS_CHECK(blas().heuristic(blas().handle, plan.desc, plan.a, plan.b, plan.from, plan.c,
                                  preference, 1, &best, &found));
    blas().preference_destroy(preference);
    if (found == 0)
      fail(Kind::resource, "cublasLt: no algorithm for [{}, {}] x [{}, {}]", g.M, g.K, g.K, g.N);
    plan.algorithm = best.algo;
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
  std::optional<CublasLt> blas_;
  std::map<Key, Plan> plans_;
};

}  // namespace

std::unique_ptr<Runtime> open_runtime() { return std::make_unique<Native>(); }

void launch_failed(const char* what, const char* file, int line) {
  fail(Kind::resource, "cuda: launch at {}:{}: {}", file, line, what);
}

}  // namespace sft::cuda
