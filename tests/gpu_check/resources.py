#!/usr/bin/env python3
"""Registers, stack and spills of every kernel, as a table for docs/gpu.md; no GPU needed.

    tests/gpu_check/resources.py [--nvcc nvcc] [--sm 90a,80] [engine/ops/attention.cu ...]

Fails if any kernel spills.
"""
import argparse
import glob
import os
import re
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def demangled(names):
    out = subprocess.run(['c++filt'], input='\n'.join(names), capture_output=True, text=True, check=True).stdout
    short = []
    for name in out.splitlines():
        name = re.sub(r'\(anonymous namespace\)::|sft::cuda::|sft::|void ', '', name)
        depth, end = 0, len(name)
        for i, c in enumerate(name):  # the parameter list
            depth += (c == '<') - (c == '>')
            if c == '(' and depth == 0:
                end = i
                break
        short.append(re.sub(r'\((?:int|bool)\)', '', name[:end]))
    return short


def kernels_of(nvcc, sm, source):
    """-> {name: (registers, stack, spilled bytes)}"""
    with tempfile.TemporaryDirectory() as folder:
        run = subprocess.run([nvcc, f'-arch=sm_{sm}', '-std=c++20', '-O3', '-lineinfo', '-DSFT_CUDA_NATIVE', '-I', ROOT,
                              '-Xptxas', '-v', '-cubin', source, '-o', f'{folder}/x.cubin'],
                             capture_output=True, text=True)
    if run.returncode: sys.exit(f'{source}: {run.stderr}')
    found, name, frame = {}, None, (0, 0)
    for line in run.stderr.splitlines():
        if m := re.search(r"Compiling entry function '(\S+)'", line): name = m[1]
        if m := re.search(r'(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads', line):
            frame = int(m[1]), int(m[2]) + int(m[3])
        if (m := re.search(r'Used (\d+) registers', line)) and name: found[name], name = (int(m[1]), *frame), None
    return dict(zip(demangled(found), found.values()))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--nvcc', default='nvcc')
    parser.add_argument('--sm', default='90a,80')
    parser.add_argument('sources', nargs='*')
    args = parser.parse_args()
    architectures = args.sm.split(',')
    sources = args.sources or sorted(glob.glob(f'{ROOT}/engine/**/*.cu', recursive=True))
    print('| file | kernel | ' + ' | '.join(f'registers sm_{sm}' for sm in architectures) + ' | stack | spills |')
    print('|---|---|' + '---|' * (len(architectures) + 2))
    spilled = 0
    for source in sources:
        per_sm = [kernels_of(args.nvcc, sm, source) for sm in architectures]
        for kernel in sorted(per_sm[0]):
            rows = [found[kernel] for found in per_sm]
            spilled += sum(row[2] for row in rows)
            registers = ' | '.join(str(row[0]) for row in rows)
            print(f'| {os.path.basename(source)} | `{kernel}` | {registers} | {max(row[1] for row in rows)} | '
                  f'{max(row[2] for row in rows)} |')
    if spilled: sys.exit(f'{spilled} bytes are spilled')


main()
