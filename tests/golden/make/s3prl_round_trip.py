"""A s3prl checkpoint of each family through the tools and back: convert to GGUF, fine-tune, merge, convert to every
format, and load each in the program that it is for.

    python s3prl_round_trip.py --tools build --wav FILE [--family NAME] [--fairseq SOURCE...]
                                                                    needs what s3prl_tiny.py needs, and gguf

For each family: a small random model of s3prl's own code, in s3prl's form -> sft-convert (GGUF) -> sft-train, 20
updates of the stable recipe on the digits -> sft-merge --alpha 0.25 -> sft-convert to each format (written), and from
each format to safetensors, which must have the same id (read). Verified: the hidden states that the format's own
program computes from the file beside those of sft-extract from that file, relative Frobenius norms, the largest of all
states: transformers for a folder; for .pt s3prl's modules (fairseq's and unilm's model code), loaded strictly, and
where --fairseq says where it lies (as fairseq_check.py takes it), fairseq's own loading of its own form. GGUF and
safetensors have no program with these models: gguf-py and safetensors read the file, and every tensor is compared with
what s3prl reads from the .pt, bit by bit. Prints one table; exit code 1 if a difference is above 1e-5.
"""
import argparse
import importlib
import json
import logging
import os
import re
import subprocess
import sys
import tempfile

if '--fairseq' in sys.argv:                             # its omegaconf must come first
    sys.path[:0] = [os.path.abspath(p) for p in sys.argv[sys.argv.index('--fairseq') + 1:]]

import gguf
import numpy as np
import soundfile
import torch
import transformers
from safetensors.torch import load_file

import s3prl_tiny
from export_check import model_of, off, ours

LIMIT = 1e-5
FORMATS = {'GGUF': 'm.gguf', 'HF folder': 'hf', 'safetensors': 'm.safetensors', 'fairseq .pt': 'fairseq.pt',
           's3prl .pt': 's3prl.pt'}
NO_FORM = {('decoar2', 'HF folder'): 'transformers has no class', ('decoar2', 'fairseq .pt'): 'fairseq has no such model',
           ('distilhubert', 'fairseq .pt'): 'fairseq has no such model'}
# our names (docs/model-files.md) of s3prl's, first match
RULES = [(r'feature_extractor\.conv_layers\.(\d)\.0\.', r'conv.\1.'),
         (r'feature_extractor\.conv_layers\.(\d)\.2\.(1\.)?', r'conv.\1.norm.'), (r'layer_norm\.', 'feat_norm.'),
         (r'post_extract_proj\.', 'feat_proj.'), (r'encoder\.pos_conv\.(\d)\.0\.', r'pos_conv.\1.'),
         (r'encoder\.pos_conv\.0\.', 'pos_conv.0.'), (r'encoder\.layer_norm\.', 'enc.norm.'),
         (r'encoder\.layers\.(\d+)\.self_attn\.relative_attention_bias\.weight', r'enc.\1.attn.rel_bias'),
         (r'encoder\.layers\.(\d+)\.self_attn\.grep_linear\.', r'enc.\1.attn.rel_gate.'),
         (r'encoder\.layers\.(\d+)\.self_attn\.grep_a', r'enc.\1.attn.rel_gate.scale'),
         (r'encoder\.layers\.(\d+)\.self_attn\.([qkv])_proj\.', r'enc.\1.attn.\2.'),
         (r'encoder\.layers\.(\d+)\.self_attn\.out_proj\.', r'enc.\1.attn.o.'),
         (r'encoder\.layers\.(\d+)\.self_attn_layer_norm\.', r'enc.\1.attn_norm.'),
         (r'encoder\.layers\.(\d+)\.fc1\.', r'enc.\1.ffn.up.'), (r'encoder\.layers\.(\d+)\.fc2\.', r'enc.\1.ffn.down.'),
         (r'encoder\.layers\.(\d+)\.final_layer_norm\.', r'enc.\1.ffn_norm.')]


class Tools:
    def __init__(self, folder): self.folder = os.path.abspath(folder)

    def __call__(self, tool, *args):
        """-> what the tool reports with --json."""
        done = subprocess.run([os.path.join(self.folder, tool), *args, '--json'], capture_output=True, text=True)
        assert done.returncode == 0, f'{tool} {" ".join(args)}: {done.stderr}'
        return json.loads(done.stdout)

    def convert(self, a, b, to): return self('sft-convert', a, '-o', b, '--to', to)['id']

    def extract(self): return os.path.join(self.folder, 'sft-extract')


def merged(tools, family, folder):
    """-> the merged model as GGUF, and its id."""
    base, gguf_base, run, out = (os.path.join(folder, n) for n in ('base.pt', 'base.gguf', 'run', 'merged.gguf'))
    s3prl_tiny.make(family, base, seed=sum(family.encode()))
    id_base = tools.convert(base, gguf_base, 'gguf')
    tools('sft-train', gguf_base, '--ctc', 'digits', '-o', run, '--head', 'linear', '--steps', '20', '--set',
          'batch.utterances=2')
    with open(os.path.join(run, 'ckpt', 'LAST')) as f: last = os.path.join(run, 'ckpt', f.read().strip())
    tools('sft-merge', gguf_base, last, '--alpha', '0.25', '-o', out)
    id_merged = tools.convert(out, os.path.join(folder, 'again.safetensors'), 'safetensors')
    assert id_merged != id_base, f'{family}: training and merging changed nothing'
    return out, id_merged


def backbone_of_s3prl(path):
    """The backbone under our names, leading dimensions of 1 removed."""
    state = torch.load(path, weights_only=True)
    weights, out = next(state[k] for k in ('model_weight', 'model', 'Distiller') if k in state), {}
    for name, value in weights.items():
        for pattern, name_here in [(r'mask_emb', 'mask_emb')] + RULES:
            if m := re.match(pattern, name):
                out[m.expand(name_here) + name[m.end():]] = value.reshape(without_ones(value.shape))
                break
    return out


def without_ones(shape):
    """[1, 1, K] -> [K], [1, H, 1, 1] -> [H]: what GGUF cannot tell apart."""
    dims = list(shape)
    while len(dims) > 1 and dims[0] == 1: dims = dims[1:]
    while len(dims) > 1 and dims[-1] == 1: dims = dims[:-1]
    return dims


def tensors_of(path):
    if path.endswith('.safetensors'): return load_file(path)
    return {t.name: torch.from_numpy(t.data.copy()) for t in gguf.GGUFReader(path).tensors}


def same_tensors(path, s3prl_path):
    """Reads with the format's own library; -> 0 if every tensor of the backbone has the same bits."""
    here, there = tensors_of(path), backbone_of_s3prl(s3prl_path)
    backbone = [n for n in here if not n.startswith(('pretrain.', 'task.'))]
    assert sorted(backbone) == sorted(there), set(backbone) ^ set(there)
    return max(float((here[n].reshape(-1) - there[n].reshape(-1)).abs().max()) for n in backbone)


def states_of_transformers(folder, wav):
    """The waveform normalised as the model says: transformers' own processor would always take an epsilon of 1e-7."""
    model, normalize = model_of(folder)
    with open(os.path.join(folder, 'config.json')) as f: more = json.load(f)['sft']
    x = torch.from_numpy(soundfile.read(wav, dtype='float32')[0])
    eps = next((v for k, v in more.items() if k.endswith('normalize_eps')), 1e-7)
    if normalize: x = (x - x.mean()) / torch.sqrt(x.var(unbiased=False) + eps)
    with torch.inference_mode(): out = model(x[None], output_hidden_states=True)
    return [h[0].double() for h in (*out.hidden_states[:-1], out.last_hidden_state)]


def states_of_fairseq(family, path, samples):
    """By fairseq's own loading of a pre-trained checkpoint, which is strict."""
    for alias, kind in {'float': float, 'int': int, 'bool': bool, 'object': object}.items():
        if alias not in np.__dict__: setattr(np, alias, kind)           # numpy lost them
    from fairseq import checkpoint_utils
    logging.disable(logging.INFO)
    if family == 'data2vecaudio': importlib.import_module('fairseq.examples.data2vec.models.data2vec_audio')
    folder = os.path.dirname(path)
    with open(os.path.join(folder, 'dict.km.txt'), 'w') as f: f.writelines(f'{s} 1\n' for s in s3prl_tiny.SYMBOLS[0][4:])
    models, cfg, _ = checkpoint_utils.load_model_ensemble_and_task([path], arg_overrides={'data': folder})
    model, states = models[0].eval(), []
    for layer in model.encoder.layers:
        layer.register_forward_hook(lambda _, args, out: states.append(args[0][:, 0]))
    model.encoder.register_forward_hook(lambda _, args, out: states.append(out[0][0]))
    if cfg.task.normalize: samples = torch.nn.functional.layer_norm(samples, samples.shape)
    with torch.no_grad(): model.extract_features(samples[None], padding_mask=None, mask=False)
    frames = min(len(s) for s in states)                               # without padding to an even number
    return [s[:frames].double() for s in states]


def as_s3prl(path):
    """fairseq's form as s3prl's own converter would leave it (that one needs fairseq installed)."""
    state = torch.load(path, weights_only=True)
    if 'task' not in state['cfg']: return path          # unilm's form
    out = {'task_cfg': state['cfg']['task'], 'model_cfg': state['cfg']['model'], 'model_weight': state['model'],
           'dictionaries_symbols': s3prl_tiny.SYMBOLS}
    torch.save(out, path + '.converted')
    return path + '.converted'


def difference(tools, family, kind, path, s3prl_path, wav, fairseq):
    if kind in ('GGUF', 'safetensors'): return same_tensors(path, s3prl_path)
    if kind == 'HF folder':
        reference = states_of_transformers(path, wav)
    else:
        samples = torch.from_numpy(soundfile.read(wav, dtype='float32')[0])
        if fairseq and kind == 'fairseq .pt' and family in ('hubert', 'wav2vec2', 'data2vecaudio'):
            reference = states_of_fairseq(family, path, samples)
        else:
            reference = s3prl_tiny.states(family, as_s3prl(path) if kind == 'fairseq .pt' else path, samples)
    return max(off(a, b)[0] for a, b in zip(ours(tools.extract(), path, wav), reference, strict=True))


def row(tools, family, wav, fairseq):
    """-> {format: (written, read, verified, difference or reason)}"""
    out = {}
    with tempfile.TemporaryDirectory() as folder:
        model, id_model = merged(tools, family, folder)
        paths = {kind: os.path.join(folder, name) for kind, name in FORMATS.items()}
        for kind, to in zip(FORMATS, ('gguf', 'hf', 'safetensors', 'fairseq', 's3prl')):
            if (family, kind) not in NO_FORM: assert tools.convert(model, paths[kind], to) == id_model
        for kind in FORMATS:
            if reason := NO_FORM.get((family, kind)):
                out[kind] = reason
                continue
            again = paths[kind] + '.again.safetensors'
            assert tools.convert(paths[kind], again, 'safetensors') == id_model
            out[kind] = difference(tools, family, kind, paths[kind], paths['s3prl .pt'], wav, fairseq)
            print(family, kind, out[kind], file=sys.stderr)
    return out


def cell(value):
    if isinstance(value, str): return f'none: {value}'
    return 'same bits' if value == 0 else f'{value:.1e}' + ('' if value <= LIMIT else ' FAILED')


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--tools', required=True)
    parser.add_argument('--wav', required=True)
    parser.add_argument('--family', choices=list(s3prl_tiny.MAKERS))
    parser.add_argument('--fairseq', nargs='+')
    args = parser.parse_args()
    torch.set_num_threads(1)
    families = [args.family] if args.family else list(s3prl_tiny.MAKERS)
    rows = {family: row(Tools(args.tools), family, args.wav, args.fairseq) for family in families}
    also = ', fairseq ' + importlib.import_module('fairseq').__version__ if args.fairseq else ''
    print(f'torch {torch.__version__}, transformers {transformers.__version__}, s3prl 0.4.18{also}')
    print('| family | ' + ' | '.join(FORMATS) + ' |')
    print('|---' * (len(FORMATS) + 1) + '|')
    for family, values in rows.items(): print(f'| {family} | ' + ' | '.join(cell(values[k]) for k in FORMATS) + ' |')
    worst = max(v for values in rows.values() for v in values.values() if not isinstance(v, str))
    sys.exit(0 if worst <= LIMIT else 1)


if __name__ == '__main__': main()
