// Matrix products by cuBLASLt, which is opened when one of these is made. What a product costs the
// host the first time (descriptors, the choice of an algorithm) is kept as a plan for its next.
//
// Part of the native Runtime: nothing else includes this.
#pragma once

#include <cublasLt.h>

#include <map>

#include "engine/cuda/runtime.h"

namespace sft::cuda {

class CublasLt {
 public:
  // The workspace, device memory, is lent; products on one stream share it. A library that is not
  // there, or fails: Kind::resource.
  CublasLt(void* workspace, int64_t bytes);
  ~CublasLt();

  // M, N and K above 0.
  void gemm(const Gemm& product, cudaStream_t stream);

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
    Library();
  };
  // Everything about a product but its addresses, of which the alignment.
  struct Key {
    bool transpose_a, transpose_b, bias;
    int64_t M, N, K, lda, ldb, ldc, ldfrom;
    Dtype in, out;
    uint32_t align_a, align_b, align_c, align_from, align_bias;
    explicit Key(const Gemm& product);
    auto operator<=>(const Key&) const = default;
  };
  struct Plan {
    cublasLtMatmulDesc_t desc = nullptr;
    cublasLtMatrixLayout_t a = nullptr, b = nullptr, from = nullptr, c = nullptr;
    cublasLtMatmulAlgo_t algorithm{};
  };

  const Plan& plan_for(const Gemm& g);
  Plan make_plan(const Gemm& g, const Key& key);
  void choose_algorithm(const Gemm& g, const Key& key, Plan& plan);
  cublasLtMatrixLayout_t layout(Dtype dtype, bool transposed, int64_t rows, int64_t columns,
                                int64_t ld);
  template <class T>
  void set(cublasLtMatmulDesc_t desc, cublasLtMatmulDescAttributes_t attribute, T value);

  Library lib_;
  cublasLtHandle_t handle_ = nullptr;
  void* workspace_;
  int64_t workspace_bytes_;
  std::map<Key, Plan> plans_;
};

}  // namespace sft::cuda
