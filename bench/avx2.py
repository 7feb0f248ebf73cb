"""The engine's table of look-ups beside OpenVINO on AVX2's instructions, also on a CPU that has more.

    python bench/avx2.py --out results/bench_avx2.json --openvino PYTHON [--rounds 7]

Both are held to AVX2: ours by numba's target CPU, OpenVINO by its oneDNN. One thread, batch 1,
networks and turns as in bench/infer.py.
"""
import argparse, json, sys, tempfile
from pathlib import Path
from bnn_bn.bench import Rival, take_turns
from bnn_bn.core.files import write_file
from infer import NETS, ROOT, make

ENV = dict(PYTHONPATH=str(ROOT), NUMBA_CPU_NAME='znver3', NUMBA_CPU_FEATURES='',
           ONEDNN_MAX_CPU_ISA='AVX2', DNNL_MAX_CPU_ISA='AVX2')

def rivals_of(file, side, openvino):
    "the programs that take turns"
    def row(label, python, kind, *more):
        program, *job = ROOT/'bench/rivals.py', kind, file, side, 1, 1
        return Rival(label, [str(v) for v in (python, program, *job, *more)], ENV)
    return [row('bnn_bn, avx2', sys.executable, 'way:avx2'),
            row('OpenVINO, float32', openvino, 'openvino', '--onnx', file.with_suffix('.onnx')),
            row('OpenVINO, binary', openvino, 'openvino-binary')]

def line(r):
    "one rival's time, for people"
    if 'error' in r: return f"{r['name']}: {r['error']}"
    ratio = f"{r['times_first']:.2f} ({r['least']:.2f} to {r['greatest']:.2f})"
    return f"{r['name']}: {1e3*r['seconds']:.2f} ms, {ratio}"

def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--out', required=True)
    p.add_argument('--openvino', required=True)
    p.add_argument('--rounds', type=int, default=7)
    a = p.parse_args()
    out, folder = Path(a.out), Path(tempfile.mkdtemp())
    rows = json.loads(out.read_text()) if out.exists() else {}
    for name in NETS:
        if name not in rows:
            file, side = make(name, folder)
            rivals = rivals_of(file, side, a.openvino)
            for r in rivals: r.start(1)
            rows[name] = take_turns(rivals, a.rounds)
            for r in rivals: r.stop()
            write_file(out, json.dumps(rows, indent=1).encode())
        print(name, *map(line, rows[name]), sep='\n  ', flush=True)

if __name__ == '__main__': main()
