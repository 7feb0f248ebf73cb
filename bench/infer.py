"""How fast packed networks are, beside the other ways to run them on this CPU.

    python bench/infer.py --out results/bench_infer.json [--openvino PYTHON] [--larq PYTHON] [--threads 1 2] [--rounds 9] [--nets ...]

PYTHON is the interpreter of an environment in which that rival (openvino; larq and larq-compute-engine) is installed: neither is part of this project,
and without it the rival is left out. Networks are BN-free, with random weights and shifts, folded; each runtime has a process of its own, they take
turns, and medians count. What is in the file is not measured again (--again does), so a bench that was stopped goes on. A picture is drawn
beside the file. Run it on a machine that does nothing else.
"""
import argparse, json, os, platform, re, subprocess, sys, tempfile
from importlib.metadata import version
from pathlib import Path
import numpy as np, torch, torch.nn.functional as F
from bnn_bn.activations import RPReLU, RSign
from bnn_bn.bench import Rival, take_turns, usual_rivals
from bnn_bn.graph import read_bnn, write_bnn
from bnn_bn.export import to_onnx
from bnn_bn.files import write_file
from bnn_bn.fold import FoldedNet, fold
from bnn_bn.counting import get_way, has_way, ways
from bnn_bn.models import reactnet_nobn
import layers

ROOT = Path(__file__).resolve().parent.parent
NETS = {'ReActNet-18, 32x32': ('18', 32, dict(n_out=10, stem='cifar')), 'ReActNet-A, 32x32': ('A', 32, dict(n_out=10)),
        'ReActNet-18, 224x224': ('18', 224, {}), 'ReActNet-A, 224x224': ('A', 224, {})}
OURS = 'bnn_bn, 1 bit'
FLOAT = ('torch', 'torch, channels first', 'torch.compile', 'torch.compile, channels first', 'ONNX Runtime', 'OpenVINO, float32')
BINARY = ('OpenVINO, binary', 'Larq', 'Larq, default kernels')
NOTES = {'OpenVINO, binary': 'a speed reference only: see `values` for how far its answers are from right',
         'Larq': 'indirect kernels and XNNPACK, pads binary convolutions with +1 (its fast way); the engine has hand-written kernels for ARM only, on x86 it runs portable C++; a batch runs image by image',
         'Larq, default kernels': 'as Larq, with the kernels it takes unless told'}

def make(name, folder):
    "write a network as .bnn and .onnx; shifts get values as training would give, else runtimes leave the work out"
    backbone, side, kwargs = NETS[name]
    file = folder/f'{backbone}-{side}.bnn'
    if not file.exists():
        torch.manual_seed(0)
        net = reactnet_nobn(backbone, **kwargs).eval()
        with torch.no_grad():
            for m in net.modules():
                for k in dict(m.named_parameters(recurse=False)) if isinstance(m, (RSign, RPReLU)) else ():
                    if k.startswith('shift'): getattr(m, k).add_(.1*torch.randn_like(getattr(m, k)))
        graph = fold(net)
        file.with_suffix('.onnx').write_bytes(to_onnx(graph, integers=False).SerializeToString())
        write_bnn(graph, file)
    return file, side

def rivals_of(a, file, side, threads):
    "all on the bench, not yet started; ours first"
    path = dict(PYTHONPATH=str(ROOT))
    def row(name, python, kind, *more):
        return Rival(name, [str(python), str(ROOT/'bench/rivals.py'), kind, str(file), str(side), str(a.batch), str(threads), *more], path)
    usual = usual_rivals(file, (side, side), a.batch, threads)
    rows = [usual[0]] + [row(f'{OURS}, {w}', sys.executable, f'way:{w}') for w in ways if has_way(w) and get_way() != w]
    rows += [*usual[1:], row('torch, channels first', sys.executable, 'torch'), row('torch.compile, channels first', sys.executable, 'compiled')]
    if a.openvino: rows += [row('OpenVINO, float32', a.openvino, 'openvino', '--onnx', str(file.with_suffix('.onnx'))), row('OpenVINO, binary', a.openvino, 'openvino-binary')]
    if a.larq: rows += [row('Larq', a.larq, 'larq-best'), row('Larq, default kernels', a.larq, 'larq')]
    for r in rows: r.env = {**r.env, **path}
    return [r for r in rows if not a.rivals or r is rows[0] or any(w in r.name for w in a.rivals)]

def run_turns(a, rivals, threads, label):
    "start, measure, stop"
    try:
        for i, r in enumerate(rivals):
            print(f'{label}: starting {r.name} ({i + 1} of {len(rivals)})'.ljust(100), end='\r', file=sys.stderr, flush=True)
            r.start(threads[i])
        rows = take_turns(rivals, a.rounds, a.seconds, lambda k, n: print(f'{label}: round {k + 1} of {n}'.ljust(100), end='\r', file=sys.stderr, flush=True))
    finally:
        for r in rivals:
            if hasattr(r, 'process'): r.stop()
    for r in rows:
        if 'error' in r: r['error'] = re.sub(r'\S*/', '', r['error']) # no paths of this machine
        if r['name'] in NOTES: r['note'] = NOTES[r['name']]
    return rows

# --- Are the answers right?

class AsLarq(FoldedNet):
    "pads as TensorFlow does: the larger part behind; ones in binary convolutions"
    def step(self, n, p, x, residual=None):
        if not n.padding: return super().step(n, p, x, residual)
        k, v, padding = n.tensors['weight'].shape[2] if n.tensors else n.kernel, dict(bconv=np.inf, conv=0., maxpool=-np.inf)[n.op], n.padding
        both = [max((-(-s//n.stride) - 1)*n.stride + k - s, 0) for s in (x.shape[3], x.shape[2])]
        x = F.pad(x, [q for b in both for q in (b//2, b - b//2)], value=v) # +inf is above each threshold
        n.padding = 0
        try: return super().step(n, p, x, residual)
        finally: n.padding = padding

def values(rival, threads, graph, x, folder):
    "how far a rival's answers are from those of the graph in float64"
    file = folder/'answers.npy'
    file.unlink(missing_ok=True)
    r = Rival(rival.name, [*rival.command, '--values', str(file)], rival.env).start(threads)
    r.stop()
    if not file.exists(): return dict(error=re.sub(r'\S*/', '', r.error or ''))
    net = (AsLarq if 'Larq' in r.name else FoldedNet)(graph).double().eval()
    with torch.no_grad(): right = net(torch.tensor(x).double()).numpy()
    got = np.load(file)
    return dict(largest_difference=float(np.abs(got - right).max()), largest_logit=float(np.abs(right).max()), correlation=float(np.corrcoef(got.ravel(), right.ravel())[0, 1]),
                padding='as TensorFlow, ones' if 'Larq' in r.name else 'zeros')

# --- The machine, tables, a picture

def other_versions(python, *packages):
    code = f"import json, platform; from importlib.metadata import version; print(json.dumps(dict(python=platform.python_version(), **{{k: version(k) for k in {packages!r}}})))"
    try: return json.loads(subprocess.run([python, '-c', code], capture_output=True, text=True, check=True).stdout)
    except (OSError, subprocess.CalledProcessError): raise SystemExit(f'{python}: no interpreter of an environment with {" and ".join(packages)}') from None

def machine(a):
    "what the numbers depend on"
    text = Path('/proc/cpuinfo').read_text() if Path('/proc/cpuinfo').exists() else ''
    found = lambda key: (re.search(rf'^{key}\s*:\s*(.*)$', text, re.M) or [None, ''])[1]
    flags = [f for f in found('flags').split() if f in ('avx2', 'fma', 'avx512f', 'avx512bw', 'avx512vl', 'avx512_vnni', 'avx512_vpopcntdq', 'avx512_bf16', 'amx_int8', 'amx_bf16')]
    out = dict(cpu=found('model name') or platform.processor() or platform.machine(), family=found('cpu family'), model=found('model'), flags=flags, cores=os.cpu_count(), way=get_way(),
               clock_ghz=round(layers.clock()/1e9, 2), python=platform.python_version(), versions={k: version(k) for k in ('torch', 'numba', 'llvmlite', 'numpy', 'onnx', 'onnxruntime')})
    if a.openvino: out['openvino'] = other_versions(a.openvino, 'openvino', 'numpy')
    if a.larq: out['larq'] = other_versions(a.larq, 'larq', 'larq-compute-engine', 'tensorflow', 'numpy')
    return out

def fastest(rows, names):
    rows = [r for r in rows if r['name'] in names and 'seconds' in r]
    return min(rows, key=lambda r: r['times_first'], default=None)

def summary(data):
    "lines for the terminal"
    show = lambda r: f"{r['times_first']:6.1f} ({r['least']:.1f} to {r['greatest']:.1f})" if r else f'{"-":>6}'
    head, lines = f"{'':24}{'threads':>8}{'ours, ms':>10}  {'fastest float32':44}{'OpenVINO, binary':26}{'Larq':26}", []
    for name, net in data['nets'].items():
        for threads, rows in net['threads'].items():
            f = fastest(rows, FLOAT)
            lines.append(f"{name:24}{threads:>8}{1000*rows[0]['seconds']:10.3f}  {show(f) + ' ' + (f['name'] if f else ''):44}{show(fastest(rows, BINARY[:1])):26}{show(fastest(rows, BINARY[1:])):26}")
    out = ['times our time, median of the rounds (least to greatest)', head, *lines]
    for name, net in data['nets'].items():
        for t, r in net.get('scaling', {}).items(): out.append(f"{name:24}{t} threads are {1/r['times_first']:.2f} times as fast as one ({1/r['greatest']:.2f} to {1/r['least']:.2f})")
        for k, v in net.get('values', {}).items(): out.append(f"{name:24}{k}: " + (v.get('error') or f"answers differ by up to {v['largest_difference']:.2g} of {v['largest_logit']:.2g}, correlation {v['correlation']:.4f} (padding: {v['padding']})"))
    return out + layer_lines(data)

def layer_lines(data):
    out, nets = [], {k: v['layers'] for k, v in data['nets'].items() if 'layers' in v}
    percent = lambda r, k: f'{r[k]:.0%}' if r.get(k) is not None else '-'
    if nets: out += [f"{'binary convolution':36}{'G MAC/s':>10}{'of limit':>10}{'counting':>10}{'after, of time':>16}"]
    for r in layers.by_shape(nets): out.append(f"{r['shape']:36}{r['gmacs']:10.0f}{percent(r, 'share_of_limit'):>10}{percent(r, 'counting_share_of_limit'):>10}{r['after']/r['seconds']:16.0%}")
    for name, m in nets.items(): out.append(f'{name:24}' + ', '.join(f'{k} {v:.0%}' for k, v in m['shares'].items()))
    return out

COLORS = ['#E69F00', '#D55E00', '#0072B2', '#56B4E9', '#CC79A7', '#009E73', '#F0E442', '#999999']

def draw(data, file):
    import matplotlib; matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    nets = [(k, v) for k, v in data['nets'].items() if v['threads']]
    if not nets: return
    fig, axs = plt.subplots(1, 2, figsize=(12, 1.1 + 1.25*len(nets)), width_ratios=(1.25, 1))
    groups = {'torch': FLOAT[:2], 'torch.compile': FLOAT[2:4], 'ONNX Runtime': FLOAT[4:5], 'OpenVINO, float32': FLOAT[5:], 'OpenVINO, binary (values wrong)': BINARY[:1], 'Larq': BINARY[1:]}
    for j, (label, names) in enumerate(groups.items()):
        at = [(i + .13*(j - 2.5), fastest(next(iter(v['threads'].values())), names)) for i, (k, v) in enumerate(nets)]
        at = [(y, r) for y, r in at if r]
        if not at: continue
        bars = axs[0].barh([y for y, r in at], [r['times_first'] for y, r in at], .12, color=COLORS[j], label=label, hatch='//' if 'wrong' in label else None,
                           xerr=np.array([(r['times_first'] - r['least'], r['greatest'] - r['times_first']) for y, r in at]).T, error_kw=dict(lw=.7))
        axs[0].bar_label(bars, [f"{r['times_first']:.1f}" for y, r in at], padding=3, fontsize=7)
    axs[0].axvline(1, color='grey', ls='--', lw=.8); axs[0].set(xscale='log', xlabel=f"time, ours = 1 ({next(iter(nets[0][1]['threads']))} thread, batch {data['batch']})", yticks=range(len(nets)), yticklabels=[k for k, _ in nets])
    axs[0].set_xticks(t := [.2, .5, 1, 2, 5, 10, 20, 50, 100, 200], [f'{v:g}' for v in t]); axs[0].minorticks_off()
    values = [r['times_first'] for k, v in nets for r in next(iter(v['threads'].values())) if 'times_first' in r and r['name'] in FLOAT + BINARY]
    axs[0].set_xlim(min([.7, *(.7*v for v in values)]), 1.6*max([1, *(fastest(next(iter(v['threads'].values())), n)['greatest'] for k, v in nets for n in groups.values() if fastest(next(iter(v['threads'].values())), n))])); axs[0].invert_yaxis(); axs[0].legend(fontsize=7, frameon=False, loc='upper center', bbox_to_anchor=(.5, 1.13), ncols=3)
    parts = {'counting': 'counting bits', 'after_counting': 'after counting', 'far': 'weights from further caches', 'stem': 'stem', 'shortcuts': 'shortcuts', 'pools': 'pools', 'classifier': 'classifier', 'rest': 'rest'}
    left = np.zeros(len(nets))
    for j, (k, label) in enumerate(parts.items()):
        width = np.array([100*max(v.get('layers', dict(shares={}))['shares'].get(k, 0), 0) for _, v in nets])
        axs[1].barh(range(len(nets)), width, .5, left, color=COLORS[(j + 2) % 8], label=label)
        left += width
    axs[1].set(xlabel='share of our time (%), one thread', yticks=[]); axs[1].invert_yaxis(); axs[1].legend(fontsize=7, frameon=False, loc='upper center', bbox_to_anchor=(.5, 1.13), ncols=4)
    for ax in axs: ax.spines[['top', 'right']].set_visible(False)
    fig.tight_layout(); fig.savefig(file, dpi=100); plt.close(fig)

# --- All of it

def rounded(v):
    return {k: rounded(x) for k, x in v.items()} if isinstance(v, dict) else [rounded(x) for x in v] if isinstance(v, (list, tuple)) else float(f'{v:.4g}') if isinstance(v, float) else v

def one_net(a, data, name, folder, save):
    "what is missing of a network"
    net, (file, side) = data['nets'].setdefault(name, dict(threads={})), make(name, folder)
    graph = read_bnn(file)
    net.update(side=side, mb=file.stat().st_size/1e6)
    for t in map(str, a.threads):
        if t not in net['threads'] or a.again:
            rivals = rivals_of(a, file, side, int(t))
            net['threads'][t] = run_turns(a, rivals, [int(t)]*len(rivals), f'{name}, {t} threads')
            save()
    for t in a.threads:
        if t > 1 and (str(t) not in net.setdefault('scaling', {}) or a.again):
            pair = [usual_rivals(file, (side, side), a.batch, n, ['packed'])[0] for n in (1, t)]
            for r in pair: r.env = dict(PYTHONPATH=str(ROOT))
            pair[1].name += f', {t} threads'
            net['scaling'][str(t)] = run_turns(a, pair, [1, t], f'{name}, {t} threads against one')[1]
            save()
    if 'values' not in net or a.again:
        x, rows = np.random.default_rng(0).standard_normal((a.batch, 3, side, side), np.float32), rivals_of(a, file, side, a.threads[0])
        net['values'] = {r.name: values(r, a.threads[0], graph, x, folder) for r in rows if r.name in ('OpenVINO, float32', *BINARY[:2])}
        save()
    if a.layers and ('layers' not in net or a.again):
        net['layers'] = layers.measure(graph, side, rounds=2*a.rounds, seconds=a.layer_seconds)
        save()

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--out', type=Path, default=Path('results/bench_infer.json')); p.add_argument('--openvino', metavar='PYTHON'); p.add_argument('--larq', metavar='PYTHON')
    p.add_argument('--threads', type=int, nargs='+', default=[1, 2]); p.add_argument('--rounds', type=int, default=9); p.add_argument('--batch', type=int, default=1)
    p.add_argument('--nets', nargs='+', default=list(NETS), choices=list(NETS), metavar='NET', help=f'of {list(NETS)}')
    p.add_argument('--rivals', nargs='+', help='only those whose name contains one of these words'); p.add_argument('--seconds', type=float, default=.3, help='of each in each round')
    p.add_argument('--layers', action=argparse.BooleanOptionalAction, default=True, help='also where the time goes, see bench/layers.py')
    p.add_argument('--layer-seconds', type=float, default=.005, help='of each step in each of twice so many rounds'); p.add_argument('--again', action='store_true', help='measure what is in the file too')
    p.add_argument('--draw', action='store_true', help='only the tables and the picture of what is in the file')
    a = p.parse_args()
    data = json.loads(a.out.read_text()) if a.out.exists() else dict(nets={})
    if not a.draw: measure(a, data)
    data['nets'] = {k: data['nets'][k] for k in NETS if k in data['nets']}
    print('\n'.join(summary(data)))
    draw(data, a.out.with_suffix('.png'))

def measure(a, data):
    settings = dict(batch=a.batch, rounds=a.rounds, seconds=a.seconds)
    if any(data.get(k, v) != v for k, v in settings.items()) and not a.again: raise SystemExit(f'{a.out} was measured with other settings ({ {k: data[k] for k in settings} }); take another --out, or --again')
    hidden = {str(w) for w in (a.openvino, a.larq) if w}
    data.update(command='python bench/infer.py ' + ' '.join('PYTHON' if w in hidden else repr(w) if ' ' in w else w for w in sys.argv[1:]), machine=machine(a), **settings)
    if missing := [k for k in ('openvino', 'larq') if not getattr(a, k)]: print(f'left out: {", ".join(missing)} (--{" and --".join(missing)} say where they are installed)', file=sys.stderr)
    save = lambda: write_file(a.out, (json.dumps(rounded(data), indent=1) + '\n').encode())
    with tempfile.TemporaryDirectory() as folder:
        for name in a.nets: one_net(a, data, name, Path(folder), save)

if __name__ == '__main__': main()
