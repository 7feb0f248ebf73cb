"""How fast packed networks are, beside the other ways to run them on this CPU.

    python bench/infer.py [--out runs/bench_infer.json] [--openvino PYTHON] [--larq PYTHON]
                          [--onnx PYTHON] [--bnn_lab PYTHON] [--threads 1 2] [--rounds 9] [--nets ...]

PYTHON is the interpreter of an environment in which that rival (openvino; larq and
larq-compute-engine; onnxruntime and onnx; bnn-lab) is installed. None is part of this project:
without it the rival is left out, and `bench/all.py` makes them all. Networks are BN-free, with
random weights and shifts, folded. Each runtime has a process of its own, they take turns, and
medians count. What is in the file is not measured again (--again does), so a bench that was stopped
goes on; all of a file is of one machine and one set of versions. A picture is drawn beside it. Run
it on a machine that does nothing else.
"""
import argparse, json, os, platform, re, shlex, subprocess, sys, tempfile
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
import numpy as np, torch, torch.nn.functional as F
from bnn_bn.layers.activations import RPReLU, RSign
from bnn_bn.bench import Rival, take_turns, usual_rivals
from bnn_bn.onebit.graph import read_bnn, write_bnn
from bnn_bn.export import to_onnx
from bnn_bn.core.files import write_file
from bnn_bn.onebit.fold import FoldedNet, fold
from bnn_bn.onebit.stem import int8_stem
from bnn_bn.onebit.counting import get_way, has_way, ways
from bnn_bn.models import reactnet_nobn
import layers
from environments import SHOWN
from infer_report import draw, summary

ROOT = Path(__file__).resolve().parent.parent
RIVALS = tuple(SHOWN)
NETS = {'ReActNet-18, 32x32': ('18', 32, dict(n_out=10, stem='cifar')),
        'ReActNet-A, 32x32': ('A', 32, dict(n_out=10)),
        'ReActNet-18, 224x224': ('18', 224, {}), 'ReActNet-A, 224x224': ('A', 224, {})}
OURS = 'bnn_bn, 1 bit'
NOTES = {'OpenVINO, binary': 'a speed reference only: see `values` for how far its answers are '
                             'from right',
         'Larq': 'indirect kernels and XNNPACK, pads binary convolutions with +1 (its fast way); '
                 'the engine has hand-written kernels for ARM only, on x86 it runs portable C++; '
                 'a batch runs image by image',
         'Larq, default kernels': 'as Larq, with the kernels it takes unless told'}
FLAGS = ('avx2 fma avx512f avx512bw avx512vl avx512_vnni avx512_vpopcntdq avx512_bf16 '
         'amx_int8 amx_bf16').split()

# --- The networks

def move_shifts(net):
    "shifts get values as training would give, else runtimes leave the work out"
    for m in net.modules():
        if not isinstance(m, (RSign, RPReLU)): continue
        for name, p in m.named_parameters(recurse=False):
            if name.startswith('shift'): p.data.add_(.1*torch.randn_like(p))

def make(name, folder):
    "write a network as .bnn and .onnx"
    backbone, side, kwargs = NETS[name]
    file = folder/f'{backbone}-{side}.bnn'
    if file.exists(): return file, side
    torch.manual_seed(0)
    net = reactnet_nobn(backbone, **kwargs).eval()
    move_shifts(net)
    graph = fold(net)
    file.with_suffix('.onnx').write_bytes(to_onnx(graph, integers=False).SerializeToString())
    write_bnn(graph, file)
    return file, side

# --- The rivals

ENV = dict(PYTHONPATH=str(ROOT))

@dataclass
class Bench:
    "One network, for so many threads: what its rivals are started with."
    file:Path
    side:int
    batch:int
    threads:int

    def rival(self, name, python, kind, *more):
        "a process of `bench/rivals.py`"
        numbers = [str(n) for n in (self.side, self.batch, self.threads)]
        script = str(ROOT/'bench/rivals.py')
        return Rival(name, [str(python), script, kind, str(self.file), *numbers, *more], ENV)

    def usual(self, *only):
        kinds = dict(only=only) if only else {}
        rivals = usual_rivals(self.file, (self.side, self.side), self.batch, self.threads, **kinds)
        for r in rivals: r.env = {**r.env, **ENV}
        return rivals

def with_whole_stem(bench):
    "ours with the first convolution in whole numbers; it reads bytes, of the usual mean and deviation"
    file = bench.file.with_suffix('.stem8.bnn')
    if not file.exists():
        graph = read_bnn(bench.file)
        graph.info.update(mean=[.485, .456, .406], std=[.229, .224, .225])
        write_bnn(int8_stem(graph), file)
    rival, = replace(bench, file=file).usual('packed')
    rival.name = f'{OURS}, int8 stem'
    return rival

def rivals_of(a, bench):
    "all on the bench, not yet started; ours first"
    ours, *usual = bench.usual()
    others = [w for w in ways if has_way(w) and get_way() != w]
    rows = [ours, *(bench.rival(f'{OURS}, {w}', sys.executable, f'way:{w}') for w in others)]
    rows += [with_whole_stem(bench), *usual,
             bench.rival('torch, channels first', sys.executable, 'torch'),
             bench.rival('torch.compile, channels first', sys.executable, 'compiled')]
    if a.openvino: rows += openvino_rivals(a, bench)
    if a.larq: rows += [bench.rival('Larq', a.larq, 'larq-best'),
                        bench.rival('Larq, default kernels', a.larq, 'larq')]
    if a.onnx: rows += int8_rivals(a, bench)
    return wanted(a, rows)

def wanted(a, rows):
    "the first, and those that --rivals and --without leave"
    first, *others = rows
    return [first, *(r for r in others if is_wanted(a, r))]

def is_wanted(a, rival):
    if has_word(rival, a.without): return False
    return not a.rivals or has_word(rival, a.rivals)

def has_word(rival, words): return any(w in rival.name for w in words)

def checked(a, bench):
    "those whose answers are compared"
    own, onnx = sys.executable, str(bench.file.with_suffix('.onnx'))
    rows = [bench.rival(OURS, own, f'way:{get_way()}'), bench.rival('torch', own, 'torch'),
            bench.rival('torch.compile', own, 'compiled'),
            bench.rival('ONNX Runtime', own, 'onnx', '--onnx', onnx)]
    if a.openvino: rows += openvino_rivals(a, bench)
    if a.larq: rows.append(bench.rival('Larq', a.larq, 'larq-best'))
    if a.onnx: rows += int8_rivals(a, bench)
    return wanted(a, rows)

def openvino_rivals(a, bench):
    onnx = str(bench.file.with_suffix('.onnx'))
    return [bench.rival('OpenVINO, float32', a.openvino, 'openvino', '--onnx', onnx),
            bench.rival('OpenVINO, binary', a.openvino, 'openvino-binary')]

def int8_rivals(a, bench):
    "the float network with 8 bits in its convolutions, by ONNX Runtime's own tool"
    onnx, small = bench.file.with_suffix('.onnx'), bench.file.with_suffix('.int8.onnx')
    if not small.exists():
        script = str(ROOT/'bench/rivals.py')
        words = ['quantize', str(onnx), str(bench.side), '1', '1', '--onnx', str(small)]
        subprocess.run([str(a.onnx), script, *words], env=os.environ | ENV, capture_output=True)
    rows = [bench.rival('ONNX Runtime, int8', a.onnx, 'onnx', '--onnx', str(small))]
    if not a.openvino: return rows
    return [*rows, bench.rival('OpenVINO, int8', a.openvino, 'openvino', '--onnx', str(small))]

NOT_INSTALLED = 'not installed'

def absent(a):
    "rows for rivals that could not be installed, with the reason"
    return [dict(name=name, error=f'{NOT_INSTALLED}: {why}') for name, why in a.missing.items()]

def is_absent(row): return row.get('error', '').startswith(NOT_INSTALLED)

def has_all(rows, rivals):
    "were all these rivals measured? One that was not installed was not"
    there = {r['name'] for r in rows if not is_absent(r)}
    return there.issuperset(r.name for r in rivals)

def together(a, rows, known):
    "what was measured now, and what the file has of rivals that this call did not ask for"
    found, here = {}, {SHOWN[k] for k in RIVALS if getattr(a, k)}
    for r in [*rows, *known, *absent(a)]:
        if not (is_absent(r) and r['name'] in here): found.setdefault(r['name'], r)
    return [*found.values()]

def show(text): print(text.ljust(100), end='\r', file=sys.stderr, flush=True)

def without_paths(error): return re.sub(r'\S*/', '', error)

def run_turns(a, rivals, threads, label, **kwargs):
    "start, measure, stop; more for `take_turns`"
    try:
        for i, r in enumerate(rivals):
            show(f'{label}: starting {r.name} ({i + 1} of {len(rivals)})')
            r.start(threads[i])
        def progress(k, n): show(f'{label}: round {k + 1} of {n}')
        rows = take_turns(rivals, a.rounds, a.seconds, progress, **kwargs)
    finally:
        for r in rivals:
            if hasattr(r, 'process'): r.stop()
    for r in rows:
        if 'error' in r: r['error'] = without_paths(r['error'])
        if r['name'] in NOTES: r['note'] = NOTES[r['name']]
    return rows

# --- Are the answers right?

class AsLarq(FoldedNet):
    "pads as TensorFlow does: the larger part behind; ones in binary convolutions"
    fill = dict(bconv=np.inf, conv=0., maxpool=-np.inf) # +inf is above each threshold
    def step(self, n, p, x, residual=None):
        padding = n.padding
        if not padding: return super().step(n, p, x, residual)
        kernel = n.tensors['weight'].shape[2] if n.tensors else n.kernel
        columns, rows = (self.missing(size, kernel, n.stride) for size in (x.shape[3], x.shape[2]))
        x = F.pad(x, [*columns, *rows], value=self.fill[n.op])
        n.padding = 0
        try: return super().step(n, p, x, residual)
        finally: n.padding = padding

    def missing(self, size, kernel, stride):
        "pixels before and behind"
        outputs = -(-size//stride)
        both = max((outputs - 1)*stride + kernel - size, 0)
        return both//2, both - both//2

def verdict(off, same):
    """of the difference of the usual picture, as a share of the largest logit, and of the pictures
    with the same class; in one of many a sum may lie within rounding of a threshold, and a sign flips"""
    is_right = off < 1e-4 and same > .8
    if is_right: return 'right'
    is_close = off < .1 and same == 1
    return 'close' if is_close else 'wrong'

def run_once(rival, threads, file):
    "let it write its answers; its last words"
    r = Rival(rival.name, [*rival.command, '--values', str(file)], rival.env)
    try: r.start(threads)
    finally:
        if hasattr(r, 'process'): r.stop()
    return without_paths(r.error or '')

def values(rival, threads, graph, x, folder):
    "how far a rival's answers are from those of the graph in float64"
    file, larq = folder/'answers.npy', 'Larq' in rival.name
    file.unlink(missing_ok=True)
    error = run_once(rival, threads, file)
    if not file.exists(): return dict(error=error)
    net = (AsLarq if larq else FoldedNet)(graph).double().eval()
    with torch.no_grad(): right = net(torch.tensor(x).double()).numpy()
    got = np.load(file)
    apart, most = np.abs(got - right).max(1), float(np.abs(right).max())
    same = float((got.argmax(1) == right.argmax(1)).mean())
    return dict(answers=verdict(float(np.median(apart))/most, same), same_class=same,
                median_difference=float(np.median(apart)),
                largest_difference=float(apart.max()), largest_logit=most,
                correlation=float(np.corrcoef(got.ravel(), right.ravel())[0, 1]),
                padding='as TensorFlow, ones' if larq else 'zeros')

# --- The machine

def other_versions(python, *packages):
    "what of some packages is installed in a rival's environment; it needs the first"
    code = ('import json, platform; from importlib.metadata import distributions; '
            'found = {d.metadata["Name"].lower().replace("_", "-"): d.version for d in distributions()}; '
            'print(json.dumps(dict(found, python=platform.python_version())))')
    try: done = subprocess.run([python, '-c', code], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        raise SystemExit(f'{python}: no interpreter that starts') from None
    found = json.loads(done.stdout)
    if packages[0] not in found: raise SystemExit(f'{python}: {packages[0]} is not installed there')
    return {k: found[k] for k in ('python', *packages) if k in found}

def cpu_info():
    "key -> text, from /proc where there is one"
    file = Path('/proc/cpuinfo')
    lines = file.read_text().splitlines() if file.exists() else []
    pairs = [line.split(':', 1) for line in lines if ':' in line]
    return {k.strip(): v.strip() for k, v in reversed(pairs)} # the first core's

def machine(a):
    "what the numbers depend on"
    info, packages = cpu_info(), ('torch', 'numba', 'llvmlite', 'numpy', 'onnx', 'onnxruntime')
    out = dict(cpu=info.get('model name') or platform.processor() or platform.machine(),
               family=info.get('cpu family', ''), model=info.get('model', ''),
               flags=[f for f in info.get('flags', '').split() if f in FLAGS], cores=os.cpu_count(),
               way=get_way(),
               clock_ghz=round(layers.clock()/1e9, 2), python=platform.python_version(),
               versions={k: version(k) for k in packages})
    if a.openvino: out['openvino'] = other_versions(a.openvino, 'openvino', 'numpy')
    larq = 'larq-compute-engine', 'larq', 'tensorflow', 'tensorflow-cpu', 'numpy'
    if a.larq: out['larq'] = other_versions(a.larq, *larq)
    if a.onnx: out['onnx'] = other_versions(a.onnx, 'onnxruntime', 'onnx', 'numpy')
    if a.bnn_lab: out['bnn_lab'] = other_versions(a.bnn_lab, 'bnn-lab', 'numpy')
    return out

# --- All of it

@dataclass
class File:
    "What was measured, written after each part."
    a:argparse.Namespace
    data:dict
    folder:Path = None

    def save(self):
        text = json.dumps(rounded(self.data), indent=1) + '\n'
        write_file(self.a.out, text.encode())
    def wants(self, part, key):
        return self.a.again or key not in part

    def add(self, name):
        "what is missing of a network"
        net = self.data['nets'].setdefault(name, dict(threads={}))
        file, side = make(name, self.folder)
        net.update(side=side, mb=file.stat().st_size/1e6)
        benches = {str(t): Bench(file, side, self.a.batch, t) for t in (1, *self.a.threads)}
        for t in map(str, self.a.threads):
            known, rivals = net['threads'].get(t, []), rivals_of(self.a, benches[t])
            if self.a.again or not has_all(known, rivals):
                rows = run_turns(self.a, rivals, [int(t)]*len(rivals), f'{name}, {t} threads')
                net['threads'][t] = together(self.a, rows, known)
                self.save()
        for t in map(str, self.a.threads):
            if t != '1' and self.wants(net.setdefault('scaling', {}), t):
                self.add_scaling(net, name, t, benches)
        eight = Bench(file, side, 8, self.a.threads[0])
        self.add_values(net, name, eight)
        if self.a.layers and self.wants(net, 'layers'): self.add_layers(net, file, side)

    def add_scaling(self, net, name, t, benches):
        pair = [benches[n].usual('packed')[0] for n in ('1', t)]
        pair[1].name += f', {t} threads'
        rows = run_turns(self.a, pair, [1, int(t)], f'{name}, {t} threads against one')
        net['scaling'][t] = rows[1]
        self.save()

    def add_values(self, net, name, bench):
        "are the answers of each rival right? Those that are not in the file yet"
        shape = bench.batch, 3, bench.side, bench.side
        x, graph = np.random.default_rng(0).standard_normal(shape, np.float32), read_bnn(bench.file)
        found = net.setdefault('values', {})
        rivals = [r for r in checked(self.a, bench) if self.wants(found, r.name)]
        for i, r in enumerate(rivals):
            show(f'{name}: are the answers of {r.name} right? ({i + 1} of {len(rivals)})')
            found[r.name] = values(r, bench.threads, graph, x, self.folder)
            self.save()

    def add_layers(self, net, file, side):
        rounds, seconds = 2*self.a.rounds, self.a.layer_seconds
        net['layers'] = layers.measure(read_bnn(file), side, rounds=rounds, seconds=seconds)
        self.save()

SHAPES = (64, 32), (128, 16), (256, 8), (512, 4) # channels, side: layers of ReActNet-18

def add_products(file):
    "a binary product alone, ours and bnn-lab's, where a result is not in the file"
    for c, side in SHAPES:
        key, products = f'3x3, {c} at {side}x{side}', 9*c*c*side*side
        if not file.wants(file.data.setdefault('products', {}), key): continue
        bench = Bench(c, side, 1, 1)
        rivals = [bench.rival(OURS, sys.executable, 'product-ours'),
                  bench.rival('bnn-lab', file.a.bnn_lab, 'product-bnn-lab')]
        right = [product_is_right(r, file.folder, c, side) for r in rivals]
        rows = run_turns(file.a, rivals, [1, 1], f'the product alone, {key}')
        for row, answers in zip(rows, right):
            row['answers'] = answers
            if 'seconds' in row: row['gmacs'] = products/row['seconds']/1e9
        file.data['products'][key] = rows
        file.save()

def product_is_right(rival, folder, c, side):
    "is every sum the one of numpy?"
    file = folder/'product.npy'
    file.unlink(missing_ok=True)
    error = run_once(rival, 1, file)
    if not file.exists(): return error
    g, n = np.random.default_rng(2), 9*c
    x, w = (g.integers(0, 2, s)*2 - 1 for s in ((side*side, n), (c, n)))
    return 'right' if (np.load(file) == x @ w.T).all() else 'wrong'

def rounded(v):
    "four digits of each float"
    if isinstance(v, dict):
        return {k: rounded(x) for k, x in v.items()}
    if isinstance(v, (list, tuple)): return [rounded(x) for x in v]
    if isinstance(v, float): return float(f'{v:.4g}')
    return v

def command(a):
    "the command line, without the paths of this machine"
    hidden = [str(getattr(a, k)) for k in RIVALS if getattr(a, k)]
    def shown(word):
        if word in hidden: return 'PYTHON'
        return 'PATH' if Path(word).is_absolute() else word
    return shlex.join(['python', f'bench/{Path(sys.argv[0]).name}', *map(shown, sys.argv[1:])])

def begin(a, data, settings):
    "rows of one file are measured alike; --again forgets those that were measured otherwise"
    here, before = rounded(machine(a)), data.get('machine', {})
    then, now = data | before, rounded(settings) | here
    other = [f'{k} {then[k]}, now {v}' for k, v in now.items()
             if k != 'clock_ghz' and then.get(k, v) != v]
    if other and not a.again:
        raise SystemExit(f"{a.out} was measured with other settings, versions, or on another machine "
                         f"({'; '.join(other)}): take another --out, or --again, which forgets it")
    if other:
        data.clear()
        before = {}
    data.setdefault('nets', {})
    data.update(settings, machine=before | here)

def measure(a, data):
    settings = dict(batch=a.batch, rounds=a.rounds, seconds=a.seconds)
    begin(a, data, settings)
    data.update(command=command(a), load=max(data.get('load', 0.), os.getloadavg()[0]))
    load = data['load']
    if load > .5 + max(a.threads): data['provisional'] = True
    for k in RIVALS:
        if getattr(a, k) or a.missing: continue
        print(f'left out: {k} (--{k} says where it is installed)', file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        file = File(a, data, Path(folder))
        file.save()
        for name in a.nets: file.add(name)
        if a.bnn_lab: add_products(file)

def parser():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--out', type=Path, default=Path('runs/bench_infer.json'))
    p.add_argument('--openvino', metavar='PYTHON')
    p.add_argument('--larq', metavar='PYTHON')
    p.add_argument('--onnx', metavar='PYTHON')
    p.add_argument('--bnn_lab', metavar='PYTHON')
    p.add_argument('--threads', type=int, nargs='+', default=[1, 2])
    p.add_argument('--rounds', type=int, default=9)
    p.add_argument('--batch', type=int, default=1)
    p.add_argument('--nets', nargs='+', default=list(NETS), choices=list(NETS), metavar='NET',
                   help=f'of {list(NETS)}')
    p.add_argument('--rivals', nargs='+', help='only those whose name contains one of these words')
    p.add_argument('--without', nargs='+', default=[], help='none whose name contains one of these')
    p.add_argument('--seconds', type=float, default=.3, help='of each in each round')
    p.add_argument('--layers', action=argparse.BooleanOptionalAction, default=True,
                   help='also where the time goes, see bench/layers.py')
    p.add_argument('--layer-seconds', type=float, default=.005,
                   help='of each step in each of twice so many rounds')
    p.add_argument('--again', action='store_true', help='measure what is in the file too')
    p.add_argument('--draw', action='store_true',
                   help='only the tables and the picture of what is in the file')
    p.set_defaults(missing={})
    return p

def run(a):
    "measure what is missing; tables and picture of all"
    data = json.loads(a.out.read_text()) if a.out.exists() else dict(nets={})
    if not a.draw: measure(a, data)
    data['nets'] = {k: data['nets'][k] for k in NETS if k in data['nets']}
    print('\n'.join(summary(data)))
    draw(data, a.out.with_suffix('.png'))

if __name__ == '__main__': run(parser().parse_args())
