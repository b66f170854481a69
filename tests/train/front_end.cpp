#include "train/front_end.h"

#include "models/checkpoint.h"
#include "tests/train/tiny_speech.h"
#include "train/data_check.h"

using namespace sft;

namespace {

const FrameBudget kInMemory{.memory = int64_t{1} << 30};

// An encoder whose convolutions are frozen, or not, over the training rows of a tiny manifest.
struct Setup {
  test::TinySpeech speech;
  Manifest manifest = read_manifest(speech.manifest).select("train");
  AudioLoader loader{manifest, 1, 0};
  ModelFile file = open_model(speech.model);
  Encoder encoder{file.config};
  ParamStore store;
  Arena acts, scratch;
  Context ctx{.acts = acts, .scratch = scratch, .prepared = store.prepared()};
  Tape tape{ctx};
  std::vector<int64_t> samples;

  explicit Setup(bool frozen) {
    store.bind(param_requests(encoder), file.tensors, "tiny",
               [&](std::string_view) { return frozen ? -1 : 0; }, {"all"});
    for (const CheckedRow& row : check_data(manifest, {}).rows) samples.push_back(row.samples);
  }

  std::vector<float> frames(FrontEnd& front_end, const std::vector<uint32_t>& rows) {
    acts.rewind(), scratch.rewind();
    const Tensor out = front_end.frames(tape, rows);
    const std::vector<float> values(out.f32(), out.f32() + out.count());
    tape.clear();
    front_end.give_back(rows);
    return values;
  }
};

}  // namespace

TEST_CASE("front_end: cached frames have the bits of fresh ones, whoever shares the batch") {
  Setup s(/*frozen=*/true);
  FrontEnd cached(s.encoder, s.loader, s.samples, kInMemory);
  FrontEnd fresh(s.encoder, s.loader, s.samples, {});
  EXPECT(cached.store().memory_bytes() > 0);
  EXPECT(fresh.store().memory_bytes() == 0);
  const std::vector<float> first = s.frames(cached, {0, 3, 5});
  EXPECT(s.frames(fresh, {0, 3, 5}) == first);
  EXPECT(s.frames(cached, {0, 3, 5}) == first);
  const std::vector<float> alone = s.frames(cached, {3});
  EXPECT(std::search(first.begin(), first.end(), alone.begin(), alone.end()) != first.end());
  // the audio of a cached row is not needed any more
  write_text(s.speech.folder / "3.wav", "", Existing::replace);
  EXPECT(s.frames(cached, {3}) == alone);
  EXPECT(test::error_of([&] { s.frames(fresh, {3}); }).kind == Kind::input);
}

TEST_CASE("front_end: frames kept on disk are those kept in memory") {
  Setup s(/*frozen=*/true);
  FrontEnd memory(s.encoder, s.loader, s.samples, kInMemory);
  FrontEnd disk(s.encoder, s.loader, s.samples,
                {.disk = int64_t{1} << 30, .folder = s.speech.folder.path()});
  EXPECT(disk.store().memory_bytes() == 0);
  EXPECT(frames_on_disk(disk, memory).bytes == disk.store().disk_bytes());
  const std::vector<float> first = s.frames(disk, {4, 1});
  EXPECT(first == s.frames(memory, {4, 1}));
  disk.prefetch(std::vector<uint32_t>{1, 4});
  EXPECT(s.frames(disk, {4, 1}) == first);
  EXPECT(disk.audio_bytes(7, int64_t{1} << 40) == 7);
}

TEST_CASE("front_end: training convolutions give the frames that frozen ones do") {
  Setup frozen(true), training(false);
  FrontEnd a(frozen.encoder, frozen.loader, frozen.samples, {});
  FrontEnd b(training.encoder, training.loader, training.samples, kInMemory);
  EXPECT(b.store().memory_bytes() == 0);
  const std::vector<float> x = frozen.frames(a, {1, 2}), y = training.frames(b, {1, 2});
  REQUIRE(x.size() == y.size());
  EXPECT(test::relative_error(y.data(), x.data(), static_cast<int64_t>(x.size())) < 1e-5);
}

TEST_CASE("front_end: the cache takes the first rows that fit its budget") {
  Setup s(true);
  const int64_t row = s.file.config.frames(s.samples[0]) * s.file.config.conv_dims.back() *
                      static_cast<int64_t>(sizeof(float));
  FrontEnd front_end(s.encoder, s.loader, s.samples, {row + 64, 0, ""});
  EXPECT(front_end.store().memory_bytes() >= row);
  EXPECT(front_end.store().memory_bytes() < row + 128);
  EXPECT(front_end.audio_bytes(0, int64_t{1} << 40) > 0);
  EXPECT(front_end.audio_bytes(7, 0) == 7);
}

TEST_CASE("front_end: a file that changed since the check is an error that names its row") {
  Setup s(true);
  FrontEnd front_end(s.encoder, s.loader, s.samples, {});
  test::write_wav(s.speech.folder / "2.wav", std::vector<float>(9000));
  const Error e = test::error_of([&] { s.frames(front_end, {2}); });
  EXPECT(e.kind == Kind::input);
  EXPECT(e.message.find("id train2: has 9000 samples now, had 11400") != std::string::npos);
}
