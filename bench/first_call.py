"""How long a new process takes until its first answer, beside `import torch` and ONNX Runtime.

    python bench/first_call.py [--rounds 7] [--net cifar10-reactnet18-w50] [--out runs/first_call.json]

Each row is a process of its own, from its start to the first answer for one picture, and they take
turns: this package with nothing kept (it compiles, and keeps the code), the same with what was kept,
the runtime that `make runtime` packs, `import torch` alone, and ONNX Runtime on the same network in
float32. `wall` are seconds of the clock and `cpu` seconds of work, of which a loaded machine changes
less; `call` is the second call. Medians count. Where the machine had other work the file says
`provisional` and the load. It is written after each round, and the same command goes on, on the same
machine with the same versions.
"""
import argparse, json, os, platform, subprocess, sys, tempfile, time
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import median
from bnn_bn.core.files import write_file
from bnn_bn.deploy import load_packed
from bnn_bn.export import to_onnx
from bnn_bn.targets.runtime import write_runtime
from infer import cpu_info

ROOT = Path(__file__).resolve().parent.parent
ASK = '''
import time, numpy as np
x = np.zeros({shape}, np.float32)
answer(x)
print('answered', flush=True)
t = time.perf_counter()
answer(x)
print(time.perf_counter() - t)
'''
OURS = 'from {package} import load_packed\nanswer = load_packed({file!r})'
ONNX = '''import onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession({file!r}, options, providers=['CPUExecutionProvider'])
name = session.get_inputs()[0].name
answer = lambda x: session.run(None, {{name: x}})'''
TORCH = 'import torch\nanswer = lambda x: None'

@dataclass
class Way:
    "One kind of process."
    name:str
    program:str
    env:dict = field(default_factory=dict)
    fresh:bool = False # is nothing kept that an earlier process compiled?

    def run(self, folder):
        "seconds until the first answer, of the clock and of work, and of the second call"
        cache = tempfile.mkdtemp(dir=folder) if self.fresh else str(folder/'kept')
        env = os.environ | dict(NUMBA_CACHE_DIR=cache, PYTHONPATH=str(ROOT)) | self.env
        before, start = os.times(), time.perf_counter()
        command = [sys.executable, '-W', 'ignore', '-c', self.program]
        process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
        said = process.stdout.readline()
        wall = time.perf_counter() - start
        call = process.stdout.read()
        if process.wait() or said.strip() != 'answered':
            raise SystemExit(f'{self.name}: ended without an answer')
        after = os.times()
        cpu = sum(after[2:4]) - sum(before[2:4])
        return dict(wall=round(wall, 3), cpu=round(cpu, 3), call=float(f'{float(call):.3g}'))

def ways_of(net, folder):
    "all kinds of processes for a network of the package"
    packed = load_packed(net)
    file, onnx = str(packed.save(folder/'net.bnn')), str(folder/'net.onnx')
    shape = 1, packed.graph.channels, *packed.info['size']
    to_onnx(packed.graph, onnx, integers=False)
    write_runtime(folder/'site')
    ask, site = ASK.format(shape=shape), dict(PYTHONPATH=str(folder/'site'))
    ours = OURS.format(package='bnn_bn.deploy', file=file) + ask
    runtime = OURS.format(package='bnn_runtime', file=file) + ask
    return [Way('bnn_bn, first process', ours, fresh=True), Way('bnn_bn, later process', ours),
            Way('bnn_runtime, first process', runtime, site, fresh=True),
            Way('bnn_runtime, later process', runtime, site),
            Way('import torch', TORCH + ask), Way('ONNX Runtime, float32', ONNX.format(file=onnx) + ask)]

def summary(tries):
    "median, least and greatest of each figure"
    def of(key): return [t[key] for t in tries]
    return {k: dict(median=round(median(of(k)), 6), least=min(of(k)), greatest=max(of(k)))
            for k in ('wall', 'cpu', 'call')}

def loaded(before, after): return before[0] > .5 or after[0] > 1.5

def about(a):
    "what all rounds of a file have in common"
    return dict(net=a.net, machine=platform.machine(), cpu=cpu_info().get('model name', ''),
                cores=os.cpu_count(), python=platform.python_version(),
                versions={k: version(k) for k in ('bnn_bn', 'numba', 'torch', 'onnxruntime')})

def report(a, tries, before):
    "what is written; `tries`: name -> results"
    after = os.getloadavg()
    out = dict(command=f'python bench/first_call.py --net {a.net} --rounds {a.rounds}', **about(a),
               load=dict(before=before, after=after))
    if loaded(before, after): out['provisional'] = True
    return out | dict(rows={k: summary(t) for k, t in tries.items()}, tries=tries)

def arguments():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--rounds', type=int, default=7)
    p.add_argument('--net', default='cifar10-reactnet18-w50', help='a network of the package')
    p.add_argument('--out', type=Path, default=Path('runs/first_call.json'))
    p.add_argument('--again', action='store_true', help='forget what is in the file')
    a = p.parse_args()
    if a.rounds < 1: p.error(f'--rounds {a.rounds}: at least 1 is needed')
    return a

def found(a):
    "what an earlier call has written for this network, on this machine"
    if a.again or not a.out.exists(): return {}
    data = json.loads(a.out.read_text())
    other = [f'{k} {data.get(k)}, now {v}' for k, v in about(a).items() if data.get(k) != v]
    if other: raise SystemExit(f"{a.out} was measured otherwise ({'; '.join(other)}): "
                               'take another --out, or --again')
    return data['tries']

def main():
    a, before = arguments(), os.getloadavg()
    tries = found(a)
    with tempfile.TemporaryDirectory() as d:
        folder = Path(d)
        ways = ways_of(a.net, folder)
        for w in ways:
            if not w.fresh: w.run(folder) # compiles, and fills the system's cache of files
        while len(tries.get(ways[-1].name, [])) < a.rounds:
            for w in ways: tries.setdefault(w.name, []).append(w.run(folder))
            data = report(a, tries, before)
            write_file(a.out, (json.dumps(data, indent=1) + '\n').encode())
    for name, row in report(a, tries, before)['rows'].items():
        print(f"{name:28} {row['wall']['median']:6.2f} s, {row['cpu']['median']:6.2f} s of work")

if __name__ == '__main__': main()
