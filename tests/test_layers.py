"The authors' layers and losses, each apart: recorded outputs and gradients, traps included."
import json, math
import numpy as np, pytest, torch
from torch import nn
from bnn_bn.activations import RSign
from bnn_bn.agc import adaptive_clip_grad
from bnn_bn.binarize import approx_sign
from bnn_bn.conv import QuantConv2d, ScaledStdConv2d, get_padding
from bnn_bn.distill import distill_loss
from oracle import DATA

SPEC, ARRAYS = json.loads((DATA/'layers.json').read_text()), np.load(DATA/'layers.npz')
KINDS = ['ScaledStdConv2d', 'HardBinaryScaledStdConv2d', 'HardBinaryConv']

def array(*key): return torch.from_numpy(ARRAYS['/'.join(map(str, key))])

def layer(kind, case):
    "our layer for the authors' constructor arguments; their binary convolutions pad by 1 whatever the kernel"
    c = dict(SPEC[kind][case]['ctor'])
    ni, nf, ks = c.pop('in_channels', None) or c.pop('in_chn'), c.pop('out_channels', None) or c.pop('out_chn'), c.pop('kernel_size')
    binary = kind != 'ScaledStdConv2d'
    if binary: c.setdefault('padding', 1)
    if kind == 'HardBinaryConv': return QuantConv2d(ni, nf, ks, binary=True, zero=0., **c).double()
    inside = c.pop('use_layernorm', False)
    return ScaledStdConv2d(ni, nf, ks, binary=binary, zero=0., floor=0., eps=c.pop('eps', 1e-5), eps_in_root=inside, **c).double()

@pytest.mark.parametrize('kind,case', [(k, c) for k in KINDS for c in SPEC[k]])
def test_conv(kind, case):
    m, get = layer(kind, case), lambda f: array(kind, case, f)
    for n, p in m.named_parameters(): p.data.copy_(get(n))
    x = get('x').requires_grad_()
    y = m(x)
    w, scale = m.kernel()
    torch.testing.assert_close(w if scale is None else w*scale, get('effective_weight'), rtol=0, atol=1e-12)
    torch.testing.assert_close(y, get('y'), rtol=0, atol=1e-9)
    (y*get('R')).sum().backward()
    grads = {'grad_x': x.grad} | {f'grad_{n}': p.grad for n, p in m.named_parameters()}
    for n, g in grads.items():
        want = get(n)
        assert (g - want).norm() <= 1e-8*max(want.norm(), 1e-3), n

@pytest.mark.parametrize('case', SPEC['ScaledStdConv2d'])
def test_padding_and_scale(case):
    m, s = layer('ScaledStdConv2d', case), SPEC['ScaledStdConv2d'][case]
    assert list(m.padding) == s['resolved_padding']
    assert math.isclose(m.gamma/math.sqrt(m.weight[0].numel()), s['scale'], rel_tol=1e-15)

def test_get_padding():
    for row in SPEC['get_padding']: assert get_padding(row['kernel'], row['stride'], row['dilation']) == row['padding'], row

def test_clamp_at_one_is_open():
    "|w| = 1 passes no gradient, as in the torch that we run on; torch 1.5 passed it"
    assert not torch.equal(array('HardBinaryConv', 'k1_edge', 'grad_weight_closed_clamp'), array('HardBinaryConv', 'k1_edge', 'grad_weight'))
    torch.testing.assert_close(array('HardBinaryConv', 'k1_edge', 'grad_weight_open_clamp'), array('HardBinaryConv', 'k1_edge', 'grad_weight'))

@pytest.mark.parametrize('grid', ['grid_f64', 'grid_f32'])
def test_binary_activation(grid):
    x = array('BinaryActivation', grid, 'x').requires_grad_()
    y = approx_sign(x, 0.); y.sum().backward()
    assert torch.equal(y, array('BinaryActivation', grid, 'y').to(y.dtype))
    torch.testing.assert_close(x.grad, array('BinaryActivation', grid, 'grad').to(y.dtype), rtol=0, atol=1e-12 if grid == 'grid_f64' else 1e-6)

def test_extremes_are_mended():
    "where the authors' masks give NaN for large inputs we give the sign and no gradient; a NaN stays one"
    x = array('BinaryActivation', 'extreme_f32', 'x').requires_grad_()
    theirs = array('BinaryActivation', 'extreme_f32', 'y')
    y = approx_sign(x, 0.); y.sum().backward()
    fine = theirs.isfinite()
    assert torch.equal(y[fine], theirs[fine]) and 0 < fine.sum() < len(x)
    assert torch.equal(y[:-1], x[:-1].sign()) and y[-1].isnan() and x.grad[:-1].isfinite().all()
    assert torch.equal(x.grad[fine], array('BinaryActivation', 'extreme_f32', 'grad')[fine])

def test_learnable_bias():
    m = RSign(3)
    assert list(m.shift.shape) == SPEC['LearnableBias']['c3']['param_shape']
    y = RSign(3, binary=False); y.shift.data.normal_(); x = torch.rand(2, 3, 4, 4)*.1
    assert torch.allclose(y(x), (lambda z: z*(2 - z.abs()))((x + y.shift).clamp(-1, 1)))

@pytest.mark.parametrize('case', SPEC['adaptive_clip_grad'])
def test_agc(case):
    s, ps = SPEC['adaptive_clip_grad'][case], []
    for i in range(s['n']):
        p = nn.Parameter(array('agc', case, i, 'p'))
        if f'agc/{case}/{i}/g' in ARRAYS: p.grad = array('agc', case, i, 'g')
        ps.append(p)
    adaptive_clip_grad(ps, **{k: float(v) for k, v in s['kwargs'].items()})
    assert [p.grad is None for p in ps] == s['none_grad']
    for i, p in enumerate(ps):
        if p.grad is None: assert f'agc/{case}/{i}/out' not in ARRAYS; continue
        want = array('agc', case, i, 'out')
        assert (p.grad - want).norm() <= (1e-12 if want.dtype == torch.float64 else 1e-6)*max(want.norm(), 1e-12), i

@pytest.mark.parametrize('case', sorted({k.split('/')[1] for k in ARRAYS if k.startswith('DistributionLoss/')}))
def test_distribution_loss(case):
    "at temperature 1 and without labels ours is the authors' distillation loss"
    s, t = array('DistributionLoss', case, 'student').requires_grad_(), array('DistributionLoss', case, 'teacher')
    loss = distill_loss(s, t); loss.backward()
    torch.testing.assert_close(loss.detach(), array('DistributionLoss', case, 'loss').reshape(()).to(s.dtype))
    torch.testing.assert_close(s.grad, array('DistributionLoss', case, 'grad_student').to(s.dtype))

@pytest.mark.parametrize('case', sorted({k.split('/')[1] for k in ARRAYS if k.startswith('CrossEntropyLabelSmooth/')}))
def test_label_smoothing(case):
    x, target = array('CrossEntropyLabelSmooth', case, 'logits').requires_grad_(), array('CrossEntropyLabelSmooth', case, 'target').long()
    loss = distill_loss(x, torch.zeros_like(x), label=target, label_weight=1, label_smoothing=float(array('CrossEntropyLabelSmooth', case, 'epsilon'))); loss.backward()
    torch.testing.assert_close(loss.detach(), array('CrossEntropyLabelSmooth', case, 'loss').reshape(()).to(x.dtype))
    torch.testing.assert_close(x.grad, array('CrossEntropyLabelSmooth', case, 'grad').to(x.dtype))
