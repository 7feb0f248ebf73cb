"""Pictures a second at batch 1, 8 and 64, on one and two threads, beside the float runtimes.

    python bench/throughput.py [--openvino PYTHON] [--batches 1 8 64] [--threads 1 2] [--rounds 5]
                               [--nets ...] [--out runs/throughput.json]

PYTHON is an environment with OpenVINO, which `bench/all.py` makes; that calls this script as well.
Runtimes take turns, as in `bench/infer.py`. The file is written after each batch, the same command
goes on, and a picture is drawn beside it. Where the machine had other work the file says
`provisional` and the load.
"""
import argparse, json, os, sys, tempfile
from pathlib import Path
import matplotlib
from bnn_bn.bench import plot_throughput, throughput_table
from bnn_bn.core.files import write_file
from infer import (NETS, SHOWN, Bench, begin, has_all, make, rounded, run_turns, together, wanted)

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
                bench, known = Bench(file, side, batch, int(threads)), rows.get(str(batch), [])
                rivals = rivals_of(a, bench)
                if has_all(known, rivals) and not a.again: continue
                rows[str(batch)] = together(a, turns(a, bench, rivals, name), known)
                save(a, data)

def turns(a, bench, rivals, name):
    label = f'{name}, batch {bench.batch}, {bench.threads} threads'
    rows = run_turns(a, rivals, [bench.threads]*len(rivals), label, calls=1)
    for r in rows:
        if 'seconds' in r: r['pictures_a_second'] = bench.batch/r['seconds']
    return rows

def save(a, data):
    "with the highest load that was seen"
    load = max(data.get('load', 0.), os.getloadavg()[0])
    data['load'] = load
    if load > max(a.threads) + .5: data['provisional'] = True
    write_file(a.out, (json.dumps(rounded(data), indent=1) + '\n').encode())

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
    p.add_argument('--out', type=Path, default=Path('runs/throughput.json'))
    p.set_defaults(missing={}, larq=None, onnx=None, bnn_lab=None)
    return p

def run(a):
    "measure what is missing; tables and picture of all"
    matplotlib.use('Agg')
    data = json.loads(a.out.read_text()) if a.out.exists() else dict(nets={})
    a.missing = {k: why for k, why in a.missing.items() if k == SHOWN['openvino']} # the others are not asked
    begin(a, data, dict(rounds=a.rounds, seconds=a.seconds))
    with tempfile.TemporaryDirectory() as folder: measure(a, data, Path(folder))
    print(throughput_table(data).to_string())
    fig = plot_throughput(data)
    if fig: fig.savefig(a.out.with_suffix('.png'), dpi=100)

if __name__ == '__main__': run(arguments().parse_args(sys.argv[1:]))
