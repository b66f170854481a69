"""base + alpha (tuned - base), as a script with the safetensors library does it.

    python safetensors_merge.py BASE TUNED OUT [ALPHA]
"""
import sys

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file


def main(base, tuned, out, alpha='0.25'):
    alpha, merged = np.float32(alpha), {}
    with safe_open(base, 'np') as a, safe_open(tuned, 'np') as b:
        for name in a.keys():
            x = a.get_tensor(name)
            merged[name] = x + alpha * (b.get_tensor(name) - x)
    save_file(merged, out)


if __name__ == '__main__': main(*sys.argv[1:])
