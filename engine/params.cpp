#include "engine/params.h"

#include <algorithm>
#include <cstring>

#include "engine/cuda/runtime.h"
#include "engine/formats/numbers.h"

namespace sft {

Tensor TensorMap::find(std::string_view name) const {
  const auto it = tensors.find(name);
  return it == tensors.end() ? Tensor() : it->second;
}

void TensorMap::add_owned(const std::string& name, Shape shape, std::vector<float> values) {
  auto owned = std::make_shared<std::vector<float>>(std::move(values));
  tensors[name] = Tensor(owned->data(), shape);
  keep.push_back(std::move(owned));
}

namespace {

constexpr int64_t kAligned = 8;  // elements

Shape part_shape(const ParamRequest& request) {
  std::vector<int64_t> dims(request.shape.dims().begin(), request.shape.dims().end());
  const auto parts = static_cast<int64_t>(request.names.size());
  CHECK(dims[0] % parts == 0, "{}: {} is not {} parts", request.names[0], request.shape, parts);
  dims[0] /= parts;
  return Shape(std::span<const int64_t>(dims));
}

void check_source(const ParamRequest& request, const TensorMap& source, std::string_view where) {
  const Shape part = part_shape(request);
  for (const std::string& name : request.names) {
    const Tensor t = source.find(name);
    if (!t.data && t.shape.rank() == 0)
      fail(Kind::input, "{}: tensor {} is missing (expected {})", where, name, part);
    if (t.shape != part)
      fail(Kind::input, "{}: tensor {} is {} (expected {})", where, name, t.shape, part);
  }
}

// The type that the parts have in common; f32 if they differ.
Dtype type_of(const ParamRequest& request, const TensorMap& source) {
  const Dtype first = source.find(request.names[0]).dtype;
  for (const std::string& name : request.names)
    if (source.find(name).dtype != first) return Dtype::f32;
  return first;
}

// The parts lie behind each other in this type: they are one tensor already.
bool contiguous(const ParamRequest& request, const TensorMap& source, Dtype dtype) {
  const char* next = nullptr;
  for (const std::string& name : request.names) {
    const Tensor t = source.find(name);
    if (t.dtype != dtype || reinterpret_cast<uintptr_t>(t.data) % 4 != 0) return false;
    if (next && next != t.data) return false;
    next = static_cast<const char*>(t.data) + t.bytes();
  }
  return true;
}

void copy_parts(const ParamRequest& request, const TensorMap& source, float* to) {
  for (const std::string& name : request.names) {
    const Tensor t = source.find(name);
    to_f32(t.dtype, static_cast<const std::byte*>(t.data), to, t.count());
    to += t.count();
  }
}

void copy_bytes(const ParamRequest& request, const TensorMap& source, Tensor to) {
  auto* next = static_cast<std::byte*>(to.data);
  for (const std::string& name : request.names) {
    const Tensor t = source.find(name);
    std::memcpy(next, t.data, t.bytes());
    next += t.bytes();
  }
}

}  // namespace

Tensor ParamStore::frozen_value(const ParamRequest& request, const TensorMap& source,
                                bool as_stored) {
  const Tensor first = source.find(request.names[0]);
  const Dtype stored = type_of(request, source);
  const bool narrow = stored == Dtype::f16 || stored == Dtype::bf16 || stored == Dtype::q8_0;
  const Dtype dtype = as_stored && narrow ? stored : Dtype::f32;
  if (!gpu_ && contiguous(request, source, dtype)) return Tensor(first.data, request.shape, dtype);
  const int64_t bytes = bytes_of(dtype, request.shape.count());
  auto own = std::make_shared<Arena>(std::max<int64_t>((bytes + 63) / 64 * 64, 4096), false, gpu_);
  const Tensor value(own->take(bytes), request.shape, dtype, device());
  write_parts(request, source, value);
  keep_.push_back(own);
  own_bytes_ += bytes;
  return value;
}

void ParamStore::write_parts(const ParamRequest& request, const TensorMap& source, Tensor value) {
  if (value.dtype != Dtype::f32) return copy_bytes(request, source, value);
  if (!gpu_) return copy_parts(request, source, value.f32());
  std::vector<float> host(value.count());
  copy_parts(request, source, host.data());
  write(host.data(), value);
}

Tensor ParamStore::on_host(Tensor tensor, Arena& host) const {
  if (!gpu_) return tensor;
  const Tensor copy(host.take(tensor.bytes()), tensor.shape, tensor.dtype);
  gpu_->download(copy.data, tensor.data, tensor.bytes());
  return copy;
}

void ParamStore::write(const void* from, Tensor tensor) {
  if (gpu_)
    gpu_->upload(tensor.data, from, tensor.bytes());
  else
    std::memcpy(tensor.data, from, tensor.bytes());
}

void ParamStore::zero(Tensor tensor) {
  if (gpu_)
    gpu_->fill(tensor.data, 0, tensor.bytes());
  else
    std::memset(tensor.data, 0, tensor.bytes());
}

void ParamStore::allocate(int64_t count) {
  const int64_t bytes = (count * static_cast<int64_t>(sizeof(float)) + 63) / 64 * 64;
  const auto ranges = static_cast<int64_t>(ranges_.size());
  buffers_ = std::make_unique<Arena>(4 * bytes + 4096, false, gpu_);
  for (Tensor* flat : {&master_, &grad_, &moment1_, &moment2_}) *flat = buffers_->tensor({count});
  steps_ = buffers_->tensor({ranges}, Dtype::i64);
  if (gpu_)  // fresh pages of the host are zero
    for (const Tensor& flat : {master_, grad_, moment1_, moment2_, steps_}) zero(flat);
  own_bytes_ += 4 * bytes + 4096;
}

void ParamStore::bind(const std::vector<ParamRequest>& requests, const TensorMap& source,
                      std::string_view where, const Placement& placement,
                      std::vector<std::string> range_names) {
  CHECK(bound_.empty(), "a store is bound once");
  for (const ParamRequest& request : requests) {
    check_source(request, source, where);
    const int range = placement ? placement(request.names[0]) : -1;
    CHECK(range < static_cast<int>(range_names.size()), "{}: range {}", request.names[0], range);
    bound_.push_back({request, range, 0, {.block = kParameter}});
  }
  int64_t count = 0;
  for (size_t r = 0; r < range_names.size(); ++r) {
    ranges_.push_back({range_names[r], count, count});
    for (Bound& bound : bound_) {
      if (bound.range != static_cast<int>(r)) continue;
      bound.offset = count;
      count += (bound.request.shape.count() + kAligned - 1) / kAligned * kAligned;
    }
    ranges_.back().end = count;
  }
  allocate(count);
  for (const Range& range : ranges_) {
    const Tensor weights = part(master_, range);
    prepared_.add_parameters(weights.data, weights.bytes());
    gradients_.push_back(part(grad_, range));
  }
  for (Bound& bound : bound_) {
    const ParamRequest& request = bound.request;
    Tensor value;
    if (bound.range < 0) {
      value = frozen_value(request, source, request.product && !placement && !gpu_);
      prepared_.add_parameters(value.data, value.bytes());
    } else {
      value = master_.slice(bound.offset, request.shape.count()).reshaped(request.shape);
      bound.slot.to = grad_.slice(bound.offset, request.shape.count()).reshaped(request.shape);
      write_parts(request, source, value);
    }
    *request.out = {value, bound.range < 0 ? nullptr : &bound.slot};
    const Shape part = part_shape(request);
    for (size_t i = 0; i < request.names.size(); ++i) {
      auto* data = static_cast<std::byte*>(value.data) +
                   bytes_of(value.dtype, static_cast<int64_t>(i) * part.count());
      named_.push_back({request.names[i], Tensor(data, part, value.dtype, device()), bound.range});
    }
  }
  keep_.insert(keep_.end(), source.keep.begin(), source.keep.end());
}

const ParamStore::Named* ParamStore::find(std::string_view name) const {
  for (const Named& named : named_)
    if (named.name == name) return &named;
  return nullptr;
}

void ParamStore::set_active(int range, bool active) {
  ranges_[range].active = active;
  gradients_.clear();
  for (const Range& each : ranges_)
    if (each.active) gradients_.push_back(part(grad_, each));
  for (Bound& bound : bound_)
    if (bound.range == range) bound.request.out->slot = active ? &bound.slot : nullptr;
}

void ParamStore::forget_gradients() {
  for (Bound& bound : bound_) bound.slot.written = false;
}

void ParamStore::zero_unwritten() {
  for (Bound& bound : bound_)
    if (bound.request.out->slot && !bound.slot.written) {
      zero(bound.slot.to);
      bound.slot.written = true;
    }
}

void ParamStore::weights_changed(const Range& range) {
  const Tensor changed = part(master_, range);
  prepared_.weights_changed(changed.data, changed.bytes());
}

int64_t ParamStore::bytes() const { return own_bytes_ + prepared_.bytes(); }

}  // namespace sft
