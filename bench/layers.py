"""Where the time of a packed network goes, and how near its binary convolutions come to the CPU's limit.

    python bench/layers.py NET.bnn SIDE [--way avx512] [--seconds .005] [--rounds 15] > layers.json

Each step of the engine's plan is run by itself, again and again in one compiled call, on one thread:
its operands are then in the nearest cache that holds them. The same step without its words gives the
work after counting (scale, bias, residual, PReLU, threshold, stores). Run in order, as in the network, a
step finds its weights further away: shares of time come from there. The clock is measured
in each round by a chain of additions, of which a core does one a cycle.
"""
import argparse, json, statistics, sys, time
from pathlib import Path
import numpy as np
from numba import njit
from bnn_bn.onebit.counting import ways
from bnn_bn.onebit.engine import Engine, set_images
from bnn_bn.onebit.graph import read_bnn
from bnn_bn.onebit.kernels import Job, run_plan
from bnn_bn.onebit.tiles import COPY, RESULT

# 256-bit operations for 512 products (table in nbs/31c_counting.ipynb), on a core that does four a cycle
OPERATIONS = dict(vnni=6, avx512=6, avx2=25/4, portable=18)

@njit
def _chain(n, x, y): # each turn waits for the one before, two cycles long, and cannot be shortened
    for i in range(n): x = (x ^ i) + y
    return x

def clock(n=1_000_000, tries=5):
    "cycles a second now"
    _chain(1, 0, 1)
    times = []
    for _ in range(tries):
        t = time.perf_counter()
        _chain(n, 0, 3)
        times.append(time.perf_counter() - t)
    return 2*n/min(times)

def products_a_cycle(way):
    "the limit, known for AMD's Zen 3 and 4 (family 25); None elsewhere"
    file = Path('/proc/cpuinfo')
    first = file.read_text().split('\n\n')[0] if file.exists() else ''
    pairs = [line.split(':', 1) for line in first.splitlines() if ':' in line]
    info = {k.strip(): v.strip() for k, v in pairs}
    zen = info.get('vendor_id') == 'AuthenticAMD' and info.get('cpu family') == '25'
    return 4*512/OPERATIONS[way] if zen and way in OPERATIONS else None

def once(engine, rows, n):
    "seconds of n walks through rows of a plan"
    way, job, table, scratch = ways[engine.way], Job(n, 0, False), engine.table, engine.scratch[0]
    t = time.perf_counter()
    run_plan(way, rows, job, table.ctypes.data, scratch.ctypes.data)
    return time.perf_counter() - t

def in_order(engine, each, whole, seconds):
    "least seconds of the whole, and of each step as it comes in the network, less those of a call"
    each = [each[0][:0], whole, *each]
    turn = lambda: [once(engine, r, 1) for r in each]
    n = max(50, int(seconds/sum(turn())))
    empty, *out = (min(t) for t in zip(*(turn() for _ in range(n))))
    return [max(t - empty, 0) for t in out]

def time_rows(engine, many, seconds, rounds):
    """the least seconds of each of many rows of a plan, and cycles a second: the limit is asked for,
    and what else runs here only adds time"""
    guess = [max(min(once(engine, r, 2) for _ in range(3))/2, 1e-7) for r in many]
    counts, times, hz = [max(1, int(seconds/g)) for g in guess], [], []
    for i in range(rounds):
        print(f'layers: round {i + 1} of {rounds} ', end='\r', file=sys.stderr, flush=True)
        hz.append(clock())
        times.append([once(engine, r, n)/n for r, n in zip(many, counts)])
    return [min(t) for t in zip(*times)], max(hz)

def alone(plan, i):
    "a copy of the rows of step i that can be repeated"
    rows = plan.rows[[s == i for s in plan.steps]].copy()
    rows['sync'][0] = 0
    rows['step'][rows['kind'] == COPY] = 0 # the same image each time
    return rows

def without_words(rows):
    rows = rows.copy()
    rows['rows'], rows['run'] = 0, 0
    return rows

def kind_of(n):
    if n.op == 'bconv': return 'binary convolutions'
    if n.op != 'conv': return 'pools'
    if n.inputs[0] == 0: return 'stem'
    return 'shortcuts' if 'shortcut' in n.name else 'classifier'

def measure(graph, side, way=None, seconds=.005, rounds=15):
    "a dict: steps with seconds, the whole, shares by kind"
    engine, g = Engine(graph, 1, way), np.random.default_rng(0)
    x = g.standard_normal((1, graph.channels, side, side), np.float32)
    out = np.zeros((1, graph.n_out), np.float32)
    engine(x)
    plan = engine.plan((side, side))
    whole = set_images(plan, x, out).copy()
    whole['step'][np.isin(whole['kind'], (COPY, RESULT))] = 0
    each = [alone(plan, i) for i in range(len(graph.nodes))]
    bits = [i for i, n in enumerate(graph.nodes) if n.op == 'bconv']
    bare = [without_words(each[i]) for i in bits]
    times, hz = time_rows(engine, [*each, *bare], seconds, rounds)
    total, *ordered = in_order(engine, each, whole, 2*rounds*seconds*len(each))
    limit, after, steps = products_a_cycle(engine.way), dict(zip(bits, times[len(each):])), []
    for i, n in enumerate(graph.nodes):
        found = dict(name=n.name, op=n.op, kind=kind_of(n), seconds=times[i], in_order=ordered[i])
        steps.append(found)
        if i not in after: continue
        steps[-1].update(convolution(plan, i, n, each[i]))
        steps[-1].update(speed(steps[-1], after[i], limit and limit*hz))
    out = dict(way=engine.way, hz=hz, products_a_cycle=limit, seconds=total)
    return dict(out, shares=shares(steps, total), steps=steps)

def convolution(plan, i, n, rows):
    "shape and products of a binary convolution"
    x, v = plan.values[n.inputs[0]], plan.values[i + 1]
    filters, c, kh, kw = n.tensors['weight'].shape
    words = rows['rows']*rows['cols']*rows['run'] # rows of padding are not counted
    return dict(shape=f'{c} to {filters}, {kh}x{kw}, stride {n.stride}, {x.size[0]}x{x.size[1]}',
                macs=filters*c*kh*kw*v.size[0]*v.size[1],
                counted=32*int((rows['pixels']*rows['channels']*words).sum()))

def speed(step, after, limit):
    "seconds after counting, products a second, and shares of the limit (products a second)"
    seconds, counted = step['seconds'], step['counted']
    out = dict(after=after, gmacs=step['macs']/seconds/1e9)
    if not limit: return out
    counting = counted/(seconds - after)/limit if after < seconds else None # None: too noisy to tell
    return dict(out, share_of_limit=counted/seconds/limit, counting_share_of_limit=counting)

def shares(steps, total):
    """parts of the whole time; `rest` is what the steps leave, and may be below zero. The binary
    convolutions' part is also given as counting, what comes after it, and `far`: what they take longer
    in the network than by themselves, for weights that come from a further cache"""
    def part(key, kind): return sum(s.get(key, 0) for s in steps if s['kind'] == kind)/total
    b = 'binary convolutions'
    out = {k: part('in_order', k) for k in ('stem', 'shortcuts', b, 'pools', 'classifier')}
    out['rest'] = 1 - sum(out.values())
    alone, after = part('seconds', b), part('after', b)
    return dict(out, after_counting=after, counting=alone - after, far=out[b] - alone)

MEDIANS = 'macs', 'seconds', 'after', 'gmacs', 'share_of_limit', 'counting_share_of_limit'

def median(vs):
    known = [v for v in vs if v is not None]
    return statistics.median(known) if known else None

def by_shape(nets): # name -> what `measure` gave
    "one row for each shape of a binary convolution: medians of the steps that have it"
    found, out = {}, []
    for name, m in nets.items():
        for s in m['steps']:
            if 'shape' in s: found.setdefault(s['shape'], []).append((name, s))
    for shape, many in found.items():
        names, steps = zip(*many)
        medians = {k: median(s[k] for s in steps) for k in MEDIANS if k in steps[0]}
        out.append(dict(shape=shape, nets=sorted(set(names)), steps=len(steps), **medians))
    return out

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('file')
    p.add_argument('side', type=int)
    p.add_argument('--way')
    p.add_argument('--seconds', type=float, default=.005, help='of each step in each round')
    p.add_argument('--rounds', type=int, default=15)
    a = p.parse_args()
    print(json.dumps(measure(read_bnn(a.file), a.side, a.way, a.seconds, a.rounds)))

if __name__ == '__main__': main()
