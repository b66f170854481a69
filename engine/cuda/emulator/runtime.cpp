// The emulator's Driver: device memory is host memory, everything happens at once, and a graph is a
// copy of its commands.
#include <array>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "engine/cpu/gemm.h"
#include "engine/cuda/driver.h"
#include "engine/cuda/emulator/emulator.h"
#include "engine/cuda/emulator/lost_device.h"
#include "engine/cuda/emulator/lstm_twin.h"
#include "engine/cuda/gemm_choices.h"
#include "engine/formats/numbers.h"

namespace sft::cuda {
namespace {

// Rows of a matrix as f32, dense.
std::vector<float> widened(const void* data, Dtype dtype, int64_t rows, int64_t columns,
                           int64_t ld) {
  std::vector<float> wide(rows * columns);
  const auto* bytes = static_cast<const std::byte*>(data);
  for (int64_t r = 0; r < rows; ++r)
    to_f32(dtype, bytes + bytes_of(dtype, r * ld), wide.data() + r * columns, columns);
  return wide;
}

void add_rows(const std::vector<float>& row, std::vector<float>& matrix) {
  for (size_t i = 0; i < matrix.size(); ++i) matrix[i] += row[i % row.size()];
}

// What its products are recorded with; algorithms with another first word are refused.
constexpr GemmAlgorithm kAlgorithm{0x656d756c61746564};

int64_t said_free = -1;      // by a test
int64_t commands_left = -1;  // until the device is lost; negative: for ever

void alive(const char* where) {
  if (commands_left == 0) device_lost(where, "lost by a test");
  if (commands_left > 0) --commands_left;
}

class CopiedCommands final : public Graph {
 public:
  CopiedCommands(Driver& driver, const Commands& commands, size_t begin, size_t end)
      : driver_(driver), commands_(commands), begin_(begin), end_(end) {}
  void patch(const Commands& commands, size_t i) override { commands_.take_values(commands, i); }
  void launch() override {
    for (size_t i = begin_; i < end_; ++i) cuda::run(driver_, commands_, i);
  }

 private:
  Driver& driver_;
  Commands commands_;  // of the whole step
  size_t begin_, end_;
};

// Behind the rows of dy there is nothing, and behind those of x anything finite.
void check_padding(const Gemm& g, const std::vector<float>& a, const std::vector<float>& b) {
  if (!g.transpose_a) return;
  for (int64_t i = (g.K - g.padding) * g.M; i < g.K * g.M; ++i)
    if (a[i] != 0) fail(Kind::internal, "cuda: product: row {} behind dy is not zero", i / g.M);
  for (int64_t i = (g.K - g.padding) * g.N; i < g.K * g.N; ++i)
    if (!std::isfinite(b[i])) fail(Kind::internal, "cuda: product: row {} is not finite", i / g.N);
}

dim3 extent(const Extent& e) { return {e.x, e.y, e.z}; }

class Emulated final : public Driver {
 public:
  std::string name() const override { return "emulated"; }
  int64_t free_bytes() const override { return said_free < 0 ? int64_t{4} << 30 : said_free; }
  int multiprocessors() const override { return 4; }

  void* allocate(int64_t bytes) override {
    void* memory = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
    if (!memory) fail(Kind::resource, "cuda: out of memory: {} bytes wanted", bytes);
    return memory;
  }
  void release(void* memory) noexcept override { std::free(memory); }

  void* allocate_pinned(int64_t bytes) override { return allocate(bytes); }
  void release_pinned(void* memory) noexcept override { release(memory); }

  void run(const KernelCall& call) override {
    alive("launch");
    emulator::run(
        {extent(call.grid), extent(call.block), call.shared_bytes, call.function, call.file,
         call.line},
        [](const void* p) {
          const KernelCall& call = *static_cast<const KernelCall*>(p);
          call.invoke(call.function, call.args);
        },
        &call);
  }
  void run(const Fill& f) override { alive("fill"), std::memset(f.to, f.byte, f.bytes); }
  void run(const Copy& c) override { alive("copy"), std::memcpy(c.to, c.from, c.bytes); }
  void run(const Upload& u) override {
    alive("upload");
    reads_.push_back({static_cast<const char*>(u.from), u.bytes, ++uploads_});
    std::memcpy(u.to, u.from, u.bytes);
  }
  void download(void* to, const void* from, int64_t bytes) override {
    alive("download");
    if (bytes > 0) std::memcpy(to, from, bytes);  // of nothing, `to` may be null
  }
  // What is sent is there when it is received; until then it is NaN.
  void send(void* to, const void* from, int64_t bytes) override {
    alive("send");
    const auto* begin = static_cast<const char*>(to);
    for (const Read& read : reads_)
      if (read.from < begin + bytes && begin < read.from + read.bytes)
        fail(Kind::internal, "cuda: {} bytes are sent to where an upload may still read", bytes);
    std::memset(to, 0xFF, bytes);
    sent_.push_back({to, from, bytes});
  }
  void receive() override {
    for (const Upload& u : sent_) std::memcpy(u.to, u.from, u.bytes);
    sent_.clear();
  }
  void mark(int event) override { marks_[event] = uploads_; }
  void wait_for(int event) override { done(marks_[event]); }
  void wait() override { alive("wait"), done(uploads_); }
  std::unique_ptr<Graph> capture(const Commands& commands, size_t begin, size_t end) override {
    return std::make_unique<CopiedCommands>(*this, commands, begin, end);
  }

  int64_t moment() override {
    moments_.push_back(std::chrono::steady_clock::now());
    return std::ssize(moments_) - 1;
  }
  double seconds(int64_t from, int64_t to) override {
    return std::chrono::duration<double>(moments_.at(to) - moments_.at(from)).count();
  }
  void forget_moments() override { moments_.clear(); }
  std::string kernel_name(const void*) const override { return {}; }

  void run(const Gemm& g) override {
    alive("product");
    if (g.K) algorithms_.try_emplace(GemmKey(g), kAlgorithm);
    const int64_t a_rows = g.transpose_a ? g.K : g.M, a_columns = g.transpose_a ? g.M : g.K;
    const int64_t b_rows = g.transpose_b ? g.N : g.K, b_columns = g.transpose_b ? g.K : g.N;
    const std::vector<float> a = widened(g.A, g.in, a_rows, a_columns, g.lda);
    const std::vector<float> b = widened(g.B, g.in, b_rows, b_columns, g.ldb);
    check_padding(g, a, b);
    std::vector<float> c(g.M * g.N);
    if (g.beta != 0) c = widened(g.from ? g.from : g.C, g.out, g.M, g.N, g.from ? g.ldfrom : g.ldc);
    cpu::sgemm(g.transpose_a, g.transpose_b, g.M, g.N, g.K, a.data(), a_columns, b.data(),
               b_columns, g.beta, c.data(), g.N);
    if (g.bias) add_rows(widened(g.bias, g.out, 1, g.N, g.N), c);
    auto* to = static_cast<std::byte*>(g.C);
    for (int64_t m = 0; m < g.M; ++m)
      from_f32(c.data() + m * g.N, g.out, to + bytes_of(g.out, m * g.ldc), g.N);
  }
  void run(const LstmPass& pass) override { alive("lstm"), emulator::run_lstm_twin(pass); }
  std::string lstm_library() override { return emulator::lstm_twin_name(); }
  std::shared_ptr<const LstmPlan> lstm_plan(const LstmShape& shape,
                                            std::span<const int32_t> starts) override {
    return emulator::lstm_twin_plan(shape, starts);
  }
  GemmChoices gemm_choices() const override { return {"the emulator's library", algorithms_}; }
  int64_t use_gemm_choices(const GemmChoices& recorded) override {
    int64_t refused = 0;
    for (const auto& [key, algorithm] : recorded.algorithms) {
      if (recorded.by == gemm_choices().by && algorithm[0] == kAlgorithm[0])
        algorithms_.try_emplace(key, algorithm);
      else
        ++refused;
    }
    return refused;
  }

 private:
  // The host knows that uploads up to this one are done.
  void done(int64_t upload) {
    std::erase_if(reads_, [=](const Read& read) { return read.upload <= upload; });
  }

  struct Read {
    const char* from;
    int64_t bytes, upload;
  };
  int64_t uploads_ = 0;
  std::array<int64_t, kEvents> marks_{};
  std::vector<Read> reads_;  // that may be under way, for all the host knows
  std::vector<Upload> sent_;
  std::vector<std::chrono::steady_clock::time_point> moments_;
  std::map<GemmKey, GemmAlgorithm> algorithms_;
};

}  // namespace

void emulator::free_bytes_are(int64_t bytes) { said_free = bytes; }

void emulator::lose_device(int64_t after_commands) { commands_left = after_commands; }

std::unique_ptr<Driver> open_driver() { return std::make_unique<Emulated>(); }

}  // namespace sft::cuda
