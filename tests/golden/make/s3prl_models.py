"""Makes tests/golden/models/{distilhubert,decoar2}.safetensors (tiny random models, in the project's own format) and
tests/golden/{distilhubert,decoar2}.safetensors: what s3prl's own modules compute.

    python s3prl_models.py        s3prl 0.4.18 and torchaudio 2.11.0 without their dependencies, and what models.py needs

Values as in models.py. DistilHuBERT: five states, [projected frames, layer 1, layer 2, predictions of teacher states 4
and 12]. DeCoAR 2.0: s3prl's network on log-mel features that numpy computes in float64 (audio_features.py's formulas).
Gradients are those of CTC on the last layer's output; the prediction heads have none.
s3prl's norms and GELU cast to float32 wherever they are; here they compute in the type of their input.
"""
import json
import os
import re

import numpy as np
import torch
import torch.nn.functional as F

torch.version.cuda = '13.0'            # torchaudio refuses to load beside another; nothing of it is used here
import s3prl.upstream.decoar2.decoar2 as decoar2
import s3prl.upstream.distiller.model as distiller
import s3prl.upstream.distiller.module as distiller_module
import s3prl.upstream.wav2vec2.wav2vec2_model as wav2vec2

from audio_features import log_mel_80_of
from tiny import GOLDEN, ctc, fill, linear_init, rng, save, signal

HEAD = [(3, 21920, [4, 1, 1, 9, 2, 5, 5, 5, 7, 3, 10, 6]), (4, 8000, [8, 2, 2, 1, 10])]
VOCAB = 11
RULES = [(r'feature_extractor\.conv_layers\.(\d)\.0\.', r'conv.\1.'),
         (r'feature_extractor\.conv_layers\.(\d)\.2\.', r'conv.\1.norm.'),
         (r'post_extract_proj\.', 'feat_proj.'), (r'encoder\.pos_conv\.0\.', 'pos_conv.0.'),
         (r'encoder\.layer_norm\.', 'enc.norm.'),
         (r'encoder\.layers\.(\d+)\.self_attn\.([qkv])_proj\.', r'enc.\1.attn.\2.'),
         (r'encoder\.layers\.(\d+)\.self_attn\.out_proj\.', r'enc.\1.attn.o.'),
         (r'encoder\.layers\.(\d+)\.self_attn_layer_norm\.', r'enc.\1.attn_norm.'),
         (r'encoder\.layers\.(\d+)\.fc1\.', r'enc.\1.ffn.up.'), (r'encoder\.layers\.(\d+)\.fc2\.', r'enc.\1.ffn.down.'),
         (r'encoder\.layers\.(\d+)\.final_layer_norm\.', r'enc.\1.ffn_norm.'),
         (r'output_layer\.0\.', 'pretrain.distill.0.'), (r'output_layer\.2\.', 'pretrain.distill.1.')]
WEIGHT_NORM = {'parametrizations.weight.original0': 'weight_g', 'parametrizations.weight.original1': 'weight_v'}


def canonical(name):
    for new, old in WEIGHT_NORM.items(): name = name.replace(new, old)
    for pattern, ours in RULES:
        if m := re.match(pattern, name): return m.expand(ours) + name[m.end():]
    raise KeyError(name)


def without_casts():
    """The modules in the type of their input."""
    for module in (wav2vec2, distiller_module):
        for norm in ('Fp32LayerNorm', 'Fp32GroupNorm'):
            if hasattr(module, norm):
                base = getattr(module, norm).__mro__[1]
                getattr(module, norm).forward = base.forward
        if hasattr(module, 'gelu'): module.gelu = F.gelu


def shape_of(name, v):
    """Without leading ones: [1, 1, K] of weight_g, [1, 1, n, C] of the predictions' bias."""
    if name.endswith('weight_g'): return v.reshape(-1)
    return v.reshape(v.shape[-2:]) if name == 'pretrain.distill.1.bias' else v


def make(name, build):
    """-> the model with new values, float64, eval mode; its values in float32."""
    model = build()
    r = rng(name)
    values = {k: torch.tensor(fill(renamed(k), v, r), dtype=torch.float32) for k, v in model.state_dict().items()}
    if 'output_layer.2.weight' in values: values['output_layer.2.weight'] *= 32 ** 0.5     # [set, in, out]: fan-in 32
    model.load_state_dict(values)
    return model.double().eval(), values


def renamed(name):
    """For tiny.fill, which looks for the names of transformers."""
    return name.replace('feature_extractor.conv_layers.0.2', 'norm').replace('self_attn.', '')


def write_model(name, values, keys):
    """safetensors with the configuration as JSON values; the same bytes every time."""
    tensors = {canonical(k): shape_of(canonical(k), v).contiguous().numpy() for k, v in values.items()}
    header = {'__metadata__': {'sft.format': '1'} | {k: json.dumps(v) for k, v in sorted(keys.items())}}
    at, data = 0, b''
    for k, v in sorted(tensors.items()):
        header[k] = {'dtype': 'F32', 'shape': list(v.shape), 'data_offsets': [at, at + v.nbytes]}
        at, data = at + v.nbytes, data + v.tobytes()
    text = json.dumps(header).encode()
    text += b' ' * (-len(text) % 8)
    with open(os.path.join(GOLDEN, 'models', name + '.safetensors'), 'wb') as f:
        f.write(len(text).to_bytes(8, 'little') + text + data)


def encoder_states(model, run):
    """run() -> the encoder's output; the inputs of its layers by hooks: [T, C] each, behind them the output."""
    states, handles = [], []
    for layer in model.encoder.layers:
        handles.append(layer.register_forward_pre_hook(lambda _, args, kwargs: states.append(
            (args[0] if args else kwargs['x'])[:, 0]), with_kwargs=True))
    out = run()
    for handle in handles: handle.remove()
    return [s[:len(out)] for s in states] + [out]


def distilhubert_states(model, samples):
    dtype = next(model.parameters()).dtype
    wave = torch.as_tensor(samples, dtype=dtype)[None]
    out = {}

    def run():
        feat, projected, pred, mask, hidden = model(wave, torch.ones(wave.shape), get_hidden=True)
        out.update(projected=projected[0], predictions=list(pred[0]))
        return hidden[-1][0]
    states = encoder_states(model, run)
    return [out['projected']] + states[1:] + out['predictions'], states[-1]


def decoar2_states(model, samples):
    features = log_mel_80_of(np.asarray(samples)).astype(np.float32)
    features = torch.as_tensor(features, dtype=next(model.parameters()).dtype)
    states = encoder_states(model, lambda: model(features[None])[0][0])
    return states, states[-1]


def backward(model, states, name, width):
    w, b = (torch.tensor(v, dtype=torch.float32).to(next(model.parameters()).dtype).requires_grad_()
            for v in linear_init(rng('head' + name), VOCAB, width))
    logits = [F.linear(states(model, signal(seed, n))[1], w, b) for seed, n, _ in HEAD]
    losses = [ctc(x.double() if x.dtype == torch.float64 else x.float(), y) for x, (_, _, y) in zip(logits, HEAD)]
    loss = sum(l / (len(HEAD) * len(y)) for l, (_, _, y) in zip(losses, HEAD))
    loss.backward()
    return loss, losses, w, b


def golden(name, model, single, states, shortest, width):
    out = {}
    for n, stride in {shortest: 1, 21920: 1, 99200: 16}.items():
        with torch.no_grad():
            hs = states(model, signal(n, n))[0]
            with torch.autocast('cpu', dtype=torch.bfloat16): rough = states(single, signal(n, n))[0]
        out |= {f'hidden.{n}.{l}': h[::stride] for l, h in enumerate(hs)}
        out[f'norm.{n}'] = torch.stack([h.norm() for h in hs])
        out[f'autocast.{n}'] = torch.stack([(r.double() - h).norm() / h.norm() for r, h in zip(rough, hs)])
    loss, losses, w, b = backward(model, states, name, width)
    with torch.autocast('cpu', dtype=torch.bfloat16): _, _, rough_w, rough_b = backward(single, states, name, width)
    out |= {'task.out.weight': w, 'task.out.bias': b, 'ctc.loss': loss.reshape(1), 'ctc.losses': torch.stack(losses)}
    for i, (seed, n, y) in enumerate(HEAD):
        out |= {f'ctc.{i}.seed': torch.tensor([seed]), f'ctc.{i}.samples': torch.tensor([n]),
                f'ctc.{i}.labels': torch.tensor(y)}
    rough = dict(single.named_parameters())
    pairs = {'task.out.weight': (w, rough_w), 'task.out.bias': (b, rough_b)}
    pairs |= {canonical(k): (p, rough[k]) for k, p in model.named_parameters() if p.grad is not None}
    for k, (p, r) in pairs.items():
        out['grad.' + k] = shape_of(k, p.grad)
        out['autocast.grad.' + k] = torch.cosine_similarity(p.grad.flatten(), r.grad.double().flatten(), 0).reshape(1)
    save(name, out, s3prl='0.4.18')


def keys(arch, width, layers, ffn, heads, **more):
    common = {'block_count': layers, 'embedding_length': width, 'feed_forward_length': ffn,
              'attention.head_count': heads, 'pos_conv.kernel': 16, 'pos_conv.groups': 4} | more
    return {'general.architecture': arch} | {f'{arch}.{k}': v for k, v in common.items()}


def distilhubert():
    config = distiller.DistillerConfig(dict(
        extractor_conv_feature_layers='[(16,10,5)] + [(16,3,2)] * 4 + [(16,2,2)] * 2', conv_pos=16, conv_pos_groups=4,
        encoder_layers=2, encoder_embed_dim=32, encoder_ffn_embed_dim=96, encoder_attention_heads=4, final_dim=32,
        n_tasks=2, pred_layer_id=[4, 12], feature_grad_mult=1.0))
    return distiller.DistillerModel(config)


def decoar():
    decoar2.args |= dict(encoder_embed_dim=32, encoder_layers=2, encoder_ffn_embed_dim=64, encoder_attention_heads=4,
                         conv_pos=16, conv_pos_groups=4)
    return decoar2.Decoar2()


def main():
    torch.set_num_threads(1)
    without_casts()
    made = [('distilhubert', distilhubert, distilhubert_states, 400,
             keys('distilhubert', 32, 2, 96, 4, **{'conv.dims': [16] * 7, 'pretrain.distill': [4, 12]})),
            ('decoar2', decoar, decoar2_states, 560, keys('decoar2', 32, 2, 64, 4))]
    for name, build, states, shortest, config in made:
        model, values = make(name, build)
        write_model(name, values, config)
        single = build()
        single.load_state_dict(values)
        golden(name, model, single.eval(), states, shortest, 32)


main()
