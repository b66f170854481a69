"""Makes tests/golden/gradient-batches.safetensors: what PyTorch's bf16 autocast costs gradients of CTC, over eight batches.

    python gradient_batches.py    torch 2.15.0, transformers 5.23.0, safetensors, numpy; a minute

One batch tells little: a gradient of CTC hangs on few numbers, whose rounding may be lucky or not, and then moves all
tensors of a model together. `MODEL.PARAMETER` [1]: the geometric mean over the batches of 1 - cosine of autocast's
gradient to float64's. Loss and head are those of models.py; batch b is two utterances, SAMPLES of signal(100 + 2 b)
and of signal(101 + 2 b), with LABELS.
"""
import torch

import models
from tiny import MODELS, canonical, load, save

SAMPLES, LABELS, BATCHES = (8000, 4000), ([4, 1, 1, 9, 2, 5], [8, 2, 2]), 8


def distances(model, single, name):
    """PARAMETER -> 1 - cosine, for the utterances of `models`."""
    model.zero_grad(), single.zero_grad()
    _, _, w, b = models.backward(model, name)
    with torch.autocast('cpu', dtype=torch.bfloat16): _, _, rough_w, rough_b = models.backward(single, name)
    rough = dict(single.named_parameters())
    pairs = {'task.out.weight': (w, rough_w), 'task.out.bias': (b, rough_b)}
    pairs |= {canonical(k): (p, rough[k]) for k, p in model.named_parameters() if p.grad is not None}
    return {k: 1 - torch.cosine_similarity(p.grad.flatten(), r.grad.double().flatten(), 0) for k, (p, r) in pairs.items()}


def main():
    torch.set_num_threads(1)
    out = {}
    for name in MODELS:
        model, single, logs = load(name), load(name, torch.float32), {}
        for batch in range(BATCHES):
            models.UTTERANCES = [(100 + 2 * batch + i, SAMPLES[i], LABELS[i]) for i in range(2)]
            for k, off in distances(model, single, name).items(): logs.setdefault(k, []).append(off.log())
        out |= {f'{name}.{k}': torch.stack(v).mean().exp().reshape(1) for k, v in logs.items()}
    save('gradient-batches', out)


if __name__ == '__main__': main()
