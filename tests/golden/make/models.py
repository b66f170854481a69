"""Makes tests/golden/models/NAME/ (tiny random models as Hugging Face folders) and tests/golden/NAME.safetensors.

    python models.py [NAME...]    torch 2.15.0, transformers 5.23.0, safetensors, numpy; seconds

Every value is drawn far from its initial one (norm gains 0.5 ... 1.5, biases of 0.2, sharp attention), so that each part
of the model shows in the states. Hidden states and gradients are computed in float64 and stored in float32.
wav2vec2-group has biases before its group norm, which no released model has: the gradient of that conv.0.bias is zero
in theory.
The folders cover the ways such files are written: parametrizations names (hubert-group, wav2vec2-layer), two shards
with an index (hubert-layer), a ForPreTraining dump with prefix, old weight_g / weight_v names and heads (wav2vec2-group).
"""
import json
import os
import sys

import torch
from safetensors.torch import save_file
from transformers import Wav2Vec2ForPreTraining

from tiny import MODELS, canonical, ctc, fill, folder, last_state, linear_init, load, rng, save, signal, states

LENGTHS = {400: 1, 21920: 1, 99200: 16}            # samples -> every how many frames a row is stored
LONG = {272400: 16}                                # 851 frames: past the last bucket of wavlm-group
UTTERANCES = [(3, 21920, [4, 1, 1, 9, 2, 5, 5, 5, 7, 3, 10, 6]), (4, 8000, [8, 2, 2, 1, 10])]   # seed, samples, labels
VOCAB = 11


def write_folder(name):
    """Weights, config.json and preprocessor_config.json, as the variants of this file's head."""
    cls, normalize, config = MODELS[name]
    pretraining = name == 'wav2vec2-group'
    model = (Wav2Vec2ForPreTraining if pretraining else cls)(config)
    r = rng(name)
    weights = {k: torch.tensor(fill(k, v, r), dtype=torch.float32) for k, v in model.state_dict().items()}
    if pretraining:
        old = {'parametrizations.weight.original0': 'weight_g', 'parametrizations.weight.original1': 'weight_v'}
        for new, short in old.items(): weights = {k.replace(new, short): v for k, v in weights.items()}
    path = folder(name)
    os.makedirs(path, exist_ok=True)
    config.architectures = ['Wav2Vec2ForPreTraining' if pretraining else cls.__name__]
    config.dtype = 'float32'
    config.save_pretrained(path)
    with open(f'{path}/preprocessor_config.json', 'w') as f:
        json.dump({'do_normalize': normalize, 'feature_extractor_type': 'Wav2Vec2FeatureExtractor', 'feature_size': 1,
                   'padding_side': 'right', 'padding_value': 0.0, 'return_attention_mask': normalize,
                   'sampling_rate': 16000}, f, indent=2)
        f.write('\n')
    if name == 'hubert-layer': return write_shards(path, weights)
    save_file(weights, f'{path}/model.safetensors', metadata={'format': 'pt'})


def write_shards(path, weights):
    keys = sorted(weights)
    shards = {f'model-0000{i + 1}-of-00002.safetensors': keys[i::2] for i in range(2)}
    for file, names in shards.items():
        save_file({k: weights[k] for k in names}, f'{path}/{file}', metadata={'format': 'pt'})
    index = {'metadata': {'total_size': sum(4 * v.numel() for v in weights.values())},
             'weight_map': {k: file for file, names in shards.items() for k in names}}
    with open(f'{path}/model.safetensors.index.json', 'w') as f:
        json.dump(index, f, indent=1, sort_keys=True)
        f.write('\n')


def lengths_of(name): return LENGTHS | (LONG if name == 'wavlm-group' else {})


def hidden(model, single, name):
    """hidden.SAMPLES.LAYER [rows, C], norm.SAMPLES [L + 1] of the whole states, autocast.SAMPLES [L + 1] what PyTorch's
    bf16 autocast of the float32 model is off by, relatively; seed = samples."""
    out = {}
    for n, stride in lengths_of(name).items():
        with torch.no_grad():
            hs = states(model, name, signal(n, n))
            with torch.autocast('cpu', dtype=torch.bfloat16): rough = states(single, name, signal(n, n))
        out |= {f'hidden.{n}.{l}': h[::stride] for l, h in enumerate(hs)}
        out[f'norm.{n}'] = torch.stack([h.norm() for h in hs])
        out[f'autocast.{n}'] = torch.stack([(r.double() - h).norm() / h.norm() for r, h in zip(rough, hs)])
    return out


def backward(model, name):
    """-> loss, losses, w, b of CTC over the two utterances, each alone, weight 1 / (B max(1, labels)); linear head."""
    w, b = (torch.tensor(v, dtype=torch.float32).to(next(model.parameters()).dtype).requires_grad_()
            for v in linear_init(rng('head' + name), VOCAB, model.config.hidden_size))
    logits = [torch.nn.functional.linear(last_state(model, name, signal(seed, n)), w, b) for seed, n, _ in UTTERANCES]
    losses = [ctc(x.double() if x.dtype == torch.float64 else x.float(), y) for x, (_, _, y) in zip(logits, UTTERANCES)]
    loss = sum(l / (len(UTTERANCES) * max(1, len(y))) for l, (_, _, y) in zip(losses, UTTERANCES))
    loss.backward()
    return loss, losses, w, b


def gradients(model, single, name):
    """grad.PARAMETER, and autocast.grad.PARAMETER [1]: the cosine to it of the gradient by bf16 autocast."""
    loss, losses, w, b = backward(model, name)
    with torch.autocast('cpu', dtype=torch.bfloat16): _, _, rough_w, rough_b = backward(single, name)
    out = {'task.out.weight': w, 'task.out.bias': b,
           'ctc.loss': loss.reshape(1), 'ctc.losses': torch.stack(losses)}
    for i, (seed, n, y) in enumerate(UTTERANCES):
        out |= {f'ctc.{i}.seed': torch.tensor([seed]), f'ctc.{i}.samples': torch.tensor([n]),
                f'ctc.{i}.labels': torch.tensor(y)}
    rough = dict(single.named_parameters())
    pairs = {'task.out.weight': (w, rough_w), 'task.out.bias': (b, rough_b)}
    pairs |= {canonical(k): (p, rough[k]) for k, p in model.named_parameters() if p.grad is not None}
    for k, (p, r) in pairs.items():
        out['grad.' + k] = p.grad
        out['autocast.grad.' + k] = torch.cosine_similarity(p.grad.flatten(), r.grad.double().flatten(), 0).reshape(1)
    return out


def buckets(model, reach):
    """The bucket of each distance (key - query) from -reach to reach, by WavLM's own function."""
    return model.encoder.layers[0].attention._relative_positions_bucket(torch.arange(-reach, reach + 1))


def main():
    torch.set_num_threads(1)
    for name in sys.argv[1:] or MODELS:
        write_folder(name)
        model = load(name)
        single = load(name, torch.float32)
        values = hidden(model, single, name) | gradients(model, single, name)
        if name.startswith('wavlm'): values['buckets'] = buckets(model, 1000)
        save(name, values)
        with torch.no_grad():
            for n in lengths_of(name):
                a, b = last_state(single, name, signal(n, n)).double(), last_state(model, name, signal(n, n))
                off = (a - b).norm() / b.norm()
                print(f'  {n}: T {len(b)}, rms {b.pow(2).mean().sqrt():.3f}, PyTorch float32 differs by {off:.1e}')


if __name__ == '__main__': main()
