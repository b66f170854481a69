"""PyTorch + transformers, tuned: the fastest of the variants, inference mode, fused Adam.

    python pytorch.py --threads 2 [--variants eager,sdpa,compile,autocast,compile+autocast] [--one-by-one | --sorted N]
        [--device cuda] [--math exact|bf16]                                        then one workload id a line
    python pytorch.py --threads 2 --first MODEL_FOLDER AUDIO                       process start to first features

exact is fp32 without TF32. bf16: the whole model to extract, or autocast over fp32 parameters with +autocast; always that to
train. Variants are tried once for each task, architecture and head; where there are several lengths, at the first. --sorted: by length,
N utterances at a time, which pads less.
"""
import argparse
import contextlib
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
    """HuBERT or WavLM with random weights; WavLM's biased attention has one form."""
    from transformers import HubertConfig, HubertModel, WavLMConfig, WavLMModel
    large = dict(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096,
                 feat_extract_norm='layer', do_stable_layer_norm=True, conv_bias=False, feat_proj_dropout=0.0,
                 hidden_dropout=0.0, attention_dropout=0.0)
    base = dict(feat_proj_dropout=0.1, hidden_dropout=0.1, attention_dropout=0.1)
    kind = large if arch.endswith('large') else base
    kind |= dict(activation_dropout=0.0, layerdrop=0.0, apply_spec_augment=False)
    if arch.startswith('wavlm'): return WavLMModel(WavLMConfig(**kind))
    return HubertModel._from_config(HubertConfig(**kind), attn_implementation=attention)


def padded(waves):
    """One batch of waves and its mask; None for waves of one length."""
    import torch
    batch = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True)
    lengths = torch.tensor([len(x) for x in waves], device=batch.device)
    mask = (torch.arange(batch.shape[1], device=batch.device) < lengths[:, None]).long()
    return batch, mask if bool((mask == 0).any()) else None


def attention_of(variant): return 'eager' if variant == 'eager' else 'sdpa'


def extraction(work, variant, args):
    """All hidden states; different lengths as one padded batch with its mask, in sorted groups, or one by one."""
    import torch
    cast = 'autocast' in variant
    dtype = torch.bfloat16 if args.math == 'bf16' and not cast else torch.float32
    model = build(work['arch'], attention_of(variant)).eval().to(args.device, dtype)
    call = torch.compile(model) if 'compile' in variant else model
    waves = [torch.from_numpy(x).to(args.device, dtype) for x in workloads.audio(work['seconds'])]
    group = 1 if args.one_by_one else args.sorted or len(waves)
    if group < len(waves): waves.sort(key=len)
    batches = [padded(waves[i:i + group]) for i in range(0, len(waves), group)]

    def run():
        with torch.inference_mode(), torch.autocast(args.device, torch.bfloat16, enabled=cast):
            for batch, mask in batches: call(batch, attention_mask=mask, output_hidden_states=True)
        settle(args)
    return run


def settle(args):
    """A repetition ends when the device is done."""
    import torch
    if args.device == 'cuda': torch.cuda.synchronize()


def head(width, kind, device):
    """-> a function of [B, T, C] to logits [B, T, V], and its parameters"""
    import torch
    out = torch.nn.Linear(width if kind == 'linear' else 2 * workloads.HEAD_WIDTH, workloads.VOCAB, device=device)
    if kind == 'linear': return lambda x, frames: out(x), list(out.parameters())
    proj = torch.nn.Linear(width, workloads.HEAD_WIDTH, device=device)
    rnn = torch.nn.LSTM(workloads.HEAD_WIDTH, workloads.HEAD_WIDTH, workloads.HEAD_LAYERS, bidirectional=True,
                        batch_first=True, dropout=workloads.HEAD_DROPOUT, device=device)
    drop = torch.nn.Dropout(workloads.HEAD_DROPOUT)

    def predict(x, frames):
        x = proj(x)
        if frames is None: return out(drop(rnn(x)[0]))
        packed = torch.nn.utils.rnn.pack_padded_sequence(x, frames, batch_first=True, enforce_sorted=False)
        return out(drop(torch.nn.utils.rnn.pad_packed_sequence(rnn(packed)[0], batch_first=True)[0]))
    return predict, [p for m in (proj, rnn, out) for p in m.parameters()]


def training(work, variant, args):
    """One update; of equal lengths nothing is padded or packed, which favours this side."""
    import torch
    kind, _, cached = work['what'].partition('+')
    model = build(work['arch'], attention_of(variant)).train().to(args.device)
    model.feature_extractor._freeze_parameters()
    predict, own = head(model.config.hidden_size, kind, args.device)
    frozen = work['task'] == 'train-head'
    encoder = [p for k, p in model.named_parameters() if not k.startswith(('feature_extractor', 'masked'))]
    trained = own if frozen else own + encoder
    adam = torch.optim.Adam(trained, lr=1e-4, fused=True)
    waves = [torch.from_numpy(x).to(args.device) for x in workloads.audio(work['seconds'])]
    batch, padding = padded(waves)
    frames = model._get_feat_extract_output_lengths(torch.tensor([len(x) for x in waves]))
    known = None if padding is None else frames                                 # where the head must be told
    mask = None if padding is None else (torch.arange(int(frames.max())) < frames[:, None]).to(args.device)
    labels = [torch.from_numpy(y) for y in workloads.labels(work['seconds'])]
    targets, target_lengths = torch.cat(labels).to(args.device), torch.tensor([len(y) for y in labels])
    low = args.math == 'bf16'
    def precision(): return torch.autocast(args.device, torch.bfloat16) if low else contextlib.nullcontext()
    with torch.no_grad(), precision(): features = model.feature_extractor(batch).transpose(1, 2)

    def encode(samples, kept):
        with torch.no_grad(): x = kept if cached else model.feature_extractor(samples).transpose(1, 2)
        return model.encoder(model.feature_projection(x), attention_mask=mask).last_hidden_state
    call = torch.compile(encode) if 'compile' in variant else encode

    def run():
        adam.zero_grad()
        with precision():
            with torch.set_grad_enabled(not frozen): hidden = call(batch, features)
            logits = predict(hidden, known)
        logp = logits.float().log_softmax(-1).transpose(0, 1)
        loss = torch.nn.functional.ctc_loss(logp, targets, frames, target_lengths)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0, foreach=True)
        adam.step()
        settle(args)
    return run


def seconds_of(run):
    """The best of two, after one that compiles."""
    run()
    times = []
    for _ in range(2):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


CHOICES = {}                                                                 # of a kind of workload: the fastest variant


def make(work, args):
    """The fastest variant, tried where there is a choice and none was made yet."""
    if work['task'] not in ('extract', 'train-full', 'train-head'): raise workloads.Skip(work['task'])
    if (args.one_by_one or args.sorted) and len(set(work['seconds'])) == 1: raise workloads.Skip('a single length')
    builder = extraction if work['task'] == 'extract' else training
    kind = work['task'], work['arch'], work['what'], len(set(work['seconds'])) > 1
    variants = [CHOICES[kind]] if kind in CHOICES else args.variants.split(',')
    if work['task'] != 'extract' and args.math == 'bf16':                    # autocast anyway
        variants = list(dict.fromkeys(v.replace('+autocast', '').replace('autocast', 'sdpa') for v in variants))
    if len(variants) == 1: return builder(work, variants[0], args), variants[0]
    best = None
    for variant in variants:
        try:
            run = builder(work, variant, args)
            seconds = seconds_of(run)
        except Exception as error:                                           # a compiler that cannot, an op without bf16
            print(f'  pytorch {variant}: {type(error).__name__}: {str(error)[:200]}', file=sys.stderr)
            continue
        print(f'  pytorch {variant}: {seconds:.2f} s', file=sys.stderr)
        if best is None or seconds < best[0]: best = (seconds, run, variant)
    if best is None: raise workloads.Skip('no variant runs')
    CHOICES[kind] = best[2]
    return best[1:]


def main():
    import torch
    parser = argparse.ArgumentParser()
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--variants', default='eager,sdpa')
    parser.add_argument('--one-by-one', action='store_true', help='mixed lengths without padding')
    parser.add_argument('--sorted', type=int, default=0, metavar='N', help='mixed lengths sorted, N at a time')
    parser.add_argument('--device', default='cpu', choices=('cpu', 'cuda'))
    parser.add_argument('--math', default='exact', choices=('exact', 'bf16'))
    parser.add_argument('--first', nargs=2, metavar=('MODEL_FOLDER', 'AUDIO'))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.first: return first(*args.first)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    workloads.serve(functools.partial(make, args=args))


if __name__ == '__main__': main()
