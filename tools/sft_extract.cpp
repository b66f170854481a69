// sft-extract: hidden states of audio files (docs/sft-extract.md).
#include <algorithm>
#include <chrono>
#include <filesystem>
#include <future>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>

#include "engine/audio/decode.h"
#include "engine/cpu/isa.h"
#include "engine/device.h"
#include "engine/formats/npy.h"
#include "engine/formats/safetensors.h"
#include "engine/io/directory.h"
#include "engine/memory.h"
#include "models/extract.h"
#include "models/windows.h"
#include "tools/device_options.h"
#include "train/corpus.h"
#include "train/loader.h"

using namespace sft;

namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

// Half a minute: larger ones are no faster on a CPU. Three times 33 tiles of 128 rows for a GPU.
int64_t batch_frames(const cuda::Runtime* gpu) { return gpu ? 3 * 4224 : 1500; }
constexpr int kDecodeThreads = 2;

// ---- what to extract

// Rows whose ids are the stems of the outputs.
struct Inputs {
  Manifest rows;
  std::vector<bool> listed;                   // by a manifest: too short is no error
  std::map<std::string, std::string> origin;  // stem -> what gave it, for messages

  void add(Utterance row, const std::string& from, bool by_manifest) {
    if (row.id.find('/') != std::string::npos || row.id.starts_with('.'))
      fail(Kind::input, "{}: id {} cannot be the name of a file", printable(from),
           printable(row.id));
    const auto [at, fresh] = origin.emplace(row.id, from);
    if (!fresh)
      fail(Kind::input, "{} and {} would both be written as {}", printable(at->second),
           printable(from), printable(row.id));
    row.index = static_cast<uint32_t>(rows.rows.size());
    rows.rows.push_back(std::move(row));
    listed.push_back(by_manifest);
  }

  // f(); its errors also say which row of a manifest they are of.
  template <class F>
  auto naming(uint32_t row, F&& f) const {
    try {
      return f();
    } catch (const Error& e) {
      if (!listed[row]) throw;
      raise(e.kind, fmt::format("{}: {}", printable(origin.at(rows.rows[row].id)), e.message),
            e.hint);
    }
  }
};

bool is_audio_name(const fs::path& path) {
  static const std::vector<std::string> kEndings = {".wav", ".flac", ".ogg",  ".opus", ".mp3",
                                                    ".sph", ".aiff", ".aif",  ".aifc", ".au",
                                                    ".caf", ".w64",  ".rf64", ".snd"};
  std::string ending = path.extension().string();
  for (char& c : ending) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return std::find(kEndings.begin(), kEndings.end(), ending) != kEndings.end();
}

void add_file(Inputs& inputs, const std::string& path, int64_t min_samples) {
  const AudioInfo info = probe_audio(path);
  if (samples_at_16k(info) < min_samples)
    fail(Kind::input, "{}: {} samples at 16 kHz (expected at least {})", printable(path),
         samples_at_16k(info), min_samples);
  Utterance row;
  row.id = fs::path(path).stem().string();
  row.path = row.file = path;
  row.seconds = info.seconds;
  inputs.add(std::move(row), path, false);
}

void add_folder(Inputs& inputs, const std::string& folder, int64_t min_samples) {
  std::vector<std::string> found;
  for (const auto& entry : fs::recursive_directory_iterator(folder))
    if (entry.is_regular_file() && is_audio_name(entry.path()))
      found.push_back(entry.path().string());
  if (found.empty()) fail(Kind::input, "{}: no audio files in this folder", printable(folder));
  std::sort(found.begin(), found.end());
  for (const std::string& path : found) add_file(inputs, path, min_samples);
}

void add_manifest(Inputs& inputs, const std::string& path) {
  const Manifest manifest = read_manifest(path);
  for (const Utterance& row : manifest.rows) inputs.add(row, manifest.where(row), true);
}

bool is_manifest(const std::string& name) {
  return name.ends_with(".tsv") || (!fs::exists(name) && name.find('.') == std::string::npos);
}

Inputs collect(const std::vector<std::string>& names, int64_t min_samples) {
  Inputs inputs;
  for (const std::string& name : names) {
    if (fs::is_directory(name))
      add_folder(inputs, name, min_samples);
    else if (is_manifest(name))
      add_manifest(inputs, find_corpus(name));
    else
      add_file(inputs, name, min_samples);
  }
  return inputs;
}

// ---- windows

// What is computed at once: a row, or a window of one.
struct Piece {
  uint32_t row = 0;  // of the inputs
  std::optional<Window> window = {};
  int64_t samples = 0;  // of the whole row, where this is a window
};
struct Pieces {
  Manifest rows;  // as the loader and the plan take them, one a piece
  std::vector<Piece> of;
};

struct WindowOptions {
  std::optional<double> window, overlap;  // seconds
  static constexpr double kOverlap = 2;   // by default: twice what a positional convolution sees

  void check(const Config& config) const {
    if (overlap && !window) fail(Kind::usage, Hint{"add --window SECONDS"}, "--overlap: of what");
    if (!window) return;
    constexpr double kMost = 24 * 3600;
    if (!(*window > 0 && *window <= kMost))
      fail(Kind::usage, "--window {}: expected seconds, up to {:.0f}", *window, kMost);
    if (!(shared() >= 0 && shared() < *window))
      fail(Kind::usage, "--overlap {}: expected seconds, fewer than --window {}", shared(),
           *window);
    if (config.frames(samples(*window)) <= samples(shared()) / config.hop() + 1)
      fail(Kind::usage, Hint{"a window of some seconds"},
           "--window {} --overlap {}: no frame is left of a window", *window, shared());
  }
  double shared() const { return overlap.value_or(std::min(kOverlap, *window / 2)); }
  static int64_t samples(double seconds) { return std::llround(seconds * kSampleRate); }
};

// The length is the audio's: a manifest's seconds are rounded, or those of another cut.
void add_windows(Pieces& pieces, uint32_t r, const Inputs& inputs, const Config& config,
                 const WindowOptions& options) {
  Utterance row = inputs.rows.rows[r];
  const int64_t samples = inputs.naming(r, [&] {
    return count_samples(row.file, AudioRange{row.start, row.end});
  });
  const int64_t length = WindowOptions::samples(*options.window);
  row.seconds = static_cast<double>(samples) / kSampleRate;
  if (config.frames(samples) <= config.frames(length)) {
    pieces.rows.rows.push_back(row), pieces.of.push_back({r});
    return;
  }
  for (const Window& window :
       windows_of(config, samples, length, WindowOptions::samples(options.shared()))) {
    row.seconds = static_cast<double>(window.samples) / kSampleRate;
    pieces.rows.rows.push_back(row), pieces.of.push_back({r, window, samples});
  }
}

Pieces pieces_of(const Inputs& inputs, const Config& config, const WindowOptions& options) {
  Pieces pieces;
  pieces.rows.name = inputs.rows.name, pieces.rows.columns = inputs.rows.columns;
  for (uint32_t r = 0; r < inputs.rows.rows.size(); ++r) {
    if (options.window) {
      add_windows(pieces, r, inputs, config, options);
    } else {
      pieces.rows.rows.push_back(inputs.rows.rows[r]), pieces.of.push_back({r});
    }
  }
  return pieces;
}

using Waves = std::vector<std::vector<float>>;

// The audio of windows, which are asked for in order: each row is decoded once, forward.
class WindowAudio {
 public:
  explicit WindowAudio(const Inputs& inputs) : inputs_(inputs) {}

  std::vector<float> cut(const Piece& piece) {
    const Utterance& row = inputs_.rows.rows[piece.row];
    return inputs_.naming(piece.row, [&] { return cut(*piece.window, row); });
  }

 private:
  std::vector<float> cut(const Window& window, const Utterance& row) {
    if (window.first_sample == 0) {
      stream_.emplace(row.file, AudioRange{row.start, row.end});
      held_.clear(), first_ = 0;
    }
    const int64_t behind = window.first_sample - first_;
    CHECK(behind >= 0 && behind <= std::ssize(held_), "a window {} samples on", behind);
    held_.erase(held_.begin(), held_.begin() + behind);
    first_ = window.first_sample;
    stream_->read(window.samples - std::ssize(held_), held_);
    if (std::ssize(held_) < window.samples)
      fail(Kind::input, "{}: ends {} samples before the length it declares", printable(row.file),
           window.samples - std::ssize(held_));
    return held_;
  }

  const Inputs& inputs_;
  std::optional<AudioStream> stream_;
  std::vector<float> held_;  // of the row, from sample first_ on
  int64_t first_ = 0;
};

// ---- batches

using Batch = std::vector<uint32_t>;  // pieces

int32_t samples_of(const Utterance& row, const Config& config) {
  return static_cast<int32_t>(
      std::max<int64_t>(std::llround(row.seconds * kSampleRate), config.min_samples()));
}

// Neighbours in length, the longest first: what needs most memory fails first. Windows are the
// longest, and stay in order.
std::vector<Batch> plan(const Manifest& rows, const Config& config, int64_t most) {
  Batch order(rows.rows.size());
  std::iota(order.begin(), order.end(), 0u);
  std::stable_sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) {
    return rows.rows[a].seconds > rows.rows[b].seconds;
  });
  std::vector<Batch> batches;
  int64_t frames = most;
  for (uint32_t row : order) {
    const int64_t more = config.frames(samples_of(rows.rows[row], config));
    if (frames + more > most) {
      batches.emplace_back();
      frames = 0;
    }
    batches.back().push_back(row);
    frames += more;
  }
  return batches;
}

double gib(int64_t bytes) { return static_cast<double>(bytes) / (1 << 30); }
double mib(int64_t bytes) { return static_cast<double>(bytes) / (1 << 20); }

int64_t weight_bytes(const ModelFile& model) {
  int64_t bytes = 0;
  for (const auto& [name, tensor] : model.tensors.tensors) bytes += tensor.bytes();
  return bytes;
}

// What extraction will need at most. Bytes.
struct MemoryPlan {
  int64_t process = 0;  // the program, libraries, the model file
  int64_t batch = 0;    // the largest, with our own copies of weights
  int64_t audio = 0;    // decoded: this batch's and the next one's
  int64_t total() const { return process + batch + audio; }
};

// Cuts `batches` until they fit; every utterance is computed as if alone.
MemoryPlan plan_memory(Extractor& extractor, const ModelFile& model, const Manifest& rows,
                       std::vector<Batch>& batches, const cuda::Runtime* gpu) {
  MemoryPlan memory{.process = resident_memory() + kWorkBytes};
  const int64_t available = gpu ? gpu->free_bytes() : available_memory();
  int64_t most = 0, beside = 0;  // samples of the largest batch; bytes beside it
  for (int64_t frames = batch_frames(gpu);; frames /= 2) {
    most = memory.batch = 0;
    for (const Batch& batch : batches) {
      std::vector<int32_t> lengths;
      for (uint32_t row : batch) lengths.push_back(samples_of(rows.rows[row], model.config));
      const int64_t samples = std::accumulate(lengths.begin(), lengths.end(), int64_t{0});
      if (samples <= most) continue;
      most = samples;
      memory.batch = std::max(memory.batch, extractor.bytes(lengths));
    }
    memory.audio = 2 * most * int64_t{sizeof(float)};
    beside = gpu ? 0 : weight_bytes(model) + memory.audio;
    if (memory.batch + beside <= available) return memory;
    if (frames == 0) break;
    batches = plan(rows, model.config, frames / 2);
  }
  const double longest = static_cast<double>(extractor.longest(most, available - beside));
  fail(Kind::resource,
       Hint{"--window 30 computes long files piece by piece (docs/sft-extract.md says what that "
            "changes); a manifest with the columns start and end cuts them"},
       "{:.1f} s of audio in one file need {:.1f} GiB of {}memory, {:.1f} GiB are free: enough for "
       "{:.1f} s",
       static_cast<double>(most) / kSampleRate, gib(memory.batch + beside), gpu ? "device " : "",
       gib(available), longest / kSampleRate);
}

// ---- outputs

struct Output {
  std::string folder, format;
  Existing existing = Existing::refuse;
  std::vector<std::string> names;  // hidden.N, as Extractor::states()
  Metadata metadata;

  std::vector<std::string> paths(const std::string& stem) const {
    if (format == "safetensors") return {folder + "/" + stem + ".safetensors"};
    std::vector<std::string> paths;
    for (const std::string& name : names)
      paths.push_back(folder + "/" + stem + "/" + name + ".npy");
    return paths;
  }

  // The files of an utterance of so many frames.
  class States {
   public:
    States(const Output& output, const std::string& stem, int64_t frames,
           const Extractor& extractor) {
      const auto shape = [&](size_t i) { return Shape{frames, extractor.state(i, 0).width()}; };
      make_directory(output.format == "npy" ? output.folder + "/" + stem : output.folder);
      const std::vector<std::string> paths = output.paths(stem);
      if (output.format == "npy") {
        for (size_t i = 0; i < paths.size(); ++i) {
          writers_.push_back(create_npy(paths[i], shape(i), output.existing));
          at_.push_back({i, 0});
        }
        return;
      }
      std::vector<TensorSpec> specs;
      for (size_t i = 0; i < output.names.size(); ++i)
        specs.push_back({output.names[i], shape(i), Dtype::f32});
      writers_.push_back(create_safetensors(paths[0], output.metadata, specs, output.existing));
      const std::vector<TensorSpec>& order = writers_[0].tensors();
      for (const std::string& name : output.names) {
        const auto found = std::find_if(order.begin(), order.end(),
                                        [&](const TensorSpec& spec) { return spec.name == name; });
        at_.push_back({0, static_cast<size_t>(found - order.begin())});
      }
    }
    // Rows of state i, as in Extractor::states(), from row `first` of the file on.
    void place(size_t i, int64_t first, const Tensor& rows) {
      const auto row_bytes = static_cast<uint64_t>(rows.width()) * sizeof(float);
      writers_[at_[i].first].place(
          at_[i].second, static_cast<uint64_t>(first) * row_bytes,
          std::as_bytes(std::span(rows.f32(), static_cast<size_t>(rows.count()))));
    }
    void finish() {
      for (TensorWriter& writer : writers_) writer.finish();
    }

   private:
    std::vector<TensorWriter> writers_;
    std::vector<std::pair<size_t, size_t>> at_;  // of each state: writer, and tensor in it
  };
};

// ---- the work

struct Report {
  int64_t utterances = 0, frames = 0;
  double audio_seconds = 0, seconds = 0;
  std::vector<std::string> skipped;           // rows too short
  int64_t planned_bytes = 0, peak_bytes = 0;  // of memory; no peak where a device computes
};

class Extraction {
 public:
  Extraction(const Inputs& inputs, const Pieces& pieces, const Config& config, Extractor& extractor,
             const Output& output)
      : inputs_(inputs),
        pieces_(pieces),
        config_(config),
        extractor_(extractor),
        output_(output),
        loader_(pieces.rows, kDecodeThreads, 0),
        window_audio_(inputs) {}

  Report run(const std::vector<Batch>& batches, Progress& progress) {
    const auto start = std::chrono::steady_clock::now();
    double total = 0, done = 0;
    for (const Utterance& row : pieces_.rows.rows) total += row.seconds;
    if (!batches.empty()) prefetch(batches[0]);
    for (size_t i = 0; i < batches.size(); ++i) {
      const Waves windows = windows_.get();
      if (i + 1 < batches.size()) prefetch(batches[i + 1]);
      run(batches[i], windows);
      for (uint32_t p : batches[i]) {
        loader_.release(p);
        done += pieces_.rows.rows[p].seconds;
      }
      progress.update(done, total);
    }
    report_.seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    return report_;
  }

 private:
  // Decodes in the background.
  void prefetch(const Batch& batch) {
    Batch whole;
    std::vector<const Piece*> windows;
    for (uint32_t p : batch)
      if (pieces_.of[p].window)
        windows.push_back(&pieces_.of[p]);
      else
        whole.push_back(p);
    loader_.prefetch(whole);
    windows_ = std::async(std::launch::async, [this, windows] {
      Waves waves;
      for (const Piece* piece : windows) waves.push_back(window_audio_.cut(*piece));
      return waves;
    });
  }

  // windows: the audio of those among its pieces.
  void run(const Batch& batch, const Waves& windows) {
    std::vector<std::span<const float>> waves;
    std::vector<const Piece*> pieces;
    auto window = windows.begin();
    for (uint32_t p : batch) {
      const Piece& piece = pieces_.of[p];
      const std::span<const float> wave = piece.window ? std::span(*window++) : loader_.get(p);
      if (!long_enough(piece.row, wave)) continue;
      waves.push_back(wave);
      pieces.push_back(&piece);
    }
    if (waves.empty()) return;
    extractor_.run(waves);
    for (size_t b = 0; b < pieces.size(); ++b)
      if (pieces[b]->window)
        write_window(*pieces[b], static_cast<int>(b));
      else
        write(pieces[b]->row, static_cast<int64_t>(waves[b].size()), static_cast<int>(b));
  }

  void write(uint32_t row, int64_t samples, int b) {
    const int64_t frames = extractor_.frames(b);
    Output::States states(output_, inputs_.rows.rows[row].id, frames, extractor_);
    for (size_t i = 0; i < output_.names.size(); ++i) states.place(i, 0, extractor_.state(i, b));
    states.finish();
    count(frames, samples);
  }

  // Those of an utterance come one after the other.
  void write_window(const Piece& piece, int b) {
    const Window& window = *piece.window;
    const int64_t frames = config_.frames(piece.samples);
    if (window.first_frame == 0)
      states_.emplace(output_, inputs_.rows.rows[piece.row].id, frames, extractor_);
    for (size_t i = 0; i < output_.names.size(); ++i)
      states_->place(i, window.first_frame, extractor_.state(i, b).slice(window.skip, window.keep));
    if (window.first_frame + window.keep < frames) return;
    states_->finish();
    states_.reset();
    count(frames, piece.samples);
  }

  void count(int64_t frames, int64_t samples) {
    ++report_.utterances;
    report_.frames += frames;
    report_.audio_seconds += static_cast<double>(samples) / kSampleRate;
  }

  bool long_enough(uint32_t row, std::span<const float> wave) {
    if (static_cast<int64_t>(wave.size()) >= config_.min_samples()) return true;
    const Utterance& u = inputs_.rows.rows[row];
    if (!inputs_.listed[row])
      fail(Kind::input, "{}: {} samples at 16 kHz (expected at least {})", printable(u.file),
           wave.size(), config_.min_samples());
    report_.skipped.push_back(u.id);
    return false;
  }

  const Inputs& inputs_;
  const Pieces& pieces_;
  const Config& config_;
  Extractor& extractor_;
  const Output& output_;
  AudioLoader loader_;        // of whole rows
  WindowAudio window_audio_;  // used by one batch at a time
  std::future<Waves> windows_;
  std::optional<Output::States> states_;  // of an utterance whose windows are on their way
  Report report_;
};

void print(const Report& r, const std::string& id, bool json) {
  if (json) {
    const Json report = {{"model", id},
                         {"utterances", r.utterances},
                         {"frames", r.frames},
                         {"audio_seconds", r.audio_seconds},
                         {"seconds", r.seconds},
                         {"skipped", r.skipped},
                         {"planned_bytes", r.planned_bytes},
                         {"peak_bytes", r.peak_bytes}};
    fmt::print("{}\n", report.dump(-1, ' ', false, Json::error_handler_t::replace));
    return;
  }
  fmt::print("{} utterances, {} frames, {:.1f} s of audio in {:.2f} s ({:.1f} times real time)\n",
             r.utterances, r.frames, r.audio_seconds, r.seconds, r.audio_seconds / r.seconds);
  if (!r.skipped.empty())
    fmt::print("{} rows too short: {}\n", r.skipped.size(), fmt::join(r.skipped, ", "));
}

struct Arguments {
  std::string model, states = "last", format = "safetensors", output;
  DeviceOptions device;
  WindowOptions windows;
  std::vector<std::string> audio;
  bool force = false;

  void parse(Cli& cli) {
    cli.about(
        "Writes hidden states of audio: hidden.0 (input of the first layer) ... hidden.L (output\n"
        "of the encoder), [frames, width] each, 50 frames a second.");
    cli.argument("MODEL", model, "a model file, a Hugging Face folder, or a run");
    cli.argument("AUDIO", audio, "audio files, folders of them, or manifests (.tsv)");
    cli.option("--states", states, "all, last, or numbers: 0,6,12");
    cli.choice("--format", format, {"safetensors", "npy"}, "of the output");
    cli.option("-o,--output", output, "folder for STEM.safetensors, or STEM/hidden.N.npy");
    cli.option(
        "--window", windows.window,
        "compute longer audio in windows of so many seconds: another result, in bounded memory");
    cli.option("--overlap", windows.overlap, "seconds that two windows share (2)");
    device.add_to(cli);
    cli.flag("--force", force, "replace files that are there");
    cli.parse();
    device.settle(cli);
    if (output.empty()) fail(Kind::usage, "missing -o (expected a folder)");
  }

  Output make_output(const std::vector<int>& states) const {
    Output out;
    out.folder = output, out.format = format;
    out.existing = force ? Existing::replace : Existing::refuse;
    for (int state : states) out.names.push_back(fmt::format("hidden.{}", state));
    return out;
  }
};

void extract(Cli& cli, const Arguments& arguments) {
  const std::unique_ptr<cuda::Runtime> gpu =
      open_device(arguments.device.device, arguments.device.chosen());
  const ModelFile model = open_model(arguments.model);
  const std::vector<int> states = parse_states(arguments.states, model.config);
  arguments.windows.check(model.config);
  const Inputs inputs = collect(arguments.audio, model.config.min_samples());
  const Pieces pieces = pieces_of(inputs, model.config, arguments.windows);
  Output output = arguments.make_output(states);
  for (const Utterance& row : inputs.rows.rows)
    for (const std::string& path : output.paths(row.id)) check_destination(path, output.existing);
  const std::string id = checked_id(model);
  output.metadata.set("sft.model.id", id);
  cli.say("{}", loaded_text(model, id));
  for (const std::string& remark : model.remarks) cli.say("{}", remark);

  std::vector<Batch> batches = plan(pieces.rows, model.config, batch_frames(gpu.get()));
  Extractor extractor(
      model, states,
      {.once = batches.size() == 1, .gpu = gpu.get(), .math = arguments.device.chosen()});
  const MemoryPlan memory = plan_memory(extractor, model, pieces.rows, batches, gpu.get());
  cli.say("memory: {:.0f} MiB (program and model file {:.0f}, batch {:.0f}, audio {:.0f})",
          mib(memory.total()), mib(memory.process), mib(memory.batch), mib(memory.audio));
  Progress progress(cli);
  progress.phase("extract", "audio-s");
  Report report =
      Extraction(inputs, pieces, model.config, extractor, output).run(batches, progress);
  progress.finish();
  report.planned_bytes = memory.total();
  if (!gpu) {
    report.peak_bytes = peak_memory();
    cli.say("memory: at most {:.0f} MiB of the {:.0f} planned", mib(report.peak_bytes),
            mib(report.planned_bytes));
  }
  print(report, id, cli.json());
}

}  // namespace

int main(int argc, char** argv) {
  return run_tool(argc, argv, "sft-extract", [](Cli& cli) {
    Arguments arguments;
    arguments.parse(cli);
    cpu::choose_isa();
    extract(cli, arguments);
  });
}
