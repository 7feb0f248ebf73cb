"""Which ONNX nodes for a sign and for PReLU are the fastest in ONNX Runtime.

    python bench/onnx_forms.py [--rounds 60]

One image, one thread, interleaved in one run; prints the quarter percentile in microseconds. All forms of a row give equal results
up to a factor that goes into the next weights. Needs onnx and onnxruntime: pip install bnn_bn[export].
"""
import argparse, time
import numpy as np, onnxruntime
from onnx import helper as h, numpy_helper

SIGN = {'GreaterOrEqual, Where': [('GreaterOrEqual', 'x t', 'b'), ('Where', 'b one minus', 'y')],
        'GreaterOrEqual, Cast, Sub': [('GreaterOrEqual', 'x t', 'b'), ('Cast', 'b', 'c'), ('Sub', 'c half', 'y')],
        'GreaterOrEqual, Cast, Mul, Sub': [('GreaterOrEqual', 'x t', 'b'), ('Cast', 'b', 'c'), ('Mul', 'c two', 'd'), ('Sub', 'd one', 'y')],
        'Sub, Sign, Add, Sign': [('Sub', 'x t', 'b'), ('Sign', 'b', 'c'), ('Add', 'c half', 'd'), ('Sign', 'd', 'y')]}
PRELU = {'PRelu': [('PRelu', 'x slope', 'y')], 'Mul, Max': [('Mul', 'x slope', 'a'), ('Max', 'x a', 'y')],
         'Mul, Max, Mul, Min': [('Mul', 'x slope', 'a'), ('Max', 'x a', 'b'), ('Mul', 'b ones', 'c'), ('Min', 'b c', 'y')]}

def session(steps, c):
    rng = np.random.default_rng(0)
    arrays = dict(t=rng.standard_normal((c, 1, 1)), slope=rng.uniform(-.5, 1, (c, 1, 1)), ones=np.ones((c, 1, 1)), one=1., minus=-1., half=.5, two=2.)
    nodes = [h.make_node(op, i.split(), [o], **(dict(to=1) if op == 'Cast' else {})) for op, i, o in steps]
    used = {i for n in nodes for i in n.input}
    g = h.make_graph(nodes, 'g', [h.make_tensor_value_info('x', 1, [1, c, None, None])], [h.make_tensor_value_info('y', 1, None)],
                     [numpy_helper.from_array(np.asarray(a, np.float32), k) for k, a in arrays.items() if k in used])
    o = onnxruntime.SessionOptions(); o.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(h.make_model(g, opset_imports=[h.make_opsetid('', 13)], ir_version=7).SerializeToString(), o, providers=['CPUExecutionProvider'])

def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument('--rounds', type=int, default=60); a = a.parse_args()
    for forms in SIGN, PRELU:
        for c, side in (64, 32), (128, 16), (512, 4), (64, 56):
            x, runs = np.random.default_rng(1).standard_normal((1, c, side, side)).astype(np.float32), {k: session(s, c) for k, s in forms.items()}
            times, first = {k: [] for k in runs}, None
            for _ in range(a.rounds):
                for k, s in runs.items():
                    t = time.perf_counter(); y = s.run(None, {'x': x})[0]; times[k].append(time.perf_counter() - t)
                    y = np.sign(y) if forms is SIGN else y
                    first = y if first is None else first
                    assert (y == first).all(), k
            print(f'{c} channels of {side}x{side}:', ', '.join(f'{k} {sorted(v)[len(v)//4]*1e6:.0f}' for k, v in times.items()))

if __name__ == '__main__': main()
