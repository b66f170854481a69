"""Loads a CTC model that sft-convert wrote for fairseq with fairseq's own code, and compares its logits with the golden ones.

    sft-convert tests/golden/models/hubert-ctc -o DIR/m.pt
    python fairseq_check.py DIR/m.pt --fairseq SOURCE [--golden hubert-ctc]

SOURCE: fairseq 0.12.2 unpacked, with omegaconf 2.0.6, hydra-core 1.0.7 and what else it imports beside it. For Python 3.11
`@dataclass` in fairseq and hydra has to become `@dataclass(unsafe_hash=True)`; aliases that numpy lost are given back here.
"""
import argparse
import os
import sys

import numpy as np
import torch

from tiny import GOLDEN, signal

for alias, kind in {'float': float, 'int': int, 'bool': bool, 'object': object}.items():
    if alias not in np.__dict__: setattr(np, alias, kind)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('model')
    parser.add_argument('--fairseq', action='append', required=True)
    parser.add_argument('--golden', help='hubert-ctc')
    args = parser.parse_args()
    sys.path[:0] = args.fairseq
    from fairseq import checkpoint_utils
    from safetensors.torch import load_file

    folder = os.path.dirname(os.path.abspath(args.model))
    models, cfg, task = checkpoint_utils.load_model_ensemble_and_task([args.model], arg_overrides={'data': folder})
    model = models[0].double().eval()
    samples = signal(5, 21920)
    # with the epsilon of the golden folder: fairseq's own is 1e-5
    if cfg.task.normalize: samples = (samples - samples.mean()) / (samples.var() + 1e-7) ** 0.5
    with torch.no_grad():
        out = model(source=torch.tensor(samples)[None], padding_mask=torch.zeros(1, len(samples), dtype=torch.bool))
    logits = out['encoder_out'][:, 0]
    symbols = task.target_dictionary.symbols
    print(f'{args.model}: {type(model).__name__}, {len(symbols)} symbols {symbols[:6]}..., logits {list(logits.shape)}')
    if not args.golden: return
    golden = load_file(os.path.join(GOLDEN, 'ctc-heads.safetensors'))
    expected = golden[args.golden + '.logits'].double()
    off = ((logits - expected).norm() / expected.norm()).item()
    same = bool((logits.argmax(-1) == golden[args.golden + '.ids']).all())
    print(f'  relative difference {off:.1e}, the same units {same}')
    sys.exit(0 if off < 1e-4 and same else 1)


if __name__ == '__main__': main()
