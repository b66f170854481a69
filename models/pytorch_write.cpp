#include <algorithm>

#include "engine/formats/torch_file.h"
#include "models/fairseq_config.h"
#include "models/initialise.h"
#include "models/pytorch.h"
#include "models/pytorch_names.h"
#include "models/vocabulary.h"

namespace sft {
namespace {

// Empty: fairseq has no place for it.
std::string their_name(std::string_view ours, const Config& config, bool fine_tuned = false) {
  if (fine_tuned) {
    if (ours.starts_with("task.")) return translate(ctc_head_names(), ours, true);
    const std::string inside = is_backbone(ours) ? their_name(ours, config) : "";
    return inside.empty() ? "" : std::string(kFineTuned) + inside;
  }
  const bool layer_mode = config.conv_norm == "layer";
  std::string theirs = layer_mode ? translate(layer_mode_names(), ours, true) : "";
  if (theirs.empty()) theirs = translate(family_named(config.arch)->names, ours, true);
  return theirs.empty() ? translate(backbone_names(), ours, true) : theirs;
}

constexpr int64_t kSpecialSymbols = 4, kReleasedClasses = 504;

// The pre-training tensors that s3prl's strict loading asks for, under our names.
std::vector<TensorSpec> heads_of_s3prl(const Config& c) {
  if (c.arch != "hubert" && c.arch != "wav2vec2") return {};
  const int64_t dim = c.pretrain.dim, codes = c.pretrain.vq_groups * c.pretrain.vq_vars;
  std::vector<TensorSpec> heads = {{"pretrain.proj.weight", {dim, c.width}},
                                   {"pretrain.proj.bias", {dim}}};
  if (c.arch == "hubert") {
    heads.push_back({"pretrain.label_emb", {kReleasedClasses, dim}});
  } else {
    heads.push_back({"pretrain.vq.codebook", {codes, dim / c.pretrain.vq_groups}});
    heads.push_back({"pretrain.vq.proj.weight", {codes, c.conv_dims.back()}});
    heads.push_back({"pretrain.vq.proj.bias", {codes}});
    heads.push_back({"pretrain.vq_out.weight", {dim, dim}});
    heads.push_back({"pretrain.vq_out.bias", {dim}});
  }
  return heads;
}

const TensorSpec* find(const std::vector<TensorSpec>& specs, std::string_view name) {
  for (const TensorSpec& spec : specs)
    if (spec.name == name) return &spec;
  return nullptr;
}

TorchTree our_keys(const Config& config, const std::vector<std::string>& made) {
  Metadata metadata = metadata_from_config(config);
  if (!made.empty()) metadata.set(std::string(kMadeKey), made);
  std::vector<std::pair<std::string, TorchTree>> items;
  for (const auto& [key, value] : metadata.entries())
    items.emplace_back(key, TorchTree::text(value_to_json(value)));
  return TorchTree::dict(std::move(items));
}

// s3prl counts the symbols of each label set: the rows of label_embs_concat.
TorchTree symbols(int64_t classes) {
  std::vector<TorchTree> list;
  for (const char* special : {"<s>", "<pad>", "</s>", "<unk>"})
    list.push_back(TorchTree::text(special));
  for (int64_t i = kSpecialSymbols; i < classes; ++i)
    list.push_back(TorchTree::text(fmt::format("{}", i - kSpecialSymbols)));
  return TorchTree::list({TorchTree::list(std::move(list))});
}

using Tree = TorchTree;

// The state dict. data2vec's own code keeps the teacher of its pre-training there, and s3prl
// removes it without looking.
Tree state_dict(const Config& config) {
  return config.arch == "data2vecaudio" ? Tree::tensors({{"_ema", Tree::dict({})}})
                                        : Tree::tensors();
}

Tree s3prl_tree(const Config& config, Tree ours, int64_t classes) {
  std::vector<std::pair<std::string, Tree>> items = {{"task_cfg", task_settings(config)},
                                                     {"model_cfg", model_settings(config)},
                                                     {"model_weight", state_dict(config)}};
  if (classes > 0) items.emplace_back("dictionaries_symbols", symbols(classes));
  items.emplace_back(kOurKeys, std::move(ours));
  return Tree::dict(std::move(items));
}

// Why fairseq's fine-tuned form does not hold the task head; empty: it does, or there is none.
std::string unfit_for_fairseq(const TorchFamily& family, const Config::Task& task,
                              const std::vector<TensorSpec>& tensors) {
  if (task.kind.empty()) return "";
  if (family.ctc.empty()) return fmt::format("has no {} model with a CTC head", family.arch);
  if (task.kind != "ctc" || task.head != "linear" || find(tensors, "task.layer_weights"))
    return "holds a linear CTC head alone";
  return fairseq_dictionary(task).empty()
             ? "has blank 0 and four special units first, then others, each once"
             : "";
}

// With what fairseq's loading of checkpoints looks for beside model and cfg.
Tree fairseq_tree(const Config& config, Tree ours) {
  const bool ctc = !config.task.kind.empty();
  const char* criterion = ctc                         ? "CtcCriterion"
                          : config.arch == "hubert"   ? "HubertCriterion"
                          : config.arch == "wav2vec2" ? "Wav2vecCriterion"
                                                      : "ModelCriterion";
  const Tree history = Tree::dict({{"criterion_name", Tree::text(criterion)},
                                   {"optimizer_name", Tree::text("FairseqAdam")},
                                   {"lr_scheduler_state", Tree::dict({})},
                                   {"num_updates", Tree::integer(0)}});
  const Tree iterator =
      Tree::dict({{"epoch", Tree::integer(1)}, {"iterations_in_epoch", Tree::integer(0)}});
  return Tree::dict({{"args", Tree::none()},
                     {"cfg", ctc ? fine_tuned_settings(config, family_named(config.arch)->ctc)
                                 : Tree::dict({{"model", model_settings(config)},
                                               {"task", task_settings(config)}})},
                     {"model", state_dict(config)},
                     {"criterion", Tree::none()},
                     {"optimizer_history", Tree::list({history})},
                     {"task_state", Tree::dict({})},
                     {"extra_state", Tree::dict({{"train_iterator", iterator}})},
                     {"last_optimizer_state", Tree::none()},
                     {std::string(kOurKeys), std::move(ours)}});
}

Tree unilm_tree(const Config& config, Tree ours) {
  return Tree::dict({{"cfg", model_settings(config)},
                     {"model", Tree::tensors()},
                     {std::string(kOurKeys), std::move(ours)}});
}

Tree distiller_tree(const Config& config, Tree ours) {
  return Tree::dict({{"Config", Tree::dict({{"distiller", distiller_settings(config)}})},
                     {"Distiller", Tree::tensors()},
                     {std::string(kOurKeys), std::move(ours)}});
}

Tree bare_tree(Tree ours) {
  return Tree::dict({{"model", Tree::tensors()}, {std::string(kOurKeys), std::move(ours)}});
}

Tree tree_of(TorchForm form, std::string_view format, const Config& config, Tree ours,
             int64_t classes) {
  switch (form) {
    case TorchForm::fairseq:
      return format == "s3prl" ? s3prl_tree(config, std::move(ours), classes)
                               : fairseq_tree(config, std::move(ours));
    case TorchForm::unilm:
      return unilm_tree(config, std::move(ours));
    case TorchForm::distiller:
      return distiller_tree(config, std::move(ours));
    case TorchForm::bare:
      break;
  }
  return bare_tree(std::move(ours));
}

void check_form(const std::string& path, std::string_view format, const TorchFamily* family,
                const Config& config) {
  CHECK(family, "{}: no names for a {} model", path, config.arch);
  if (format == "fairseq" &&
      (family->form == TorchForm::distiller || family->form == TorchForm::bare))
    fail(Kind::usage, Hint{"--to s3prl"}, "{}: fairseq has no {} model", printable(path),
         config.arch);
  if (config.pretrain.distill.size() == 1)
    fail(Kind::usage, "{}: s3prl keeps a single prediction head transposed, which is not written",
         printable(path));
}

}  // namespace

TorchCheckpoint create_torch_model(const std::string& path, std::string_view format,
                                   const Config& config, const std::vector<TensorSpec>& tensors,
                                   Existing existing) {
  const TorchFamily* family = family_named(config.arch);
  check_form(path, format, family, config);
  const std::string unfit = format == "fairseq" ? unfit_for_fairseq(*family, config.task, tensors)
                                                : "has no place for it";
  const bool fine_tuned = !config.task.kind.empty() && unfit.empty();
  Config kept = config;
  if (!fine_tuned) kept.task = {};
  std::vector<TensorSpec> theirs, ours;
  std::vector<std::string> remarks, made_ours, made_theirs;
  for (const TensorSpec& tensor : tensors) {
    const std::string name = their_name(tensor.name, config, fine_tuned);
    if (name.empty()) {
      const bool head = tensor.name.starts_with("task.") && !unfit.empty();
      remarks.push_back(fmt::format("{} {}: {} {}, dropped", tensor.name, tensor.shape, format,
                                    head ? unfit : "has no place for it"));
      continue;
    }
    theirs.push_back({name, their_shape(tensor.name, tensor.shape), tensor.dtype});
    ours.push_back(tensor);
  }
  TensorMap made;
  if (format == "s3prl") {
    std::vector<TensorSpec> missing = heads_of_s3prl(config);
    std::erase_if(missing, [&](const TensorSpec& head) { return find(ours, head.name); });
    TensorMap values;
    initialise_missing(values, missing, 0);
    for (const TensorSpec& head : missing) {
      const std::string name = their_name(head.name, config);
      theirs.push_back({name, their_shape(head.name, head.shape), Dtype::f32});
      made.tensors[name] = values.find(head.name);
      made_ours.push_back(head.name), made_theirs.push_back(name);
      remarks.push_back(fmt::format("{} {}: made at random, since s3prl refuses a model without it",
                                    name, head.shape));
    }
    made.keep = values.keep;
  }
  if (fine_tuned && config.arch == "hubert") {
    // fairseq's HubertCtc keeps the embeddings of its classes, of which it has none then.
    const std::string name = std::string(kFineTuned) + "label_embs_concat";
    const Shape none = {0, config.pretrain.dim};
    theirs.push_back({name, none, Dtype::f32});
    made.add_owned(name, none, {});
    made_ours.push_back("pretrain.label_emb"), made_theirs.push_back(name);
  }
  const TensorSpec* labels = find(ours, "pretrain.label_emb");
  const int64_t classes = config.arch != "hubert" ? 0
                          : labels                ? labels->shape[0]
                                                  : kReleasedClasses;
  const Tree root = tree_of(family->form, format, kept, our_keys(kept, made_ours), classes);
  return {create_torch(path, root, std::move(theirs), existing),
          std::move(ours),
          std::move(remarks),
          std::move(made),
          std::move(made_theirs),
          fine_tuned ? fairseq_dictionary(config.task) : ""};
}

}  // namespace sft
