"""Compares the golden states of the tiny WavLM models, which transformers made, with unilm's own module (as s3prl
distributes it), in float64 on the same weights.

    pip download s3prl --no-deps && tar xzf s3prl-*.tar.gz
    python unilm_check.py s3prl-0.4.18/s3prl/upstream/wavlm       s3prl 0.4.18, torch 2.15.0
"""
import importlib
import os
import sys

import torch
from safetensors.torch import load_file

from models import lengths_of
from tiny import GOLDEN, MODELS, load, prepare, signal

RULES = [('feature_extractor.conv_layers.', 'feature_extractor.conv_layers.'), ('feature_projection.layer_norm.', 'layer_norm.'),
         ('feature_projection.projection.', 'post_extract_proj.'), ('masked_spec_embed', 'mask_emb'),
         ('encoder.pos_conv_embed.conv.parametrizations.weight.original0', 'encoder.pos_conv.0.weight_g'),
         ('encoder.pos_conv_embed.conv.parametrizations.weight.original1', 'encoder.pos_conv.0.weight_v'),
         ('encoder.pos_conv_embed.conv.', 'encoder.pos_conv.0.'), ('.attention.rel_attn_embed.', '.self_attn.relative_attention_bias.'),
         ('.attention.gru_rel_pos_linear.', '.self_attn.grep_linear.'), ('.attention.gru_rel_pos_const', '.self_attn.grep_a'),
         ('.attention.', '.self_attn.'), ('.feed_forward.intermediate_dense.', '.fc1.'), ('.feed_forward.output_dense.', '.fc2.')]


def unilm_name(name, group):
    """unilm's name of a transformers parameter."""
    for old, new in RULES: name = name.replace(old, new)
    if name.startswith('feature_extractor.'):
        return name.replace('.conv.', '.0.').replace('.layer_norm.', '.2.' if group else '.2.1.')
    return name.replace('.layer_norm.', '.self_attn_layer_norm.') if '.layers.' in name and 'final' not in name else name


def unilm_model(package, name):
    """The module with the golden model's weights; every one of them is taken and none is missing."""
    model, c = load(name), MODELS[name][2]
    config = package.WavLMConfig(dict(
        extractor_mode='default' if c.feat_extract_norm == 'group' else 'layer_norm', encoder_layers=c.num_hidden_layers,
        encoder_embed_dim=c.hidden_size, encoder_ffn_embed_dim=c.intermediate_size,
        encoder_attention_heads=c.num_attention_heads, layer_norm_first=c.do_stable_layer_norm,
        conv_feature_layers=str(list(zip(c.conv_dim, c.conv_kernel, c.conv_stride))), conv_bias=c.conv_bias,
        conv_pos=c.num_conv_pos_embeddings, conv_pos_groups=c.num_conv_pos_embedding_groups,
        relative_position_embedding=True, gru_rel_pos=True, num_buckets=c.num_buckets,
        max_distance=c.max_bucket_distance))
    ours = {unilm_name(k, c.feat_extract_norm == 'group'): v for k, v in model.state_dict().items()}
    module = package.WavLM(config).double().eval()
    module.load_state_dict(ours, strict=True)
    return module


def states(module, x):
    layers = module.cfg.encoder_layers
    (_, results), _ = module.extract_features(x, output_layer=layers, ret_layer_results=True)
    last, _ = module.extract_features(x)
    return [r[0][:, 0] for r in results[:-1]] + [last[0]]


def main(folder):
    folder = os.path.abspath(folder)
    sys.path.insert(0, os.path.dirname(folder))
    package = importlib.import_module(os.path.basename(folder) + '.WavLM')
    for name in [n for n in MODELS if n.startswith('wavlm')]:
        module, values = unilm_model(package, name), load_file(os.path.join(GOLDEN, name + '.safetensors'))
        worst = 0
        for n, stride in lengths_of(name).items():
            with torch.no_grad(): ours = states(module, prepare(name, signal(n, n)))
            for l, h in enumerate(ours):
                golden = values[f'hidden.{n}.{l}'].double()
                worst = max(worst, ((h[::stride] - golden).norm() / golden.norm()).item())
        print(f'{name}: {len(ours)} states of {len(lengths_of(name))} lengths, largest relative difference {worst:.1e}')


if __name__ == '__main__': main(sys.argv[1])
