#include "engine/cuda/cublaslt.h"

#include <bit>
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

// "Trivially serialized and restored with the same version of the library", says its manual.
static_assert(sizeof(cublasLtMatmulAlgo_t) == sizeof(GemmAlgorithm));

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
  so.bind(check, "cublasLtMatmulAlgoCheck");
  so.bind(version, "cublasLtGetVersion");
}

CublasLt::CublasLt(std::string device, void* workspace, int64_t bytes)
    : device_(std::move(device)), workspace_(workspace), workspace_bytes_(bytes) {
  CUBLAS_CHECK(lib_.create(&handle_));
}

CublasLt::~CublasLt() {
  for (const auto& [key, plan] : plans_) destroy(plan);
  lib_.destroy(handle_);
}

void CublasLt::destroy(const Plan& plan) {
  lib_.desc_destroy(plan.desc);
  for (cublasLtMatrixLayout_t made : {plan.a, plan.b, plan.from, plan.c}) lib_.layout_destroy(made);
}

void CublasLt::gemm(const Gemm& g, cudaStream_t stream) {
  const Plan& plan = plan_for(GemmKey(g));
  if (g.bias) set(plan.desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, g.bias);
  const float one = 1;
  // The library is column-major: C^T = op(B)^T op(A)^T.
  CUBLAS_CHECK(lib_.matmul(handle_, plan.desc, &one, g.B, plan.a, g.A, plan.b, &g.beta,
                           g.from ? g.from : g.C, plan.from, g.C, plan.c, &plan.algorithm,
                           workspace_, workspace_bytes_, stream));
}

GemmChoices CublasLt::choices() const {
  GemmChoices made{fmt::format("cublasLt {} on {}", lib_.version(), device_), {}};
  for (const auto& [key, plan] : plans_)
    made.algorithms[key] = std::bit_cast<GemmAlgorithm>(plan.algorithm);
  return made;
}

int64_t CublasLt::use(const GemmChoices& recorded) {
  int64_t refused = 0;
  const bool ours = recorded.by == choices().by;
  for (const auto& [key, algorithm] : recorded.algorithms) {
    if (!ours || plans_.contains(key)) {
      refused += !ours;
      continue;
    }
    Plan plan = make_plan(key);
    plan.algorithm = std::bit_cast<cublasLtMatmulAlgo_t>(algorithm);
    if (accepts(plan))
      plans_[key] = plan;
    else
      destroy(plan), ++refused;
  }
  return refused;
}

const CublasLt::Plan& CublasLt::plan_for(const GemmKey& key) {
  if (const auto it = plans_.find(key); it != plans_.end()) return it->second;
  Plan plan = make_plan(key);
  choose_algorithm(key, plan);
  return plans_[key] = plan;
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

CublasLt::Plan CublasLt::make_plan(const GemmKey& key) {
  Plan plan;
  CUBLAS_CHECK(lib_.desc_create(&plan.desc, CUBLAS_COMPUTE_32F, CUDA_R_32F));
  const auto operation = [](bool transposed) { return transposed ? CUBLAS_OP_T : CUBLAS_OP_N; };
  set(plan.desc, CUBLASLT_MATMUL_DESC_TRANSA, operation(key.transpose_b));
  set(plan.desc, CUBLASLT_MATMUL_DESC_TRANSB, operation(key.transpose_a));
  if (key.bias) {
    set(plan.desc, CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
    // an address of that alignment; gemm gives the product's own
    set(plan.desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, uintptr_t{key.align_bias});
    set(plan.desc, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, type_of(key.out));
  }
  plan.a = layout(key.in, key.transpose_b, key.K, key.N, key.ldb);
  plan.b = layout(key.in, key.transpose_a, key.M, key.K, key.lda);
  plan.from = layout(key.out, false, key.M, key.N, key.ldfrom);
  plan.c = layout(key.out, false, key.M, key.N, key.ldc);
  return plan;
}

bool CublasLt::accepts(const Plan& plan) {
  cublasLtMatmulHeuristicResult_t result{};
  return lib_.check(handle_, plan.desc, plan.a, plan.b, plan.from, plan.c, &plan.algorithm,
                    &result) == CUBLAS_STATUS_SUCCESS &&
         result.workspaceSize <= static_cast<size_t>(workspace_bytes_);
}

void CublasLt::choose_algorithm(const GemmKey& key, Plan& plan) {
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
    fail(Kind::resource, "cublasLt: no algorithm for [{}, {}] x [{}, {}]", key.M, key.K, key.K,
         key.N);
  plan.algorithm = best.algo;
}

}  // namespace sft::cuda
