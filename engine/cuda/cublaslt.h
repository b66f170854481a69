// Matrix products by cuBLASLt, which is opened when one of these is made. What a product costs the
// host the first time (descriptors, the choice of an algorithm) is kept as a plan for its next.
//
// Part of the native Runtime: nothing else includes this.
#pragma once

#include <cublasLt.h>

#include <map>
#include <string>

#include "engine/cuda/gemm_choices.h"
#include "engine/cuda/runtime.h"

namespace sft::cuda {

class CublasLt {
 public:
  // The workspace, device memory, is lent; products on one stream share it. A library that is not
  // there, or fails: Kind::resource.
  CublasLt(std::string device, void* workspace, int64_t bytes);
  ~CublasLt();

  // M, N and K above 0.
  void gemm(const Gemm& product, cudaStream_t stream);

  GemmChoices choices() const;
  int64_t use(const GemmChoices& recorded);  // as Runtime::use_gemm_choices

 private:
  struct Library {
    decltype(&cublasLtCreate) create;
    decltype(&cublasLtDestroy) destroy;
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
    decltype(&cublasLtMatmulAlgoCheck) check;
    decltype(&cublasLtGetVersion) version;
    Library();
  };
  struct Plan {
    cublasLtMatmulDesc_t desc = nullptr;
    cublasLtMatrixLayout_t a = nullptr, b = nullptr, from = nullptr, c = nullptr;
    cublasLtMatmulAlgo_t algorithm{};
  };

  const Plan& plan_for(const GemmKey& key);
  Plan make_plan(const GemmKey& key);
  void destroy(const Plan& plan);
  void choose_algorithm(const GemmKey& key, Plan& plan);
  bool accepts(const Plan& plan);
  cublasLtMatrixLayout_t layout(Dtype dtype, bool transposed, int64_t rows, int64_t columns,
                                int64_t ld);
  template <class T>
  void set(cublasLtMatmulDesc_t desc, cublasLtMatmulDescAttributes_t attribute, T value);

  std::string device_;
  Library lib_;
  cublasLtHandle_t handle_ = nullptr;
  void* workspace_;
  int64_t workspace_bytes_;
  std::map<GemmKey, Plan> plans_;
};

}  // namespace sft::cuda
