"""OpenVINO: the graph that onnxruntime_peer.py exports, compiled for one length or with dynamic shapes.

    python openvino_peer.py --threads 2 --cache DIR [--math exact|bf16]     then one workload id a line (workloads.py)
    python openvino_peer.py --threads 2 --cache DIR --first AUDIO           process start to first features, Base

exact is f32; bf16 is what OpenVINO takes by itself on a processor that is fast at it. A list of different lengths
runs one by one with dynamic shapes. Compiled graphs are kept in DIR: the start is timed as of a second run.
"""
import argparse
import functools
import os

import workloads
from onnxruntime_peer import exported


def compiled(arch, args, samples=None):
    """A request that takes [1, samples], any number when not given."""
    import openvino
    core = openvino.Core()
    core.set_property({'CACHE_DIR': os.path.join(args.cache, 'openvino')})
    model = core.read_model(exported(arch, args.cache))
    model.reshape([1, samples or openvino.Dimension(400, 1 << 22)])
    precision = {'exact': 'f32', 'bf16': 'bf16'}[args.math]
    options = {'INFERENCE_NUM_THREADS': args.threads, 'PERFORMANCE_HINT': 'LATENCY', 'INFERENCE_PRECISION_HINT': precision}
    return core.compile_model(model, 'CPU', options).create_infer_request()


def make(work, args):
    if work['task'] != 'extract': raise workloads.Skip(work['task'])
    waves = [x[None] for x in workloads.audio(work['seconds'])]
    same = len({x.shape for x in waves}) == 1
    request = compiled(work['arch'], args, waves[0].shape[1] if same else None)

    def run():
        for x in waves: request.infer([x])
    return run, ('fixed length' if same else 'dynamic length, one by one')


def first(path, args):
    import soundfile
    samples = soundfile.read(path, dtype='float32')[0]
    states = compiled('hubert-base', args, len(samples)).infer([samples[None]])
    print(len(states))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--cache', required=True)
    parser.add_argument('--math', default='exact', choices=('exact', 'bf16'))
    parser.add_argument('--first', metavar='AUDIO')
    args = parser.parse_args()
    if args.first: return first(args.first, args)
    workloads.serve(functools.partial(make, args=args))


if __name__ == '__main__': main()
