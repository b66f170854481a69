#include "engine/cuda/commands.h"

#include <algorithm>
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

void mix(Mix& m, const Kernel& k) { m(k.call.function); }
void mix(Mix& m, const Gemm& g) {
  m(g.transpose_a, g.transpose_b, g.M, g.N, g.K, g.A, g.lda, g.B, g.ldb, static_cast<int>(g.in));
  m(std::bit_cast<uint32_t>(g.beta), g.from, g.ldfrom, g.bias, g.C, g.ldc, static_cast<int>(g.out));
}
void mix(Mix&, const auto&) {}  // all of it can change

bool same(const Kernel& a, const Kernel& b) { return a.call.function == b.call.function; }
bool same(Gemm a, const Gemm& b) { return a.padding = b.padding, a == b; }
bool same(const auto&, const auto&) { return true; }

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

bool Commands::same_structure(const Commands& other) const {
  return std::ranges::equal(list_, other.list_, [](const Command& a, const Command& b) {
    return a.index() == b.index() &&
           std::visit([&]<class C>(const C& c) { return same(c, std::get<C>(b)); }, a);
  });
}

bool Commands::take_values(const Commands& from, size_t i) {
  if (auto* kernel = std::get_if<Kernel>(&list_[i]))
    return take(*kernel, from, std::get<Kernel>(from.list_[i]));
  const bool other = list_[i] != from.list_[i];
  list_[i] = from.list_[i];
  return other;
}

bool Commands::take(Kernel& ours, const Commands& from, const Kernel& theirs) {
  int64_t bytes = 0;
  for (int p = 0; p < ours.call.params; ++p) bytes += aligned(ours.call.sizes[p]);
  std::byte* to = bytes_.data() + ours.begin;
  const std::byte* values = from.bytes_.data() + theirs.begin;
  if (ours == theirs && std::memcmp(to, values, bytes) == 0) return false;
  ours.call = theirs.call;
  std::memcpy(to, values, bytes);
  return true;
}

}  // namespace sft::cuda
