"""The kernels against sums in numpy, run without numba's compiler.

Quick, for `tools/mutate_code.py`; `tests/test_packed.py` does the same to the compiled kernels, at
random and at length.
"""
import ctypes
import gc
import platform
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import whole
from numba import types
from plain import Row, run_plainly, written
from whole import NETWORKS, agree, by_hand, network, pictures, signs, windows

from bnn_bn.onebit import kernels, tiles
from bnn_bn.onebit.counting import has_way, unpack_signs, ways
from bnn_bn.onebit.engine import Engine, make_plan
from bnn_bn.onebit.graph import Graph, Node
from bnn_bn.onebit.kernels import Memory, Touched, Window, aligned, check_reach, packed_conv2d
from bnn_bn.onebit.tiles import AVERAGE, BIT_CONV, BYTES, COPY, INT_CONV, MAX, REAL_CONV, make_row

HERE = [w for w in ways if has_way(w)]

@pytest.fixture(autouse=True)
def plainly(monkeypatch):
    "until the last thread of an engine has ended"
    before = set(threading.enumerate())
    run_plainly(monkeypatch)
    yield
    if set(threading.enumerate()) - before: gc.collect()
    for t in set(threading.enumerate()) - before: t.join(1)


# What a row touches ------------------------------------------------------------------------------

PLANS = [(make, way) for make in NETWORKS for way in ('portable', 'avx2', 'vnni') if way in HERE]

def plan_of(make, way):
    graph = network(make)
    return make_plan(graph, (8, 12), way, 1, Engine(graph, way=way).scratch[0].size)

def rows_of(plan): return [kernels.Row(*row.item()) for row in plan.rows]

def span_of(what, places, size):
    "from the first to the last of some places, each of so many bytes"
    return Touched(what, min(places), max(places) + size - min(places))

def conv_by_hand(o, pix, way):
    "the bytes of each pixel, tap and channel, one after the other"
    bits, pixels = o.kind == BIT_CONV, range(o.pixels)
    group, of_word = (32, 256) if bits and way == 'avx2' else (16, 64)
    yield Touched('offsets', o.pix, 12*4*((o.pixels + 3)//4))
    taps = [r*o.row_step + c*o.col_step + 4*i
            for r in range(o.rows) for c in range(o.cols) for i in range(o.run)]
    if taps:
        yield span_of('input', [o.x + 4*int(p) + t for p in pix[:, 0] for t in taps], 4)
        groups = range(o.channels//group)
        yield span_of('weights', [o.w + q*o.w_step for q in groups], len(taps)*of_word)
    if o.kind != REAL_CONV:
        yield span_of('base', [o.base + 4*int(p) for p in pix[:, 1]], 4*o.channels)
    yield span_of('vectors', [o.scale + i*o.step for i in range(4)], 4*o.channels)
    yield span_of('numbers', [o.out + p*o.out_step for p in pixels], 4*o.channels)
    yield span_of('residual', [o.res + p*o.res_step for p in pixels], 4*o.channels)
    yield span_of('signs', [o.bits + 4*int(p) for p in pix[:, 2]], o.channels//8)

def pool_by_hand(o):
    yield Touched('input', o.x, 4*o.height*o.width*o.channels)
    yield Touched('thresholds', o.scale, 4*o.channels)
    yield span_of('numbers', [o.out + p*o.out_step for p in range(o.pixels)], 4*o.channels)
    places = [o.bits + p//o.to_width*o.to_row + p % o.to_width*o.col_step for p in range(o.pixels)]
    yield span_of('signs', places, o.channels//8)

def copy_by_hand(o, item):
    rows, columns, channels = range(o.height), range(o.width), range(o.channels)
    if not o.step:
        yield span_of('input', [o.x + y*o.row_step + x*o.col_step + c*o.run
                                for y in rows for x in columns for c in channels], item)
    apart, next_to = (o.to_row, o.stride) if item == 1 else (4*o.channels, 4)
    whole_words = item == 1 and (o.stride, o.to_row) == (1, 4)
    size, channels = (4, [0]) if whole_words else (item, channels)
    yield span_of('numbers', [o.out + y*o.out_step + x*apart + c*next_to
                              for y in rows for x in columns for c in channels], size)

def result_by_hand(o, pix):
    yield Touched('places', o.pix, 4*o.channels)
    yield span_of('input', [o.x + 4*int(p) for p in pix], 4)

def touched_by_hand(o, arrays, way):
    if o.kind in (BIT_CONV, REAL_CONV, INT_CONV): return conv_by_hand(o, arrays[o.pix], way)
    if o.kind in (MAX, AVERAGE): return pool_by_hand(o)
    if o.kind in (COPY, BYTES): return copy_by_hand(o, 4 if o.kind == COPY else 1)
    return result_by_hand(o, arrays[o.pix])

@pytest.mark.parametrize('make, way', PLANS)
def test_what_is_touched(make, way):
    "the bytes that a row is said to touch, against those that it does; offsets may begin anywhere"
    plan = plan_of(make, way)
    for further in (0, 64):
        arrays = {a.ctypes.data: a + further for a in plan.memory.arrays if a.dtype == np.int32}
        for o in rows_of(plan):
            assert [*kernels.touched(o, arrays, way)] == [*touched_by_hand(o, arrays, way)]

COLUMNS = {'input': 'x', 'weights': 'w', 'base': 'base', 'vectors': 'scale', 'thresholds': 'scale',
           'numbers': 'out', 'residual': 'res', 'signs': 'bits'}

@pytest.mark.parametrize('make, way', PLANS)
def test_no_byte_further(make, way):
    "each address may move to the first and last byte of its memory, and no further"
    plan = plan_of(make, way)
    memory = plan.memory
    scratch = 10**6
    arrays = {a.ctypes.data: a for a in memory.arrays}
    for i, o in enumerate(rows_of(plan)):
        for t in kernels.touched(o, arrays, way):
            if t.what not in COLUMNS: continue
            first = max(a for a in arrays if a <= t.start)
            down, up = first - t.start, first + arrays[first].nbytes - t.start - t.size
            for move in (down, up, down - 1, up + 1):
                row = plan.rows[i:i + 1].copy()
                row[COLUMNS[t.what]] += move
                if down <= move <= up: check_reach(row, memory, way, scratch)
                else:
                    with pytest.raises(RuntimeError) as e: check_reach(row, memory, way, scratch)
                    assert str(e.value) == f'row 0 leaves its memory for {t.what}: {kernels.FAULT}'

def test_indices_need_their_memory():
    graph = network(whole.wide)
    most = 16*2*8*9*4 # sixteen tiles, two pairs, eight bytes a word, nine taps of 33 channels twice
    assert kernels.scratch_bytes(1) == 256 and Engine(graph).scratch[0].size == most
    plan = make_plan(graph, (8, 12), 'avx2', scratch=most)
    with pytest.raises(RuntimeError) as e: check_reach(plan.rows, plan.memory, 'avx2', most - 1)
    words = [o.rows*o.cols*o.run if o.kind == BIT_CONV else 0 for o in rows_of(plan)]
    said = f'row {words.index(36)} needs {most} bytes for indices, has {most - 1}: '
    assert str(e.value) == said + kernels.FAULT
    make_plan(graph, (8, 12), 'portable', scratch=0)

@pytest.mark.parametrize('make', (whole.plain_stem, whole.real_only))
def test_a_copy_stays_in_its_image(make):
    plan = plan_of(make, 'portable')
    row = plan.rows[:1].copy()
    size = int(row['step'][0])
    check_reach(row, plan.memory, 'portable', 0)
    row['step'] = size - 1
    with pytest.raises(RuntimeError) as e: check_reach(row, plan.memory, 'portable', 0)
    assert str(e.value) == f'a copy leaves its image: {kernels.FAULT}'


# Layouts -----------------------------------------------------------------------------------------

@pytest.mark.parametrize('size', range(1, 8))
@pytest.mark.parametrize('stride, padding, dilation', ((1, 0, 1), (2, 1, 1), (1, 3, 2), (3, 2, 3)))
def test_taps_and_bands(size, stride, padding, dilation):
    "a tap is valid inside the image; a band is a run of outputs with the same taps"
    window, k = Window(stride, padding, dilation), 2
    places = [at for at in range(-padding, size + padding - dilation*(k - 1), stride)]
    if not places: return
    valid = kernels.valid_taps(size, k, window)
    assert valid.tolist() == [[0 <= at + dilation*j < size for j in range(k)] for at in places]
    found = [*kernels.bands(valid)]
    assert [b.first for b in found] == [0, *(b.last for b in found[:-1])]
    assert found[-1].last == len(valid)
    for b in found:
        same = valid[b.first:b.last]
        assert (same == same[0]).all() and b.last > b.first
        assert np.flatnonzero(same[0]).tolist() == [*range(b.tap0, b.tap1)]
    assert all((valid[a.last - 1] != valid[a.last]).any() for a in found[:-1])

def test_used_taps():
    assert kernels.used(np.zeros((2, 3), bool)) == slice(0, 0)
    assert kernels.used(np.array([[0, 1, 0, 0], [0, 0, 1, 0]], bool)) == slice(1, 3)

def test_blocks_of_weights():
    "16 channels of a word side by side; by table 32, in fours of bits"
    g = np.random.default_rng(0)
    w = g.integers(0, 2**32, (64, 1, 2, 3), dtype=np.uint32)
    for kind in (np.uint32, np.int32, np.float32):
        v = w.astype(kind)
        way = 'portable' if kind == np.uint32 else 'avx2'
        blocks = kernels.block_weights(v, way)
        assert blocks.shape == (4, 6, 16) and blocks.dtype == kind and blocks.flags.c_contiguous
        assert all((blocks[c//16, :, c % 16] == v[c].ravel()).all() for c in range(64))
    table = kernels.block_weights(w, 'avx2')
    assert table.shape == (2, 6, 8, 32) and table.dtype == np.uint8 and table.flags.c_contiguous
    for j, shift in enumerate((0, 8, 16, 24, 4, 12, 20, 28)):
        for c in (0, 33, 63):
            assert (table[c//32, :, j, c % 32] == (w[c].ravel() >> shift) % 16).all()

def test_products_of_what_lies_inside():
    "base - 2*count is the sum, if the words of taps outside are zero"
    g = np.random.default_rng(1)
    w = g.integers(0, 2**20, (32, 2, 3, 1), dtype=np.uint32)
    valid = np.array([[0, 1, 1], [1, 1, 1], [0, 1, 1]], bool)
    base, of = kernels.base_rows(w, 20, slice(1, 2), valid)
    assert base.dtype == np.int32 and base.shape == (2, 32) and of.tolist() == [0, 1, 0]
    for column, taps in enumerate(valid):
        outside = np.bitwise_count(w[:, 1, ~taps]).sum((1, 2), dtype=int)
        assert (base[of[column]] == 20*taps.sum() + 2*outside).all()

SHAPES = ((3, 5), np.int32), ((7,), np.uint8), ((2, 0), np.float32)

@pytest.mark.parametrize('shape, kind', SHAPES)
def test_aligned(shape, kind):
    a = np.arange(np.prod(shape, dtype=int)).astype(kind).reshape(shape)
    b = aligned(a)
    assert b.ctypes.data % 64 == 0 and b.shape == a.shape and b.dtype == kind and (a == b).all()
    assert not a.size or not np.shares_memory(a, b)
    memory = Memory()
    assert memory.keep(a) == a.ctypes.data and memory.arrays[0] is a
    assert memory.put(a) == memory.arrays[1].ctypes.data and memory.arrays[1] is not a
    assert memory.zeros((2, 3)) == memory.arrays[2].ctypes.data and memory.arrays[2].shape == (2, 3)
    assert memory.arrays[2].dtype == np.float32 and not memory.arrays[2].any()

def test_images_beyond_an_offset():
    plan = dict(way='portable', w=np.zeros((32, 1, 1, 1), np.uint32), c_in=1, x=0, memory=Memory(),
                vectors=np.zeros((4, 32), np.float32), to=kernels.Target(), window=Window())
    conv = kernels.ConvPlan(size=(2, 3), **plan)
    def offsets(): return kernels.pix_of(conv, kernels.Band(1, 2, 0, 1), np.zeros(3, int))
    assert offsets().dtype == np.int32 and offsets()[:, 0].tolist() == [3, 4, 5, 5, 5, 5]
    conv.row_words = 2**31 - 3
    assert offsets()[:, 0].max() == 2**31 - 1
    conv.row_words += 1
    with pytest.raises(ValueError) as e: offsets()
    assert str(e.value) == ('images of 2x3 pixels are too large for the packed kernels; '
                            'cut them into tiles')


# Shares and counters -----------------------------------------------------------------------------

@pytest.mark.parametrize('n', (0, 1, 7, 64))
@pytest.mark.parametrize('threads', (1, 2, 5))
def test_shares_are_all_of_it(n, threads):
    ends = [tiles.span(n, t, threads) for t in range(threads)]
    assert ends[0][0] == 0 and ends[-1][1] == n
    assert all(a[1] == b[0] for a, b in zip(ends, ends[1:]))
    assert max(z - a for a, z in ends) - min(z - a for a, z in ends) <= 1

def counter(v=0):
    a = np.array([v, 5], np.int64)
    return a, a.ctypes.data

def test_waiting():
    "for a count, or for so many looks; another thread may bring it"
    a, address = counter(3)
    for n, looks in ((3, 0), (2, 0), (3, 1), (-1, 5)):
        assert kernels.wait_here(address, n, looks) is True
    assert kernels.wait_here(address, 4, 7) is False
    def seen(n, looks): return kernels.wait(ways['portable'], address, n, looks)
    assert seen(3, 0) is True and seen(4, 3) is False
    looked = []
    def look(at):
        looked.append(at)
        return 0
    with pytest.MonkeyPatch.context() as m:
        m.setattr(kernels, 'look', look)
        assert kernels.wait_here(address, 1, 4) is False
    assert looked == [address]*4
    threading.Timer(.02, lambda: a.__setitem__(0, 9)).start()
    assert kernels.wait_here(address, 9, 0) is True

def test_yielding():
    "the first 2000 looks only pause the core"
    paused = []
    with pytest.MonkeyPatch.context() as m:
        m.setattr(kernels, 'look', lambda at: 0)
        m.setattr(kernels, 'pause', paused.append)
        kernels.wait_here(0, 1, 2004)
    assert paused == [0]*2000 + [1]*3
    for yielding in (0, 1): assert kernels.pause(yielding) == 0

def test_the_core_is_told_and_the_system():
    "both in the code, where there is such an instruction and such a function"
    text = str(written(kernels.pause.__wrapped__, [types.int64])[0])
    intel = platform.machine().lower() in ('x86_64', 'amd64')
    assert ('call void @"llvm.x86.sse2.pause"()' in text) == intel
    assert ('call i32 @"sched_yield"()' in text) == (sys.platform != 'win32')

def test_counting():
    a, address = counter(3)
    assert [kernels.add_to(address, 4), kernels.add_to(address, -1)] == [3, 7]
    assert a.tolist() == [6, 5]
    assert kernels.look(address) == 6 and kernels.look(address + 8) == 5
    bytes_, words = np.arange(8, dtype=np.uint8), np.uint32([2**32 - 1, 7])
    kernels.move_byte(bytes_.ctypes.data + 1, bytes_.ctypes.data + 6)
    assert bytes_.tolist() == [0, 6, 2, 3, 4, 5, 6, 7]
    assert tiles.peek(words.ctypes.data) == 2**32 - 1
    kernels.move(words.ctypes.data + 4, words.ctypes.data)
    assert words.tolist() == [2**32 - 1]*2

@pytest.mark.parametrize('make, words', [(tiles.word_indices, 1), (tiles.four_indices, 4)])
def test_indices_of_words(make, words):
    "hexadecimal digit k of both words, for k = 0, 2, 4, 6, 1, 3, 5, 7"
    u, v = np.random.default_rng(words).integers(0, 2**32, (2, words), np.uint32)
    out = np.zeros(8*words + 8, np.uint8)
    make(*(a.ctypes.data for a in (out, u, v)))
    digits = np.uint32([0, 8, 16, 24, 4, 12, 20, 28])
    first, second = (a[:, None] >> digits & 15 for a in (u, v))
    assert out.tolist() == [*(first + 16*second).ravel().tolist(), *[0]*8]

def test_rows_lie_where_they_are_said_to():
    rows = np.concatenate([make_row(kind=3, factor=7), make_row(x=-5)])
    a, b = (kernels.row_at(rows.ctypes.data + i*kernels.ROW_BYTES) for i in (0, 1))
    assert (a.kind, a.factor, b.x, b.kind) == (3, 7, -5, 0)
    assert kernels.start_of(rows) == rows.ctypes.data

@pytest.mark.parametrize('way', HERE)
def test_what_counts_by_table(way): assert tiles.by_table(ways[way]) is (way == 'avx2')


# Whole networks ----------------------------------------------------------------------------------

@pytest.mark.parametrize('way', HERE)
@pytest.mark.parametrize('make', NETWORKS)
def test_networks(make, way):
    graph = network(make)
    x = pictures(graph, 2, (4, 8))
    assert agree(Engine(graph, 1, way)(x), by_hand(graph, x))

@pytest.mark.parametrize('way', HERE)
@pytest.mark.parametrize('c', (1, 2, 3, 4, 5))
def test_bytes_become_words(c, way):
    "wide and narrow pictures, as numbers of 8 and 16 bits, in one share and in several"
    graph = whole.of_bytes(np.random.default_rng(c), c, padding=1)
    for size, threads in (((2, 15), 1), ((1, 37), 1), ((2, 16), 2)):
        x = pictures(graph, 1, size)
        assert agree(Engine(graph, threads, way)(x), by_hand(graph, x))

def pool_graph(c, n):
    g = np.random.default_rng(c)
    signs_of = whole.binary(g, 2, c, 32, 3, padding=1)
    head = Node('mean', (3,)), whole.real(g, 4, 32, 2)
    return Graph(1, [whole.real(g, 0, 1, c, 3, padding=1), n, signs_of, *head])

POOLS = [Node('maxpool', (1,), kernel=3, stride=2, padding=1),
         Node('maxpool', (1,), kernel=2, stride=2),
         Node('maxpool', (1,), kernel=4, stride=3, padding=2),
         Node('avgpool', (1,), kernel=2, stride=2, factor=-2.)]

@pytest.mark.parametrize('n', POOLS, ids=str)
@pytest.mark.parametrize('c', (16, 64, 96))
def test_pools(c, n, monkeypatch):
    "their numbers and signs; by blocks of channels, where there are more threads than pixels"
    def shares(o, threads): return 3 if threads > 1 and o['kind'] < COPY else 1
    monkeypatch.setattr('bnn_bn.onebit.engine.share_count', shares)
    graph = pool_graph(c, n)
    for size in ((2, 2), (4, 6)):
        x = pictures(graph, 1, size) - 2
        for threads in (1, 4):
            assert agree(Engine(graph, threads, 'portable')(x), by_hand(graph, x))

@pytest.mark.parametrize('threads, batch', ((2, 1), (3, 2), (2, 3)))
def test_threads(threads, batch):
    "all for each image, and each image by one"
    for make in (whole.wide, whole.of_bytes):
        graph = network(make)
        x = pictures(graph, batch, (4, 8))
        assert agree(Engine(graph, threads, 'portable')(x), by_hand(graph, x))


# Convolutions ------------------------------------------------------------------------------------

def by_sums(x, w, stride=1, padding=0, dilation=1, groups=1):
    n = Node('conv', (0,), stride=stride, padding=padding, dilation=dilation)
    parts = zip(np.split(x.astype(int), groups, 1), np.split(w.astype(int), groups))
    seen = [(windows(a, b.shape[2:], n), b) for a, b in parts]
    return np.concatenate([np.einsum('bchwij,ocij->bohw', *pair) for pair in seen], 1)

CONVS = [ # batch, channels, filters, sides, kernel, then what moves it
    (1, 1, 1, (1, 1), (1, 1), {}),
    (2, 33, 70, (3, 3), (2, 3), {}), # 2 pixels
    (1, 64, 64, (4, 5), (3, 3), dict(padding=1)), # 20 pixels, and bands above and below
    (1, 7, 32, (5, 7), (3, 2), dict(stride=2, padding=2)),
    (1, 31, 96, (7, 6), (3, 3), dict(dilation=2, padding=2)),
    (1, 32, 65, (3, 1), (1, 1), dict(padding=2)), # outputs without a tap
    (2, 9, 6, (5, 4), (3, 3), dict(groups=3, padding=1)),
    (1, 16, 40, (6, 9), (5, 1), dict(stride=3, padding=4, dilation=2)),
    (1, 5, 33, (1, 3), (1, 1), {})] # 3 pixels

@pytest.mark.parametrize('way', HERE)
@pytest.mark.parametrize('b, c, n, size, k, how', CONVS, ids=str)
def test_convolution(b, c, n, size, k, how, way):
    g = np.random.default_rng(c)
    x, w = signs(g, b, c, *size), signs(g, n, c//how.get('groups', 1), *k)
    want = by_sums(x, w, **how)
    for threads in (1, 3):
        got = packed_conv2d(x, w, way=way, threads=threads, **how)
        assert got.dtype == np.int32 and got.shape == want.shape and (got == want).all()

@pytest.mark.parametrize('way', HERE)
def test_many_tiles(way):
    "more than sixteen, in which the indices of a table are made anew, and more blocks than threads"
    g = np.random.default_rng(0)
    x, w = signs(g, 1, 3, 9, 9), signs(g, 130, 3, 1, 1)
    for threads in (1, 2, 5):
        assert (packed_conv2d(x, w, way=way, threads=threads) == by_sums(x, w)).all()

@pytest.mark.parametrize('way', HERE)
@pytest.mark.parametrize('words', (7, 8, 31, 32, 65))
def test_sums_do_not_wrap(words, way):
    "all signs differ, or all are alike, in as many words as a counter of bytes holds and more"
    x = np.ones((1, 32*words, 1, 1), np.int8)
    w = np.repeat(np.int8([[-1], [1]]), 32*words, 1)[..., None, None]
    assert packed_conv2d(x, w, way=way).ravel().tolist() == [-32*words, 32*words]

def test_signs_of_numbers():
    "0 and -0 are +1, anything below is -1; lists will do; no image and no filter give none"
    x = [[[[0., -0.]], [[-1e-30, 3.]]]]
    assert packed_conv2d(x, [[[[1]], [[1]]]]).tolist() == [[[[0, 2]]]]
    assert packed_conv2d(np.ones((0, 3, 4, 4)), np.ones((2, 3, 1, 1))).shape == (0, 2, 4, 4)
    assert packed_conv2d(np.ones((2, 3, 4, 4)), np.ones((0, 3, 3, 3))).shape == (2, 0, 2, 2)

def refused(x, w, **how):
    with pytest.raises(ValueError) as e: packed_conv2d(np.ones(x), np.ones(w), **how)
    return str(e.value)

def test_what_does_not_fit_is_named():
    assert refused((3, 4, 4), (1, 3, 1, 1)) == (
        'x of shape (3, 4, 4) and w of shape (1, 3, 1, 1): (B,C_in,H,W) and '
        '(C_out,C_in/groups,kh,kw) are needed')
    assert 'w of shape (3,)' in refused((1, 3, 4, 4), (3,))
    assert refused((1, 3, 4, 4), (2, 2, 1, 1)) == (
        'x has 3 channels and w is (2, 2, 1, 1) with groups=1: C_in = groups * 2 and C_out a '
        'multiple of groups are needed')
    assert 'groups=2' in refused((1, 4, 4, 4), (3, 2, 1, 1), groups=2)
    for shape in ((1, 0, 1, 1), (1, 0, 2, 0)):
        said = f'w of shape {shape}: a filter needs a channel and a tap'
        assert refused((1, 0, 4, 4), shape) == said

def test_numbers_that_are_out_of_range():
    def said(**how): return refused((1, 3, 4, 6), (1, 3, 3, 3), **how)
    for name in ('groups', 'stride', 'dilation', 'threads'):
        assert said(**{name: 0}) == f'{name}=0: a whole number from 1 on is needed'
    assert said(padding=-1) == 'padding=-1: a whole number from 0 on is needed'
    assert 'padding=None' in said(padding=None)
    assert said(dilation=3, padding=1) == (
        'a side of 4 pixels is too small for a kernel of 3 with padding 1 and dilation 3; '
        'use larger images')
    assert said(way='none').startswith("way='none': allowed are ['portable',")


# Compiled ----------------------------------------------------------------------------------------

def test_plans_hold_what_they_are_given():
    "rows of a convolution whose results go nowhere write to memory of their own"
    memory, w = Memory(), np.ones((32, 1, 1, 1), np.uint32)
    vectors = np.float32([[1]*32, [0]*32, [1]*32, [np.inf]*32])
    x = memory.put(np.ones((2, 2, 1), np.uint32))
    nowhere = kernels.Target()
    conv = kernels.ConvPlan('portable', w, 1, (2, 2), x, vectors, memory, nowhere, Window())
    rows = conv.rows()
    assert len(rows) == 1 and rows['pixels'] == 4 and rows['out_step'] == 0 == rows['res_step']
    check_reach(rows, memory, 'portable', 0)
    assert rows['bits'] != rows['out'] != rows['res']
    kernels.code_for(ways['portable'])[0]['convolutions'](rows.ctypes.data, 1, 1, 0, 0)
    out = np.frombuffer((ctypes.c_byte*128).from_address(int(rows['out'][0])), np.float32)
    assert (out == 1).all()

def test_a_row_is_read_where_it_lies():
    rows = make_row(kind=2)
    assert Row(rows.ctypes.data).kind == 2
    assert unpack_signs(np.uint32([5]), 3).tolist() == [1, -1, 1]

def test_code_is_kept_for_its_sources():
    "of all modules that are compiled, and of what compiles them"
    folder = Path(kernels.__file__).parent
    names = 'counting', 'native', 'tiles', 'kernels'
    assert kernels.sources() == [(folder/f'{name}.py').read_bytes() for name in names]
