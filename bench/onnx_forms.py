"""Which ONNX nodes for a sign and for PReLU are the fastest in ONNX Runtime.

    python bench/onnx_forms.py [--rounds 60]

One image, one thread, in turns in one run; prints the quarter percentile in microseconds. All forms
of a row give equal results, up to a factor that goes into the next weights. Needs onnx and
onnxruntime: pip install bnn_bn[export].
"""
import argparse, time
import numpy as np, onnxruntime
from onnx import helper as h, numpy_helper

# each node: operation, inputs, output
SIGN = {'GreaterOrEqual, Where': [('GreaterOrEqual', 'x t', 'b'), ('Where', 'b one minus', 'y')],
        'GreaterOrEqual, Cast, Sub': [('GreaterOrEqual', 'x t', 'b'), ('Cast', 'b', 'c'),
                                      ('Sub', 'c half', 'y')],
        'GreaterOrEqual, Cast, Mul, Sub': [('GreaterOrEqual', 'x t', 'b'), ('Cast', 'b', 'c'),
                                           ('Mul', 'c two', 'd'), ('Sub', 'd one', 'y')],
        'Sub, Sign, Add, Sign': [('Sub', 'x t', 'b'), ('Sign', 'b', 'c'), ('Add', 'c half', 'd'),
                                 ('Sign', 'd', 'y')]}
PRELU = {'PRelu': [('PRelu', 'x slope', 'y')],
         'Mul, Max': [('Mul', 'x slope', 'a'), ('Max', 'x a', 'y')],
         'Mul, Max, Mul, Min': [('Mul', 'x slope', 'a'), ('Max', 'x a', 'b'),
                                ('Mul', 'b ones', 'c'), ('Min', 'b c', 'y')]}
SHAPES = (64, 32), (128, 16), (512, 4), (64, 56) # channels, side

def constants(c):
    rng = np.random.default_rng(0)
    return dict(t=rng.standard_normal((c, 1, 1)), slope=rng.uniform(-.5, 1, (c, 1, 1)),
                ones=np.ones((c, 1, 1)), one=1., minus=-1., half=.5, two=2.)

def node(op, inputs, output):
    to_float = dict(to=1) if op == 'Cast' else {}
    return h.make_node(op, inputs.split(), [output], **to_float)

def model(steps, c):
    nodes = [node(*step) for step in steps]
    used = {i for n in nodes for i in n.input}
    arrays = {k: np.asarray(a, np.float32) for k, a in constants(c).items() if k in used}
    arrays = [numpy_helper.from_array(a, k) for k, a in arrays.items()]
    x = h.make_tensor_value_info('x', 1, [1, c, None, None])
    y = h.make_tensor_value_info('y', 1, None)
    graph = h.make_graph(nodes, 'g', [x], [y], arrays)
    return h.make_model(graph, opset_imports=[h.make_opsetid('', 13)], ir_version=7)

def session(steps, c):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model(steps, c).SerializeToString(), options,
                                        providers=['CPUExecutionProvider'])

def timed(session, x):
    start = time.perf_counter()
    y = session.run(None, {'x': x})[0]
    return time.perf_counter() - start, y

def take_turns(forms, x, rounds):
    "seconds of each run of each form; all must give the same, signs up to a factor"
    runs = {k: session(steps, x.shape[1]) for k, steps in forms.items()}
    times, first = {k: [] for k in runs}, None
    for _ in range(rounds):
        for k, s in runs.items():
            seconds, y = timed(s, x)
            times[k].append(seconds)
            if forms is SIGN: y = np.sign(y)
            if first is None: first = y
            assert (y == first).all(), k
    return times

def quarter(times): return sorted(times)[len(times)//4]

def main():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--rounds', type=int, default=60)
    a = p.parse_args()
    for forms in SIGN, PRELU:
        for c, side in SHAPES:
            x = np.random.default_rng(1).standard_normal((1, c, side, side)).astype(np.float32)
            times = take_turns(forms, x, a.rounds)
            rows = ', '.join(f'{k} {quarter(ts)*1e6:.0f}' for k, ts in times.items())
            print(f'{c} channels of {side}x{side}: {rows}')

if __name__ == '__main__': main()
