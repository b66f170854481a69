#include <nlohmann/json.hpp>
#include <sstream>

#include "tests/run_program.h"
#include "tests/train/tiny_speech.h"

using namespace sft;
using test::run_program;
using test::TinySpeech;

namespace {

// id -> words of a trn file.
std::map<std::string, std::string> read_trn(const std::string& path) {
  std::map<std::string, std::string> lines;
  std::istringstream text(read_text(path));
  for (std::string line; std::getline(text, line);) {
    const size_t open = line.rfind('(');
    lines[line.substr(open + 1, line.size() - open - 2)] = line.substr(0, open > 0 ? open - 1 : 0);
  }
  return lines;
}

}  // namespace

TEST_CASE("sft-transcribe: hears what the run's evaluation did, at any rate; --json") {
  if (test::absent("sft-transcribe")) return;
  const TinySpeech speech;
  const TrainJob job = speech.job("run", {"train.steps=20", "optim.lr=0.02"});
  const TrainerReport report = finetune(job);
  const auto expected = read_trn(job.run + "/eval/" + step_name(report.best_step) + "/hyp.trn");
  const std::string a = speech.folder / "0.wav", b = speech.folder / "1.wav";
  const auto plain = run_program("sft-transcribe", {job.run, a, b});
  INFO(plain.err);
  REQUIRE(plain.code == 0);
  EXPECT(plain.out ==
         fmt::format("{}\t{}\n{}\t{}\n", a, expected.at("dev0"), b, expected.at("dev1")));
  const auto json = run_program("sft-transcribe", {job.run, a, "--json"});
  EXPECT(nlohmann::json::parse(json.out) ==
         nlohmann::json{{"path", a}, {"text", expected.at("dev0")}});
  test::write_wav(speech.folder / "8k.wav", test::golden_signal(1, 8000), 8000);
  EXPECT(run_program("sft-transcribe", {job.run, speech.folder / "8k.wav"}).code == 0);
}

TEST_CASE("sft-transcribe: a run's linear head hears the same as a folder for transformers") {
  if (test::absent("sft-transcribe") || test::absent("sft-convert")) return;
  const TinySpeech speech;
  const TrainJob job = speech.job("run", {"train.steps=20", "optim.lr=0.02"});
  finetune(job);
  const std::string hf = speech.folder / "hf", wav = speech.folder / "0.wav";
  const auto converted = run_program("sft-convert", {job.run, "-o", hf});
  INFO(converted.err);
  REQUIRE(converted.code == 0);
  EXPECT(converted.out.find("dropped") == std::string::npos);
  const auto heard = run_program("sft-transcribe", {hf, wav});
  EXPECT(heard.code == 0);
  EXPECT(heard.out == run_program("sft-transcribe", {job.run, wav}).out);
  EXPECT(heard.out.size() > wav.size() + 3);
}

TEST_CASE("sft-transcribe: classes are printed by name") {
  if (test::absent("sft-transcribe")) return;
  const TinySpeech speech;
  const TrainJob job = speech.job("run", {"train.steps=3"}, "classify");
  finetune(job);
  const std::string a = speech.folder / "0.wav";
  const auto plain = run_program("sft-transcribe", {job.run, a});
  EXPECT((plain.out == a + "\ts0\n" || plain.out == a + "\ts1\n"));
}

TEST_CASE("sft-transcribe: a model without a head, audio too short, no audio") {
  if (test::absent("sft-transcribe")) return;
  const TinySpeech speech;
  const auto fails = [](const std::vector<std::string>& arguments, const std::string& what) {
    const auto o = run_program("sft-transcribe", arguments);
    EXPECT(o.code == 3);
    EXPECT(o.out.empty());
    EXPECT_MESSAGE(o.err.find(what) != std::string::npos, o.err);
  };
  fails({speech.model, speech.folder / "0.wav"}, "has no task head");
  const TrainJob job = speech.job("run", {"train.steps=1"});
  finetune(job);
  test::write_wav(speech.folder / "short.wav", std::vector<float>(399));
  fails({job.run, speech.folder / "short.wav"}, "399 samples at 16 kHz (expected at least 400)");
  write_text(speech.folder / "text.wav", "not audio\n");
  fails({job.run, speech.folder / "text.wav"}, "text.wav");
  fails({job.run, speech.folder / "none.wav"}, "none.wav");
  EXPECT(run_program("sft-transcribe", {job.run}).code == 2);
}
