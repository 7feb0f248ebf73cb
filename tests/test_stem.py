"The integer stem: whole sums in every way of the engine, files, training, refusals, C and browser."
import itertools, json, os, subprocess, sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from llvmlite import binding
from test_c import STRICT, call, compiled, needs_gcc, same_bits
from test_web import in_node, needs_node

from bnn_bn.checkpoint import save_model
from bnn_bn.data import fashion_mini
from bnn_bn.core.errors import ExportError, PackedFormatError
from bnn_bn.export import run_onnx, to_onnx
from bnn_bn.deploy import PackedNet, as_module, classify, load_packed, pack
from bnn_bn.learner import bnn_learner
from bnn_bn.cost import summary
from bnn_bn.layers.pixels import PixelConv2d, PixelStdConv2d, eight_bits, set_pixels
from bnn_bn.models import binary_net, create_model, reactnet_bn, reactnet_nobn
from bnn_bn.onebit.counting import get_way, has_way, numbers_of, ways
from bnn_bn.onebit.engine import Engine
from bnn_bn.onebit.fold import FoldedNet, fold
from bnn_bn.onebit.graph import Graph, Node, from_bytes, to_bytes
from bnn_bn.onebit.stem import as_pixels, int8_stem, pixel_stem, zero_points
from bnn_bn.onebit.unpack import compare_graphs, unpack
from bnn_bn.targets.export_c import to_c
from bnn_bn.targets.web import as_floats, to_web
from bnn_bn.train.recipes import make_recipe, start_of
from bnn_bn.weights import pretrained_bytes

WAYS = [way for way in ways if has_way(way)]
needs_runtime = pytest.mark.skipif(not find_spec('onnxruntime'), reason='pip install bnn_bn[export]')
SEEDS = st.integers(0, 2**31)
SHAPES = st.tuples(st.integers(1, 5), st.sampled_from((1, 31, 33, 70)), st.integers(1, 5),
                   st.integers(1, 3), st.integers(0, 3), st.integers(1, 2))
PICTURES = dict(mean=[.3], std=[.35], size=[32, 32], classes=[*'abcdefghij'])


def stem_node(g, c, o, k, stride, padding, dilation, slope):
    "an `iconv` whose scale and bias are exact: powers of two, and multiples of them"
    w = g.integers(-127, 128, (o, c, k, k)).astype(np.int8)
    scale = np.exp2(g.integers(-12, -6, o)).astype(np.float32)
    bias = (g.integers(-500, 500, o)*scale).astype(np.float32)
    t = dict(weight=w, scale=scale, bias=bias)
    if slope: t['slope'] = np.exp2(g.integers(-3, 2, o)).astype(np.float32)
    t |= dict(mean=g.random(c).astype(np.float32), std=g.uniform(.1, 2, c).astype(np.float32))
    return Node('iconv', (0,), t, stride=stride, padding=padding, dilation=dilation, name='stem')

def expected(u, n):
    "its map by int64 sums and float64, which hold every step of it exactly: (B,O,H',W')"
    t, p, s, d = n.tensors, n.padding, n.stride, n.dilation
    k = t['weight'].shape[2]
    x = u.astype(np.int64) - zero_points(t['mean']).reshape(-1, 1, 1)
    x = np.pad(x, ((0, 0), (0, 0), (p, p), (p, p)))
    reach = d*(k - 1) + 1
    view = np.lib.stride_tricks.sliding_window_view(x, (reach, reach), (2, 3))[:, :, ::s, ::s, ::d, ::d]
    sums = np.einsum('bchwij,ocij->bohw', view, t['weight'].astype(np.int64))
    y = sums*t['scale'].reshape(-1, 1, 1).astype(float) + t['bias'].reshape(-1, 1, 1)
    return np.where(y > 0, y, y*t['slope'].reshape(-1, 1, 1)) if 'slope' in t else y

def shown(n, y):
    "a graph that gives all numbers of the map of such a step, each times 1"
    picks = np.eye(y[0].size, dtype=np.float32).reshape(-1, *y.shape[1:])
    head = dict(weight=picks, bias=np.zeros(len(picks), np.float32))
    return Graph(n.tensors['weight'].shape[1], [n, Node('conv', (1,), head)])

def random_stem(seed, shape, slope):
    "pictures, the graph that shows its stem's map, and what that must be"
    g = np.random.default_rng(seed)
    c, o, k, stride, padding, dilation = shape
    node = stem_node(g, *shape, slope)
    side = dilation*(k - 1) + 1
    size = side + g.integers(0, 3), side + g.integers(0, 4)
    u = g.integers(0, 256, (2, c, *size)).astype(np.uint8)
    y = expected(u, node)
    return u, shown(node, y), y.reshape(2, -1)


# The engine --------------------------------------------------------------------------------------

@settings(max_examples=40, deadline=None)
@given(SEEDS, SHAPES, st.booleans(), st.sampled_from(WAYS), st.sampled_from((1, 2)))
def test_whole_sums(seed, shape, slope, way, threads):
    "all numbers of the map are those of int64 sums, in every way of counting"
    u, graph, want = random_stem(seed, shape, slope)
    assert (Engine(graph, threads, way)(u) == want).all()

@pytest.mark.parametrize('way', WAYS)
def test_largest_sums(way):
    "147 products of 255 and 127, all of one sign"
    g = np.random.default_rng(0)
    n = stem_node(g, 3, 33, 7, 1, 0, 1, False)
    n.tensors.update(weight=np.full((33, 3, 7, 7), -127, np.int8), mean=np.zeros(3, np.float32))
    u = np.full((1, 3, 7, 7), 255, np.uint8)
    y = expected(u, n)
    assert (Engine(shown(n, y), way=way)(u) == y.reshape(1, -1)).all()

@needs_runtime
@settings(max_examples=20, deadline=None)
@given(SEEDS, SHAPES, st.booleans(), st.booleans())
def test_whole_sums_in_onnx(seed, shape, slope, integers):
    "the exported step has them too, also where an image is a third of a step off its bytes"
    u, graph, want = random_stem(seed, shape, slope)
    off = np.random.default_rng(seed).uniform(-1/3, 1/3, u.shape)
    model, info = to_onnx(graph, integers=integers), graph.nodes[0].tensors
    for pixels in (u, u + off): assert (run_onnx(model, normalised(pixels, info)) == want).all()

@settings(max_examples=40, deadline=None)
@given(SEEDS, SHAPES, st.tuples(st.integers(0, 3), st.integers(0, 3)), st.integers(1, 5),
       st.integers(1, 3), st.sampled_from(('any', 'largest', 'least')))
def test_fours_are_pairs(seed, shape, more, batch, threads, numbers):
    "bytes four at a time give the bits of 16-bit pairs: any shape, batch and threads; extremes"
    g = np.random.default_rng(seed)
    c, o, k, stride, padding, dilation = shape
    node = stem_node(g, *shape, True)
    w, reach = node.tensors['weight'], dilation*(k - 1) + 1
    u = g.integers(0, 256, (batch, c, reach + more[0], reach + more[1])).astype(np.uint8)
    if numbers != 'any':
        u[:], w[:] = 255, 127 if numbers == 'largest' else -127
        node.tensors['mean'][:] = 0
    y = expected(u, node)
    graph = shown(node, y)
    want = Engine(graph, way='portable')(u)
    assert (want == y.reshape(batch, -1)).all()
    for way in WAYS: assert same_bits(Engine(graph, threads, way)(u), want)

def test_the_fastest_way_multiplies_fours():
    "where CPU and compiler have the instruction it is taken, and it is in the code"
    assert get_way() == 'vnni' or not has_way('vnni')
    assert [*map(np.dtype, numbers_of('vnni'))] == [np.uint8, np.int8]
    features = binding.get_host_cpu_features()
    if features.get('avx512vnni') and features.get('avx512vpopcntdq'): assert has_way('vnni')

def test_without_the_instruction():
    "a compiler that may not use it: another way, the same bits, and a clear word to who asks for it"
    code = '''
import numpy as np, sys
from bnn_bn.deploy import load_packed
from bnn_bn.onebit.counting import get_way
from bnn_bn.onebit.engine import Engine
from bnn_bn.onebit.stem import int8_stem
graph = int8_stem(load_packed(sys.argv[1]).graph)
u = np.random.default_rng(0).integers(0, 256, (2, 1, 32, 32)).astype(np.uint8)
print(get_way(), Engine(graph)(u).tobytes().hex())
try: Engine(graph, way='vnni')
except ValueError as e: print(e)
'''
    graph = int8_stem(load_packed(NAMES[0]).graph)
    want = Engine(graph)(bytes_for(graph, 2)).tobytes().hex()
    flags = binding.get_host_cpu_features()
    off = ','.join(f"{'-' if name == 'avx512vnni' or not on else '+'}{name}" for name, on in flags.items())
    p = subprocess.run([sys.executable, '-c', code, NAMES[0]], capture_output=True, text=True,
                       env={**os.environ, 'NUMBA_CPU_FEATURES': off})
    (way, found), (error,) = (line.split(' ', i) for line, i in zip(p.stdout.splitlines(), (1, 0)))
    assert way != 'vnni' and found == want, p.stderr[-1000:]
    assert "way='vnni'" in error

def normalised(u, info):
    mean, std = (np.array(info[k], float).reshape(-1, 1, 1) for k in ('mean', 'std'))
    return ((u/255. - mean)/std).astype(np.float32)

NAMES = 'fashion-reactnet_mini', 'cifar10-reactnet18-w50', 'cifar10-reactnet18-w50-bn'

def bytes_for(graph, n, seed=0):
    size = graph.info['size']
    return np.random.default_rng(seed).integers(0, 256, (n, graph.channels, *size)).astype(np.uint8)

@pytest.mark.parametrize('name', NAMES)
def test_bytes_and_numbers(name):
    "bytes, and the normalised images made of them, get the same bits by all ways and threads"
    graph = int8_stem(load_packed(name).graph)
    u = bytes_for(graph, 5)
    want = Engine(graph)(u)
    for way, threads in itertools.product(WAYS, (1, 2)):
        engine = Engine(graph, threads, way)
        assert same_bits(engine(u), want)
        assert same_bits(engine(normalised(u, graph.info)), want)

def test_not_a_number():
    graph = int8_stem(load_packed(NAMES[0]).graph)
    x = normalised(bytes_for(graph, 3), graph.info)
    want = Engine(graph)(x)
    x[1, 0, 5, 5] = np.nan
    got = Engine(graph)(x)
    assert np.isnan(got[1]).all() and same_bits(got[::2], want[::2])

def test_bytes_are_refused_without_it():
    net = load_packed(NAMES[0])
    with pytest.raises(ValueError, match='divide by 255'): net(bytes_for(net.graph, 1))
    with pytest.raises(ValueError, match='uint8'): net(torch.tensor(bytes_for(net.graph, 1)))

@pytest.mark.parametrize('dtype', ('int32', 'int64', 'float64', 'int8'))
def test_other_dtypes_are_refused(dtype):
    net = PackedNet(int8_stem(load_packed(NAMES[0]).graph))
    with pytest.raises(ValueError, match='dtype'): net(bytes_for(net.graph, 1).astype(dtype))


# Pictures ----------------------------------------------------------------------------------------

def test_padding_is_the_mean():
    "a picture of the zero points alone: every output is the bias, also where the window leaves it"
    graph = int8_stem(load_packed(NAMES[1]).graph)
    node = graph.nodes[0]
    z = zero_points(node.tensors['mean']).astype(np.uint8).reshape(1, -1, 1, 1)
    flat = np.broadcast_to(z, (1, 3, 4, 4)).copy()
    bias = np.broadcast_to(node.tensors['bias'].reshape(1, -1, 1, 1), (1, 32, 4, 4))
    assert (Engine(shown(node, bias))(flat) == bias.reshape(1, -1)).all()

@given(st.floats(0, 1), st.floats(.01, 3))
def test_every_byte_comes_back(mean, std):
    u = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)
    node = Node('iconv', (0,), dict(mean=np.float32([mean]), std=np.float32([std])))
    assert (as_pixels(normalised(u, dict(mean=[mean], std=[std])), node) == u).all()

def test_classify_takes_the_picture_as_it_is():
    net = load_packed(NAMES[0])
    whole = PackedNet(int8_stem(net.graph))
    pictures = bytes_for(net.graph, 3)[:, 0]
    got = classify(whole, pictures, top=10)
    p = torch.tensor(whole(pictures[:, None])).double().softmax(1)
    for row, q in zip(got, p):
        assert [v for _, v in row] == pytest.approx(q.sort(descending=True)[0].tolist(), abs=1e-6)

def test_tensors():
    "bytes as a tensor, also through the torch module; float images as before"
    net = PackedNet(int8_stem(load_packed(NAMES[0]).graph))
    u = torch.tensor(bytes_for(net.graph, 2))
    assert net(u).dtype == torch.float32
    assert torch.equal(net(u), torch.tensor(net(u.numpy())))
    assert torch.equal(as_module(net)(u), net(u))
    x = torch.tensor(normalised(u.numpy(), net.info))
    assert torch.equal(as_module(net)(x.double()), net(u))

@pytest.mark.parametrize('dtype', (torch.uint8, torch.int64, torch.bool))
def test_bytes_are_not_taken_for_normalised_numbers(dtype):
    "as a module, too, a network of a real stem refuses what is no float"
    net, u = load_packed(NAMES[0]), torch.ones(1, 1, 32, 32, dtype=dtype)
    for door in (net, as_module(net)):
        with pytest.raises(ValueError, match='float32, normalised as in training, is needed'): door(u)

def test_a_stem_for_other_pictures_says_what_they_are():
    "the mean and std that are given count; those of the file stay as they are where they say the same"
    net = load_packed(NAMES[0])
    given = PackedNet(int8_stem(net.graph, mean=[.5], std=.25))
    assert given.info['mean'] == [.5] and given.info['std'] == [.25]
    u = torch.tensor(bytes_for(net.graph, 2))
    assert torch.equal(given(torch.tensor(normalised(u.numpy(), given.info))), given(u))
    assert int8_stem(net.graph).info == net.info
    same = {k: np.float32(net.info[k]) for k in ('mean', 'std')}
    assert int8_stem(net.graph, **same).info == net.info
    unknown = Graph(1, net.graph.nodes, dict(net.info, mean='grey', std=None))
    assert PackedNet(int8_stem(unknown, mean=.5, std=.25)).info['mean'] == [.5]


# Quantising --------------------------------------------------------------------------------------

@settings(max_examples=30, deadline=None)
@given(SEEDS, st.integers(1, 4), st.booleans())
def test_rounding_is_the_nearest(seed, c, slope):
    "each weight is at most half a step off, the largest of a filter none, and twice is once"
    g = np.random.default_rng(seed)
    w = (g.standard_normal((6, c, 3, 3))*np.exp2(g.integers(-20, 20, (6, 1, 1, 1)))).astype(np.float32)
    w[5] = 0
    t = dict(weight=w, bias=np.zeros(6, np.float32))
    head = dict(weight=np.ones((2, 6, 1, 1), np.float32), bias=np.zeros(2, np.float32))
    std = g.uniform(.1, 2, c)
    graph = Graph(c, [Node('conv', (0,), t, padding=1), Node('mean', (1,)), Node('conv', (2,), head)])
    new = int8_stem(graph, .5, std).nodes[0].tensors
    near = new['weight']*new['scale'].reshape(-1, 1, 1, 1).astype(float)*255*np.float32(std).reshape(-1, 1, 1)
    step = new['scale'].reshape(-1, 1, 1, 1)*255*std.reshape(-1, 1, 1)
    assert (np.abs(near - w) <= .50001*step).all()
    assert (np.abs(new['weight']).reshape(6, -1).max(1) == [127]*5 + [0]).all()
    again = Graph(c, [Node('conv', (0,), dict(t, weight=near.astype(np.float32))), *graph.nodes[1:]])
    assert (int8_stem(again, .5, std).nodes[0].tensors['weight'] == new['weight']).all()

def test_away_from_the_border_only_weights_are_rounded():
    "with weights that are whole already, the map inside is that of the real convolution"
    g = np.random.default_rng(1)
    q = g.integers(-126, 127, (4, 3, 3, 3))
    q[:, 0, 0, 0] = 127
    mean, std = np.float32([.4914, .4822, .4465]), np.float32([.2470, .2435, .2616])
    w = (q*255*std.reshape(-1, 1, 1)*.01).astype(np.float32)
    nodes = [Node('conv', (0,), dict(weight=w, bias=np.zeros(4, np.float32)), padding=1)]
    head = dict(weight=np.ones((1, 4, 1, 1), np.float32), bias=np.zeros(1, np.float32))
    graph = Graph(3, [*nodes, Node('mean', (1,)), Node('conv', (2,), head)])
    new = int8_stem(graph, mean, std)
    assert (new.nodes[0].tensors['weight'] == q).all()
    u = g.integers(0, 256, (1, 3, 8, 8)).astype(np.uint8)
    real = torch.conv2d(torch.tensor(normalised(u, dict(mean=mean, std=std))).double(),
                        torch.tensor(w).double(), padding=1)
    ours = FoldedNet(new).values(torch.tensor(u))[1]
    far = (ours - real).abs()/real.abs().max()
    assert far[..., 1:-1, 1:-1].max() < 1e-6 < far.max() < 5e-3

@pytest.mark.parametrize('norm', ('nobn', 'bn', 'naive'))
@pytest.mark.parametrize('channels', (1, 3))
def test_trained_so_is_taken_as_it_is(norm, channels):
    "the packed weights are those with which the network was trained, and its logits agree"
    torch.manual_seed(0)
    net = create_model(f'reactnet_mini_{norm}', n_out=10, in_chans=channels, stem='cifar', width=.5,
                       stem_bits=8)
    mean, std = [.3, .4, .5][:channels], [.35, .2, .25][:channels]
    conv = set_pixels(net.body.stem.conv, mean, std)
    net.train()(torch.randn(8, channels, 32, 32))
    net.eval()
    packed = pack(net, mean=mean, std=std)
    q, _ = eight_bits(conv.kernel()[0].detach(), conv.std)
    factor = net.body.stem.norm.weight.detach().sign().view(-1, 1, 1, 1) if norm == 'bn' else 1
    assert (packed.graph.nodes[0].tensors['weight'] == (q*factor).numpy()).all()
    u = np.random.default_rng(0).integers(0, 256, (4, channels, 32, 32)).astype(np.uint8)
    x = torch.tensor(normalised(u, packed.info))
    with torch.no_grad(): want = net(x)
    assert (want - torch.tensor(packed(u))).abs().median() < 1e-4*want.abs().max()

@settings(max_examples=30, deadline=None)
@given(SEEDS)
def test_a_sum_of_0_counts_as_plus(seed):
    "where whole sum and mean cancel, the map is 0 or a little above, rounded once or twice; one less is below"
    g = np.random.default_rng(seed)
    t = dict(weight=g.standard_normal((64, 3, 3, 3)).astype(np.float32), bias=np.zeros(64, np.float32))
    head = dict(weight=np.ones((1, 64, 1, 1), np.float32), bias=np.zeros(1, np.float32))
    graph = Graph(3, [Node('conv', (0,), t), Node('mean', (1,)), Node('conv', (2,), head)])
    t = int8_stem(graph, .5, g.uniform(.1, 2, 3)).nodes[0].tensors
    left = t['weight'].sum((1, 2, 3), dtype=np.int64)/2 # the mean lies half a level below its byte
    even = left == np.rint(left)
    for at, signs in ((0, {0, 1}), (-1, {-1})):
        sums = (at - left[even]).astype(np.float32)
        scale, bias = (t[k][even] for k in ('scale', 'bias'))
        once = (sums.astype(float)*scale + bias).astype(np.float32)
        for y in (once, sums*scale + bias): assert set(np.sign(y)) <= signs

@pytest.mark.parametrize('seed', (2, 3))
def test_a_fresh_network_is_packed_where_sums_are_0(seed):
    "its signs have no shift yet, so every sum of 0 stands on a threshold"
    torch.manual_seed(seed)
    net = reactnet_bn('mini', n_out=10, stem='cifar', stem_bits=8).eval()
    assert pack(net, mean=.5, std=.25).takes_bytes

def test_a_stem_that_knows_nothing_is_told():
    net = reactnet_nobn('mini', n_out=10, in_chans=1, stem='cifar', width=.5, stem_bits=8).eval()
    packed = pack(net, **PICTURES)
    assert packed.takes_bytes and not net.body.stem.conv.known()
    with pytest.raises(ExportError, match='does not know how'): fold(net)
    set_pixels(net.body.stem.conv, .5, .5)
    with pytest.raises(ExportError, match=r'mean=\[0.3\]'): pack(net, **PICTURES)
    assert pack(net).info['mean'] == [.5]

def test_a_learner_tells_the_stem():
    "how its data are normalised; data that do not say it are refused"
    net = reactnet_nobn('mini', n_out=10, in_chans=1, stem='cifar', width=.25, stem_bits=8)
    dls = fashion_mini(bs=32, n=64, device='cpu')
    bnn_learner(dls, net)
    conv = net.body.stem.conv
    assert torch.allclose(conv.mean, dls.valid.mean.flatten()/255)
    assert torch.allclose(conv.std, dls.valid.std.flatten()/255)

def test_gradient_and_update():
    "straight through: the weights learn, and what is computed stays on the grid"
    net = reactnet_bn('mini', n_out=4, in_chans=1, stem='cifar', width=.5, stem_bits=8)
    conv = set_pixels(net.body.stem.conv, .5, .25)
    opt = torch.optim.SGD(net.parameters(), .1)
    before = conv.weight.detach().clone()
    net(torch.randn(4, 1, 32, 32)).square().sum().backward()
    opt.step()
    assert (conv.weight != before).any()
    w = conv.kernel()[0].detach()
    q, scale = eight_bits(w, conv.std)
    assert torch.allclose(q*scale*conv.std, w, rtol=1e-5)


def test_one_picture_without_a_batch():
    conv = set_pixels(PixelStdConv2d(3, 4, 3), .5, .25)
    x = torch.randn(3, 9, 9)
    for training in True, False:
        conv.train(training)
        torch.testing.assert_close(conv(x, .5), conv(x[None], .5)[0])
    conv.train()(x).sum().backward()
    assert conv.weight.grad.any() and conv(x).shape == (4, 9, 9)


@pytest.mark.parametrize('kind', [PixelConv2d, PixelStdConv2d])
@pytest.mark.parametrize('mode', ['reflect', 'replicate', 'circular'])
def test_other_padding_is_refused(kind, mode):
    with pytest.raises(ValueError, match='padding in numbers, of zeros'): kind(3, 4, 3, padding_mode=mode)


@pytest.mark.parametrize('norm', ['nobn', 'bn'])
@pytest.mark.parametrize('stem', ['cifar', 'imagenet'])
def test_what_it_costs(norm, stem, tmp_path):
    "bytes saved in the summary are those saved in the file, but for mean, deviation and names"
    sizes = {}
    for bits in None, 8:
        torch.manual_seed(0)
        net = binary_net('reactnet_mini', norm=norm, stem=stem, stem_bits=bits, n_out=10).eval()
        if bits: set_pixels(net.body.stem.conv, .5, .25)
        table = summary(net, (3, 32, 32))
        pack(net).save(tmp_path/'net.bnn')
        sizes[bits] = table.packed['total'], (tmp_path/'net.bnn').stat().st_size
        assert table.bits['body.stem.conv'] == f'{bits or 32}/{bits or 32}'
    counted, stored = (a - b for a, b in zip(sizes[None], sizes[8]))
    assert abs(counted - stored) < 400 and counted > 3*net.body.stem.conv.weight.numel() - 600


# Files -------------------------------------------------------------------------------------------

@pytest.mark.parametrize('name', NAMES)
def test_file_and_back(name, tmp_path):
    "a file comes back in every bit, old files are what they were, and training can go on"
    data = pretrained_bytes(name)
    assert to_bytes(from_bytes(data)) == data and data[8] == 1
    net = PackedNet(int8_stem(from_bytes(data)))
    again = load_packed(net.save(tmp_path/'net.bnn'))
    raw = (tmp_path/'net.bnn').read_bytes()
    assert raw[8] == 2 and to_bytes(again.graph) == raw
    u = bytes_for(net.graph, 2)
    assert same_bits(net(u), again(u))
    model = unpack(again.graph)
    assert model.cfg['stem_bits'] == 8
    assert set(compare_graphs(fold(model), again.graph)) <= {'stem'}
    assert (pack(model).graph.nodes[0].tensors['weight'] == pixel_stem(net.graph).tensors['weight']).all()

def test_info_may_not_contradict(tmp_path):
    net = PackedNet(int8_stem(load_packed(NAMES[0]).graph))
    net.info['mean'] = [.9]
    with pytest.raises(PackedFormatError, match='the stem was made for'): net.save(tmp_path/'a.bnn')

def test_pickle_and_state(tmp_path):
    "mean and deviation are part of the state; a fresh network with it answers alike"
    net = reactnet_nobn('mini', n_out=3, in_chans=1, stem='cifar', width=.5, stem_bits=8).eval()
    set_pixels(net.body.stem.conv, .3, .2)
    other = binary_net(**net.cfg).eval()
    other.load_state_dict(net.state_dict())
    x = torch.randn(2, 1, 32, 32)
    assert torch.equal(net(x), other(x)) and other.body.stem.conv.known()


# Refusals ----------------------------------------------------------------------------------------

@pytest.mark.parametrize('bits', (4, 1, 16, 8., True, '8', 0, -8, [8]))
def test_other_bits(bits):
    with pytest.raises(ValueError, match='stem_bits='): binary_net('reactnet_mini', stem_bits=bits)

@pytest.mark.parametrize('word', ('int4', 'INT8', 8, True, '', 'real'))
def test_other_words(word):
    net = reactnet_nobn('mini', n_out=3, stem='cifar')
    with pytest.raises(ValueError, match='stem='): pack(net, stem=word, **PICTURES)

@pytest.mark.parametrize('make', (
    lambda: create_model('birealnet18_bn', stem='cifar', n_out=10, in_chans=1, width=.125),
    lambda: create_model('reactnet18_nobn', stem='cifar', n_out=10, in_chans=1, width=.125, shortcut='real')))
def test_real_layers_are_named(make):
    with pytest.raises(ExportError, match=r'block5.shortcut \(conv\) has real weights'):
        pack(make().eval(), stem='int8', **PICTURES)

def test_stem_that_is_no_convolution():
    net = reactnet_nobn('mini', n_out=10, in_chans=1, stem='cifar', width=.5)
    net.body.stem.conv = torch.nn.ConvTranspose2d(1, 32, 3, padding=1)
    with pytest.raises(ExportError, match='body.stem.conv is a ConvTranspose2d'):
        pack(net, stem='int8', **PICTURES)

def test_unknown_mean():
    net = reactnet_nobn('mini', n_out=10, in_chans=1, stem='cifar', width=.5)
    with pytest.raises(ExportError, match='mean of the pictures is not known'): pack(net, stem='int8')

@pytest.mark.parametrize('wrong', (dict(mean=[1.5]), dict(mean=[-.1])))
def test_a_mean_that_is_no_grey(wrong):
    net = reactnet_nobn('mini', n_out=10, in_chans=1, stem='cifar', width=.5)
    with pytest.raises(ExportError, match='numbers from 0 to 1'): pack(net, stem='int8', **PICTURES | wrong)

def test_too_many_products():
    "a sum that 32 bits could not hold"
    n = stem_node(np.random.default_rng(0), 70000, 1, 1, 1, 0, 1, False)
    with pytest.raises(ValueError, match='66311'): Engine(shown(n, np.zeros((1, 1, 1, 1))))


# One C file --------------------------------------------------------------------------------------

def check_c(graph, u, folder, *flags, **given):
    "all bits of all logits are those of the engine"
    file = to_c(graph, folder/'net.c', size=u.shape[2:], **given)
    want = Engine(int8_stem(graph))(u)
    pictures = u.transpose(0, 2, 3, 1)
    got, classes = call(compiled(file, *flags), 'net_pixels', pictures, u.shape[2:], want.shape[1])
    assert same_bits(got, want) and classes == want.argmax(1).tolist()
    return file.read_text()

@needs_gcc
@settings(max_examples=12, deadline=None)
@given(SEEDS, SHAPES, st.booleans())
def test_c_file_sums_whole_numbers(tmp_path_factory, seed, shape, slope):
    u, graph, want = random_stem(seed, shape, slope)
    check_c(graph, u, tmp_path_factory.mktemp('c'))

@needs_gcc
@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('flags', (STRICT, ('-O2', '-march=native')))
def test_c_file_of_a_pretrained_network(name, flags, tmp_path):
    graph = load_packed(name).graph
    text = check_c(graph, bytes_for(graph, 10), tmp_path, *flags, stem='int8')
    assert 'net_floats' not in text and 'pixel_values' not in text

def test_c_file_without_it_is_as_before(tmp_path):
    text = to_c(NAMES[0], tmp_path/'net.c').read_text()
    assert 'whole_sum' not in text and 'net_floats' in text and 'pixel_values' in text

def test_c_file_refuses_real_layers(tmp_path):
    net = create_model('birealnet18_bn', stem='cifar', n_out=10, in_chans=1, width=.125).eval()
    packed = pack(net, **PICTURES)
    for stem, words in (('int8', 'block5.shortcut'), ('int4', 'stem=')):
        with pytest.raises(ValueError, match=words): to_c(packed, tmp_path/'net.c', stem=stem)
    assert not list(tmp_path.iterdir())


# In a browser ------------------------------------------------------------------------------------

@needs_node
@pytest.mark.parametrize('name', NAMES[:2])
@pytest.mark.parametrize('kind', ('exact', 'relaxed'))
def test_browser(name, kind, tmp_path):
    "100 pictures: all bits of all logits are the engine's"
    graph = int8_stem(load_packed(name).graph)
    u = bytes_for(graph, 100)
    found = in_node(to_web(name, tmp_path/'page', stem='int8'), u.transpose(0, 2, 3, 1), kind)
    assert found.get('kind') == kind, found
    assert (np.uint32(found['logits']) == Engine(graph)(u).view(np.uint32)).all()
    nan, infinity = found['bad']
    assert nan == ['NaN']*10 and 'NaN' not in infinity # a byte, as when trained

@needs_node
@pytest.mark.parametrize('name', NAMES[:2])
def test_browser_in_float32_too(name, tmp_path):
    "the rival on the page is real in every layer, and has the bits of whole numbers all the same"
    graph = int8_stem(load_packed(name).graph)
    floats, _ = as_floats(graph)
    assert {n.op for n in floats.nodes} <= {'conv', 'maxpool', 'avgpool', 'mean'}
    u = bytes_for(graph, 10)
    u[0], u[1] = 0, 255
    page = to_web(name, tmp_path/'page', stem='int8', float_too=True)
    found = in_node(page, u.transpose(0, 2, 3, 1), 'exact')
    want = Engine(graph)(u).view(np.uint32)
    assert (np.uint32(found['floats']) == want).all() and found['floats'] == found['logits']

def test_float32_would_not_hold_the_sums(tmp_path):
    n = stem_node(np.random.default_rng(0), 3, 1, 15, 1, 0, 1, False)
    n.tensors.update(weight=np.full((1, 3, 15, 15), 127, np.int8))
    graph = shown(n, np.zeros((1, 1, 1, 1)))
    info = {k: n.tensors[k].tolist() for k in ('mean', 'std')}
    graph.info.update(size=[15, 15], **info)
    with pytest.raises(ExportError, match='float_too=True: the sums of the integer stem reach 21'):
        to_web(graph, tmp_path/'page', float_too=True)
    assert not list(tmp_path.iterdir())

@needs_node
@settings(max_examples=4, deadline=None)
@given(SEEDS, SHAPES, st.booleans())
def test_browser_sums_whole_numbers(tmp_path_factory, seed, shape, slope):
    u, graph, want = random_stem(seed, (1, *shape[1:]), slope)
    graph.info.update(size=list(u.shape[2:]), **{k: [.5] for k in ('mean', 'std')})
    graph.nodes[0].tensors.update({k: np.float32([.5]) for k in ('mean', 'std')})
    folder = to_web(graph, tmp_path_factory.mktemp('web')/'page')
    found = in_node(folder, u.transpose(0, 2, 3, 1), 'exact')
    assert (np.uint32(found['logits']) == Engine(graph)(u).view(np.uint32)).all()

def test_browser_refuses_real_layers(tmp_path):
    net = create_model('birealnet18_bn', stem='cifar', n_out=10, in_chans=1, width=.125).eval()
    with pytest.raises(ExportError, match='block5.shortcut'):
        to_web(pack(net, **PICTURES), tmp_path/'page', stem='int8')
    assert not list(tmp_path.iterdir())


# From the command line ---------------------------------------------------------------------------

def bnn(folder, *words):
    "status and output of a command"
    p = subprocess.run([sys.executable, '-m', 'bnn_bn', *words], capture_output=True, text=True, cwd=folder,
                       env={**os.environ, 'PYTHONWARNINGS': 'ignore'})
    return p.returncode, p.stdout + p.stderr

def test_bnn_pack_stem(tmp_path):
    "the option packs as the argument does, and says what the quantised stem changes"
    code, said = bnn(tmp_path, 'pack', NAMES[0], '--stem', 'int8', '--out', 'a.bnn', '--images', '200')
    assert code == 0 and '100.00% of 200 answers on its data agree' in said, said
    assert 'in whole numbers' in said
    graph = load_packed(tmp_path/'a.bnn').graph
    want = int8_stem(load_packed(NAMES[0]).graph)
    assert (pixel_stem(graph).tensors['weight'] == pixel_stem(want).tensors['weight']).all()
    u = bytes_for(want, 5)
    assert (Engine(graph)(u).argmax(1) == Engine(want)(u).argmax(1)).all()

def test_bnn_pack_refuses(tmp_path):
    "another word; a network that does not say how its pictures are normalised; nothing is written"
    for words in (('--stem', 'int4'), ('--stem', 'INT8')):
        code, said = bnn(tmp_path, 'pack', NAMES[0], *words, '--out', 'a.bnn', '--images', '20')
        assert code == 1 and f'--stem {words[1]}: allowed are' in said, said
    save_model(reactnet_nobn('mini', n_out=3, in_chans=1, stem='cifar', width=.25), tmp_path/'net.safetensors')
    code, said = bnn(tmp_path, 'pack', 'net.safetensors', '--stem', 'int8', '--images', '20')
    assert code == 1 and 'mean of the pictures is not known' in said and '--path' in said, said
    assert [f.name for f in tmp_path.iterdir() if f.suffix == '.bnn'] == []

def test_bnn_train_stem_bits(tmp_path):
    "a run trained so is packed so without a word, and its answers agree"
    code, said = bnn(tmp_path, 'train', 'fashion', '--stem-bits', '8', '--images', '256', '--epochs', '1',
                     '--width', '.25', '--bs', '64', '--device', 'cpu', '--threads', '1', '--out', 'run')
    assert code == 0, said
    assert json.loads((tmp_path/'run/config.json').read_text())['recipe']['stem_bits'] == 8
    code, said = bnn(tmp_path, 'pack', 'run', '--images', '100')
    assert code == 0, said
    assert pixel_stem(load_packed(tmp_path/'run/best.bnn').graph) is not None

@pytest.mark.parametrize('recipe, bits, words', (
    ('fashion', 4, 'stem_bits=4: allowed are 0, 8'), ('fashion', True, 'stem_bits=True'),
    ('cifar10-teacher', 8, 'stem_bits=8: airbench94 is a real network')))
def test_recipes_refuse(recipe, bits, words):
    with pytest.raises(ValueError, match=words): make_recipe(recipe, stem_bits=bits)

def test_a_pretrained_start_has_another_stem():
    "its real stem is not taken for one of eight bits"
    start = start_of(make_recipe('folder', stem_bits=8), (32, 3, 64, 64))
    assert not start.name and 'stem_bits=None, not 8' in str(start)
    assert start_of(make_recipe('folder'), (32, 3, 64, 64)).name

@pytest.mark.parametrize('out', ('net.c', 'net.onnx'))
def test_float_too_is_for_pages(tmp_path, out):
    code, said = bnn(tmp_path, 'export', NAMES[0], out, '--stem', 'int8', '--float-too')
    assert code == 1 and '--web' in said and 'leave it out' in said, said
    assert not list(tmp_path.iterdir())

@needs_gcc
def test_bnn_export_c_stem(tmp_path):
    "the C file of the command is that of the function"
    code, said = bnn(tmp_path, 'export', NAMES[0], 'net.c', '--stem', 'int8')
    assert code == 0, said
    want = to_c(NAMES[0], tmp_path/'other.c', stem='int8', name='net').read_text()
    assert (tmp_path/'net.c').read_text() == want
