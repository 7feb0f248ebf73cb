"AGC against its formula: kinds of units, infinite gradients, limits, arguments and the callback."
import math
from types import SimpleNamespace
import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models import resnet18
from bnn_bn.agc import AdaptiveGradClip, adaptive_clip_grad, clipped_parameters, unitwise_norm
from bnn_bn.models import reactnet_nobn

SHAPES = (), (5,), (1, 4), (3, 1), (3, 4), (2, 3, 2), (4, 2, 3, 3), (3, 1, 1, 1)

def parameters(shapes=SHAPES, dtype=torch.float64, scale=10., seed=0):
    g = torch.Generator().manual_seed(seed)
    def random(shape): return torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)
    ps = [nn.Parameter(random(shape)) for shape in shapes]
    for p in ps: p.grad = random(p.shape)*scale
    return ps

def norms(x, order):
    "of each unit, one after the other, by numpy"
    x = x.detach().double().numpy()
    rows = x.reshape(1, -1) if x.ndim < 2 else x.reshape(len(x), -1)
    return np.linalg.norm(rows, order, axis=1)

def clipped(p, factor, eps, order):
    "equation 3 of 2102.06171, a unit at a time"
    w, g = norms(p, order), norms(p.grad, order)
    limit = factor*np.maximum(w, eps)
    scale = np.where(g > limit, limit/np.maximum(g, 1e-300), 1.)
    shape = (-1,) + (1,)*(p.dim() - 1) if p.dim() > 1 else ()
    return p.grad.numpy()*scale.reshape(shape)

@pytest.mark.parametrize('order', [1., 2., 3., math.inf])
@pytest.mark.parametrize('scale', [1e-3, .02, 10.])
def test_the_formula(scale, order):
    ps = parameters(scale=scale)
    want = [clipped(p, .02, 1e-3, order) for p in ps]
    adaptive_clip_grad(ps, .02, 1e-3, order)
    for p, w in zip(ps, want): np.testing.assert_allclose(p.grad.numpy(), w, rtol=1e-12)

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    "norms are taken in float32: squares of 300 overflow in float16, and sums of 2**-9 are lost"
    ps = parameters([*SHAPES, (3, 4000)], dtype, scale=300.)
    want = [clipped(nn_copy(p), .5, 1e-3, 2.) for p in ps]
    adaptive_clip_grad(ps, .5)
    for p, w in zip(ps, want):
        np.testing.assert_allclose(p.grad.double().numpy(), w, rtol=2**-7, atol=1e-7)

def nn_copy(p):
    "in float64"
    q = nn.Parameter(p.detach().double())
    q.grad = p.grad.double()
    return q

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_an_infinite_gradient_in_half_precision(dtype):
    p = nn.Parameter(torch.ones(2, 50, dtype=dtype))
    p.grad = torch.ones(2, 50, dtype=dtype)
    p.grad[0] = -math.inf
    adaptive_clip_grad(p)
    np.testing.assert_allclose(p.grad.double(), [[-.01]*50, [.01]*50], rtol=2**-7)

def test_each_unit_has_its_own_peak():
    "a unit with infinities beside one whose squares overflow"
    p = nn.Parameter(torch.ones(3, 4))
    p.grad = torch.tensor([[math.inf, 1., 0., 0.], [0., 0., 3e38, 3e38], [1e25, 0., 0., 0.]])
    adaptive_clip_grad(p)
    want = torch.tensor([[1., 0., 0., 0.], [0., 0., .5**.5, .5**.5], [1., 0., 0., 0.]])*.02
    torch.testing.assert_close(p.grad, want)

def test_the_defaults():
    a, b, c = (parameters() for _ in range(3))
    adaptive_clip_grad(a)
    adaptive_clip_grad(b, clip_factor=.01, eps=1e-3, norm_type=2.)
    hook = AdaptiveGradClip(exclude=[])
    hook.clipped = c
    hook.before_step()
    for x, y, z in zip(a, b, c): assert torch.equal(x.grad, y.grad) and torch.equal(x.grad, z.grad)

@pytest.mark.parametrize('shape', SHAPES)
def test_the_norm_of_a_unit(shape):
    x = torch.randn(shape).half()
    n = unitwise_norm(x)
    assert n.dtype == torch.float32 and n.dim() == (0 if len(shape) < 2 else len(shape))
    np.testing.assert_allclose(n.reshape(-1), norms(x, 2), rtol=1e-6)
    np.testing.assert_allclose(unitwise_norm(x, 1.).reshape(-1), norms(x, 1), rtol=1e-6)

def test_zeros_move_and_small_gradients_are_left():
    zero, small = nn.Parameter(torch.zeros(2, 3)), nn.Parameter(torch.ones(2, 3))
    zero.grad, small.grad = torch.ones(2, 3), torch.full((2, 3), 1e-4)
    adaptive_clip_grad([zero, small], .1, 1e-2)
    np.testing.assert_allclose(norms(zero.grad, 2), 1e-3, rtol=1e-6)
    assert torch.equal(small.grad, torch.full((2, 3), 1e-4))
    small.grad.zero_()
    adaptive_clip_grad(small)
    assert (small.grad == 0).all()

@pytest.mark.parametrize('value', [math.inf, -math.inf])
@pytest.mark.parametrize('shape', SHAPES)
def test_an_infinite_gradient_becomes_the_limit(shape, value):
    "along its infinite numbers, of the norm that clipping allows; other units as ever"
    (p,) = parameters([shape])
    rows = p.grad.reshape(1, -1) if p.dim() < 2 else p.grad.reshape(len(p), -1)
    rows[0, 0] = value
    first = (p if p.dim() < 2 else p[0]).detach().norm()
    adaptive_clip_grad(p)
    row = p.grad.reshape(-1) if p.dim() < 2 else p.grad[0].reshape(-1)
    assert torch.isclose(row[0], math.copysign(1., value)*.01*first) and (row[1:] == 0).all()
    if p.dim() > 1 and len(p) > 1:
        np.testing.assert_allclose(norms(p.grad, 2)[1:], .01*norms(p, 2)[1:], rtol=1e-6)

def test_a_norm_that_overflows_becomes_the_limit():
    "finite numbers whose squares are not: the direction is kept"
    p = nn.Parameter(torch.ones(2, 4))
    p.grad = torch.tensor([[3e38, 3e38, -3e38, 0.], [1., 0., 0., 0.]])
    adaptive_clip_grad(p)
    want = torch.tensor([1., 1., -1., 0.])/math.sqrt(3)*.02
    torch.testing.assert_close(p.grad[0], want)
    torch.testing.assert_close(p.grad[1], torch.tensor([.02, 0., 0., 0.]))

def test_nan_stays_and_its_neighbours_are_clipped():
    p = nn.Parameter(torch.ones(3, 4))
    p.grad = torch.ones(3, 4)
    p.grad[0, 1], p.grad[1, 2], p.grad[1, 3] = math.nan, math.nan, math.inf
    adaptive_clip_grad(p)
    assert p.grad[0].isnan().sum() == 1 and p.grad[1].isnan().any()
    np.testing.assert_allclose(norms(p.grad[2:], 2), .02, rtol=1e-6)

def test_dtypes_large_tensors_and_missing_gradients():
    "each of them as alone"
    single, double, half = torch.float32, torch.float64, torch.float16
    kinds = (single, (300, 300)), (single, (3, 4)), (double, (3, 4)), (half, (2, 2))
    ps = [parameters([shape], dtype)[0] for dtype, shape in kinds]
    alone = [nn.Parameter(p.detach().clone()) for p in ps]
    for a, p in zip(alone, ps): a.grad = p.grad.clone()
    for a in alone: adaptive_clip_grad(a)
    none, empty = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(0, 3))
    empty.grad = torch.ones(0, 3)
    adaptive_clip_grad(iter([none, *ps, empty]))
    assert none.grad is None
    for a, p in zip(alone, ps): torch.testing.assert_close(a.grad, p.grad)

@pytest.mark.parametrize('name', ['clip_factor', 'eps', 'norm_type'])
@pytest.mark.parametrize('value', [0, -1, math.nan])
def test_arguments(name, value):
    (p,) = parameters([(3, 4)])
    before = p.grad.clone()
    says = f'^{name}={value}: a (finite )?number above 0 is needed'
    with pytest.raises(ValueError, match=says): adaptive_clip_grad(p, **{name: value})
    assert torch.equal(p.grad, before)
    if name == 'clip_factor':
        with pytest.raises(ValueError, match=says): AdaptiveGradClip(value)

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(2, 3), nn.Linear(3, 4)

def ids(ps): return {id(p) for p in ps}

def test_the_classifier_is_left_out():
    head = nn.Sequential(nn.ReLU(), nn.Linear(3, 2), nn.PReLU())
    net = nn.Sequential(nn.Linear(3, 3), nn.PReLU(), head)
    body = ids([*net[0].parameters(), *net[1].parameters()])
    assert ids(clipped_parameters(net)) == ids(clipped_parameters(nn.DataParallel(net))) == body
    behind = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Linear(2, 2), nn.PReLU()) # it is not the last
    others = ids([*behind[0].parameters(), *behind[2].parameters()])
    assert ids(clipped_parameters(behind)) == others
    own = Net()
    assert ids(clipped_parameters(own)) == ids(own.first.parameters())
    assert ids(clipped_parameters(own, own.first)) == ids(own.last.parameters())
    assert ids(clipped_parameters(own, [own.first, own.last])) == set()
    assert ids(clipped_parameters(own, [])) == ids(own.parameters())
    says = r'^Conv2d has no nn.Linear to leave out .* exclude=\[\] to clip all$'
    with pytest.raises(ValueError, match=says):
        clipped_parameters(nn.Conv2d(1, 2, 1))

class Normalise(nn.Module):
    def forward(self, x): return x - .5

def in_front():
    "what stands before a network that is wrapped, without weights of a layer"
    return Normalise(), nn.BatchNorm2d(3), nn.Sequential(nn.Upsample(32), Normalise())

@pytest.mark.parametrize('make', [
    resnet18, lambda: reactnet_nobn('18', width=.125), lambda: nn.Sequential(resnet18()),
    lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)))])
def test_what_stands_in_front_of_a_network_changes_nothing(make):
    "the classifier is that of the network, not the network"
    for front in in_front():
        net = make()
        own = ids(clipped_parameters(net))
        for wrapped in nn.Sequential(front, net), nn.Sequential(front, nn.DataParallel(net)):
            assert ids(clipped_parameters(wrapped)) - ids(front.parameters()) == own and own

@pytest.mark.parametrize('net', [nn.Linear(3, 2), nn.Sequential(nn.Flatten(), nn.Linear(3, 2))])
def test_a_classifier_alone_says_that_nothing_is_clipped(net):
    with pytest.raises(ValueError, match=r'classifier alone.* exclude=\[\]$'): clipped_parameters(net)
    assert len(clipped_parameters(net, [])) == 2

def test_the_callback():
    net = Net()
    for p in net.parameters(): p.grad = torch.ones_like(p)
    hook = AdaptiveGradClip(.05, eps=5., norm_type=1., exclude=net.first)
    hook.learn = SimpleNamespace(model=net)
    hook.before_fit()
    hook.before_step()
    assert (net.first.weight.grad == 1).all()
    twin = nn.Parameter(net.last.weight.detach())
    twin.grad = torch.ones_like(twin)
    adaptive_clip_grad(twin, .05, 5., 1.)
    assert torch.equal(twin.grad, net.last.weight.grad) and hook.order == 11
