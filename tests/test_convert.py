"What `remove_bn` promises of whole networks: one of each family of torchvision, and the sweep's file."
import copy, io, json
from pathlib import Path
import pytest, torch
from torch import nn
from bnn_bn.convert import NFConv2d, remove_bn
from bnn_bn.models import assert_bn_free
from bnn_bn.sigprop import signal_stats

tv = pytest.importorskip('torchvision').models
SWEEP = json.loads((Path(__file__).parent.parent/'results/convert.json').read_text())['networks']
FAMILIES = 'densenet121', 'efficientnet_b0', 'googlenet', 'mnasnet0_5', 'mobilenet_v2', 'mobilenet_v3_small', 'regnet_x_400mf', 'resnet34', 'resnext50_32x4d', 'shufflenet_v2_x0_5'

def build(name):
    torch.manual_seed(0)
    return tv.get_model(name, weights=None, num_classes=10, **(dict(init_weights=False) if name in ('googlenet', 'inception_v3') else {}))

def test_sweep_has_all():
    "every classifier of this torchvision stands in the file; all with batch norm but MaxViT are flat at the start"
    assert set(tv.list_models(module=tv)) <= set(SWEEP)
    for name, r in SWEEP.items():
        if not r['batch_norm']: assert 'no batch norm' in r['refused']
        elif name == 'maxvit_t': assert 'LayerNorm' in r['refused']
        else:
            for kind in ('real', 'act', 'both'): assert r[kind]['finite'] and .5 <= r[kind]['noise'][0] <= r[kind]['noise'][1] <= 2, name

@pytest.mark.parametrize('name', FAMILIES)
def test_family(name):
    "flat at the start; the network given, and torch's random numbers, are as before; all its convolutions but those of gates are standardised"
    net = build(name)
    before, state, shape = copy.deepcopy(net.state_dict()), torch.get_rng_state(), (8, 3, 64, 64)
    new = remove_bn(net, example=shape)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), net.state_dict().values())) and type(new) is type(net)
    assert_bn_free(new)
    left = [n for n, m in new.named_modules() if isinstance(m, nn.Conv2d) and not isinstance(m, NFConv2d)]
    assert all('fc' in n for n in left), left # fc1 and fc2 of SqueezeExcitation
    assert signal_stats(new, torch.randn(shape))['var'].between(.5, 2).all()
    out = new.train()(torch.randn(2, 3, 64, 64))
    sum(o.square().mean() for o in (out if isinstance(out, tuple) else [out])).backward()
    for n, p in new.named_parameters(): assert p.grad is not None and p.grad.isfinite().all() and p.grad.abs().max() > 0 or n.endswith(('bias', 'gain', 'shift')), n

def test_inception_with_auxiliary_classifier():
    "kernels of 1x7 and 7x1, and a branch that only training has"
    new = remove_bn(build('inception_v3'), example=(2, 3, 299, 299))
    assert_bn_free(new)
    assert {(1, 7), (7, 1), (1, 3), (3, 1)} < {m.kernel_size for m in new.modules() if isinstance(m, NFConv2d)}
    out = new.train()(torch.randn(2, 3, 299, 299))
    assert out.logits.shape == out.aux_logits.shape == (2, 10) and out.logits.isfinite().all()
    assert new.eval()(torch.randn(2, 3, 299, 299)).shape == (2, 10)

@pytest.mark.parametrize('binary', [None, 'act', 'both'])
def test_saved_and_copied(binary):
    "a saved state dict, a copy and a pickle give the same outputs; so does a conversion in double precision, nearly"
    x, make = torch.randn(2, 3, 64, 64), lambda: remove_bn(build('resnet18'), binary=binary, example=(4, 3, 64, 64)).eval()
    new, file = make(), io.BytesIO()
    torch.save(new, file); file.seek(0)
    again = remove_bn(build('resnet18'), binary=binary, calibrate=False).eval(); again.load_state_dict(new.state_dict())
    for other in (make(), copy.deepcopy(new), torch.load(file, weights_only=False), again): assert torch.equal(new(x), other(x))
    double = remove_bn(build('resnet18').double(), binary=binary, example=(4, 3, 64, 64)).eval()
    assert double(x.double()).dtype == torch.float64
    if binary is None: torch.testing.assert_close(double(x.double()).float(), new(x), rtol=1e-3, atol=1e-3)

@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_on_a_gpu():
    "converted where the network is, within what another order of summation changes"
    new = remove_bn(build('resnet18').cuda(), example=(4, 3, 64, 64))
    assert all(t.is_cuda for t in new.state_dict().values())
    assert signal_stats(new, torch.randn(4, 3, 64, 64))['var'].between(.5, 2).all()
