"""The packed network against arithmetic: every shape of convolution, its memory, strangers' files,
whole networks, servers, and a machine without torch."""
import copy, ctypes, gc, hashlib, json, mmap, os, pickle, shutil, struct, subprocess, sys, threading
import time, weakref
from pathlib import Path

import numpy as np
import pytest
import torch, torch.nn.functional as F
from hypothesis import example, given, seed, settings, strategies as st

from bnn_bn.onebit import engine, kernels
from bnn_bn.onebit.counting import has_way, ways
from bnn_bn.deploy import load_packed, pack
from bnn_bn.onebit.engine import Engine
from bnn_bn.onebit.fold import FoldedNet, fold
from bnn_bn.onebit.graph import Graph, Node, from_bytes, to_bytes
from bnn_bn.onebit.kernels import packed_conv2d
from bnn_bn.models import create_model, list_models
from bnn_bn.layers.pixels import set_pixels

HERE = [w for w in ways if has_way(w)]
ROOT = Path(__file__).parent.parent
SEEDS = st.integers(0, 2**31)


def signs(g, *shape): return g.choice(np.int8([-1, 1]), shape)
def numbers(g, *shape): return g.standard_normal(shape).astype(np.float32)
def mini(): return create_model('reactnet_mini_nobn', n_out=10, width=.25, stem='cifar').eval()

def python(code, *args, **env):
    "a process of its own"
    command = [sys.executable, '-W', 'ignore', '-c', code, *args]
    env = {**os.environ, 'PYTHONPATH': str(ROOT), **env}
    return subprocess.run(command, capture_output=True, text=True, timeout=900, env=env, cwd='/')


# The convolution ---------------------------------------------------------------------------------

@pytest.mark.parametrize('way', HERE)
@pytest.mark.parametrize('k', (1, 3, 5, 7))
@pytest.mark.parametrize('c', (1, 7, 31, 33, 63, 64, 65, 1024))
def test_every_channel_count_and_kernel(c, k, way):
    g = np.random.default_rng(c*k)
    x, w = signs(g, 1, c, 8, 6), signs(g, 37, c, k, k)
    for padding in (0, k//2):
        if 6 + 2*padding < k: continue
        want = F.conv2d(torch.tensor(x).double(), torch.tensor(w).double(), padding=padding).numpy()
        assert (packed_conv2d(x, w, padding=padding, way=way) == want).all()


@pytest.mark.parametrize('way', HERE)
@pytest.mark.parametrize('words', range(1, 17))
def test_all_bits_differ_or_none(words, way):
    "for each of the four pixels of a tile, in all 16 combinations: counters at both their ends"
    pixels = np.int8(2*(np.arange(16)[:, None] >> np.arange(4) & 1) - 1)
    x = np.broadcast_to(pixels, (1, 32*words, 16, 4))
    w = np.ones((64, 32*words, 1, 1), np.int8)
    assert (packed_conv2d(x, w, way=way) == 32*words*pixels.astype(int)).all()


CONVS = st.tuples(st.integers(1, 3), st.integers(0, 4), st.integers(1, 3), st.integers(1, 3))

@settings(max_examples=150, deadline=None)
@given(st.data(), st.sampled_from((1, 7, 31, 33, 63, 64, 65)), st.sampled_from((1, 3, 5, 7)), CONVS,
       st.integers(1, 12), st.integers(1, 12), st.integers(1, 3), st.integers(1, 70),
       st.integers(1, 4), st.sampled_from(HERE))
def test_any_convolution(data, c, k, conv, h, w, batch, n, threads, way):
    "stride, dilation, groups, padding, batch, threads and way, in any combination that torch takes"
    stride, padding, dilation, groups = conv
    reach = dilation*(k - 1) + 1
    h, w = max(h, reach - 2*padding), max(w, reach - 2*padding)
    g = np.random.default_rng(data.draw(st.integers(0, 2**31)))
    x, f = signs(g, batch, c*groups, h, w), signs(g, n*groups, c, k, k)
    want = F.conv2d(torch.tensor(x).double(), torch.tensor(f).double(), None, *conv).numpy()
    assert (packed_conv2d(x, f, *conv, way, threads) == want).all()


# Graphs ------------------------------------------------------------------------------------------

def any_graph(data, g):
    "a random network: a stem, then convolutions with residuals, pools and second signs as they fit"
    side, k13 = st.integers(4, 20), st.sampled_from((1, 3))
    c, h, w = data.draw(k13), data.draw(side), data.draw(side)
    nodes, shapes = [], [(c, h, w)]
    def add(op, inputs, c, h, w, **kw):
        t = kw.pop('t', {})
        nodes.append(Node(op, inputs, t, **kw)); shapes.append((c, h, w))
    def conv(op, i, n, k, stride=1, padding=0, dilation=1, residual=None, slope=True):
        ci, h, w = shapes[i]
        size = [(s + 2*padding - dilation*(k - 1) - 1)//stride + 1 for s in (h, w)]
        w = signs(g, n, ci, k, k) if op == 'bconv' else numbers(g, n, ci, k, k)/k
        t = dict(weight=w, bias=numbers(g, n), scale=numbers(g, n)/(ci*k*k)**.5)
        if slope: t['slope'] = numbers(g, n)
        if op == 'bconv': t['threshold'] = numbers(g, ci)
        inputs = (i,) if residual is None else (i, residual)
        add(op, inputs, n, *size, t=t, stride=stride, padding=padding, dilation=dilation)
    conv('conv', 0, data.draw(st.sampled_from((8, 24, 32, 33, 64))), 3, padding=1)
    for _ in range(data.draw(st.integers(1, 6))):
        i = data.draw(st.integers(max(1, len(nodes) - 2), len(nodes)))
        c, h, w = shapes[i]
        kinds = 'same', 'same', 'double', 'new', 'half', 'max', 'average', 'real'
        kind, even = data.draw(st.sampled_from(kinds)), h % 2 == 0 and w % 2 == 0
        if kind == 'same':
            conv('bconv', i, c, 3, padding=1, residual=i, slope=data.draw(st.booleans()))
        elif kind == 'double': conv('bconv', i, 2*c, 1, residual=i)
        elif kind == 'new':
            conv('bconv', i, data.draw(st.sampled_from((16, 40, 65))), data.draw(k13), padding=1)
        elif kind == 'half': conv('bconv', i, c, 3, stride=2, padding=1)
        elif kind == 'real': conv('conv', i, c, data.draw(k13), padding=1)
        elif kind == 'max':
            add('maxpool', (i,), c, (h - 1)//2 + 1, (w - 1)//2 + 1, kernel=3, stride=2, padding=1)
        elif even: add('avgpool', (i,), c, h//2, w//2, kernel=2, stride=2, factor=1.5)
    add('mean', (len(nodes),), shapes[-1][0], 1, 1)
    conv('conv', len(nodes), data.draw(st.sampled_from((1, 10, 100))), 1, slope=False)
    return Graph(shapes[0][0], nodes), shapes[0]


def away_from_ties(graph, x):
    "move thresholds so far from every number that rounding cannot flip a sign"
    net = FoldedNet(graph).double()
    for i, n in enumerate(graph.nodes):
        if n.op != 'bconv': continue
        v = FoldedNet(Graph(graph.channels, graph.nodes[:i])).double().values(x)[n.inputs[0]]
        for c in range(v.shape[1]):
            s = v[:, c].flatten().sort().values
            cuts = torch.cat([s[:1] - 1, (s[1:] + s[:-1])/2, s[-1:] + 1])
            gaps = torch.cat([torch.ones(1), s[1:] - s[:-1], torch.ones(1)])
            near = (cuts - float(n.tensors['threshold'][c])).abs() + 1e9*(gaps < 1e-3)
            n.tensors['threshold'][c] = cuts[near.argmin()]
        net = FoldedNet(graph).double()
    return net


@settings(max_examples=40, deadline=None)
@given(st.data(), SEEDS, st.integers(1, 4), st.integers(1, 3), st.sampled_from(HERE))
def test_any_network(data, seed, batch, threads, way):
    "the engine against torch in float64, the file in between; all threads and ways give one answer"
    g = np.random.default_rng(seed)
    graph, shape = any_graph(data, g)
    x = numbers(g, batch, *shape)
    net = away_from_ties(graph, torch.tensor(x).double())
    with torch.no_grad(): want = net(torch.tensor(x).double()).numpy()
    got = Engine(from_bytes(to_bytes(graph)), threads, way)(x)
    assert np.abs(got - want).max() <= 1e-4*max(1, np.abs(want).max())
    assert (Engine(graph)(x) == got).all()
    assert (np.concatenate([Engine(graph)(i[None]) for i in x]) == got).all()


# Memory ------------------------------------------------------------------------------------------

PAGE = mmap.PAGESIZE
MAPS = [] # they live as long as the process

def guarded(n, side):
    "n bytes of zeros beside a page that may not be touched, behind them ('end') or before"
    size = -(-max(n, 1)//PAGE)*PAGE
    MAPS.append(mmap.mmap(-1, size + 2*PAGE))
    whole = np.frombuffer(MAPS[-1], np.uint8)
    for page in (whole.ctypes.data, whole.ctypes.data + size + PAGE):
        assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(page), PAGE, 0) == 0
    first = PAGE if side == 'start' else PAGE + size - n
    return whole[first:first + n]


def put_guards(side):
    "all memory of the engine lies beside such a page from now on"
    def aligned(a):
        out = guarded(a.nbytes, side).view(a.dtype).reshape(a.shape)
        out[...] = a
        return out
    kernels.aligned = engine.aligned = aligned
    return aligned


def thin_graph(g, c, times, k, stride, padding, dilation):
    "few channels, repeated by a residual: a filter then reads more words than its channels fill"
    n = c*times
    def t(n, c, k):
        weight, scale = signs(g, n, c, k, k), numbers(g, n)/(c*k*k)**.5
        return dict(weight=weight, scale=scale, bias=numbers(g, n), threshold=numbers(g, c)/9)
    return Graph(1, [
        Node('conv', (0,), dict(weight=numbers(g, c, 1, 3, 3), bias=numbers(g, c)), padding=1),
        Node('bconv', (1, 1), t(n, c, 1)),
        Node('bconv', (2,), t(33, n, k), stride=stride, padding=padding, dilation=dilation),
        Node('maxpool', (3,), kernel=3, stride=2, padding=1),
        Node('bconv', (4, 4), t(66, 33, 3), padding=1),
        Node('mean', (5,)),
        Node('conv', (6,), dict(weight=numbers(g, 5, 66, 1, 1), bias=numbers(g, 5)))])


def guarded_runs(side, n=40):
    "run in a process of its own: a byte too far ends it; n networks, each in random ways"
    aligned = put_guards(side)

    small, side_ = st.integers(1, 3), st.integers(9, 20)

    @seed(0)
    @settings(max_examples=n, deadline=None, database=None)
    @given(SEEDS, st.sampled_from((1, 7, 8, 16, 33)), st.sampled_from((1, 2, 4, 8)),
           st.sampled_from((1, 2, 3, 5)), st.tuples(small, st.integers(0, 3), st.integers(1, 2)),
           st.tuples(side_, side_), st.integers(1, 4), small, st.sampled_from(HERE))
    @example(0, 8, 2, 3, (2, 1, 1), (20, 20), 2, 1, HERE[-1])
    def runs(seed, c, times, k, conv, size, batch, threads, way):
        MAPS.clear()
        gc.collect()
        g = np.random.default_rng(seed)
        x = aligned(numbers(g, batch, 1, *size))
        y = Engine(thin_graph(g, c, times, k, *conv), threads, way)(x)
        assert y.shape == (batch, 5)
        f, s = signs(g, batch, c*times, *size), signs(g, 34, c*times, k, k)
        packed_conv2d(f, s, *conv, way=way, threads=threads)
    runs()
    print('inside')


@pytest.mark.skipif(sys.platform != 'linux', reason='pages are guarded by mprotect')
@pytest.mark.parametrize('side', ('end', 'start'))
def test_no_byte_outside(side):
    "widths, sizes, strides, batches, threads and ways at random, each buffer beside such a page"
    code = 'import sys\nsys.path.insert(0, sys.argv[1])\nfrom test_packed import guarded_runs\n'
    p = python(code + 'guarded_runs(sys.argv[2])', str(ROOT/'tests'), side)
    assert p.returncode == 0 and p.stdout.strip() == 'inside', p.stderr[-2000:]


@pytest.mark.parametrize('width', (.25, .125))
def test_thin_reactnet_a(width):
    "it crashed: memory for indices was measured by a filter's channels, not by the words it reads"
    torch.manual_seed(0)
    graph = fold(create_model('reactnet_a_nobn', n_out=10, width=width).eval())
    x = numbers(np.random.default_rng(0), 1, 3, 224, 224)
    want = Engine(graph, way='portable')(x)
    for way in HERE: assert (Engine(graph, 2, way)(x) == want).all()


def test_a_plan_that_leaves_its_memory_is_refused():
    graph = thin_graph(np.random.default_rng(0), 8, 4, 3, 1, 1, 1)
    need = len(Engine(graph).scratch[0])
    assert engine.make_plan(graph, (9, 9), 'avx2', scratch=need).rows.size
    refused = pytest.raises(RuntimeError, match='a fault of bnn_bn')
    with refused: engine.make_plan(graph, (9, 9), 'avx2', scratch=need - 1)
    plan = engine.make_plan(graph, (9, 9), 'portable')
    for i in range(len(plan.rows) - 1):
        rows = plan.rows.copy()
        rows['pixels'][i] += 8
        rows['height'][i] += 8
        with pytest.raises(RuntimeError, match='a fault of bnn_bn'):
            kernels.check_reach(rows, plan.memory, 'portable', 0)


@pytest.mark.parametrize('way', HERE)
@pytest.mark.parametrize('c, k', ((1024, 7), (1024, 8), (8192, 3), (8192, 5)))
def test_sums_do_not_wrap(c, k, way):
    "all signs differ: the largest sum that there is"
    x, f = np.ones((1, c, k, k), np.int8), -np.ones((32, c, k, k), np.int8)
    assert (packed_conv2d(x, f, way=way) == -c*k*k).all()
    assert (packed_conv2d(x, -f, way=way) == c*k*k).all()


def test_a_network_with_a_filter_beyond_the_table():
    g = np.random.default_rng(0)
    stem = dict(weight=numbers(g, 1024, 1, 1, 1), bias=numbers(g, 1024))
    always = np.full(1024, -np.inf, np.float32) # every sign is +1
    t = dict(weight=signs(g, 8, 1024, 8, 8), bias=numbers(g, 8), threshold=always)
    graph, x = Graph(1, [Node('conv', (0,), stem), Node('bconv', (1,), t)]), numbers(g, 1, 1, 8, 8)
    want = t['weight'].sum((1, 2, 3), dtype=int) + t['bias']
    for way in HERE: assert np.allclose(Engine(graph, way=way)(x), want, rtol=1e-6)


# Files of strangers ------------------------------------------------------------------------------

def signed(head, body):
    "a file with this header, rightly signed"
    text = json.dumps(head).encode()
    rest = text + bytes(-len(text) % 64) + body
    start = b'\x89BNN\r\n\x1a\n' + struct.pack('<HBBIQQ', 1, 0, 0, len(text), 64 + len(rest), 0)
    return start + hashlib.sha256(start + rest).digest() + rest


@pytest.mark.parametrize('info', (None, [1], {(1, 2): 3}, {'counts': {np.int64(3): 'cat'}}, {'a': {1}}),
                         ids=str)
def test_info_that_json_cannot_hold_is_refused(info):
    "as a ValueError that says so, before there is a file that nobody reads"
    graph = thin_graph(np.random.default_rng(0), 8, 2, 3, 1, 1, 1)
    graph.info = info
    with pytest.raises(ValueError, match='info'): to_bytes(graph)

DATA = to_bytes(thin_graph(np.random.default_rng(0), 8, 2, 3, 1, 1, 1))
N_HEAD = struct.unpack('<I', DATA[12:16])[0]
HEAD, BODY = json.loads(DATA[64:64 + N_HEAD]), DATA[64 + N_HEAD + -N_HEAD % 64:]
WORDS = 'bit', 'f32', 'conv', 'bconv', 'mean', 'maxpool', 'avgpool', 0, 1, 2, 3, 255, 256, {}
ODD = st.one_of(st.none(), st.booleans(), st.integers(-2**70, 2**70), st.floats(),
                st.text(max_size=3), st.lists(st.integers(-2, 2**40), max_size=5),
                st.sampled_from(WORDS))

def places(v, path=()):
    "every place in a header"
    items = v.items() if isinstance(v, dict) else enumerate(v) if isinstance(v, list) else ()
    for k, w in items:
        yield (*path, k)
        yield from places(w, (*path, k))

PLACES = list(places(HEAD))


@settings(max_examples=500, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(PLACES), ODD), min_size=1, max_size=3))
def test_any_header(changes):
    "a header with anything in any place: a ValueError, or a graph that runs or refuses its images"
    head = copy.deepcopy(HEAD)
    for path, v in changes:
        at = head
        try:
            for k in path[:-1]: at = at[k]
            at[path[-1]] = v
        except (TypeError, IndexError, KeyError): pass # an earlier change took the place away
    try: y = Engine(from_bytes(signed(head, BODY)))(np.zeros((1, 1, 12, 12), np.float32))
    except ValueError: return
    assert y.shape[0] == 1


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, N_HEAD - 1), st.integers(0, 255)), min_size=1, max_size=4),
       st.integers(0, 2**32 - 1) | st.just(None))
def test_any_bytes_in_a_header(changes, n_head):
    "bytes of the header changed, its length too, and signed again: a ValueError, or a graph"
    text = bytearray(DATA[64:64 + N_HEAD])
    for i, v in changes: text[i] = v
    rest = bytes(text) + bytes(-len(text) % 64) + BODY
    start = DATA[:12] + struct.pack('<IQQ', N_HEAD if n_head is None else n_head, 64 + len(rest), 0)
    try: graph = from_bytes(start + hashlib.sha256(start + rest).digest() + rest)
    except ValueError: return
    assert isinstance(graph, Graph)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, len(DATA) - 1), st.integers(1, 255), st.integers(0, len(DATA) - 1))
def test_any_damage(i, v, n):
    "a byte changed, or a file cut: found"
    for bad in (DATA[:i] + bytes([DATA[i] ^ v]) + DATA[i + 1:], DATA[:n]):
        with pytest.raises(ValueError): from_bytes(bad)


def test_arrays_share_no_byte():
    "a small file whose steps share one array would need gigabytes"
    head = copy.deepcopy(HEAD)
    head['nodes'] += [dict(head['nodes'][1], inputs=[2])]*1000
    with pytest.raises(ValueError, match='contradicts itself'): from_bytes(signed(head, BODY))


def test_nothing_is_allocated_for_a_claim():
    "a shape of terabytes in a small file; and a nesting that no parser follows"
    head = copy.deepcopy(HEAD)
    head['nodes'][0]['tensors']['weight'][1:] = [[2**31, 2**31, 3, 3], 0, 4*9*2**62]
    with pytest.raises(ValueError, match='contradicts itself'): from_bytes(signed(head, BODY))
    text = b'['*100_000
    rest = text + bytes(-len(text) % 64)
    start = DATA[:12] + struct.pack('<IQQ', len(text), 64 + len(rest), 0)
    data = start + hashlib.sha256(start + rest).digest() + rest
    with pytest.raises(ValueError, match='not one of ours'): from_bytes(data)


# Networks ----------------------------------------------------------------------------------------

NAMES = [n for n in list_models('*net*') if 'real' not in n and '34' not in n]

@pytest.mark.parametrize('name', NAMES)
def test_every_model(name):
    "packed = trained on a random network, in all but the signs that rounding flips"
    torch.manual_seed(0)
    model = create_model(name, n_out=10, width=.25).eval()
    for n, p in model.named_parameters():
        if any(k in n for k in ('shift', 'gain', 'norm')): p.data.add_(.2*torch.randn_like(p))
    x = torch.randn(4, 3, 64, 64)
    with torch.no_grad(): want = model(x)
    packed = pack(model, threads=2)
    got = packed(x)
    close = (got - want).abs().amax(1) < 1e-5*want.abs().max() # measured: 6.2e-7 in all images
    assert close.sum() >= 3, (got - want).abs().amax(1)
    assert torch.equal(pack(model)(x), got)


def test_threads_of_the_caller():
    "calls from several threads at once take turns; the results are those of one"
    g = np.random.default_rng(0)
    packed = pack(mini(), threads=2)
    images = [numbers(g, 1 + i % 3, 3, 32, 32) for i in range(12)]
    want, got = [packed(x) for x in images], [None]*12
    def work(i): got[i] = packed(images[i])
    ts = [threading.Thread(target=work, args=(i,)) for i in range(12)]
    for t in ts: t.start()
    for t in ts: t.join()
    assert all((a == b).all() for a, b in zip(want, got, strict=True))


def test_after_a_fork():
    "worker threads do not survive a fork: the child makes its own"
    p = python("""
import os, numpy as np
from bnn_bn.onebit.engine import Engine
from bnn_bn.onebit.graph import Graph, Node
def f(*shape): return np.ones(shape, np.float32)
stem, fc = dict(weight=f(32, 3, 3, 3), bias=f(32)), dict(weight=f(5, 32, 1, 1), bias=f(5))
nodes = [Node('conv', (0,), stem, padding=1), Node('mean', (1,)), Node('conv', (2,), fc)]
e, x = Engine(Graph(3, nodes), 2), f(1, 3, 8, 8)
y = e(x)
pid = os.fork()
if pid == 0: os._exit(0 if (e(x) == y).all() else 1)
assert os.waitpid(pid, 0)[1] == 0
""")
    assert p.returncode == 0, p.stderr


def tiny(threads=1, way=None, c=3):
    g = np.random.default_rng(0)
    stem = dict(weight=numbers(g, 32, c, 3, 3), bias=numbers(g, 32))
    t = dict(weight=signs(g, 32, 32, 3, 3), bias=numbers(g, 32), threshold=numbers(g, 32))
    fc = dict(weight=numbers(g, 5, 32, 1, 1), bias=numbers(g, 5))
    nodes = [Node('conv', (0,), stem, padding=1), Node('bconv', (1, 1), t, padding=1),
             Node('mean', (2,)), Node('conv', (3,), fc)]
    return Engine(Graph(c, nodes), threads, way)


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='no fork here')
def test_fork_while_a_thread_answers():
    "the child uses the same engine although a thread of its parent is inside a call"
    net, x, big = tiny(2), np.ones((2, 3, 16, 16), np.float32), np.ones((64, 3, 96, 96), np.float32)
    want, stop = net(x), threading.Event()
    def answer():
        while not stop.is_set(): net(big)
    thread = threading.Thread(target=answer)
    thread.start()
    try:
        while not net.lock.locked():
            assert thread.is_alive(), 'it ended with an error'
            time.sleep(.001)
        pid = os.fork()
        if pid == 0: os._exit(0 if (net(x) == want).all() and (tiny()(x) == want).all() else 1)
        end = time.time() + 60
        while (found := os.waitpid(pid, os.WNOHANG))[0] == 0 and time.time() < end: time.sleep(.01)
        if found[0] == 0: os.kill(pid, 9)
        assert found == (pid, 0)
    finally:
        stop.set()
        thread.join()


CLOSED = """
import gc, os, signal, sys
import numpy as np
from bnn_bn.onebit.engine import Engine
from bnn_bn.onebit.graph import Graph, Node
def f(*shape): return np.ones(shape, np.float32)
nodes = [Node('conv', (0,), dict(weight=f(32, 3, 3, 3), bias=f(32))), Node('mean', (1,))]
e, x = Engine(Graph(3, nodes), 2), f(1, 3, 8, 8)
y = e(x)
lock = e.helpers.calls[0]._cond # as a helper holds it when it takes a call
with lock: pid = os.fork()
if pid == 0:
    signal.alarm(20)
    lock.acquire() # the fork copied it, and nobody in this process opens it
    if sys.argv[1] == 'answers': assert (e(x) == y).all()
    if sys.argv[1] != 'ends': del e
    gc.collect()
    sys.exit()
sys.exit(os.waitpid(pid, 0)[1])
"""

@pytest.mark.skipif(not hasattr(os, 'fork'), reason='no fork here')
@pytest.mark.parametrize('how', ('drops', 'answers', 'ends'))
def test_a_child_does_not_wait_for_the_threads_of_its_parent(how):
    "an engine goes away in it, although a helper was at work at the fork"
    done = python(CLOSED, how)
    assert done.returncode == 0, done.stderr


def pickled(net): return pickle.loads(pickle.dumps(net))

@pytest.mark.parametrize('how', (pickled, copy.deepcopy, copy.copy))
def test_copies(how):
    "a copy answers alike, with the same threads and way, and has a lock of its own"
    net, x = tiny(2, 'portable'), np.ones((1, 3, 9, 9), np.float32)
    want, other = net(x), how(net)
    assert (other(x) == want).all() and (other.threads, other.way) == (2, 'portable')
    assert other.lock is not net.lock


def test_dropped_networks_leave_nothing():
    "threads and memory of engines that nobody holds any more go away"
    x, before, dead = np.ones((2, 3, 16, 16), np.float32), threading.active_count(), []
    for _ in range(20):
        net = tiny(3)
        net(x)
        net(x[:1])
        dead.append(weakref.ref(net))
        del net
    gc.collect()
    end = time.time() + 20
    while threading.active_count() > before and time.time() < end: time.sleep(.01)
    assert threading.active_count() <= before and not any(d() for d in dead)


def test_many_sizes():
    "plans come and go; weights are laid out once for all of them"
    net = tiny(2)
    for side in range(3, 60): net(np.ones((2, 3, side, side), np.float32))
    plans = list(net.plans.values())
    assert len(plans) == engine.MOST_PLANS
    weights = {id(a) for made in net.made.values() for a in made.values()}
    shared = [weights & {id(a) for a in p.memory.arrays} for p in plans]
    assert shared[0] and all(s == shared[0] for s in shared)


def test_ctrl_c_in_a_call():
    "an interrupt in the caller's part: the others finish, and the engine answers as before"
    net, x = tiny(2), np.ones((4, 3, 32, 32), np.float32)
    want, real_call, hits = net(x), net.helpers.call, []
    def call():
        real_call()
        hits.append(1)
        if len(hits) == 1: raise KeyboardInterrupt
    net.helpers.call = call
    with pytest.raises(KeyboardInterrupt): net(x)
    assert not net.lock.locked() and (net(x) == want).all()


@pytest.mark.parametrize('bad', (np.nan, np.inf, -np.inf))
def test_nan_pixels(bad):
    "an image with a NaN or an infinity gives NaN; the others of its batch are as before"
    net, x = tiny(2), np.ones((3, 3, 8, 8), np.float32)
    want = net(x)
    x[1, 0, 3, 3] = bad
    got = net(x)
    assert np.isnan(got[1]).all() and (got[[0, 2]] == want[[0, 2]]).all()


@pytest.mark.parametrize('bad', (np.nan, np.inf, -np.inf))
@pytest.mark.parametrize('name, stem_bits', (
    ('xnornet18_bn', None), ('vgg11_nobn', None), ('birealnet18_bn', None), ('reactnet_mini_nobn', None),
    ('vgg11_nobn', 8), ('reactnet_mini_nobn', 8)))
def test_nan_pixels_as_when_trained(name, stem_bits, bad):
    "also where no real shortcut carries them past the signs; for eight bits infinity is a byte"
    torch.manual_seed(0)
    model = create_model(name, n_out=10, in_chans=3, width=.125, stem_bits=stem_bits).eval()
    if stem_bits: set_pixels(model.body.stem.conv, .4, .3)
    x = np.zeros((1, 3, 64, 64), np.float32)
    x[0, 0, 9, 9] = bad
    with torch.no_grad(): trained = torch.isnan(model(torch.tensor(x)))
    assert trained.all() == trained.any() == (stem_bits is None or np.isnan(bad))
    packed = pack(model)(x)
    assert (np.isnan(packed) == trained.numpy()).all()


@pytest.mark.parametrize('threads', (0, -1, 1.5, True, '2', None, 10**6))
def test_bad_threads(threads):
    with pytest.raises(ValueError, match='threads='): tiny(threads)
    x = np.ones((1, 1, 3, 3))
    if threads in (True, 10**6): return
    with pytest.raises(ValueError, match='threads='): packed_conv2d(x, x, threads=threads)


def test_masked_and_odd_arrays():
    net, x = tiny(), numbers(np.random.default_rng(1), 2, 3, 9, 9)
    want = net(x)
    with pytest.raises(ValueError, match='mask'): net(np.ma.masked_array(x, x > 1))
    raw = np.zeros(x.nbytes + 1, np.uint8)
    unaligned = raw[1:].view(np.float32).reshape(x.shape)
    unaligned[...] = x
    read_only = x.copy()
    read_only.setflags(write=False)
    for same in (unaligned, read_only, np.asfortranarray(x), np.repeat(x, 2, 3)[..., ::2]):
        assert (net(same) == want).all()


# Where numba may not do what it likes ------------------------------------------------------------

CONV = """import numpy as np
from bnn_bn.onebit.kernels import *
x, w = np.ones((1, 64, 8, 8)), np.ones((32, 64, 3, 3))
assert (packed_conv2d(x, w{}) == 576).all()
print('right')"""
GENERIC = dict(NUMBA_CPU_NAME='generic', NUMBA_CPU_FEATURES='')

SETTINGS = dict(NUMBA_DISABLE_JIT='1'), dict(NUMBA_CPU_NAME='generic'), GENERIC

@pytest.mark.parametrize('env', SETTINGS, ids=str)
def test_settings_of_numba(env, tmp_path):
    "compiled all the same; for a generic CPU by another way"
    p = python(CONV.format(''), NUMBA_CACHE_DIR=str(tmp_path), **env)
    assert p.stdout.strip() == 'right', p.stderr[-1000:]


def test_a_way_that_numba_does_not_compile_for(tmp_path):
    p = python(CONV.format(', way="avx2"'), NUMBA_CACHE_DIR=str(tmp_path), **GENERIC)
    assert p.returncode == 1 and "way='avx2'" in p.stderr and 'NUMBA_CPU_NAME' in p.stderr


def zeros(*shape, dtype=np.float32): return np.zeros(shape, dtype)

@pytest.mark.parametrize('bad, words', [
    (zeros(3, 32, 32), 'images of shape (3, 32, 32)'),
    (zeros(1, 32, 32, 3), 'channels last'),
    (zeros(1, 1, 32, 32), '(B,3,H,W)'),
    (zeros(1, 3, 32, 32, dtype=np.uint8), 'divide by 255'),
    (zeros(1, 3, 32, 32, dtype=float), 'dtype float64'),
    (torch.zeros(1, 3, 32, 32, dtype=torch.bfloat16), 'bfloat16'),
    (torch.zeros(1, 3, 32, 32).to_sparse(), 'sparse'),
    (zeros(1, 3, 30, 30), 'resize or pad'),
    (zeros(1, 3, 0, 0), 'use larger images'),
    ('picture.png', 'a numpy array or a torch tensor')])
def test_bad_images(bad, words):
    packed = pack(create_model('reactnet18_nobn', n_out=10, width=.25, stem='cifar').eval())
    with pytest.raises(ValueError) as e: packed(bad)
    assert words in str(e.value)


def test_no_images():
    packed = pack(mini())
    assert packed(np.zeros((0, 3, 32, 32), np.float32)).shape == (0, 10)


# A machine without torch -------------------------------------------------------------------------

NO_TORCH = """import sys, json, numpy as np
MISSING = 'torch torchvision fastai fastcore nbdev safetensors matplotlib pandas onnx'.split()
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in MISSING: raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Block())
from bnn_bn.deploy import load_packed, classify
net = load_packed(sys.argv[1])
y = net(np.load(sys.argv[2]))
assert not set(MISSING) & {m.split('.')[0] for m in sys.modules}
label = classify(net, np.zeros((32, 32, 3), np.uint8))[0][0][0]
print(json.dumps([y.tolist(), label]))"""

def test_without_torch(tmp_path):
    "a process that can import numpy, numba, Pillow and some of our modules, and nothing else that we need"
    site = tmp_path/'site'
    for package in ('onebit', 'core', 'images'): (site/'bnn_bn'/package).mkdir(parents=True)
    inits = '__init__', 'core/__init__', 'images/__init__', 'onebit/__init__'
    engine = (f'onebit/{m}' for m in ('graph', 'stem', 'counting', 'native', 'tiles', 'kernels',
                                    'engine'))
    core = (f'core/{m}' for m in ('arguments', 'errors', 'files', 'places'))
    for m in (*inits, '_old_names', 'deploy', *core, 'images/pictures', *engine):
        shutil.copy(ROOT/f'bnn_bn/{m}.py', site/f'bnn_bn/{m}.py')
    model = create_model('reactnet18_nobn', n_out=10, width=.25, stem='cifar').eval()
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    packed = pack(model, classes=[*'abcdefghij'], mean=[.5]*3, std=[.25]*3, size=[32, 32])
    packed.save(tmp_path/'net.bnn'); np.save(tmp_path/'x.npy', x.numpy())
    p = python(NO_TORCH, str(tmp_path/'net.bnn'), str(tmp_path/'x.npy'), PYTHONPATH=str(site))
    assert p.returncode == 0, p.stderr
    y, label = json.loads(p.stdout)
    assert (np.array(y, np.float32) == packed(x.numpy())).all() and label in 'abcdefghij'


def test_loaded_from_a_file_is_the_same(tmp_path):
    packed = pack(create_model('reactnet_a_nobn', n_out=10, width=.25).eval())
    x = np.random.default_rng(0).standard_normal((1, 3, 64, 64), np.float32)
    assert (load_packed(packed.save(tmp_path/'a.bnn'))(x) == packed(x)).all()
    assert fold(create_model('reactnet_mini_bn')).info['config']['norm'] == 'bn'

# what a user says of the pictures ---------------------------------------------------------------

NAMES = [f'class {k}' for k in range(10)]
SAID = dict(lists=lambda: (NAMES, [.5]*3, [.25]*3), tuples=lambda: (tuple(NAMES), (.5,)*3, (.25,)*3),
            arrays=lambda: (np.array(NAMES), np.full(3, .5), np.full(3, .25, np.float32)),
            tensors=lambda: (NAMES, torch.full((3,), .5), torch.full((3,), .25)),
            numbers=lambda: (NAMES, .5, .25), of_numpy=lambda: (NAMES, np.float64(.5), np.float32(.25)))

@pytest.mark.parametrize('kind', SAID)
def test_facts_of_pictures_in_any_type(kind, tmp_path):
    "what a file says of its pictures does not depend on the type in which a user gave it"
    classes, mean, std = SAID[kind]()
    packed = pack(mini(), classes=classes, mean=mean, std=std, size=np.array([32, 32]))
    info = load_packed(packed.save(tmp_path/'n.bnn')).info
    assert (list(info['classes']), info['size']) == (NAMES, [32, 32])
    assert (info['mean'], info['std']) == ([.5]*3, [.25]*3)

def test_padding_that_a_file_cannot_hold_is_named():
    "it was found only by the comparison of logits, which asks for a report"
    net = mini()
    net.body.block1.conv.padding_mode = 'reflect'
    with pytest.raises(ValueError, match="block1: padding_mode='reflect'"): pack(net)

HEADS = {
    'three': lambda nf: [torch.nn.Linear(nf, 9), torch.nn.ReLU(), torch.nn.Linear(9, 8, bias=False),
                         torch.nn.LeakyReLU(.3), torch.nn.Linear(8, 7)],
    'without activation': lambda nf: [torch.nn.Linear(nf, 9), torch.nn.Linear(9, 7)],
    'slopes': lambda nf: [torch.nn.Linear(nf, 9), torch.nn.PReLU(9), torch.nn.Dropout(.5), torch.nn.Linear(9, 7)],
    'nested': lambda nf: [torch.nn.Sequential(torch.nn.Linear(nf, 9), torch.nn.PReLU()), torch.nn.Linear(9, 7)]}

@pytest.mark.parametrize('name', HEADS)
def test_heads_of_several_linear_layers(name):
    "the same logits; and the network can be told from one with a plain classifier"
    net, x = mini(), torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    layers = [torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), *HEADS[name](net.num_features)]
    net.head = torch.nn.Sequential(*layers).eval()
    for m in net.head.modules():
        if isinstance(m, torch.nn.PReLU): m.weight.data.uniform_(-1, 1)
    packed = pack(net)
    with torch.no_grad(): assert (packed(x) - net(x)).abs().max() < 1e-5
    assert packed.n_out == 7

@pytest.mark.parametrize('layer', [torch.nn.Tanh(), torch.nn.GELU(), torch.nn.BatchNorm1d(9)])
def test_a_layer_of_the_head_that_has_no_place_is_named(layer):
    net = mini()
    fc = net.head.fc
    net.head.fc = torch.nn.Sequential(torch.nn.Linear(fc.in_features, 9), layer, torch.nn.Linear(9, 7))
    with pytest.raises(ValueError, match=f'head holds.*{type(layer).__name__}'): pack(net.eval())
