#include "engine/cuda/commands.h"

#include <bit>
#include <concepts>
#include <cstring>

#include "engine/cuda/driver.h"

namespace sft::cuda {
namespace {

constexpr int64_t aligned(int64_t bytes) { return (bytes + 15) / 16 * 16; }

// One word after the other, each bit of which reaches all bits above it.
class Mix {
 public:
  template <class... Words>
  void operator()(const Words&... words) {
    ((hash_ = (hash_ ^ word(words)) * 0x9E3779B97F4A7C15, hash_ ^= hash_ >> 32), ...);
  }
  uint64_t value() const { return hash_; }

 private:
  static uint64_t word(const void* address) { return reinterpret_cast<uintptr_t>(address); }
  static uint64_t word(std::integral auto number) { return static_cast<uint64_t>(number); }
  uint64_t hash_ = 0;
};

void mix(Mix& m, const Kernel& k) {
  const KernelCall& c = k.call;
  m(c.function, c.grid.x, c.grid.y, c.grid.z, c.block.x, c.block.y, c.block.z, c.shared_bytes);
}
void mix(Mix& m, const Gemm& g) {
  m(g.transpose_a, g.transpose_b, g.M, g.N, g.K, g.A, g.lda, g.B, g.ldb, static_cast<int>(g.in));
  m(std::bit_cast<uint32_t>(g.beta), g.from, g.ldfrom, g.bias, g.C, g.ldc, static_cast<int>(g.out));
}
void mix(Mix& m, const Fill& f) { m(f.to, f.byte, f.bytes); }
void mix(Mix& m, const Copy& c) { m(c.to, c.from, c.bytes); }
void mix(Mix& m, const Upload& u) { m(u.to, u.bytes); }
void mix(Mix& m, const LstmPass& p) {
  m(p.plan.get(), p.weights, p.x, p.y, p.work, p.saved, p.dy, p.dx, p.dweights);
}

}  // namespace

void Commands::add(const KernelCall& call) {
  Kernel kernel{call, static_cast<int64_t>(bytes_.size())};
  kernel.call.args = nullptr;
  int64_t end = kernel.begin;
  for (int i = 0; i < call.params; ++i) end += aligned(call.sizes[i]);
  bytes_.resize(end);
  std::byte* to = bytes_.data() + kernel.begin;
  for (int i = 0; i < call.params; ++i) {
    std::memcpy(to, call.args[i], call.sizes[i]);
    to += aligned(call.sizes[i]);
  }
  list_.push_back(kernel);
}

KernelCall Commands::call(const Kernel& kernel, Args& args) const {
  KernelCall call = kernel.call;
  const std::byte* at = bytes_.data() + kernel.begin;
  for (int i = 0; i < call.params; ++i) {
    args[i] = const_cast<std::byte*>(at);
    at += aligned(call.sizes[i]);
  }
  call.args = args.data();
  return call;
}

uint64_t Commands::structure() const {
  Mix m;
  for (const Command& command : list_) {
    m(command.index());
    std::visit([&](const auto& c) { mix(m, c); }, command);
  }
  return m.value();
}

void run(Driver& driver, const Commands& commands, size_t i) {
  if (const auto* kernel = std::get_if<Kernel>(&commands[i])) {
    Commands::Args args;
    driver.run(commands.call(*kernel, args));
    return;
  }
  std::visit(
      [&](const auto& command) {
        if constexpr (!std::is_same_v<std::decay_t<decltype(command)>, Kernel>) driver.run(command);
      },
      commands[i]);
}

bool Commands::take_values(const Commands& from, size_t i) {
  if (auto* upload = std::get_if<Upload>(&list_[i])) {
    const void* source = std::get<Upload>(from.list_[i]).from;
    const bool moved = upload->from != source;
    upload->from = source;
    return moved;
  }
  const auto* kernel = std::get_if<Kernel>(&list_[i]);
  if (!kernel) return false;
  int64_t bytes = 0;
  for (int p = 0; p < kernel->call.params; ++p) bytes += aligned(kernel->call.sizes[p]);
  std::byte* ours = bytes_.data() + kernel->begin;
  const std::byte* theirs = from.bytes_.data() + kernel->begin;
  if (std::memcmp(ours, theirs, bytes) == 0) return false;
  std::memcpy(ours, theirs, bytes);
  return true;
}

}  // namespace sft::cuda
