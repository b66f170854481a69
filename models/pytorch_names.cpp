#include "models/pytorch_names.h"

#include <array>

namespace sft {
namespace {

constexpr std::array kBackbone = {
    Spelling{"mask_emb", "mask_emb"},
    Spelling{"conv.#.*", "feature_extractor.conv_layers.#.0.*"},
    Spelling{"conv.#.norm.*", "feature_extractor.conv_layers.#.2.*"},
    Spelling{"conv.#.norm.*", "feature_extractor.conv_layers.#.2.1.*", false},
    Spelling{"feat_norm.*", "layer_norm.*"},
    Spelling{"feat_proj.*", "post_extract_proj.*"},
    Spelling{"pos_conv.0.weight_g", "encoder.pos_conv.0.weight_g"},
    Spelling{"pos_conv.0.weight_v", "encoder.pos_conv.0.weight_v"},
    Spelling{"pos_conv.0.weight_g", "encoder.pos_conv.0.parametrizations.weight.original0", false},
    Spelling{"pos_conv.0.weight_v", "encoder.pos_conv.0.parametrizations.weight.original1", false},
    Spelling{"pos_conv.0.weight", "encoder.pos_conv.0.weight", false},
    Spelling{"pos_conv.0.bias", "encoder.pos_conv.0.bias"},
    Spelling{"enc.norm.*", "encoder.layer_norm.*"},
    Spelling{"enc.#.attn.q.*", "encoder.layers.#.self_attn.q_proj.*"},
    Spelling{"enc.#.attn.k.*", "encoder.layers.#.self_attn.k_proj.*"},
    Spelling{"enc.#.attn.v.*", "encoder.layers.#.self_attn.v_proj.*"},
    Spelling{"enc.#.attn.o.*", "encoder.layers.#.self_attn.out_proj.*"},
    Spelling{"enc.#.attn.rel_bias", "encoder.layers.#.self_attn.relative_attention_bias.weight"},
    Spelling{"enc.#.attn.rel_gate.*", "encoder.layers.#.self_attn.grep_linear.*"},
    Spelling{"enc.#.attn.rel_gate.scale", "encoder.layers.#.self_attn.grep_a"},
    Spelling{"enc.#.attn_norm.*", "encoder.layers.#.self_attn_layer_norm.*"},
    Spelling{"enc.#.ffn.up.*", "encoder.layers.#.fc1.*"},
    Spelling{"enc.#.ffn.down.*", "encoder.layers.#.fc2.*"},
    Spelling{"enc.#.ffn_norm.*", "encoder.layers.#.final_layer_norm.*"},
};
constexpr std::array kLayerModeNorm = {
    Spelling{"conv.#.norm.*", "feature_extractor.conv_layers.#.2.1.*"}};

constexpr std::array kHubertHeads = {Spelling{"pretrain.proj.*", "final_proj.*"},
                                     Spelling{"pretrain.label_emb", "label_embs_concat"}};
constexpr std::array kWav2vec2Heads = {Spelling{"pretrain.proj.*", "final_proj.*"},
                                       Spelling{"pretrain.vq.codebook", "quantizer.vars"},
                                       Spelling{"pretrain.vq.proj.*", "quantizer.weight_proj.*"},
                                       Spelling{"pretrain.vq_out.*", "project_q.*"}};
// Behind each plain convolution its norm has no parameters.
constexpr std::array kData2vecNames = {Spelling{"pos_conv.#.*", "encoder.pos_conv.#.0.*"},
                                       Spelling{"pretrain.proj.*", "final_proj.*"},
                                       Spelling{"pretrain.proj.*", "final_proj.0.*", false}};
constexpr std::array kDistilhubertHeads = {Spelling{"pretrain.distill.0.*", "output_layer.0.*"},
                                           Spelling{"pretrain.distill.1.*", "output_layer.2.*"}};
constexpr std::array kCtcHead = {Spelling{"task.out.*", "w2v_encoder.proj.*"}};

const TorchFamily kFamilies[] = {
    {"hubert",
     kHubertHeads,
     "label_embs_concat",
     TorchForm::fairseq,
     {"target_glu."},
     "hubert_ctc"},
    {"wav2vec2",
     kWav2vec2Heads,
     "quantizer.vars",
     TorchForm::fairseq,
     {"target_glu.", "input_quantizer.", "project_inp."},
     "wav2vec_ctc"},
    {"unispeechsat", {}, "", TorchForm::unilm, {"final_proj.", "label_embs_concat"}},
    {"wavlm", {}, "", TorchForm::unilm, {"final_proj.", "label_embs_concat"}},
    {"data2vecaudio", kData2vecNames, "encoder.pos_conv.1.0.weight", TorchForm::fairseq, {}},
    {"distilhubert",
     kDistilhubertHeads,
     "output_layer.0.weight",
     TorchForm::distiller,
     {"task_embedding."}},
    {"decoar2", {}, "", TorchForm::bare, {}},
};

}  // namespace

std::span<const TorchFamily> torch_families() { return kFamilies; }

const TorchFamily* family_named(std::string_view arch) {
  for (const TorchFamily& family : kFamilies)
    if (family.arch == arch) return &family;
  return nullptr;
}

std::span<const Spelling> backbone_names() { return kBackbone; }
std::span<const Spelling> layer_mode_names() { return kLayerModeNorm; }
std::span<const Spelling> ctc_head_names() { return kCtcHead; }

}  // namespace sft
