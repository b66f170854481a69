"""Runs the peers, and ours between them, repetition by repetition; one table, one JSON file.

    python run.py --out peers.json --cache DIR [--threads 2] [--repeats 5] [--only PREFIX]... [--peers pytorch]
        [--device cuda] [--math exact,fast16]
        --sft-bench   'build/sft-bench model {arch} --task {task} --mix {mix} --batch {batch} --head {head} --math {math}
                       --threads {threads} --json'
        --sft-merge   'build/sft-merge {base} {tuned} --alpha 0.25 -o {out} --threads {threads} --force'
        --sft-extract 'build/sft-extract {model} {audio} --states all -o {out} --threads {threads} --force'

A side that fails at a workload has a row that says why ("failed"), its message is let through, and the exit code is 1 in the
end. Each round times every side of every class once, in turn: of exact the f32 ones, of fast16 or bf16 what each peer does in
16 bits (their class is bf16). A line of the table has our ratio to that side; below, that to the best peer of each class.
PyTorch tries its variants once for each task and architecture, and the fastest is repeated. A command that is not given
leaves its side out. sft-bench prints JSON with result.as_per_s.median for a workload; the two other commands are timed as
whole processes. DIR keeps exported graphs and random models. On a busy machine set OMP_WAIT_POLICY=passive, and say so in
--note. On an AMD processor PyTorch's MKL is repaired: a preloaded one-line library answers its question for the vendor. On
cuda (bf16 unless --math says otherwise) the peers are PyTorch's: one padded batch, one by one, and sorted by length in
groups of 8.
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


class Failed(Exception):
    """A side could not run a workload, or its numbers are wrong; the others go on."""


def output_of(command, env):
    """What a command prints; Failed with its exit code and message, which is let through."""
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    if done.returncode == 0: return done.stdout
    sys.stderr.write(done.stderr)
    lines = [line for line in done.stderr.splitlines() if line.strip()] or ['no message']
    why = next((line for line in reversed(lines) if 'error' in line.lower()), lines[-1])
    raise Failed(f'exit code {done.returncode}: {why}')


class Peer:
    """A running worker: workload id -> seconds of one repetition, None where it does not take part. Started again if it died."""
    def __init__(self, script, args, env, *options):
        self.command, self.env, self.config = [sys.executable, os.path.join(HERE, script), '--threads', str(args.threads), *options], env, None
        self.start()

    def start(self): self.process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=self.env)

    def __call__(self, workload):
        if self.process.poll() is not None: self.start()
        self.process.stdin.write(workload + '\n')
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith('{'): break                      # exporters print too
        else: raise Failed(f'ended early, exit code {self.process.wait()}')
        answer = json.loads(line)
        self.config = answer.get('config')
        return answer.get('seconds')

    def free(self):
        if self.process.poll() is None: self(workloads.NOTHING)

    def close(self):
        self.process.stdin.close()
        self.process.wait()


class Process:
    """A command line timed as a whole process."""
    def __init__(self, command, env): self.command, self.env, self.config = command, env, 'whole process'

    def __call__(self, workload):
        start = time.perf_counter()
        output_of(self.command, self.env)
        return time.perf_counter() - start


class SftBench:
    """sft-bench's own figure for a workload, as seconds of one pass over its audio."""
    def __init__(self, template, args, env, math):
        self.template, self.args, self.env, self.config = template, args, env, math

    def __call__(self, workload):
        w = workloads.parse(workload)
        command = self.template.format(**w, head=w['what'], threads=self.args.threads, math=self.config)
        text = output_of(shlex.split(command), self.env)
        try: return sum(w['seconds']) / json.loads(text[text.index('{'):])['result']['as_per_s']['median']
        except (ValueError, KeyError) as error: raise Failed(f'no report: {error!r}')


def files(cache, arch):
    """The inputs of the whole-process benches, made once: {model, base, tuned (folders), audio}."""
    names = dict(model=arch, base=arch, tuned=arch + '-tuned', audio='five.wav')
    at = {k: os.path.join(cache, v) for k, v in names.items()}
    if not all(os.path.exists(path) for path in at.values()):
        subprocess.run([sys.executable, os.path.join(HERE, 'inputs.py'), cache, arch], check=True)
    return at


def whole_processes(args, env, task, arch, scratch):
    """{(class, name): function of a workload id} of the tasks timed so."""
    out, threads, at = {}, str(args.threads), files(args.cache, arch)
    at |= dict(out=os.path.join(scratch, 'out'), threads=threads)

    def whole(name, script, *rest):
        out['exact', name] = Process([sys.executable, os.path.join(HERE, script), *rest], env)

    template = args.sft_merge if task == 'merge' else args.sft_extract
    if template: out['exact', 'sft'] = Process(shlex.split(template.format(**at)), env)
    weights = [os.path.join(at[k], 'model.safetensors') for k in ('base', 'tuned')]
    if task == 'merge': whole('safetensors', 'safetensors_merge.py', *weights, at['out'] + '.safetensors')
    if task == 'start' and 'pytorch' in args.peers:
        whole('pytorch', 'pytorch.py', '--threads', threads, '--first', at['model'], at['audio'])
    if task == 'start' and 'onnxruntime' in args.peers:
        whole('onnxruntime', 'onnxruntime_peer.py', '--threads', threads, '--cache', args.cache, '--first', at['audio'])
    if task == 'start' and 'openvino' in args.peers:
        whole('openvino', 'openvino_peer.py', '--threads', threads, '--cache', args.cache, '--first', at['audio'])
    return out


def class_of(math): return 'exact' if math == 'exact' else 'bf16'


def workers(args, env):
    """{(class, name): function of a workload id} of the models' tasks, for the whole run."""
    out = {}
    for math in args.math:
        kind = class_of(math)
        if args.sft_bench: out[kind, 'sft' if kind not in [k for k, _ in out] else f'sft {math}'] = SftBench(args.sft_bench, args, env, math)
    for kind in dict.fromkeys(class_of(math) for math in args.math):
        ways = {'pytorch': [], 'pytorch one by one': ['--one-by-one']}
        if args.device == 'cuda': ways['pytorch sorted'] = ['--sorted', '8']
        variants = args.variants if kind == 'exact' or args.device == 'cuda' else args.narrow_variants
        for name, way in ways.items() if 'pytorch' in args.peers else ():
            out[kind, name] = Peer('pytorch.py', args, env, '--variants', variants, '--device', args.device, '--math', kind, *way)
        if 'onnxruntime' in args.peers and args.device == 'cpu' and kind == 'exact':
            out[kind, 'onnxruntime'] = Peer('onnxruntime_peer.py', args, env, '--cache', args.cache)
        if 'openvino' in args.peers and args.device == 'cpu':
            out[kind, 'openvino'] = Peer('openvino_peer.py', args, env, '--cache', args.cache, '--math', kind)
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
    on = f' --device {args.device} --math {",".join(args.math)} --narrow-variants {args.narrow_variants}'
    return f'run.py{on} --threads {args.threads} --repeats {args.repeats} --variants {args.variants}{given}'


def spread(values): return dict(median=statistics.median(values), min=min(values), max=max(values), n=len(values))


def measure(workload, running, args):
    """Interleaved repetitions of every side -> rows of the peers file; of one that failed a row that says why."""
    times, failed, version = {}, {}, versions()
    seconds = 0 if workload.startswith('start') else sum(workloads.parse(workload)['seconds'])

    def once(side):
        try: return running[side](workload)
        except Failed as why: failed[side] = str(why)

    for side in running:
        if once(side) is not None: times[side] = []                           # builds and warms up; not counted
    for _ in range(args.repeats):
        for side in [side for side in times if side not in failed]: times[side].append(once(side))
    rows = []
    for kind, name in [side for side in running if side in times or side in failed]:
        row = {'peer': name, 'version': version.get(name, ''), 'device': device(args), 'workload_id': workload, 'class': kind,
               'config': running[kind, name].config, 'command': command(args), 'threads': args.threads}
        rows.append(row)
        if (kind, name) in failed:
            row['failed'] = failed[kind, name]
            continue
        values, ours = times[kind, name], times.get((kind, 'sft'))
        row['seconds'] = spread(values)
        if seconds: row['as_per_s'] = spread([seconds / v for v in values])
        if ours and (kind, 'sft') not in failed and not name.startswith('sft'):
            row |= {'pairs': [[s, v] for s, v in zip(ours, values)], 'ours': next((m for m in args.math if class_of(m) == kind), kind)}
    for kind in dict.fromkeys(kind for kind, _ in times):
        rivals = [row for row in rows if row['class'] == kind and 'pairs' in row]
        if rivals: min(rivals, key=lambda row: row['seconds']['median'])['best'] = True
    return rows


def ratio(row): return statistics.median(theirs / ours for ours, theirs in row['pairs'])


def show(rows):
    """One line per side: median and spread, or why it failed; ratio of ours to it, the median over pairs; that to the best peer of a class."""
    for row in sorted(rows, key=lambda row: row['class'] != 'exact'):
        if 'failed' in row:
            print(f"{row['workload_id']:46s} {row['class']:6s} {row['peer']:20s} failed: {row['failed']}", flush=True)
            continue
        unit, v = ('as/s', row['as_per_s']) if 'as_per_s' in row else ('s', row['seconds'])
        line = f"{row['workload_id']:46s} {row['class']:6s} {row['peer']:20s} {v['median']:8.3f} {unit:4s}"
        line += f" ({v['min']:.3f} - {v['max']:.3f})"
        times = f"  ours: {ratio(row):.2f}x" if 'pairs' in row else ''
        print(f"{line}  {row['config']}{times}", flush=True)
    for row in rows:
        if row.get('best'): print(f"{row['workload_id']:46s} {row['class']:6s} best peer: {row['peer']}, ours {ratio(row):.2f}x", flush=True)


def options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', required=True)
    parser.add_argument('--cache', required=True)
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--repeats', type=int, default=5)
    parser.add_argument('--only', action='append', help='workload ids that begin with this')
    parser.add_argument('--peers', default='pytorch,onnxruntime,openvino', type=lambda s: s.split(','))
    parser.add_argument('--variants', default='eager,sdpa', help='of PyTorch: eager, sdpa, compile; the fastest counts')
    parser.add_argument('--narrow-variants', default='sdpa,autocast,compile+autocast', help='of PyTorch in 16 bits on a CPU')
    parser.add_argument('--note', default='', help='kept in the file: what else ran on the machine')
    parser.add_argument('--device', default='cpu', choices=('cpu', 'cuda'))
    parser.add_argument('--math', type=lambda s: s.split(','), help='exact, fast16, bf16, several; default: exact, bf16 on cuda')
    for name in ('--sft-bench', '--sft-merge', '--sft-extract'): parser.add_argument(name)
    args = parser.parse_args()
    args.math = args.math or ['bf16' if args.device == 'cuda' else 'exact']
    if not set(args.math) <= {'exact', 'fast16', 'bf16'}: parser.error('--math: exact, fast16 or bf16')
    return args


def main():
    args = options()
    os.makedirs(args.cache, exist_ok=True)
    env, repaired = environment(args)
    rows = []
    ids = workloads.CUDA_IDS if args.device == 'cuda' else workloads.IDS
    chosen = [w for w in ids if not args.only or w.startswith(tuple(args.only))]
    models = workers(args, env)
    with tempfile.TemporaryDirectory(dir=args.cache) as scratch:
        for workload in chosen:
            task, arch = workload.split('/')[:2]
            fresh = measure(workload, whole_processes(args, env, task, arch, scratch) if task in ('merge', 'start') else models, args)
            date = time.strftime('%Y-%m-%dT%H:%MZ', time.gmtime())
            for row in fresh: row.update(date=date, load=os.getloadavg()[0], mkl_repaired=repaired, note=args.note)
            show(fresh)
            rows += fresh
            for side in models.values():
                if isinstance(side, Peer): side.free()
            with open(args.out, 'w') as f: json.dump(rows, f, indent=1)
    for side in models.values():
        if isinstance(side, Peer): side.close()
    failed = sum('failed' in row for row in rows)
    if failed: sys.exit(f'{failed} of {len(rows)} rows failed: see the table')


if __name__ == '__main__': main()
