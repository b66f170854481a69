// Steps of a device: queued, and replayed as graphs, against the same work done at once.
#include <cmath>
#include <cstring>
#include <functional>
#include <vector>

#include "engine/cuda/driver.h"
#include "engine/cuda/emulator/lost_device.h"
#include "engine/cuda/step_graphs.h"
#include "engine/ops/linear.h"
#include "engine/step_memory.h"
#include "tests/allocations.h"
#include "tests/cuda/kernels.h"
#include "tests/doctest.h"
#include "tests/op_spec.h"

namespace sft::cuda {
namespace {

// Another device's driver, watched.
struct Watch {
  int64_t commands = 0, uploads = 0;  // run one by one
  int64_t sent = 0;                   // beside them
  bool refuse = false;                // to capture
  bool refuse_values = false;         // to patch
};

class WatchedGraph final : public Graph {
 public:
  WatchedGraph(Watch& watch, std::unique_ptr<Graph> inner)
      : watch_(watch), inner_(std::move(inner)) {}
  void patch(const Commands& commands, size_t i) override {
    if (watch_.refuse_values) fail(Kind::resource, "cuda: no other values");
    inner_->patch(commands, i);
  }
  void launch() override { inner_->launch(); }

 private:
  Watch& watch_;
  std::unique_ptr<Graph> inner_;
};

class Watched final : public Driver {
 public:
  explicit Watched(Watch& watch) : watch_(watch) {}
  std::string name() const override { return inner_->name(); }
  int64_t free_bytes() const override { return inner_->free_bytes(); }
  int multiprocessors() const override { return inner_->multiprocessors(); }
  void* allocate(int64_t bytes) override { return inner_->allocate(bytes); }
  void release(void* memory) noexcept override { inner_->release(memory); }
  void* allocate_pinned(int64_t bytes) override { return inner_->allocate_pinned(bytes); }
  void release_pinned(void* memory) noexcept override { inner_->release_pinned(memory); }
  void run(const KernelCall& c) override { ++watch_.commands, inner_->run(c); }
  void run(const Gemm& c) override { ++watch_.commands, inner_->run(c); }
  void run(const Fill& c) override { ++watch_.commands, inner_->run(c); }
  void run(const Copy& c) override { ++watch_.commands, inner_->run(c); }
  void run(const Upload& c) override { ++watch_.uploads, inner_->run(c); }
  void run(const LstmPass& c) override { ++watch_.commands, inner_->run(c); }
  void download(void* to, const void* from, int64_t bytes) override {
    inner_->download(to, from, bytes);
  }
  void send(void* to, const void* from, int64_t bytes) override {
    ++watch_.sent, inner_->send(to, from, bytes);
  }
  void receive() override { inner_->receive(); }
  int64_t moment() override { return inner_->moment(); }
  double seconds(int64_t from, int64_t to) override { return inner_->seconds(from, to); }
  void forget_moments() override { inner_->forget_moments(); }
  std::string kernel_name(const void* f) const override { return inner_->kernel_name(f); }
  std::string lstm_library() override { return inner_->lstm_library(); }
  std::shared_ptr<const LstmPlan> lstm_plan(const LstmShape& shape,
                                            std::span<const int32_t> starts) override {
    return inner_->lstm_plan(shape, starts);
  }
  GemmChoices gemm_choices() const override { return inner_->gemm_choices(); }
  int64_t use_gemm_choices(const GemmChoices& choices) override {
    return inner_->use_gemm_choices(choices);
  }
  void mark(int event) override { inner_->mark(event); }
  void wait_for(int event) override { inner_->wait_for(event); }
  void wait() override { inner_->wait(); }
  std::unique_ptr<Graph> capture(const Commands& commands, size_t begin, size_t end) override {
    if (watch_.refuse) fail(Kind::resource, "cuda: no graphs today");
    return std::make_unique<WatchedGraph>(watch_, inner_->capture(commands, begin, end));
  }

 private:
  std::unique_ptr<Driver> inner_ = open_driver();
  Watch& watch_;
};

bool skipped() {
  const std::string why = no_gpu();
  if (!why.empty()) test::skip(why);
  return !why.empty();
}

constexpr int kCount = 1024;
constexpr int64_t kBytes = kCount * sizeof(float);

// A device of its own, with x = 0, 1, 2, ... and room for results.
struct Rig {
  Watch watch;
  Runtime gpu{std::make_unique<Watched>(watch)};
  float* x = static_cast<float*>(gpu.allocate(kBytes));
  float* y = static_cast<float*>(gpu.allocate(kBytes));
  float* z = static_cast<float*>(gpu.allocate(kBytes));

  Rig() {
    std::vector<float> values(kCount);
    for (int i = 0; i < kCount; ++i) values[i] = static_cast<float>(i);
    gpu.upload(x, values.data(), kBytes);
    gpu.fill(y, 0, kBytes), gpu.fill(z, 0, kBytes);
  }
  ~Rig() {
    for (float* memory : {x, y, z}) gpu.release(memory);
  }
  void step(const std::function<void()>& work) {
    StepScope scope(&gpu);
    work();
    scope.end();
  }
  // y = scale x
  void scale(float scale, int count = kCount) {
    test::launch_scale(gpu.stream(), x, scale, count, y);
  }
  // A step unlike those of other numbers: a product of so many terms.
  void of_structure(int64_t terms) {
    step([&] {
      gpu.gemm(
          {.M = 1, .N = 1, .K = terms, .A = x, .lda = terms, .B = x, .ldb = 1, .C = y, .ldc = 1});
    });
  }
  float at(const float* from, int i) {
    float value = 0;
    gpu.download(&value, from + i, sizeof value);
    return value;
  }
  const StepCounts& counts() const { return gpu.step_counts(); }
};

}  // namespace

TEST_CASE("cuda steps: what is queued runs at the end, in order; what is dropped does not") {
  if (skipped()) return;
  Rig d;
  d.watch = {};
  const float seven = 7;
  {
    StepScope scope(&d.gpu);
    d.scale(2);
    d.gpu.copy(d.z, d.y, kBytes);
    d.gpu.fill(d.y, 0, 8);
    d.gpu.upload(d.y + 1, &seven, sizeof seven);
    EXPECT(d.watch.commands == 0);
    scope.end();
    EXPECT(d.watch.commands == 3);
    EXPECT(d.watch.uploads == 1);
  }
  EXPECT(d.at(d.z, 3) == 6);
  EXPECT(d.at(d.y, 0) == 0);
  EXPECT(d.at(d.y, 1) == 7);
  EXPECT(d.at(d.y, 3) == 6);
  {
    const StepScope dropped(&d.gpu);
    d.scale(5);
  }
  d.step([] {});
  EXPECT(d.at(d.y, 3) == 6);
}

TEST_CASE("cuda steps: uploads go up together beside the step before, into memory of their turn") {
  if (skipped()) return;
  Rig d;
  d.watch = {};
  std::vector<float> values(kCount);
  for (int step = 1; step <= 7; ++step) {
    d.step([&] {
      for (const int half : {0, 1}) {
        std::fill(values.begin(), values.end(), static_cast<float>(10 * step + half));
        d.gpu.upload(d.x + half * kCount / 2, values.data(), kBytes / 2);
      }
      std::fill(values.begin(), values.end(), -1.0f);  // free at return
      d.scale(2);
    });
    EXPECT(d.watch.sent == step);
    EXPECT(d.at(d.y, 1) == static_cast<float>(20 * step));
    EXPECT(d.at(d.y, kCount - 1) == static_cast<float>(20 * step + 2));
  }
  EXPECT(d.counts().replayed > 0);
}

TEST_CASE("cuda steps: more to upload than one chunk of staging holds") {
  if (skipped()) return;
  Rig d;
  constexpr int64_t kLarge = 9 << 20;
  auto* room = static_cast<char*>(d.gpu.allocate(3 * kLarge));
  for (const char mark : {'a', 'b', 'c'}) {
    d.step([&] {
      for (const int64_t part : {0, 1, 2}) {
        const std::vector<char> bytes(kLarge, static_cast<char>(mark + part));
        d.gpu.upload(room + part * kLarge, bytes.data(), kLarge);
      }
    });
    std::vector<char> got(3 * kLarge);
    d.gpu.download(got.data(), room, 3 * kLarge);
    for (int64_t i = 0; i < 3 * kLarge; i += kLarge - 1) EXPECT(got[i] == mark + i / kLarge);
  }
  d.gpu.release(room);
}

TEST_CASE("cuda emulator: what is sent is there when received, and never over what may be read") {
  if (skipped()) return;
  if (!emulator::lose_device) return test::skip("needs the emulator");
  const std::unique_ptr<Driver> driver = open_driver();
  const DriverMemory slot = DriverMemory::of_device(*driver, 64),
                     to = DriverMemory::of_device(*driver, 64),
                     host = DriverMemory::pinned(*driver, 64);
  std::memset(host.bytes(), 5, 64);
  const auto arrived = [&] {
    driver->run(Upload{to.bytes(), slot.bytes(), 64});
    return static_cast<int>(to.bytes()[63]);
  };
  const auto send = [&] { driver->send(slot.bytes(), host.bytes(), 64); };
  send();
  EXPECT(arrived() == -1);
  driver->wait();
  send(), driver->receive();
  EXPECT(arrived() == 5);
  driver->mark(3);
  EXPECT(test::error_of(send).message.find("may still read") != std::string::npos);
  driver->wait_for(3);
  send(), driver->receive();
  EXPECT(arrived() == 5);
  driver->mark(3), driver->mark(4);
  arrived();
  driver->wait_for(4);
  EXPECT(test::error_of(send).kind == Kind::internal);
}

TEST_CASE("cuda steps: a step that comes again is replayed with its own values") {
  if (skipped()) return;
  Rig d;
  const auto step = [&](float scale, int count) {
    d.step([&] {
      d.scale(scale, count);
      d.gpu.copy(d.z, d.y, kBytes);
      d.gpu.upload(d.y, &scale, sizeof scale);
    });
    EXPECT(d.at(d.z, 1) == scale);
    EXPECT(d.at(d.z, count - 1) == scale * static_cast<float>(count - 1));
    EXPECT(d.at(d.y, 0) == scale);
  };
  step(1, kCount), step(2, kCount);
  EXPECT(d.counts().captured == 1);
  d.watch = {};
  step(3, kCount), step(3, kCount);
  step(5, 64);  // another grid
  step(7, kCount);
  EXPECT(d.watch.commands == 0);
  EXPECT(d.counts().steps == 6);
  EXPECT(d.counts().commands == 18);
  // the kernel where its values are new, the upload where it waits in the other steps' memory
  EXPECT(d.counts().patched >= 3);
  EXPECT(d.counts().patched <= 3 + 4);
  EXPECT(d.counts().text() == "1 captured, 4 of 6 steps replayed");
}

TEST_CASE("cuda steps: fills, copies and uploads of any length are put into one graph") {
  if (skipped()) return;
  Rig d;
  const std::vector<float> values(kCount, 4.f);
  for (const int count : {9, 700, 30, 1000}) {
    const int64_t bytes = count * static_cast<int64_t>(sizeof(float));
    d.gpu.fill(d.y, 0, kBytes), d.gpu.fill(d.z, 0xFF, kBytes);
    d.step([&] {
      d.gpu.upload(d.y + 2, values.data(), bytes);
      d.gpu.copy(d.z + 1, d.y + 2, bytes);
      d.gpu.fill(d.z + count, 0, sizeof(float));
    });
    EXPECT(d.at(d.y, 1) == 0);
    EXPECT(d.at(d.y, count + 1) == 4);
    EXPECT(d.at(d.y, count + 2) == 0);
    EXPECT(d.at(d.z, count - 1) == 4);
    EXPECT(d.at(d.z, count) == 0);
    EXPECT(std::isnan(d.at(d.z, count + 1)));
  }
  EXPECT(d.counts().text() == "1 captured, 2 of 4 steps replayed");
}

namespace {

// Of a linear layer over so many frames, forward and back, as a step or at once.
class LinearLayer {
 public:
  LinearLayer(Runtime& gpu, StepMemory& memory) : gpu_(gpu), memory_(memory) {
    Context dry = memory.context(prepared_, Math::exact, /*dry=*/true);
    run(dry, 64);
    memory.commit();
  }
  std::vector<float> gradients(int64_t frames, bool queued) {
    Context ctx = memory_.context(prepared_, Math::exact, /*dry=*/false);
    StepScope step(queued ? &gpu_ : nullptr);
    const auto [dx, dweight] = run(ctx, frames);
    step.end();
    std::vector<float> values(dx.count() + dweight.count());
    gpu_.download(values.data(), dx.data, dx.bytes());
    gpu_.download(values.data() + dx.count(), dweight.data, dweight.bytes());
    return values;
  }

 private:
  static constexpr int64_t kInputs = 24, kOutputs = 12;

  std::array<Tensor, 2> run(Context& ctx, int64_t frames) {
    const auto made = [&](Tensor to) {
      std::vector<float> values(to.count());
      for (float& v : values) v = static_cast<float>(draws_.normal());
      if (!ctx.dry) ctx.gpu->upload(to.data, values.data(), to.bytes());
      return to;
    };
    draws_ = Draws(7, 0, 0, fnv1a("layer"));
    const Tensor weight = made(ctx.acts.loose({kOutputs, kInputs}));
    const Tensor x = made(ctx.activation({frames, kInputs}));
    const Tensor dy = made(ctx.activation({frames, kOutputs}));
    const Tensor dx = ctx.activation(x.shape), dweight = ctx.acts.loose(weight.shape);
    const Tensor bias = made(ctx.acts.loose({kOutputs}));
    sft::linear_forward(ctx, x, weight, bias);
    sft::linear_backward(ctx, dy, x, weight, {}, {}, {dx}, {dweight}, {});
    return {dx, dweight};
  }

  Runtime& gpu_;
  StepMemory& memory_;
  Prepared prepared_{&gpu_};
  Draws draws_{7, 0, 0, fnv1a("layer")};
};

}  // namespace

TEST_CASE("cuda steps: layers over about as many frames share a graph, with the bits of none") {
  if (skipped()) return;
  Rig d;
  StepMemory memory(&d.gpu);
  LinearLayer layer(d.gpu, memory);
  for (const int64_t frames : {40, 33, 48, 35})
    EXPECT(layer.gradients(frames, true) == layer.gradients(frames, false));
  EXPECT(d.counts().text() == "1 captured, 2 of 4 steps replayed");
  EXPECT(layer.gradients(49, true) == layer.gradients(49, false));
  EXPECT(d.counts().replayed == 2);
}

TEST_CASE("cuda steps: a product with another operand is another structure") {
  if (skipped()) return;
  Rig d;
  Gemm g{.M = 4, .N = 4, .K = 4, .A = d.x, .lda = 4, .B = d.x, .ldb = 4, .C = d.y, .ldc = 4};
  const auto step = [&](const Gemm& product) { d.step([&] { d.gpu.gemm(product); }); };
  Gemm other = g;
  other.beta = 1;
  for (int i = 0; i < 3; ++i) {
    step(g);
    const float once = d.at(d.y, 5);
    step(other);
    EXPECT(d.at(d.y, 5) == 2 * once);
  }
  EXPECT(d.counts().captured == 2);
  EXPECT(d.counts().replayed == 2);
}

TEST_CASE("cuda steps: graphs are few, and the one unused for longest goes") {
  if (skipped()) return;
  Rig d;
  const auto step = [&](int64_t structure) { d.of_structure(structure); };
  constexpr auto kGraphs = static_cast<int64_t>(StepGraphs::kGraphs);
  for (int64_t i = 1; i <= kGraphs; ++i) step(i), step(i);
  EXPECT(d.counts().captured == kGraphs);
  step(1);  // not the oldest any more
  step(kGraphs + 1), step(kGraphs + 1);
  EXPECT(d.counts().captured == kGraphs + 1);
  EXPECT(d.counts().evicted == 1);
  step(1), step(2);
  EXPECT(d.counts().replayed == 2);
}

TEST_CASE("cuda steps: shapes that do not come back within 64 others get no graph") {
  if (skipped()) return;
  Rig d;
  for (int round = 0; round < 2; ++round)
    for (int64_t i = 1; i <= 65; ++i) d.of_structure(i);
  EXPECT(d.counts().captured == 0);
  EXPECT(d.counts().steps == 130);
}

TEST_CASE("cuda steps: a device that makes no graphs runs every command all the same") {
  if (skipped()) return;
  Rig d;
  d.watch.refuse = true;
  for (float scale : {1.f, 2.f, 3.f}) {
    d.step([&] { d.scale(scale); });
    EXPECT(d.at(d.y, 1) == scale);
  }
  EXPECT(d.counts().captured == 0);
  EXPECT(d.counts().text() ==
         "0 captured, 0 of 3 steps replayed; none since the device refused one: cuda: no graphs "
         "today");
}

TEST_CASE("cuda steps: a device whose graphs take no values runs every command from then on") {
  if (skipped()) return;
  Rig d;
  for (float scale : {1.f, 2.f, 2.f, 3.f, 3.f}) {
    d.watch.refuse_values = scale == 3;
    d.step([&] { d.scale(scale); });
    EXPECT(d.at(d.y, 1) == scale);
  }
  EXPECT(d.counts().text() ==
         "1 captured, 1 of 5 steps replayed; none since the device refused one: cuda: no other "
         "values");
}

TEST_CASE("cuda steps: lists go up once and together, and are found again by their contents") {
  if (skipped()) return;
  Rig d;
  for (int32_t u = 0; u < 5; ++u) {
    const std::vector<int32_t> one{1, 2, u}, other{1, 2, u + 100};
    d.watch.uploads = 0;
    const void *first = nullptr, *second = nullptr;
    d.step([&] {
      first = d.gpu.list(d.y, one.data(), 12);
      second = d.gpu.list(d.y, other.data(), 12);
      EXPECT(first != second);
      EXPECT(first != d.y);
      const std::vector<int32_t> same = one;
      EXPECT(d.gpu.list(d.z, same.data(), 12) == first);
      EXPECT(d.gpu.list(d.z, one.data(), 8) != first);
    });
    EXPECT(d.watch.uploads == 1);
    int32_t back[3];
    d.gpu.download(back, first, 12);
    EXPECT(back[2] == u);
    d.gpu.download(back, second, 12);
    EXPECT(back[2] == u + 100);
  }
}

TEST_CASE("cuda steps: lists for which there is no room yet lie where the op wants them") {
  if (skipped()) return;
  Rig d;
  const std::vector<float> large(1 << 19, 3.f);  // 2 MiB
  const auto bytes = static_cast<int64_t>(large.size() * sizeof(float));
  auto* room = static_cast<float*>(d.gpu.allocate(bytes));
  for (bool fits : {false, true, true}) {
    const void* at = nullptr;
    d.step([&] {
      d.gpu.fill(room, 0, bytes);
      at = d.gpu.list(room, large.data(), bytes);
      d.gpu.copy(d.y, at, kBytes);
    });
    EXPECT((at != room) == fits);
    EXPECT(d.at(d.y, 5) == 3);
  }
  d.gpu.release(room);
}

TEST_CASE("cuda steps: late values are those of their step") {
  if (skipped()) return;
  Rig d;
  std::vector<Late> values;
  for (int u = 0; u < 12; ++u) {
    d.step([&] {
      d.scale(static_cast<float>(u));
      const Late twice = d.gpu.late(d.y + 2, 4);
      values.push_back(d.gpu.late(d.y + 1, 4));
      EXPECT(test::error_of([&] { twice.get<float>(); }).kind == Kind::internal);
      values.push_back(twice);
    });
  }
  for (int u = 0; u < 12; ++u) {
    EXPECT(values[2 * u].get<float>() == static_cast<float>(u));
    EXPECT(values[2 * u + 1].get<float>() == static_cast<float>(2 * u));
  }
  EXPECT(d.counts().replayed == 10);
  const Late at_once = d.gpu.late(d.y + 3, 4);
  d.gpu.fill(d.y, 0, kBytes);
  EXPECT(at_once.get<float>() == 33);
  for (int i = 0; i < 31; ++i) d.step([] {});
  EXPECT(at_once.get<float>() == 33);
  d.step([] {});
  EXPECT(test::error_of([&] { at_once.get<float>(); }).kind == Kind::internal);
}

TEST_CASE("cuda steps: what is to be read back has to be flushed") {
  if (skipped()) return;
  Rig d;
  float value = 0;
  for (int i = 0; i < 3; ++i)
    d.step([&] {
      d.scale(4);
      const auto early = [&] { d.gpu.download(&value, d.y + 1, 4); };
      EXPECT(test::error_of(early).kind == Kind::internal);
      EXPECT(test::error_of([&] { d.gpu.synchronize(); }).kind == Kind::internal);
      d.gpu.flush();
      early();
      EXPECT(value == 4);
      d.gpu.copy(d.z, d.y, kBytes);
    });
  EXPECT(d.at(d.z, 1) == 4);
  EXPECT(d.counts().captured == 0);
  EXPECT(d.counts().steps == 3);
  EXPECT(test::error_of([&] { d.step([&] { d.gpu.begin_step(); }); }).kind == Kind::internal);
}

TEST_CASE("cuda steps: a step like earlier ones allocates nothing") {
  if (skipped()) return;
  Rig d;
  const std::vector<float> large(3000, 1.f);
  auto* room = static_cast<float*>(d.gpu.allocate(12000));
  for (int32_t u = 0; u < 8; ++u) {
    test::count_allocations(true);
    {
      StepScope scope(&d.gpu);
      for (int i = 0; i < 50; ++i) d.scale(static_cast<float>(u + i));
      d.gpu.list(d.z, &u, 4);
      d.gpu.upload(room, large.data(), 12000);
      d.gpu.late(d.y, 4);
      scope.end();
    }
    const int64_t allocations = test::allocations();
    test::count_allocations(false);
    if (u >= 4) EXPECT_MESSAGE(allocations == 0, allocations);
  }
  EXPECT(d.counts().replayed == 6);
  d.gpu.release(room);
}

}  // namespace sft::cuda
