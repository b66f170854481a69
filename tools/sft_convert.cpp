// sft-convert: a model from one container to another (docs/sft-convert.md).
#include <nlohmann/json.hpp>

#include "engine/audio/decode.h"
#include "engine/cpu/isa.h"
#include "engine/io/hash.h"
#include "models/extract.h"
#include "tools/cli.h"

using namespace sft;

namespace {

using Json = nlohmann::json;

constexpr double kMostError = 1e-5;  // relative Frobenius norm, of a state

struct Difference {
  double largest = 0;   // absolute
  double relative = 0;  // Frobenius norms
};

Difference difference(const Tensor& a, const Tensor& b) {
  Difference d;
  double squares = 0, norm = 0;
  for (int64_t r = 0; r < a.rows(); ++r)
    for (int64_t c = 0; c < a.width(); ++c) {
      const double x = a.row(r)[c], off = b.row(r)[c] - x;
      d.largest = std::max(d.largest, std::abs(off));
      squares += off * off, norm += x * x;
    }
  d.relative = squares == 0 ? 0 : std::sqrt(squares / norm);
  return d;
}

// Both files on the same audio, state by state.
std::vector<Difference> verify(const ModelFile& in, const ModelFile& out, const std::string& wav) {
  cpu::choose_isa();
  const std::vector<float> samples = load_audio(wav);
  if (in.config.frames(static_cast<int64_t>(samples.size())) == 0)
    fail(Kind::input, "{}: {} samples at 16 kHz (expected at least {})", printable(wav),
         samples.size(), in.config.min_samples());
  const std::vector<int> states = parse_states("all", in.config);
  Extractor before(in, states), after(out, states);
  const std::span<const float> waves[] = {samples};
  before.run(waves), after.run(waves);
  std::vector<Difference> all;
  for (size_t i = 0; i < states.size(); ++i)
    all.push_back(difference(before.state(i, 0), after.state(i, 0)));
  return all;
}

Json to_json(const std::vector<Difference>& differences) {
  Json list = Json::array();
  for (const Difference& d : differences)
    list.push_back({{"largest", d.largest}, {"relative", d.relative}});
  return list;
}

void print(const std::vector<Difference>& differences) {
  fmt::print("state\tlargest difference\trelative\n");
  for (size_t i = 0; i < differences.size(); ++i)
    fmt::print("{}\t{:.3g}\t{:.3g}\n", i, differences[i].largest, differences[i].relative);
}

struct Conversion {
  std::string in, out, to, wav, type = "f32";
  bool force = false;

  Dtype dtype() const {
    return type == "f16"    ? Dtype::f16
           : type == "bf16" ? Dtype::bf16
           : type == "q8_0" ? Dtype::q8_0
                            : Dtype::f32;
  }

  void parse(Cli& cli) {
    cli.about("Writes the model IN as OUT, in another container. f32 keeps values bit by bit.");
    cli.argument("IN", in, "GGUF, safetensors, a Hugging Face folder, a PyTorch file, or a run");
    cli.option("-o,--output", out, "the file or folder to write");
    cli.choice("--to", to, {"gguf", "hf", "safetensors", "fairseq", "s3prl"},
               "the container; else by OUT's name");
    cli.choice("--dtype", type, {"f32", "f16", "bf16", "q8_0"}, "of the matrices; the rest is f32");
    cli.option("--verify", wav, "run both on this audio; exit code 6 if f32 differs");
    cli.flag("--force", force, "replace what is there");
    cli.parse();
    if (out.empty()) fail(Kind::usage, "missing -o (expected the file or folder to write)");
    if (to.empty()) to = format_of_name(out);
    if (type == "q8_0" && to != "gguf")
      fail(Kind::usage, Hint{"name OUT something.gguf, or use --dtype bf16"},
           "--dtype q8_0: only GGUF holds it");
  }

  void run(const Cli& cli) const {
    const Existing existing = force ? Existing::replace : Existing::refuse;
    check_model_destination(out, to, existing);
    const ModelFile model = open_model(in);
    const std::string id = checked_id(model);
    std::vector<std::string> remarks = model.remarks;
    for (std::string& lost : save_model(out, to, model.config, model.tensors, existing, dtype()))
      remarks.push_back(std::move(lost));
    const StoredModel written = open_stored_model(out);  // read in pieces: it may be large
    const std::string new_id = type == "f32" ? model_id(written) : checked_id(open_model(out));
    if (type == "f32" && new_id != id)
      fail(Kind::internal, "{}: id {} after writing, {} before", printable(out), new_id, id);

    const std::string loaded = loaded_text(model, id);
    Json sums = Json::object();
    for (const std::string& file : model.files) sums[file] = sha256_of_file(file);
    std::vector<Difference> differences;
    if (!wav.empty()) differences = verify(model, open_model(out), wav);
    if (cli.json()) {
      const Json report = {{"loaded", loaded},     {"id", new_id},
                           {"from", model.format}, {"sha256", sums},
                           {"path", out},          {"format", to},
                           {"remarks", remarks},   {"verify", to_json(differences)}};
      fmt::print("{}\n", report.dump(-1, ' ', false, Json::error_handler_t::replace));
    } else {
      fmt::print("{}: {}\n", printable(in), loaded);
      for (const auto& [file, sum] : sums.items())
        fmt::print("read: {}, sha256 {}\n", model.format, sum.get<std::string>());
      for (const std::string& remark : remarks) fmt::print("remark: {}\n", remark);
      fmt::print("{}: {}, {} tensors, id {}\n", printable(out), to, written.tensors.size(), new_id);
      if (!wav.empty()) print(differences);
    }
    for (size_t i = 0; i < differences.size(); ++i)
      if (type == "f32" && !(differences[i].relative <= kMostError))
        fail(Kind::check, "{}: state {} differs by {:.3g} (at most {})", printable(out), i,
             differences[i].relative, kMostError);
  }
};

}  // namespace

int main(int argc, char** argv) {
  return run_tool(argc, argv, "sft-convert", [](Cli& cli) {
    Conversion conversion;
    conversion.parse(cli);
    conversion.run(cli);
  });
}
