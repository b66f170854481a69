// Which heads of s3prl's downstream checkpoints are kept, and what is said of the others.
#include "models/s3prl_downstream.h"

#include "models/checkpoint.h"
#include "tests/doctest.h"
#include "tests/golden.h"
#include "tests/temporary_folder.h"

using namespace sft;
using Names = std::vector<std::string>;
using Tree = TorchTree;

namespace {

constexpr int64_t kWidth = 8, kProjected = 6;

std::vector<TensorSpec> mean_head() {
  return {{"projector.weight", {kProjected, kWidth}},
          {"projector.bias", {kProjected}},
          {"model.post_net.linear.weight", {12, kProjected}},
          {"model.post_net.linear.bias", {12}},
          {"best_score", {1}}};
}

std::vector<TensorSpec> frame_head(int64_t units) {
  return {{"projector.weight", {kProjected, kWidth}},
          {"projector.bias", {kProjected}},
          {"model.linear.weight", {units, kProjected}},
          {"model.linear.bias", {units}}};
}

// One bidirectional layer of that width and number of gates.
std::vector<TensorSpec> rnn_head(int64_t units, int64_t width = kProjected, int64_t gates = 4) {
  std::vector<TensorSpec> specs = {{"projector.weight", {kProjected, kWidth}},
                                   {"projector.bias", {kProjected}},
                                   {"model.linear.weight", {units, 2 * width}},
                                   {"model.linear.bias", {units}}};
  for (const char* direction : {"", "_reverse"})
    for (const char* part : {"weight_ih", "weight_hh", "bias_ih", "bias_hh"}) {
      const std::string name = std::string("model.rnns.0.layer.") + part + "_l0" + direction;
      Shape shape{gates * width};
      if (name.find("weight_ih") != std::string::npos) shape = {gates * width, kProjected};
      if (name.find("weight_hh") != std::string::npos) shape = {gates * width, width};
      specs.push_back({name, shape});
    }
  return specs;
}

struct Checkpoint {
  std::string downstream = "asr";
  std::vector<TensorSpec> tensors;
  std::vector<std::pair<std::string, Tree>> args = {
      {"upstream_feature_selection", Tree::text("last_hidden_state")}};
  std::vector<std::pair<std::string, Tree>> rnns;

  DownstreamHead head() const {
    const test::TemporaryFolder folder;
    const std::string path = folder / "m.ckpt";
    auto all = args;
    all.emplace_back("downstream", Tree::text(downstream));
    const Tree modelrc = Tree::dict({{"RNNs", Tree::dict(rnns)}});
    const Tree config = Tree::dict({{"downstream_expert", Tree::dict({{"modelrc", modelrc}})}});
    TensorWriter writer = create_torch(
        path,
        Tree::dict(
            {{"Args", Tree::dict(all)}, {"Config", config}, {"Downstream", Tree::tensors()}}),
        tensors);
    for (const TensorSpec& spec : tensors)
      writer.append(std::vector<std::byte>(static_cast<size_t>(4 * spec.shape.count())));
    writer.finish();
    Config encoder;
    encoder.width = kWidth, encoder.layers = 3;
    const TorchFile file(path);
    return downstream_head(file, encoder);
  }
};

void expect_dropped(const Checkpoint& checkpoint, const std::string& why) {
  const DownstreamHead head = checkpoint.head();
  EXPECT(head.task.kind.empty());
  EXPECT(head.tensors.empty());
  REQUIRE(!head.remarks.empty());
  EXPECT(head.remarks.back() == "Downstream (" + checkpoint.downstream + "): " + why +
                                    "; the head, with Featurizer, is not kept");
}

}  // namespace

TEST_CASE("s3prl downstream: heads that are ours, and their units") {
  const DownstreamHead ks = Checkpoint{"speech_commands", mean_head()}.head();
  EXPECT(ks.task.kind == "classify");
  EXPECT(ks.task.head == "mean");
  EXPECT(ks.task.width == kProjected);
  EXPECT(ks.task.units[10] == "_unknown_");
  EXPECT(ks.in_file == 5);
  EXPECT(ks.tensors.size() == 4);
  EXPECT(ks.remarks[0] == "best_score [1]: not part of the head, not kept");
  EXPECT(Checkpoint{"emotion", mean_head()}.head().task.units[3] == "3");

  const DownstreamHead phones = Checkpoint{"ctc", frame_head(5)}.head();
  EXPECT(phones.task.head == "projector");
  EXPECT(phones.task.units == Names{"<pad>", "<eos>", "<unk>", "3", "4"});
  const DownstreamHead asr = Checkpoint{"asr", rnn_head(32)}.head();
  EXPECT(asr.task.head == "blstm");
  EXPECT(asr.task.layers == 1);
  EXPECT(asr.task.units[4] == "|");
  EXPECT(asr.task.units[31] == "Z");
  EXPECT(Checkpoint{"asr", rnn_head(31)}.head().task.units[30] == "30");
  std::vector<TensorSpec> linear = {{"model.linear.weight", {7, kWidth}},
                                    {"model.linear.bias", {7}}};
  EXPECT(Checkpoint{"ctc", linear}.head().task.head == "linear");
  // the last of three layers by its number
  EXPECT(Checkpoint{"ctc", linear, {{"upstream_layer_selection", Tree::integer(3)}}}
             .head()
             .task.kind == "ctc");
}

TEST_CASE("s3prl downstream: what is not ours is named, and nothing of it kept") {
  expect_dropped({"fluent_commands", mean_head()}, "not a task of ours");
  expect_dropped({"", mean_head()}, "not a task of ours");
  auto attentive = mean_head();
  attentive.push_back({"model.pooling.sap_layer.W.weight", {1, kProjected}});
  expect_dropped({"voxceleb1", attentive},
                 "no part of a head of ours: model.pooling.sap_layer.W.weight [1, 6]");
  expect_dropped({"ctc", mean_head()},
                 "no part of a head of ours: model.post_net.linear.weight [12, 6], "
                 "model.post_net.linear.bias [12]");
  expect_dropped({"ctc", {{"projector.weight", {kProjected, kWidth}}}}, "it has no output layer");
  expect_dropped({"asr", rnn_head(32, kProjected, 3)},
                 "task.rnn.0.fwd.w_ih is [18, 6] (expected [24, 6])");
  expect_dropped({"asr", rnn_head(32, 5)}, "task.rnn.0.fwd.w_ih is [20, 6] (expected [24, 6])");
  auto one_way = rnn_head(32);
  std::erase_if(one_way, [](const TensorSpec& s) { return s.name.ends_with("_reverse"); });
  expect_dropped({"asr", one_way}, "task.rnn.0.bwd.w_ih is missing (expected [24, 6])");
  const std::vector<std::pair<std::string, Tree>> last = {
      {"upstream_feature_selection", Tree::text("last_hidden_state")}};
  expect_dropped({"asr", rnn_head(32), last, {{"total_rate", Tree::integer(640)}}},
                 "total_rate is 640 (the encoder's is 320)");
  expect_dropped({"asr", rnn_head(32), last, {{"sample_rate", Tree::list({Tree::integer(2)})}}},
                 "it drops frames (sample_rate is not 1)");
  expect_dropped({"ctc", frame_head(5), {{"upstream_feature_normalize", Tree::boolean(true)}}},
                 "it normalises the hidden states (upstream_feature_normalize)");
  expect_dropped({"ctc", frame_head(5), {}},
                 "it reads neither all hidden states nor the last one (not told)");
  expect_dropped({"ctc", frame_head(5), {{"upstream_layer_selection", Tree::integer(2)}}},
                 "it reads neither all hidden states nor the last one (not told)");
}

TEST_CASE("s3prl downstream: a checkpoint that runner.py wrote is a model with its head") {
  const ModelFile model = open_model(test::golden("torch/s3prl-asr.ckpt"));
  EXPECT(model.format == "s3prl-downstream");
  EXPECT(model.config.task.head == "blstm");
  EXPECT(model.config.task.layers == 2);
  EXPECT(model.tensors.find("task.layer_weights").shape == Shape{3});
  EXPECT(model.in_file == 76);
  EXPECT(model.remarks ==
         Names{"the file has no configuration; its shapes give 1 heads, late norms, waveforms as "
               "they are",
               "best_score [1]: not part of the head, not kept",
               "Downstream (asr): its 32 units are taken to be s3prl's own",
               "not kept: Optimizer, Step, Epoch"});
  const ModelFile ks = open_model(test::golden("torch/s3prl-ks.ckpt"));
  EXPECT(ks.config.arch == "distilhubert");
  EXPECT(ks.config.pretrain.distill.size() == 2);
  EXPECT(ks.tensors.find("task.layer_weights").shape == Shape{4});
}
