"""A Hugging Face folder that sft-convert wrote, in transformers: its hidden states beside ours.

    python export_check.py FOLDER --extract build/sft-extract --wav FILE [--original FOLDER]

--original: the folder it was converted from; then every weight must have the same bits. Exit code 1 if a state is off by
more than 1e-5 (relative Frobenius norm) or a weight differs.
"""
import argparse
import glob
import json
import os
import subprocess
import sys
import tempfile

import soundfile
import torch
import transformers
from safetensors.torch import load_file

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
LIMIT = 1e-5


def model_of(folder):
    """-> (model in eval mode, does it normalise); nothing may be missing or left over."""
    with open(os.path.join(folder, 'preprocessor_config.json')) as f: normalize = json.load(f)['do_normalize']
    model, info = transformers.AutoModel.from_pretrained(folder, attn_implementation='eager', output_loading_info=True)
    assert not info['missing_keys'] and not info['mismatched_keys'], info
    return model.eval(), normalize


def theirs(folder, wav, dtype=torch.float32):
    """Hidden states 0 ... L of transformers, float64, the last one after the final norm."""
    model, normalize = model_of(folder)
    x = torch.from_numpy(soundfile.read(wav, dtype='float32')[0]).to(dtype)
    if normalize: x = (x - x.mean()) / torch.sqrt(x.var(unbiased=False) + 1e-7)
    with torch.inference_mode(): out = model.to(dtype)(x[None], output_hidden_states=True)
    return [h[0].double() for h in (*out.hidden_states[:-1], out.last_hidden_state)]


def ours(extract, model, wav):
    """The same through sft-extract."""
    with tempfile.TemporaryDirectory() as out:
        subprocess.run([extract, model, wav, '--states', 'all', '-o', out], check=True, stdout=subprocess.DEVNULL)
        stem = os.path.splitext(os.path.basename(wav))[0]
        states = load_file(os.path.join(out, stem + '.safetensors'))
    return [states[f'hidden.{l}'].double() for l in range(len(states))]


def off(a, b): return ((a - b).norm() / b.norm()).item(), ((a - b).abs().max() / b.abs().max()).item()


def weights(folder):
    """All tensors of a folder by name, positional weight norm under its old names, prefix removed."""
    out = {}
    for path in glob.glob(os.path.join(folder, '*.safetensors')): out |= load_file(path)
    new = {'parametrizations.weight.original0': 'weight_g', 'parametrizations.weight.original1': 'weight_v'}
    for long, short in new.items(): out = {k.replace(long, short): v for k, v in out.items()}
    return {k.removeprefix('hubert.').removeprefix('wav2vec2.'): v for k, v in out.items()}


def same_weights(folder, original):
    """Names of the original's tensors that are missing from the folder or differ in a bit."""
    a, b = weights(folder), weights(original)
    return sorted(k for k in b if k not in a or not torch.equal(a[k], b[k]))


def check(folder, extract, wav, original):
    """-> is all well; prints one line per state."""
    good = True
    for l, (a, b) in enumerate(zip(ours(extract, folder, wav), theirs(folder, wav), strict=True)):
        norm, largest = off(a, b)
        good &= norm <= LIMIT
        print(f'  state {l:2d}: ours against transformers float32 {norm:.1e} (largest {largest:.1e})')
    if original:
        changed = same_weights(folder, original)
        good &= not changed
        print('  weights: ' + (f'changed: {changed}' if changed else 'the same bits as before the conversion'))
    print(f'{folder}: {"ok" if good else "FAILED"}')
    return good


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('folder')
    parser.add_argument('--extract', required=True)
    parser.add_argument('--wav', required=True)
    parser.add_argument('--original')
    args = parser.parse_args()
    sys.exit(0 if check(args.folder, args.extract, args.wav, args.original) else 1)


if __name__ == '__main__': main()
