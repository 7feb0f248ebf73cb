"""Pictures a second at batch 1, 8 and 64, on one and two threads, beside the float runtimes.

    python bench/throughput.py [--openvino PYTHON] [--batches 1 8 64] [--threads 1 2] [--rounds 5]
                               [--nets ...] [--out results/throughput.json]

PYTHON is an environment with OpenVINO, which `bench/all.py` makes; that calls this script as well.
Runtimes take turns, as in `bench/infer.py`. The file is written after each batch, the same command
goes on, and a picture is drawn beside it. Where the machine had other work the file says
`provisional` and the load.
"""
import argparse, json, os, sys, tempfile
from pathlib import Path
from bnn_bn.core.files import write_file
from infer import (NETS, OURS, Bench, absent, check_settings, has_come, machine, make, rounded, run_turns,
                   wanted)

SHOWN = {OURS: '#0072B2', 'torch': '#E69F00', 'torch.compile': '#D55E00', 'ONNX Runtime': '#009E73',
         'OpenVINO': '#CC79A7'}

def rivals_of(a, bench):
    "ours first; each in its usual form"
    rows = bench.usual()
    if a.openvino:
        onnx = str(bench.file.with_suffix('.onnx'))
        rows.append(bench.rival('OpenVINO', a.openvino, 'openvino', '--onnx', onnx))
    return wanted(a, rows)

def measure(a, data, folder):
    "what is missing, written as it comes"
    for name in a.nets:
        file, side = make(name, folder)
        for threads in map(str, a.threads):
            rows = data['nets'].setdefault(name, {}).setdefault(threads, {})
            for batch in a.batches:
                known = rows.get(str(batch))
                if known and not a.again and not has_come(a, known): continue
                rows[str(batch)] = turns(a, Bench(file, side, batch, int(threads)), name)
                save(a, data)

def turns(a, bench, name):
    rivals = rivals_of(a, bench)
    label = f'{name}, batch {bench.batch}, {bench.threads} threads'
    rows = run_turns(a, rivals, [bench.threads]*len(rivals), label, calls=1)
    for r in rows:
        if 'seconds' in r: r['pictures_a_second'] = bench.batch/r['seconds']
    return rows + [r for r in absent(a) if 'OpenVINO' in r['name']]

def save(a, data):
    "with the highest load that was seen"
    load = max(data.get('load', 0.), os.getloadavg()[0])
    data['load'] = load
    if load > max(a.threads) + .5: data['provisional'] = True
    write_file(a.out, (json.dumps(rounded(data), indent=1) + '\n').encode())

def table(data):
    "lines: a network, threads and runtime each, with a column for each batch"
    lines = ['pictures a second, and our time in units of which the others take more']
    for name, by_threads in data['nets'].items():
        for threads, by_batch in by_threads.items():
            lines.append(f'{name}, {threads} threads' + ''.join(f'{"batch " + b:>22}' for b in by_batch))
            lines += [line(runtime, by_batch) for runtime in SHOWN]
    return lines

def line(runtime, by_batch):
    found = [next((r for r in rows if r['name'] == runtime), {}) for rows in by_batch.values()]
    return f'  {runtime:26}' + ''.join(f'{cell(r):>22}' for r in found)

def cell(r):
    if 'pictures_a_second' not in r: return '-'
    return f"{r['pictures_a_second']:.0f} ({r.get('times_first', 1):.1f})"

def draw(data, file):
    "a panel for each network and number of threads"
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    panels = [(n, t, rows) for n, by in data['nets'].items() for t, rows in by.items()]
    if not panels: return
    fig, axes = plt.subplots(1, len(panels), figsize=(1 + 3*len(panels), 3.2), squeeze=False)
    for ax, (name, threads, by_batch) in zip(axes[0], panels):
        for runtime, color in SHOWN.items(): draw_line(ax, runtime, by_batch, color)
        ax.set(xscale='log', yscale='log', xlabel='batch', title=f'{name}\n{threads} threads')
        ax.set_xticks([int(b) for b in by_batch], list(by_batch))
        ax.minorticks_off()
        ax.spines[['top', 'right']].set_visible(False)
    axes[0][0].set_ylabel('pictures a second')
    axes[0][-1].legend(fontsize=7, frameon=False)
    fig.tight_layout()
    fig.savefig(file, dpi=100)
    plt.close(fig)

def draw_line(ax, runtime, by_batch, color):
    rows = {int(b): r for b, rs in by_batch.items() for r in rs if r['name'] == runtime}
    points = {b: r['pictures_a_second'] for b, r in rows.items() if 'pictures_a_second' in r}
    if points: ax.plot(list(points), list(points.values()), 'o-', color=color, label=runtime)

def arguments():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--openvino', metavar='PYTHON')
    p.add_argument('--batches', type=int, nargs='+', default=[1, 8, 64])
    p.add_argument('--threads', type=int, nargs='+', default=[1, 2])
    p.add_argument('--rounds', type=int, default=5)
    p.add_argument('--seconds', type=float, default=.5, help='of each in each round')
    p.add_argument('--nets', nargs='+', default=list(NETS), choices=list(NETS), metavar='NET')
    p.add_argument('--rivals', nargs='+', help='only those whose name contains one of these words')
    p.add_argument('--without', nargs='+', default=[], help='none whose name contains one of these')
    p.add_argument('--again', action='store_true', help='measure what is in the file too')
    p.add_argument('--out', type=Path, default=Path('results/throughput.json'))
    p.set_defaults(missing={}, larq=None, onnx=None, bnn_lab=None)
    return p

def run(a):
    "measure what is missing; tables and picture of all"
    data = json.loads(a.out.read_text()) if a.out.exists() else dict(nets={})
    check_settings(a, data, dict(rounds=a.rounds, seconds=a.seconds))
    data.update(machine=machine(a), rounds=a.rounds, seconds=a.seconds)
    with tempfile.TemporaryDirectory() as folder: measure(a, data, Path(folder))
    print('\n'.join(table(data)))
    draw(data, a.out.with_suffix('.png'))

if __name__ == '__main__': run(arguments().parse_args(sys.argv[1:]))
