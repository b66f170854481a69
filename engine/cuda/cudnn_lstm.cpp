#include "engine/cuda/cudnn_lstm.h"

#include "engine/cuda/cudnn_library.h"

namespace sft::cuda {

// All that does not depend on the utterances.
struct CudnnLstms::Layer {
  CudnnDescriptors descriptors;
  cudnnRNNDescriptor_t rnn;
  size_t weight_bytes = 0;
  decltype(LstmPlan::places) places;

  Layer(cudnnHandle_t handle, const LstmShape& shape) {
    const auto dropout = descriptors.make(cudnn().create_dropout, cudnn().destroy_dropout);
    CUDNN_CHECK(cudnn().set_dropout(dropout, handle, 0, nullptr, 0, 0));
    rnn = descriptors.make(cudnn().create_rnn, cudnn().destroy_rnn);
    const auto inputs = static_cast<int>(shape.inputs), units = static_cast<int>(shape.units);
    // FMA: f32 without TF32.
    CUDNN_CHECK(cudnn().set_rnn(rnn, CUDNN_RNN_ALGO_STANDARD, CUDNN_LSTM, CUDNN_RNN_DOUBLE_BIAS,
                                shape.directions == 2 ? CUDNN_BIDIRECTIONAL : CUDNN_UNIDIRECTIONAL,
                                CUDNN_LINEAR_INPUT, cudnn_type(shape.type), CUDNN_DATA_FLOAT,
                                shape.type == Dtype::bf16 ? CUDNN_TENSOR_OP_MATH : CUDNN_FMA_MATH,
                                inputs, units, units, 1, dropout, CUDNN_RNN_PADDED_IO_ENABLED));
    CUDNN_CHECK(cudnn().rnn_weight_bytes(handle, rnn, &weight_bytes));
    find_places(handle, shape);
  }

  // cuDNN says where each part lies in weights that are there, so there are some.
  void find_places(cudnnHandle_t handle, const LstmShape& shape) {
    void* memory = nullptr;
    if (cudaMalloc(&memory, weight_bytes) != cudaSuccess)
      fail(Kind::resource, "cuda: no memory for {} bytes of weights", weight_bytes);
    const std::unique_ptr<void, decltype(&cudaFree)> freed(memory, &cudaFree);
    const auto tensor = [&] {
      return descriptors.make(cudnn().create_tensor, cudnn().destroy_tensor);
    };
    const cudnnTensorDescriptor_t matrix_shape = tensor(), bias_shape = tensor();
    const auto elements = [&](void* part) {
      return (static_cast<char*>(part) - static_cast<char*>(memory)) / bytes_of(shape.type, 1);
    };
    for (int direction = 0; direction < shape.directions; ++direction)
      for (int part = 0; part < 8; ++part) {  // 0 to 3 of the input, 4 to 7 of h: i, f, g, o
        void *matrix = nullptr, *bias = nullptr;
        CUDNN_CHECK(cudnn().rnn_weight_place(handle, rnn, direction, weight_bytes, memory, part,
                                             matrix_shape, &matrix, bias_shape, &bias));
        places[direction][part] = {elements(matrix), elements(bias)};
      }
  }
};

struct CudnnLstms::Plan final : LstmPlan {
  std::shared_ptr<const Layer> layer;
  CudnnDescriptors descriptors;
  cudnnRNNDataDescriptor_t x, y;
  cudnnTensorDescriptor_t state;  // of h and c, which are zero before the first frame

  Plan(cudnnHandle_t handle, std::shared_ptr<const Layer> of, const LstmShape& shape,
       std::span<const int32_t> starts)
      : LstmPlan(shape, {starts.begin(), starts.end()}), layer(std::move(of)) {
    x = matrix(shape.inputs), y = matrix(shape.directions * shape.units);
    state = descriptors.make(cudnn().create_tensor, cudnn().destroy_tensor);
    const auto D = static_cast<int>(shape.directions), B = static_cast<int>(batch()),
               H = static_cast<int>(shape.units);
    const int dims[] = {D, B, H}, strides[] = {B * H, H, 1};
    CUDNN_CHECK(cudnn().set_tensor_nd(state, cudnn_type(shape.type), 3, dims, strides));
    size_t work = 0, saved = 0;
    CUDNN_CHECK(
        cudnn().rnn_memory_bytes(handle, layer->rnn, CUDNN_FWD_MODE_TRAINING, x, &work, &saved));
    places = layer->places;
    weight_bytes = static_cast<int64_t>(layer->weight_bytes);
    work_bytes = static_cast<int64_t>(work), saved_bytes = static_cast<int64_t>(saved);
  }

  cudnnRNNDataDescriptor_t matrix(int64_t width) {
    const auto made = descriptors.make(cudnn().create_rnn_data, cudnn().destroy_rnn_data);
    std::vector<int> lengths(batch());
    for (int64_t b = 0; b < batch(); ++b) lengths[b] = length(b);
    float zero = 0;  // in either type
    CUDNN_CHECK(cudnn().set_rnn_data(
        made, cudnn_type(shape.type), CUDNN_RNN_DATA_LAYOUT_SEQ_MAJOR_UNPACKED, longest(),
        static_cast<int>(batch()), static_cast<int>(width), lengths.data(), &zero));
    return made;
  }
};

CudnnLstms::CudnnLstms(cudaStream_t stream) {
  CUDNN_CHECK(cudnn().create(&handle_));
  CUDNN_CHECK(cudnn().set_stream(handle_, stream));
}

CudnnLstms::~CudnnLstms() { cudnn().destroy(handle_); }

std::string CudnnLstms::name() const { return cudnn().name(); }

std::shared_ptr<const LstmPlan> CudnnLstms::plan(const LstmShape& shape,
                                                 std::span<const int32_t> starts) {
  std::shared_ptr<const Layer>& layer = layers_[shape];
  if (!layer) layer = std::make_shared<const Layer>(handle_, shape);
  return std::make_shared<const Plan>(handle_, layer, shape, starts);
}

// The lengths are known from the descriptors; h and c begin as zeros, and nobody wants the last.
void CudnnLstms::run(const LstmPass& pass) {
  const auto& p = static_cast<const Plan&>(*pass.plan);
  const auto weight_bytes = static_cast<size_t>(p.weight_bytes);
  const auto work_bytes = static_cast<size_t>(p.work_bytes);
  const auto saved_bytes = static_cast<size_t>(p.saved_bytes);
  const cudnnRNNDescriptor_t rnn = p.layer->rnn;
  if (!pass.dy) {
    CUDNN_CHECK(cudnn().rnn_forward(handle_, rnn, CUDNN_FWD_MODE_TRAINING, nullptr, p.x, pass.x,
                                    p.y, pass.y, p.state, nullptr, nullptr, p.state, nullptr,
                                    nullptr, weight_bytes, pass.weights, work_bytes, pass.work,
                                    saved_bytes, pass.saved));
    return;
  }
  CUDNN_CHECK(cudnn().rnn_backward_data(handle_, rnn, nullptr, p.y, pass.y, pass.dy, p.x, pass.dx,
                                        p.state, nullptr, nullptr, nullptr, p.state, nullptr,
                                        nullptr, nullptr, weight_bytes, pass.weights, work_bytes,
                                        pass.work, saved_bytes, pass.saved));
  if (pass.dweights)
    CUDNN_CHECK(cudnn().rnn_backward_weights(
        handle_, rnn, CUDNN_WGRAD_MODE_ADD, nullptr, p.x, pass.x, p.state, nullptr, p.y, pass.y,
        weight_bytes, pass.dweights, work_bytes, pass.work, saved_bytes, pass.saved));
}

}  // namespace sft::cuda
