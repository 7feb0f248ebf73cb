"""The whole table of rivals by one command: make bench

    python bench/all.py [--quick] [--only openvino larq onnx bnn_lab] [--parts speed throughput]
                        [--nets ...] [--rivals WORD ...] [--full] [--out runs/rivals]
                        [--environments .venv-bench]

Each rival gets an environment of its own (`bench/rivals/NAME.txt` pins it); torch and torch.compile
are those of this project. Then `bench/infer.py` measures ours, torch, torch.compile, ONNX Runtime in
float32 and 8 bits, OpenVINO in float32, 8 bits and binary, Larq's engine, and the product of bnn-lab;
`bench/throughput.py` counts pictures a second. Beside each speed stands whether the rival's answers
are right, close or wrong, against the same network in float64. A rival that cannot be installed is
in the table with the reason. Files are written as results come: after Ctrl-C the same command goes
on, on the same machine with the same versions. `--full` adds the slower forms of a rival and of ours.
`--quick` measures next to nothing, to see that all runs; nothing of it is a result.
"""
import argparse, json, os, sys
from pathlib import Path
from bnn_bn.bench import rivals_table
import infer
import throughput
from environments import SHOWN, environments

ROOT = Path(__file__).resolve().parent.parent
SLOWER = ['channels first', 'portable', 'neon', 'default kernels'] # forms that lose to another of the same
SPEED = dict(rounds=7, without=SLOWER)
THROUGHPUT = dict(rounds=3, nets=['ReActNet-18, 32x32', 'ReActNet-18, 224x224'])
QUICK = dict(nets=['ReActNet-A, 32x32'], rounds=1, seconds=.02, layers=False, threads=[1])

def arguments(words=None):
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--quick', action='store_true', help='a smoke run')
    p.add_argument('--only', nargs='*', default=list(SHOWN), choices=list(SHOWN), metavar='NAME',
                   help=f'of {list(SHOWN)}; none: only what this project has itself')
    p.add_argument('--out', type=Path, help='folder for tables and pictures')
    p.add_argument('--parts', nargs='+', default=['speed', 'throughput'],
                   choices=['speed', 'throughput'], help='which of the two tables')
    p.add_argument('--nets', nargs='+', choices=list(infer.NETS), metavar='NET',
                   help=f'of {list(infer.NETS)}')
    p.add_argument('--rivals', nargs='+', metavar='WORD',
                   help='only rivals whose name contains one of these words')
    p.add_argument('--full', action='store_true', help='all networks, forms and rounds')
    p.add_argument('--environments', type=Path, default=ROOT/'.venv-bench', metavar='FOLDER')
    p.add_argument('--python', default=sys.executable, help='that environments begin with')
    p.add_argument('--again', action='store_true', help='measure what is there too')
    a = p.parse_args(words)
    a.out = a.out or ROOT/('runs/rivals-quick' if a.quick else 'runs/rivals')
    return a

def missing(found):
    "name in the table -> why it is not there"
    return {SHOWN[k]: e.missing for k, e in found.items() if e.missing}

def options_of(parser, a, found, file, changes):
    "the options of one of the two scripts"
    options = parser.parse_args([])
    changes = dict({} if a.full else changes, **(QUICK if a.quick else {}))
    for name in ('nets', 'rivals'):
        if getattr(a, name): changes[name] = getattr(a, name)
    for name, e in found.items(): setattr(options, name, e.python)
    for name, v in changes.items(): setattr(options, name, v)
    options.out, options.again, options.missing = a.out/file, a.again, missing(found)
    return options

def measure(a, found):
    "the tables that were asked for"
    if 'speed' in a.parts:
        infer.run(options_of(infer.parser(), a, found, 'speed.json', SPEED))
        data = json.loads((a.out/'speed.json').read_text())
        print(f'\ntimes our time, on one thread\n{rivals_table(data).to_string()}\n')
    if 'throughput' not in a.parts: return
    options = options_of(throughput.arguments(), a, found, 'throughput.json', THROUGHPUT)
    if a.quick: options.batches = [1, 8]
    throughput.run(options)

def main(words=None):
    a = arguments(words)
    a.out.mkdir(parents=True, exist_ok=True)
    try:
        found = environments(a.only, a.environments, python=a.python)
        print(f'load of this machine: {os.getloadavg()[0]:.1f}', file=sys.stderr)
        measure(a, found)
    except KeyboardInterrupt:
        sys.exit(f'\nstopped: what was measured is in {a.out}, and the same command goes on')
    for name, why in missing(found).items(): print(f'{name}: not installed: {why}')

if __name__ == '__main__': main()
