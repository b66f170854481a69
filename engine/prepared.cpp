#include "engine/prepared.h"

#include <sys/mman.h>

#include <cstdlib>

#include "engine/cuda/runtime.h"

namespace sft {

void Prepared::add_parameters(const void* begin, int64_t bytes) {
  const char* first = static_cast<const char*>(begin);
  parameters_.push_back({first, first + bytes});
}

void Prepared::weights_changed(const void* begin, int64_t bytes) {
  const char* first = static_cast<const char*>(begin);
  for (size_t i = 0; i < forms_.size(); ++i) {
    Form& form = forms_[i];
    const char* weight = static_cast<const char*>(form.weight);
    if (weight < first || weight >= first + bytes || !form.current) continue;
    form.current = false;
    weights_changed(form.memory.get(), form.bytes);  // forms made of this form
  }
}

bool Prepared::owns(const void* weight) const {
  const char* p = static_cast<const char*>(weight);
  for (const Range& range : parameters_)
    if (p >= range.begin && p < range.end) return true;
  for (const Form& form : forms_)
    if (p >= form.memory.get() && p < form.memory.get() + form.bytes) return true;
  return false;
}

char* Prepared::allocate(int64_t bytes) const {
  if (gpu_) return static_cast<char*>(gpu_->allocate(bytes));
  // Panels of megabytes are read over and over: in pages of 4 KB their addresses would not fit the
  // processor's tables.
  constexpr int64_t kHuge = 2 << 20;
  void* memory = std::aligned_alloc(bytes < kHuge ? 64 : kHuge, (bytes + 63) / 64 * 64);
  if (!memory) fail(Kind::resource, "out of memory: {} bytes for a derived weight", bytes);
  if (bytes >= kHuge) madvise(memory, bytes / kHuge * kHuge, MADV_HUGEPAGE);
  return static_cast<char*>(memory);
}

std::pair<const void*, int64_t> Prepared::added_with(const void* weight) const {
  const char* p = static_cast<const char*>(weight);
  for (const Range& range : parameters_)
    if (p >= range.begin && p < range.end) return {range.begin, range.end - range.begin};
  return {weight, 0};
}

Prepared::Form* Prepared::find(const void* weight, uint32_t kind) {
  for (Form& form : forms_)
    if (form.weight == weight && form.kind == kind) return &form;
  return nullptr;
}

Prepared::Form& Prepared::form(const void* weight, uint32_t kind, int64_t bytes) {
  for (Form& form : forms_)
    if (form.weight == weight && form.kind == kind && form.bytes == bytes) return form;
  const auto release = [gpu = gpu_](char* p) {
    if (gpu)
      gpu->release(p);
    else
      std::free(p);
  };
  forms_.push_back({weight, kind, bytes, {allocate(bytes), release}, false});
  bytes_ += bytes;
  return forms_.back();
}

}  // namespace sft
