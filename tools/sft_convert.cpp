// sft-convert: a model from one container to another (docs/sft-convert.md).
#include <nlohmann/json.hpp>

#include "engine/audio/decode.h"
#include "engine/cpu/isa.h"
#include "engine/formats/numbers.h"
#include "models/extract.h"
#include "models/file_sums.h"
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

std::vector<float> values_of(Dtype dtype, const std::byte* bytes, int64_t count) {
  std::vector<float> values(static_cast<size_t>(count));
  to_f32(dtype, bytes, values.data(), count);
  return values;
}

// What the id does not tell: heads that were written have the values they had.
void check_heads(const ModelFile& in, const StoredModel& out) {
  for (const auto& [name, tensor] : out.tensors) {
    if (is_backbone(name)) continue;
    std::vector<std::byte> bytes(static_cast<size_t>(bytes_of(tensor.dtype, tensor.count())));
    tensor.read(bytes, 0);
    const Tensor before = in.tensors.find(name);
    if (before.shape != tensor.shape ||
        values_of(before.dtype, static_cast<const std::byte*>(before.data), before.count()) !=
            values_of(tensor.dtype, bytes.data(), tensor.count()))
      fail(Kind::internal, "{}: {} is not what was written", printable(out.path), name);
  }
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
  std::string in, out, to, wav, type = "f32", part = "model";
  bool force = false;

  Part read_part() const {
    return part == "encoder" ? Part::encoder : part == "head" ? Part::head : Part::any;
  }

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
    cli.choice("--part", part, {"model", "encoder", "head"},
               "what of it: head is the task head alone, for sft-merge --head-from");
    cli.option("--verify", wav, "run both on this audio; exit code 6 if f32 differs");
    cli.flag("--force", force, "replace what is there");
    cli.parse();
    if (out.empty()) fail(Kind::usage, "missing -o (expected the file or folder to write)");
    if (to.empty()) to = format_of_name(out);
    if (type == "q8_0" && to != "gguf")
      fail(Kind::usage, Hint{"name OUT something.gguf, or use --dtype bf16"},
           "--dtype q8_0: only GGUF holds it");
    if (part == "head" && !wav.empty())
      fail(Kind::usage, "--verify: a head alone computes nothing (expected another --part)");
    if (part == "head" && to != "gguf" && to != "safetensors")
      fail(Kind::usage, Hint{"name OUT something.gguf or something.safetensors"},
           "--part head: only GGUF and safetensors hold a head alone");
  }

  void run(const Cli& cli) const {
    const Existing existing = force ? Existing::replace : Existing::refuse;
    check_model_destination(out, to, existing);
    const ModelFile model = open_model(in, read_part());
    const std::string id = checked_id(model);
    std::vector<std::string> remarks = model.remarks;
    for (std::string& lost : save_model(out, to, model.config, model.tensors, existing, dtype()))
      remarks.push_back(std::move(lost));
    const StoredModel written = open_stored_model(out, Part::any);  // in pieces: it may be large
    const std::string new_id =
        type == "f32" ? model_id(written) : checked_id(open_model(out, Part::any));
    if (type == "f32" && new_id != id)
      fail(Kind::internal, "{}: id {} after writing, {} before", printable(out), new_id, id);
    check_heads(model, written);

    const bool alone = is_head_alone(model.config);  // the id is of encoders
    const std::string loaded = loaded_text(model, id);
    Json sums = Json::object();
    for (const auto& [file, sum] : file_sums(model.files)) sums[file] = sum;
    std::vector<Difference> differences;
    if (!wav.empty()) differences = verify(model, open_model(out), wav);
    if (cli.json()) {
      const Json report = {{"loaded", loaded},     {"id", alone ? "" : new_id},
                           {"from", model.format}, {"sha256", sums},
                           {"path", out},          {"format", to},
                           {"remarks", remarks},   {"verify", to_json(differences)}};
      fmt::print("{}\n", report.dump(-1, ' ', false, Json::error_handler_t::replace));
    } else {
      fmt::print("{}: {}\n", printable(in), loaded);
      for (const auto& [file, sum] : sums.items())
        fmt::print("read: {}, sha256 {}\n", printable(file), sum.get<std::string>());
      for (const std::string& remark : remarks) fmt::print("remark: {}\n", remark);
      fmt::print("{}: {}, {} tensors{}\n", printable(out), to, written.tensors.size(),
                 alone ? "" : ", id " + new_id);
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
