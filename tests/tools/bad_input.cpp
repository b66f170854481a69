// What users get for audio, weights, machines and sizes that cannot work: right results, or one
// clear error with its exit code.
#include <sys/resource.h>
#include <unistd.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>

#include "engine/formats/safetensors.h"
#include "tests/run_program.h"
#include "tests/train/tiny_speech.h"

using namespace sft;
using test::Outcome;
using test::run_program;
using test::TinySpeech;

namespace {

class Environment {
 public:
  Environment(const char* name, const char* value) : name_(name) { setenv(name, value, 1); }
  ~Environment() { unsetenv(name_); }

 private:
  const char* name_;
};

void expect_one_error(const Outcome& o, int code, const std::string& part) {
  EXPECT_MESSAGE(o.code == code, o.err);
  EXPECT(o.out.empty());
  EXPECT_MESSAGE(o.err.find(part) != std::string::npos, o.err);
  EXPECT_MESSAGE(std::count(o.err.begin(), o.err.end(), '\n') <= 2, o.err);  // with its hint
}

void write_floats(const std::string& path, const std::vector<float>& samples) {
  SF_INFO info{.samplerate = 16000, .channels = 1, .format = SF_FORMAT_WAV | SF_FORMAT_FLOAT};
  SNDFILE* file = sf_open(path.c_str(), SFM_WRITE, &info);
  REQUIRE(file != nullptr);
  sf_write_float(file, samples.data(), static_cast<sf_count_t>(samples.size()));
  sf_close(file);
}

// 24 hours of silence that take no room on the disk.
void write_day(const std::string& path) {
  constexpr uint32_t kRate = 8000, kBytes = 24 * 3600 * kRate;  // 8 bits, mono
  std::string head("RIFF\0\0\0\0WAVEfmt \x10\0\0\0\1\0\1\0", 24);
  const auto number = [&](uint32_t n) { head.append(reinterpret_cast<const char*>(&n), 4); };
  number(kRate), number(kRate);
  head.append("\1\0\x08\0data", 8);
  number(kBytes);
  const uint32_t riff = kBytes + 36;
  std::memcpy(head.data() + 4, &riff, 4);
  write_text(path, head);
  REQUIRE(truncate(path.c_str(), static_cast<off_t>(head.size()) + kBytes) == 0);
}

// A model small on disk whose states of a day need a terabyte.
std::string hungry_model(const std::string& path) {
  const Outcome o = run_program(
      "sft-init", {"hubert-tiny", "--set", "hubert.conv.dims=512,512,8,8,8,8,8", "-o", path});
  REQUIRE(o.code == 0);
  return path;
}

}  // namespace

TEST_CASE("bad input: arithmetic that the CPU has not is one error of every tool") {
  const TinySpeech speech;
  const std::string wav = speech.folder / "0.wav", out = speech.folder / "out";
  const std::vector<std::vector<std::string>> commands{
      {"sft-extract", speech.model, wav, "-o", out},
      {"sft-transcribe", speech.model, wav},
      {"sft-train", speech.model, "--ctc", "text", "--data", speech.manifest, "-o", out},
      {"sft-probe", speech.model, "--task", "sid", "--data", speech.manifest, "-o", out},
      {"sft-pretrain", speech.model, "--data", speech.manifest, "-o", out},
      {"sft-bench", "ceilings"},
      {"sft-bench", "ops", "--op", "linear"},
      {"sft-bench", "model", "hubert-tiny"}};
  for (const char* isa : {"avx2", "scalar"}) {
    const Environment environment("SFT_ISA", isa);
    for (const char* math : {"fast16", "bf16"})
      for (std::vector<std::string> command : commands) {
        if (test::program_path(command[0]).empty()) continue;
        const std::string tool = command[0];
        command.erase(command.begin());
        command.insert(command.end(), {"--math", math, "-q"});
        const Outcome o = run_program(tool, command);
        INFO(tool);
        expect_one_error(o, 4,
                         fmt::format("--math {} needs a CPU with AVX-512 and {}\nhint: ", math,
                                     math == std::string("bf16") ? "BF16" : "VNNI"));
      }
  }
  EXPECT(!std::filesystem::exists(out));
}

TEST_CASE("bad input: audio that is no number is refused by name") {
  const TinySpeech speech;
  const TrainJob job = speech.job("run", {"train.steps=1"});
  finetune(job);
  for (const float bad : {std::nanf(""), INFINITY, -INFINITY, 1e30f}) {
    std::vector<float> wave(4000, 0.1f);
    wave[3000] = bad;
    const std::string path = speech.folder / "bad.wav";
    write_floats(path, wave);
    if (!test::program_path("sft-extract").empty())
      expect_one_error(
          run_program("sft-extract", {speech.model, path, "-o", speech.folder / "out", "-q"}), 3,
          "bad.wav: sample 3000 is ");
    if (!test::program_path("sft-transcribe").empty())
      expect_one_error(run_program("sft-transcribe", {job.run, path, "-q"}), 3,
                       "bad.wav: sample 3000 is ");
  }
  EXPECT(!std::filesystem::exists(speech.folder / "out/bad.safetensors"));
}

TEST_CASE("bad input: weights that are no numbers are refused by name") {
  if (test::absent("sft-transcribe")) return;
  const TinySpeech speech;
  const TrainJob job = speech.job("run", {"train.steps=1"});
  finetune(job);
  for (const char* name : {"enc.0.ffn.up.weight", "task.out.bias"})
    for (const float bad : {std::nanf(""), -INFINITY}) {
      ModelFile model = open_model(job.run);
      const Tensor tensor = model.tensors.find(name);
      std::vector<float> values(tensor.f32(), tensor.f32() + tensor.count());
      values[2] = bad;
      model.tensors.add_owned(name, tensor.shape, values);
      const std::string path = speech.folder / "bad.gguf";
      save_model(path, "gguf", model.config, model.tensors, Existing::replace);
      expect_one_error(run_program("sft-transcribe", {path, speech.folder / "0.wav", "-q"}), 3,
                       fmt::format("bad.gguf: tensor {}: element 2 is ", name));
    }
}

TEST_CASE("bad input: one frame is enough, in every arithmetic") {
  if (test::absent("sft-extract") || test::absent("sft-transcribe")) return;
  const TinySpeech speech;
  const TrainJob job = speech.job("run", {"train.steps=1"});
  finetune(job);
  const std::string path = speech.folder / "frame.wav";
  test::write_wav(path, test::golden_signal(5, 400));
  std::vector<float> exact;
  for (const char* math : {"exact", "fast16", "bf16"}) {
    const std::string out = speech.folder / math;
    const Outcome o = run_program("sft-extract", {speech.model, path, "-o", out, "--math", math});
    if (o.code == 4 && std::string(math) != "exact") continue;  // not this CPU's
    EXPECT_MESSAGE(o.code == 0, o.err);
    const TensorFile file = open_safetensors(out + "/frame.safetensors");
    const TensorInfo& info = file.tensors()[0];
    EXPECT(info.shape[0] == 1);
    std::vector<float> state(static_cast<size_t>(info.shape.count()));
    file.read_f32(info, state);
    if (exact.empty()) exact = state;
    EXPECT(test::relative_error(state.data(), exact.data(), std::ssize(exact)) < 1.5e-2);
    EXPECT(run_program("sft-transcribe", {job.run, path, "--math", math}).code == 0);
  }
}

TEST_CASE("bad input: what does not fit in memory is refused before it is decoded") {
  if (test::absent("sft-extract") || test::absent("sft-init")) return;
  const test::TemporaryFolder folder;
  const std::string model = hungry_model(folder / "m.gguf"), day = folder / "day.wav";
  write_day(day);
  const Outcome extract = run_program("sft-extract", {model, day, "-o", folder / "out", "-q"});
  expect_one_error(extract, 4, "86400.0 s of audio in one file need ");
  EXPECT(extract.err.find("hint: --window 30") != std::string::npos);
  EXPECT(extract.cpu_seconds < 20);
  EXPECT(!std::filesystem::exists(folder / "out"));
  if (!test::program_path("sft-bench").empty())
    expect_one_error(run_program("sft-bench", {"model", "hubert-base", "--mix", "fixed:600",
                                               "--batch", "100", "-q"}),
                     4, "a step needs ");
  if (test::absent("sft-transcribe")) return;
  ModelFile with_head = open_model(model);
  with_head.config.task = {.kind = "ctc", .head = "linear", .units = {"-", "a"}};
  with_head.tensors.add_owned("task.out.weight", {2, with_head.config.width},
                              std::vector<float>(2 * with_head.config.width, 0.01f));
  with_head.tensors.add_owned("task.out.bias", {2}, {0, 0});
  save_model(folder / "head.gguf", "gguf", with_head.config, with_head.tensors);
  const Outcome heard = run_program("sft-transcribe", {folder / "head.gguf", day, "-q"});
  expect_one_error(heard, 4, "day.wav: 86400.0 s of audio need ");
  EXPECT(heard.cpu_seconds < 20);
}
