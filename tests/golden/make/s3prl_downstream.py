"""Makes tests/golden/torch/s3prl-{asr,ks}.ckpt, fine-tuned checkpoints as s3prl's downstream runner saves them, and
tests/golden/s3prl-downstream.safetensors: the logits that s3prl's own modules compute from them.

    python s3prl_downstream.py        needs what s3prl_tiny.py needs

asr: HuBERT, the weighted sum of three states, projector, two BiLSTM, 32 characters. ks: DistilHuBERT, the weighted sum
of four states (two of them predictions), projector, mean, 12 classes. `NAME.logits` are those of signal(21920, 21920).
"""
import argparse
import os
import tempfile

import torch
from torch import nn

from s3prl_tiny import make, upstream

from s3prl.downstream.asr.model import RNNs
from s3prl.downstream.model import UtteranceLevel
from s3prl.upstream.interfaces import Featurizer
from tiny import GOLDEN, save, signal

SAMPLES = 21920
RNN = dict(module='LSTM', bidirection=True, dim=[16, 16], dropout=[0.2, 0.2], layer_norm=[False, False],
           proj=[False, False], sample_rate=[1, 1], sample_style='concat', total_rate=320)
POOLING = dict(pooling='MeanPooling', pre_net=None)


class Downstream(nn.Module):
    """The parameters that s3prl's experts have, without their corpora."""

    def __init__(self, width, model):
        super().__init__()
        self.projector, self.model = nn.Linear(width, 16), model
        self.register_buffer('best_score', torch.ones(1) * 100)

    def forward(self, features): return self.model(self.projector(features), torch.IntTensor([features.shape[1]]))[0]


def checkpoint(family, base, name, config, encoder, featurizer, downstream):
    args = argparse.Namespace(upstream=base, downstream=name, upstream_trainable=True, upstream_layer_selection=None,
                              upstream_feature_selection='hidden_states', upstream_feature_normalize=False)
    return {'Optimizer': {'state': {}, 'param_groups': [{'lr': 1e-4}]}, 'Step': 100, 'Epoch': 1, 'Args': args,
            'Config': {'downstream_expert': config}, 'Featurizer': featurizer.state_dict(),
            'Downstream': downstream.state_dict(), 'Upstream': encoder.state_dict()}


def write(file, family, shape, base, name, config, head):
    """-> logits [T or 1, V] in float32."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, 'base.pt')
        make(family, path, 7, **shape)
        encoder = upstream(family, path)
    featurizer = Featurizer(encoder, upstream_device='cpu')
    torch.manual_seed(8)
    downstream = Downstream(64, head()).eval()
    with torch.no_grad():
        featurizer.weights.normal_()
        for p in downstream.parameters(): p *= 5        # or every frame has the same best unit
    torch.save(checkpoint(family, base, name, config, encoder, featurizer, downstream),
               os.path.join(GOLDEN, 'torch', file))
    wave = torch.as_tensor(signal(SAMPLES, SAMPLES), dtype=torch.float32)
    with torch.no_grad():
        frames = featurizer([wave], encoder([wave]))[0]
        return downstream(frames[None]).reshape(-1, downstream(frames[None]).shape[-1])


def main():
    torch.set_num_threads(1)
    shape = dict(encoder_ffn_embed_dim=32, conv_pos=8)
    asr = write('s3prl-asr.ckpt', 'hubert', shape, 'hubert_base', 'asr',
                {'datarc': {}, 'modelrc': {'project_dim': 16, 'select': 'RNNs', 'RNNs': RNN}},
                lambda: RNNs(16, 32, 320, **RNN))
    ks = write('s3prl-ks.ckpt', 'distilhubert', shape | dict(encoder_layers=1), 'distilhubert', 'speech_commands',
               {'modelrc': {'projector_dim': 16, 'select': 'UtteranceLevel', 'UtteranceLevel': POOLING}},
               lambda: UtteranceLevel(16, 12, **POOLING))
    save('s3prl-downstream', {'asr.logits': asr, 'ks.logits': ks}, s3prl='0.4.18')


main()
