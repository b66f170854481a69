// LSTM layers by cuDNN (9; bf16 since 9.13), which is opened when one of these is made.
//
// Part of the native Runtime: nothing else includes this.
#pragma once

#include <cuda_runtime.h>
#include <cudnn.h>

#include <map>
#include <memory>
#include <span>
#include <string>

#include "engine/cuda/lstm_pass.h"

namespace sft::cuda {

class CudnnLstms {
 public:
  // A library that is not there, or fails, here and below: Kind::resource.
  explicit CudnnLstms(cudaStream_t stream);
  ~CudnnLstms();
  CudnnLstms(const CudnnLstms&) = delete;

  std::string name() const;
  std::shared_ptr<const LstmPlan> plan(const LstmShape& shape, std::span<const int32_t> starts);
  void run(const LstmPass& pass);

 private:
  struct Layer;
  struct Plan;

  cudnnHandle_t handle_ = nullptr;
  std::map<LstmShape, std::shared_ptr<const Layer>> layers_;
};

}  // namespace sft::cuda
