"""The engine against arithmetic in numpy; its plans, threads and messages.

Quick, for `tools/mutate_code.py`; `tests/test_packed.py` does more, at random.
"""
import copy
import gc
import pickle
import threading
import time
import weakref
from dataclasses import replace

import numpy as np
import pytest
import whole
from whole import NETWORKS, agree, by_hand, network, pictures, values_by_hand

from bnn_bn.onebit import engine, kernels
from bnn_bn.onebit.counting import has_way, ways
from bnn_bn.onebit.engine import Engine, make_plan, share_count, signs_seen
from bnn_bn.onebit.graph import Graph, Node
from bnn_bn.onebit.tiles import AVERAGE, BIT_CONV, BYTES, COPY, INT_CONV, MAX, REAL_CONV, RESULT
from bnn_bn.onebit.tiles import make_row

HERE = [w for w in ways if has_way(w)]
SETTINGS = (1, 2), (2, 1), (2, 5), (3, 2) # threads, images


# Numbers -----------------------------------------------------------------------------------------

@pytest.mark.parametrize('make', NETWORKS)
def test_the_numbers_are_those_of_arithmetic(make):
    "by one thread, by all together and by each alone; other sizes in between"
    graph = network(make)
    pairs = [(x, by_hand(graph, x)) for x in (pictures(graph, 5), pictures(graph, 5, (12, 8)))]
    for threads, batch in SETTINGS:
        net = Engine(graph, threads)
        for x, want in pairs:
            y = net(x[:batch])
            assert y.dtype == np.float32 and agree(y, want[:batch]), (threads, batch)

@pytest.mark.parametrize('way', HERE)
def test_every_way(way):
    for make in (whole.wide, whole.plain_stem):
        graph = network(make)
        x = pictures(graph, 1)
        assert agree(Engine(graph, way=way)(x), by_hand(graph, x))

def test_a_value_that_is_read_long_after():
    "the memory of a value is not given away before its last reader"
    g = np.random.default_rng(3)
    nodes = [whole.real(g, 0, 1, 32, 3, padding=1)]
    for i, back in enumerate((0, 1, 0, 3, 2, 5, 4), 1):
        nodes.append(whole.binary(g, i, 32, 32, 3, (max(1, i - back),), padding=1))
    graph = Graph(1, [*nodes, Node('mean', (len(nodes),)), whole.real(g, len(nodes) + 1, 32, 4)])
    x = pictures(graph, 2)
    for threads in (1, 2): assert agree(Engine(graph, threads)(x), by_hand(graph, x))

def test_signs_seen():
    for make in (whole.wide, whole.thin):
        graph = network(make)
        x = pictures(graph, 1)
        values = values_by_hand(graph, x)
        first = {} # the sign that is taken first
        for n in graph.nodes:
            if n.op == 'bconv': first.setdefault(n.inputs[0], n.tensors['threshold'])
        want = [np.where(values[i][0] >= first[i].reshape(-1, 1, 1), 1, -1) for i in sorted(first)]
        got = signs_seen(Engine(graph), x)
        assert len(got) == len(want)
        for a, b in zip(got, want): assert a.shape == b.shape and (a == b).all()
    with pytest.raises(ValueError) as e: signs_seen(Engine(graph), pictures(graph, 2))
    assert str(e.value) == '2 images: one at a time'

def test_pictures_of_numbers_where_bytes_are_wanted():
    graph = network(whole.plain_stem)
    u, t = pictures(graph, 2), graph.nodes[0].tensors
    x = (u/np.float32(255) - t['mean'].reshape(-1, 1, 1))/t['std'].reshape(-1, 1, 1)
    net = Engine(graph)
    assert (net(x.astype(np.float32)) == net(u)).all()

def test_no_images_and_nan():
    graph = network(whole.thin)
    net, x = Engine(graph), pictures(graph, 3)
    assert net(x[:0]).shape == (0, 9) and net.n_out == 9
    want = net(x)
    x[1, 0, 2, 3] = np.nan
    got = net(x)
    assert np.isnan(got[1]).all() and (got[[0, 2]] == want[[0, 2]]).all()


# Plans -------------------------------------------------------------------------------------------

def plan_of(make, size=(8, 12), threads=1, way='portable', **kw):
    graph = network(make)
    return make_plan(graph, size, way, threads, Engine(graph).scratch[0].size, **kw)

@pytest.mark.parametrize('make', NETWORKS)
@pytest.mark.parametrize('threads', (1, 3))
def test_shares_are_counted(make, threads):
    "`before` counts the shares of earlier rows; one thread takes a row whole, and one is taken"
    rows = plan_of(make, threads=threads).rows
    assert (rows['shares'] == [share_count(o, threads) for o in rows]).all()
    assert (rows['before'] == np.append(0, np.cumsum(rows['shares'])[:-1])).all()
    assert threads > 1 or (rows['shares'] == 1).all()
    assert (make_plan(network(make), (16, 16), 'portable').rows['shares'] == 1).all()

@pytest.mark.parametrize('make', NETWORKS)
def test_steps_of_rows(make):
    "each row has its step, the last one the number after all; the first waits for nothing"
    plan, nodes = plan_of(make), network(make).nodes
    assert len(plan.steps) == len(plan.rows) and plan.steps == sorted(plan.steps)
    assert [*dict.fromkeys(plan.steps)] == [*range(len(nodes) + 1)]
    assert plan.rows['sync'][0] == 0 and plan.rows['kind'][-1] == RESULT
    new = [a != b for a, b in zip(plan.steps, plan.steps[1:])]
    assert plan.rows['sync'][1:][new].all()

def test_bands_wait_once():
    "a convolution's bands, and those of its copies for a residual, wait for the steps before it"
    plan = plan_of(whole.thin)
    waits = [s for s, i in zip(plan.rows['sync'], plan.steps) if i == 1]
    assert waits == [1, 0, 0, 0] # three channels, added to twelve

def end_of(v): return v.numbers + 4*v.size[0]*v.size[1]*v.channels

@pytest.mark.parametrize('make', NETWORKS)
def test_values_that_live_together_lie_apart(make):
    "a value takes the place of one that nobody reads any more, or writes over what its step adds"
    plan, steps = plan_of(make), network(make).nodes
    for i, v in enumerate(plan.values):
        for k, u in enumerate(plan.values[:i]):
            if not v.numbers or not u.numbers or u.last < i - 1: continue
            apart = end_of(v) <= u.numbers or end_of(u) <= v.numbers
            added = steps[i - 1].inputs[1:] == (k,) and u.last == i - 1 and u.numbers == v.numbers
            assert apart or added

def chain(n, residual):
    g = np.random.default_rng(0)
    nodes = [whole.real(g, 0, 1, 32)]
    nodes += [whole.binary(g, i, 32, 32, 1, (i,) if residual else ()) for i in range(1, n)]
    return Graph(1, [*nodes, Node('mean', (n,)), whole.real(g, n + 1, 32, 3)])

def test_memory_is_used_again():
    "a chain with residuals writes over one buffer; pools take turns with two"
    values = make_plan(chain(8, True), (6, 6), 'portable').values[1:9]
    assert len({v.numbers for v in values}) == 1
    values = make_plan(chain(8, False), (6, 6), 'portable').values
    assert [bool(v.numbers) for v in values[1:10]] == [False]*7 + [True]*2
    pools = [Node('maxpool', (i,), kernel=3, stride=1, padding=1) for i in range(1, 6)]
    g = np.random.default_rng(0)
    graph = Graph(1, [whole.real(g, 0, 1, 32), *pools, Node('mean', (6,)), whole.real(g, 7, 32, 3)])
    values = make_plan(graph, (6, 6), 'portable').values[1:7]
    assert len({v.numbers for v in values}) == 2

def test_weights_are_laid_out_once():
    made, graph = {}, network(whole.wide)
    a = make_plan(graph, (8, 12), 'portable', made=made)
    arrays = {key: id(w) for key, of in made.items() for w in of.values()}
    b = make_plan(graph, (8, 12), 'portable', made=made)
    assert arrays == {key: id(w) for key, of in made.items() for w in of.values()}
    shared = {id(v) for v in a.memory.arrays} & {id(v) for v in b.memory.arrays}
    assert shared == set(arrays.values())
    other = make_plan(graph, (8, 12), 'portable')
    assert not {id(v) for v in other.memory.arrays} & shared
    net = Engine(graph)
    of_plans = [{id(v) for v in net.plan(size).memory.arrays} for size in ((8, 12), (12, 8))]
    assert len(of_plans[0] & of_plans[1]) == len(shared)

def test_what_the_images_are_read_by():
    "the rows that read them, and no other; two steps may"
    for make in NETWORKS:
        plan = plan_of(make)
        assert plan.images.tolist() == [0]
        assert plan.rows['kind'][0] == (BYTES if network(make).nodes[0].op == 'iconv' else COPY)
    g = np.random.default_rng(0)
    again = whole.real(g, 0, 2, 32, 3, (1,), padding=1)
    head = Node('mean', (2,)), whole.real(g, 3, 32, 3)
    twice = Graph(2, [whole.real(g, 0, 2, 32), again, *head])
    assert len(make_plan(twice, (4, 5), 'portable').images) == 2
    x = pictures(twice, 2, (4, 5))
    assert agree(Engine(twice)(x), by_hand(twice, x))


# Shares ------------------------------------------------------------------------------------------

def row(kind, **columns): return make_row(kind=kind, **columns)[0]

def test_how_a_row_is_cut():
    "none for one thread; a copy by its rows; others by tiles, no share of less than 500 words"
    big = dict(pixels=400, channels=64, rows=3, cols=3, run=20, kh=3, kw=3, height=7)
    assert all(share_count(row(kind, **big), 1) == 1 for kind in range(1, 9))
    assert share_count(row(RESULT, **big), 4) == 1
    for kind in (COPY, BYTES):
        assert [share_count(row(kind, **big), n) for n in (2, 7, 9)] == [2, 7, 7]
    for kind in (BIT_CONV, REAL_CONV, INT_CONV):
        def shares(threads, kind=kind, **other):
            return share_count(row(kind, **big | other), threads)
        assert shares(3) == 12 # four for each thread
        assert shares(3, pixels=17) == 1 # 5 tiles of 184 words: less than 1000
        assert shares(3, pixels=17, run=33) == 3 # 5*301//500
        assert shares(3, pixels=17, run=1000) == 5 # a share has a tile
        assert shares(3, pixels=16, run=1000) == 4
        assert shares(9, pixels=17, channels=65, run=1000) == 10
        assert shares(2, pixels=4, rows=1, cols=1, run=1) == 1
        assert shares(9, rows=1, cols=1, run=16) == 4 # 100*20//500
    for kind in (MAX, AVERAGE): assert share_count(row(kind, **big), 3) == 3 # 100*18//500
    assert isinstance(share_count(row(MAX, **big), 3), int)


# Messages ----------------------------------------------------------------------------------------

def words(size, graph=None, n=ValueError):
    "the error for images of that size"
    with pytest.raises(n) as e: make_plan(graph or network(whole.wide), size, 'portable')
    return str(e.value)

def test_sizes_that_do_not_fit():
    g = np.random.default_rng(0)
    start = 'images of 8x10 pixels: step 6 (avgpool )'
    assert words((8, 10)) == f'{start} would halve a map of 4x5; resize or pad the images'
    few = Graph(1, [whole.real(g, 0, 1, 8, 5), Node('mean', (1,)), whole.real(g, 2, 8, 2)])
    said = 'images of 7x4 pixels: step 0 (conv real) would make a map of 3x0; use larger images'
    assert words((7, 4), few) == said
    for size, made in (((5, 5), None), ((4, 5), '0x1')):
        if made: assert f'a map of {made};' in words(size, few)
        else: make_plan(few, size, 'portable')
    open_ = Graph(1, [whole.real(g, 0, 1, 8, 2)])
    said = ('images of 2x4 pixels: step 0 (conv real) is the last and makes a map of 1x3: '
            'one pixel is needed, as after a mean')
    assert words((2, 4), open_) == said
    stem = whole.real(g, 0, 1, 8), whole.real(g, 1, 8, 8, 2)
    added = Graph(1, [*stem, whole.binary(g, 1, 8, 8, 3, (2,)), Node('mean', (3,))])
    said = ('images of 6x7 pixels: step 2 (bconv binary) makes a map of 4x5 and its residual is '
            '5x6; resize or pad the images')
    assert words((6, 7), added) == said

def test_maps_that_are_too_large():
    "2**29 numbers of a value are refused, one fewer is not"
    n = Node('conv', (0,), name='big')
    engine.check_size(n, 'here', (1, 1), (2**15, 2**9), 31, None)
    engine.check_size(n, 'here', (1, 1), (1, 2**29 - 1), 1, (1, 2**29 - 1))
    with pytest.raises(ValueError) as e:
        engine.check_size(n, 'here', (1, 1), (2**15, 2**9), 32, None)
    assert str(e.value) == ('here would make a map of 32768x512 with 32 channels, too large; '
                            'cut the images into tiles')

def test_memory_that_is_not_there(monkeypatch):
    def none(*args): raise MemoryError
    monkeypatch.setattr(engine, 'plan_pool', none)
    said = 'images of 8x12 pixels: step 3 (maxpool ) needs more memory than there is; '
    assert words((8, 12)) == said + 'use smaller images'

NEED = '(B,1,H,W), float32, normalised as in training, is needed'
LAST = 'these have the channels last, x.transpose(0, 3, 1, 2) mends that'

def zeros(*shape, dtype=np.float32): return np.zeros(shape, dtype)

@pytest.mark.parametrize('x, said', [
    (zeros(1, 8, 8), f'images of shape (1, 8, 8): {NEED}'),
    (zeros(1, 2, 8, 8), f'images of shape (1, 2, 8, 8): {NEED}'),
    (zeros(1, 8, 8, 1), f'images of shape (1, 8, 8, 1): {NEED}; {LAST}'),
    (zeros(1, 1, 8, 8, dtype=float),
     f'images of dtype float64: {NEED}; x.astype("float32") mends that'),
    (zeros(1, 1, 8, 8, dtype=np.uint8),
     f'images of dtype uint8: {NEED}; divide by 255 and normalise'),
    (np.ma.masked_array(zeros(1, 1, 8, 8)),
     'images are a masked array: the mask is lost; x.filled(0) mends that')])
def test_images_that_are_none(x, said):
    with pytest.raises(ValueError) as e: Engine(network(whole.thin))(x)
    assert str(e.value) == said

def test_any_layout_of_the_images():
    "also a list; the array itself where it lies right"
    graph = network(whole.thin)
    net, x = Engine(graph), pictures(graph, 2)
    raw = np.zeros(x.nbytes + 1, np.uint8)
    shifted = raw[1:].view(np.float32).reshape(x.shape)
    shifted[...] = x
    for same in (shifted, np.asfortranarray(x), np.repeat(x, 2, 3)[..., ::2], [*x]):
        assert (net(same) == net(x)).all()
    assert engine.check_images(x, 1) is x
    assert engine.check_images(shifted, 1).flags.aligned
    assert engine.check_images(x[..., ::2], 1).flags.c_contiguous

def test_bytes_only_where_they_are_taken():
    graph = network(whole.gray_stem)
    assert Engine(graph)(pictures(graph, 1)).shape == (1, 4)
    bytes_, doubles = (zeros(1, 1, 8, 8, dtype=kind) for kind in (np.uint8, float))
    with pytest.raises(ValueError, match='dtype float64'): Engine(graph)(doubles)
    with pytest.raises(ValueError, match='dtype uint8'): engine.check_images(bytes_, 1)

@pytest.mark.parametrize('threads', (0, 1025, 1.5))
def test_threads_that_are_none(threads):
    with pytest.raises(ValueError) as e: Engine(network(whole.thin), threads)
    assert str(e.value) == f'threads={threads}: a whole number from 1 to 1024 is needed'

def test_a_filter_beyond_the_table():
    "counted another way; the filters that are looked at are those of signs"
    g = np.random.default_rng(0)
    def deep(op, c):
        n = whole.binary(g, 1, c, 1, 8) if op == 'bconv' else whole.real(g, 1, c, 1, 8)
        return Graph(1, [whole.real(g, 0, 1, c), n])
    if 'avx2' not in HERE: return
    for op, c, way in (('conv', 1023, 'avx2'), ('conv', 1024, 'avx2'), ('bconv', 1023, 'avx2'),
                       ('bconv', 1024, 'portable')):
        assert Engine(deep(op, c), way='avx2').way == way
    real, binary = deep('conv', 9), deep('bconv', 9)
    assert (engine.most_products(real), engine.largest_window(real)) == (1, 1)
    assert (engine.most_products(binary), engine.largest_window(binary)) == (9*64, 64)
    assert engine.largest_window(network(whole.thin)) == 4*9 # three channels, repeated: four words


# Engines and threads -----------------------------------------------------------------------------

def test_plans_are_kept_and_dropped():
    "the oldest goes; as many as `MOST_PLANS`, or two for each thread"
    graph = network(whole.thin)
    net = Engine(graph)
    first = net.plan((3, 3))
    assert net.plan((3, 3)) is first and net.plan((3, 4)) is not first
    for side in range(1, engine.MOST_PLANS + 2): net.plan((9, side))
    assert len(net.plans) == engine.MOST_PLANS and ((9, 1), 0) not in net.plans
    assert [k for k in net.plans] == [((9, s), 0) for s in range(2, engine.MOST_PLANS + 2)]
    many = Engine(graph, 20)
    for side in range(1, 50): many.plan((9, side))
    assert len(many.plans) == 40
    assert (net.plan((8, 12)).rows['shares'] == 1).all()
    assert (many.plan((16, 16), 3).rows['shares'] == 1).all()
    assert many.plan((16, 16)).rows['shares'].max() > 1

@pytest.mark.parametrize('how', (lambda e: pickle.loads(pickle.dumps(e)), copy.copy, copy.deepcopy))
def test_copies(how):
    net = Engine(network(whole.thin), 2, 'portable')
    other = how(net)
    assert (other.threads, other.way, other.asked) == (2, 'portable', 'portable')
    assert other.lock is not net.lock and other.plans is not net.plans
    x = pictures(net.graph, 1)
    assert (other(x) == net(x)).all()
    assert how(Engine(network(whole.thin))).asked is None

def test_threads_end_with_their_engine():
    "begun by the first call, and no more of them than were asked for"
    before, net = set(threading.enumerate()), Engine(network(whole.thin), 4)
    def begun(): return set(threading.enumerate()) - before
    assert net.helpers is None and not begun()
    net(pictures(net.graph, 2))
    assert len(begun()) == 3 and all(t.daemon for t in begun())
    helpers = net.helpers
    net(pictures(net.graph, 9))
    assert net.helpers is helpers and helpers.work is None and helpers.count[0] == 2
    gone = weakref.ref(net)
    del net, helpers
    gc.collect()
    end = time.monotonic() + 5
    while begun() and time.monotonic() < end: time.sleep(.005)
    assert gone() is None and not begun()

def test_code_is_there_before_the_threads(monkeypatch):
    "else each of them would compile"
    asked, code_for = [], kernels.code_for
    def ask(way):
        asked.append(way)
        return code_for(way)
    monkeypatch.setattr(engine, 'code_for', ask)
    net = Engine(network(whole.thin), 2)
    for n in (1, 3): net(pictures(net.graph, n))
    assert [*map(type, asked)] == [type(ways[net.way])]

def test_helpers_wait_and_are_called():
    "each is called once for a call, also after a pause; an error here leaves nothing behind"
    helpers = engine.Helpers(2, ways['portable'])
    seen, both = [], threading.Barrier(3, timeout=5)
    def work(i):
        seen.append(i)
        both.wait()
    for pause in (0, .05, 0):
        time.sleep(pause)
        helpers.run(work, lambda: None)
    end = time.monotonic() + 5
    while len(seen) < 9 and time.monotonic() < end: time.sleep(.005)
    assert sorted(seen) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    done = []
    def fails(i):
        if i == 0: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): helpers.run(fails, lambda: done.append(1))
    assert done == [1] and helpers.work is None
    helpers.end()
    assert helpers.ended

def test_a_late_helper_finds_nothing():
    "work that is over is not begun again, and its arrays are let go"
    helpers, late = engine.Helpers(1, ways['portable']), []
    helpers.run(lambda i: late.append(i) if i == 0 else time.sleep(.01), lambda: time.sleep(.05))
    helpers.call()
    time.sleep(.05)
    assert late == [0] and helpers.work is None
    helpers.end()

def test_an_engine_in_a_forked_child():
    "locks and threads are made anew, in all engines that there are"
    net = Engine(network(whole.thin), 2)
    x = pictures(net.graph, 1)
    want, old = net(x), net.lock
    assert net in engine.engines
    old.acquire()
    net.helpers.end()
    engine.after_fork()
    assert net.lock is not old and net.helpers is None and (net(x) == want).all()

def test_plans_of_each_thread():
    "one for all together; where each has images of its own, one for each"
    graph = network(whole.thin)
    net, x = Engine(graph, 3), pictures(graph, 3)
    net(x[:2])
    assert [*net.plans] == [((8, 12), 0)]
    net(x)
    assert [*net.plans] == [((8, 12), t) for t in range(4)]
    assert not (Engine(graph).table != kernels.make_table()).any()

def test_scratch_of_each_thread():
    net = Engine(network(whole.wide), 3, HERE[0])
    assert len(net.scratch) == 3 and len({len(s) for s in net.scratch}) == 1
    assert all(s.ctypes.data % 64 == 0 and s.dtype == np.uint8 for s in net.scratch)
    assert net.scratch[0].size == 256*engine.largest_window(net.graph) and not net.scratch[0].any()
    too_little = pytest.raises(RuntimeError, match='bytes for indices')
    with too_little: make_plan(net.graph, (8, 12), 'avx2')

def test_a_wrong_graph_is_refused():
    graph = network(whole.thin)
    graph.nodes[1] = replace(graph.nodes[1], stride=0)
    with pytest.raises(ValueError, match='stride=0'): Engine(graph)
