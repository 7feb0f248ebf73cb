"What `remove_bn` promises of whole networks: each family of torchvision, and the sweep's file."
import copy, io, json
from pathlib import Path
import pandas as pd, pytest, torch, torch.nn.functional as F
from torch import nn
from bnn_bn.convert import NFConv2d, drop_bn, ledger, remove_bn
from bnn_bn.models import assert_bn_free
from bnn_bn.signal.ledger import signal_stats
from bnn_bn.signal.start import calibrate, is_fresh

tv = pytest.importorskip('torchvision').models
SWEEP = json.loads((Path(__file__).parent.parent/'results/convert.json').read_text())['networks']
FAMILIES = ('densenet121', 'efficientnet_b0', 'googlenet', 'mnasnet0_5', 'mobilenet_v2',
            'mobilenet_v3_small',
            'regnet_x_400mf', 'resnet34', 'resnext50_32x4d', 'shufflenet_v2_x0_5')

def build(name):
    torch.manual_seed(0)
    kwargs = dict(init_weights=False) if name in ('googlenet', 'inception_v3') else {}
    return tv.get_model(name, weights=None, num_classes=10, **kwargs)

def test_sweep_has_all():
    "each classifier of this torchvision stands there; all with batch norm but MaxViT are flat"
    assert set(tv.list_models(module=tv)) <= set(SWEEP)
    for name, r in SWEEP.items():
        if not r['batch_norm']: assert 'no batch norm' in r['refused']
        elif name == 'maxvit_t': assert 'LayerNorm' in r['refused']
        else:
            for kind in ('real', 'act', 'both'):
                assert r[kind]['finite'], name
                assert .5 <= r[kind]['noise'][0] <= r[kind]['noise'][1] <= 2, name

def check_gradients(net, x):
    "all gradients of a training pass are there, finite, and not zero"
    out = net.train()(x)
    sum(o.square().mean() for o in (out if isinstance(out, tuple) else [out])).backward()
    for n, p in net.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all(), n
        assert p.grad.abs().max() > 0 or n.endswith(('bias', 'gain', 'shift')), n

@pytest.mark.parametrize('name', FAMILIES)
def test_family(name):
    "flat at the start; what was given is as before; all convolutions but gates are standardised"
    net = build(name)
    before, state, shape = copy.deepcopy(net.state_dict()), torch.get_rng_state(), (8, 3, 64, 64)
    new = remove_bn(net, example=shape)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), net.state_dict().values()))
    assert type(new) is type(net)
    assert_bn_free(new)
    convs = {n: m for n, m in new.named_modules() if isinstance(m, nn.Conv2d)}
    left = [n for n, m in convs.items() if not isinstance(m, NFConv2d)]
    assert all('fc' in n for n in left), left # fc1 and fc2 of SqueezeExcitation
    assert signal_stats(new, torch.randn(shape))['var'].between(.5, 2).all()
    check_gradients(new, torch.randn(2, 3, 64, 64))

def test_inception_with_auxiliary_classifier():
    "kernels of 1x7 and 7x1, and a branch that only training has"
    new = remove_bn(build('inception_v3'), example=(2, 3, 299, 299))
    assert_bn_free(new)
    sizes = {m.kernel_size for m in new.modules() if isinstance(m, NFConv2d)}
    assert {(1, 7), (7, 1), (1, 3), (3, 1)} < sizes
    out = new.train()(torch.randn(2, 3, 299, 299))
    assert out.logits.shape == out.aux_logits.shape == (2, 10) and out.logits.isfinite().all()
    assert new.eval()(torch.randn(2, 3, 299, 299)).shape == (2, 10)

def thin():
    "one block for each stage of a ResNet"
    torch.manual_seed(0)
    return tv.resnet.ResNet(tv.resnet.BasicBlock, [1, 1, 1, 1], num_classes=10)

@pytest.mark.parametrize('binary', [None, 'act', 'both'])
def test_saved_and_copied(binary):
    "a saved state dict, a copy and a pickle give the same outputs; double precision nearly"
    make = lambda **kw: remove_bn(thin(), binary=binary, **kw).eval()
    x, shape = torch.randn(2, 3, 64, 64), (4, 3, 64, 64)
    new, file = make(example=shape), io.BytesIO()
    torch.save(new, file)
    file.seek(0)
    again = make(calibrate=False)
    again.load_state_dict(new.state_dict())
    loaded = torch.load(file, weights_only=False)
    for other in (make(example=shape), copy.deepcopy(new), loaded, again):
        assert torch.equal(new(x), other(x))
    double = remove_bn(thin().double(), binary=binary, example=shape).eval()
    assert double(x.double()).dtype == torch.float64
    if binary is not None: return
    torch.testing.assert_close(double(x.double()).float(), new(x), rtol=1e-3, atol=1e-3)

@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_on_a_gpu():
    "converted where the network is, within what another order of summation changes"
    new = remove_bn(build('resnet18').cuda(), example=(4, 3, 64, 64))
    assert all(t.is_cuda for t in new.state_dict().values())
    assert signal_stats(new, torch.randn(4, 3, 64, 64))['var'].between(.5, 2).all()

# one calibration: each channel, and the same function afterwards

class Block(nn.Module):
    "x + conv(bn(relu(...))): a lone norm, one behind a convolution, a branch that ends without"
    def __init__(self, c):
        super().__init__()
        self.bn1, self.bn2, self.act = nn.BatchNorm2d(c), nn.BatchNorm2d(c), nn.ReLU()
        self.conv1, self.conv2 = nn.Conv2d(c, c, 3, 1, 1), nn.Conv2d(c, c, 3, 1, 1, bias=False)
    def forward(self, x):
        y = self.conv1(self.act(self.bn1(x)))
        return x + self.conv2(self.act(self.bn2(y)))

def mixed():
    torch.manual_seed(0)
    stem = nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU()
    return nn.Sequential(*stem, Block(16), Block(16), nn.BatchNorm2d(16), nn.ReLU())

def pictures(n=32):
    "smooth pictures with colours of their own, nothing like white noise"
    g = torch.Generator().manual_seed(1)
    small = torch.randn(n, 3, 4, 4, generator=g) + torch.tensor([2., -1., 0.]).view(1, 3, 1, 1)
    return F.interpolate(small, size=(32, 32), mode='bilinear')

def worst_channel(net, x):
    "how far means are from 0, where something shifts them, and deviations from the wanted ones"
    far = []
    def note(m, args, y):
        y = y.double()/m.target_std
        far.append((y.std((0, 2, 3), correction=0) - 1).abs().max())
        if m.centre: far.append(y.mean((0, 2, 3)).abs().max())
    hooks = [m.register_forward_hook(note) for m in net.modules() if hasattr(m, 'target_std')]
    with torch.no_grad(): net.eval()(x)
    for h in hooks: h.remove()
    return max(far).item()

@pytest.mark.parametrize('binary', [None, 'act', 'both'])
def test_each_channel(binary):
    "mean 0 and the wanted deviation for each channel, which the plan alone does not give"
    x = pictures()
    assert worst_channel(remove_bn(mixed(), binary=binary, example=x), x) < 1e-4
    assert worst_channel(remove_bn(mixed(), binary=binary, calibrate=False), x) > .1

@pytest.mark.parametrize('binary', [None, 'act', 'both'])
def test_calibrate_on_its_own(binary):
    "the same function sets a converted network later; once, or again; twice changes no bit"
    x, net = pictures(), remove_bn(mixed(), binary=binary)
    assert is_fresh(net)
    assert is_fresh(copy.deepcopy(net))
    calibrate(net, x)
    assert worst_channel(net, x) < 1e-4 and not is_fresh(net)
    with pytest.raises(ValueError, match='again=True'): calibrate(net, x)
    before = copy.deepcopy(net.state_dict())
    calibrate(net, x, again=True)
    assert all(torch.equal(p, before[n]) for n, p in net.state_dict().items())
    assert not is_fresh(remove_bn(mixed(), binary=binary, example=x))

def test_bias_false():
    "without biases nothing centres; the deviations are right all the same"
    net, x = remove_bn(mixed(), example=pictures(), bias=False), pictures()
    assert worst_channel(net, x) < 1e-4
    assert net[3].conv2.bias is None

# what is not torch's own class: converted with all that it does, or refused by its name

class BNModule(nn.BatchNorm2d):
    "the activation is a child, as in timm's BatchNormAct2d"
    def __init__(self, c):
        super().__init__(c)
        self.drop, self.act = nn.Identity(), nn.SiLU()
    def forward(self, x): return self.act(self.drop(super().forward(x)))

class BNCall(nn.BatchNorm2d):
    "as timm writes it: batch_norm called as a function, then an activation"
    def __init__(self, c):
        super().__init__(c)
        self.act = nn.ReLU(inplace=True)
    def forward(self, x):
        stats = self.running_mean, self.running_var, self.weight, self.bias
        return self.act(F.batch_norm(x, *stats, self.training, self.momentum, self.eps))

class BNFunction(nn.BatchNorm2d):
    def forward(self, x): return F.leaky_relu(super().forward(x), .2)

class BNScaled(nn.BatchNorm2d):
    "a parameter of its own behind the norm"
    def __init__(self, c):
        super().__init__(c)
        self.own = nn.Parameter(torch.full((c, 1, 1), 2.))
    def forward(self, x): return super().forward(x)*self.own

class BNRenamed(nn.BatchNorm2d):
    "nothing of its own but a construction"
    def __init__(self, c): super().__init__(c, eps=1e-3, momentum=.01)

def pair(norm, conv=nn.Conv2d):
    torch.manual_seed(0)
    return nn.Sequential(conv(3, 8, 3, padding=1), norm(8), conv(8, 8, 3, padding=1), norm(8))

def written_out(behind):
    "the same network with torch's batch norm and what stands behind it"
    torch.manual_seed(0)
    convs = [nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)]
    return nn.Sequential(*[m for c in convs for m in (c, nn.BatchNorm2d(8), behind())])

BEHIND = [(BNModule, nn.SiLU), (BNCall, nn.ReLU), (BNFunction, lambda: nn.LeakyReLU(.2)),
          (BNRenamed, nn.Identity)]

@pytest.mark.parametrize('norm, behind', BEHIND, ids=lambda c: c.__name__)
def test_norm_with_something_behind(norm, behind):
    "as if it were written out: what stands behind the norm is there, and known to the plan"
    x, new = pictures(), remove_bn(pair(norm), example=pictures())
    assert_bn_free(new)
    want = remove_bn(written_out(behind), example=x)(x)
    torch.testing.assert_close(new(x), want, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(copy.deepcopy(new)(x), new(x))

def test_parameter_behind_a_norm():
    new = remove_bn(pair(BNScaled), example=pictures(), calibrate=False)
    assert_bn_free(new)
    assert [n for n, _ in new.named_parameters() if 'own' in n] == ['1.own', '3.own']

class BNBefore(nn.BatchNorm2d):
    def forward(self, x): return super().forward(x.relu())

class BNInTraining(nn.BatchNorm2d):
    def forward(self, x):
        y = super().forward(x)
        return y.relu() if self.training else y

class BNOwn(nn.BatchNorm2d):
    def forward(self, x):
        wide = lambda t: t.view(1, -1, 1, 1)
        return (x - wide(self.running_mean))*wide(self.weight)

class BNCalls(nn.Module):
    "no subclass of torch's: a batch norm called as a function, in a module without children"
    def __init__(self, c):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(c))
    def forward(self, x): return F.batch_norm(x, None, None, self.weight, training=True)

class Statistics(BNCalls):
    "keeps running statistics, whatever its name"
    def __init__(self, c):
        super().__init__(c)
        self.register_buffer('running_mean', torch.zeros(c))

UNKNOWN = BNBefore, BNInTraining, BNOwn, BNCalls, Statistics

@pytest.mark.parametrize('norm', UNKNOWN, ids=lambda c: c.__name__)
@pytest.mark.parametrize('beside', [True, False])
def test_unknown_norm_is_named(norm, beside):
    "alone and beside torch's own"
    net = pair(norm)
    if beside: net.append(nn.BatchNorm2d(8))
    if norm is BNCalls and not beside: net.append(nn.BatchNorm2d(8)) # one is needed to look so far
    with pytest.raises(ValueError, match=norm.__name__): remove_bn(net)

class SamePad(nn.Conv2d):
    "timm's Conv2dSame in small: a padding that depends on the picture"
    def forward(self, x):
        side = lambda n, s, k: max((-(-n//s) - 1)*s + k - n, 0)
        extra = [side(*nsk) for nsk in zip(x.shape[-2:], self.stride, self.kernel_size)]
        x = F.pad(x, (extra[1]//2, extra[1] - extra[1]//2, extra[0]//2, extra[0] - extra[0]//2))
        return F.conv2d(x, self.weight, self.bias, self.stride)

class PadChild(nn.Conv2d):
    "the padding is a child module"
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.pad = nn.ReflectionPad2d(1)
    def forward(self, x): return super().forward(self.pad(x))

class Scaled(nn.Conv2d):
    "the inner function is its own"
    def _conv_forward(self, x, w, b): return 3*super()._conv_forward(x, w, b)

@pytest.mark.parametrize('conv', [SamePad, PadChild, Scaled], ids=lambda c: c.__name__)
def test_unknown_convolution_is_named(conv):
    with pytest.raises(ValueError, match=conv.__name__): remove_bn(pair(nn.BatchNorm2d, conv))

@pytest.mark.parametrize('at', range(4))
def test_hooks_are_refused(at):
    net = pair(nn.BatchNorm2d)
    net[at].register_forward_hook(lambda m, args, out: 2*out)
    with pytest.raises(ValueError, match=f'{at} has a hook'): remove_bn(net)

def test_instance_with_its_own_forward():
    for at in 0, 1:
        net = pair(nn.BatchNorm2d)
        net[at].forward = lambda x, m=net[at]: 2*type(m).forward(m, x)
        with pytest.raises(ValueError, match=f'^{at} is a'): remove_bn(net)

@pytest.mark.parametrize('name', ['regnetx_002', 'mobilenetv3_small_050', 'efficientnet_lite0'])
def test_timm(name):
    "timm's networks have norm and activation in one class"
    timm = pytest.importorskip('timm')
    torch.manual_seed(0)
    net = timm.create_model(name, num_classes=10)
    assert sum(type(m).__name__ == 'BatchNormAct2d' for m in net.modules()) > 10
    acts = lambda net: sum(isinstance(m, (nn.ReLU, nn.ReLU6, nn.Hardswish)) for m in net.modules())
    new = remove_bn(net, example=(8, 3, 64, 64))
    assert_bn_free(new)
    assert acts(new) == acts(net)
    assert signal_stats(new, torch.randn(8, 3, 64, 64))['var'].between(.5, 2).all()
    check_gradients(new, torch.randn(2, 3, 64, 64))

def test_timm_same_padding():
    timm = pytest.importorskip('timm')
    net = timm.create_model('tf_mobilenetv3_small_minimal_100', num_classes=10)
    with pytest.raises(ValueError, match='Conv2dSame'): remove_bn(net)

def test_dead_convolution(monkeypatch):
    "a convolution without any signal on the batch is named"
    dead = dict(module='3.conv1', set='gains', channels=2, dead=[0, 1])
    alive = dict(module='0', set='gains', channels=2, dead=[1])
    table = pd.DataFrame([alive, dead]).set_index('module')
    monkeypatch.setattr('bnn_bn.signal.start.calibrate', lambda *args, **kwargs: table)
    with pytest.raises(ValueError, match='3.conv1: its output has the deviation 0'): remove_bn(mixed())

def test_pools_on_pictures():
    "neighbours in pictures are alike: what a maximum takes away is measured"
    stem = nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
    net = remove_bn(nn.Sequential(*stem, Block(16)), example=pictures())
    with torch.no_grad(): behind = net[:4].eval()(pictures())
    assert .99 < behind.var((0, 2, 3)).mean() < 1.01
    assert worst_channel(net, pictures()) < 1e-4

# where alpha goes, and what stands in a network under two names

class Adds(nn.Module):
    "a stem, x + f(x), and a head; what the sum adds is kept"
    def __init__(self, f):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.conv, self.conv2 = nn.Conv2d(16, 16, 3, 1, 1), nn.Conv2d(16, 16, 3, 1, 1)
        self.norm, self.pool, self.f = nn.BatchNorm2d(16), nn.MaxPool2d(3, 1, 1), f
        self.b = nn.Parameter(torch.full((1, 16, 1, 1), 2.))
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))
    def forward(self, x):
        x = self.stem(x)
        y, self.branch = self.f(self, x)
        return self.head(y)

def plain(m, x, f, add=torch.add):
    branch = f(x)
    return add(x, branch), branch

BRANCHES = dict(
    the_norm_alone=lambda m, x: plain(m, x, m.norm),
    behind_a_convolution=lambda m, x: plain(m, x, lambda x: m.norm(m.conv(x))),
    behind_a_relu=lambda m, x: plain(m, x, lambda x: m.norm(m.conv(x).relu())),
    behind_a_function=lambda m, x: plain(m, x, lambda x: m.norm(F.relu(m.conv(x)))),
    behind_a_concatenation=lambda m, x: plain(m, x, lambda x: m.norm(
        torch.cat([m.conv(x)[:, :8], m.conv2(x)[:, :8]], 1))),
    behind_a_sum=lambda m, x: plain(m, x, lambda x: m.norm(m.conv(x) + m.conv2(x))),
    of_what_the_shortcut_reads=lambda m, x: plain(m, m.conv(x), m.norm),
    in_front_of_a_pool=lambda m, x: plain(m, x, lambda x: m.pool(m.norm(m.conv(x)))),
    in_front_of_a_pool_function=lambda m, x: plain(
        m, x, lambda x: F.max_pool2d(m.norm(m.conv(x)), 3, 1, 1)),
    shifted=lambda m, x: plain(m, x, lambda x: m.norm(m.conv(x)) - 3 + m.b),
    summed_by_python=lambda m, x: plain(m, x, lambda x: m.norm(m.conv(x)), lambda x, h: sum([h, x])),
    multiplied=lambda m, x: plain(m, x, lambda x: .5*m.norm(m.conv(x))*4),
    subtracted=lambda m, x: plain(m, x, lambda x: m.norm(m.conv(x)), torch.sub),
    by_names=lambda m, x: plain(m, x, lambda x: m.norm(m.conv(x)),
                                lambda x, y: torch.add(input=x, other=y)))

@pytest.mark.parametrize('binary', [None, 'both'])
@pytest.mark.parametrize('name', BRANCHES)
def test_what_a_sum_adds_has_the_weight_alpha(name, binary):
    "wherever the norm stands in the branch; the shortcut keeps its own size"
    x = pictures()
    new = remove_bn(Adds(BRANCHES[name]), alpha=.2, example=x, binary=binary).eval()
    with torch.no_grad(): new(x)
    assert new.branch.double().std((0, 2, 3), correction=0).mean().item() == pytest.approx(.2, rel=.01)
    with torch.no_grad(): shortcut = new.stem(x).std((0, 2, 3), correction=0)
    assert .9 < shortcut.mean() < 1.1
    assert worst_channel(new, x) < 1e-3
    assert_bn_free(new)

def twice(m, x): return m.norm(m.conv2(m.norm(m.conv(x)))), x
def shared_end(m, x):
    y = m.norm(m.conv(x))
    return y + y.tanh(), x
def factor(m, x): return torch.add(x, m.norm(m.conv(x)), alpha=2), x
def reads_weight(m, x): return m.norm(m.conv(x))*m.norm.weight.view(1, -1, 1, 1), x
def nothing(m, x): return x + 0*m.norm(m.conv(x)), x

@pytest.mark.parametrize('f,word', [
    (twice, 'norm is called 2 times'), (shared_end, 'ends in tanh, with no convolution'),
    (factor, 'add with alpha=2'), (reads_weight, 'norm: the program reads its weight itself'),
    (nothing, 'multiplied by 0')])
def test_what_cannot_be_scaled_is_refused_by_its_name(f, word):
    with pytest.raises(ValueError, match=word): remove_bn(Adds(f), example=pictures())

@pytest.mark.parametrize('shift', [lambda h, b: h + b, lambda h, b: b.view(1, -1, 1, 1) + h, lambda h, b: h + 2.,
                                   lambda h, b: torch.sub(input=h, other=-b), lambda h, b: h - (-b).abs().neg()])
def test_a_sum_with_a_parameter_is_no_residual_sum(shift):
    "a shift takes no alpha, and what stands behind it is known"
    def f(m, x): return shift(m.norm(m.conv(x)), m.b).relu(), x
    net = remove_bn(Adds(f), example=pictures())
    assert ledger(net).alpha.isna().all()
    with torch.no_grad(): y, _ = f(net, net.stem(pictures()))
    assert y.std((0, 2, 3)).mean().item() == pytest.approx(1, rel=.1)

def test_a_stage_is_counted_through_shifts():
    "sum([x, h]) is 0 + x + h: its alpha is that of x + h"
    class Stage(nn.Module):
        def __init__(self, add):
            super().__init__()
            self.add, self.stem = add, nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), nn.BatchNorm2d(8))
            self.blocks = nn.ModuleList(nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1), nn.BatchNorm2d(8)) for _ in range(30))
        def forward(self, x):
            x = self.stem(x)
            for b in self.blocks: x = self.add(x, b(x))
            return x
    plans = [ledger(remove_bn(Stage(add), example=(2, 3, 8, 8), calibrate=False)).alpha.dropna()
             for add in (torch.add, lambda x, h: sum([x, h]), lambda x, h: sum([h, x]))]
    assert len(plans[0]) == 30 and plans[0].max() < .17
    assert all((p == plans[0]).all() for p in plans)

def doubled(m, x): return m.norm(m.conv(torch.cat([x[:, :8], x[:, :8]], 1))), x
def doubled_shortcut(m, x):
    x = torch.cat([x[:, :8]]*2, 1)
    return x + m.norm(m.conv(x)), x
def ends_in_a_sigmoid(m, x): return m.norm(m.conv2(x + torch.sigmoid(m.conv(x)))), x

@pytest.mark.parametrize('f', [doubled, doubled_shortcut, ends_in_a_sigmoid])
def test_graphs_that_once_broke_the_plan(f):
    net = remove_bn(Adds(f), example=pictures())
    assert_bn_free(net)
    assert worst_channel(net, pictures()) < 1e-3
    assert (ledger(net).alpha == .2).sum() == (f is not doubled)

def test_the_first_operation_without_a_rule_is_named():
    "not the one behind it that knows what it does"
    def f(m, x):
        y = F.interpolate(F.max_pool2d(x, 2), size=x.shape[2:])
        return m.norm(m.conv(torch.cat([x[:, :8], y.relu()[:, :8]], 1))), x
    with pytest.raises(ValueError, match='conv: no rule for the variance of interpolate'):
        remove_bn(Adds(f), example=pictures())

def test_a_shared_weight_is_refused():
    net = Adds(lambda m, x: (m.norm(m.conv2(m.conv(x))), x))
    net.conv2.weight = net.conv.weight
    with pytest.raises(ValueError, match='conv2 shares a weight with conv'): remove_bn(net)

@pytest.mark.parametrize('door', [remove_bn, drop_bn])
@pytest.mark.parametrize('through_the_list', [True, False])
def test_layers_with_two_names(door, through_the_list):
    "an attribute that also stands in a list: what runs is what was put there"
    def f(m, x): return (m.layers(x) if through_the_list else m.norm(m.conv(x))), x
    net = Adds(f)
    net.layers = nn.Sequential(net.conv, net.norm)
    new = door(net)
    assert_bn_free(new)
    assert new.layers[0] is new.conv and new.layers[1] is new.norm
    if door is remove_bn: assert isinstance(new.conv, NFConv2d)
    assert not any(isinstance(m, nn.BatchNorm2d) for _, m in new.named_modules(remove_duplicate=False))
