"""PyTorch + transformers, fp32, tuned: the fastest of the attention variants, inference mode, fused Adam.

    python pytorch.py --threads 2 [--variants eager,sdpa,compile] [--one-by-one]   then one workload id a line
    python pytorch.py --threads 2 --first MODEL_FOLDER AUDIO                       process start to first features
"""
import argparse
import functools
import sys
import time

import workloads


def first(folder, path):
    """A user's own few lines: load the folder, read the file, take the hidden states."""
    import soundfile
    import torch
    from transformers import HubertModel
    model = HubertModel.from_pretrained(folder).eval()
    samples = torch.from_numpy(soundfile.read(path, dtype='float32')[0])[None]
    with torch.inference_mode(): states = model(samples, output_hidden_states=True).hidden_states
    print(len(states), tuple(states[-1].shape))


def build(arch, attention):
    from transformers import HubertConfig, HubertModel
    large = dict(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096,
                 feat_extract_norm='layer', do_stable_layer_norm=True, conv_bias=False, feat_proj_dropout=0.0,
                 hidden_dropout=0.0, attention_dropout=0.0)
    base = dict(feat_proj_dropout=0.1, hidden_dropout=0.1, attention_dropout=0.1)
    kind = large if arch.endswith('large') else base
    config = HubertConfig(**kind, activation_dropout=0.0, layerdrop=0.0, apply_spec_augment=False)
    return HubertModel._from_config(config, attn_implementation=attention)


def extraction(work, attention, padded):
    """All hidden states; a list of different lengths as one padded batch with its mask, or one by one."""
    import torch
    model = build(work['arch'], 'sdpa' if attention == 'compile' else attention).eval()
    call = torch.compile(model) if attention == 'compile' else model
    waves = [torch.from_numpy(x) for x in workloads.audio(work['seconds'])]
    batch = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones(len(x), dtype=torch.long) for x in waves], batch_first=True)
    padding = bool((mask == 0).any())

    def run():
        with torch.inference_mode():
            if padded: call(batch, attention_mask=mask if padding else None, output_hidden_states=True)
            else: [call(x[None], output_hidden_states=True) for x in waves]
    return run


def head(width, kind):
    """-> a function of [B, T, C] to logits [B, T, V], and its parameters"""
    import torch
    out = torch.nn.Linear(width if kind == 'linear' else 2 * workloads.HEAD_WIDTH, workloads.VOCAB)
    if kind == 'linear': return out, list(out.parameters())
    proj = torch.nn.Linear(width, workloads.HEAD_WIDTH)
    rnn = torch.nn.LSTM(workloads.HEAD_WIDTH, workloads.HEAD_WIDTH, workloads.HEAD_LAYERS, bidirectional=True,
                        batch_first=True, dropout=workloads.HEAD_DROPOUT)
    drop = torch.nn.Dropout(workloads.HEAD_DROPOUT)
    return lambda x: out(drop(rnn(proj(x))[0])), [p for m in (proj, rnn, out) for p in m.parameters()]


def training(work, attention):
    """One update; equal lengths, so nothing is padded or packed, which favours this side."""
    import torch
    kind, _, cached = work['what'].partition('+')
    model = build(work['arch'], 'sdpa' if attention == 'compile' else attention).train()
    model.feature_extractor._freeze_parameters()
    predict, own = head(model.config.hidden_size, kind)
    frozen = work['task'] == 'train-head'
    encoder = [p for k, p in model.named_parameters() if not k.startswith(('feature_extractor', 'masked'))]
    trained = own if frozen else own + encoder
    adam = torch.optim.Adam(trained, lr=1e-4, fused=True)
    batch = torch.stack([torch.from_numpy(x) for x in workloads.audio(work['seconds'])])
    targets = [torch.from_numpy(y) for y in workloads.labels(work['seconds'])]
    with torch.no_grad(): features = model.feature_extractor(batch).transpose(1, 2)

    def encode(samples, kept):
        with torch.no_grad(): x = kept if cached else model.feature_extractor(samples).transpose(1, 2)
        return model.encoder(model.feature_projection(x)).last_hidden_state
    call = torch.compile(encode) if attention == 'compile' else encode

    def run():
        adam.zero_grad()
        with torch.set_grad_enabled(not frozen): hidden = call(batch, features)
        logp = predict(hidden).log_softmax(-1).transpose(0, 1)
        lengths = torch.full((len(batch),), len(logp))
        loss = torch.nn.functional.ctc_loss(logp, torch.cat(targets), lengths, torch.tensor([len(y) for y in targets]))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0, foreach=True)
        adam.step()
    return run


def make(work, variants, one_by_one):
    """The fastest variant; where there is a choice each is built, run once and timed twice."""
    if work['task'] not in ('extract', 'train-full', 'train-head'): raise workloads.Skip(work['task'])
    if one_by_one and work['mix'] != 'mixed': raise workloads.Skip('a single length')
    best = None
    for attention in variants:
        run = extraction(work, attention, not one_by_one) if work['task'] == 'extract' else training(work, attention)
        if len(variants) == 1: return run, attention
        run()
        times = []
        for _ in range(2):
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
        seconds = min(times)
        print(f'  pytorch {attention}: {seconds:.2f} s', file=sys.stderr)
        if best is None or seconds < best[0]: best = (seconds, run, attention)
    return best[1:]


def main():
    import torch
    parser = argparse.ArgumentParser()
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--variants', default='eager,sdpa')
    parser.add_argument('--one-by-one', action='store_true', help='mixed lengths without padding')
    parser.add_argument('--first', nargs=2, metavar=('MODEL_FOLDER', 'AUDIO'))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.first: return first(*args.first)
    workloads.serve(functools.partial(make, variants=args.variants.split(','), one_by_one=args.one_by_one))


if __name__ == '__main__': main()
