// cuDNN, opened when it is first asked for: its own calls, not its graphs. Those about convolutions
// are for sft-bench's yardstick.
//
// Native programs alone include this.
#pragma once

#include <cudnn.h>

#include <functional>
#include <string>
#include <vector>

#include "engine/cuda/shared_library.h"
#include "engine/tensor.h"

#define CUDNN_CHECK(call)                                                    \
  do {                                                                       \
    if (const cudnnStatus_t status = (call); status != CUDNN_STATUS_SUCCESS) \
      ::sft::fail(::sft::Kind::resource, "cuDNN: {}: {}", #call,             \
                  ::sft::cuda::cudnn().error_string(status));                \
  } while (false)

namespace sft::cuda {

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
  X(rnn_weight_bytes, cudnnGetRNNWeightSpaceSize)           \
  X(rnn_weight_place, cudnnGetRNNWeightParams)              \
  X(rnn_memory_bytes, cudnnGetRNNTempSpaceSizes)            \
  X(rnn_forward, cudnnRNNForward)                           \
  X(rnn_backward_data, cudnnRNNBackwardData_v8)             \
  X(rnn_backward_weights, cudnnRNNBackwardWeights_v8)       \
  X(create_backend, cudnnBackendCreateDescriptor)           \
  X(destroy_backend, cudnnBackendDestroyDescriptor)         \
  X(set_backend, cudnnBackendSetAttribute)                  \
  X(get_backend, cudnnBackendGetAttribute)                  \
  X(finish_backend, cudnnBackendFinalize)                   \
  X(execute_backend, cudnnBackendExecute)
#define SFT_DECLARE(member, function) decltype(&function) member;
  SFT_CUDNN(SFT_DECLARE)
#undef SFT_DECLARE

  Cudnn() {
    const SharedLibrary so("libcudnn.so.9");
#define SFT_BIND(member, function) so.bind(member, #function);
    SFT_CUDNN(SFT_BIND)
#undef SFT_BIND
  }
#undef SFT_CUDNN

  std::string name() const {
    const size_t n = version();
    return fmt::format("cuDNN {}.{}.{}", n / 10000, n / 100 % 100, n % 100);
  }
};

inline const Cudnn& cudnn() {
  static const Cudnn library;
  return library;
}

inline cudnnDataType_t cudnn_type(Dtype dtype) {
  return dtype == Dtype::bf16 ? CUDNN_DATA_BFLOAT16 : CUDNN_DATA_FLOAT;
}

// Descriptors, destroyed with their owner.
class CudnnDescriptors {
 public:
  CudnnDescriptors() = default;
  CudnnDescriptors(const CudnnDescriptors&) = delete;
  ~CudnnDescriptors() {
    for (auto undo = undo_.rbegin(); undo != undo_.rend(); ++undo) (*undo)();
  }
  template <class T>
  T make(cudnnStatus_t (*create)(T*), cudnnStatus_t (*destroy)(T)) {
    T made = nullptr;
    CUDNN_CHECK(create(&made));
    undo_.push_back([destroy, made] { destroy(made); });
    return made;
  }

 private:
  std::vector<std::function<void()>> undo_;
};

}  // namespace sft::cuda
