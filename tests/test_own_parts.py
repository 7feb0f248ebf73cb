"Own signs, activations, blocks and rows of the table: trained, saved, loaded and packed."
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from bnn_bn import models
from bnn_bn.checkpoint import load_network, save_network
from bnn_bn.deploy import pack
from bnn_bn.layers import parts
from bnn_bn.layers.blocks import BiRealBlock
from bnn_bn.models import Backbone, binary_net, create_model, register_backbone
from bnn_bn.onebit.fold import fold_bireal

MINI = dict(backbone='reactnet_mini', n_out=10, in_chans=1, width=.25)
X = torch.randn(4, 1, 32, 32, generator=torch.Generator().manual_seed(0))

def late_sign(x):
    "a sign with its threshold at .3 and the derivative of a hyperbolic tangent"
    soft = torch.tanh(x - .3)
    return soft + (torch.where(x >= .3, 1., -1.) - soft).detach()

class Plain(BiRealBlock):
    "no method `fold`"

class Folds(BiRealBlock):
    def fold(self, folder, name, x): return fold_bireal(folder, name, self, x)

@pytest.fixture(autouse=True)
def registered(monkeypatch):
    "the registries as they were, and the parts above"
    for name in ('quantizers', 'acts', 'blocks'):
        monkeypatch.setattr(parts, name, dict(getattr(parts, name)))
    monkeypatch.setattr(models, 'backbones', dict(models.backbones))
    parts.register_quantizer('late_sign', late_sign)
    parts.register_act('hardtanh', lambda channels: nn.Hardtanh())
    for block in (Plain, Folds): parts.register_block(block.__name__, block)

def agree(net):
    "packed logits as those of the network"
    torch.testing.assert_close(pack(net)(X), net(X), rtol=1e-4, atol=1e-4)

@pytest.mark.parametrize('own', [
    dict(quantizer='late_sign'), dict(quantizer='ste_sign'), dict(act='prelu'), dict(act='none'),
    dict(block='Folds'), dict(block='react'), dict(stem=(5, 2, True)),
    dict(quantizer='late_sign', act='prelu', block='Folds', stem=(3, 1, False))])
def test_trained_saved_loaded_packed(own, tmp_path):
    torch.manual_seed(0)
    net = binary_net(**MINI, **own)
    before = [p.clone() for p in net.parameters()]
    opt = torch.optim.Adam(net.parameters(), lr=.01)
    F.cross_entropy(net(X), torch.arange(4)).backward()
    opt.step()
    moved = [not torch.equal(a, b) for a, b in zip(before, net.parameters())]
    assert sum(moved) > .8*len(moved)
    net = net.eval()
    save_network(net, tmp_path/'net.safetensors')
    again = load_network(tmp_path/'net.safetensors').eval()
    assert again.cfg == net.cfg
    torch.testing.assert_close(again(X), net(X), rtol=0, atol=0)
    with torch.no_grad(): agree(again)

def test_the_threshold_is_the_function_s():
    "a packed sign changes where the function does, shifted and scaled as the block says"
    from bnn_bn.onebit.fold import fold
    net = binary_net(**MINI, quantizer='late_sign', norm='naive').eval()
    step = next(n for n in fold(net).nodes if n.op == 'bconv')
    assert step.tensors['threshold'] == pytest.approx(.3, abs=1e-6)

@pytest.mark.parametrize('own,word', [
    (dict(act='hardtanh'), 'Hardtanh'), (dict(block='Plain'), 'fold')])
def test_what_packing_does_not_know_is_refused(own, word):
    with pytest.raises(ValueError, match=word): pack(binary_net(**MINI, **own).eval())

@pytest.mark.parametrize('own,word', [
    (dict(quantizer='lat_sign'), "did you mean 'late_sign'"), (dict(act='relu6'), 'register_act'),
    (dict(block='Bireal'), "did you mean 'bireal'"), (dict(stem=(4, 2, True)), 'odd kernel'),
    (dict(stem=(3, 2)), 'odd kernel'), (dict(stem='cifr'), 'odd kernel')])
def test_a_wrong_name(own, word):
    with pytest.raises(ValueError, match=word): binary_net(**MINI, **own)

def test_a_file_with_an_unknown_sign_says_so(tmp_path):
    save_network(binary_net(**MINI, quantizer='late_sign'), tmp_path/'net.safetensors')
    del parts.quantizers['late_sign']
    with pytest.raises(ValueError, match='late_sign.*register_quantizer'):
        load_network(tmp_path/'net.safetensors')

def test_a_row_of_one_s_own():
    row = Backbone(Folds, ((16, 1, 1), (32, 2, 2)), stem_channels=16)
    register_backbone('small', row)
    register_backbone('small', row)
    net = create_model('small_nobn', n_out=10, in_chans=1, stem='cifar').eval()
    assert sum(isinstance(m, Folds) for m in net.modules()) == 3
    assert 'small_bn' in models.list_models('small*')
    with torch.no_grad(): agree(net)
    with pytest.raises(ValueError, match='there already'):
        register_backbone('small', Backbone(Folds, ((16, 2, 1),)))
    with pytest.raises(ValueError, match='a Backbone is needed'): register_backbone('other', Folds)

def two_values_off(x): return torch.where(x >= 0, 2., -2.) + (x - x.detach())
def downwards(x): return torch.where(x >= 0, -1., 1.) + (x - x.detach())
def infinite(x):
    steep = x.abs().sqrt()*x.sign()*1e30*1e30
    return torch.where(x >= 0, 1., -1.) + (steep - steep.detach())
def a_mean(x): return x.mean()

@pytest.mark.parametrize('f', [two_values_off, downwards, infinite, a_mean,
                               lambda x: torch.where(x >= 0, 1., -1.)])
def test_what_is_no_sign(f):
    with pytest.raises(ValueError): parts.check_quantizer(f)
