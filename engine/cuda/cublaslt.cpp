#include "engine/cuda/cublaslt.h"

#include <utility>

#include "engine/cuda/shared_library.h"

#define CUBLAS_CHECK(call)                                                              \
  do {                                                                                  \
    if (const cublasStatus_t status = (call); status != CUBLAS_STATUS_SUCCESS)          \
      fail(Kind::resource, "cublasLt: {}: status {}", #call, static_cast<int>(status)); \
  } while (false)

namespace sft::cuda {
namespace {

cudaDataType_t type_of(Dtype dtype) { return dtype == Dtype::bf16 ? CUDA_R_16BF : CUDA_R_32F; }

// Bytes that the address is a multiple of; kernels of the library want 16 at most, and one
// algorithm for all addresses gives the same bits wherever a tensor lies.
uint32_t alignment_of(const void* address) {
  const auto bits = reinterpret_cast<uintptr_t>(address) | 16;
  return static_cast<uint32_t>(bits & -bits);
}

}  // namespace

CublasLt::Library::Library() {
  const SharedLibrary so("libcublasLt.so.13");
  so.bind(create, "cublasLtCreate");
  so.bind(destroy, "cublasLtDestroy");
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
}

CublasLt::Key::Key(const Gemm& g)
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

CublasLt::CublasLt(void* workspace, int64_t bytes)
    : workspace_(workspace), workspace_bytes_(bytes) {
  CUBLAS_CHECK(lib_.create(&handle_));
}

CublasLt::~CublasLt() {
  for (const auto& [key, plan] : plans_) {
    lib_.desc_destroy(plan.desc);
    for (cublasLtMatrixLayout_t made : {plan.a, plan.b, plan.from, plan.c})
      lib_.layout_destroy(made);
  }
  lib_.destroy(handle_);
}

void CublasLt::gemm(const Gemm& g, cudaStream_t stream) {
  const Plan& plan = plan_for(g);
  if (g.bias) set(plan.desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, g.bias);
  const float one = 1;
  // The library is column-major: C^T = op(B)^T op(A)^T.
  CUBLAS_CHECK(lib_.matmul(handle_, plan.desc, &one, g.B, plan.a, g.A, plan.b, &g.beta,
                           g.from ? g.from : g.C, plan.from, g.C, plan.c, &plan.algorithm,
                           workspace_, workspace_bytes_, stream));
}

const CublasLt::Plan& CublasLt::plan_for(const Gemm& g) {
  const Key key(g);
  if (const auto it = plans_.find(key); it != plans_.end()) return it->second;
  return plans_[key] = make_plan(g, key);
}

cublasLtMatrixLayout_t CublasLt::layout(Dtype dtype, bool transposed, int64_t rows, int64_t columns,
                                        int64_t ld) {
  cublasLtMatrixLayout_t made = nullptr;
  if (transposed) std::swap(rows, columns);
  CUBLAS_CHECK(lib_.layout_create(&made, type_of(dtype), columns, rows, ld));
  return made;
}

template <class T>
void CublasLt::set(cublasLtMatmulDesc_t desc, cublasLtMatmulDescAttributes_t attribute, T value) {
  CUBLAS_CHECK(lib_.desc_set(desc, attribute, &value, sizeof value));
}

CublasLt::Plan CublasLt::make_plan(const Gemm& g, const Key& key) {
  Plan plan;
  CUBLAS_CHECK(lib_.desc_create(&plan.desc, CUBLAS_COMPUTE_32F, CUDA_R_32F));
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

void CublasLt::choose_algorithm(const Gemm& g, const Key& key, Plan& plan) {
  cublasLtMatmulPreference_t preference = nullptr;
  CUBLAS_CHECK(lib_.preference_create(&preference));
  const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t attribute, auto value) {
    CUBLAS_CHECK(lib_.preference_set(preference, attribute, &value, sizeof value));
  };
  prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, static_cast<uint64_t>(workspace_bytes_));
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, key.align_b);
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, key.align_a);
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, key.align_from);
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, key.align_c);
  cublasLtMatmulHeuristicResult_t best{};
  int found = 0;
  CUBLAS_CHECK(lib_.heuristic(handle_, plan.desc, plan.a, plan.b, plan.from, plan.c, preference, 1,
                              &best, &found));
  lib_.preference_destroy(preference);
  if (found == 0)
    fail(Kind::resource, "cublasLt: no algorithm for [{}, {}] x [{}, {}]", g.M, g.K, g.K, g.N);
  plan.algorithm = best.algo;
}

}  // namespace sft::cuda
