"""What both sides of the model benches run: the lists of lengths.md, and how a peer is driven.

A peer is a process that reads one workload id a line and answers with one line of JSON: {"seconds": ..., "config": ...}
for one repetition, or {"skip": why}. Its first answer for an id comes after building and warming up, which is not counted.
"""
import json
import sys
import time

import numpy as np

RATE = 16000
MIXED = [3, 5, 7, 9, 10, 12, 14, 15]                                                      # seconds
VOCAB, HEAD_WIDTH, HEAD_LAYERS, HEAD_DROPOUT, LABELS_PER_SECOND, ALPHA = 32, 256, 3, 0.2, 16, 0.25

IDS = ['extract/hubert-base/fixed:5/1/all', 'extract/hubert-base/fixed:15/1/all',
       'extract/hubert-large/fixed:5/1/all', 'extract/hubert-large/fixed:15/1/all',
       'extract/wavlm-base/fixed:5/1/all', 'extract/wavlm-base/fixed:15/1/all',
       'extract/hubert-base/mixed/8/all',
       'train-full/hubert-base/fixed:5/4/blstm', 'train-full/hubert-base/fixed:5/4/linear',
       'train-full/hubert-base/fixed:5/4/blstm+cached', 'train-full/hubert-base/fixed:5/4/linear+cached',
       'train-head/hubert-base/fixed:5/4/blstm', 'train-head/hubert-base/fixed:5/4/blstm+cached',
       'merge/hubert-base/-/2/all', 'start/hubert-base/fixed:5/1/all']
# On a device: one utterance, and batches that fill it.
CUDA_IDS = ['extract/hubert-base/fixed:10/1/all', 'extract/hubert-base/mixed/64/all', 'extract/hubert-large/mixed/32/all',
            'train-head/hubert-base/fixed:12/16/blstm+cached', 'train-full/hubert-base/fixed:12/16/blstm']


NOTHING = '-'                                                             # a workload: what was built is let go


class Skip(Exception):
    """Raised by a peer's make: it takes no part in this workload."""


def parse(workload):
    """id -> {task, arch, mix, batch, what, seconds: [audio seconds of every utterance]}"""
    task, arch, mix, batch, what = workload.split('/')
    lengths = MIXED if mix == 'mixed' else [int(mix[6:])] if mix.startswith('fixed:') else []
    return dict(task=task, arch=arch, mix=mix, batch=int(batch), what=what, seconds=(lengths * int(batch))[:int(batch)])


def audio(seconds):
    """One float32 array per utterance: noise with an rms of 0.1."""
    r = np.random.default_rng(0)
    return [r.normal(0, 0.1, s * RATE).astype(np.float32) for s in seconds]


def labels(seconds):
    r = np.random.default_rng(1)
    return [r.integers(5, VOCAB, s * LABELS_PER_SECOND) for s in seconds]


def warm_up(run):
    """Three times, or as often as fits in four seconds."""
    start = time.perf_counter()
    for _ in range(3):
        run()
        if time.perf_counter() - start > 4: return


def serve(make):
    """The loop of a peer: make(parsed workload) -> (function of one repetition, its configuration in words)."""
    current, run, config = None, None, None
    for line in sys.stdin:
        workload = line.strip()
        try:
            if workload != current:
                current, run = None, None                                   # frees the model before the next one is made
                if workload == NOTHING: raise Skip('nothing to do')
                run, config = make(parse(workload))
                current = workload
                warm_up(run)
            start = time.perf_counter()
            run()
            answer = {'seconds': time.perf_counter() - start, 'config': config}
        except Skip as why: answer = {'skip': str(why)}
        print(json.dumps(answer), flush=True)
