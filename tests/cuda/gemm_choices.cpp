// What a run remembers of how its products were computed.
#include "engine/cuda/gemm_choices.h"

#include <cstdlib>
#include <filesystem>

#include "engine/cuda/emulator/lstm_faults.h"
#include "engine/cuda/runtime.h"
#include "tests/op_spec.h"
#include "tests/train/tiny_speech.h"

namespace sft::cuda {
namespace {

namespace fs = std::filesystem;

GemmChoices some_choices() {
  GemmChoices choices{.by = "a library 1.2 on some device, sm_90"};
  for (int64_t i = 0; i < 3; ++i) {
    GemmKey key;
    key.transpose_b = true, key.bias = i == 1, key.in = Dtype::bf16;
    key.M = 10 + i, key.N = 7, key.K = int64_t{1} << 40, key.ldc = 9, key.align_c = 4;
    choices.algorithms[key] = {0xfedcba9876543210, 0, static_cast<uint64_t>(i % 2)};
  }
  choices.lstms[{Dtype::bf16, 512, 256, 2}] = kOwnKernels;
  choices.lstms[{Dtype::f32, 9, 8, 1}] = "a library 3.4";
  return choices;
}

std::string replaced(std::string text, const std::string& what, const std::string& with) {
  const size_t at = text.find(what);
  REQUIRE(at != text.npos);
  return text.replace(at, what.size(), with);
}

// Lines of a run that goes on from its first checkpoint.
std::vector<std::string> resume_from(TrainJob job, int64_t step) {
  fs::remove(job.run + "/done");
  for (const auto& entry : fs::directory_iterator(job.run + "/ckpt"))
    if (entry.is_directory() && entry.path().filename() != step_name(step))
      fs::remove_all(entry.path());
  job.resume = true;
  std::vector<std::string> said;
  job.say = [&](const std::string& line) { said.push_back(line); };
  finetune(job);
  return said;
}

bool any_contains(const std::vector<std::string>& lines, const char* text) {
  return std::any_of(lines.begin(), lines.end(),
                     [&](const std::string& line) { return line.find(text) != line.npos; });
}

}  // namespace

TEST_CASE("gemm choices: written and read") {
  const GemmChoices choices = some_choices();
  const std::string text = to_text(choices);
  const GemmChoices read = parse_gemm_choices(text, "gemm.txt");
  EXPECT(read.by == choices.by);
  EXPECT(read.algorithms == choices.algorithms);
  EXPECT(read.lstms == choices.lstms);
  EXPECT(to_text(read) == text);
  EXPECT(parse_gemm_choices(to_text({}), "gemm.txt").algorithms.empty());
}

TEST_CASE("gemm choices: a key holds alignments, and no address") {
  alignas(32) float memory[64];
  const Gemm g{.M = 2, .N = 3, .K = 4, .A = memory, .lda = 4, .B = memory, .C = memory, .ldc = 3};
  Gemm moved = g;
  moved.A = memory + 8;
  EXPECT(GemmKey(moved) == GemmKey(g));
  moved.A = memory + 1;
  EXPECT(GemmKey(moved) != GemmKey(g));
  EXPECT(GemmKey(moved).align_a == 4);
  moved = g, moved.from = memory, moved.ldfrom = 3;
  EXPECT(GemmKey(moved) == GemmKey(g));
}

TEST_CASE("gemm choices: a file that is none") {
  const std::string text = to_text(some_choices());
  const auto rejected = [](const std::string& damaged) {
    const Error e = test::error_of([&] { parse_gemm_choices(damaged, "run/gemm.txt"); });
    EXPECT(e.kind == Kind::input);
    EXPECT(e.message.starts_with("run/gemm.txt: line "));
    EXPECT(e.message.find("not a record of products") != std::string::npos);
  };
  for (size_t length = 0; length < text.size(); length += 7) rejected(text.substr(0, length));
  rejected(text + "x");
  rejected(replaced(text, "gemm 1", "gemm 2"));
  rejected(replaced(text, "bf16", "f16"));
  rejected(replaced(text, "product 0", "product 2"));
  rejected(replaced(text, "product 0", "product -1"));
  rejected(replaced(text, "product 0", "product"));
  rejected(replaced(text, " 10 7 ", " 0 7 "));
  rejected(replaced(text, " 10 7 ", " 99999999999999999999 7 "));
  rejected(replaced(text, " 10 7 ", " 12 7 "));  // there twice
  rejected(replaced(text, " 4 16 16 0", " 3 16 16 0"));
  rejected(replaced(text, " 4 16 16 0", " 4 16 16 2"));
  rejected(replaced(text, " 4 16 16 0", " 4 16 16"));
  rejected(replaced(text, "fedcba9876543210", "fedcba987654321x"));
  rejected(replaced(text, "fedcba9876543210", "1fedcba9876543210"));
  rejected(replaced(text, "lstm bf16 512", "lstm bf16 0"));
  rejected(replaced(text, "256 2 our", "256 3 our"));
  rejected(replaced(text, "1 a library 3.4", "1 "));
  rejected(replaced(text, "f32 9 8 1", "bf16 512 256 2"));  // there twice
  rejected(replaced(text, "end 3", "end 2"));
}

TEST_CASE("gemm choices: a run on a device goes on with those it began with") {
  if (const std::string why = no_gpu(); !why.empty()) return test::skip(why);
  const test::TinySpeech speech(4, 300);
  const TrainJob job =
      speech.job("run", {"run.device=cuda", "train.steps=4", "eval.every=2", "ckpt.keep=4"});
  finetune(job);
  const std::string path = job.run + "/gemm.txt";
  const GemmChoices begun = parse_gemm_choices(read_text(path), path);
  REQUIRE(begun.algorithms.size() > 10);
  const auto record = [&](const GemmChoices& choices) {
    write_text(path, to_text(choices), Existing::replace);
  };

  SUBCASE("a recorded algorithm is used again, though another would be chosen now") {
    GemmChoices other = begun;
    other.algorithms.begin()->second[1] ^= 1;
    if (begun.by != "the emulator's library") return;  // only its algorithms can be made up
    record(other);
    EXPECT(!any_contains(resume_from(job, 2), "chosen anew"));
    EXPECT(parse_gemm_choices(read_text(path), path).algorithms == other.algorithms);
  }
  SUBCASE("without the file nothing is said") {
    fs::remove(path);
    EXPECT(!any_contains(resume_from(job, 2), "chosen anew"));
    EXPECT(parse_gemm_choices(read_text(path), path).by == begun.by);
  }
  SUBCASE("an algorithm that the library refuses, or a kind it has not met, is chosen anew") {
    GemmChoices other = begun;
    other.algorithms.begin()->second = {};
    record(other);
    EXPECT(any_contains(resume_from(job, 2), "algorithms of 1 of "));
    EXPECT(parse_gemm_choices(read_text(path), path).algorithms == begun.algorithms);
  }
  SUBCASE("another library or device") {
    GemmChoices other = begun;
    other.by = "another\x1b library";
    record(other);
    EXPECT(any_contains(resume_from(job, 2), "recorded with another\\x1b library, this is "));
    EXPECT(parse_gemm_choices(read_text(path), path).by == begun.by);
  }
  SUBCASE("a damaged file") {
    write_text(path, to_text(begun).substr(0, 100), Existing::replace);
    const Error e = test::error_of([&] { resume_from(job, 2); });
    EXPECT(e.kind == Kind::input);
    EXPECT(e.message.starts_with(path));
  }
}

TEST_CASE("gemm choices: LSTM layers of a run that goes on are computed by whom they were") {
  if (const std::string why = no_gpu(); !why.empty()) return test::skip(why);
  if (!emulator::lstm_library_has) return test::skip("needs the emulator");
  const test::TinySpeech speech(4, 300);
  const auto job = [&](const char* run) {
    return speech.job(run, {"run.device=cuda", "train.steps=4", "eval.every=2", "ckpt.keep=4",
                            "head.kind=blstm", "head.layers=1", "model.dropout=0"});
  };
  const auto whole = [](const TrainJob& job) {
    finetune(job);
    return read_text(job.run + "/ckpt/step-00000004/model.gguf", 1 << 24);
  };
  const auto again = [](const TrainJob& job) {
    return read_text(job.run + "/ckpt/step-00000004/model.gguf", 1 << 24);
  };
  SUBCASE("our own kernels, though there is a library now") {
    setenv("SFT_CUDNN", "off", 1);
    const std::string began = whole(job("own"));
    unsetenv("SFT_CUDNN");
    EXPECT(any_contains(resume_from(job("own"), 2), "our own kernels (as when the run began)"));
    EXPECT(again(job("own")) == began);
    EXPECT(whole(job("library")) != began);
  }
  SUBCASE("the library, and it is said when that is gone") {
    const std::string began = whole(job("library"));
    EXPECT(any_contains(resume_from(job("library"), 2), "twin (agrees with our own kernels)"));
    EXPECT(again(job("library")) == began);
    emulator::lstm_library_has(emulator::LstmFault::absent);
    const auto said = resume_from(job("library"), 2);
    emulator::lstm_library_has(emulator::LstmFault::none);
    EXPECT(any_contains(said, "(no library: no such library here; the run began with the emul"));
  }
}

TEST_CASE("gemm choices: a run on the CPU has none") {
  const test::TinySpeech speech(3);
  const TrainJob job = speech.job("run", {"train.steps=1"});
  finetune(job);
  EXPECT(!fs::exists(job.run + "/gemm.txt"));
}

}  // namespace sft::cuda
