"""Full-size parity, not part of the tests: random HuBERT Base and Large, ours against PyTorch, and our export back.

    python full_size.py --extract build/sft-extract --convert build/sft-convert --cache DIR [--arch base large]
        [--seconds 6.2] [--wav FILE]

Makes DIR/full-ARCH once (0.4 and 1.3 GB; values far from the initial ones, as in models.py), extracts all states with
PyTorch in float64 and float32 and with sft-extract, and prints the relative errors against float64, layer by layer. Then converts the
folder to GGUF and back to a folder and runs export_check on it. Float64 of Large needs 6 GB of memory.
"""
import argparse
import json
import os
import shutil
import subprocess
import sys
import wave

import numpy as np
import torch
from transformers import HubertConfig, HubertModel

import export_check
from tiny import fill, signal

CONFIGS = {'base': dict(),
           'large': dict(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096,
                         feat_extract_norm='layer', do_stable_layer_norm=True, conv_bias=False)}


def make_folder(path, arch):
    """A folder as released ones are: config.json, preprocessor_config.json, model.safetensors."""
    model, r = HubertModel(HubertConfig(**CONFIGS[arch])), np.random.default_rng(0)
    for name, p in model.named_parameters(): p.data = torch.tensor(fill(name, p, r), dtype=torch.float32)
    model.save_pretrained(path)
    with open(os.path.join(path, 'preprocessor_config.json'), 'w') as f:
        json.dump({'do_normalize': arch == 'large', 'feature_extractor_type': 'Wav2Vec2FeatureExtractor', 'feature_size': 1,
                   'padding_side': 'right', 'padding_value': 0.0, 'return_attention_mask': arch == 'large',
                   'sampling_rate': 16000}, f)


def write_wav(path, samples):
    with wave.open(path, 'wb') as f:
        f.setparams((1, 2, 16000, len(samples), 'NONE', ''))
        f.writeframes((samples * 32768).astype('<i2').tobytes())


def compare(folder, args):
    """One line per state; -> is all within the limit."""
    exact = export_check.theirs(folder, args.wav, torch.float64)
    single = export_check.theirs(folder, args.wav)
    good = True
    for l, (a, t, b) in enumerate(zip(export_check.ours(args.extract, folder, args.wav), single, exact, strict=True)):
        (norm, largest), torch_norm = export_check.off(a, b), export_check.off(t, b)[0]
        good &= norm <= export_check.LIMIT
        print(f'  state {l:2d}: rms {b.pow(2).mean().sqrt():6.2f}, ours {norm:.1e} (largest {largest:.1e}),'
              f' PyTorch float32 {torch_norm:.1e}')
    return good


def export(folder, args):
    """Folder -> GGUF -> folder, then in transformers again."""
    gguf, back = folder + '.gguf', folder + '-back'
    for path in (gguf, back):
        if os.path.isdir(path): shutil.rmtree(path)
        elif os.path.exists(path): os.remove(path)
    subprocess.run([args.convert, folder, '-o', gguf], check=True)
    subprocess.run([args.convert, gguf, '-o', back, '--to', 'hf'], check=True)
    return export_check.check(back, args.extract, args.wav, folder)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--extract', required=True)
    parser.add_argument('--convert')
    parser.add_argument('--cache', required=True)
    parser.add_argument('--arch', nargs='+', default=['base', 'large'], choices=CONFIGS)
    parser.add_argument('--seconds', type=float, default=6.2)
    parser.add_argument('--wav')
    args = parser.parse_args()
    os.makedirs(args.cache, exist_ok=True)
    if not args.wav:
        args.wav = os.path.join(args.cache, 'full_size.wav')
        write_wav(args.wav, signal(1, round(args.seconds * 16000)))
    good = True
    for arch in args.arch:
        folder = os.path.join(args.cache, 'full-' + arch)
        if not os.path.exists(os.path.join(folder, 'preprocessor_config.json')): make_folder(folder, arch)
        print(f'HuBERT {arch}, {args.wav}')
        good &= compare(folder, args)
        if args.convert: good &= export(folder, args)
    sys.exit(0 if good else 1)


if __name__ == '__main__': main()
