#!/usr/bin/env python3
"""What can be known of every kernel without a GPU, as a table for docs/gpu.md.

    tests/gpu_check/resources.py [--tests build/tests] [--cuobjdump FILE] [engine/ops/attention.cu ...]

Registers, stack and spills from ptxas. With --tests, threads and shared memory of the largest block that the emulated
specs launch, and how many such blocks a multiprocessor holds. With --cuobjdump, how often tensor cores (HMMA), loads
for them (LDSM), copies into shared memory that nobody waits for (LDGSTS) and local memory (LDL, STL) stand in the code.
Fails if any kernel spills.
"""
import argparse
import collections
import glob
import os
import re
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

# Of a multiprocessor (CUDA C++ Programming Guide, technical specifications per compute capability).
Limits = collections.namedtuple('Limits', 'warps blocks shared')
LIMITS = {'90a': Limits(64, 32, 228 << 10), '80': Limits(64, 32, 164 << 10), '86': Limits(48, 16, 100 << 10),
          '89': Limits(48, 24, 100 << 10)}
REGISTERS = 64 << 10
INSTRUCTIONS = 'HMMA', 'LDSM', 'LDGSTS', 'LDL', 'STL'


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


def instructions_of(cuobjdump, cubin):
    """-> {mangled name: Counter of INSTRUCTIONS}"""
    sass = subprocess.run([cuobjdump, '-sass', cubin], capture_output=True, text=True, check=True).stdout
    counts, name = {}, None
    for line in sass.splitlines():
        if m := re.search(r'Function : (\S+)', line): counts[name := m[1]] = collections.Counter()
        if m := re.search(r'\*/\s+(?:@!?U?P\w+ )?([A-Z0-9]+)', line): counts[name][m[1]] += m[1] in INSTRUCTIONS
    return counts


def kernels_of(nvcc, cuobjdump, sm, source):
    """-> {name: (registers, stack, spilled bytes, Counter of INSTRUCTIONS)}"""
    with tempfile.TemporaryDirectory() as folder:
        run = subprocess.run([nvcc, f'-arch=sm_{sm}', '-std=c++20', '-O3', '-lineinfo', '-DSFT_CUDA_NATIVE', '-I', ROOT,
                              '-Xptxas', '-v', '-cubin', source, '-o', f'{folder}/x.cubin'],
                             capture_output=True, text=True)
        if run.returncode: sys.exit(f'{source}: {run.stderr}')
        counts = instructions_of(cuobjdump, f'{folder}/x.cubin') if cuobjdump else {}
    found, name, frame = {}, None, (0, 0)
    for line in run.stderr.splitlines():
        if m := re.search(r"Compiling entry function '(\S+)'", line): name = m[1]
        if m := re.search(r'(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads', line):
            frame = int(m[1]), int(m[2]) + int(m[3])
        if (m := re.search(r'Used (\d+) registers', line)) and name:
            found[name], name = (int(m[1]), *frame, counts.get(name, {})), None
    return dict(zip(demangled(found), found.values()))


def launched(tests):
    """-> {name: (threads, shared bytes)} of the largest block in the emulated specs"""
    symbols = {}
    for line in subprocess.run(['nm', tests], capture_output=True, text=True, check=True).stdout.splitlines():
        address, _, name = line.rpartition(' ')
        if address[:1] not in ('', ' '): symbols[int(address.split()[0], 16)] = name
    start = next(address for address, name in symbols.items() if name == 'main')
    with tempfile.TemporaryDirectory() as folder:
        run = subprocess.run([tests, '-tc=*cuda*,adam*,grad_norm*,right_rows*', f'--launches={folder}/launches'],
                             capture_output=True)
        if run.returncode: sys.exit(f'{tests}: {run.stdout.decode()}')
        lines = [[int(word) for word in line.split()] for line in open(f'{folder}/launches')]
    names = demangled([symbols[start + distance] for distance, _, _ in lines])
    return {name: (threads, shared) for name, (_, threads, shared) in zip(names, lines)}


def blocks_at_once(sm, registers, threads, shared):
    limits, warps = LIMITS[sm], -(-threads // 32)
    # Registers are given to a warp in pieces of 256; a block takes 1 KiB of shared memory beside its own.
    of_registers = REGISTERS // (-(-registers * 32 // 256) * 256) // warps
    return min(limits.blocks, limits.warps // warps, of_registers, limits.shared // (shared + 1024))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--nvcc', default='nvcc')
    parser.add_argument('--sm', default='90a,80')
    parser.add_argument('--tests')
    parser.add_argument('--cuobjdump')
    parser.add_argument('sources', nargs='*')
    args = parser.parse_args()
    architectures = args.sm.split(',')
    sources = args.sources or sorted(glob.glob(f'{ROOT}/engine/**/*.cu', recursive=True))
    blocks = launched(args.tests) if args.tests else {}
    columns = ['file', 'kernel', *(f'registers sm_{sm}' for sm in architectures), 'stack', 'spills', 'threads',
               'shared bytes', *(f'blocks at once sm_{sm}' for sm in architectures), *INSTRUCTIONS]
    print('| ' + ' | '.join(columns) + ' |\n' + '|---' * len(columns) + '|')
    spilled = 0
    for source in sources:
        per_sm = [kernels_of(args.nvcc, args.cuobjdump, sm, source) for sm in architectures]
        for kernel in sorted(per_sm[0]):
            rows = [found[kernel] for found in per_sm]
            spilled += sum(row[2] for row in rows)
            threads, shared = blocks.get(kernel, ('', ''))
            held = [blocks_at_once(sm, row[0], threads, shared) if threads else '' for sm, row in zip(architectures, rows)]
            cells = [os.path.basename(source), f'`{kernel}`', *(row[0] for row in rows), max(row[1] for row in rows),
                     max(row[2] for row in rows), threads, shared, *held, *(rows[0][3].get(i, '') or '' for i in INSTRUCTIONS)]
            print('| ' + ' | '.join(str(cell) for cell in cells) + ' |', flush=True)
    if spilled: sys.exit(f'{spilled} bytes are spilled')


main()
