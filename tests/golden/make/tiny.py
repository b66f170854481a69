"""What the golden scripts share: the test signal, the tiny models, their forward pass in float64.

The signal, repeated by the C++ tests, integers only, so both sides have the same bits:

    state = seed                                       32-bit unsigned
    for n = 0 ... samples - 1:
        state = state * 1664525 + 1013904223           modulo 2^32
        noise = (state >> 16) - 32768                  in [-32768, 32767]
        p     = n mod 4000
        env   = 200 + min(p, 4000 - p)                 a triangle, 200 ... 2200
        x[n]  = (noise * env) >> 14                    arithmetic shift: floor
    sample n = x[n] / 32768                            a 16-bit sample, exact in float32
"""
import os

import numpy as np
import torch
import transformers
from safetensors.torch import save_file
from transformers import (Data2VecAudioConfig, Data2VecAudioModel, HubertConfig, HubertModel, UniSpeechSatConfig,
                          UniSpeechSatModel, Wav2Vec2Config, Wav2Vec2Model, WavLMConfig, WavLMModel)

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

HERE = os.path.dirname(os.path.abspath(__file__))
GOLDEN = os.path.dirname(HERE)

BASE = dict(conv_dim=[16] * 7, num_conv_pos_embedding_groups=4, num_attention_heads=4, vocab_size=32,
            mask_time_prob=0.05, mask_time_length=10, hidden_dropout=0.1, attention_dropout=0.1,
            activation_dropout=0.0, feat_proj_dropout=0.1, final_dropout=0.0, layerdrop=0.05)
GROUP = dict(feat_extract_norm='group', conv_bias=False, do_stable_layer_norm=False)
LAYER = dict(feat_extract_norm='layer', conv_bias=True, do_stable_layer_norm=True)
# name -> (class, do_normalize, config)
MODELS = {
    'hubert-group': (HubertModel, False, HubertConfig(
        **BASE, **GROUP, hidden_size=32, num_hidden_layers=3, intermediate_size=96, num_conv_pos_embeddings=16)),
    'hubert-layer': (HubertModel, True, HubertConfig(
        **BASE, **LAYER, hidden_size=48, num_hidden_layers=2, intermediate_size=64, num_conv_pos_embeddings=15)),
    'wav2vec2-group': (Wav2Vec2Model, False, Wav2Vec2Config(
        **BASE, **(GROUP | dict(conv_bias=True)), hidden_size=32, num_hidden_layers=2, intermediate_size=96,
        num_conv_pos_embeddings=16, num_codevectors_per_group=8, num_codevector_groups=2, codevector_dim=16,
        proj_codevector_dim=12)),
    'wav2vec2-layer': (Wav2Vec2Model, True, Wav2Vec2Config(
        **BASE, **LAYER, hidden_size=32, num_hidden_layers=3, intermediate_size=96, num_conv_pos_embeddings=12)),
    'unispeechsat-layer': (UniSpeechSatModel, True, UniSpeechSatConfig(
        **BASE, **(LAYER | dict(conv_bias=False)), hidden_size=48, num_hidden_layers=2, intermediate_size=96,
        num_conv_pos_embeddings=16, num_codevectors_per_group=8, num_codevector_groups=2, codevector_dim=16)),
    'data2vec': (Data2VecAudioModel, True, Data2VecAudioConfig(
        **BASE, conv_bias=False, hidden_size=32, num_hidden_layers=2, intermediate_size=96, conv_pos_kernel_size=19,
        num_conv_pos_embeddings=5)),
    'wavlm-group': (WavLMModel, False, WavLMConfig(
        **BASE, **GROUP, hidden_size=32, num_hidden_layers=3, intermediate_size=96, num_conv_pos_embeddings=16)),
    'wavlm-layer': (WavLMModel, True, WavLMConfig(
        **BASE, **LAYER, hidden_size=32, num_hidden_layers=2, intermediate_size=64, num_conv_pos_embeddings=15,
        num_buckets=32, max_bucket_distance=50)),
}


def signal(seed, n):
    """-> [n] float64 in [-1, 1); the formula stands at the top."""
    out, state = np.empty(n), seed & 0xFFFFFFFF
    for i in range(n):
        state = (state * 1664525 + 1013904223) & 0xFFFFFFFF
        p = i % 4000
        out[i] = (((state >> 16) - 32768) * (200 + min(p, 4000 - p)) >> 14) / 32768
    return out


RULES = [('feature_extractor.conv_layers.', 'conv.'), ('.conv.parametrizations.weight.original0', '.weight_g'),
         ('.conv.parametrizations.weight.original1', '.weight_v'), ('encoder.pos_conv_embed.layers.', 'pos_conv.'),
         ('encoder.pos_conv_embed.conv.', 'pos_conv.0.'), ('encoder.pos_conv_embed.', 'pos_conv.0.'), ('.conv.', '.'), ('feature_projection.layer_norm.', 'feat_norm.'),
         ('feature_projection.projection.', 'feat_proj.'), ('masked_spec_embed', 'mask_emb'),
         ('encoder.layer_norm.', 'enc.norm.'), ('encoder.layers.', 'enc.'), ('.attention.out_proj.', '.attn.o.'),
         ('.attention.q_proj.', '.attn.q.'), ('.attention.k_proj.', '.attn.k.'), ('.attention.v_proj.', '.attn.v.'),
         ('.attention.rel_attn_embed.weight', '.attn.rel_bias'), ('.attention.gru_rel_pos_const', '.attn.rel_gate.scale'),
         ('.attention.gru_rel_pos_linear.', '.attn.rel_gate.'),
         ('.feed_forward.intermediate_dense.', '.ffn.up.'), ('.feed_forward.output_dense.', '.ffn.down.'),
         ('.final_layer_norm.', '.ffn_norm.')]


def canonical(name):
    """The project's name of a transformers parameter of a bare model."""
    for old, new in RULES:
        if old == 'encoder.pos_conv_embed.' and '.parametrizations.' in name: continue
        name = name.replace(old, new)
    return name.replace('.layer_norm.', '.norm.' if name.startswith('conv.') else '.attn_norm.')


def f32(x):
    """Tensor or array of any type -> contiguous float32, [1, 1, K] of weight_g as [K], [1, H, 1, 1] as [H]."""
    x = torch.as_tensor(x).detach().to(torch.float32)
    flat = x.dim() == 3 and x.shape[:2] == (1, 1) or x.dim() == 4 and (x.shape[0], *x.shape[2:]) == (1, 1, 1)
    return (x.reshape(-1) if flat else x).contiguous()


def save(name, tensors, **notes):
    """All values as float32 (integers too: exact below 2^24); versions and notes go into the metadata."""
    path = os.path.join(GOLDEN, name + '.safetensors')
    notes = dict(torch=torch.__version__, transformers=transformers.__version__, numpy=np.__version__) | notes
    made = ', '.join(f'{k} {v}' for k, v in notes.items())                # one entry: their order in a file is random
    save_file({k: f32(v) for k, v in tensors.items()}, path, metadata={'made': made})
    print(f'{name}: {len(tensors)} tensors, {os.path.getsize(path)} bytes')


def folder(name): return os.path.join(GOLDEN, 'models', name)


def load(name, dtype=torch.float64):
    """The committed model, in eval mode, with the plain attention."""
    cls = MODELS[name][0]
    model, info = cls.from_pretrained(folder(name), attn_implementation='eager', output_loading_info=True)
    assert not info['missing_keys'], info
    return model.to(dtype).eval()


def prepare(name, samples, dtype=torch.float64):
    """[n] -> [1, n]: per-utterance normalisation where the model wants it, eps 1e-7 as in a Hugging Face folder."""
    x = torch.as_tensor(samples, dtype=dtype)
    if MODELS[name][1]: x = (x - x.mean()) / torch.sqrt(x.var(unbiased=False) + 1e-7)
    return x[None]


def last_state(model, name, samples):
    """-> [T, C], after the final norm of pre-LN models."""
    return model(prepare(name, samples, next(model.parameters()).dtype)).last_hidden_state[0]


def states(model, name, samples):
    """-> [T, C] for 0 ... L, the last one after the final norm of pre-LN models."""
    out = model(prepare(name, samples, next(model.parameters()).dtype), output_hidden_states=True)
    return [h[0] for h in out.hidden_states[:-1]] + [out.last_hidden_state[0]]


class Scale(torch.autograd.Function):
    """Identity forward, gradient times m: the gradient that enters the convolutions in pre-training."""
    @staticmethod
    def forward(ctx, x, m):
        ctx.m = m
        return x.view_as(x)

    @staticmethod
    def backward(ctx, g): return ctx.m * g, None


def ctc(logits, target):
    """[T, V], [U] -> -log p, blank 0."""
    logp = torch.log_softmax(logits, -1)[:, None]
    return torch.nn.functional.ctc_loss(logp, torch.tensor([target]), (len(logp),), (len(target),), reduction='sum')


def rng(text): return np.random.default_rng(list(text.encode()))


def linear_init(r, out, inp, scale=1.0): return r.normal(0, scale / inp ** 0.5, (out, inp)), r.normal(0, 0.2, out)


def fill(name, tensor, r):
    """New values for one parameter."""
    shape = tuple(tensor.shape)
    if 'norm' in name: return r.uniform(0.5, 1.5, shape) if name.endswith('weight') else r.normal(0, 0.2, shape)
    if name.endswith(('original0', 'weight_g')): return r.uniform(0.5, 2.0, shape)
    if name.endswith('gru_rel_pos_const'): return r.uniform(0.5, 2.0, shape)
    if name == 'masked_spec_embed': return r.uniform(0, 1, shape)
    if name.endswith('bias'): return r.normal(0, 0.2, shape)
    gain = 2.0 if 'q_proj' in name or 'k_proj' in name else 1.5 if 'conv_layers' in name else 1.0
    return r.normal(0, gain / (tensor[0].numel()) ** 0.5, shape)
