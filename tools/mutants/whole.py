"Networks of whole numbers, whose sums floats hold exactly, and what a graph means in numpy."
import numpy as np

from bnn_bn.onebit.graph import Graph, Node
from bnn_bn.onebit.stem import zero_points

POWERS = np.float32([.25, .5, 1, 2, -.5, -1])


def signs(g, *shape): return g.choice(np.int8([-1, 1]), shape)
def wholes(g, *shape): return g.integers(-3, 4, shape).astype(np.float32)


# What a graph means ------------------------------------------------------------------------------

def windows(x, kernel, n, fill=0.):
    "(B,C,H',W',kh,kw): what each output looks at"
    p, d = n.padding, n.dilation
    x = np.pad(x, ((0, 0), (0, 0), (p, p), (p, p)), constant_values=fill)
    reach = [d*(k - 1) + 1 for k in kernel]
    seen = np.lib.stride_tricks.sliding_window_view(x, reach, (2, 3))
    return seen[:, :, ::n.stride, ::n.stride, ::d, ::d]

def seen_by(n, x):
    "the numbers that a convolution multiplies: signs, bytes less their zero points, or as they are"
    if n.op == 'iconv': return x - zero_points(n.tensors['mean']).reshape(-1, 1, 1)
    if n.op == 'conv': return x
    return np.where(x >= n.tensors['threshold'].reshape(-1, 1, 1), 1., -1.)

def convolution(n, x, residual):
    t = n.tensors
    w, c = t['weight'].astype(float), (-1, 1, 1)
    y = np.einsum('bchwij,ocij->bohw', windows(seen_by(n, x), w.shape[2:], n), w)
    y = y*t.get('scale', np.ones(len(w))).reshape(c) + t['bias'].reshape(c)
    if residual is not None: y = y + np.tile(residual, (1, len(w)//residual.shape[1], 1, 1))
    return np.where(y > 0, y, y*t['slope'].reshape(c)) if 'slope' in t else y

def pool(n, x):
    if n.op == 'mean': return x.mean((2, 3), keepdims=True)
    kernel = n.kernel, n.kernel
    if n.op == 'maxpool': return windows(x, kernel, n, -np.inf).max((4, 5))
    return windows(x, kernel, n).mean((4, 5))*n.factor

def values_by_hand(graph, x):
    "all values of a graph, the images first"
    values = [x.astype(float)]
    for n in graph.nodes:
        x, residual = values[n.inputs[0]], None
        if len(n.inputs) > 1: residual = values[n.inputs[1]]
        values.append(convolution(n, x, residual) if n.op.endswith('conv') else pool(n, x))
    return values

def by_hand(graph, x): return values_by_hand(graph, x)[-1][:, :, 0, 0]


# Networks ----------------------------------------------------------------------------------------

def real(g, i, c, o, k=1, residual=(), **fields):
    t = dict(weight=wholes(g, o, c, k, k), bias=wholes(g, o))
    return Node('conv', (i, *residual), t, name='real', **fields)

def binary(g, i, c, o, k=1, residual=(), slope=True, **fields):
    t = dict(weight=signs(g, o, c, k, k), bias=wholes(g, o), scale=g.choice(POWERS, o),
             threshold=wholes(g, c) + np.float32(.125))
    if slope: t['slope'] = g.choice(POWERS, o)
    return Node('bconv', (i, *residual), t, name='binary', **fields)

def bytes_stem(g, c, o, k, **fields):
    t = dict(weight=g.integers(-9, 10, (o, c, k, k)).astype(np.int8), bias=wholes(g, o),
             scale=np.full(o, 2.**-8, np.float32), std=np.ones(c, np.float32),
             mean=g.random(c).astype(np.float32))
    return Node('iconv', (0,), t, name='bytes', **fields)

def wide(g):
    "residuals, of as many channels and of fewer; a value whose sign is taken twice; pools"
    return Graph(3, [
        real(g, 0, 3, 33, 3, padding=1), # of 8x12 pixels
        binary(g, 1, 33, 33, 3, (1,), padding=1),
        binary(g, 2, 33, 66, 1, (2,)),
        Node('maxpool', (3,), kernel=3, stride=2, padding=1), # 4x6
        binary(g, 4, 66, 64, 3, padding=1, slope=False),
        binary(g, 4, 66, 64, 3, (5,), padding=2, dilation=2),
        Node('avgpool', (6,), kernel=2, stride=2, factor=2.), # 2x3
        binary(g, 7, 64, 8, 2, padding=1), # 3x4
        binary(g, 8, 8, 16, 3, stride=2, dilation=2, padding=3), # 3x3
        Node('maxpool', (9,), kernel=2, stride=1), # 2x2
        Node('mean', (10,)),
        real(g, 11, 16, 5)])

def real_only(g):
    "convolutions of numbers, with strides, holes and residuals, without a sign"
    return Graph(2, [
        real(g, 0, 2, 5, 3, stride=2, padding=2), # 8x12: 5x7
        real(g, 1, 5, 5, 1, (1,)),
        real(g, 2, 5, 10, 3, (1,), padding=2, dilation=2),
        real(g, 3, 10, 70, 3, stride=3), # 1x2
        Node('mean', (4,)),
        real(g, 5, 70, 3)])

def of_bytes(g, c=3, n=34, **fields):
    "a stem of n filters that takes bytes, signs behind it"
    return Graph(c, [
        bytes_stem(g, c, n, 3, **fields),
        binary(g, 1, n, 40, 3, padding=1),
        Node('mean', (2,)),
        real(g, 3, 40, 4)])

def thin(g):
    "few channels that a residual repeats, and their signs"
    return Graph(1, [
        real(g, 0, 1, 3, 1),
        binary(g, 1, 3, 12, 1, (1,)),
        binary(g, 2, 12, 7, 3, stride=2, padding=1),
        binary(g, 3, 7, 7, 1, (3,)),
        binary(g, 3, 7, 7, 1, (4,)),
        binary(g, 5, 7, 14, 1, (4,)),
        Node('mean', (6,)),
        real(g, 7, 14, 9)])

def plain_stem(g): return of_bytes(g, padding=1)
def gray_stem(g): return of_bytes(g, 1, 20, stride=2)
def many_planes(g): return of_bytes(g, 6, 70, padding=2, dilation=2)

NETWORKS = [wide, real_only, thin, plain_stem, gray_stem, many_planes]


def network(make, seed=0):
    g = np.random.default_rng(seed)
    return make(g)

def pictures(graph, batch, size=(8, 12), seed=1):
    "whole numbers, or bytes"
    g, shape = np.random.default_rng(seed), (batch, graph.channels, *size)
    if graph.nodes[0].op == 'iconv': return g.integers(0, 256, shape).astype(np.uint8)
    return wholes(g, *shape)

def agree(got, want):
    "but for what a mean rounds"
    return got.shape == want.shape and np.abs(got - want).max() <= 1e-6*max(1, np.abs(want).max())
