"""ONNX Runtime, fp32: the model exported by PyTorch with every hidden state as an output, all graph optimisations.

    python onnxruntime_peer.py --threads 2 --cache DIR      then one workload id a line (workloads.py)
    python onnxruntime_peer.py --threads 2 --cache DIR --first AUDIO      process start to first features, Base

The exported graphs are kept in DIR. Lengths are dynamic; a list of different lengths runs one by one.
"""
import argparse
import functools
import os

import workloads


def export(arch, path):
    """A model with random weights and fused weight norm -> path."""
    import torch
    from pytorch import build
    model = build(arch, 'eager').eval()
    conv = model.encoder.pos_conv_embed.conv
    torch.nn.utils.parametrize.remove_parametrizations(conv, 'weight')

    class States(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, samples): return tuple(self.model(samples, output_hidden_states=True).hidden_states)

    count = model.config.num_hidden_layers + 1
    with torch.no_grad():
        torch.onnx.export(States().eval(), (torch.randn(1, 80000),), path, input_names=['samples'],
                          output_names=[f'hidden.{l}' for l in range(count)], dynamo=True, external_data=True,
                          dynamic_shapes=({1: torch.export.Dim('samples', min=400, max=1 << 22)},))


def exported(arch, cache):
    """The path of its graph, made on the first call."""
    path = os.path.join(cache, arch + '.onnx')
    if not os.path.exists(path): export(arch, path)
    return path


def session(arch, cache, threads):
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    return onnxruntime.InferenceSession(exported(arch, cache), options, providers=['CPUExecutionProvider'])


def make(work, cache, threads):
    if work['task'] != 'extract': raise workloads.Skip(work['task'])
    ort = session(work['arch'], cache, threads)
    waves = [x[None] for x in workloads.audio(work['seconds'])]

    def run():
        for x in waves: ort.run(None, {'samples': x})
    return run, 'dynamic length, one by one'


def first(path, cache, threads):
    import soundfile
    samples = soundfile.read(path, dtype='float32')[0]
    states = session('hubert-base', cache, threads).run(None, {'samples': samples[None]})
    print(len(states), states[-1].shape)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--cache', required=True)
    parser.add_argument('--first', metavar='AUDIO')
    args = parser.parse_args()
    if args.first: return first(args.first, args.cache, args.threads)
    workloads.serve(functools.partial(make, cache=args.cache, threads=args.threads))


if __name__ == '__main__': main()
