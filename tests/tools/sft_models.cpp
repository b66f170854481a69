// sft-init, sft-info, sft-convert and sft-extract as a user sees them.
#include <sndfile.h>
#include <sys/resource.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "engine/formats/safetensors.h"
#include "engine/io/file.h"
#include "models/checkpoint.h"
#include "tests/doctest.h"
#include "tests/golden_signal.h"
#include "tests/run_program.h"
#include "tests/temporary_folder.h"

using namespace sft;
using test::Outcome;
using test::run_program;
namespace fs = std::filesystem;
using Json = nlohmann::json;

namespace {

std::string folder_of(const std::string& name) { return test::golden("models/" + name); }

void write_audio(const std::string& path, const std::vector<float>& samples, int channels = 1,
                 int rate = 16000, int format = SF_FORMAT_WAV | SF_FORMAT_FLOAT) {
  SF_INFO info{.samplerate = rate, .channels = channels, .format = format};
  SNDFILE* file = sf_open(path.c_str(), SFM_WRITE, &info);
  REQUIRE(file != nullptr);
  for (float x : samples) {
    const std::vector<float> frame(static_cast<size_t>(channels), x);
    sf_writef_float(file, frame.data(), 1);
  }
  sf_close(file);
}

void expect_failure(const Outcome& o, int code, const std::string& part) {
  EXPECT(o.code == code);
  EXPECT(o.out.empty());
  EXPECT_MESSAGE(o.err.find(part) != std::string::npos, o.err);
}

// State l of utterance `stem` against the golden file of `signal`.
double error_of(const std::string& path, const test::GoldenFile& values, int64_t samples, int l) {
  const TensorFile file = open_safetensors(path);
  const TensorInfo& info = file.at(fmt::format("hidden.{}", l));
  const std::vector<float> expected = values.values(fmt::format("hidden.{}.{}", samples, l));
  std::vector<float> ours(static_cast<size_t>(info.shape.count()));
  file.read_f32(info, ours);
  REQUIRE(ours.size() == expected.size());
  return test::relative_error(ours.data(), expected.data(), info.shape.count());
}

}  // namespace

TEST_CASE("sft-init: a preset, settings, and what is wrong with them") {
  if (test::absent("sft-init")) return;
  const test::TemporaryFolder folder;
  const std::string path = folder / "m.gguf";
  const auto init = [&](std::vector<std::string> arguments) {
    arguments.insert(arguments.end(), {"-o", path});
    return run_program("sft-init", arguments);
  };
  const Outcome o = init({"hubert-tiny", "--set", "hubert.block_count=2", "--set",
                          "hubert.conv.dims=8,8,8,8,8,8,16", "--seed", "7", "--json"});
  EXPECT(o.code == 0);
  const ModelFile model = open_model(path);
  EXPECT(Json::parse(o.out).at("id") == model_id(model.tensors));
  EXPECT(model.config.layers == 2);
  EXPECT(model.config.conv_dims.back() == 16);
  EXPECT(model.config.provenance.string("general.name") == "hubert-tiny");
  EXPECT(model.config.provenance.string("general.description") ==
         "hubert-tiny, random values of seed 7");
  const std::string before = read_text(path, 64 << 20);
  expect_failure(init({"hubert-tiny"}), 2, "m.gguf: exists already\nhint: --force");
  EXPECT(init({"hubert-tiny", "--set", "hubert.block_count=2", "--set",
               "hubert.conv.dims=8,8,8,8,8,8,16", "--seed", "7", "--force"})
             .code == 0);
  EXPECT(read_text(path, 64 << 20) == before);

  fs::remove(path);
  expect_failure(init({"hubert-tiny", "--set", "hubert.blok_count=2"}), 2,
                 "--set: there is no key hubert.blok_count\nhint: did you mean hubert.block_count");
  expect_failure(init({"hubert-tiny", "--set", "hubert.block_count=two"}), 2,
                 "--set hubert.block_count: 'two' (expected a whole number)");
  expect_failure(init({"hubert-tiny", "--set", "hubert.attention.head_count=3"}), 2,
                 "attention.head_count 3 does not divide embedding_length 128");
  expect_failure(init({"hubert-tiny", "--set", "hubert.block_count"}), 2, "(expected KEY=VALUE)");
  expect_failure(init({"hubert-teeny"}), 2,
                 "there is no preset hubert-teeny (expected data2vec-audio-base, ");
  EXPECT(!fs::exists(path));
  const Outcome nowhere =
      run_program("sft-init", {"hubert-tiny", "-o", folder / "no/such/folder/m.gguf"});
  expect_failure(nowhere, 4, "m.gguf");
}

TEST_CASE("sft-init: over the limit of file sizes: one line, nothing left") {
  if (test::absent("sft-init")) return;
  const test::TemporaryFolder folder;
  rlimit limit;
  REQUIRE(getrlimit(RLIMIT_FSIZE, &limit) == 0);
  const rlimit small = {100'000, limit.rlim_max};
  REQUIRE(setrlimit(RLIMIT_FSIZE, &small) == 0);
  const Outcome o = run_program("sft-init", {"hubert-tiny", "-o", folder / "m.gguf"});
  REQUIRE(setrlimit(RLIMIT_FSIZE, &limit) == 0);
  expect_failure(o, 4, "m.gguf: cannot write (File too large");
  EXPECT(fs::is_empty(folder.path()));
}

TEST_CASE("sft-info: configuration, tensors, checks") {
  if (test::absent("sft-info")) return;
  const Outcome text = run_program("sft-info", {folder_of("hubert-group")});
  EXPECT(text.code == 0);
  EXPECT(text.err.empty());
  EXPECT(text.out.find("loaded 67/67 tensors, hubert, 3 layers of 32, 41K parameters, id ") !=
         std::string::npos);
  EXPECT(text.out.find("hubert.embedding_length\t32\n") != std::string::npos);
  const Outcome o =
      run_program("sft-info", {folder_of("hubert-group"), "--tensors", "--check", "--json"});
  EXPECT(o.code == 0);
  const Json report = Json::parse(o.out);
  EXPECT(report.at("config").at("hubert.conv.norm") == "group");
  EXPECT(report.at("table").size() == 67);
  EXPECT(report.at("table")[0].at("not_finite") == 0);
  const Outcome table = run_program("sft-info", {folder_of("hubert-group"), "--tensors"});
  EXPECT(table.out.find("\nconv.0.weight\t[16, 1, 10]\tf32\t") != std::string::npos);
}

TEST_CASE("sft-info: values that are not finite fail the check, and only it") {
  if (test::absent("sft-info")) return;
  const test::TemporaryFolder folder;
  ModelFile model = open_model(folder_of("hubert-group"));
  std::vector<float> norm(32, 1);
  norm[5] = NAN, norm[6] = INFINITY;
  model.tensors.add_owned("enc.norm.weight", {32}, norm);
  const std::string path = folder / "nan.gguf";
  save_model(path, "gguf", model.config, model.tensors);
  EXPECT(run_program("sft-info", {path}).code == 0);
  const Outcome o = run_program("sft-info", {path, "--check"});
  EXPECT(o.code == 6);
  EXPECT(o.err == fmt::format("sft-info: error: {}: 2 values in 1 tensors are not finite, first in "
                              "enc.norm.weight\n",
                              path));
  // and nothing is computed from, or made of, such a file
  if (test::absent("sft-convert")) return;
  expect_failure(run_program("sft-convert", {path, "-o", folder / "out.gguf"}), 3,
                 "tensor enc.norm.weight: element 5 is nan (expected finite numbers)");
  EXPECT(!fs::exists(folder / "out.gguf"));
  write_audio(folder / "a.wav", test::golden_signal(1, 4000));
  expect_failure(run_program("sft-extract", {path, folder / "a.wav", "-o", folder / "out"}), 3,
                 "tensor enc.norm.weight: element 5 is nan");
}

TEST_CASE("sft-info: a layer that nobody trained fails the check by name") {
  if (test::absent("sft-info")) return;
  const test::TemporaryFolder folder;
  ModelFile model = open_model(folder_of("hubert-group"));
  const Shape shape = model.tensors.find("enc.1.attn.v.weight").shape;
  model.tensors.add_owned("enc.1.attn.v.weight", shape,
                          std::vector<float>(static_cast<size_t>(shape.count())));
  const std::string path = folder / "zero.safetensors";
  save_model(path, "safetensors", model.config, model.tensors);
  EXPECT(run_program("sft-info", {path}).code == 0);
  const Outcome o = run_program("sft-info", {path, "--check"});
  EXPECT(o.code == 6);
  EXPECT(o.out.find("\nsuspicious\twhy\nenc.1.attn.v.weight\tevery value is 0\n") !=
         std::string::npos);
  EXPECT(o.err == fmt::format("sft-info: error: {}: 1 tensors look untrained, first "
                              "enc.1.attn.v.weight: every value is 0\n",
                              path));
  const Json report = Json::parse(run_program("sft-info", {path, "--check", "--json"}).out);
  EXPECT(report.at("suspicious") ==
         Json::array({{{"tensor", "enc.1.attn.v.weight"}, {"why", "every value is 0"}}}));
  const Json table = Json::parse(run_program("sft-info", {path, "--tensors", "--json"}).out);
  for (const Json& tensor : table.at("table"))
    EXPECT((tensor.at("zeros") == shape.count()) == (tensor.at("name") == "enc.1.attn.v.weight"));
  EXPECT(!table.contains("suspicious"));
}

TEST_CASE("sft-convert: reports, verifies, refuses") {
  if (test::absent("sft-convert")) return;
  const test::TemporaryFolder folder;
  const std::string wav = folder / "a.wav", gguf = folder / "m.gguf";
  write_audio(wav, test::golden_signal(3, 9000));
  const std::string in = folder_of("wav2vec2-group");
  const Outcome o = run_program("sft-convert", {in, "-o", gguf, "--verify", wav});
  EXPECT(o.code == 0);
  EXPECT(o.out.find(in + ": loaded 65/65 tensors, wav2vec2, 2 layers of 32") == 0);
  EXPECT(o.out.find("state\tlargest difference\trelative\n0\t0\t0\n1\t0\t0\n2\t0\t0\n") !=
         std::string::npos);
  expect_failure(run_program("sft-convert", {in, "-o", gguf}), 2, "exists already");
  const Outcome back = run_program("sft-convert", {gguf, "-o", folder / "hf", "--json"});
  EXPECT(back.code == 0);
  EXPECT(Json::parse(back.out).at("format") == "hf");
  EXPECT(Json::parse(back.out).at("remarks").size() == 1);
  const Outcome third =
      run_program("sft-convert", {folder / "hf", "-o", folder / "again", "--to", "gguf"});
  EXPECT(third.code == 0);
  EXPECT(read_text(gguf, 64 << 20) == read_text(folder / "again", 64 << 20));
  expect_failure(run_program("sft-convert", {wav, "-o", folder / "x.gguf"}), 3,
                 "is audio (RIFF) (expected GGUF, safetensors or a file of PyTorch)");
  expect_failure(run_program("sft-convert", {in, "-o", folder / "x.gguf", "--to", "onnx"}), 2,
                 "--to: onnx (expected gguf, hf, safetensors, fairseq, s3prl)");
}

TEST_CASE("sft-extract: states equal the goldens, alone and in a batch") {
  if (test::absent("sft-extract")) return;
  for (const char* name : {"hubert-group", "hubert-layer", "wav2vec2-group", "wav2vec2-layer",
                           "unispeechsat-layer", "data2vec"}) {
    const test::TemporaryFolder folder;
    const test::GoldenFile values(std::string(name) + ".safetensors");
    fs::create_directories(folder / "audio/more");
    write_audio(folder / "audio/short.wav", test::golden_signal(400, 400));
    write_audio(folder / "audio/more/long.wav", test::golden_signal(21920, 21920));
    std::ofstream(folder / "audio/notes.txt") << "not audio\n";
    const Outcome o = run_program("sft-extract", {folder_of(name), folder / "audio", "--states",
                                                  "all", "-o", folder / "out", "--json"});
    EXPECT_MESSAGE(o.code == 0, o.err);
    EXPECT(Json::parse(o.out).at("utterances") == 2);
    EXPECT(Json::parse(o.out).at("frames") == 69);
    const int layers = static_cast<int>(open_model(folder_of(name)).config.layers);
    for (int l = 0; l <= layers; ++l) {
      EXPECT(error_of(folder / "out/short.safetensors", values, 400, l) < 1e-5);
      EXPECT(error_of(folder / "out/long.safetensors", values, 21920, l) < 1e-5);
    }
  }
}

TEST_CASE("sft-extract: npy, chosen states, manifests with rows too short") {
  if (test::absent("sft-extract")) return;
  const test::TemporaryFolder folder;
  write_audio(folder / "a.wav", test::golden_signal(1, 16000), 8);
  write_audio(folder / "b.wav", test::golden_signal(2, 399));
  std::ofstream(folder / "m.tsv") << "id\tpath\tseconds\tstart\tend\n"
                                     "whole\ta.wav\t1\t-\t-\n"
                                     "cut\ta.wav\t0.5\t0.25\t0.75\n"
                                     "tiny\tb.wav\t0.0249\t-\t-\n";
  const std::string model = folder_of("hubert-group"), out = folder / "out";
  const Outcome o = run_program(
      "sft-extract", {model, folder / "m.tsv", "--states", "0,2", "--format", "npy", "-o", out});
  EXPECT_MESSAGE(o.code == 0, o.err);
  EXPECT(o.out.find("2 utterances, 73 frames, 1.5 s of audio") == 0);
  EXPECT(o.out.find("1 rows too short: tiny\n") != std::string::npos);
  // 49 and 24 frames of 32 numbers behind a head of 128 bytes
  EXPECT(fs::file_size(out + "/whole/hidden.0.npy") == 128 + 49 * 32 * 4);
  EXPECT(fs::file_size(out + "/cut/hidden.2.npy") == 128 + 24 * 32 * 4);
  EXPECT(!fs::exists(out + "/cut/hidden.1.npy"));
  EXPECT(!fs::exists(out + "/tiny"));
  expect_failure(run_program("sft-extract", {model, folder / "m.tsv", "--states", "0,2", "--format",
                                             "npy", "-o", out}),
                 2, "hidden.0.npy: exists already\nhint: --force replaces it");
}

TEST_CASE("sft-extract: the peak of memory is what the plan said") {
  if (test::absent("sft-extract") || test::absent("sft-init") || test::sanitized()) return;
  const test::TemporaryFolder folder;
  const std::string model = folder / "tiny.gguf";
  REQUIRE(run_program("sft-init", {"hubert-tiny", "-o", model}).code == 0);
  for (const uint32_t seconds : {3u, 20u, 120u})
    write_audio(folder / fmt::format("{}.wav", seconds),
                test::golden_signal(seconds, int64_t{seconds} * 16000));
  const Outcome o = run_program(
      "sft-extract", {model, folder.path(), "--states", "all", "-o", folder / "out", "--json"});
  INFO(o.err);
  REQUIRE(o.code == 0);
  test::expect_as_planned(o);
}

// Without statistics over the whole utterance state 0 of a frame looks no further than the
// positional convolution does, so far from borders it is that of the whole file.
TEST_CASE("sft-extract: windows give each frame of the whole file, in its place") {
  if (test::absent("sft-extract") || test::absent("sft-init")) return;
  const test::TemporaryFolder folder;
  const std::string model = folder / "m.gguf", wav = folder / "long.wav";
  REQUIRE(run_program("sft-init", {"hubert-tiny", "--set", "hubert.conv.norm=layer", "--set",
                                   "hubert.conv.bias=true", "--set", "hubert.pos_conv.kernel=16",
                                   "--set", "hubert.input.normalize=false", "-o", model})
              .code == 0);
  write_audio(wav, test::golden_signal(1, 100'000));
  write_audio(folder / "short.wav", test::golden_signal(2, 30'000));
  const auto extract = [&](const std::string& name, std::vector<std::string> more) {
    more.insert(more.begin(), {model, wav, folder / "short.wav", "--states", "0,4", "-o",
                               folder / name, "--json"});
    const Outcome o = run_program("sft-extract", more);
    EXPECT_MESSAGE(o.code == 0, o.err);
    return Json::parse(o.out);
  };
  const auto values = [&](const std::string& path) {
    const TensorFile file = open_safetensors(folder / path);
    const TensorInfo& info = file.at("hidden.0");
    std::vector<float> all(static_cast<size_t>(info.shape.count()));
    file.read_f32(info, all);
    return all;
  };
  const Json whole = extract("whole", {});
  EXPECT(whole.at("frames") == 312 + 93);
  const Json windows = extract("windows", {"--window", "2", "--overlap", "0.4"});
  for (const char* same : {"frames", "utterances", "audio_seconds"})
    EXPECT(windows.at(same) == whole.at(same));
  EXPECT(values("windows/short.safetensors") == values("whole/short.safetensors"));
  const std::vector<float> a = values("whole/long.safetensors"),
                           b = values("windows/long.safetensors");
  REQUIRE(a.size() == b.size());
  EXPECT(test::relative_error(b.data(), a.data(), std::ssize(a)) < 1e-5);
  // without shared frames those at borders differ
  extract("apart", {"--window", "2", "--overlap", "0"});
  const std::vector<float> c = values("apart/long.safetensors");
  REQUIRE(a.size() == c.size());
  EXPECT(test::relative_error(c.data(), a.data(), std::ssize(a)) > 1e-3);
  extract("npy", {"--window", "2", "--overlap", "0.4", "--format", "npy"});
  const std::string npy = read_text(folder / "npy/long/hidden.0.npy");
  EXPECT(npy.substr(128) == std::string(reinterpret_cast<const char*>(b.data()), 4 * b.size()));
}

TEST_CASE("sft-extract: windows of any rate, of cuts; memory does not grow with the file") {
  if (test::absent("sft-extract") || test::sanitized()) return;
  const test::TemporaryFolder folder;
  const std::string model = folder_of("hubert-group");
  std::ofstream manifest(folder / "m.tsv");
  manifest << "id\tpath\tseconds\tstart\tend\n";
  for (const int rate : {8000, 44100}) {
    write_audio(folder / fmt::format("{}.wav", rate), test::golden_signal(1, 9 * rate + 7), 1,
                rate);
    manifest << rate << '\t' << rate << ".wav\t9\t-\t-\n"
             << "cut" << rate << '\t' << rate << ".wav\t7.123\t0.5\t7.623\n";
  }
  manifest.close();
  const Outcome o = run_program(
      "sft-extract", {model, folder / "m.tsv", "--window", "2.5", "-o", folder / "out", "--json"});
  EXPECT_MESSAGE(o.code == 0, o.err);
  EXPECT(Json::parse(o.out).at("frames") == 449 + 449 + 355 + 355);

  // `seconds` says how long a cut is only to two digits, or is that of another cut
  const std::string header = "id\tpath\tseconds\tstart\tend\n";
  std::ofstream(folder / "rounded.tsv") << header << "short\t8000.wav\t7.1\t0.5\t7.615\n"
                                        << "long\t8000.wav\t7.105\t0.5\t7.588\n"
                                        << "rest\t8000.wav\t7\t0.5\t-\n"
                                        << "none\t8000.wav\t1\t-\t-\n";
  const auto frames = [&](const std::string& name, std::vector<std::string> more) {
    more.insert(more.begin(), {model, folder / "rounded.tsv", "-o", folder / name, "--json"});
    const Outcome run = run_program("sft-extract", more);
    EXPECT_MESSAGE(run.code == 0, run.err);
    return Json::parse(run.out).at("frames").get<int>();
  };
  EXPECT(frames("rounded", {"--window", "2.5"}) == 355 + 354 + 424 + 449);
  EXPECT(frames("plain", {}) == 355 + 354 + 424 + 449);
  std::ofstream(folder / "behind.tsv") << header << "a\t8000.wav\t8.1\t1\t9.1\n";
  const Outcome behind = run_program(
      "sft-extract", {model, folder / "behind.tsv", "--window", "2.5", "-o", folder / "behind"});
  EXPECT(behind.code == 3);
  EXPECT_MESSAGE(behind.err.find("behind.tsv:2: id a: ") != std::string::npos, behind.err);

  write_audio(folder / "long.wav", test::golden_signal(3, 16'000 * 300));
  const auto planned = [&](std::vector<std::string> more) {
    more.insert(more.begin(),
                {model, folder / "long.wav", "-o", folder / "long", "--force", "--json"});
    const Outcome run = run_program("sft-extract", more);
    EXPECT_MESSAGE(run.code == 0, run.err);
    const Json report = Json::parse(run.out);
    const int64_t bytes = report.at("planned_bytes");
    EXPECT(report.at("peak_bytes").get<int64_t>() < bytes * 11 / 10);
    return bytes;
  };
  EXPECT(planned({"--window", "10"}) < planned({}) - (20 << 20));
}

// From its beginning for each of 150 windows it would be 75 times as much.
TEST_CASE("sft-extract: an MP3 is decoded once, whatever the number of windows") {
  if (test::absent("sft-extract")) return;
  const test::TemporaryFolder folder;
  const int mp3 = SF_FORMAT_MPEG | SF_FORMAT_MPEG_LAYER_III;
  const auto cpu_seconds = [&](const std::string& name, int format) {
    write_audio(folder / name, test::golden_signal(1, 16'000 * 120), 1, 16000, format);
    const Outcome o =
        run_program("sft-extract", {folder_of("hubert-group"), folder / name, "--window", "1",
                                    "--overlap", "0.2", "-o", folder / name + ".states"});
    EXPECT_MESSAGE(o.code == 0, o.err);
    return o.cpu_seconds;
  };
  const double wav = cpu_seconds("a.wav", SF_FORMAT_WAV | SF_FORMAT_FLOAT);
  EXPECT(cpu_seconds("a.mp3", mp3) < 2 * wav + 0.5);
}

TEST_CASE("sft-extract: windows that are none") {
  if (test::absent("sft-extract")) return;
  const test::TemporaryFolder folder;
  write_audio(folder / "a.wav", test::golden_signal(1, 4000));
  const auto refuses = [&](std::vector<std::string> arguments, const std::string& part) {
    arguments.insert(arguments.begin(), {folder_of("hubert-group"), folder / "a.wav"});
    arguments.insert(arguments.end(), {"-o", folder / "out"});
    expect_failure(run_program("sft-extract", arguments), 2, part);
  };
  refuses({"--overlap", "1"}, "--overlap: of what\nhint: add --window SECONDS");
  refuses({"--window", "0"}, "--window 0: expected seconds");
  refuses({"--window", "nan"}, "--window");
  refuses({"--window", "2", "--overlap", "2"}, "--overlap 2: expected seconds, fewer than");
  refuses({"--window", "2", "--overlap", "-1"}, "--overlap -1: expected seconds");
  refuses({"--window", "0.03", "--overlap", "0.02"}, "no frame is left of a window");
}

TEST_CASE("sft-extract: what cannot be extracted") {
  if (test::absent("sft-extract")) return;
  const test::TemporaryFolder folder;
  const std::string model = folder_of("hubert-group"), out = folder / "out";
  const auto refuses = [&](std::vector<std::string> arguments, int code, const std::string& part) {
    arguments.insert(arguments.begin(), model);
    arguments.insert(arguments.end(), {"-o", out});
    expect_failure(run_program("sft-extract", arguments), code, part);
    EXPECT(!fs::exists(out));
  };
  write_audio(folder / "short.wav", test::golden_signal(2, 399));
  write_audio(folder / "nan.wav", {0.1f, NAN, 0.2f});
  write_audio(folder / "empty.wav", {});
  write_audio(folder / "a.wav", test::golden_signal(1, 4000));
  fs::create_directory(folder / "other");
  write_audio(folder / "other/a.flac", test::golden_signal(1, 4000));
  std::ofstream(folder / "text.wav") << "this is not audio\n";
  std::ofstream(folder / "m.tsv") << "id\tpath\tseconds\nx/y\ta.wav\t0.25\n";
  fs::create_directory(folder / "nothing");
  refuses({folder / "short.wav"}, 3, "short.wav: 399 samples at 16 kHz (expected at least 400)");
  refuses({folder / "text.wav"}, 3, "text.wav");
  refuses({folder / "empty.wav"}, 3, "empty.wav");
  refuses({folder / "absent.wav"}, 3, "absent.wav");
  refuses({folder / "nothing"}, 3, "nothing: no audio files in this folder");
  refuses({folder / "a.wav", folder / "other"}, 3, "would both be written as a");
  refuses({folder / "m.tsv"}, 3, "id x/y cannot be the name of a file");
  refuses({folder / "a.wav", "--states", "4"}, 2, "--states: '4' (expected all, last, or numbers");
  refuses({folder / "a.wav", "--states", "0,,1"}, 2, "--states: ''");
  refuses({folder / "a.wav", "--format", "mat"}, 2, "--format: mat (expected safetensors, npy)");
  const Outcome nan = run_program("sft-extract", {model, folder / "nan.wav", "-o", out});
  EXPECT(nan.code == 3);
  expect_failure(run_program("sft-extract", {model, folder / "a.wav", "-o", folder / "a.wav/out"}),
                 4, "a.wav: cannot make the folder");
}
