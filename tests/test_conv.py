"The convolution against torch's own: geometry, transforms, autocast, defaults, and what backward keeps."
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from bnn_bn.layers.activations import RPReLU, RSign
from bnn_bn.layers.binarize import hard_sign
from bnn_bn.layers.conv import QuantConv2d, ScaledStdConv2d, scaled_conv2d
from bnn_bn.layers.conv import standard_sign, standardize
from bnn_bn.layers.pixels import PixelStdConv2d
from bnn_bn.layers.signed import NFConv2d, ScaleShift, SignConv2d
from bnn_bn.models import binary_net

GEOMETRY = dict(stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=2)

def images(*shape, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)

def plain(x, w, scale):
    "in torch's words"
    y = F.conv2d(x, w, None, *GEOMETRY.values())
    return y if scale is None else y*scale.view(1, -1, 1, 1)

@pytest.mark.parametrize('scaled', [False, True])
def test_under_a_transform(scaled):
    "torch.func cannot enter our own backward: value and gradients are those of plain operations"
    x, w, scale = images(2, 4, 7, 8), images(6, 2, 3, 3), images(6, 1, 1, 1).abs()
    scale = scale if scaled else None
    def loss(f, w): return f(x, w, scale).square().sum()
    def ours(x, w, scale): return scaled_conv2d(x, w, scale, **GEOMETRY)
    want, grad = torch.func.grad_and_value(lambda w: loss(plain, w))(w)[::-1]
    got, found = torch.func.grad_and_value(lambda w: loss(ours, w))(w)[::-1]
    torch.testing.assert_close((got, found), (want, grad))

def test_one_image_without_a_batch_dimension():
    for bias in (False, True):
        conv = QuantConv2d(4, 6, 3, bias=bias).double()
        x = images(4, 7, 8)
        assert torch.equal(conv(x), conv(x[None])[0]) and conv(x).dim() == 3

def test_the_defaults():
    conv, scaled = QuantConv2d(4, 6, 3), ScaledStdConv2d(4, 6, 3)
    for m in (conv, scaled):
        assert (m.binary, m.zero, m.signs, m.bias) == (False, 1., False, None)
        assert m.padding == (1, 1) or m.padding == 1
    assert (scaled.gamma, scaled.floor, scaled.eps, scaled.eps_in_root) == (1., .01, 0., False)

@pytest.mark.parametrize('cls', [QuantConv2d, ScaledStdConv2d])
@pytest.mark.parametrize('binary', [False, True])
@pytest.mark.parametrize('factor', [.5, 1., 2.])
def test_a_factor_scales_the_answer(cls, binary, factor):
    conv, x = cls(4, 6, 3, binary=binary).double(), images(2, 4, 7, 8)
    torch.testing.assert_close(conv(x, factor), factor*conv(x))

def test_the_kernel_is_the_standardised_weights():
    "with a floor, below which a filter is not blown up"
    conv = ScaledStdConv2d(4, 6, 3, floor=.5, gamma=1.7).double()
    with torch.no_grad(): conv.weight[0] *= 1e-3
    want = standardize(conv.weight, 1.7, .5)
    assert torch.equal(conv.latent(), want) and want[0].std() < .1*want[1].std()

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_is_standardised_in_single(dtype):
    "deviations of large weights overflow in float16; the answer has the dtype of the weights"
    w = (300*images(2, 512, 3, 3, dtype=torch.float32)).to(dtype)
    got = standardize(w)
    assert got.dtype == dtype
    torch.testing.assert_close(got.float(), standardize(w.float()), rtol=2**-7, atol=1e-4)

def kept_types(f):
    "dtypes of what a call keeps for its backward pass"
    kept = []
    def pack(t):
        kept.append(t.dtype)
        return t
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t): f()
    return kept

@pytest.mark.parametrize('cls', [QuantConv2d, ScaledStdConv2d])
def test_signs_are_kept_as_bytes(cls):
    "those of a binary kernel always, those of the inputs where they are said to be signs"
    x = hard_sign(images(2, 4, 7, 8, dtype=torch.float32), 1.).requires_grad_()
    counts = {(binary, signs): kept_types(lambda: cls(4, 6, 3, binary=binary, signs=signs)(x)).count(torch.int8)
              for binary in (False, True) for signs in (False, True)}
    assert counts == {(False, False): 0, (False, True): 1, (True, False): 1, (True, True): 2}

@pytest.mark.parametrize('binary', [False, True])
def test_autocast_sets_the_dtype(binary):
    conv, x = nn.Sequential(QuantConv2d(4, 6, 3, binary=binary)), images(2, 4, 7, 8).float()
    with torch.autocast('cpu', torch.bfloat16): y = conv(x)
    assert y.dtype == torch.bfloat16 and conv(x).dtype == torch.float32
    torch.testing.assert_close(y.float(), conv(x), rtol=.05, atol=.05)

@pytest.mark.parametrize('kw', [{}, dict(gamma=1.7, floor=.9, zero=0.),
                                dict(gamma=.6, floor=0., eps=.3, eps_in_root=True)])
def test_signs_of_standardised_weights_under_a_transform(kw):
    "the same signs, scales and gradient as outside of it"
    w, factor = images(5, 2, 3, 3), images(5, 2, 3, 3)
    with torch.no_grad(): w[0] = 0.
    def loss(w):
        sign, scale = standard_sign(w, **kw)
        return (factor*sign*scale).sum(), (sign, scale)
    outside = w.clone().requires_grad_()
    value, parts = loss(outside)
    (grad,) = torch.autograd.grad(value, outside)
    found, (again, others) = torch.func.grad_and_value(loss, has_aux=True)(w)
    torch.testing.assert_close((again, *others), (value, *parts))
    torch.testing.assert_close(found[1:], grad[1:])

def test_signs_have_the_dtype_of_the_weights():
    for part in standard_sign(images(5, 2, 3, 3).half()): assert part.dtype == torch.float16

PER_CHANNEL = RSign(8), RPReLU(8), ScaleShift(8)

@pytest.mark.parametrize('m', PER_CHANNEL, ids=lambda m: type(m).__name__)
@pytest.mark.parametrize('shape', [(5, 8), (8, 4, 4), (2, 1, 4, 4), (2, 4, 8, 8)], ids=str)
def test_a_shift_for_each_channel_meets_maps_of_as_many(m, shape):
    "another shape would be broadcast to one that nobody asked for"
    with pytest.raises(ValueError, match=f'{type(m).__name__} of 8 channels .* .B,8,H,W. are needed'):
        m(torch.randn(shape))

@pytest.mark.parametrize('binary', ['both', 'act', None])
@pytest.mark.parametrize('kind', [SignConv2d, NFConv2d])
def test_one_image_without_a_batch_dimension_is_signed(kind, binary):
    for shift in (True, False):
        conv, x = kind(4, 6, 3, binary=binary, shift=shift), images(4, 7, 8).float()
        assert conv(x).shape == (6, 5, 6) and torch.equal(conv(x), conv(x[None])[0])

@pytest.mark.parametrize('m', [QuantConv2d(8, 8, 3, bias=True), ScaledStdConv2d(8, 8, 3, bias=True),
                               SignConv2d(8, 8, 3), NFConv2d(8, 8, 3), ScaleShift(8)],
                         ids=lambda m: type(m).__name__)
def test_autocast_gives_its_dtype(m):
    "as torch's convolution and batch norm do, with a bias or a shift too"
    with torch.autocast('cpu', torch.bfloat16):
        x = nn.Conv2d(3, 8, 3)(images(2, 3, 9, 9).float())
        y = m(x)
    assert x.dtype == y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in m.parameters() if p.grad is not None)

LAYERS = dict(
    std=lambda: ScaledStdConv2d(3, 8, 3, bias=True), pixels=lambda: PixelStdConv2d(3, 8, 3),
    nf=lambda: NFConv2d(3, 8, 3, binary='both'), sign=lambda: SignConv2d(3, 8, 3),
    rsign=lambda: RSign(8), fixed=lambda: RSign(8, shift=False), rprelu=lambda: RPReLU(8, .1),
    scale=lambda: ScaleShift(8))

@torch.no_grad()
@pytest.mark.parametrize('name', LAYERS)
def test_reset_parameters_leaves_nothing_of_a_training(name):
    "gains, thresholds, slopes and fixed numbers too: all is as in a new layer with the same draws"
    def drawn(m):
        torch.manual_seed(3)
        for part in m.modules(): part.reset_parameters()
        return m.state_dict()
    new, used = LAYERS[name](), LAYERS[name]()
    fresh = {k: v for k, v in new.state_dict().items() if 'weight' not in k and 'bias' not in k}
    for p in used.parameters(): p.add_(5)
    if hasattr(used, 'scale'): used.scale.fill_(7.)
    for k, v in drawn(used).items(): assert torch.equal(v, drawn(new)[k]) and torch.equal(v, fresh.get(k, v)), k

@pytest.mark.parametrize('make', [
    lambda: ScaledStdConv2d(1, 8, 1), lambda: NFConv2d(8, 8, 1, groups=8), lambda: PixelStdConv2d(1, 8, 1),
    lambda: ScaledStdConv2d(1, 8, 1, binary=True), lambda: NFConv2d(1, 8, 1, binary='both'),
    lambda: binary_net('reactnet_mini', in_chans=1, stem=(1, 1, False))])
def test_one_weight_a_filter_cannot_be_standardised(make):
    "less its mean it is 0, and so would be all that the layer gives"
    with pytest.raises(ValueError, match='one weight a filter'): make()

def test_one_weight_a_filter_where_nothing_is_standardised():
    for m in (SignConv2d(1, 8, 1), SignConv2d(8, 8, 1, groups=8), QuantConv2d(1, 8, 1, binary=True)):
        assert m(images(2, m.in_channels, 4, 4).float()).abs().min() > 0
    assert binary_net('reactnet_mini', 'naive', in_chans=1, stem=(1, 1, False)).in_chans == 1
