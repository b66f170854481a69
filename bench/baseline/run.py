"""Runs the peers, and ours between them, repetition by repetition; one table, one JSON file.

    python run.py --out peers.json --cache DIR [--threads 2] [--repeats 5] [--only PREFIX]... [--peers pytorch]
        [--device cuda] [--math exact|bf16]
        --sft-bench   'build/sft-bench model {arch} --task {task} --mix {mix} --batch {batch} --head {head}
                       --threads {threads} --json'
        --sft-merge   'build/sft-merge {base} {tuned} --alpha 0.25 -o {out} --threads {threads} --force'
        --sft-extract 'build/sft-extract {model} {audio} --states all -o {out} --threads {threads} --force'

Each round times every side once, in turn. A command that is not given leaves its side out. sft-bench prints JSON
with result.as_per_s.median for a workload; the two other commands are timed as whole processes. DIR keeps exported
graphs and random models. On a busy machine set OMP_WAIT_POLICY=passive, and say so in --note. On an AMD processor
PyTorch's MKL is repaired: a preloaded one-line library answers its question for the vendor. On cuda (bf16 unless --math
says otherwise) the peers are PyTorch's: one padded batch, one by one, and sorted by length in groups of 8.
"""
import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time

import workloads

HERE = os.path.dirname(os.path.abspath(__file__))


def cpu():
    """(name, vendor) of this machine's processor."""
    first = open('/proc/cpuinfo').read().split('\n\n')[0]
    fields = dict(line.split(':', 1) for line in first.splitlines() if ':' in line)
    fields = {k.strip(): v.strip() for k, v in fields.items()}
    return fields.get('model name', platform.machine()), fields.get('vendor_id', '')


def device(args):
    """The processor's name, or the GPU's."""
    if args.device == 'cpu': return cpu()[0]
    said = subprocess.run(['nvidia-smi', '--query-gpu=name', '--format=csv,noheader'], capture_output=True, text=True, check=True)
    return said.stdout.splitlines()[0].strip()


def environment(args):
    """Thread counts for every child; on AMD the MKL repair."""
    env = dict(os.environ, OMP_NUM_THREADS=str(args.threads), MKL_NUM_THREADS=str(args.threads), HF_HUB_OFFLINE='1')
    if cpu()[1] != 'AuthenticAMD': return env, False
    library = os.path.join(args.cache, 'mkl_vendor.so')
    source = 'int mkl_serv_intel_cpu_true(void) { return 1; }\n'
    subprocess.run(['cc', '-shared', '-fPIC', '-x', 'c', '-', '-o', library], input=source, text=True, check=True)
    return env | {'LD_PRELOAD': library}, True


class Peer:
    """A running worker: workload id -> seconds of one repetition, None where it does not take part."""
    def __init__(self, script, args, env, *options):
        command = [sys.executable, os.path.join(HERE, script), '--threads', str(args.threads), *options]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
        self.config = None

    def __call__(self, workload):
        self.process.stdin.write(workload + '\n')
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith('{'): break                      # exporters print too
        else: raise RuntimeError('a peer ended early')
        answer = json.loads(line)
        self.config = answer.get('config')
        return answer.get('seconds')

    def close(self):
        self.process.stdin.close()
        self.process.wait()


class Process:
    """A command line timed as a whole process."""
    def __init__(self, command, env): self.command, self.env, self.config = command, env, 'whole process'

    def __call__(self, workload):
        start = time.perf_counter()
        subprocess.run(self.command, env=self.env, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return time.perf_counter() - start


class SftBench:
    """sft-bench's own figure for a workload, as seconds of one pass over its audio."""
    def __init__(self, template, args, env):
        self.template, self.args, self.env, self.config = template, args, env, args.math

    def __call__(self, workload):
        w = workloads.parse(workload)
        command = self.template.format(**w, head=w['what'], threads=self.args.threads)
        text = subprocess.run(shlex.split(command), env=self.env, check=True, capture_output=True, text=True).stdout
        report = json.loads(text[text.index('{'):])
        return sum(w['seconds']) / report['result']['as_per_s']['median']


def files(cache):
    """The inputs of the whole-process benches, made once: {model folder, base, tuned, audio}."""
    names = dict(model='hubert-base', base='hubert-base/model.safetensors', tuned='tuned.safetensors', audio='five.wav')
    at = {k: os.path.join(cache, v) for k, v in names.items()}
    if not os.path.exists(at['audio']):
        subprocess.run([sys.executable, os.path.join(HERE, 'inputs.py'), cache], check=True)
    return at


def sides(args, env, task, scratch):
    """{name: function of a workload id} for the workloads of one task."""
    out, threads = {}, str(args.threads)
    if task in ('merge', 'start'):
        at = files(args.cache) | dict(out=os.path.join(scratch, 'out'), threads=threads)
        template = args.sft_merge if task == 'merge' else args.sft_extract
        if template: out['sft'] = Process(shlex.split(template.format(**at)), env)

    def whole(name, script, *rest): out[name] = Process([sys.executable, os.path.join(HERE, script), *rest], env)

    if task == 'merge': whole('safetensors', 'safetensors_merge.py', at['base'], at['tuned'], at['out'] + '.safetensors')
    if task == 'start' and 'pytorch' in args.peers:
        whole('pytorch', 'pytorch.py', '--threads', threads, '--first', at['model'], at['audio'])
    if task == 'start' and 'onnxruntime' in args.peers:
        whole('onnxruntime', 'onnxruntime_peer.py', '--threads', threads, '--cache', args.cache, '--first', at['audio'])
    if task == 'start' and 'openvino' in args.peers:
        whole('openvino', 'openvino_peer.py', '--threads', threads, '--cache', args.cache, '--first', at['audio'])
    if task in ('merge', 'start'): return out
    if args.sft_bench: out['sft'] = SftBench(args.sft_bench, args, env)
    ways = {'pytorch': [], 'pytorch one by one': ['--one-by-one']}
    if args.device == 'cuda': ways['pytorch sorted'] = ['--sorted', '8']
    for name, way in ways.items() if 'pytorch' in args.peers else ():
        out[name] = Peer('pytorch.py', args, env, '--variants', args.variants, '--device', args.device, '--math', args.math, *way)
    if 'onnxruntime' in args.peers and args.device == 'cpu' and args.math == 'exact':
        out['onnxruntime'] = Peer('onnxruntime_peer.py', args, env, '--cache', args.cache)
    if 'openvino' in args.peers and args.device == 'cpu':
        out['openvino'] = Peer('openvino_peer.py', args, env, '--cache', args.cache, '--math', args.math)
    return out


def versions():
    import importlib.metadata
    packages = dict.fromkeys(('pytorch', 'pytorch one by one', 'pytorch sorted'), 'torch')
    packages |= {p: p for p in ('onnxruntime', 'openvino', 'safetensors')}
    found = {d.metadata['Name'] for d in importlib.metadata.distributions()}
    return {name: f'{p} {importlib.metadata.version(p)}' for name, p in packages.items() if p in found}


def command(args):
    """The options that matter, without this machine's paths."""
    given = {'--sft-bench': args.sft_bench, '--sft-merge': args.sft_merge, '--sft-extract': args.sft_extract}
    given = ''.join(f' {k} {shlex.quote(v)}' for k, v in given.items() if v)
    on = f' --device cuda --math {args.math}' if args.device == 'cuda' else ''
    return f'run.py{on} --threads {args.threads} --repeats {args.repeats} --variants {args.variants}{given}'


def spread(values): return dict(median=statistics.median(values), min=min(values), max=max(values), n=len(values))


def measure(workload, running, args):
    """Interleaved repetitions of every side -> rows of the peers file."""
    times, version = {}, versions()
    seconds = 0 if workload.startswith('start') else sum(workloads.parse(workload)['seconds'])
    for side, run in running.items():
        if run(workload) is not None: times[side] = []                        # builds and warms up; not counted
    for _ in range(args.repeats):
        for side in times: times[side].append(running[side](workload))
    rows = []
    for side, values in times.items():
        row = {'peer': side, 'version': version.get(side, ''), 'device': device(args), 'workload_id': workload,
               'class': args.math, 'config': running[side].config, 'command': command(args), 'threads': args.threads,
               'seconds': spread(values)}
        if seconds: row['as_per_s'] = spread([seconds / v for v in values])
        if 'sft' in times and side != 'sft': row['pairs'] = [[s, v] for s, v in zip(times['sft'], values)]
        rows.append(row)
    return rows


def show(rows):
    """One line per side: median and spread; ratio of ours to it, the median over pairs."""
    for row in rows:
        unit, v = ('as/s', row['as_per_s']) if 'as_per_s' in row else ('s', row['seconds'])
        line = f"{row['workload_id']:48s} {row['peer']:20s} {v['median']:8.3f} {unit:4s}"
        line += f" ({v['min']:.3f} - {v['max']:.3f})"
        ratio = f"  ours: {statistics.median(b / a for a, b in row['pairs']):.2f}x" if 'pairs' in row else ''
        print(f"{line}  {row['config']}{ratio}", flush=True)


def options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', required=True)
    parser.add_argument('--cache', required=True)
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--repeats', type=int, default=5)
    parser.add_argument('--only', action='append', help='workload ids that begin with this')
    parser.add_argument('--peers', default='pytorch,onnxruntime,openvino', type=lambda s: s.split(','))
    parser.add_argument('--variants', default='eager,sdpa', help='of PyTorch: eager, sdpa, compile; the fastest counts')
    parser.add_argument('--note', default='', help='kept in the file: what else ran on the machine')
    parser.add_argument('--device', default='cpu', choices=('cpu', 'cuda'))
    parser.add_argument('--math', choices=('exact', 'bf16'), help='default: exact, bf16 on cuda')
    for name in ('--sft-bench', '--sft-merge', '--sft-extract'): parser.add_argument(name)
    args = parser.parse_args()
    args.math = args.math or ('bf16' if args.device == 'cuda' else 'exact')
    return args


def main():
    args = options()
    os.makedirs(args.cache, exist_ok=True)
    env, repaired = environment(args)
    rows = []
    ids = workloads.CUDA_IDS if args.device == 'cuda' else workloads.IDS
    chosen = [w for w in ids if not args.only or w.startswith(tuple(args.only))]
    with tempfile.TemporaryDirectory(dir=args.cache) as scratch:
        for workload in chosen:
            running = sides(args, env, workloads.parse(workload)['task'], scratch)
            fresh = measure(workload, running, args)
            date = time.strftime('%Y-%m-%dT%H:%MZ', time.gmtime())
            for row in fresh: row.update(date=date, load=os.getloadavg()[0], mkl_repaired=repaired, note=args.note)
            show(fresh)
            rows += fresh
            for side in running.values():
                if isinstance(side, Peer): side.close()
            with open(args.out, 'w') as f: json.dump(rows, f, indent=1)


if __name__ == '__main__': main()
