"""The loops around the kernels, run by Python and compiled: the same bytes from both.

numba compiles these loops, so no debugger and no measure of coverage sees their lines. Here Python
runs them as they are written, and only what stands in LLVM's language is compiled.
"""
import ctypes

import numba
import numpy as np
import pytest
from test_packed import HERE, numbers, signs, thin_graph
from test_stem import expected, random_stem, shown, stem_node

from bnn_bn.onebit import kernels, tiles
from bnn_bn.onebit.counting import Deferred, write_now
from bnn_bn.onebit.engine import Engine
from bnn_bn.onebit.graph import Graph, Node
from bnn_bn.onebit.kernels import packed_conv2d
from bnn_bn.onebit.tiles import ROW


def from_python(intrinsic):
    "what is written in LLVM's language, as Python can call it"
    @numba.njit
    def call(*args): return intrinsic(*args)
    return call

def row_there(address):
    "the row of a plan that lies at an address"
    data = (ctypes.c_char*ROW.itemsize).from_address(int(address))
    return np.frombuffer(data, ROW).view(np.recarray)[0]

def word_at(peek):
    "as a number of 32 bits, which Python's own whole numbers are not"
    return lambda address: np.uint32(peek(address))

@pytest.fixture(scope='module')
def written():
    "module and name -> what Python calls there in place of compiled code"
    found = {}
    for module in (tiles, kernels):
        for name, f in vars(module).items():
            if not isinstance(f, Deferred): continue
            found[module, name] = from_python(f) if f.make is write_now else f.__wrapped__
    for module in (tiles, kernels): found[module, 'peek'] = word_at(found[module, 'peek'])
    found[kernels, 'row_at'] = row_there
    return found

@pytest.fixture
def by_python(written, monkeypatch):
    "call it: from then on Python runs the loops"
    def code(kind): return kernels.functions_of(kind()), None
    def begin():
        for (module, name), f in written.items(): monkeypatch.setattr(module, name, f)
        monkeypatch.setattr(kernels, 'code_of_kind', code)
    return begin


@pytest.mark.parametrize('way', HERE)
def test_convolutions(way, by_python):
    "one, two, three and four pixels left; 32 and 64 channels; several threads by block and by tile"
    g = np.random.default_rng(0)
    cases = [(signs(g, 1, c, h, 5), signs(g, n, c, k, k), threads)
             for c, n, h, k, threads in ((33, 33, 3, 3, 1), (5, 130, 1, 1, 2), (64, 40, 9, 2, 3))]
    def answers(): return [packed_conv2d(x, w, padding=1, way=way, threads=t) for x, w, t in cases]
    compiled = answers()
    by_python()
    assert all((a == b).all() for a, b in zip(compiled, answers()))

def pooled(g):
    "a graph with both pools, of 32 and of 96 channels"
    def conv(op, i, n, c): return Node(op, (i,), weights(g, op, n, c), padding=1)
    def pool(op, i, **window): return Node(op, (i,), **window)
    head = dict(weight=numbers(g, 3, 96, 1, 1), bias=numbers(g, 3))
    return Graph(1, [
        conv('conv', 0, 96, 1), pool('maxpool', 1, kernel=3, stride=2, padding=1),
        conv('bconv', 2, 32, 96), pool('avgpool', 3, kernel=2, stride=2), conv('bconv', 4, 96, 32),
        pool('mean', 5), Node('conv', (6,), head)])

def weights(g, op, n, c):
    t = dict(bias=numbers(g, n))
    if op == 'conv': return dict(t, weight=numbers(g, n, c, 3, 3))
    return dict(t, weight=signs(g, n, c, 3, 3), scale=numbers(g, n)/30, threshold=numbers(g, c))

@pytest.mark.parametrize('batch, threads', ((3, 1), (1, 2), (2, 2)))
def test_networks(batch, threads, by_python):
    "one thread; two that share an image; two with an image each"
    g = np.random.default_rng(batch)
    graphs = pooled(g), thin_graph(g, 8, 2, 3, 1, 1, 1)
    x = numbers(g, batch, 1, 12, 12)
    def answers(): return [Engine(graph, threads)(x) for graph in graphs]
    compiled = answers()
    by_python()
    assert all((a == b).all() for a, b in zip(compiled, answers()))

def wide_stem():
    "pictures of more than 16 columns, which are laid out 16 pixels at a time"
    g = np.random.default_rng(0)
    node = stem_node(g, 3, 33, 3, 2, 1, 1, True)
    u = g.integers(0, 256, (2, 3, 4, 21)).astype(np.uint8)
    return u, shown(node, expected(u, node))

SMALL = (5, 70, 3, 2, 1, 1), (1, 31, 1, 1, 0, 1)
STEMS = [wide_stem(), *(random_stem(0, shape, True)[:2] for shape in SMALL)]

@pytest.mark.parametrize('way', HERE)
def test_stems_of_bytes(way, by_python):
    def answers(): return [Engine(graph, 1, way)(u) for u, graph in STEMS]
    compiled = answers()
    by_python()
    assert all((a == b).all() for a, b in zip(compiled, answers()))
