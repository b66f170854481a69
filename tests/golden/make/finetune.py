"""Makes the goldens of training: finetune-*, masked-prediction, dropout and schedule.safetensors.

    python finetune.py --reference DIR      after models.py; DIR holds the numpy reference (encoder.py, rng.py, ...)

Fine-tuning: 20 updates of stable fine-tuning through PyTorch in float64. Two updates of the head alone, then the encoder
but for conv.* and mask_emb; tri-stage schedule, Adam (0.9, 0.999, 1e-8), norm clipped at 1; no dropout, no SpecAugment.
An update takes four utterances of different lengths, each alone, loss sum of -log p / (4 max(1, labels)).
"""
import argparse
import sys

import torch

from tiny import MODELS, Scale, canonical, ctc, last_state, load, prepare, rng, save, signal

UPDATES, HEAD_ONLY, RATE, CLIP, BATCH, VOCAB = 20, 2, 1e-3, 1.0, 4, 9
POOL = [(101, 6400), (102, 9000), (103, 7321), (104, 14400),                    # seed, samples
        (105, 4000), (106, 11237), (107, 8080), (108, 12345)]


def labels_of(i):
    """Labels of utterance i of the pool: one for each 2000 samples, a repeat now and then."""
    count = POOL[i][1] // 2000
    return [1 + (3 * i + j * j // 2) % (VOCAB - 1) for j in range(count)]


def batch_of(u): return [(u * 3 + j * (1 + u % 2 * 2)) % len(POOL) for j in range(BATCH)]


def lr_factor(u, n):
    warm, hold = n // 10, n // 10 + 4 * n // 10
    if u < warm: return u / warm
    return 1.0 if u < hold else max(0.0, (n - u) / max(1, n - hold))


class Linear(torch.nn.Module):
    """task.out alone."""
    def __init__(self, width, r):
        super().__init__()
        self.out = torch.nn.Linear(width, VOCAB)
        self.reset(r)

    def reset(self, r):
        for p in self.parameters():
            spread = 0.4 if p.dim() == 1 else 1.5 / p.shape[-1] ** 0.5
            p.data = torch.tensor(r.normal(0, spread, tuple(p.shape)), dtype=torch.float32).double()

    def forward(self, x): return self.out(x)

    def names(self): return {'out.weight': 'task.out.weight', 'out.bias': 'task.out.bias'}


class Blstm(Linear):
    """The paper's head, shrunk: projector 12, two BiLSTM layers of 12, linear."""
    def __init__(self, width, r):
        super().__init__(24, r)
        self.proj = torch.nn.Linear(width, 12)
        self.rnn = torch.nn.LSTM(12, 12, num_layers=2, bidirectional=True)
        self.reset(r)

    def forward(self, x): return self.out(self.rnn(self.proj(x)[:, None])[0][:, 0])

    def names(self):
        out = super().names() | {'proj.weight': 'task.proj.weight', 'proj.bias': 'task.proj.bias'}
        for l in range(2):
            for suffix, direction in (('', 'fwd'), ('_reverse', 'bwd')):
                for a, b in (('weight', 'w'), ('bias', 'b')):
                    for g in ('ih', 'hh'): out[f'rnn.{a}_{g}_l{l}{suffix}'] = f'task.rnn.{l}.{direction}.{b}_{g}'
        return out


def parameters(model, head):
    """{canonical name: parameter} of encoder and head."""
    named = dict(head.named_parameters())
    return {canonical(k): p for k, p in model.named_parameters()} | {new: named[old] for old, new in head.names().items()}


def frozen(name, u): return not name.startswith('task.') and (u < HEAD_ONLY or name.startswith(('conv.', 'mask_emb')))


def run(name, kind, dtype):
    """-> (initial head, per-update losses, norms, rates, final parameters)"""
    model, head = load(name, dtype), kind(MODELS[name][2].hidden_size, rng('head' + name + kind.__name__)).to(dtype)
    P = parameters(model, head)
    start = {k: p.detach().clone() for k, p in P.items()}
    adam = torch.optim.Adam(P.values(), lr=RATE)
    losses, norms, rates = [], [], []
    for u in range(UPDATES):
        for k, p in P.items():
            p.requires_grad_(not frozen(k, u))
            p.grad = None
        loss = 0.0
        for i in batch_of(u):
            y = labels_of(i)
            part = ctc(head(last_state(model, name, signal(*POOL[i]))), y) / (BATCH * max(1, len(y)))
            part.backward()
            loss += part.item()
        norms.append(torch.nn.utils.clip_grad_norm_(P.values(), CLIP).item())
        rates.append(RATE * lr_factor(u, UPDATES))
        adam.param_groups[0]['lr'] = rates[-1]
        adam.step()
        losses.append(loss)
    return start, losses, norms, rates, {k: p.detach() for k, p in P.items()}


def finetune(label, name, kind):
    start, losses, norms, rates, final = run(name, kind, torch.float64)
    out = {'loss': torch.tensor(losses), 'norm': torch.tensor(norms), 'rate': torch.tensor(rates, dtype=torch.float64)}
    out |= {'initial.' + k: v for k, v in start.items() if k.startswith('task.')}
    for i, (seed, n) in enumerate(POOL):
        out |= {f'utterance.{i}.seed': torch.tensor([seed]), f'utterance.{i}.samples': torch.tensor([n]),
                f'utterance.{i}.labels': torch.tensor(labels_of(i))}
    out['batches'] = torch.tensor([batch_of(u) for u in range(UPDATES)])
    for k, v in final.items():
        if k.startswith(('conv.', 'mask_emb')): assert torch.equal(v, start[k]), k
        else: out['final.' + k] = v
    save('finetune-' + label, out)
    print('  loss', ' '.join(f'{x:.3f}' for x in losses), '\n  norm', ' '.join(f'{x:.2f}' for x in norms))
    single = run(name, kind, torch.float32)
    moved = {k: (final[k] - start[k]).norm() for k in final}
    off = {k: ((single[4][k].double() - final[k]).norm() / moved[k]).item() for k in final if moved[k] > 0}
    worst = sorted((v, k) for k, v in off.items() if not k.endswith('attn.k.bias'))[-3:]
    print(f'  PyTorch float32: loss {max(abs(a / b - 1) for a, b in zip(single[1], losses)):.0e}, norm'
          f' {max(abs(a / b - 1) for a, b in zip(single[2], norms)):.0e}, worst weights (difference over movement) {worst}')


def schedule():
    """factor.N: the factor of every update of a short run; spots.N: (u, factor) at the corners of a long one."""
    out = {f'factor.{n}': torch.tensor([lr_factor(u, n) for u in range(n)], dtype=torch.float64) for n in (1, 7, 10, 20, 33)}
    for n in (30000, 50000):
        warm, hold = n // 10, n // 10 + 4 * n // 10
        spots = [0, 1, warm - 1, warm, hold - 1, hold, hold + 1, n - 1]
        out[f'spots.{n}'] = torch.tensor([[u, lr_factor(u, n)] for u in spots], dtype=torch.float64)
    save('schedule', out)


def masked_prediction():
    """HuBERT's loss on hubert-group: masked cross-entropy of cosines / 0.1, and 10 times the feature penalty."""
    name, clusters, dim, temperature, penalty, multiplier = 'hubert-group', 6, 12, 0.1, 10.0, 0.1
    model, r = load(name), rng('masked prediction')
    weights = {'pretrain.proj.weight': r.normal(0, 0.3, (dim, 32)), 'pretrain.proj.bias': r.normal(0, 0.2, dim),
               'pretrain.label_emb': r.uniform(0, 1, (clusters + 4, dim))}
    weights = {k: torch.tensor(v, dtype=torch.float32).double().requires_grad_() for k, v in weights.items()}
    spans = {201: (16000, [3, 8, 30]), 202: (7000, [0, 9])}                          # seed: samples, starts of spans of 6
    masks, parts, out = {}, [], {}
    for seed, (n, starts) in spans.items():
        frames = (n - 80) // 320
        masks[seed] = torch.tensor([any(s <= t < s + 6 for s in starts) for t in range(frames)])
    total = sum(m.sum().item() for m in masks.values())
    for b, (seed, (n, starts)) in enumerate(spans.items()):
        mask = masks[seed]
        labels = torch.tensor([4 + (t // 3 + b) * 5 % clusters for t in range(len(mask))])
        features = Scale.apply(model.feature_extractor(prepare(name, signal(seed, n))).transpose(1, 2), multiplier)
        x = torch.where(mask[None, :, None], model.masked_spec_embed, model.feature_projection(features))
        hidden = model.encoder(x).last_hidden_state[0]
        y = hidden[mask] @ weights['pretrain.proj.weight'].T + weights['pretrain.proj.bias']
        logits = torch.nn.functional.cosine_similarity(y[:, None], weights['pretrain.label_emb'][None], -1) / temperature
        ce = torch.nn.functional.cross_entropy(logits, labels[mask], reduction='sum')
        pen = features.pow(2).mean()
        parts.append(torch.stack([ce, pen]))
        (ce / total + penalty * mask.sum() / total * pen).backward()
        out |= {f'utterance.{b}.seed': torch.tensor([seed]), f'utterance.{b}.samples': torch.tensor([n]),
                f'utterance.{b}.mask': mask, f'utterance.{b}.labels': labels}
    parts = torch.stack(parts)
    share = torch.tensor([m.sum().item() / total for m in masks.values()])
    out |= weights | {'cross_entropy': parts[:, 0], 'mean_square': parts[:, 1],
                      'loss': (parts[:, 0].sum() / total + penalty * (share * parts[:, 1]).sum()).reshape(1)}
    out |= {'grad.' + k: v.grad for k, v in weights.items()}
    out |= {'grad.' + canonical(k): p.grad for k, p in model.named_parameters() if p.grad is not None}
    save('masked-prediction', out, temperature=temperature, feature_penalty=penalty, feature_grad_mult=multiplier)
    print('  loss', out['loss'].item(), 'cross-entropy', parts[:, 0].tolist(), 'mean square', parts[:, 1].tolist())


def dropout(reference):
    """States in training mode with the project's own masks: what the numpy reference computes for one utterance."""
    sys.path.insert(0, reference)
    import encoder
    import heads
    import names
    import rng as bits
    rates = {'feat_proj.dropout': 0.15, 'probs.dropout': 0.2, 'act.dropout': 0.05}

    def rate(site): return next((p for end, p in rates.items() if site.endswith(end)), 0.1)

    seed, update, utterance, samples = 0x123456789ABCDEF0, 7, 3, 9000
    out = {}
    for name in ('hubert-group', 'wav2vec2-layer'):
        model = load(name)
        P = names.canonical({k: v.numpy() for k, v in model.state_dict().items()})
        config = names.config_from_hf(model.config.to_dict(), MODELS[name][1])
        drop = bits.Dropout(rate, seed, update, utterance)
        hs = encoder.hidden_states(P, config, signal(301, samples), drop=drop)
        out |= {f'{name}.hidden.{l}': torch.tensor(h) for l, h in enumerate(hs)}
        if name != 'hubert-group': continue
        head = Blstm(MODELS[name][2].hidden_size, rng('head' + name + 'Blstm'))
        named = dict(head.named_parameters())
        H = {new: named[old].detach().numpy() for old, new in head.names().items()}
        drop = bits.Dropout(lambda site: 0.2, seed, update, utterance)
        out['blstm.logits'] = torch.tensor(heads.bilstm_ctc(H, hs[-1], 2, drop))
        plain = torch.tensor(heads.bilstm_ctc(H, encoder.hidden_states(P, config, signal(301, samples))[-1], 2))
        with torch.no_grad(): assert torch.allclose(plain, head(last_state(model, name, signal(301, samples))), atol=1e-9)
    save('dropout', out, seed=hex(seed), update=update, utterance=utterance, signal_seed=301, samples=samples,
         input_dropout=0.15, dropout=0.1, attention_dropout=0.2, activation_dropout=0.05, head_dropout=0.2)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--reference', required=True, help='folder of the numpy reference')
    args = parser.parse_args()
    torch.set_num_threads(1)
    schedule()
    masked_prediction()
    dropout(args.reference)
    finetune('linear-post', 'hubert-group', Linear)
    finetune('linear-pre', 'wav2vec2-layer', Linear)
    finetune('blstm', 'hubert-group', Blstm)


main()
