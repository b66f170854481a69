"""Makes tests/golden/audio_features.h: the features of one deterministic signal, in float64.

    python3 tests/golden/make/audio_features.py > tests/golden/audio_features.h      (numpy only)

The equations are those of docs/contract.md's references for DeCoAR 2.0 and HuBERT inputs (Kaldi's log-mel
and MFCC on samples in [-1, 1)), written with a plain DFT so that it shares no code with the engine.
"""
import numpy as np

N, LENGTH, SHIFT, FFT = 3759, 400, 160, 512


def signal():
    """N 16-bit samples by integer arithmetic: noise, a rising square wave, one bit of noise, silence."""
    out, state, phase = [], 1, 0
    for i in range(N):
        state = (state * 1664525 + 1013904223) & 0xffffffff
        phase = (phase + 1000 + 8 * i) & 0xffff
        part = i * 4 // N
        noise = (state >> 18) - 8192
        out.append([noise, (6000 if phase < 32768 else -6000) + noise // 64, noise // 8192, 0][part])
    return np.array(out) / 32768


def mel(hz): return 1127 * np.log(1 + hz / 700)


def log_mel(samples, bins, window):
    frames = 1 + (len(samples) - LENGTH) // SHIFT
    x = samples[np.arange(frames)[:, None] * SHIFT + np.arange(LENGTH)]
    x = x - x.mean(1, keepdims=True)
    x = x - 0.97 * np.concatenate([x[:, :1], x[:, :-1]], 1)
    k = np.arange(FFT // 2)
    dft = np.exp(-2j * np.pi * np.outer(np.arange(LENGTH), k) / FFT)
    power = np.abs((x * window) @ dft) ** 2
    edges = np.linspace(mel(20), mel(8000), bins + 2)
    left, centre, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    m = mel(k * 16000 / FFT)
    weights = np.maximum(0, np.minimum((m - left) / (centre - left), (right - m) / (right - centre)))
    return np.log(np.maximum(power @ weights.T, 2.0 ** -23))


def delta(x):
    p = np.pad(x, ((2, 2), (0, 0)), mode='edge')
    return sum(k * (p[2 + k:2 + k + len(x)] - p[2 - k:2 - k + len(x)]) for k in (1, 2)) / 10


def mfcc39(samples):
    window = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(LENGTH) / (LENGTH - 1))) ** 0.85
    n, i = np.arange(23)[:, None], np.arange(13)
    dct = np.sqrt(2 / 23) * np.cos(np.pi / 23 * (n + 0.5) * i)
    dct[:, 0] = np.sqrt(1 / 23)
    c = log_mel(samples, 23, window) @ dct * (1 + 11 * np.sin(np.pi * i / 22))
    return np.concatenate([c, delta(c), delta(delta(c))], 1)


def log_mel_80_of(samples):
    x = log_mel(samples, 80, 0.54 - 0.46 * np.cos(2 * np.pi * np.arange(LENGTH) / (LENGTH - 1)))
    return ((x - x.mean(0)) / (1e-10 + x.std(0, ddof=1)))[::2]


def table(name, x):
    print(f'// [{x.shape[0]}, {x.shape[1]}]\nconstexpr float {name}[] = {{')
    values = [f'{v:.7g}' for v in x.ravel()]
    for i in range(0, len(values), 10):
        print('    ' + ', '.join(v if '.' in v or 'e' in v else v + '.' for v in values[i:i + 10]) + ',')
    print('};\n')


def main():
    print('// Made by tests/golden/make/audio_features.py with numpy', np.__version__)
    print('// clang-format off\n#pragma once\n\nnamespace sft::golden {\n')
    table('kLogMel80', log_mel_80_of(signal()))
    table('kMfcc39', mfcc39(signal()))
    print('}  // namespace sft::golden')


if __name__ == '__main__': main()
