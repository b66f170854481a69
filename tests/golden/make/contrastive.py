"""Makes contrastive.safetensors: wav2vec 2.0's loss and gradients through Wav2Vec2ForPreTraining in float64.

    python contrastive.py --reference DIR       after models.py; DIR holds the numpy reference (rng.py)

Masks and negatives are in the file. The Gumbel noise is the project's own (contract.md section 6: update, utterance and
masked frame name it), put in the place of PyTorch's. What transformers does not have is added: the feature penalty and the
factor on the gradient that enters the convolutions.
"""
import argparse
import sys

import torch
from transformers import Wav2Vec2ForPreTraining

from tiny import Scale, canonical, folder, prepare, rng, save, signal

NAME, SAMPLES, NEGATIVES, SEED, UPDATE = 'wav2vec2-group', 12000, 7, 0x123456789ABCDEF0, 7
START, DECAY, FLOOR, DIVERSITY, PENALTY, MULTIPLIER = 2.0, 0.9, 0.5, 0.1, 10.0, 0.1
SPANS = {301: [2, 15, 27], 302: [0, 9, 11]}                                     # seed: starts of spans of 5
OFF = dict.fromkeys(['hidden_dropout', 'attention_dropout', 'activation_dropout', 'feat_proj_dropout', 'final_dropout',
                     'feat_quantizer_dropout', 'layerdrop'], 0.0)
HEADS = {'project_hid.': 'pretrain.proj.', 'project_q.': 'pretrain.vq_out.', 'quantizer.weight_proj.': 'pretrain.vq.proj.',
         'quantizer.codevectors': 'pretrain.vq.codebook'}


def gumbel(bits, rows, codes, utterance):
    """-> [rows, codes]: the noise of one utterance."""
    calls = rows * -(-codes // 4)
    words = bits.philox([range(calls), [utterance] * calls, [UPDATE] * calls, [bits.fnv1a('gumbel')] * calls],
                        (SEED & 0xFFFFFFFF, SEED >> 32))                        # [4, calls]
    words = torch.tensor(words.T.astype('int64')).reshape(rows, -1)[:, :codes]
    return -torch.log(-torch.log(((words >> 9).double() + 0.5) / 2 ** 23))


def our_name(name):
    for theirs, ours in HEADS.items():
        if name.startswith(theirs): return name.replace(theirs, ours)
    return canonical(name.removeprefix('wav2vec2.'))


def main(reference):
    sys.path.insert(0, reference)
    import rng as bits
    model = Wav2Vec2ForPreTraining.from_pretrained(folder(NAME), attn_implementation='eager', **OFF).double().train()
    config, frames = model.config, (SAMPLES - 80) // 320
    groups, codes = config.num_codevector_groups, config.num_codevector_groups * config.num_codevectors_per_group
    mask = torch.tensor([[any(s <= t < s + 5 for s in starts) for t in range(frames)] for starts in SPANS.values()])
    noise = torch.zeros(2, frames, codes, dtype=torch.float64)
    for b in range(2): noise[b, mask[b]] = gumbel(bits, int(mask[b].sum()), codes, b)
    r, chosen = rng('contrastive'), []
    negatives = torch.zeros(2, frames, NEGATIVES, dtype=torch.long)             # places in the flattened batch
    for b in range(2):
        own = mask[b].nonzero()[:, 0]
        picks = torch.tensor(r.integers(0, len(own) - 1, (len(own), NEGATIVES)))
        picks += picks >= torch.arange(len(own))[:, None]
        chosen.append(picks)
        negatives[b, own] = own[picks] + b * frames

    def gumbel_softmax(logits, tau, hard):
        assert hard
        soft = torch.softmax((logits + noise.reshape(logits.shape)) / tau, -1)
        return torch.nn.functional.one_hot(soft.argmax(-1), soft.shape[-1]).double() - soft.detach() + soft

    torch.nn.functional.gumbel_softmax = gumbel_softmax
    torch.Tensor.float = lambda x: x                                            # the quantiser and the loss in float64 too
    model.quantizer.temperature = max(START * DECAY ** UPDATE, FLOOR)
    kept = []
    model.wav2vec2.feature_extractor.register_forward_hook(
        lambda module, inputs, out: kept.append(Scale.apply(out, MULTIPLIER)) or kept[-1])
    waves = torch.cat([prepare(NAME, signal(seed, SAMPLES)) for seed in SPANS])
    out = model(waves, mask_time_indices=mask, sampled_negative_indices=negatives)
    n = mask.sum()
    squares = kept[0].pow(2).mean((1, 2))
    penalty = (PENALTY * mask.sum(1) / n * squares).sum()
    loss = out.loss / n + penalty
    loss.backward()
    values = {f'utterance.{b}.{k}': v for b, seed in enumerate(SPANS) for k, v in
              dict(seed=torch.tensor([seed]), samples=torch.tensor([SAMPLES]), mask=mask[b], negatives=chosen[b]).items()}
    values |= {'loss': loss.reshape(1), 'contrastive': (out.contrastive_loss / n).reshape(1), 'mean_square': squares,
               'diversity': (out.diversity_loss / n).reshape(1), 'perplexity': out.codevector_perplexity.reshape(1),
               'predictions': out.projected_states[mask], 'targets': out.projected_quantized_states[mask]}
    gradients = {our_name(k): p.grad for k, p in model.named_parameters() if p.grad is not None}
    values |= {'grad.' + k: g[0] if k == 'pretrain.vq.codebook' else g for k, g in gradients.items()}
    save('contrastive', values, seed=SEED, update=UPDATE, gumbel=(START, DECAY, FLOOR))
    rows = out.projected_quantized_states.reshape(2 * frames, -1)
    same = (rows[negatives[mask]] == rows.reshape(2, frames, -1)[mask][:, None]).all(-1).sum().item()
    print('  ', {k: v.tolist() for k, v in values.items() if v.numel() <= 2}, f'{same} negatives are the target')


if __name__ == '__main__':
    parser = argparse.ArgumentParser()
    parser.add_argument('--reference', required=True)
    main(parser.parse_args().reference)
