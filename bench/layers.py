"""Where the time of a packed network goes, and how near its binary convolutions come to the limit of the CPU.

    python bench/layers.py NET.bnn SIDE [--way avx512] [--seconds .005] [--rounds 15] > layers.json

Each step of the engine's plan is run by itself, again and again in one compiled call, on one thread: its operands are then in
the nearest cache that holds them. The same step without its words gives the work after counting (scale, bias, residual, PReLU, threshold,
stores). Run in order, as in the network, a step finds its weights further away: shares of time come from there. The clock is measured
in each round by a chain of additions, of which a core does one a cycle.
"""
import argparse, json, statistics, sys, time
from pathlib import Path
import numpy as np
from numba import njit
from bnn_bn.bnnfile import read_bnn
from bnn_bn.engine import Engine, aim
from bnn_bn.kernels import ways, walk, CHANNELS, COLS, COPY, KIND, PIXELS, RESULT, ROWS, RUN, STEP, SYNC

# 256-bit operations for 512 products, from the table of nbs/31c_kernels.ipynb, for a core that does four a cycle
OPERATIONS = dict(avx512=6, avx2=28/4, portable=18)

@njit
def _chain(n, x, y): # each turn waits for the one before, two cycles long; the compiler cannot shorten it
    for i in range(n): x = (x ^ i) + y
    return x

def clock(n=1_000_000, tries=5):
    "cycles a second now"
    _chain(1, 0, 1)
    times = []
    for _ in range(tries):
        t = time.perf_counter(); _chain(n, 0, 3); times.append(time.perf_counter() - t)
    return 2*n/min(times)

def products_a_cycle(way):
    "the limit, known for AMD's Zen 3 and 4 (family 25); None elsewhere"
    info = dict(line.split(':', 1) for line in Path('/proc/cpuinfo').read_text().split('\n\n')[0].splitlines() if ':' in line) if Path('/proc/cpuinfo').exists() else {}
    info = {k.strip(): v.strip() for k, v in info.items()}
    zen = info.get('vendor_id') == 'AuthenticAMD' and info.get('cpu family') == '25'
    return 4*512/OPERATIONS[way] if zen and way in OPERATIONS else None

def once(engine, rows, n):
    "seconds of n walks through rows of a plan"
    t = time.perf_counter()
    walk(engine.way, rows, n, 0, False, engine.table.ctypes.data, engine.scratch[0].ctypes.data)
    return time.perf_counter() - t

def in_order(engine, each, whole, seconds):
    "least seconds of the whole, and of each step as it comes in the network; what a call itself costs is taken off"
    each = [each[0][:0], whole, *each]
    turn = lambda: [once(engine, r, 1) for r in each]
    n = max(50, int(seconds/sum(turn())))
    empty, *out = (min(t) for t in zip(*(turn() for _ in range(n))))
    return [max(t - empty, 0) for t in out]

def time_rows(engine, many, seconds, rounds):
    "the least seconds of each of many rows of a plan, and cycles a second: the limit is asked for, and what else runs here only adds time"
    counts = [max(1, int(seconds/max(min(once(engine, r, 2) for _ in range(3))/2, 1e-7))) for r in many]
    times, hz = [], []
    for i in range(rounds):
        print(f'layers: round {i + 1} of {rounds} ', end='\r', file=sys.stderr, flush=True)
        hz.append(clock()); times.append([once(engine, r, n)/n for r, n in zip(many, counts)])
    return [min(t) for t in zip(*times)], max(hz)

def alone(plan, i):
    "a copy of the rows of step i that can be repeated"
    rows = plan.rows[[s == i for s in plan.steps]].copy()
    rows[0, SYNC] = 0
    rows[rows[:, KIND] == COPY, STEP] = 0 # the same image each time
    return rows

def without_words(rows):
    rows = rows.copy()
    rows[:, [ROWS, RUN]] = 0
    return rows

def kind_of(n):
    if n.op == 'bconv': return 'binary convolutions'
    if n.op == 'conv': return 'stem' if n.inputs[0] == 0 else 'shortcuts' if 'shortcut' in n.name else 'classifier'
    return 'pools'

def measure(graph, side, way=None, seconds=.005, rounds=15):
    "a dict: steps with seconds, the whole, shares by kind"
    engine = Engine(graph, 1, way)
    x, out = np.random.default_rng(0).standard_normal((1, graph.channels, side, side), np.float32), np.zeros((1, graph.n_out), np.float32)
    engine(x)
    plan = engine.plan((side, side))
    whole = aim(plan, x, out).copy()
    whole[np.isin(whole[:, KIND], (COPY, RESULT)), STEP] = 0
    each = [alone(plan, i) for i in range(len(graph.nodes))]
    bits = [i for i, n in enumerate(graph.nodes) if n.op == 'bconv']
    times, hz = time_rows(engine, [*each, *(without_words(each[i]) for i in bits)], seconds, rounds)
    total, *ordered = in_order(engine, each, whole, 2*rounds*seconds*len(each))
    name = {v: k for k, v in ways.items()}[len(engine.way)]
    limit, after = products_a_cycle(name), dict(zip(bits, times[len(each):]))
    steps = [dict(name=n.name, op=n.op, kind=kind_of(n), seconds=times[i], in_order=ordered[i], **(convolution(plan, i, n, each[i], times[i], after[i], limit and limit*hz) if i in after else {}))
             for i, n in enumerate(graph.nodes)]
    return dict(way=name, hz=hz, products_a_cycle=limit, seconds=total, shares=shares(steps, total), steps=steps)

def convolution(plan, i, n, rows, seconds, after, limit):
    "what is told of a binary convolution; limit: products a second"
    x, v, w = plan.values[n.inputs[0]], plan.values[i + 1], n.tensors['weight']
    macs, shape = w.size*v.size[0]*v.size[1], f'{w.shape[1]} to {w.shape[0]}, {w.shape[2]}x{w.shape[3]}, stride {n.stride}, {x.size[0]}x{x.size[1]}'
    counted = 32*int((rows[:, PIXELS]*rows[:, CHANNELS]*rows[:, ROWS]*rows[:, COLS]*rows[:, RUN]).sum()) # rows of padding are not counted
    out = dict(shape=shape, macs=macs, counted=counted, after=after, gmacs=macs/seconds/1e9)
    if not limit: return out
    return dict(out, share_of_limit=counted/seconds/limit, counting_share_of_limit=counted/(seconds - after)/limit if after < seconds else None) # None: too noisy to tell

def shares(steps, total):
    """parts of the whole time; `rest` is what the steps leave, and may be below zero. The binary convolutions' part is also given as counting, what
    comes after it, and `far`: what they take longer in the network than by themselves, for weights that come from a further cache"""
    part = lambda key, kind: sum(s.get(key, 0) for s in steps if s['kind'] == kind)/total
    out = {k: part('in_order', k) for k in ('stem', 'shortcuts', 'binary convolutions', 'pools', 'classifier')}
    out['rest'] = 1 - sum(out.values())
    b = 'binary convolutions'
    return dict(out, after_counting=part('after', b), counting=part('seconds', b) - part('after', b), far=out[b] - part('seconds', b))

def by_shape(nets): # name -> what `measure` gave
    "one row for each shape of a binary convolution: medians of the steps that have it"
    found, median = {}, lambda vs: statistics.median(vs) if (vs := [v for v in vs if v is not None]) else None
    for name, m in nets.items():
        for s in m['steps']:
            if 'shape' in s: found.setdefault(s['shape'], []).append((name, s))
    out = []
    for shape, many in found.items():
        keys = [k for k in ('macs', 'seconds', 'after', 'gmacs', 'share_of_limit', 'counting_share_of_limit') if k in many[0][1]]
        out.append(dict(shape=shape, nets=sorted({n for n, _ in many}), steps=len(many), **{k: median(s[k] for _, s in many) for k in keys}))
    return out

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('file'); p.add_argument('side', type=int); p.add_argument('--way'); p.add_argument('--seconds', type=float, default=.005, help='of each step in each round')
    p.add_argument('--rounds', type=int, default=15)
    a = p.parse_args()
    print(json.dumps(measure(read_bnn(a.file), a.side, a.way, a.seconds, a.rounds)))

if __name__ == '__main__': main()
