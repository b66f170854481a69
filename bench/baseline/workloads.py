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
SHARES = [0, .01, .05, .1, .25, .5, .75, .9, .95, .99, .995, 1]                           # of a corpus: these seconds
CORPORA = {'ls-train': [1.3, 2.5, 4.2, 6.4, 11.4, 13.8, 15.3, 16.7, 17.3, 18.1, 18.4, 24.5],
           'ted3': [0.5, 0.9, 1.5, 2.1, 3.7, 6.0, 8.3, 10.3, 11.4, 14.0, 14.9, 33.0],
           'ls-test': [1.3, 2.0, 2.3, 2.7, 3.7, 5.8, 9.6, 14.6, 17.8, 25.5, 28.4, 35.0], 'kw': [1.0] * 12}
GROUP, GROUPS = 16, 30                                                                    # of the recipe, of a corpus
VOCAB, HEAD_WIDTH, HEAD_LAYERS, HEAD_DROPOUT, LABELS_PER_SECOND, ALPHA = 32, 256, 3, 0.2, 16, 0.25

IDS = ['extract/hubert-base/fixed:5/1/all', 'extract/hubert-base/fixed:15/1/all',
       'extract/hubert-large/fixed:5/1/all', 'extract/hubert-large/fixed:15/1/all',
       'extract/wavlm-base/fixed:5/1/all', 'extract/wavlm-base/fixed:15/1/all',
       'extract/hubert-base/mixed/8/all', 'extract/hubert-base/ls-test/8/all',
       'train-full/hubert-base/fixed:5/4/blstm', 'train-full/hubert-base/fixed:5/4/linear',
       'train-full/hubert-base/fixed:5/4/blstm+cached', 'train-full/hubert-base/fixed:5/4/linear+cached',
       'train-head/hubert-base/fixed:5/4/blstm', 'train-head/hubert-base/fixed:5/4/blstm+cached',
       'train-full/hubert-base/official:ted3/16/blstm+cached', 'train-head/hubert-base/official:ted3/16/blstm+cached',
       'merge/hubert-base/-/2/all', 'merge/hubert-large/-/2/all', 'start/hubert-base/fixed:5/1/all']
# On a device: one utterance, and batches that fill it.
CUDA_IDS = ['extract/hubert-base/fixed:10/1/all', 'extract/hubert-base/mixed/64/all', 'extract/hubert-large/mixed/32/all',
            'train-head/hubert-base/fixed:12/16/blstm+cached', 'train-full/hubert-base/fixed:12/16/blstm']


NOTHING = '-'                                                             # a workload: what was built is let go


class Skip(Exception):
    """Raised by a peer's make: it takes no part in this workload."""


def evenly(corpus, count):
    """Seconds at evenly spaced quantiles, in tenths."""
    at = np.interp((np.arange(count) + 0.5) / count, SHARES, CORPORA[corpus])
    return (np.floor(10 * at + 0.5 + 1e-9) / 10).tolist()


def lengths(mix, batch):
    """Seconds of every utterance (lengths.md)."""
    if mix.startswith('official:'):
        every = evenly(mix[9:], GROUP * GROUPS)
        groups = [every[i:i + GROUP] for i in range(0, len(every), GROUP)]
        return min(groups, key=lambda group: abs(sum(group) - sum(every) / GROUPS))
    if mix in CORPORA: return evenly(mix, batch)
    some = MIXED if mix == 'mixed' else [int(mix[6:])] if mix.startswith('fixed:') else []
    return (some * batch)[:batch]


def parse(workload):
    """id -> {task, arch, mix, batch, what, seconds: [audio seconds of every utterance]}"""
    task, arch, mix, batch, what = workload.split('/')
    return dict(task=task, arch=arch, mix=mix, batch=int(batch), what=what, seconds=lengths(mix, int(batch)))


def audio(seconds):
    """One float32 array per utterance: noise with an rms of 0.1."""
    r = np.random.default_rng(0)
    return [r.normal(0, 0.1, round(s * RATE)).astype(np.float32) for s in seconds]


def labels(seconds):
    r = np.random.default_rng(1)
    return [r.integers(5, VOCAB, int(round(s * RATE) * LABELS_PER_SECOND / RATE)) for s in seconds]


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
