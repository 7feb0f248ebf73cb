"Folding, step by step: each block against its own mathematics, offsets and all; small and fast."
import copy
import numpy as np, pytest, torch
from torch import nn
from bnn_bn.core.errors import ExportError
from bnn_bn.layers.activations import RPReLU
from bnn_bn.layers.blocks import BiRealBlock, ReActBlock, Spec, XnorBlock, reference_rules
from bnn_bn.layers.conv import QuantConv2d, ScaledStdConv2d
from bnn_bn.layers.pixels import set_pixels
from bnn_bn.models import binary_net, reactnet_nobn
from bnn_bn.onebit.fold import FoldedNet, fold, thresholds
from bnn_bn.onebit import fold as folding
from bnn_bn.onebit.packable import as_packable
from bnn_bn.onebit.graph import Graph, Node, from_bytes, to_bytes

TOP = float(np.finfo(np.float32).max)
TINY = float(np.float32(1e-45)) # the least subnormal number
CUTS = -1e30, -1.5, -TINY, 0., TINY, 1/3, 7e20, TOP


def scramble(model, seed=0):
    "random numbers where training would put some"
    g = torch.Generator().manual_seed(seed)
    def rand(p, scale=1.): return scale*torch.randn(p.shape, generator=g)
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.weight.data, m.bias.data = rand(m.weight), rand(m.bias, .5)
            m.running_mean, m.running_var = rand(m.bias, .5), rand(m.bias).exp()
        for k in ('shift', 'shift_in', 'shift_out', 'gain', 'bias'):
            p = getattr(m, k, None)
            if isinstance(p, nn.Parameter): p.data.add_(rand(p, .3))
    return model.eval()


def column(*values): return torch.tensor(values).view(1, -1, 1, 1)


# Thresholds --------------------------------------------------------------------------------------

def test_the_threshold_is_the_least_number_with_the_new_sign():
    "exact to the last bit, from the lowest float32 number to the highest, subnormal ones too"
    cut = column(*CUTS)
    t, flip = thresholds(lambda x: torch.where(x >= cut, 1., -1.), len(CUTS))
    assert t.dtype == np.float64 and (t == np.float32(CUTS)).all() and not flip.any()
    t, flip = thresholds(lambda x: torch.where(x >= cut, -1., 1.), len(CUTS))
    assert (t == np.float32(CUTS)).all() and flip.all() and flip.dtype == bool


def test_a_sign_that_never_changes():
    "plus from minus infinity on, or never; a sign of 0 counts as +1"
    t, flip = thresholds(lambda x: 0*x + column(1., -1., 0.), 3)
    assert (t == [-np.inf, np.inf, -np.inf]).all() and not flip.any()

def test_where_the_sign_is_zero_it_counts_as_plus():
    "at the number itself, rising or falling; with zero_is_plus a black image is answered as packing does"
    for turn in (1, -1):
        t, flip = thresholds(lambda x: turn*torch.sign(x), 1)
        assert t[0] == (0 if turn == 1 else TINY) and flip[0] == (turn == -1)
    net = reactnet_nobn('mini', n_out=3, in_chans=1, width=.25, stem='cifar', rules='reference').eval()
    black = torch.zeros(1, 1, 16, 16)
    want = as_packable(net, zero_is_plus=True)(black)
    with torch.no_grad(): got = FoldedNet(fold(net, zero_is_plus=True))(black)
    assert (got - want).abs().max() < 1e-5*want.abs().max()


HEADS = dict(
    dropout=lambda c: [nn.Linear(c, 7), nn.Dropout(.5), nn.Linear(7, 3)],
    nested=lambda c: [nn.Sequential(nn.Linear(c, 7), nn.Identity()), nn.Sequential(nn.LeakyReLU(.3)), nn.Linear(7, 3)],
    no_bias=lambda c: [nn.Linear(c, 7, bias=False), nn.PReLU(), nn.Linear(7, 3)],
    tanh=lambda c: [nn.Linear(c, 7), nn.Tanh(), nn.Linear(7, 3)],
    softmax=lambda c: [nn.Linear(c, 3), nn.Softmax(1)])

def headed(case, pool=None):
    torch.manual_seed(1)
    net = reactnet_nobn('mini', n_out=3, in_chans=1, width=.25, stem='cifar').eval()
    layers = HEADS[case](net.head.fc.in_features)
    net.head = nn.Sequential(pool or nn.AdaptiveAvgPool2d(1), nn.Flatten(), *layers).eval()
    return net

@pytest.mark.parametrize('case', HEADS)
def test_a_head_is_folded_as_it_answers_or_refused(case):
    "what stands between linear layers, nested modules, other pools: nothing is left out, nothing changed"
    net, x = headed(case), torch.randn(4, 1, 16, 16)
    if case in ('tanh', 'softmax'):
        with pytest.raises(ExportError, match='(?i)' + case): fold(net)
        return
    before = list(net.head.state_dict())
    with torch.no_grad(): got, want = FoldedNet(fold(net))(x), net(x)
    assert (got - want).abs().max() < 1e-5*want.abs().max()
    assert list(net.head.state_dict()) == before

def test_another_pool_in_a_head_is_refused():
    for pool in (nn.AdaptiveMaxPool2d(1), nn.AdaptiveAvgPool2d(2)):
        with pytest.raises(ExportError, match='head'): fold(headed('dropout', pool))

def test_the_facts_of_an_unpacked_network_can_be_given_again():
    "its info holds the configuration, which is the network's own"
    net = reactnet_nobn('mini', n_out=3, in_chans=1, width=.25, stem='cifar').eval()
    info = fold(net, name='a').info
    assert fold(net, **info).info == info and fold(net, **dict(info, config={})).info == info

@pytest.mark.parametrize('op', ('mean', 'maxpool', 'avgpool'))
def test_the_factor_of_a_pool_counts_or_is_refused(op):
    "an average multiplies; another pool has no factor, and offset and step agree"
    folder = folding.Folder()
    weight = dict(weight=np.ones((2, 1, 1, 1), np.float32), bias=np.zeros(2, np.float32))
    x = folding.Folded(folder.add('conv', [0], 'stem', weight), np.ones(2))
    pooled, graph = folder.pool(op, x, 'pool', 2.), Graph(1, folder.nodes)
    assert (pooled.offset == 2).all() and graph.nodes[-1].factor == 2
    if op == 'avgpool': assert (FoldedNet(graph)(torch.ones(1, 1, 1, 1)) == 2).all()
    else:
        with pytest.raises(ValueError, match='factor=2.0: this op has none'): to_bytes(graph)


def test_a_sign_that_changes_at_either_end():
    "the lowest number is as good as always; the highest is a threshold"
    cut = column(-TOP, TOP)
    t, flip = thresholds(lambda x: torch.where(x >= cut, 1., -1.), 2)
    assert (t == [-np.inf, TOP]).all() and not flip.any()
    t, flip = thresholds(lambda x: torch.where(x > cut, -1., 1.), 2)
    assert t[0] == np.nextafter(np.float32(-TOP), np.float32(0)) and t[1] == -np.inf
    assert (flip == [True, False]).all()


# Blocks ------------------------------------------------------------------------------------------

def prelu(n): return nn.PReLU()
def prelus(n): return nn.PReLU(n)

def difference(block, channels, side=6, **kw):
    "of what a block makes of x + offset, and its steps of x: relative"
    g = torch.Generator().manual_seed(7)
    x = torch.randn(2, channels, side, side, generator=g).double()
    offset = torch.randn(channels, generator=g).double()
    folder = folding.Folder()
    start = folding.Folded(0, offset.numpy())
    with torch.no_grad():
        out = folding.fold_block(folder, 'b', block, start)
        graph = Graph(channels, folder.nodes)
        nets = [FoldedNet(graph, exact).double() for exact in (True, False)]
        got = [net.values(x)[out.step] + torch.tensor(out.offset).view(-1, 1, 1) for net in nets]
        want = copy.deepcopy(block).double()(x + offset.view(-1, 1, 1))
    assert out.step == len(folder.nodes) == len(nets[0].values(x)) - 1
    return max(((y - want).abs().max()/want.abs().max()).item() for y in got), folder.nodes


SHAPES = (8, 8, 1), (8, 16, 2), (8, 16, 1), (8, 8, 2)

@pytest.mark.parametrize('norm', ('nobn', 'bn', 'naive'))
@pytest.mark.parametrize('kind', (BiRealBlock, ReActBlock, XnorBlock))
def test_a_block_is_its_steps(kind, norm):
    "the same numbers, and only 32-bit or one-bit arrays"
    betas = (.7, 1.3)[:getattr(kind, 'branches', 1)]
    for shape in SHAPES:
        torch.manual_seed(0)
        block = scramble(kind(*shape, Spec(norm=norm, rprelu=kind is not XnorBlock), betas))
        error, nodes = difference(block, 8)
        assert error < 1e-6, (shape, error)
        for n in nodes:
            dtypes = {k: v.dtype for k, v in n.tensors.items()}
            whole = dtypes.pop('weight', None)
            assert set(dtypes.values()) <= {np.dtype('float32')}
            if whole is not None: assert set(np.unique(n.tensors['weight'])) == {-1, 1}


@pytest.mark.parametrize('binary', (True, False))
@pytest.mark.parametrize('act', (prelu, prelus, RPReLU, None))
def test_activations_and_shortcuts(act, binary):
    for shape in SHAPES[:2]:
        torch.manual_seed(0)
        spec = Spec(norm='bn', own_act=act, rprelu=False, binary_shortcut=binary)
        block = scramble(BiRealBlock(*shape, spec))
        if isinstance(block.act, nn.PReLU): block.act.weight.data.uniform_(-1, 1)
        error, nodes = difference(block, 8)
        assert error < 1e-6, (shape, error)
        assert ('slope' in nodes[-1].tensors) == (act is not None)
        if len(nodes) > 1:
            shortcut = nodes[-2].tensors
            assert ('scale' in shortcut) == binary == (shortcut['weight'].dtype == np.int8)


def test_steps_bear_the_names_of_their_parts():
    "a message about a step of a file then leads back to the network"
    names = {BiRealBlock: ['b.pool', 'b.shortcut', 'b'], XnorBlock: ['b.shortcut', 'b.1', 'b.2'],
             ReActBlock: ['b.pool', 'b.3x3', 'b.1x1']}
    ops = {BiRealBlock: ['avgpool', 'conv', 'bconv'], XnorBlock: ['conv', 'bconv', 'bconv'],
           ReActBlock: ['avgpool', 'bconv', 'bconv']}
    inputs = {BiRealBlock: [(0,), (1,), (0, 2)], XnorBlock: [(0,), (0,), (2, 1)],
              ReActBlock: [(0,), (0, 1), (2, 2)]}
    for kind, want in names.items():
        block = kind(8, 16, 2, Spec(), (.7, 1.3)[:getattr(kind, 'branches', 1)]).eval()
        _, nodes = difference(block, 8)
        assert [n.name for n in nodes] == want
        assert [n.op for n in nodes] == ops[kind] and [n.inputs for n in nodes] == inputs[kind]
        assert {(n.kernel, n.stride) for n in nodes if n.op == 'avgpool'} <= {(2, 2)}
        arrays = [list(n.tensors) for n in nodes if n.op == 'bconv'][-1]
        order = 'weight', 'scale', 'bias', 'slope', 'threshold'
        assert arrays == [k for k in order if k in arrays]


def test_the_pool_of_a_vgg():
    for pool in (nn.MaxPool2d(2), nn.MaxPool2d(3, 2, 1), nn.MaxPool2d(3, 1)):
        error, (node,) = difference(pool, 8)
        assert error == 0 and (node.op, node.name) == ('maxpool', 'b')
        want = pool.kernel_size, pool.stride, pool.padding
        assert (node.kernel, node.stride, node.padding) == want


class Own(nn.Module):
    "a block of someone else, with its own method"
    def __init__(self, block): super().__init__(); self.block = block
    def forward(self, x): return self.block(x)
    def fold(self, folder, name, x): return folding.fold_bireal(folder, name, self.block, x)

def test_a_block_with_a_method_fold():
    error, nodes = difference(Own(scramble(BiRealBlock(8, 8, 1, Spec()))), 8)
    assert error < 1e-6 and [n.name for n in nodes] == ['b']
    with pytest.raises(ExportError, match=r'^b is a Tanh: .*method fold\(folder, name, x\)'):
        difference(nn.Tanh(), 8)


# Convolutions ------------------------------------------------------------------------------------

@pytest.mark.parametrize('binary', (True, False))
@pytest.mark.parametrize('kind', (QuantConv2d, ScaledStdConv2d))
def test_a_convolution_and_its_norm_are_one_line(kind, binary):
    "norm(conv(x, factor)) = scale*(weight ∗ x) + bias, with a bias of its own or without"
    torch.manual_seed(0)
    x = torch.randn(2, 8, 5, 5).double()
    bn = nn.BatchNorm2d(6)
    for norm, bias in ((bn, True), (bn, False), (nn.Identity(), True)):
        conv = kind(8, 6, 3, bias=bias, binary=binary)
        scramble(nn.Sequential(conv, norm))
        w, scale, b = folding.conv_parts(conv, norm, 1.7)
        assert len(b) == len(scale) == 6 and w.dtype == (np.int8 if binary else np.float64)
        conv, norm = copy.deepcopy(conv).double(), copy.deepcopy(norm).double()
        with torch.no_grad(): want = norm(conv(x, 1.7))
        line = nn.functional.conv2d(x, torch.tensor(w).double(), padding=1)
        got = line*torch.tensor(scale).view(-1, 1, 1) + torch.tensor(b).view(-1, 1, 1)
        assert (got - want).abs().max() < 1e-6*want.abs().max()


@pytest.mark.parametrize('options, word', [
    (dict(groups=2), 'groups'), (dict(stride=(1, 2)), 'unequal sides'),
    (dict(dilation=(2, 1)), 'unequal'), (dict(padding=(1, 0)), 'unequal sides'),
    (dict(padding_mode='reflect'), "padding_mode='reflect'")])
def test_a_convolution_that_has_no_place(options, word):
    conv = nn.Conv2d(4, 4, 3, **options)
    with pytest.raises(ExportError, match=f'^stem: .*{word}'): folding.geometry_of(conv, 'stem')


def test_a_convolution_that_has_one():
    conv = nn.Conv2d(4, 4, 3, stride=2, padding=1, dilation=3)
    assert folding.geometry_of(conv, 'stem') == dict(stride=2, padding=1, dilation=3)


def test_signs_that_are_none():
    "real weights, zeros and unknown activations are refused; the step is named"
    torch.manual_seed(0)
    block = BiRealBlock(8, 8, 1, Spec(binary='act'))
    with pytest.raises(ExportError, match='^b: its weights are real'): difference(block, 8)
    block = BiRealBlock(8, 8, 1, Spec(rules=reference_rules))
    block.conv.weight.data[:2] = 0
    with pytest.raises(ExportError, match='^b: 144 weights have the sign 0'): difference(block, 8)
    block = BiRealBlock(8, 8, 1, Spec(own_act=lambda n: nn.Hardtanh()))
    with pytest.raises(ValueError, match="^b: the activation Hardtanh has no place"):
        difference(block, 8)


# Networks ----------------------------------------------------------------------------------------

def net(**options):
    torch.manual_seed(0)
    options = dict(backbone='reactnet_mini', width=.25, n_out=5, stem='cifar') | options
    return scramble(binary_net(**options))

def logits_differ(model, side=16):
    "relative, of a network and its graph, through a file"
    graph = from_bytes(to_bytes(fold(model)))
    channels = model.cfg['in_chans']
    x = torch.rand(2, channels, side, side, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        want = copy.deepcopy(model).double()(x.double())
        got = [FoldedNet(graph, exact).double()(x.double()) for exact in (True, False)]
    assert all(y.shape == (2, model.n_out) for y in got)
    return max(((y - want).abs().max()/want.abs().max()).item() for y in got), graph


@pytest.mark.parametrize('options', (
    dict(), dict(norm='bn'), dict(stem='imagenet', in_chans=1), dict(stem=(3, 1, True), norm='bn'),
    dict(stem=(5, 2, False))), ids=str)
def test_a_network_is_its_graph(options):
    "the same logits through a file; the network is as it was, training mode too"
    model = net(**options).train()
    before = copy.deepcopy(model.state_dict())
    graph = fold(model, classes=list('abcde'))
    assert model.training and all((v == before[k]).all() for k, v in model.state_dict().items())
    assert graph.info == dict(config=model.cfg, classes=list('abcde'))
    assert (graph.channels, graph.n_out) == (model.cfg['in_chans'], 5)
    names = [n.name for n in graph.nodes]
    assert names[0] == 'stem' and names[-2:] == ['mean', 'fc']
    assert ('stem.pool' in names) == hasattr(model.body.stem, 'pool')
    error, _ = logits_differ(model.eval(), 32)
    assert error < 1e-6


ACTS = nn.ReLU(), nn.LeakyReLU(.3), nn.PReLU(7, init=.4), nn.PReLU(init=-.4), None

@pytest.mark.parametrize('act', ACTS, ids=str)
def test_a_head_of_two_layers(act):
    "act(fc(x)) on one pixel, whatever offset x waits with"
    torch.manual_seed(0)
    parts = dict(flat=nn.Flatten(), fc1=nn.Linear(4, 7), act=act, fc2=nn.Linear(7, 3))
    head = nn.Sequential()
    for k, m in parts.items():
        if m is not None: head.add_module(k, m)
    offset, folder = torch.randn(4).double(), folding.Folder()
    out = folding.fold_head(folder, head, folding.Folded(0, offset.numpy()))
    assert (out.offset == 0).all() and [n.name for n in folder.nodes] == ['fc1', 'fc2']
    assert [n.op for n in folder.nodes] == ['conv']*2 and out.step == 2
    x = torch.randn(3, 4).double()
    with torch.no_grad():
        got = FoldedNet(Graph(4, folder.nodes)).double()(x[..., None, None])
        want = head.double()(x + offset)
    assert (got - want).abs().max() < 1e-6


@pytest.fixture(scope='module')
def mini(): return net()

def test_networks_that_have_no_graph(mini):
    with pytest.raises(ExportError, match='^Linear is no BinaryNet'): fold(nn.Linear(3, 3))
    with pytest.raises(ExportError, match="^binary='act'.*fit_two_step"): fold(net(binary='act'))
    for value in (torch.nan, torch.inf, -torch.inf):
        broken = copy.deepcopy(mini)
        broken.head.fc.bias.data[2] = value
        with pytest.raises(ExportError, match='^head.fc.bias is not finite'): fold(broken)
    model = net(rules='reference')
    first = next(name for name, m in model.named_modules() if getattr(m, 'zero', 1) == 0)
    with pytest.raises(ExportError, match=rf'^{first} has sign\(0\) = 0 .*zero_is_plus=True'):
        fold(model)
    model = copy.deepcopy(mini)
    model.body.stem.conv.stride = 1, 2
    with pytest.raises(ExportError, match='^stem: groups or unequal sides'): fold(model)
    assert fold(net(rules='reference'), zero_is_plus=True).n_out == 5


MEAN, STD = (.5, .4, .31), (.2, .25, .3)

def test_a_stem_in_whole_numbers():
    "it needs the pictures' mean and deviation, and no others than those it was made for"
    model = net(stem_bits=8)
    with pytest.raises(ExportError, match='^stem_bits=8: the stem does not know'): fold(model)
    set_pixels(model.body.stem.conv, MEAN, STD)
    for info in ({}, dict(mean=MEAN, std=list(STD)), dict(std=np.float32(STD))):
        graph = fold(model, **info)
        assert graph.nodes[0].op == 'iconv'
    for info in (dict(mean=.5), dict(mean=MEAN, std=MEAN)):
        k = list(info)[-1]
        with pytest.raises(ExportError, match=f'^{k}=.*the stem was made for {k}='):
            fold(model, **info)
    bytes_ = torch.randint(0, 256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(1))
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (MEAN, STD))
    x = (bytes_/255 - mean)/std
    with torch.no_grad(): want, got = model(x), FoldedNet(fold(model))(x)
    assert (got - want).abs().max() < 1e-5*want.abs().max()


# The graph as a torch module ---------------------------------------------------------------------

def test_a_step_of_bytes_with_a_slope():
    "y = scale*(w ∗ (u - z)) + bias, and y*slope where y is not positive; padded by the mean"
    g = np.random.default_rng(0)
    def f(n, least=.1): return g.uniform(least, 1, n).astype(np.float32)
    w = g.integers(-127, 128, (4, 3, 3, 3)).astype(np.int8)
    t = dict(weight=w, scale=f(4)/999, bias=f(4, -1), slope=f(4), mean=np.float32(MEAN),
             std=np.float32(STD))
    u = g.integers(0, 256, (2, 3, 5, 5))
    x = (torch.tensor(u)/255 - torch.tensor(MEAN).view(-1, 1, 1))/torch.tensor(STD).view(-1, 1, 1)
    z = np.round(255*np.float64(MEAN)).reshape(-1, 1, 1)
    for stride, padding, dilation in ((1, 0, 1), (2, 1, 1), (1, 2, 2)):
        for keys in (list(t), [k for k in t if k != 'slope']):
            node = Node('iconv', (0,), {k: t[k] for k in keys}, stride=stride, padding=padding,
                        dilation=dilation)
            got = FoldedNet(Graph(3, [node])).values(x)[1]
            sums = nn.functional.conv2d(torch.tensor(u - z), torch.tensor(w).double(), None, stride,
                                        padding, dilation)
            y = sums.numpy()*t['scale'].reshape(-1, 1, 1) + t['bias'].reshape(-1, 1, 1)
            if 'slope' in keys: y = np.where(y > 0, y, y*t['slope'].reshape(-1, 1, 1))
            assert got.dtype == torch.float32 and np.abs(got.numpy() - y).max() < 1e-4


def test_pools_and_convolutions_of_any_geometry():
    "windows and steps of two sizes, dilation: a window's mean times the factor, torch's sums"
    x = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(0)).double()
    def made(node): return FoldedNet(Graph(3, [node])).double().values(x)[1]
    got = made(Node('avgpool', (0,), kernel=3, stride=2, factor=1.5))
    means = [[x[..., i:i + 3, j:j + 3].mean((2, 3)) for j in (0, 2, 4, 6)] for i in (0, 2, 4, 6)]
    want = torch.stack([torch.stack(row, -1) for row in means], -2)
    assert got.shape == want.shape and (got - 1.5*want).abs().max() < 1e-12
    w = np.random.default_rng(0).choice(np.int8([-1, 1]), (4, 3, 3, 3))
    for sides in ((1, 2, 1), (2, 0, 2), (1, 2, 2)):
        t = dict(weight=w.astype(np.float32), bias=np.zeros(4, np.float32))
        geometry = dict(zip(('stride', 'padding', 'dilation'), sides))
        want = nn.functional.conv2d(x, torch.tensor(w).double(), None, *sides)
        assert (made(Node('conv', (0,), t, **geometry)) - want).abs().max() < 1e-9
        signs = dict(t, weight=w, threshold=np.zeros(3, np.float32))
        want = nn.functional.conv2d(x.sign(), torch.tensor(w).double(), None, *sides)
        assert (made(Node('bconv', (0,), signs, **geometry)) == want).all()


def test_sums_are_whole_unless_asked_otherwise():
    "the scale stands behind the convolution by default, so that no order of summation rounds"
    t = dict(weight=np.ones((1, 3, 1, 1), np.int8), bias=np.float32([.1]), scale=np.float32([.3]),
             threshold=np.zeros(3, np.float32))
    net = FoldedNet(Graph(3, [Node('bconv', (0,), t)]))
    assert net.exact and net.n0_weight.unique().tolist() == [1]
    assert FoldedNet(Graph(3, [Node('bconv', (0,), t)]), False).n0_weight.unique().tolist() != [1]
    assert net(torch.ones(1, 3, 1, 1)).item() == np.float32(3)*np.float32(.3) + np.float32(.1)


def test_a_sign_is_plus_from_the_threshold_on():
    "at equality too"
    t = dict(weight=np.ones((1, 1, 1, 1), np.int8), bias=np.zeros(1, np.float32),
             threshold=np.float32([.5]))
    x = torch.tensor([.25, .5, .75]).view(3, 1, 1, 1)
    assert FoldedNet(Graph(1, [Node('bconv', (0,), t)]))(x).view(-1).tolist() == [-1, 1, 1]
