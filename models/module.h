// Modules are plain structs of parameters and other modules, with one list of children:
//
//   struct LayerNorm {
//     Param weight, bias;
//     template <class V> void visit(V&& v) { v("weight", weight); v("bias", bias); }
//   };
//
// The list serves initialisation, loading, counting, freezing, merging and saving alike. A module
// is made from a Config, which sets the shapes; a ParamStore then binds the values.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "autograd/tape.h"
#include "engine/formats/tensor_file.h"
#include "engine/params.h"

namespace sft {

struct Param {
  Shape shape;           // rank 0: this model has no such parameter
  Var var = {};          // bound by the store
  bool product = false;  // a matrix that products alone read: files may hold it in narrow types

  operator Var() const { return var; }
};

// Calls f(names, param) for every parameter there is; several names: tensors that lie behind each
// other and are one parameter of the model.
template <class F>
class ParamVisitor {
 public:
  ParamVisitor(std::string prefix, F& f) : prefix_(std::move(prefix)), f_(f) {}

  void operator()(std::string_view name, Param& param) {
    if (param.shape.rank()) f_(std::vector<std::string>{join(name)}, param);
  }
  void operator()(std::initializer_list<std::string_view> names, Param& param) {
    std::vector<std::string> joined;
    for (std::string_view name : names) joined.push_back(join(name));
    if (param.shape.rank()) f_(joined, param);
  }
  template <class M>
  void operator()(std::string_view name, std::vector<M>& modules) {
    for (size_t i = 0; i < modules.size(); ++i)
      modules[i].visit(ParamVisitor(join(std::string(name) + "." + std::to_string(i)), f_));
  }
  template <class M>
  void operator()(std::string_view name, M& module) {
    module.visit(ParamVisitor(join(name), f_));
  }

 private:
  std::string join(std::string_view name) const {
    return prefix_.empty() ? std::string(name) : prefix_ + "." + std::string(name);
  }
  std::string prefix_;
  F& f_;
};

template <class M, class F>
void for_each_param(M& module, F f) {
  module.visit(ParamVisitor<F>("", f));
}

template <class M>
std::vector<ParamRequest> param_requests(M& module) {
  std::vector<ParamRequest> requests;
  for_each_param(module, [&](const std::vector<std::string>& names, Param& param) {
    requests.push_back({names, param.shape, &param.var, param.product});
  });
  return requests;
}

// Names and shapes of a model's parameters, tensor by tensor; products in the type `products`,
// where its blocks fit their rows.
template <class M>
std::vector<TensorSpec> tensor_specs(M& module, Dtype products = Dtype::f32) {
  std::vector<TensorSpec> specs;
  for_each_param(module, [&](const std::vector<std::string>& names, Param& param) {
    std::vector<int64_t> dims(param.shape.dims().begin(), param.shape.dims().end());
    dims[0] /= static_cast<int64_t>(names.size());
    const bool fits = param.product && (products != Dtype::q8_0 || dims.back() % 32 == 0);
    for (const std::string& name : names)
      specs.push_back({name, Shape(std::span<const int64_t>(dims)), fits ? products : Dtype::f32});
  });
  return specs;
}

}  // namespace sft
