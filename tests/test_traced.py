"""A compiled training step is one graph, with the gradients of a plain one, on each torch."""
import pytest, torch, torch.nn.functional as F
from torch import nn
from bnn_bn.models import binary_net

NETS = dict(
    reactnet={}, bn=dict(norm='bn'), naive=dict(norm='naive'), reference=dict(rules='reference'),
    act=dict(binary='act'), stem8=dict(stem_bits=8),
    birealnet=dict(backbone='birealnet18'), xnornet=dict(backbone='xnornet18'),
    vgg=dict(backbone='vgg11'), reactnet_a=dict(backbone='reactnet_a'))

def gradients(call, model, amp):
    "of a step on two pictures of noise, in the memory format of trainings"
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    x = x.contiguous(memory_format=torch.channels_last)
    model.zero_grad()
    with torch.autocast('cpu', torch.bfloat16, enabled=amp):
        F.cross_entropy(call(x), torch.tensor([0, 1])).backward()
    return {k: p.grad.clone() for k, p in model.named_parameters()}

@pytest.mark.parametrize('name, amp', [*((n, False) for n in NETS), ('reactnet', True)])
def test_a_compiled_step_has_the_gradients_of_a_plain_one(name, amp):
    "traced whole (`fullgraph`), and not lowered further: the arithmetic is the same"
    torch.manual_seed(0)
    torch._dynamo.reset()
    model = binary_net(**dict(backbone='reactnet18', stem='cifar', n_out=10, width=.125) | NETS[name])
    model.to(memory_format=torch.channels_last).train()
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d): m.momentum = 0. # its statistics stay
    plain = gradients(model, model, amp)
    compiled = gradients(torch.compile(model, backend='eager', fullgraph=True), model, amp)
    torch._dynamo.reset()
    for k, g in plain.items():
        assert torch.isfinite(g).all() and g.any(), f'{k}: a poor test'
        assert torch.allclose(compiled[k], g, rtol=1e-4, atol=1e-6*g.abs().max()), k
