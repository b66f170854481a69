#include "engine/cuda/emulator/emulator.h"

#include <algorithm>
#include <bit>
#include <cstdio>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <numeric>
#include <span>
#include <string>
#include <vector>

#include "engine/check.h"
#include "engine/cuda/emulator/fibers.h"
#include "engine/rng.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace sft::cuda::emulator {
namespace {

constexpr int kWarp = 32, kNamedBarriers = 16, kLargestBlock = 1024;
constexpr size_t kLargestShared = 227 << 10;  // of sm_90
constexpr size_t kSharedAlignment = 128;

enum class State : uint8_t { unstarted, running, waiting, returned };

struct Copy {  // a cp.async on its way
  void* to;
  const void* from;
  size_t bytes;
  bool valid;
  Place where;
};

struct Warp;

struct Thread {
  Fiber* fiber = nullptr;  // while it has run and not returned
  Warp* warp = nullptr;
  uint3 index{};
  int rank = 0;
  State state = State::unstarted;
  int barrier = -1;            // where it waits: a barrier of the block, or -1
  const char* waits_in = "";   // for messages
  Place where;                 // for messages
  std::vector<Copy> copies;    // oldest first
  std::vector<size_t> groups;  // sizes of the committed groups, oldest first
};

struct Meeting {  // of lanes of one warp
  Lanes lanes;
  unsigned wanted;
  const char* name;
  Place where;
};

struct Warp {
  unsigned lanes = 0;            // that the block has
  std::vector<Thread*> reverse;  // in the reverse of the order they run in
  std::vector<Meeting> open;
};

struct Barrier {
  int arrived = 0, wanted = 0, holds = 0, result = 0;
  bool mixed = false;  // reached at different lines
  Place where;
};

struct Cancelled {};  // unwinds the threads of a block that has failed

constexpr std::align_val_t kSharedAlign{kSharedAlignment};
struct Free {
  void operator()(void* p) const { ::operator delete(p, kSharedAlign); }
};

// Allocates nothing for a launch like earlier ones.
struct Machine {
  std::mutex mutex;
  ThreadOrder order = ThreadOrder::forward;
  Counts counts;
  std::map<const void*, Block> kernels;  // the largest of each
  FiberPool fibers;

  // One grid at a time.
  const Launch* launch = nullptr;
  void (*call)(const void*) = nullptr;
  const void* params = nullptr;
  void* shared = nullptr;
  std::map<size_t, std::unique_ptr<void, Free>> shared_blocks;  // by size
  std::vector<Thread> threads = std::vector<Thread>(kLargestBlock);
  std::vector<Warp> warps = std::vector<Warp>(kLargestBlock / kWarp);
  std::vector<int> ranks;      // of the threads of this block, in the order they run in
  std::vector<int> blocks;     // the same of blocks
  std::vector<Thread*> ready;  // the next one last
  size_t started = 0;          // of ranks
  int returned = 0;
  Barrier barriers[kNamedBarriers];
  Fiber main;
  Thread* now = nullptr;
  bool cancelling = false;
  std::exception_ptr error;
};
Machine machine;

int thread_count() { return static_cast<int>(machine.ranks.size()); }
std::span<Thread> block_threads() { return {machine.threads.data(), machine.ranks.size()}; }

// ---- messages

std::string place(std::string_view file, unsigned line) {
  while (file.starts_with("../")) file.remove_prefix(3);
  return fmt::format("{}:{}", file, line);
}

std::string place(const Place& where) { return place(where.file_name(), where.line()); }

std::string coordinates(const uint3& c) { return fmt::format("({},{},{})", c.x, c.y, c.z); }

std::string launch_text() {
  return fmt::format("kernel launched at {}, block {}",
                     place(machine.launch->file, static_cast<unsigned>(machine.launch->line)),
                     coordinates(blockIdx));
}

// What a thread did wrong at a line of its kernel.
[[noreturn]] void fault(const Place& where, const std::string& text) {
  fail(Kind::internal, "{}, thread {}: {} at {} in {}", launch_text(),
       machine.now ? coordinates(machine.now->index) : "?", text, place(where),
       where.function_name());
}

std::string standing(const Thread& thread) {
  if (thread.state == State::returned) return "returned";
  return fmt::format("in {} at {} in {}", thread.waits_in, place(thread.where),
                     thread.where.function_name());
}

// Where the threads of the block stand: "[0..31] in __syncthreads at kernels.cu:104 in ..., ...".
std::string standing_threads() {
  std::string text;
  const int count = thread_count();
  for (int first = 0, last = 0; first < count; first = last) {
    const std::string here = standing(machine.threads[first]);
    while (last < count && standing(machine.threads[last]) == here) ++last;
    text += fmt::format("{}[{}..{}] {}", first ? ", " : "", first, last - 1, here);
  }
  return text;
}

std::exception_ptr deadlock() {
  const bool divergent = machine.barriers[0].arrived > 0;
  return std::make_exception_ptr(
      Error(Kind::internal,
            fmt::format("{}: {}: {}", launch_text(),
                        divergent ? "divergent barrier, the threads wait for each other"
                                  : "deadlock, the threads wait for each other",
                        standing_threads()),
            ""));
}

#if defined(__SANITIZE_ADDRESS__)
void name_kernel(const char*) {
  if (!machine.launch || !machine.now) return;
  char name[512] = "?";
  __sanitizer_symbolize_pc(const_cast<void*>(machine.launch->kernel), "%f", name, sizeof name);
  std::fprintf(stderr, "in the emulated kernel %s: %s, thread %s\n", name, launch_text().c_str(),
               coordinates(machine.now->index).c_str());
}
#endif

// ---- who runs

void go_on(Thread& thread) {
  machine.now = &thread;
  threadIdx = thread.index;
  thread.state = State::running;
}

void check_copies(const Thread& thread) {
  if (thread.copies.empty()) return;
  fault(thread.copies.front().where,
        fmt::format("returned with {} copies never awaited (cp_async_wait), the first issued",
                    thread.copies.size()));
}

void run_thread(Thread& thread, Fiber& fiber) {
  thread.fiber = &fiber;
  go_on(thread);
  try {
    machine.call(machine.params);
    check_copies(thread);
  } catch (const Cancelled&) {
  } catch (...) {
    if (!machine.error) machine.error = std::current_exception();
    machine.cancelling = true;
  }
  thread.state = State::returned;
  ++machine.returned;
}

bool any_unstarted() { return machine.started < machine.ranks.size(); }

Fiber& next_ready() {
  Thread& next = *machine.ready.back();
  machine.ready.pop_back();
  return *next.fiber;
}

// Runs threads to their end, on one stack as long as none of them waits.
void work(Fiber& fiber) {
  while (!machine.cancelling && machine.ready.empty() && any_unstarted())
    run_thread(machine.threads[machine.ranks[machine.started++]], fiber);
  machine.fibers.give_back(fiber);
  const bool to_thread = !machine.cancelling && !machine.ready.empty();
  leave_fiber(fiber, to_thread ? next_ready() : machine.main);
}

// The running thread waits until it has been made ready.
[[gnu::always_inline]] inline void suspend(Thread& self) {
  if (!machine.ready.empty()) {
    Fiber& next = next_ready();
    if (&next != self.fiber) switch_fiber(*self.fiber, next);
  } else {
    switch_fiber(*self.fiber, any_unstarted() ? machine.fibers.start(work) : machine.main);
  }
  if (machine.cancelling) [[unlikely]]
    throw Cancelled{};
  go_on(self);
}

void wait_in(Thread& self, const char* name, int barrier, const Place& where) {
  self.state = State::waiting;
  self.waits_in = name;
  self.barrier = barrier;
  self.where = where;
}

// ---- a block

// Threads that wait are resumed once more, to unwind.
void cancel_block() {
  machine.cancelling = true;
  machine.ready.clear();
  for (Thread& thread : block_threads())
    if (thread.state == State::waiting) switch_fiber(machine.main, *thread.fiber);
}

void reset_block() {
  for (Thread& thread : block_threads()) {
    thread.state = State::unstarted;
    thread.copies.clear();
    thread.groups.clear();
  }
  for (Warp& warp : machine.warps) warp.open.clear();
  std::fill(std::begin(machine.barriers), std::end(machine.barriers), Barrier{});
  machine.ready.clear();
  machine.started = 0;
  machine.returned = 0;
  machine.cancelling = false;
  machine.error = nullptr;
  if (machine.launch->shared_bytes) std::memset(machine.shared, 0xFF, machine.launch->shared_bytes);
}

void run_block() {
  reset_block();
  switch_fiber(machine.main, machine.fibers.start(work));
  if (!machine.error && machine.returned < thread_count()) machine.error = deadlock();
  if (machine.error) cancel_block();
  machine.now = nullptr;
  if (machine.error) std::rethrow_exception(std::exchange(machine.error, nullptr));
}

// ---- a grid

// 0 ... count - 1, in the order they run in.
void order_into(std::vector<int>& list, int64_t count, uint32_t site) {
  list.resize(static_cast<size_t>(count));
  std::iota(list.begin(), list.end(), 0);
  if (machine.order == ThreadOrder::backward) std::reverse(list.begin(), list.end());
  if (machine.order != ThreadOrder::shuffled) return;
  Draws draws(0, static_cast<uint32_t>(count), 0, site);
  for (uint32_t i = static_cast<uint32_t>(count); i > 1; --i)
    std::swap(list[i - 1], list[draws.below(i)]);
}

uint3 at(int64_t rank, const dim3& size) {
  return {static_cast<unsigned>(rank % size.x), static_cast<unsigned>(rank / size.x % size.y),
          static_cast<unsigned>(rank / size.x / size.y)};
}

void lay_out_threads(const dim3& block) {
  const int count = static_cast<int>(block.x * block.y * block.z);
  order_into(machine.ranks, count, fnv1a("threads"));
  for (Warp& warp : machine.warps) warp.lanes = 0, warp.reverse.clear();
  for (int rank = 0; rank < count; ++rank) {
    Thread& thread = machine.threads[rank];
    thread.rank = rank;
    thread.index = at(rank, block);
    thread.warp = &machine.warps[rank / kWarp];
    thread.warp->lanes |= 1u << rank % kWarp;
  }
  for (auto rank = machine.ranks.rbegin(); rank != machine.ranks.rend(); ++rank)
    machine.warps[*rank / kWarp].reverse.push_back(&machine.threads[*rank]);
}

void check_launch(const Launch& launch) {
  const auto refuse = [&](std::string what) {
    fail(Kind::internal, "kernel launched at {}: {}",
         place(launch.file, static_cast<unsigned>(launch.line)), what);
  };
  const uint64_t threads = uint64_t{launch.block.x} * launch.block.y * launch.block.z;
  if (threads == 0 || threads > kLargestBlock)
    refuse(fmt::format("a block of {} threads (expected 1 to {})", threads, kLargestBlock));
  if (launch.grid.y > 65535 || launch.grid.z > 65535)
    refuse(fmt::format("a grid of {} x {} x {} blocks (y and z are at most 65535)", launch.grid.x,
                       launch.grid.y, launch.grid.z));
  if (launch.shared_bytes > kLargestShared)
    refuse(
        fmt::format("{} bytes of shared memory (at most {})", launch.shared_bytes, kLargestShared));
}

// A heap block of exactly that size; those of sizes seen before are kept.
void* shared_block(size_t bytes) {
  std::unique_ptr<void, Free>& block = machine.shared_blocks[bytes];
  if (!block) block.reset(::operator new(bytes, kSharedAlign));
  return block.get();
}

void count_launch(const Launch& launch, uint64_t blocks) {
  Block& largest = machine.kernels[launch.kernel];
  largest.threads = std::max<uint64_t>(largest.threads, machine.ranks.size());
  largest.shared_bytes = std::max(largest.shared_bytes, launch.shared_bytes);
  machine.counts.launches += 1;
  machine.counts.kernels = machine.kernels.size();
  machine.counts.blocks += blocks;
  machine.counts.threads += blocks * machine.ranks.size();
}

}  // namespace

void set_thread_order(ThreadOrder order) { machine.order = order; }

Counts launches() { return machine.counts; }
std::map<const void*, Block> largest_blocks() { return machine.kernels; }

void run(const Launch& launch, void (*call)(const void*), const void* params) {
  check_launch(launch);
  const std::lock_guard lock(machine.mutex);
#if defined(__SANITIZE_ADDRESS__)
  __asan_set_error_report_callback(name_kernel);
#endif
  machine.main = Fiber{};  // of the OS thread that launches
  machine.launch = &launch;
  machine.call = call;
  machine.params = params;
  machine.shared = shared_block(launch.shared_bytes);
  blockDim = launch.block;
  gridDim = launch.grid;
  lay_out_threads(launch.block);
  const int64_t blocks = int64_t{launch.grid.x} * launch.grid.y * launch.grid.z;
  count_launch(launch, static_cast<uint64_t>(blocks));
  order_into(machine.blocks, blocks, fnv1a("blocks"));
  for (int block : machine.blocks) {
    blockIdx = at(block, launch.grid);
    run_block();
  }
}

// ---- called by threads

void* shared_memory(size_t bytes, size_t alignment, Place where) {
  if (bytes > machine.launch->shared_bytes || alignment > kSharedAlignment) [[unlikely]]
    fault(where, fmt::format("shared memory of {} bytes, aligned to {} (the launch gives {} bytes, "
                             "aligned to {})",
                             bytes, alignment, machine.launch->shared_bytes, kSharedAlignment));
  return machine.shared;
}

int lane_id() { return machine.now->rank % kWarp; }

namespace {

Meeting& meeting(Warp& warp, const char* name, unsigned wanted, const Place& where) {
  for (Meeting& open : warp.open) {
    if (open.wanted != wanted) continue;
    if (open.name != name || open.where.line() != where.line())
      fault(where, fmt::format("{}, while other lanes of its mask {:#x} are in {} at {}", name,
                               wanted, open.name, place(open.where)));
    return open;
  }
  return warp.open.emplace_back(Meeting{{}, wanted, name, where});
}

// Inline, as are the switches below it.
template <class Combine>
[[gnu::always_inline]] inline void meet_here(const char* name, unsigned mask, void* operand,
                                             Combine combine, const Place& where) {
  Thread& self = *machine.now;
  Warp& warp = *self.warp;
  const int lane = self.rank % kWarp;
  if (!(mask >> lane & 1))
    fault(where, fmt::format("{} with the mask {:#x}, in which lane {} is not", name, mask, lane));
  Meeting& here = meeting(warp, name, mask & warp.lanes, where);
  here.lanes.operand[lane] = operand;
  here.lanes.mask |= 1u << lane;
  wait_in(self, name, -1, where);
  if (here.lanes.mask == here.wanted) {
    combine(here.lanes);
    for (Thread* thread : warp.reverse)
      if (here.wanted >> thread->rank % kWarp & 1) machine.ready.push_back(thread);
    std::swap(here, warp.open.back());
    warp.open.pop_back();
  }
  suspend(self);
}

}  // namespace

void meet(const char* name, unsigned mask, void* operand, void (*combine)(Lanes&), Place where) {
  meet_here(name, mask, operand, combine, where);
}

void sync_warp(unsigned mask, Place where) {
  meet_here(
      "__syncwarp", mask, nullptr, [](Lanes&) {}, where);
}

void check_whole_warp(const char* name, Place where) {
  if (machine.now->warp->lanes != ~0u)
    fault(where, fmt::format("{} in a warp of less than 32 threads", name));
}

void shuffle(const char* name, unsigned mask, Shuffle& lane, Place where) {
  meet_here(
      name, mask, &lane,
      [](Lanes& lanes) {
        for (unsigned left = lanes.mask; left; left &= left - 1) {
          Shuffle& to = *static_cast<Shuffle*>(lanes.operand[std::countr_zero(left)]);
          const auto* from = static_cast<const Shuffle*>(lanes.operand[to.from]);
          to.result = from ? from->bits : ~uint64_t{0};  // of a lane that is not there: garbage
        }
      },
      where);
}

unsigned match(const char* name, unsigned mask, uint64_t value, Place where) {
  struct Match {
    uint64_t value;
    unsigned result;
  } mine{value, 0};
  meet_here(
      name, mask, &mine,
      [](Lanes& lanes) {
        for (void* to : lanes.operand)
          for (int l = 0; to && l < kWarp; ++l) {
            const auto* from = static_cast<const Match*>(lanes.operand[l]);
            Match& lane = *static_cast<Match*>(to);
            if (from && from->value == lane.value) lane.result |= 1u << l;
          }
      },
      where);
  return mine.result;
}

unsigned vote(const char* name, unsigned mask, bool predicate, Place where) {
  struct Vote {
    bool predicate;
    unsigned result;
  } mine{predicate, 0};
  meet_here(
      name, mask, &mine,
      [](Lanes& lanes) {
        unsigned ballot = 0;
        for (int l = 0; l < kWarp; ++l)
          if (lanes.operand[l] && static_cast<Vote*>(lanes.operand[l])->predicate)
            ballot |= 1u << l;
        for (void* lane : lanes.operand)
          if (lane) static_cast<Vote*>(lane)->result = ballot;
      },
      where);
  return mine.result;
}

namespace {

void release(int id) {
  Barrier& barrier = machine.barriers[id];
  barrier.result = std::exchange(barrier.holds, 0);
  barrier.arrived = 0;
  for (auto rank = machine.ranks.rbegin(); rank != machine.ranks.rend(); ++rank) {
    Thread& thread = machine.threads[*rank];
    if (thread.state != State::waiting || thread.barrier != id) continue;
    thread.barrier = -1;
    machine.ready.push_back(&thread);
  }
}

bool same_place(const Place& a, const Place& b) {
  return a.line() == b.line() && a.column() == b.column() &&
         (a.file_name() == b.file_name() || std::string_view(a.file_name()) == b.file_name());
}

}  // namespace

int block_barrier(const char* name, bool predicate, Place where) {
  Thread& self = *machine.now;
  Barrier& barrier = machine.barriers[0];
  if (barrier.arrived++ == 0) barrier.where = where;
  if (!same_place(barrier.where, where)) barrier.mixed = true;
  barrier.holds += predicate;
  wait_in(self, name, 0, where);
  if (barrier.arrived == thread_count() && !barrier.mixed) release(0);
  suspend(self);
  return barrier.result;
}

void named_barrier(int id, int threads, bool wait, Place where) {
  if (id < 1 || id >= kNamedBarriers || threads < kWarp || threads % kWarp)
    fault(where, fmt::format("named barrier {} of {} threads (expected 1 to 15, and whole warps)",
                             id, threads));
  Thread& self = *machine.now;
  Barrier& barrier = machine.barriers[id];
  if (barrier.arrived++ == 0) barrier.wanted = threads;
  if (barrier.wanted != threads)
    fault(where, fmt::format("named barrier {} of {} threads, others came for {}", id, threads,
                             barrier.wanted));
  if (wait) wait_in(self, "named_barrier", id, where);
  if (barrier.arrived == threads) release(id);
  if (wait) suspend(self);
}

void misaligned(const void* address, size_t bytes, Place where) {
  fault(where, fmt::format("address {} is not a multiple of {}", fmt::ptr(address), bytes));
}

void trap(Place where) { fault(where, "__trap"); }

// ---- cp.async

namespace {

void check_shared(const void* address, size_t bytes, const Place& where) {
  const auto* begin = static_cast<const unsigned char*>(machine.shared);
  const auto* p = static_cast<const unsigned char*>(address);
  if (p < begin || p + bytes > begin + machine.launch->shared_bytes)
    fault(where,
          fmt::format("{} bytes at {} are not in the shared memory of {} bytes at {}", bytes,
                      fmt::ptr(address), machine.launch->shared_bytes, fmt::ptr(machine.shared)));
  check_aligned(address, bytes, where);
}

void do_copies(Thread& thread, size_t count) {
  for (size_t i = 0; i < count; ++i) {
    const Copy& copy = thread.copies[i];
    if (copy.valid) {
      std::memcpy(copy.to, copy.from, copy.bytes);
    } else {
      std::memset(copy.to, 0, copy.bytes);
    }
  }
  thread.copies.erase(thread.copies.begin(), thread.copies.begin() + static_cast<int64_t>(count));
}

}  // namespace

void cp_async(void* shared, const void* global, size_t bytes, bool valid, Place where) {
  check_shared(shared, bytes, where);
  if (valid) check_aligned(global, bytes, where);
  machine.now->copies.push_back({shared, global, bytes, valid, where});
}

void cp_async_commit() {
  Thread& self = *machine.now;
  const size_t committed = std::accumulate(self.groups.begin(), self.groups.end(), size_t{0});
  self.groups.push_back(self.copies.size() - committed);
}

void cp_async_wait(int newest) {
  Thread& self = *machine.now;
  const auto left = std::min(static_cast<size_t>(newest), self.groups.size());
  const auto end = self.groups.end() - static_cast<int64_t>(left);
  do_copies(self, std::accumulate(self.groups.begin(), end, size_t{0}));
  self.groups.erase(self.groups.begin(), end);
}

// ---- tensor cores

namespace {

struct LoadMatrix {
  uint32_t* registers;
  const uint16_t* row;
  int count;
  bool transposed;
};

// Lane l gets elements (l / 4, 2 (l % 4)) and the next of each matrix, or of its transpose.
void load_matrices(Lanes& lanes) {
  const auto operand = [&](int l) -> LoadMatrix& {
    return *static_cast<LoadMatrix*>(lanes.operand[l]);
  };
  const int count = operand(0).count;
  for (int m = 0; m < count; ++m) {
    uint16_t matrix[8][8];
    for (int r = 0; r < 8; ++r) std::memcpy(matrix[r], operand(m * 8 + r).row, sizeof matrix[r]);
    for (int l = 0; l < kWarp; ++l) {
      const int i = l / 4, j = l % 4 * 2;
      const bool t = operand(l).transposed;
      const uint32_t low = t ? matrix[j][i] : matrix[i][j];
      const uint32_t high = t ? matrix[j + 1][i] : matrix[i][j + 1];
      operand(l).registers[m] = high << 16 | low;
    }
  }
}

struct Multiply {
  float* acc;
  const uint32_t* a;
  const uint32_t* b;
};

float low_bf16(uint32_t packed) { return __uint_as_float(packed << 16); }
float high_bf16(uint32_t packed) { return __uint_as_float(packed & 0xFFFF0000u); }

// PTX ISA, "Matrix fragments for mma.m16n8k16 with floating point type".
void multiply(Lanes& lanes) {
  float a[16][16], b[16][8], c[16][8];
  for (int l = 0; l < kWarp; ++l) {
    const Multiply& lane = *static_cast<Multiply*>(lanes.operand[l]);
    const int g = l / 4, t = l % 4 * 2;
    for (int r = 0; r < 4; ++r) {
      const int row = g + r % 2 * 8, column = t + r / 2 * 8;
      a[row][column] = low_bf16(lane.a[r]), a[row][column + 1] = high_bf16(lane.a[r]);
    }
    for (int r = 0; r < 2; ++r)
      b[t + r * 8][g] = low_bf16(lane.b[r]), b[t + r * 8 + 1][g] = high_bf16(lane.b[r]);
    for (int r = 0; r < 4; ++r) c[g + r / 2 * 8][t + r % 2] = lane.acc[r];
  }
  for (int i = 0; i < 16; ++i)
    for (int k = 0; k < 16; ++k)
      for (int j = 0; j < 8; ++j) c[i][j] += a[i][k] * b[k][j];
  for (int l = 0; l < kWarp; ++l)
    for (int r = 0; r < 4; ++r)
      static_cast<Multiply*>(lanes.operand[l])->acc[r] = c[l / 4 + r / 2 * 8][l % 4 * 2 + r % 2];
}

}  // namespace

void ldmatrix(uint32_t* registers, int count, bool transposed, const void* row, Place where) {
  check_whole_warp("ldmatrix", where);
  if (lane_id() < count * 8) check_shared(row, 16, where);
  LoadMatrix lane{registers, static_cast<const uint16_t*>(row), count, transposed};
  meet_here("ldmatrix", ~0u, &lane, load_matrices, where);
}

void mma_m16n8k16_bf16(float* acc, const uint32_t* a, const uint32_t* b, Place where) {
  check_whole_warp("mma", where);
  Multiply lane{acc, a, b};
  meet_here("mma", ~0u, &lane, multiply, where);
}

}  // namespace sft::cuda::emulator
