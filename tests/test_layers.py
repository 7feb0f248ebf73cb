"The authors' layers and losses, each apart: recorded outputs and gradients, traps included."
import json, math
import numpy as np, pytest, torch
from torch import nn
from bnn_bn.layers.activations import RSign
from bnn_bn.agc import adaptive_clip_grad
from bnn_bn.layers.binarize import approx_sign, soft_sign
from bnn_bn.layers.conv import QuantConv2d, ScaledStdConv2d, get_padding
from bnn_bn.train.distill import distill_loss
from oracle import DATA

SPEC, ARRAYS = json.loads((DATA/'layers.json').read_text()), np.load(DATA/'layers.npz')
KINDS = ['ScaledStdConv2d', 'HardBinaryScaledStdConv2d', 'HardBinaryConv']

def array(*key): return torch.from_numpy(ARRAYS['/'.join(map(str, key))])

def cases(kind):
    "names of the recorded cases of one loss"
    return sorted({key.split('/')[1] for key in ARRAYS if key.startswith(f'{kind}/')})

def sizes(ctor):
    "channels and kernel size, taken out of the authors' arguments"
    ni = ctor.pop('in_channels', None) or ctor.pop('in_chn')
    nf = ctor.pop('out_channels', None) or ctor.pop('out_chn')
    return ni, nf, ctor.pop('kernel_size')

def layer(kind, case):
    "our layer for the authors' arguments; their binary convolutions pad by 1 whatever the kernel"
    ctor = dict(SPEC[kind][case]['ctor'])
    ni, nf, ks = sizes(ctor)
    binary = kind != 'ScaledStdConv2d'
    if binary: ctor.setdefault('padding', 1)
    if kind == 'HardBinaryConv':
        return QuantConv2d(ni, nf, ks, binary=True, zero=0., **ctor).double()
    in_root, eps = ctor.pop('use_layernorm', False), ctor.pop('eps', 1e-5)
    return ScaledStdConv2d(ni, nf, ks, binary=binary, zero=0., floor=0., eps=eps,
                           eps_in_root=in_root, **ctor).double()

def close(got, want, atol): torch.testing.assert_close(got, want, rtol=0, atol=atol)

@pytest.mark.parametrize('kind,case', [(kind, case) for kind in KINDS for case in SPEC[kind]])
def test_conv(kind, case):
    def recorded(name): return array(kind, case, name)
    m = layer(kind, case)
    for name, p in m.named_parameters(): p.data.copy_(recorded(name))
    x = recorded('x').requires_grad_()
    y = m(x)
    w, scale = m.kernel()
    close(w if scale is None else w*scale, recorded('effective_weight'), atol=1e-12)
    close(y, recorded('y'), atol=1e-9)
    (y*recorded('R')).sum().backward()
    grads = {'grad_x': x.grad} | {f'grad_{n}': p.grad for n, p in m.named_parameters()}
    for name, grad in grads.items():
        want = recorded(name)
        assert (grad - want).norm() <= 1e-8*max(want.norm(), 1e-3), name

@pytest.mark.parametrize('case', SPEC['ScaledStdConv2d'])
def test_padding_and_scale(case):
    m, spec = layer('ScaledStdConv2d', case), SPEC['ScaledStdConv2d'][case]
    assert list(m.padding) == spec['resolved_padding']
    assert math.isclose(m.gamma/math.sqrt(m.weight[0].numel()), spec['scale'], rel_tol=1e-15)

def test_get_padding():
    for row in SPEC['get_padding']:
        assert get_padding(row['kernel'], row['stride'], row['dilation']) == row['padding'], row

def test_clamp_at_one_is_open():
    "|w| = 1 passes no gradient, as in the torch that we run on; torch 1.5 passed it"
    def edge(suffix): return array('HardBinaryConv', 'k1_edge', f'grad_weight{suffix}')
    assert not torch.equal(edge('_closed_clamp'), edge(''))
    torch.testing.assert_close(edge('_open_clamp'), edge(''))

@pytest.mark.parametrize('grid,atol', [('grid_f64', 1e-12), ('grid_f32', 1e-6)], ids=['f64', 'f32'])
def test_binary_activation(grid, atol):
    x = array('BinaryActivation', grid, 'x').requires_grad_()
    y = approx_sign(x, 0.)
    y.sum().backward()
    assert torch.equal(y, array('BinaryActivation', grid, 'y').to(y.dtype))
    close(x.grad, array('BinaryActivation', grid, 'grad').to(y.dtype), atol=atol)

def test_extremes_are_mended():
    "where the authors' masks give NaN for large inputs we give the sign and no gradient"
    x = array('BinaryActivation', 'extreme_f32', 'x').requires_grad_()
    theirs = array('BinaryActivation', 'extreme_f32', 'y')
    y = approx_sign(x, 0.)
    y.sum().backward()
    fine = theirs.isfinite()
    assert 0 < fine.sum() < len(x)
    assert torch.equal(y[fine], theirs[fine])
    assert torch.equal(y[:-1], x[:-1].sign()) and x.grad[:-1].isfinite().all()
    assert y[-1].isnan()
    assert torch.equal(x.grad[fine], array('BinaryActivation', 'extreme_f32', 'grad')[fine])

def test_learnable_bias():
    assert list(RSign(3).shift.shape) == SPEC['LearnableBias']['c3']['param_shape']
    soft, x = RSign(3, binary=False), torch.rand(2, 3, 4, 4)*.1
    soft.shift.data.normal_()
    z = (x + soft.shift).clamp(-1, 1)
    assert torch.allclose(soft(x), z*(2 - z.abs()))
    assert torch.equal(soft(x), soft_sign(x + soft.shift))

@pytest.mark.parametrize('case', SPEC['adaptive_clip_grad'])
def test_agc(case):
    spec, ps = SPEC['adaptive_clip_grad'][case], []
    for i in range(spec['n']):
        p = nn.Parameter(array('agc', case, i, 'p'))
        if f'agc/{case}/{i}/g' in ARRAYS: p.grad = array('agc', case, i, 'g')
        ps.append(p)
    adaptive_clip_grad(ps, **{k: float(v) for k, v in spec['kwargs'].items()})
    assert [p.grad is None for p in ps] == spec['none_grad']
    assert [f'agc/{case}/{i}/out' not in ARRAYS for i in range(len(ps))] == spec['none_grad']
    for i, p in enumerate(ps):
        if p.grad is None: continue
        want = array('agc', case, i, 'out')
        rtol = 1e-12 if want.dtype == torch.float64 else 1e-6
        assert (p.grad - want).norm() <= rtol*max(want.norm(), 1e-12), i

def check_loss(loss, case, kind, logits, grad):
    "value and gradient of a loss, as recorded"
    loss.backward()
    want = array(kind, case, 'loss').reshape(()).to(logits.dtype)
    torch.testing.assert_close(loss.detach(), want)
    torch.testing.assert_close(logits.grad, array(kind, case, grad).to(logits.dtype))

@pytest.mark.parametrize('case', cases('DistributionLoss'))
def test_distribution_loss(case):
    "at temperature 1 and without labels ours is the authors' distillation loss"
    student = array('DistributionLoss', case, 'student').requires_grad_()
    loss = distill_loss(student, array('DistributionLoss', case, 'teacher'))
    check_loss(loss, case, 'DistributionLoss', student, 'grad_student')

@pytest.mark.parametrize('case', cases('CrossEntropyLabelSmooth'))
def test_label_smoothing(case):
    kind = 'CrossEntropyLabelSmooth'
    logits = array(kind, case, 'logits').requires_grad_()
    target = array(kind, case, 'target').long()
    smoothing = float(array(kind, case, 'epsilon'))
    loss = distill_loss(logits, torch.zeros_like(logits), label=target, label_weight=1,
                        label_smoothing=smoothing)
    check_loss(loss, case, kind, logits, 'grad')
