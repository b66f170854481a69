// ParamStore: every parameter of a model, in one of two forms.
//
//   frozen     read-only views of the file it came from; converted to f32, or laid together, only
//              where that is needed
//   trainable  one flat f32 buffer per role: master (what the optimizer owns and a checkpoint
//   holds),
//              grad, and the two moments. A range is a stretch of these buffers that is released,
//              clipped, updated and saved together. Every parameter begins at a multiple of 16
//              bytes of its bf16 copy; between them are zeros
//
// A parameter is known by its name. What a model calls one parameter may be several named tensors
// that lie behind each other (q, k and v: one GEMM).
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/prepared.h"
#include "engine/tensor.h"

namespace sft {

constexpr int kParameter = -1;  // GradSlot::block of a parameter
constexpr int kTopLevel = 0;    // ... of a value made outside of any block

// A value's gradient. A parameter's lives in its store, everything else's on the tape.
struct GradSlot {
  Tensor to;             // empty until somebody asks for the gradient
  bool written = false;  // something is there: the next writer adds
  int block = kTopLevel;
};

// A value and where its gradient goes.
struct Var {
  Tensor value;
  GradSlot* slot = nullptr;  // null: a constant

  operator Tensor() const { return value; }
  const Shape& shape() const { return value.shape; }
  explicit operator bool() const { return static_cast<bool>(value); }  // an absent (optional) input
};

// Named tensors of any dtype, and what keeps their memory alive (a mapped file, a buffer).
struct TensorMap {
  std::map<std::string, Tensor, std::less<>> tensors;
  std::vector<std::shared_ptr<const void>> keep;

  Tensor find(std::string_view name) const;  // empty: not there
  void add_owned(const std::string& name, Shape shape, std::vector<float> values);
};

// One parameter as a model declares it.
struct ParamRequest {
  std::vector<std::string> names;  // stacked along dimension 0, all of the same shape
  Shape shape;                     // of the whole
  Var* out;                        // filled by the store
  bool product = false;            // read by products alone, which widen narrower types themselves
};

class ParamStore {
 public:
  // gpu: everything lies in its memory; named tensors are for device code, on_host() and write()
  // for the host.
  explicit ParamStore(cuda::Runtime* gpu = nullptr) : gpu_(gpu), prepared_(gpu) {}

  struct Named {
    std::string name;
    Tensor value;    // f32; that of a frozen product as the file has it
    int range = -1;  // -1: frozen
  };
  struct Range {
    std::string name;
    int64_t begin = 0, end = 0;  // elements of the flat buffers
    bool active = true;          // in the step at hand
    int64_t count() const { return end - begin; }
  };
  // The range that a parameter trains in, by its name; -1: frozen.
  using Placement = std::function<int(std::string_view name)>;

  // Binds all requests to tensors of these names (Kind::input if one is missing or has another
  // shape; `where` names the file). range_names: of placement's answers 0, 1, ... Without a
  // placement everything is frozen, and on the host products keep the type of the file.
  void bind(const std::vector<ParamRequest>& requests, const TensorMap& source,
            std::string_view where, const Placement& placement = {},
            std::vector<std::string> range_names = {});

  const std::vector<Named>& named() const { return named_; }
  const Named* find(std::string_view name) const;
  std::vector<Range>& ranges() { return ranges_; }
  const std::vector<Range>& ranges() const { return ranges_; }

  cuda::Runtime* gpu() const { return gpu_; }
  // A tensor of this store where the host can read it: itself, or a copy in `host`.
  Tensor on_host(Tensor tensor, Arena& host) const;
  void write(const void* from, Tensor tensor);  // the whole tensor, from host memory

  Tensor master() const { return master_; }    // [N]
  Tensor grad() const { return grad_; }        // [N]
  Tensor moment1() const { return moment1_; }  // [N]
  Tensor moment2() const { return moment2_; }  // [N]
  // [R] i64: updates that the moments of each range have seen.
  Tensor steps() const { return steps_; }
  Tensor steps(const Range& range) const { return steps_.slice(&range - ranges_.data(), 1); }
  Tensor part(Tensor flat, const Range& range) const {
    return flat.slice(range.begin, range.count());
  }

  // Parameters of ranges that are not active are constants of the step.
  void set_active(int range, bool active);
  // Before a step: nothing has been written yet.
  void forget_gradients();
  // Before the norm: what nothing wrote in this step is zero.
  void zero_unwritten();
  // Gradients of the ranges that are active.
  std::span<const Tensor> gradients() const { return gradients_; }
  void weights_changed(const Range& range);

  Prepared& prepared() { return prepared_; }
  int64_t bytes() const;  // of all buffers of its own, views of files not included

 private:
  struct Bound {
    ParamRequest request;
    int range;
    int64_t offset;  // in the flat buffers
    GradSlot slot;
  };
  Device device() const { return gpu_ ? Device::cuda : Device::cpu; }
  Tensor frozen_value(const ParamRequest& request, const TensorMap& source, bool as_stored);
  void write_parts(const ParamRequest& request, const TensorMap& source, Tensor value);
  void allocate(int64_t count);
  void zero(Tensor tensor);

  cuda::Runtime* gpu_;
  std::deque<Bound> bound_;
  std::vector<Named> named_;
  std::vector<Range> ranges_;
  std::vector<std::shared_ptr<const void>> keep_;
  std::unique_ptr<Arena> buffers_;
  Tensor master_, grad_, moment1_, moment2_, steps_;
  std::vector<Tensor> gradients_;
  int64_t own_bytes_ = 0;
  Prepared prepared_;
};

}  // namespace sft
