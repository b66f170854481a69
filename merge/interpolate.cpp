#include "merge/interpolate.h"

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstring>
#include <exception>
#include <limits>
#include <map>
#include <mutex>
#include <numeric>

#include "engine/formats/numbers.h"
#include "engine/glob.h"
#include "merge/alphas.h"
#include "merge/kernels.h"

namespace sft {
namespace {

constexpr int64_t kChunk = 1 << 14;  // elements; whole blocks of q8_0
constexpr int64_t kBlock = 1 << 10;  // elements; likewise
constexpr int kMostThreads = 16;     // more only wait for the files
constexpr size_t kCopied = SIZE_MAX;

// ---- what threads share

// Runs f(i) for all of [0, n), each index on whichever thread is free and taken in order; the first
// exception ends the loop and is thrown again.
template <class F>
void run_parallel(int64_t n, F&& f) {
  std::atomic<int64_t> next = 0;
  std::atomic<bool> stop = false;
  std::exception_ptr error;
  std::mutex mutex;
#pragma omp parallel num_threads(std::min(omp_get_max_threads(), kMostThreads))
  for (int64_t i = next++; i < n && !stop; i = next++) {
    try {
      f(i);
    } catch (...) {
      const std::lock_guard lock(mutex);
      if (!error) error = std::current_exception();
      stop = true;
    }
  }
  if (error) std::rethrow_exception(error);
}

// What several threads do one after the other, in the order of their turns. Whoever has the first
// turn that is not over never waits, so turns must be handed out in order.
class Turns {
 public:
  // Runs f() when all turns before this one are over; not at all after stop().
  template <class F>
  void run(int64_t turn, F&& f) {
    for (int64_t now = next_; now != turn; now = next_) {
      if (now == kStopped) return;
      next_.wait(now);
    }
    f();
    next_.compare_exchange_strong(turn, turn + 1);
    next_.notify_all();
  }
  void stop() {
    next_ = kStopped;
    next_.notify_all();
  }

 private:
  static constexpr int64_t kStopped = -1;
  std::atomic<int64_t> next_ = 0;
};

// ---- numbers

void to_f64(Dtype dtype, const std::byte* from, double* to, int64_t count) {
  if (dtype == Dtype::f64) {
    std::memcpy(to, from, static_cast<size_t>(count) * sizeof(double));
    return;
  }
  if (dtype == Dtype::f32) {
    widen(reinterpret_cast<const float*>(from), to, count);
    return;
  }
  float values[kChunk];
  to_f32(dtype, from, values, count);
  for (int64_t i = 0; i < count; ++i) to[i] = values[i];
}

// Towards zero, then the last bit set if anything was lost: what is rounded from this to a type of
// at most 22 bits is as if rounded from x at once.
float round_to_odd(double x) {
  const auto nearest = static_cast<float>(x);
  if (nearest == x || !std::isfinite(nearest)) return nearest;
  auto bits = std::bit_cast<uint32_t>(nearest);
  if (std::fabs(static_cast<double>(nearest)) > std::fabs(x)) --bits;
  return std::bit_cast<float>(bits | 1);
}

void from_f64(const double* from, Dtype dtype, std::byte* to, int64_t count) {
  if (dtype == Dtype::f64) {
    std::memcpy(to, from, static_cast<size_t>(count) * sizeof(double));
    return;
  }
  if (dtype == Dtype::f32) {
    narrow(from, reinterpret_cast<float*>(to), count);
    return;
  }
  float values[kChunk];
  for (int64_t i = 0; i < count; ++i) values[i] = round_to_odd(from[i]);
  from_f32(values, dtype, to, count);
}

// f(first, count) for blocks whose values stay in the first-level cache.
template <class F>
void for_each_block(int64_t count, F&& f) {
  for (int64_t first = 0; first < count; first += kBlock) f(first, std::min(kBlock, count - first));
}

// ---- before anything is written

std::string base_recorded(const StoredModel& model) {
  const MetadataValue* id = model.config.provenance.find("sft.base.id");
  const auto* text = id ? std::get_if<std::string>(id) : nullptr;
  return text ? *text : "";
}

void check_base(const StoredModel& tuned, const std::string& base_id, const MergeJob& job,
                std::vector<std::string>& remarks) {
  const std::string recorded = base_recorded(tuned);
  if (recorded == base_id) return;
  if (recorded.empty()) {
    remarks.push_back(fmt::format("{}: does not record its base; taken to be tuned from {}",
                                  printable(tuned.path), printable(job.base.path)));
    return;
  }
  const std::string what =
      fmt::format("{}: was tuned from the model {}, but {} is {}", printable(tuned.path),
                  printable(recorded), printable(job.base.path), base_id);
  if (!job.allow_other_base)
    fail(Kind::input, Hint{"give the base that it was tuned from, or --allow-other-base"}, "{}",
         what);
  remarks.push_back(what);
}

// What must agree for tensors of two models to mean the same.
std::map<std::string, MetadataValue> architecture(const Config& config) {
  std::map<std::string, MetadataValue> values;
  const Metadata metadata = metadata_from_config(config);
  for (const auto& [key, value] : metadata.entries()) {
    const bool here = key == "general.architecture" || key.starts_with(config.arch + ".");
    const bool free = key.starts_with(config.arch + ".train.") ||
                      key.starts_with(config.arch + ".pretrain.") ||
                      key == config.arch + ".input.normalize_eps";
    if (here && !free) values[key] = value;
  }
  return values;
}

void check_same_architecture(const StoredModel& base, const StoredModel& other,
                             std::vector<std::string>& remarks) {
  if (other.config.arch != base.config.arch)
    fail(Kind::input, "{}: is a {} model, {} is {}", printable(other.path), other.config.arch,
         printable(base.path), base.config.arch);
  const auto theirs = architecture(other.config);
  for (const auto& [key, value] : architecture(base.config))
    if (theirs.at(key) != value)
      fail(Kind::input, "{}: {} is {}, but {} in {}", printable(other.path), key,
           text(theirs.at(key)), text(value), printable(base.path));
  if (base.config.normalize && other.config.normalize_eps != base.config.normalize_eps)
    remarks.push_back(fmt::format("{}: input.normalize_eps is {}; the base's {} is kept",
                                  printable(other.path), other.config.normalize_eps,
                                  base.config.normalize_eps));
}

void check_patterns(const MergeJob& job) {
  for (const MergeJob::TensorAlpha& t : job.tensors) {
    const bool any =
        std::any_of(job.base.tensors.begin(), job.base.tensors.end(), [&](const auto& entry) {
          return is_backbone(entry.first) && glob_match(t.pattern, entry.first);
        });
    if (!any)
      fail(Kind::usage, Hint{fmt::format("sft-info {} --tensors lists them", job.base.path)},
           "--tensors: '{}' matches no backbone tensor", printable(t.pattern));
  }
}

// Ids of the base, then of the tuned models.
std::vector<std::string> ids_of(const MergeJob& job) {
  std::vector<std::string> ids(job.tuned.size() + 1);
  run_parallel(static_cast<int64_t>(ids.size()),
               [&](int64_t i) { ids[i] = model_id(i == 0 ? job.base : job.tuned[i - 1]); });
  return ids;
}

// Whether the pass itself can make the ids: nothing that it computes depends on them (two
// differences have the same sum in any order, three do not), the outputs have a head to write them
// into at the end, and the tensors to hash are those of the base.
bool ids_come_with_values(const MergeJob& job) {
  const std::string format = format_of_name(job.outputs[0].path);
  if (job.tuned.size() > 2 || (format != "gguf" && format != "safetensors")) return false;
  const auto names = [](const StoredModel& model) {
    std::vector<std::string_view> names;
    for (const auto& [name, tensor] : model.tensors)
      if (is_backbone(name)) names.push_back(name);
    return names;
  };
  return std::all_of(job.tuned.begin(), job.tuned.end(),
                     [&](const StoredModel& tuned) { return names(tuned) == names(job.base); });
}

// The tuned models in the order of their ids.
std::vector<MergeReport::Input> sort_tuned(MergeJob& job, const std::vector<std::string>& ids) {
  std::vector<size_t> order(job.tuned.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return ids[a + 1] < ids[b + 1]; });
  std::vector<StoredModel> sorted;
  std::vector<MergeReport::Input> inputs;
  for (size_t i : order) {
    inputs.push_back({model_name(job.tuned[i].path), ids[i + 1]});
    sorted.push_back(std::move(job.tuned[i]));
  }
  job.tuned = std::move(sorted);
  return inputs;
}

// What the inputs are, and whether that is what they record of each other.
void identify(MergeJob& job, const std::vector<std::string>& ids, MergeReport& report) {
  report.base_id = ids[0];
  report.tuned = sort_tuned(job, ids);
  for (const StoredModel& tuned : job.tuned) check_base(tuned, report.base_id, job, report.remarks);
}

// As long as identified ones, for heads that are written before the ids are known.
MergeReport unidentified(const MergeJob& job) {
  const std::string id(ModelHash().digest().size(), '0');
  MergeReport report{.base_id = id};
  for (const StoredModel& tuned : job.tuned) report.tuned.push_back({model_name(tuned.path), id});
  return report;
}

// ---- outputs

Config output_config(const MergeJob& job, double alpha, const MergeReport& report) {
  Config config = job.base.config;
  config.task = job.head ? job.head->config.task : Config::Task();
  config.provenance = Metadata();
  for (const auto& [key, value] : job.base.config.provenance.entries())
    if (!key.starts_with("sft.merge.") && !key.starts_with("sft.train.") && key != "sft.base.id")
      config.provenance.set(key, value);
  std::vector<std::string> inputs, tensors;
  inputs.push_back(report.base_id + " " + model_name(job.base.path));
  for (const MergeReport::Input& tuned : report.tuned)
    inputs.push_back(tuned.id + " " + tuned.name);
  for (const MergeJob::TensorAlpha& t : job.tensors)
    tensors.push_back(fmt::format("{}={}", t.pattern, t.alpha));
  config.provenance.set("sft.merge.method", std::string("linear"));
  config.provenance.set("sft.merge.alpha", alpha);
  config.provenance.set("sft.merge.inputs", inputs);
  if (!tensors.empty()) config.provenance.set("sft.merge.tensors", tensors);
  config.provenance.set("sft.base.id", report.base_id);
  return config;
}

// Names, shapes and types; q8_0 stays only where the container has it.
std::vector<TensorSpec> output_tensors(const MergeJob& job, std::string_view format) {
  std::vector<TensorSpec> specs;
  const auto add = [&](const std::string& name, const StoredTensor& tensor) {
    const bool keeps = tensor.dtype != Dtype::q8_0 || format == "gguf";
    specs.push_back({name, tensor.shape, keeps ? tensor.dtype : Dtype::f32});
  };
  for (const TensorSpec& spec : backbone_tensors(job.base.config))
    if (is_backbone(spec.name)) add(spec.name, job.base.tensors.at(spec.name));
  for (const auto& [name, tensor] : job.base.tensors)
    if (name.starts_with("pretrain.")) add(name, tensor);
  if (job.head)
    for (const auto& [name, tensor] : job.head->tensors)
      if (name.starts_with("task.")) add(name, tensor);
  return specs;
}

std::string part_of(std::string_view name) {
  const size_t dot = std::min(name.find('.'), name.size());
  const std::string first(name.substr(0, dot));
  if (first == "feat_norm") return "feat_proj";
  if (first != "enc") return first;
  return std::string(name.substr(0, std::min(name.find('.', dot + 1), name.size())));
}

// ---- the pass

class Pass {
 public:
  // With `hashing` the report's ids only have the length of the true ones, which run() finds.
  Pass(const MergeJob& job, const MergeReport& report, bool hashing);
  void run();
  std::vector<std::string> ids() const;  // with `hashing`: of the base, then of the tuned models
  void describe(const MergeReport& report);  // in the heads of the outputs
  void finish();  // all outputs are complete; one after the other gets its name
  void fill(MergeReport& report) const;

 private:
  // A tensor of the outputs.
  struct Item {
    std::string name;
    std::string where;                       // path of the model it is copied from, or the base's
    const StoredTensor* base;                // or the head's
    std::vector<const StoredTensor*> tuned;  // empty: copied
    std::vector<double> alphas;              // one for each output
    size_t part = kCopied;                   // of parts_
  };
  struct Chunk {
    size_t item;
    int64_t first, count;  // elements
  };
  // Sums of squares over a chunk: base, difference, then for each output change and rounding.
  struct Sums {
    double* at;
    double& base() { return at[0]; }
    double& difference() { return at[1]; }
    double& change(size_t output) { return at[2 + 2 * output]; }
    double& rounding(size_t output) { return at[3 + 2 * output]; }
  };
  // Of a thread. What was read stays until the next chunk.
  struct Scratch {
    using Bytes = std::vector<std::byte>;
    Bytes base, out;
    std::vector<Bytes> tuned;
    std::vector<double> theta0, delta;  // of a chunk
    std::vector<double> exact, values;  // of a block: before rounding, and after
    explicit Scratch(size_t models)
        : base(kChunk * sizeof(double)),
          out(base),
          tuned(models, base),
          theta0(kChunk),
          delta(kChunk),
          exact(kBlock),
          values(kBlock) {}
  };

  void add_item(const TensorSpec& spec);
  void cut_into_chunks();
  double alpha_of(const std::string& name, double alpha) const;
  size_t part_index(const std::string& name);
  Sums sums(size_t chunk) { return {&sums_[chunk * stride()]}; }
  size_t stride() const { return 2 + 2 * writers_.size(); }
  const std::byte* read(const StoredTensor& tensor, const Chunk& chunk, std::vector<std::byte>& to);
  void process(int64_t chunk, Scratch& s);
  void hash(const Item& item, const Chunk& chunk, Scratch& s);
  void copy(const Item& item, const Chunk& chunk, Sums sums, Scratch& s);
  void merge(const Item& item, const Chunk& chunk, Sums sums, Scratch& s);
  bool plain(const Item& item) const;
  void merge_plain(const Item& item, const Chunk& chunk, Sums sums, Scratch& s);
  // The bytes of output `k` of a chunk.
  const std::byte* merged(const Item& item, const Chunk& chunk, size_t k, Sums sums, Scratch& s);
  void place(const Chunk& chunk, size_t output, const std::byte* bytes);
  Dtype stored_type(const Item& item) const {
    return writers_[0]->tensors()[static_cast<size_t>(&item - items_.data())].dtype;
  }
  void check_finite(size_t chunk);
  void check_values(const Item& item, const std::string& path, const StoredTensor& tensor,
                    const Chunk& chunk) const;
  void check_change(size_t output, double change, double expected, double rounding,
                    double difference) const;
  const StoredTensor* tuned_tensor(const StoredModel& model, const std::string& name) const;

  const MergeJob& job_;
  std::vector<std::unique_ptr<ModelWriter>> writers_;  // one for each output
  std::vector<Item> items_;                            // in the order of the writers' tensors
  std::vector<Chunk> chunks_;      // those of merged tensors first, in the order of their names
  int64_t merged_ = 0;             // of them
  std::vector<ModelHash> hashes_;  // of the base, then of the tuned models; empty: not asked for
  Turns turns_;                    // to hash
  std::vector<double> sums_;
  std::vector<std::string> parts_;
};

Pass::Pass(const MergeJob& job, const MergeReport& report, bool hashing)
    : job_(job), hashes_(hashing ? job.tuned.size() + 1 : 0) {
  const std::string format = format_of_name(job.outputs[0].path);
  const std::vector<TensorSpec> specs = output_tensors(job, format);
  for (const MergeJob::Output& output : job.outputs)
    writers_.push_back(std::make_unique<ModelWriter>(
        output.path, format, output_config(job, output.alpha, report), specs, job.existing));
  for (const TensorSpec& spec : backbone_tensors(job.base.config))
    if (is_backbone(spec.name)) part_index(part_of(spec.name));
  for (const TensorSpec& spec : writers_[0]->tensors()) add_item(spec);
  cut_into_chunks();
  sums_.resize(chunks_.size() * stride());
}

size_t Pass::part_index(const std::string& name) {
  const auto it = std::find(parts_.begin(), parts_.end(), name);
  if (it == parts_.end()) parts_.push_back(name);
  return static_cast<size_t>(std::find(parts_.begin(), parts_.end(), name) - parts_.begin());
}

double Pass::alpha_of(const std::string& name, double alpha) const {
  for (const MergeJob::TensorAlpha& t : job_.tensors)
    if (glob_match(t.pattern, name)) alpha = t.alpha;
  return alpha;
}

// A tensor that a tuned model's file lacks is the base's: nobody changed it. One that was made from
// others of its file is its own.
const StoredTensor* Pass::tuned_tensor(const StoredModel& model, const std::string& name) const {
  const StoredTensor& tensor = model.tensors.at(name);
  return tensor.file || tensor.made ? &tensor : &job_.base.tensors.at(name);
}

void Pass::add_item(const TensorSpec& spec) {
  const StoredModel& from = spec.name.starts_with("task.") ? *job_.head : job_.base;
  Item item{.name = spec.name, .where = from.path, .base = &from.tensors.at(spec.name)};
  if (is_backbone(spec.name)) {
    for (const StoredModel& tuned : job_.tuned)
      item.tuned.push_back(tuned_tensor(tuned, spec.name));
    for (const MergeJob::Output& output : job_.outputs)
      item.alphas.push_back(alpha_of(spec.name, output.alpha));
    item.part = part_index(part_of(spec.name));
  }
  items_.push_back(std::move(item));
}

void Pass::cut_into_chunks() {
  std::vector<size_t> order(items_.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    const bool copied_a = items_[a].part == kCopied, copied_b = items_[b].part == kCopied;
    return copied_a != copied_b ? copied_b : items_[a].name < items_[b].name;
  });
  for (size_t item : order) {
    const int64_t count = items_[item].base->count();
    for (int64_t first = 0; first < count; first += kChunk)
      chunks_.push_back({item, first, std::min(kChunk, count - first)});
    if (items_[item].part != kCopied) merged_ = std::ssize(chunks_);
  }
}

const std::byte* Pass::read(const StoredTensor& tensor, const Chunk& chunk,
                            std::vector<std::byte>& to) {
  const auto bytes = static_cast<size_t>(bytes_of(tensor.dtype, chunk.count));
  tensor.read(std::span(to).first(bytes),
              static_cast<uint64_t>(bytes_of(tensor.dtype, chunk.first)));
  return to.data();
}

void Pass::place(const Chunk& chunk, size_t output, const std::byte* bytes) {
  const Dtype dtype = stored_type(items_[chunk.item]);
  writers_[output]->place(chunk.item, static_cast<uint64_t>(bytes_of(dtype, chunk.first)),
                          {bytes, static_cast<size_t>(bytes_of(dtype, chunk.count))});
}

void Pass::copy(const Item& item, const Chunk& chunk, Sums sums, Scratch& s) {
  const std::byte* bytes = read(*item.base, chunk, s.base);
  to_f64(item.base->dtype, bytes, s.theta0.data(), chunk.count);
  sums.base() = square_sum(s.theta0.data(), chunk.count);
  if (stored_type(item) != item.base->dtype) {
    from_f64(s.theta0.data(), stored_type(item), s.out.data(), chunk.count);
    bytes = s.out.data();
  }
  for (size_t k = 0; k < writers_.size(); ++k) place(chunk, k, bytes);
}

const std::byte* Pass::merged(const Item& item, const Chunk& chunk, size_t k, Sums sums,
                              Scratch& s) {
  const double alpha = item.alphas[k];
  const Dtype dtype = stored_type(item);
  const StoredTensor& only = *item.tuned[0];
  const bool is_base = alpha == 0, is_tuned = alpha == 1 && item.tuned.size() == 1;
  const std::byte *bytes = s.out.data(), *tuned = s.tuned[0].data();
  if (is_base && dtype == item.base->dtype) bytes = s.base.data();
  if (is_tuned && dtype == only.dtype) bytes = tuned;
  for_each_block(chunk.count, [&](int64_t first, int64_t count) {
    const double *theta0 = &s.theta0[first], *exact = s.exact.data();
    if (is_base)
      exact = theta0;
    else if (is_tuned)
      to_f64(only.dtype, tuned + bytes_of(only.dtype, first), s.exact.data(), count);
    else
      step_from(theta0, &s.delta[first], alpha, s.exact.data(), count);
    const int64_t at = bytes_of(dtype, first);
    if (bytes == s.out.data()) from_f64(exact, dtype, s.out.data() + at, count);
    to_f64(dtype, bytes + at, s.values.data(), count);
    sums.change(k) += square_distance(s.values.data(), theta0, count);
    sums.rounding(k) += square_distance(s.values.data(), exact, count);
  });
  return bytes;
}

bool Pass::plain(const Item& item) const {
  return writers_.size() == 1 && item.tuned.size() == 1 && item.alphas[0] != 0 &&
         item.alphas[0] != 1 && item.base->dtype == Dtype::f32 &&
         item.tuned[0]->dtype == Dtype::f32 && stored_type(item) == Dtype::f32;
}

// One tuned model and one output, all f32: what merge() computes, in one pass over the numbers.
void Pass::merge_plain(const Item& item, const Chunk& chunk, Sums sums, Scratch& s) {
  const auto* base = reinterpret_cast<const float*>(read(*item.base, chunk, s.base));
  const auto* tuned = reinterpret_cast<const float*>(read(*item.tuned[0], chunk, s.tuned[0]));
  const StepSums found =
      step_f32(base, tuned, item.alphas[0], reinterpret_cast<float*>(s.out.data()), chunk.count);
  sums.base() = found.base, sums.difference() = found.difference;
  sums.change(0) = found.change, sums.rounding(0) = found.rounding;
  place(chunk, 0, s.out.data());
}

void Pass::merge(const Item& item, const Chunk& chunk, Sums sums, Scratch& s) {
  if (plain(item)) return merge_plain(item, chunk, sums, s);
  const int64_t n = chunk.count;
  double *theta0 = s.theta0.data(), *delta = s.delta.data();
  to_f64(item.base->dtype, read(*item.base, chunk, s.base), theta0, n);
  std::fill_n(delta, n, 0.0);
  for (size_t m = 0; m < item.tuned.size(); ++m) {
    const Dtype dtype = item.tuned[m]->dtype;
    const std::byte* bytes = read(*item.tuned[m], chunk, s.tuned[m]);
    for_each_block(n, [&](int64_t first, int64_t count) {
      to_f64(dtype, bytes + bytes_of(dtype, first), s.values.data(), count);
      add_difference(s.values.data(), theta0 + first, delta + first, count);
    });
  }
  const auto models = static_cast<double>(item.tuned.size());
  if (models > 1)
    for (int64_t i = 0; i < n; ++i) delta[i] /= models;
  sums.base() = square_sum(theta0, n);
  sums.difference() = square_sum(delta, n);
  for (size_t k = 0; k < writers_.size(); ++k) place(chunk, k, merged(item, chunk, k, sums, s));
}

// What merge() has read, and where a tuned model's file lacks the tensor, what stands in for it.
void Pass::hash(const Item& item, const Chunk& chunk, Scratch& s) {
  for (size_t m = 0; m < hashes_.size(); ++m) {
    const StoredModel& model = m == 0 ? job_.base : job_.tuned[m - 1];
    const StoredTensor& tensor = model.tensors.find(item.name)->second;
    const std::byte* bytes = m == 0 ? s.base.data() : s.tuned[m - 1].data();
    if (m > 0 && &tensor != item.tuned[m - 1]) bytes = read(tensor, chunk, s.out);
    if (chunk.first == 0) hashes_[m].tensor(item.name, tensor.shape);
    hashes_[m].values(tensor.dtype,
                      {bytes, static_cast<size_t>(bytes_of(tensor.dtype, chunk.count))},
                      chunk.count);
  }
}

void Pass::process(int64_t i, Scratch& s) {
  const Chunk& chunk = chunks_[i];
  const Item& item = items_[chunk.item];
  item.part == kCopied ? copy(item, chunk, sums(i), s) : merge(item, chunk, sums(i), s);
  check_finite(i);
  if (i < merged_ && !hashes_.empty()) turns_.run(i, [&] { hash(item, chunk, s); });
}

void Pass::run() {
  std::vector<Scratch> scratch(static_cast<size_t>(std::min(omp_get_max_threads(), kMostThreads)),
                               Scratch(job_.tuned.size()));
  run_parallel(std::ssize(chunks_), [&](int64_t i) {
    try {
      process(i, scratch[static_cast<size_t>(omp_get_thread_num())]);
    } catch (...) {
      turns_.stop();
      throw;
    }
  });
}

std::vector<std::string> Pass::ids() const {
  std::vector<std::string> ids;
  for (const ModelHash& hash : hashes_) ids.push_back(hash.digest());
  return ids;
}

void Pass::describe(const MergeReport& report) {
  for (size_t k = 0; k < writers_.size(); ++k)
    writers_[k]->describe(output_config(job_, job_.outputs[k].alpha, report));
}

// A value that is not finite makes the sums so.
void Pass::check_finite(size_t chunk) {
  const double* first = sums(chunk).at;
  if (std::all_of(first, first + stride(), [](double x) { return std::isfinite(x); })) return;
  const Item& item = items_[chunks_[chunk].item];
  check_values(item, item.where, *item.base, chunks_[chunk]);
  for (size_t m = 0; m < item.tuned.size(); ++m)
    check_values(item, job_.tuned[m].path, *item.tuned[m], chunks_[chunk]);
  fail(Kind::input, Hint{"an alpha nearer to 0..1 changes less"},
       "{}: tensor {}: a merged value is out of the range of {}", printable(item.where), item.name,
       stored_type(item));
}

void Pass::check_values(const Item& item, const std::string& path, const StoredTensor& tensor,
                        const Chunk& chunk) const {
  std::vector<std::byte> bytes(static_cast<size_t>(bytes_of(tensor.dtype, chunk.count)));
  std::vector<double> values(static_cast<size_t>(chunk.count));
  tensor.read(bytes, static_cast<uint64_t>(bytes_of(tensor.dtype, chunk.first)));
  to_f64(tensor.dtype, bytes.data(), values.data(), chunk.count);
  for (int64_t i = 0; i < chunk.count; ++i)
    if (!std::isfinite(values[i]))
      fail(Kind::input, "{}: tensor {}: element {} is {} (expected finite values)", printable(path),
           item.name, chunk.first + i, values[i]);
}

// What was written must be alpha times the difference away from the base, but for rounding.
void Pass::check_change(size_t output, double change, double expected, double rounding,
                        double difference) const {
  const auto& [alpha, path] = job_.outputs[output];
  if (change == 0 && (alpha != 0 || expected > 0))
    fail(Kind::input, Hint{"a run means its BEST checkpoint; RUN/ckpt/step-N names another"},
         "{}: would be the base: {}", printable(path),
         difference == 0 ? "the tuned models do not differ from it" : "no change is left");
  if (std::fabs(change - expected) > 1e-6 * expected + rounding)
    fail(Kind::internal, "{}: |merged - base| is {}, should be {}", path, change, expected);
}

void Pass::fill(MergeReport& report) const {
  const size_t outputs = writers_.size(), total = parts_.size();
  for (const std::string& name : parts_)
    report.parts.push_back({name, 0, 0, std::vector<double>(outputs)});
  report.parts.push_back({"total", 0, 0, std::vector<double>(outputs)});
  std::vector<double> expected(outputs), rounding(outputs);
  for (size_t c = 0; c < chunks_.size(); ++c) {
    const Item& item = items_[chunks_[c].item];
    if (item.part == kCopied) continue;
    const double* sums = &sums_[c * stride()];
    for (size_t p : {item.part, total}) {
      report.parts[p].base += sums[0];
      report.parts[p].difference += sums[1];
      for (size_t k = 0; k < outputs; ++k) report.parts[p].change[k] += sums[2 + 2 * k];
    }
    for (size_t k = 0; k < outputs; ++k) {
      expected[k] += item.alphas[k] * item.alphas[k] * sums[1];
      rounding[k] += sums[3 + 2 * k];
    }
  }
  for (MergeReport::Part& part : report.parts) {
    part.base = std::sqrt(part.base);
    part.difference = std::sqrt(part.difference);
    for (double& change : part.change) change = std::sqrt(change);
  }
  const MergeReport::Part& all = report.parts[total];
  for (size_t k = 0; k < outputs; ++k) {
    const double lost = std::sqrt(rounding[k]) + 0x1p-52 * all.base;  // to the type, and in f64
    check_change(k, all.change[k], std::sqrt(expected[k]), lost, all.difference);
    report.ratio.push_back(all.difference > 0 ? all.change[k] / all.difference : 0);
  }
  for (const std::string& line : writers_[0]->dropped()) report.remarks.push_back(line);
}

void Pass::finish() {
  for (const auto& writer : writers_) writer->finish();
}

void add_remarks(const StoredModel& model, std::vector<std::string>& remarks) {
  for (const std::string& line : model.remarks)
    remarks.push_back(fmt::format("{}: {}", printable(model.path), line));
}

}  // namespace

MergeReport interpolate(MergeJob job) {
  CHECK(!job.tuned.empty() && !job.outputs.empty(), "merge: {} tuned models, {} outputs",
        job.tuned.size(), job.outputs.size());
  for (const MergeJob::Output& output : job.outputs)
    CHECK(format_of_name(output.path) == format_of_name(job.outputs[0].path),
          "merge: outputs in two formats");
  MergeReport report;
  add_remarks(job.base, report.remarks);
  for (const StoredModel& tuned : job.tuned) {
    add_remarks(tuned, report.remarks);
    check_same_architecture(job.base, tuned, report.remarks);
  }
  if (job.head) {
    check_same_architecture(job.base, *job.head, report.remarks);
    if (job.head->config.task.kind.empty())
      fail(Kind::input, "{}: has no task head", printable(job.head->path));
  }
  check_patterns(job);
  const bool hashing = ids_come_with_values(job);
  if (!hashing) identify(job, ids_of(job), report);

  Pass pass(job, hashing ? unidentified(job) : report, hashing);
  pass.run();
  if (hashing) {
    identify(job, pass.ids(), report);
    pass.describe(report);
  }
  pass.fill(report);
  pass.finish();
  return report;
}

}  // namespace sft
