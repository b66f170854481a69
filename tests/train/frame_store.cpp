#include "train/frame_store.h"

#include <cerrno>
#include <filesystem>

#include "engine/prepared.h"
#include "engine/transfer.h"
#include "tests/doctest.h"
#include "tests/temporary_folder.h"

using namespace sft;

namespace {

// Rows of one frame more each, whose values tell them apart.
struct Setup {
  test::TemporaryFolder folder;
  Arena acts, scratch;
  Prepared prepared;
  Context ctx{.acts = acts, .scratch = scratch, .prepared = prepared};

  static int64_t bytes(uint32_t row) { return 8 * (row + 1) * int64_t{sizeof(float)}; }
  static std::vector<int64_t> all(uint32_t rows) {
    std::vector<int64_t> sizes;
    for (uint32_t row = 0; row < rows; ++row) sizes.push_back(bytes(row));
    return sizes;
  }
  Tensor frames(uint32_t row, bool filled = true) {
    const Tensor out = ctx.activation({row + 1, 8});
    for (int64_t i = 0; i < out.count(); ++i)
      out.f32()[i] = filled ? static_cast<float>(100 * row + i) : 0;
    return out;
  }
  bool gives_back(FrameStore& store, uint32_t row) {
    const Tensor want = frames(row), got = frames(row, false);
    store.get(ctx, row, got);
    return std::equal(want.f32(), want.f32() + want.count(), got.f32());
  }
};

}  // namespace

TEST_CASE("frame_store: memory first, then disk, then nothing; a row comes back as it was") {
  Setup s;
  FrameStore store(Setup::all(6), {.memory = 256, .disk = 400, .folder = s.folder.path()});
  for (uint32_t row = 0; row < 6; ++row) {
    EXPECT(!store.filled(row));
    EXPECT(store.has_place(row) == (row < 5));
  }
  EXPECT(store.memory_bytes() <= 256);
  EXPECT(store.disk_bytes() == Setup::bytes(3) + Setup::bytes(4));
  for (uint32_t row : {4, 0, 3, 1, 2}) store.put(s.ctx, row, s.frames(row));
  for (uint32_t row = 0; row < 5; ++row) {
    REQUIRE(store.filled(row));
    store.will_need(row);
    EXPECT(s.gives_back(store, row));
  }
  EXPECT(std::filesystem::is_empty(s.folder.path()));  // the file has no name
}

TEST_CASE("frame_store: a full disk costs what is not there yet, and no more") {
  Setup s;
  FrameStore store(Setup::all(3), {.disk = 1 << 20, .folder = s.folder.path()});
  store.put(s.ctx, 1, s.frames(1));
  EXPECT(store.disk_failed().empty());
  {
    const io::ScopedHook full(
        [](io::Op op, const std::string&) { return op == io::Op::write ? ENOSPC : 0; });
    store.put(s.ctx, 2, s.frames(2));
  }
  EXPECT(store.disk_failed() == "No space left on device");
  EXPECT(!store.filled(2));
  EXPECT(!store.has_place(0));
  EXPECT(!store.has_place(2));
  EXPECT(s.gives_back(store, 1));
}

TEST_CASE("frame_store: what cannot be read back is an error; so is a folder that is not there") {
  Setup s;
  FrameStore store(Setup::all(2), {.disk = 1 << 20, .folder = s.folder.path()});
  store.put(s.ctx, 0, s.frames(0));
  const Tensor to = s.frames(0);
  const io::ScopedHook broken(
      [](io::Op op, const std::string&) { return op == io::Op::read ? EIO : 0; });
  EXPECT(test::error_of([&] { store.get(s.ctx, 0, to); }).kind == Kind::resource);
  FrameStore nowhere(Setup::all(1), {.disk = 1 << 20, .folder = s.folder / "missing"});
  EXPECT(test::error_of([&] { nowhere.put(s.ctx, 0, to); }).kind == Kind::resource);
}

TEST_CASE("frame_store: free disk space, of the nearest folder that is there") {
  const test::TemporaryFolder folder;
  EXPECT(free_disk(folder.path()) > 0);
  EXPECT(free_disk(folder / "not/there/yet") > 0);
  EXPECT(free_disk("not-there-either") > 0);
}
