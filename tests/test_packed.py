"""The packed network against arithmetic: every shape of convolution, whole networks, and a machine without torch."""
import json, os, shutil, subprocess, sys, threading
from pathlib import Path

import numpy as np
import pytest
import torch, torch.nn.functional as F
from hypothesis import given, settings, strategies as st

from bnn_bn.bnnfile import Graph, Node, from_bytes, to_bytes
from bnn_bn.deploy import load_packed, pack
from bnn_bn.engine import Engine
from bnn_bn.fold import FoldedNet, fold
from bnn_bn.kernels import has_way, packed_conv2d, ways
from bnn_bn.models import create_model, list_models

HERE = [w for w in ways if has_way(w)]
ROOT = Path(__file__).parent.parent


def signs(g, *shape): return g.choice(np.int8([-1, 1]), shape)
def numbers(g, *shape): return g.standard_normal(shape).astype(np.float32)


# The convolution ---------------------------------------------------------------------------------------------------------

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


@settings(max_examples=150, deadline=None)
@given(st.data(), st.sampled_from((1, 7, 31, 33, 63, 64, 65)), st.sampled_from((1, 3, 5, 7)), st.integers(1, 3), st.integers(0, 4), st.integers(1, 3), st.integers(1, 3),
       st.integers(1, 12), st.integers(1, 12), st.integers(1, 3), st.integers(1, 70), st.integers(1, 4), st.sampled_from(HERE))
def test_any_convolution(data, c, k, stride, padding, dilation, groups, h, w, batch, n, threads, way):
    "stride, dilation, groups, zero padding, batch, threads and way, in any combination that torch takes"
    reach = dilation*(k - 1) + 1
    h, w = max(h, reach - 2*padding), max(w, reach - 2*padding)
    g = np.random.default_rng(data.draw(st.integers(0, 2**31)))
    x, f = signs(g, batch, c*groups, h, w), signs(g, n*groups, c, k, k)
    want = F.conv2d(torch.tensor(x).double(), torch.tensor(f).double(), None, stride, padding, dilation, groups).numpy()
    assert (packed_conv2d(x, f, stride, padding, dilation, groups, way, threads) == want).all()


# Graphs ------------------------------------------------------------------------------------------------------------------

def any_graph(data, g):
    "a random network: a stem, then convolutions with residuals, pools and second signs as they fit"
    c, h, w = data.draw(st.sampled_from((1, 3))), data.draw(st.integers(4, 20)), data.draw(st.integers(4, 20))
    nodes, shapes = [], [(c, h, w)]
    def add(op, inputs, c, h, w, **kw):
        t = kw.pop('t', {})
        nodes.append(Node(op, inputs, t, **kw)); shapes.append((c, h, w))
    def conv(op, i, n, k, stride=1, padding=0, dilation=1, residual=None, slope=True):
        ci, h, w = shapes[i]
        size = [(s + 2*padding - dilation*(k - 1) - 1)//stride + 1 for s in (h, w)]
        t = dict(weight=signs(g, n, ci, k, k) if op == 'bconv' else numbers(g, n, ci, k, k)/k, bias=numbers(g, n), scale=numbers(g, n)/(ci*k*k)**.5)
        if slope: t['slope'] = numbers(g, n)
        if op == 'bconv': t['threshold'] = numbers(g, ci)
        add(op, (i,) if residual is None else (i, residual), n, *size, t=t, stride=stride, padding=padding, dilation=dilation)
    conv('conv', 0, data.draw(st.sampled_from((8, 24, 32, 33, 64))), 3, padding=1)
    for _ in range(data.draw(st.integers(1, 6))):
        i = data.draw(st.integers(max(1, len(nodes) - 2), len(nodes)))
        c, h, w = shapes[i]
        kind = data.draw(st.sampled_from(('same', 'same', 'double', 'new', 'half', 'max', 'average', 'real')))
        if kind == 'same': conv('bconv', i, c, 3, padding=1, residual=i, slope=data.draw(st.booleans()))
        elif kind == 'double': conv('bconv', i, 2*c, 1, residual=i)
        elif kind == 'new': conv('bconv', i, data.draw(st.sampled_from((16, 40, 65))), data.draw(st.sampled_from((1, 3))), padding=1, dilation=1)
        elif kind == 'half': conv('bconv', i, c, 3, stride=2, padding=1)
        elif kind == 'real': conv('conv', i, c, data.draw(st.sampled_from((1, 3))), padding=1, residual=None)
        elif kind == 'max': add('maxpool', (i,), c, (h - 1)//2 + 1, (w - 1)//2 + 1, kernel=3, stride=2, padding=1)
        elif h % 2 == 0 and w % 2 == 0: add('avgpool', (i,), c, h//2, w//2, kernel=2, stride=2, factor=1.5)
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
@given(st.data(), st.integers(0, 2**31), st.integers(1, 4), st.integers(1, 3), st.sampled_from(HERE))
def test_any_network(data, seed, batch, threads, way):
    "the engine against torch in float64, and the file in between; all threads and ways give the same bits"
    g = np.random.default_rng(seed)
    graph, shape = any_graph(data, g)
    x = numbers(g, batch, *shape)
    net = away_from_ties(graph, torch.tensor(x).double())
    with torch.no_grad(): want = net(torch.tensor(x).double()).numpy()
    got = Engine(from_bytes(to_bytes(graph)), threads, way)(x)
    assert np.abs(got - want).max() <= 1e-4*max(1, np.abs(want).max())
    assert (Engine(graph)(x) == got).all()
    assert (np.concatenate([Engine(graph)(i[None]) for i in x]) == got).all()


@pytest.mark.parametrize('name', [n for n in list_models('*net*') if 'real' not in n and '34' not in n])
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
    close = (got - want).abs().amax(1) < 1e-3*want.abs().max()
    assert close.float().mean() >= .5, (got - want).abs().amax(1)
    assert torch.equal(pack(model)(x), got)


def test_threads_of_the_caller():
    "calls from several threads at once take turns; the results are those of one"
    g = np.random.default_rng(0)
    packed = pack(create_model('reactnet_mini_nobn', n_out=10, width=.25, stem='cifar').eval(), threads=2)
    images = [numbers(g, 1 + i % 3, 3, 32, 32) for i in range(12)]
    want, got = [packed(x) for x in images], [None]*12
    def work(i): got[i] = packed(images[i])
    ts = [threading.Thread(target=work, args=(i,)) for i in range(12)]
    for t in ts: t.start()
    for t in ts: t.join()
    assert all((a == b).all() for a, b in zip(want, got, strict=True))


def test_after_a_fork():
    "worker threads do not survive a fork: the child makes its own"
    code = ("import os, numpy as np\nfrom bnn_bn.engine import Engine\nfrom bnn_bn.bnnfile import Graph, Node\n"
            "f = lambda *s: np.ones(s, np.float32)\n"
            "g = Graph(3, [Node('conv', (0,), dict(weight=f(32, 3, 3, 3), bias=f(32)), padding=1), Node('mean', (1,)), Node('conv', (2,), dict(weight=f(5, 32, 1, 1), bias=f(5)))])\n"
            "e = Engine(g, 2); x = f(1, 3, 8, 8); y = e(x); pid = os.fork()\n"
            "if pid == 0: os._exit(0 if (e(x) == y).all() else 1)\n"
            "assert os.waitpid(pid, 0)[1] == 0\n")
    subprocess.run([sys.executable, '-W', 'ignore', '-c', code], check=True, timeout=120, env={**os.environ, 'PYTHONPATH': str(ROOT)})


@pytest.mark.parametrize('bad, words', [
    (np.zeros((3, 32, 32), np.float32), 'images of shape (3, 32, 32)'), (np.zeros((1, 32, 32, 3), np.float32), 'channels last'),
    (np.zeros((1, 1, 32, 32), np.float32), '(B,3,H,W)'), (np.zeros((1, 3, 32, 32), np.uint8), 'divide by 255'), (np.zeros((1, 3, 32, 32)), 'dtype float64'),
    (np.zeros((1, 3, 30, 30), np.float32), 'resize or pad'), (np.zeros((1, 3, 0, 0), np.float32), 'use larger images'), ('picture.png', 'a numpy array or a torch tensor')])
def test_bad_images(bad, words):
    packed = pack(create_model('reactnet18_nobn', n_out=10, width=.25, stem='cifar').eval())
    with pytest.raises(ValueError) as e: packed(bad)
    assert words in str(e.value)


def test_no_images():
    packed = pack(create_model('reactnet_mini_nobn', n_out=10, width=.25, stem='cifar').eval())
    assert packed(np.zeros((0, 3, 32, 32), np.float32)).shape == (0, 10)


# A machine without torch -------------------------------------------------------------------------------------------------

def test_without_torch(tmp_path):
    "a process that can import numpy, numba and five of our modules, and nothing else of what the package needs"
    site = tmp_path/'site'
    (site/'bnn_bn').mkdir(parents=True)
    for m in ('__init__', 'files', 'kernels', 'bnnfile', 'engine', 'deploy'): shutil.copy(ROOT/f'bnn_bn/{m}.py', site/'bnn_bn')
    model = create_model('reactnet18_nobn', n_out=10, width=.25, stem='cifar').eval()
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    packed = pack(model, classes=[*'abcdefghij'], mean=[.5]*3, std=[.25]*3, size=[32, 32])
    packed.save(tmp_path/'net.bnn'); np.save(tmp_path/'x.npy', x.numpy())
    code = ("import sys, json, numpy as np\n"
            "class Block:\n"
            "    def find_spec(self, name, path=None, target=None):\n"
            "        if name.split('.')[0] in ('torch', 'torchvision', 'fastai', 'fastcore', 'nbdev', 'safetensors', 'matplotlib', 'pandas', 'onnx'): raise ModuleNotFoundError(name)\n"
            "sys.meta_path.insert(0, Block())\n"
            "from bnn_bn.deploy import load_packed, classify\n"
            f"net = load_packed({str(tmp_path/'net.bnn')!r})\n"
            f"y = net(np.load({str(tmp_path/'x.npy')!r}))\n"
            "assert not any(m.split('.')[0] in ('torch', 'fastcore', 'fastai') for m in sys.modules)\n"
            "label = classify(net, np.zeros((32, 32, 3), np.uint8))[0][0][0]\n"
            "print(json.dumps([y.tolist(), label]))\n")
    p = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True, timeout=300, cwd=tmp_path, env={**os.environ, 'PYTHONPATH': str(site)})
    assert p.returncode == 0, p.stderr
    y, label = json.loads(p.stdout)
    assert (np.array(y, np.float32) == packed(x.numpy())).all() and label in 'abcdefghij'


def test_loaded_from_a_file_is_the_same(tmp_path):
    packed = pack(create_model('reactnet_a_nobn', n_out=10, width=.25).eval())
    x = np.random.default_rng(0).standard_normal((1, 3, 64, 64), np.float32)
    assert (load_packed(packed.save(tmp_path/'a.bnn'))(x) == packed(x)).all()
    assert fold(create_model('reactnet_mini_bn')).info['config']['norm'] == 'bn'
