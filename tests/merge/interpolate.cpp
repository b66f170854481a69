#include "merge/interpolate.h"

#include <omp.h>

#include <atomic>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <limits>

#include "engine/formats/numbers.h"
#include "engine/formats/safetensors.h"
#include "merge/kernels.h"
#include "tests/merge/tiny_models.h"

using namespace sft;
using test::TinyModels;

namespace {

using Strings = std::vector<std::string>;

MergeJob job_of(const std::string& base, const Strings& tuned) {
  MergeJob job;
  job.base = open_stored_model(base);
  for (const std::string& path : tuned) job.tuned.push_back(open_stored_model(path));
  return job;
}

MergeReport merge(const std::string& base, const Strings& tuned, double alpha,
                  const std::string& out) {
  MergeJob job = job_of(base, tuned);
  job.outputs = {{alpha, out}};
  return interpolate(std::move(job));
}

std::string bytes_of_file(const std::string& path) { return read_text(path, 1 << 28); }

bool same_bits(Tensor a, Tensor b) {
  return a.shape == b.shape && a.dtype == b.dtype &&
         std::memcmp(a.data, b.data, static_cast<size_t>(a.bytes())) == 0;
}

// Calls f(name, a, b) for the backbone tensors of two files.
template <class F>
void for_each_pair(const std::string& a, const std::string& b, F&& f) {
  const ModelFile left = open_model(a), right = open_model(b);
  for (const auto& [name, tensor] : left.tensors.tensors)
    if (is_backbone(name)) f(name, tensor, right.tensors.find(name));
}

size_t files_in(const std::string& folder) {
  return static_cast<size_t>(std::distance(std::filesystem::directory_iterator(folder), {}));
}

Error refusal(MergeJob job) {
  return test::error_of([&] { interpolate(std::move(job)); });
}

}  // namespace

TEST_CASE("merge: alpha 0 and 1 copy bits") {
  const TinyModels m;
  merge(m.base, {m.tuned[0]}, 0, m.folder / "0.gguf");
  merge(m.base, {m.tuned[0]}, 1, m.folder / "1.gguf");
  for_each_pair(m.base, m.folder / "0.gguf", [](const std::string& name, Tensor a, Tensor b) {
    EXPECT_MESSAGE(same_bits(a, b), name);
  });
  for_each_pair(m.tuned[0], m.folder / "1.gguf", [](const std::string& name, Tensor a, Tensor b) {
    EXPECT_MESSAGE(same_bits(a, b), name);
  });
}

TEST_CASE("merge: the formula in f64, rounded once") {
  const TinyModels m;
  const std::string out = m.folder / "out.gguf";
  const ModelFile base = open_model(m.base), a = open_model(m.tuned[0]), b = open_model(m.tuned[1]);
  for (const bool two : {false, true}) {
    Strings tuned = {m.tuned[0]};
    if (two) tuned.push_back(m.tuned[1]);
    std::filesystem::remove(out);
    merge(m.base, tuned, 0.25, out);
    const ModelFile merged = open_model(out);
    int64_t different = 0;
    for (const auto& [name, tensor] : base.tensors.tensors) {
      if (!is_backbone(name)) continue;
      const float *t0 = tensor.f32(), *ta = a.tensors.find(name).f32(),
                  *tb = b.tensors.find(name).f32(), *got = merged.tensors.find(name).f32();
      for (int64_t i = 0; i < tensor.count(); ++i) {
        const double da = double{ta[i]} - t0[i], db = double{tb[i]} - t0[i];
        const double delta = two ? (da + db) / 2 : da;
        different += got[i] != static_cast<float>(t0[i] + 0.25 * delta);
      }
    }
    EXPECT(different == 0);
  }
}

TEST_CASE("merge: f32 in one pass is the formula, for any count") {
  for (int64_t count = 0; count < 40; ++count) {
    std::vector<float> base(count), tuned(count), out(count, 9);
    StepSums expected{};
    int64_t different = 0;
    for (int64_t i = 0; i < count; ++i) {
      base[i] = i % 5 ? 1.0f / static_cast<float>(i + 3) : -0.0f;
      tuned[i] = i % 3 ? base[i] * 1.1f + 1e-9f : base[i];
    }
    const StepSums sums = step_f32(base.data(), tuned.data(), 0.3, out.data(), count);
    for (int64_t i = 0; i < count; ++i) {
      const double theta0 = base[i], delta = tuned[i] - theta0;
      const double exact = delta == 0 ? theta0 : theta0 + 0.3 * delta;
      const auto rounded = static_cast<float>(exact);
      different += std::memcmp(&out[i], &rounded, sizeof(float)) != 0;
      expected.base += theta0 * theta0, expected.difference += delta * delta;
      expected.change += std::pow(rounded - theta0, 2);
      expected.rounding += std::pow(rounded - exact, 2);
    }
    EXPECT(different == 0);
    EXPECT(sums.base == doctest::Approx(expected.base).epsilon(1e-12));
    EXPECT(sums.difference == doctest::Approx(expected.difference).epsilon(1e-12));
    EXPECT(sums.change == doctest::Approx(expected.change).epsilon(1e-12));
    EXPECT(sums.rounding == doctest::Approx(expected.rounding).epsilon(1e-12));
  }
}

TEST_CASE("merge: three times the same model is that model") {
  const TinyModels m;
  merge(m.base, {m.tuned[0]}, 0.3, m.folder / "one.gguf");
  merge(m.base, {m.tuned[0], m.tuned[0], m.tuned[0]}, 0.3, m.folder / "three.gguf");
  EXPECT(model_id(open_stored_model(m.folder / "one.gguf")) ==
         model_id(open_stored_model(m.folder / "three.gguf")));
}

TEST_CASE("merge: neither the order of the inputs nor the number of threads changes a byte") {
  const TinyModels m;
  const int threads = omp_get_max_threads();
  omp_set_num_threads(1);
  merge(m.base, {m.tuned[0], m.tuned[1], m.tuned[2]}, 0.7, m.folder / "012.gguf");
  omp_set_num_threads(3);
  merge(m.base, {m.tuned[2], m.tuned[0], m.tuned[1]}, 0.7, m.folder / "201.gguf");
  omp_set_num_threads(threads);
  EXPECT(bytes_of_file(m.folder / "012.gguf") == bytes_of_file(m.folder / "201.gguf"));
}

TEST_CASE("merge: a sweep gives the files of single merges") {
  const TinyModels m;
  MergeJob job = job_of(m.base, {m.tuned[1]});
  job.outputs = {{0, m.folder / "s0.gguf"}, {0.3, m.folder / "s3.gguf"}, {1, m.folder / "s1.gguf"}};
  const MergeReport all = interpolate(std::move(job));
  const MergeReport one = merge(m.base, {m.tuned[1]}, 0.3, m.folder / "one.gguf");
  EXPECT(bytes_of_file(m.folder / "s3.gguf") == bytes_of_file(m.folder / "one.gguf"));
  EXPECT(all.ratio.size() == 3);
  EXPECT(all.ratio[0] == 0);
  EXPECT(std::fabs(all.ratio[1] - one.ratio[0]) < 1e-12);  // sums by another loop
  EXPECT(std::fabs(all.ratio[2] - 1) < 1e-12);
}

TEST_CASE("merge: norms of each part, and what the file says of itself") {
  const TinyModels m;
  const std::string out = m.folder / "out.gguf";
  const MergeReport report = merge(m.base, {m.tuned[0]}, 0.25, out);
  EXPECT(report.remarks.empty());
  EXPECT(std::fabs(report.ratio[0] - 0.25) < 1e-6 * 0.25);
  Strings names;
  for (const MergeReport::Part& part : report.parts) {
    names.push_back(part.name);
    double base = 0, difference = 0, change = 0;
    const ModelFile merged = open_model(out), tuned = open_model(m.tuned[0]);
    for_each_pair(m.base, m.tuned[0], [&](const std::string& name, Tensor b, Tensor t) {
      const bool feature = part.name == "feat_proj" && name.starts_with("feat_");
      if (part.name != "total" && !feature && name != part.name &&
          !name.starts_with(part.name + "."))
        return;
      const float* got = merged.tensors.find(name).f32();
      for (int64_t i = 0; i < b.count(); ++i) {
        base += std::pow(b.f32()[i], 2.0);
        difference += std::pow(double{t.f32()[i]} - b.f32()[i], 2);
        change += std::pow(double{got[i]} - b.f32()[i], 2);
      }
    });
    INFO(part.name);
    EXPECT(std::fabs(part.base - std::sqrt(base)) <= 1e-12 * part.base);
    EXPECT(std::fabs(part.difference - std::sqrt(difference)) <= 1e-12 * part.difference);
    EXPECT(std::fabs(part.change[0] - std::sqrt(change)) <= 1e-12 * part.change[0]);
  }
  EXPECT(names == Strings{"mask_emb", "conv", "feat_proj", "pos_conv", "enc.norm", "enc.0", "enc.1",
                          "total"});
  const Metadata says = open_model(out).config.provenance;
  EXPECT(says.string("general.name") == "tiny");
  EXPECT(says.string("sft.base.id") == m.base_id);
  EXPECT(says.string("sft.merge.method") == "linear");
  EXPECT(says.real("sft.merge.alpha") == 0.25);
  EXPECT(says.strings("sft.merge.inputs") ==
         Strings{m.base_id + " base", model_id(open_stored_model(m.tuned[0])) + " tuned0"});
}

namespace {

// The folder's weights without one of them.
void drop_tensor(const std::string& folder, std::string_view name) {
  const std::string path = folder + "/model.safetensors";
  const TensorFile file = open_tensor_file(path);
  std::vector<TensorSpec> specs;
  for (const TensorInfo& info : file.tensors())
    if (info.name != name) specs.push_back({info.name, info.shape, info.dtype});
  REQUIRE(specs.size() + 1 == file.tensors().size());
  TensorWriter writer = create_safetensors(path + ".new", Metadata(), specs);
  for (const TensorSpec& spec : writer.tensors())
    writer.write(spec.name, file.view(file.at(spec.name)));
  writer.finish();
  std::filesystem::rename(path + ".new", path);
}

// q8_0: where rows are whole blocks.
void store_as(const std::string& path, const Config& config, const TensorMap& tensors,
              Dtype dtype) {
  std::vector<TensorSpec> specs = backbone_tensors(config);
  for (TensorSpec& spec : specs)
    spec.dtype = dtype == Dtype::q8_0 && spec.shape.back() % 32 ? Dtype::f32 : dtype;
  ModelWriter writer(path, "gguf", config, specs);
  writer.write(tensors);
  writer.finish();
}

}  // namespace

// Of one or two tuned models they are made while the values are read, of three before.
TEST_CASE("merge: an output names its inputs by their ids, whenever these were made") {
  const test::TemporaryFolder folder;
  Config config = test::tiny_config();
  config.width = 160, config.ffn = 640;  // several chunks a tensor
  const TensorMap base = test::initial_tensors(config, 1);
  save_model(folder / "base.gguf", "gguf", config, base);
  store_as(folder / "half.gguf", config, test::tuned_tensors(base, config, 2), Dtype::f16);
  save_model(folder / "unmasked", "hf", config, test::tuned_tensors(base, config, 3));
  drop_tensor(folder / "unmasked", "masked_spec_embed");
  save_model(folder / "third.gguf", "gguf", config, test::tuned_tensors(base, config, 4));
  const std::string base_id = model_id(base);
  const int threads = omp_get_max_threads();
  for (const Strings& names : {Strings{"unmasked"}, Strings{"unmasked", "half.gguf"},
                               Strings{"half.gguf", "third.gguf", "unmasked"}}) {
    Strings paths, inputs;
    for (const std::string& name : names) {
      paths.push_back(folder / name);
      inputs.push_back(model_id(open_stored_model(paths.back())) + " " +
                       name.substr(0, name.find('.')));
    }
    std::sort(inputs.begin(), inputs.end());
    inputs.insert(inputs.begin(), base_id + " base");
    for (const char* out : {"out.gguf", "out.safetensors", "out-hf"})
      for (int n : {1, 5}) {
        INFO(out << " of " << names.size() << ", threads " << n);
        std::filesystem::remove_all(folder / out);
        omp_set_num_threads(n);
        merge(folder / "base.gguf", paths, 0.25, folder / out);
        omp_set_num_threads(threads);
        const Metadata says = open_model(folder / out).config.provenance;
        EXPECT(says.string("sft.base.id") == base_id);
        EXPECT(says.strings("sft.merge.inputs") == inputs);
      }
  }
}

TEST_CASE("merge: pretrain.* is the base's, task.* only from --head-from") {
  const TinyModels m;
  Config with_head = m.tuned_config();
  with_head.task = {.kind = "ctc", .head = "linear", .units = {"<blank>", "A", "B"}};
  TensorMap tensors = test::tuned_tensors(m.base_tensors, m.config, 77);
  tensors.add_owned("task.out.weight", {3, 24}, std::vector<float>(72, 0.5f));
  tensors.add_owned("task.out.bias", {3}, {1, 2, 3});
  save_model(m.folder / "run.gguf", "gguf", with_head, tensors);

  merge(m.base, {m.folder / "run.gguf"}, 0.5, m.folder / "plain.gguf");
  const ModelFile plain = open_model(m.folder / "plain.gguf");
  EXPECT(plain.config.task.kind.empty());
  EXPECT(!plain.tensors.find("task.out.bias"));
  EXPECT(same_bits(plain.tensors.find("pretrain.proj.weight"),
                   m.base_tensors.find("pretrain.proj.weight")));

  MergeJob job = job_of(m.base, {m.folder / "run.gguf"});
  job.head = open_stored_model(m.folder / "run.gguf");
  job.outputs = {{0.5, m.folder / "head.gguf"}};
  interpolate(std::move(job));
  const ModelFile head = open_model(m.folder / "head.gguf");
  EXPECT(head.config.task.units == with_head.task.units);
  EXPECT(same_bits(head.tensors.find("task.out.bias"), tensors.find("task.out.bias")));
  EXPECT(model_id(head.tensors) == model_id(plain.tensors));

  MergeJob without = job_of(m.base, {m.tuned[0]});
  without.head = open_stored_model(m.tuned[0]);
  without.outputs = {{0.5, m.folder / "x.gguf"}};
  EXPECT(refusal(std::move(without)).message.ends_with("tuned0.gguf: has no task head"));
}

TEST_CASE("merge: what was made from a tuned model's file is that model's, not the base's") {
  const TinyModels m;
  MergeJob job = job_of(m.base, {m.tuned[0]});
  StoredTensor& norms = job.tuned[0].tensors.at("pos_conv.0.weight_g");
  norms = {nullptr,
           {},
           norms.shape,
           Dtype::f32,
           std::make_shared<const std::vector<float>>(norms.count(), 3.0f)};
  job.outputs = {{1, m.folder / "out.gguf"}};
  interpolate(std::move(job));
  const ModelFile out = open_model(m.folder / "out.gguf");
  const Tensor merged = out.tensors.find("pos_conv.0.weight_g");
  for (int64_t i = 0; i < merged.count(); ++i) EXPECT(merged.f32()[i] == 3.0f);
}

TEST_CASE("merge: patterns give tensors an alpha of their own, the last match counts") {
  const TinyModels m;
  MergeJob job = job_of(m.base, {m.tuned[0]});
  job.tensors = {{"enc.*", 1}, {"enc.*.attn.*", 0}, {"conv.?.weight", 0}};
  job.outputs = {{0.25, m.folder / "out.gguf"}};
  const MergeReport report = interpolate(std::move(job));
  EXPECT(std::fabs(report.ratio[0] - 0.25) >
         0.01);  // checked inside against the alphas of all tensors
  for_each_pair(m.base, m.folder / "out.gguf", [&](const std::string& name, Tensor a, Tensor b) {
    INFO(name);
    EXPECT(same_bits(a, b) == (name.find(".attn.") != std::string::npos ||
                               (name.starts_with("conv.") && name.size() == 13)));
  });
  for_each_pair(m.tuned[0], m.folder / "out.gguf",
                [&](const std::string& name, Tensor a, Tensor b) {
                  if (name == "enc.1.ffn.up.weight" || name == "enc.norm.bias")
                    EXPECT(same_bits(a, b));
                });
  EXPECT(open_model(m.folder / "out.gguf").config.provenance.strings("sft.merge.tensors") ==
         Strings{"enc.*=1", "enc.*.attn.*=0", "conv.?.weight=0"});

  MergeJob nothing = job_of(m.base, {m.tuned[0]});
  nothing.tensors = {{"pretrain.*", 1}};
  nothing.outputs = {{0.25, m.folder / "x.gguf"}};
  const Error e = refusal(std::move(nothing));
  EXPECT(e.kind == Kind::usage);
  EXPECT(e.message == "--tensors: 'pretrain.*' matches no backbone tensor");
}

TEST_CASE("merge: another base, no base recorded") {
  const TinyModels m;
  TensorMap other = test::initial_tensors(m.config, 2);
  save_model(m.folder / "other.gguf", "gguf", m.config, other);
  const auto job = [&] {
    MergeJob job = job_of(m.folder / "other.gguf", {m.tuned[0]});
    job.outputs = {{0.25, m.folder / "out.gguf"}};
    return job;
  };
  const Error e = refusal(job());
  EXPECT(e.kind == Kind::input);
  EXPECT(e.message.find("tuned0.gguf: was tuned from the model " + m.base_id) != std::string::npos);
  MergeJob allowed = job();
  allowed.allow_other_base = true;
  EXPECT(interpolate(std::move(allowed)).remarks.size() == 1);

  save_model(m.folder / "unknown.gguf", "gguf", m.config,
             test::tuned_tensors(m.base_tensors, m.config, 5));
  const MergeReport report =
      merge(m.base, {m.folder / "unknown.gguf"}, 0.25, m.folder / "out2.gguf");
  REQUIRE(report.remarks.size() == 1);
  EXPECT(report.remarks[0].find("unknown.gguf: does not record its base") != std::string::npos);
}

TEST_CASE("merge: refusals leave no file") {
  const TinyModels m;
  const auto refused = [&](const Config& config, const TensorMap& tensors, double alpha,
                           const std::string& message) {
    const std::string path = m.folder / "bad.gguf";
    save_model(path, "gguf", config, tensors, Existing::replace);
    const size_t before = files_in(m.folder.path());
    MergeJob job = job_of(m.base, {path});
    job.outputs = {{alpha, m.folder / "out.gguf"}};
    const Error e = refusal(std::move(job));
    EXPECT(e.kind == Kind::input);
    EXPECT_MESSAGE(e.message.find(message) != std::string::npos, e.message);
    EXPECT(files_in(m.folder.path()) == before);
  };
  SUBCASE("another depth") {
    Config deeper = m.config;
    deeper.layers = 3;
    refused(deeper, test::initial_tensors(deeper, 3), 0.25,
            "bad.gguf: hubert.block_count is 3, but 2 in ");
  }
  SUBCASE("another family") {
    Config family = m.config;
    family.arch = "wav2vec2";
    refused(family, m.base_tensors, 0.25, "is a wav2vec2 model");
  }
  SUBCASE("waveforms normalised in one of them") {
    Config normalised = m.config;
    normalised.normalize = true;
    refused(normalised, m.base_tensors, 0.25, "hubert.input.normalize is true, but false in ");
  }
  SUBCASE("a value that is not finite") {
    for (const float bad :
         {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
      TensorMap tensors = test::tuned_tensors(m.base_tensors, m.config, 5);
      tensors.find("enc.1.ffn.up.weight").f32()[7] = bad;
      refused(m.tuned_config(), tensors, 0.25,
              "bad.gguf: tensor enc.1.ffn.up.weight: element 7 is");
      refused(m.tuned_config(), tensors, 0, "bad.gguf: tensor enc.1.ffn.up.weight: element 7 is");
    }
  }
  SUBCASE("no difference") {
    refused(m.tuned_config(), m.base_tensors, 0.25, "the tuned models do not differ from it");
  }
  SUBCASE("a change below rounding") {
    refused(m.tuned_config(), test::tuned_tensors(m.base_tensors, m.config, 5), 1e-60,
            "no change is left");
  }
}

TEST_CASE("merge: whatever call fails, nothing is left") {
  const TinyModels m;
  const size_t before = files_in(m.folder.path());
  for (const io::Op op : {io::Op::open, io::Op::write, io::Op::fsync, io::Op::rename}) {
    MergeJob job = job_of(m.base, {m.tuned[0]});
    job.outputs = {{0.25, m.folder / "out.gguf"}};
    std::atomic<int> calls = 0;
    const io::ScopedHook hook([&](io::Op now, const std::string& path) {
      const bool ours = path.find("out.gguf") != std::string::npos;
      const int call = ours && now == op ? ++calls : 0;
      return call == (op == io::Op::write ? 4 : 1) ? ENOSPC : 0;
    });
    const Error e = refusal(std::move(job));
    EXPECT(e.kind == Kind::resource);
    EXPECT(e.message.find("out.gguf: cannot write (No space left on device") != std::string::npos);
    EXPECT(files_in(m.folder.path()) == before);
  }
  merge(m.base, {m.tuned[0]}, 0.25, m.folder / "out.gguf");
  MergeJob again = job_of(m.base, {m.tuned[0]});
  again.outputs = {{0.25, m.folder / "out.gguf"}};
  EXPECT(refusal(std::move(again)).message.ends_with("out.gguf: exists already"));
}

TEST_CASE("merge: every container, in and out") {
  const TinyModels m;
  const ModelFile tuned = open_model(m.tuned[0]);
  save_model(m.folder / "base-hf", "hf", m.config, m.base_tensors);
  save_model(m.folder / "tuned.safetensors", "safetensors", tuned.config, tuned.tensors);
  merge(m.base, {m.tuned[0]}, 0.25, m.folder / "a.gguf");
  merge(m.folder / "base-hf", {m.folder / "tuned.safetensors"}, 0.25, m.folder / "b.safetensors");
  merge(m.base, {m.folder / "tuned.safetensors"}, 0.25, m.folder / "c-hf");
  const std::string id = model_id(open_stored_model(m.folder / "a.gguf"));
  for (const char* name : {"a.gguf", "b.safetensors", "c-hf"}) {
    EXPECT(model_id(open_stored_model(m.folder / name)) == id);
    EXPECT(model_id(open_model(m.folder / name).tensors) == id);
  }
}

namespace {

// Nearest f16 of x, ties to even, by looking at three neighbours.
uint16_t nearest_f16(double x) {
  const auto rough = static_cast<float>(x);
  uint16_t start, best = 0;
  f32_to_f16(&rough, &start, 1);
  double best_error = std::numeric_limits<double>::infinity();
  for (int step : {-1, 0, 1}) {
    const auto candidate = static_cast<uint16_t>(start + step);
    float value;
    f16_to_f32(&candidate, &value, 1);
    const double error = std::fabs(value - x);
    if (error < best_error || (error == best_error && candidate % 2 == 0))
      best = candidate, best_error = error;
  }
  return best;
}

}  // namespace

TEST_CASE("merge: a base in f16 is rounded once, one in q8_0 stays q8_0") {
  TinyModels m;
  SUBCASE("f16") {
    store_as(m.folder / "half.gguf", m.config, m.base_tensors, Dtype::f16);
    MergeJob job = job_of(m.folder / "half.gguf", {m.tuned[0]});
    job.allow_other_base = true;
    job.outputs = {{0.25, m.folder / "out.gguf"}};
    interpolate(std::move(job));
    const ModelFile base = open_model(m.folder / "half.gguf"), tuned = open_model(m.tuned[0]);
    int64_t different = 0;
    for_each_pair(m.folder / "half.gguf", m.folder / "out.gguf",
                  [&](const std::string& name, Tensor b, Tensor got) {
                    REQUIRE(got.dtype == Dtype::f16);
                    const float* t = tuned.tensors.find(name).f32();
                    for (int64_t i = 0; i < b.count(); ++i) {
                      float b0;
                      f16_to_f32(static_cast<const uint16_t*>(b.data) + i, &b0, 1);
                      const double exact = b0 + 0.25 * (double{t[i]} - b0);
                      different += static_cast<const uint16_t*>(got.data)[i] != nearest_f16(exact);
                    }
                  });
    EXPECT(different == 0);
  }
  SUBCASE("q8_0") {
    m.config.ffn = 64;  // rows of 64 in ffn.down
    m.base_tensors = test::initial_tensors(m.config, 1);
    store_as(m.folder / "q8.gguf", m.config, m.base_tensors, Dtype::q8_0);
    save_model(m.folder / "t.gguf", "gguf", m.config,
               test::tuned_tensors(m.base_tensors, m.config, 5));
    merge(m.folder / "q8.gguf", {m.folder / "t.gguf"}, 0.25, m.folder / "out.gguf");
    merge(m.folder / "q8.gguf", {m.folder / "t.gguf"}, 0.25, m.folder / "out.safetensors");
    EXPECT(open_model(m.folder / "out.gguf").tensors.find("enc.0.ffn.down.weight").dtype ==
           Dtype::q8_0);
    EXPECT(open_model(m.folder / "out.safetensors").tensors.find("enc.0.ffn.down.weight").dtype ==
           Dtype::f32);
  }
}
