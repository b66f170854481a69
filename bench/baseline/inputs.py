"""Two random models and a 5 s file, for the benches of whole processes.

    python inputs.py DIR ARCH    -> DIR/ARCH/, DIR/ARCH-tuned/ (Hugging Face folders), DIR/five.wav
"""
import json
import os
import shutil
import sys

import soundfile
import torch
from safetensors.torch import load_file, save_file

import workloads
from pytorch import build


def main(out, arch):
    torch.manual_seed(0)
    folder = os.path.join(out, arch)
    build(arch, 'sdpa').save_pretrained(folder)
    with open(os.path.join(folder, 'preprocessor_config.json'), 'w') as f:
        json.dump({'do_normalize': False, 'feature_extractor_type': 'Wav2Vec2FeatureExtractor', 'feature_size': 1,
                   'padding_side': 'right', 'padding_value': 0.0, 'return_attention_mask': False,
                   'sampling_rate': workloads.RATE}, f)
    weights = load_file(os.path.join(folder, 'model.safetensors'))
    tuned = {k: v + 0.01 * torch.randn_like(v) for k, v in weights.items()}
    shutil.copytree(folder, folder + '-tuned', dirs_exist_ok=True)
    save_file(tuned, os.path.join(folder + '-tuned', 'model.safetensors'), metadata={'format': 'pt'})
    soundfile.write(os.path.join(out, 'five.wav'), workloads.audio([5])[0], workloads.RATE)


if __name__ == '__main__': main(*sys.argv[1:])
