"""Makes tests/golden/models/NAME-ctc/ (tiny ...ForCTC folders with their vocabularies) and ctc-heads.{safetensors,json}.

    python ctc_heads.py                                  torch 2.15.0, transformers 5.23.0; seconds
    python ctc_heads.py --check FOLDER [--transcribe build/sft-transcribe]
        loads a folder that sft-convert wrote with AutoModelForCTC and Wav2Vec2Processor, and compares its text of
        `signal(5, 21920)` with what sft-transcribe says of the same folder

hubert-ctc    as facebook/hubert-large-ls960-ft lies on the hub: vocab.json with <pad> = 0, tokenizer_config.json,
              special_tokens_map.json, preprocessor_config.json, old names of weight norm
wav2vec2-ctc  as fine-tuned by the scripts of transformers 4: letters in lower case in the order of a sorted set, [UNK] and
              [PAD] at the end, <s> and </s> in added_tokens.json beyond the outputs
wavlm-ctc     written by transformers 5.23.0 itself: the feature extractor inside processor_config.json, do_lower_case,
              the blank in the middle, the word delimiter a symbol of its own
Biases of the head are drawn so that special tokens are never the largest: transformers prints them, sft leaves them out.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile

import soundfile
import torch
from safetensors.torch import save_file
from transformers import (AutoModelForCTC, HubertConfig, HubertForCTC, Wav2Vec2Config, Wav2Vec2CTCTokenizer,
                          Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC, Wav2Vec2Processor, WavLMConfig, WavLMForCTC)

from tiny import BASE, GOLDEN, GROUP, LAYER, fill, folder, rng, save, signal

SIZES = dict(hidden_size=32, num_hidden_layers=1, intermediate_size=32, num_conv_pos_embeddings=8)
SMALL = {k: v for k, v in BASE.items() if k not in ('vocab_size', 'conv_dim')} | dict(conv_dim=[8] * 7) | SIZES
LETTERS = 'ETAONIHSRDLUMWCFGYPBVK\'XJQZ'
SEED, SAMPLES = 5, 21920


def facebook_vocabulary(): return ['<pad>', '<s>', '</s>', '<unk>', '|', *LETTERS]


def blog_vocabulary(): return ['|', *sorted(LETTERS.lower()), '[UNK]', '[PAD]']


def middle_vocabulary(): return ['A', 'B', '▁', 'C', '<blank>', 'D', '<unk>', 'E', "'"]


def write_json(path, value):
    with open(path, 'w', encoding='utf-8') as f: f.write(json.dumps(value, ensure_ascii=False) + '\n')


def write_weights(path, model, name, specials, frequent):
    r = rng(name)
    weights = {k: torch.tensor(fill(k, v, r), dtype=torch.float32) for k, v in model.state_dict().items()}
    weights['lm_head.weight'] *= 3
    for i in specials: weights['lm_head.bias'][i] = -50
    for i, more in frequent.items(): weights['lm_head.bias'][i] += more      # the blank and the word delimiter
    if name == 'hubert-ctc':
        old = {'parametrizations.weight.original0': 'weight_g', 'parametrizations.weight.original1': 'weight_v'}
        for new, short in old.items(): weights = {k.replace(new, short): v for k, v in weights.items()}
    model.config.architectures = [type(model).__name__]
    model.config.dtype = 'float32'
    model.config.save_pretrained(path)
    save_file(weights, f'{path}/model.safetensors', metadata={'format': 'pt'})


def vocabulary_file(path, tokens): write_json(f'{path}/vocab.json', {t: i for i, t in enumerate(tokens)})


def preprocessor(path, normalize):
    write_json(f'{path}/preprocessor_config.json',
               {'do_normalize': normalize, 'feature_size': 1, 'padding_side': 'right', 'padding_value': 0.0,
                'return_attention_mask': normalize, 'sampling_rate': 16000})


def hubert():
    path, tokens = folder('hubert-ctc'), facebook_vocabulary()
    os.makedirs(path, exist_ok=True)
    config = HubertConfig(**SMALL, **LAYER, vocab_size=len(tokens), pad_token_id=0, bos_token_id=1, eos_token_id=2)
    write_weights(path, HubertForCTC(config), 'hubert-ctc', [1, 2, 3], {0: 4, 4: 4})
    vocabulary_file(path, tokens)
    special = {'bos_token': '<s>', 'eos_token': '</s>', 'unk_token': '<unk>', 'pad_token': '<pad>'}
    write_json(f'{path}/special_tokens_map.json', special)
    write_json(f'{path}/tokenizer_config.json', special | {'do_lower_case': False, 'word_delimiter_token': '|'})
    preprocessor(path, True)


def wav2vec2():
    path, tokens = folder('wav2vec2-ctc'), blog_vocabulary()
    os.makedirs(path, exist_ok=True)
    config = Wav2Vec2Config(**SMALL, **GROUP, vocab_size=len(tokens), pad_token_id=len(tokens) - 1)
    write_weights(path, Wav2Vec2ForCTC(config), 'wav2vec2-ctc', [tokens.index('[UNK]')], {0: 7, len(tokens) - 1: 7})
    vocabulary_file(path, tokens)
    write_json(f'{path}/added_tokens.json', {'<s>': len(tokens), '</s>': len(tokens) + 1})
    write_json(f'{path}/special_tokens_map.json', {'unk_token': '[UNK]', 'pad_token': '[PAD]', 'bos_token': '<s>',
                                                   'eos_token': '</s>'})
    write_json(f'{path}/tokenizer_config.json', {'unk_token': '[UNK]', 'pad_token': '[PAD]', 'bos_token': '<s>',
                                                 'eos_token': '</s>', 'do_lower_case': False,
                                                 'tokenizer_class': 'Wav2Vec2CTCTokenizer'})
    preprocessor(path, False)


def wavlm():
    path, tokens = folder('wavlm-ctc'), middle_vocabulary()
    os.makedirs(path, exist_ok=True)
    config = WavLMConfig(**SMALL, **GROUP, vocab_size=len(tokens), pad_token_id=tokens.index('<blank>'))
    write_weights(path, WavLMForCTC(config), 'wavlm-ctc', [tokens.index('<unk>')], {2: 3, 4: 3})
    vocabulary_file(path, tokens)
    tokenizer = Wav2Vec2CTCTokenizer(f'{path}/vocab.json', pad_token='<blank>', unk_token='<unk>', bos_token=None,
                                     eos_token=None, word_delimiter_token='▁', do_lower_case=True)
    extractor = Wav2Vec2FeatureExtractor(do_normalize=True)
    processor = Wav2Vec2Processor(feature_extractor=extractor, tokenizer=tokenizer)
    processor.save_pretrained(path)
    return processor               # transformers 5.23.0 reads it back with | as the delimiter, whatever its file says


def recognise(path, dtype, processor=None):
    """-> logits [T, V], ids of the largest, text as the processor makes it."""
    model = AutoModelForCTC.from_pretrained(path, attn_implementation='eager').to(dtype).eval()
    processor = processor or Wav2Vec2Processor.from_pretrained(path)
    samples = signal(SEED, SAMPLES)
    if processor.feature_extractor.do_normalize: samples = (samples - samples.mean()) / (samples.var() + 1e-7) ** 0.5
    with torch.no_grad(): logits = model(torch.tensor(samples, dtype=dtype)[None]).logits[0]
    ids = logits.argmax(-1)
    return logits, ids, processor.decode(ids)


def make():
    tensors, texts = {}, {}
    for name, write in {'hubert-ctc': hubert, 'wav2vec2-ctc': wav2vec2, 'wavlm-ctc': wavlm}.items():
        logits, ids, text = recognise(folder(name), torch.float64, write())
        assert '<' not in text and '[' not in text and ' ' in text, text
        top = logits.topk(2).values
        print(f'{name}: {text!r}, least margin {(top[:, 0] - top[:, 1]).min():.2g}')
        tensors |= {f'{name}.logits': logits, f'{name}.ids': ids}
        texts[name] = text
    save('ctc-heads', tensors)
    write_json(os.path.join(GOLDEN, 'ctc-heads.json'), texts)
    parts = ('vocab.json', 'tokenizer_config.json', 'special_tokens_map.json', 'added_tokens.json')
    with open(os.path.join(GOLDEN, 'vocabulary.txt'), 'w') as f:          # a line each: what the fuzzer starts from
        f.writelines(open(os.path.join(folder('wav2vec2-ctc'), part)).read() for part in parts)


def check(path, transcribe):
    logits, _, text = recognise(path, torch.float32)
    print(f'{path}: {type(AutoModelForCTC.from_pretrained(path)).__name__}, logits {list(logits.shape)}, {text!r}')
    if not transcribe: return True
    with tempfile.TemporaryDirectory() as out:
        wav = os.path.join(out, 'a.wav')
        soundfile.write(wav, signal(SEED, SAMPLES), 16000, subtype='PCM_16')
        ours = subprocess.run([transcribe, path, wav], check=True, capture_output=True, text=True).stdout
    same = ours.rstrip('\n').split('\t')[1] == text
    print('  sft-transcribe: ' + ('the same text' if same else repr(ours)))
    return same


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--check')
    parser.add_argument('--transcribe')
    args = parser.parse_args()
    torch.set_num_threads(1)
    if not args.check: return make()
    sys.exit(0 if check(args.check, args.transcribe) else 1)


if __name__ == '__main__': main()
