"""A compiled training step is one graph, with the gradients of a plain one, on each torch."""
import subprocess, sys
import pytest, torch, torch.nn.functional as F
from torch import nn
from torch._dynamo.testing import CompileCounter
from bnn_bn.deploy import as_module, pack
from bnn_bn.layers.binarize import hard_sign
from bnn_bn.layers.parts import OwnSign
from bnn_bn.models import binary_net

NETS = dict(
    reactnet={}, bn=dict(norm='bn'), naive=dict(norm='naive'), reference=dict(rules='reference'),
    act=dict(binary='act'), stem8=dict(stem_bits=8),
    birealnet=dict(backbone='birealnet18'), xnornet=dict(backbone='xnornet18'),
    vgg=dict(backbone='vgg11'), reactnet_a=dict(backbone='reactnet_a'),
    mini=dict(backbone='reactnet_mini', in_chans=3))

def gradients(call, model, amp=False, side=32):
    "of a step on two pictures of noise, in the memory format of trainings"
    x = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    x = x.contiguous(memory_format=torch.channels_last)
    model.zero_grad()
    with torch.autocast('cpu', torch.bfloat16, enabled=amp):
        F.cross_entropy(call(x), torch.tensor([0, 1])).backward()
    return {k: p.grad.clone() for k, p in model.named_parameters()}

def network(name):
    "one of `NETS`, in training; batch norm's statistics stay as they are"
    torch.manual_seed(0)
    torch._dynamo.reset()
    model = binary_net(**dict(backbone='reactnet18', stem='cifar', n_out=10, width=.125) | NETS[name])
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d): m.momentum = 0.
    return model.to(memory_format=torch.channels_last).train()

def check_equal(compiled, plain):
    torch._dynamo.reset()
    for k, g in plain.items():
        assert torch.isfinite(g).all() and g.any(), f'{k}: a poor test'
        assert torch.allclose(compiled[k], g, rtol=1e-4, atol=1e-6*g.abs().max()), k

@pytest.mark.parametrize('name, amp', [*((n, False) for n in NETS), ('reactnet', True)])
def test_a_compiled_step_has_the_gradients_of_a_plain_one(name, amp):
    "traced whole (`fullgraph`), and not lowered further: the arithmetic is the same"
    model = network(name)
    plain = gradients(model, model, amp)
    compiled = gradients(torch.compile(model, backend='eager', fullgraph=True), model, amp)
    check_equal(compiled, plain)

def test_one_compiled_graph_for_all_sizes():
    "`dynamic=True`: two sizes of picture, traced once"
    model, graphs = network('mini'), CompileCounter()
    compiled = torch.compile(model, backend=graphs, dynamic=True)
    found = {side: gradients(compiled, model, side=side) for side in (32, 48)}
    assert graphs.frame_count == 1
    for side in found: check_equal(found[side], gradients(model, model, side=side))

def own(forward):
    "a user's sign: its forward pass, and a slope of 3 within a third"
    class Own(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return forward(x)
        @staticmethod
        def backward(ctx, grad): return grad*3*(ctx.saved_tensors[0].abs() < 1/3)
    return Own.apply

FORWARDS = dict(
    new=lambda x: torch.where(x >= 0, 1., -1.), hard_sign=hard_sign,
    in_place=lambda x: x.sign().mul_(2).clamp_(-1, 1),
    out=lambda x: torch.sign(x, out=torch.empty_like(x)),
    copied=lambda x: torch.empty_like(x).copy_(torch.where(x >= 0, 1., -1.)))

def slopes(call):
    x = torch.linspace(-1, 1, 64).requires_grad_()
    (call(2*x)*torch.arange(1., 65)).sum().backward()
    return x.grad

@pytest.mark.parametrize('name', FORWARDS)
def test_a_sign_of_ones_own_keeps_its_gradient(name):
    "torch 2.11 loses it in a compiled step where the function works in place"
    f = own(FORWARDS[name])
    torch._dynamo.reset()
    compiled = slopes(torch.compile(lambda x: OwnSign(f)(x, shift=.01), backend='eager'))
    plain = slopes(lambda x: f(x + .01))
    assert plain.any() and torch.equal(compiled, plain)

def test_hard_sign_in_a_function_is_traced_whole():
    f = own(hard_sign)
    torch._dynamo.reset()
    compiled = slopes(torch.compile(lambda x: f(x), backend='eager', fullgraph=True))
    assert torch.equal(compiled, slopes(f))

COLD = """import sys, torch
from bnn_bn.deploy import as_module, load_packed
q, x = load_packed(sys.argv[1]), torch.randn(2, 1, 32, 32)
calls = as_module(q), torch.nn.Sequential(torch.nn.Identity(), as_module(q)), lambda x: q(x)*1
y = torch.compile(calls[int(sys.argv[2])], backend='eager')(x) # the first call of all
assert torch.equal(y, q(x))"""

@pytest.mark.parametrize('call', range(3))
def test_a_packed_network_inside_a_compiled_one(call, tmp_path):
    "the first call too, in which the engine lays out its memory"
    file = pack(binary_net('reactnet_mini', n_out=3, in_chans=1, width=.25).eval()).save(tmp_path/'n.bnn')
    done = subprocess.run([sys.executable, '-c', COLD, file, str(call)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]

def test_a_packed_network_cannot_be_exported():
    module = as_module(pack(binary_net('reactnet_mini', n_out=3, in_chans=1, width=.25).eval()))
    with pytest.raises(ValueError, match='cannot be traced; bnn_bn.export.to_onnx'):
        torch.export.export(module, (torch.randn(2, 1, 32, 32),))

@torch.no_grad()
def test_maps_of_a_body_by_torch_fx():
    "with blocks and stem as leaves; of the whole network the error says so"
    extraction = pytest.importorskip('torchvision.models.feature_extraction')
    model, x = binary_net('reactnet_mini', n_out=3, in_chans=1, width=.25).eval(), torch.randn(2, 1, 32, 32)
    leaves = dict(leaf_modules=[type(model.body.block1), type(model.body.stem.conv)])
    made = extraction.create_feature_extractor(model.body, ['block2'], tracer_kwargs=leaves)(x)
    assert torch.equal(made['block2'], model.body[:3](x))
    with pytest.raises(ValueError, match='leaf_modules'): extraction.create_feature_extractor(model, ['body.block2'])
