#include "engine/transfer.h"

#include <cstring>

#include "engine/formats/numbers.h"

namespace sft {

void zero(const Context& ctx, Tensor to) {
  if (ctx.dry) return;
  if (ctx.gpu)
    ctx.gpu->fill(to.data, 0, to.bytes());
  else
    std::memset(to.data, 0, to.bytes());
}

void write(const Context& ctx, const void* from, Tensor to) {
  if (ctx.dry) return;
  if (ctx.gpu)
    ctx.gpu->upload(to.data, from, to.bytes());
  else
    std::memcpy(to.data, from, to.bytes());
}

void read(const Context& ctx, Tensor from, void* to) {
  if (ctx.dry) return;
  CHECK(from.dense(), "read: rows of {} are {} apart", from.shape, from.row_stride);
  if (ctx.gpu)
    ctx.gpu->download(to, from.data, from.bytes());
  else
    std::memcpy(to, from.data, from.bytes());
}

void flush(const Context& ctx) {
  if (ctx.gpu && !ctx.dry) ctx.gpu->flush();
}

void copy(const Context& ctx, Tensor from, Tensor to) {
  CHECK(from.bytes() == to.bytes(), "copy: {} to {}", from.shape, to.shape);
  if (ctx.dry) return;
  if (ctx.gpu)
    ctx.gpu->copy(to.data, from.data, to.bytes());
  else
    std::memcpy(to.data, from.data, to.bytes());
}

cuda::Late late(const Context& ctx, Tensor from) {
  CHECK(from.bytes() <= cuda::Late::kBytes, "late: {} bytes", from.bytes());
  if (ctx.dry) return {};
  return ctx.gpu ? ctx.gpu->late(from.data, from.bytes()) : cuda::Late(from.data, from.bytes());
}

Tensor on_host(const Context& ctx, Tensor tensor, Arena& host) {
  if (!ctx.gpu) return tensor;
  const Tensor same(host.take(tensor.bytes()), tensor.shape, tensor.dtype);
  read(ctx, tensor, same.data);
  if (tensor.dtype == Dtype::f32) return same;
  const Tensor wide = host.tensor(tensor.shape);
  to_f32(tensor.dtype, static_cast<const std::byte*>(same.data), wide.f32(), tensor.count());
  return wide;
}

}  // namespace sft
