"Own signs, activations, blocks and rows of the table: trained, saved, loaded and packed."
import copy
from functools import partial
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from bnn_bn import models
from bnn_bn.checkpoint import load_network, save_network
from bnn_bn.deploy import pack
from bnn_bn.layers import parts
from bnn_bn.layers.activations import RPReLU
from bnn_bn.layers.binarize import soft_sign
from bnn_bn.layers.blocks import BiRealBlock, Spec
from bnn_bn.layers.signed import NFConv2d, SignConv2d
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

def rounding_sign(x):
    "adds up to 0.99999994 in places"
    soft = torch.tanh(2*x)
    return torch.where(x >= 0, 1., -1.) + soft - soft.detach()

def by_factors(x):
    "exactly -1 or 1, with the same gradient"
    soft = torch.tanh(2*x)
    return torch.where(x >= 0, 1., -1.) + (soft - soft.detach())

@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16])
def test_a_sign_of_one_s_own_is_exactly_a_sign(dtype):
    x = torch.randn(10_000, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert (rounding_sign(x.float()).abs() != 1).any()
    for y in (parts.OwnSign(rounding_sign)(x), copy.deepcopy(parts.OwnSign(rounding_sign))(x)):
        assert y.dtype == dtype and torch.equal(y, torch.where(x >= 0, 1., -1.).to(dtype))
    assert parts.OwnSign(rounding_sign)(torch.tensor([torch.nan])).isnan().all()

def slope_of_weights(make, f, autocast=False, call=lambda m: m):
    parts.quantizers['now'] = parts.OwnSign(f)
    torch.manual_seed(0)
    m = make()
    with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
        y = call(m)(torch.randn(2, 8, 6, 6, generator=torch.Generator().manual_seed(1)))
    (y.float()*torch.arange(1., y.numel() + 1).view_as(y)).sum().backward()
    return [p.grad for p in m.parameters()]

def signed_block(): return BiRealBlock(8, 8, 1, Spec(quantizer=parts.quantizers['now']))

@pytest.mark.parametrize('how', ['plain', 'autocast', 'compiled'])
@pytest.mark.parametrize('make', [
    signed_block, partial(SignConv2d, 8, 4, 3, quantizer='now'),
    partial(SignConv2d, 8, 4, 3, binary='act', quantizer='now'),
    partial(NFConv2d, 8, 4, 3, binary='both', quantizer='now')])
def test_gradients_do_not_hang_on_how_a_sign_adds_up(make, how):
    "a convolution keeps its signs as bytes, and 0.99999994 would be 0 there"
    torch._dynamo.reset()
    call = partial(torch.compile, backend='eager') if how == 'compiled' else lambda m: m
    rounded, exact = (slope_of_weights(make, f, how == 'autocast', call)
                      for f in (rounding_sign, by_factors))
    assert all(map(torch.equal, rounded, exact))

def test_a_sign_of_one_s_own_in_a_transform():
    x = torch.linspace(-2, 2, 41)
    slope = torch.func.grad(lambda x: parts.OwnSign(rounding_sign)(x).sum())(x)
    torch.testing.assert_close(slope, 2/torch.cosh(2*x)**2)
    assert set(torch.func.vmap(parts.OwnSign(rounding_sign))(x).tolist()) == {-1, 1}

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

def test_a_real_network_has_no_use_for_a_sign_of_one_s_own():
    "its soft function is not known, and Bi-Real's would stand in for it"
    for kw in dict(), dict(quantizer='ste_sign'), dict(quantizer='approx_sign'):
        assert binary_net(**MINI, binary='real', **kw)(X).shape == (4, 10)
    with pytest.raises(ValueError, match="late_sign: .*binary='real'.* leave the quantizer out"):
        binary_net(**MINI, binary='real', quantizer='late_sign')
    with pytest.raises(ValueError, match='late_sign'): soft_sign(X, parts.quantizers['late_sign'])

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

# the sign of exactly 0, which a signal is after a ReLU, and of -0, which is the same number
def of_torch(x): return straight_to(torch.sign(x), x)
def a_half(x): return straight_to(torch.heaviside(x, torch.tensor(.5))*2 - 1, x)
def not_a_number(x): return straight_to(x/x.abs(), x)
def by_its_bit(x): return straight_to(torch.where(torch.signbit(x), -1., 1.), x)
def copied_sign(x): return straight_to(torch.copysign(torch.ones_like(x), x), x)
def steep_at_0(x): return straight_to(torch.where(x >= 0, 1., -1.), x.abs().sqrt()*x.sign())
def straight_to(y, x): return y.detach() + (x - x.detach())

@pytest.mark.parametrize('f,word', [
    (of_torch, '^of_torch: 0 at 0; only -1 and 1 fit one bit; torch.where'), (a_half, '0 at 0'),
    (not_a_number, 'nan at 0'), (by_its_bit, '0 and -0'), (copied_sign, '0 and -0'),
    (steep_at_0, 'gradient at 0 is not finite')])
def test_the_sign_of_0(f, word):
    "is found when the sign is registered, before a network is made of it"
    with pytest.raises(ValueError, match=word): parts.check_quantizer(f)
    with pytest.raises(ValueError, match=word): parts.register_quantizer('at_0', f)
    assert 'at_0' not in parts.quantizers

@pytest.mark.parametrize('at_0', [1., -1.])
def test_either_sign_of_0_is_one(at_0):
    def f(x): return straight_to(torch.where(x == 0, at_0, torch.where(x > 0, 1., -1.)), x)
    assert abs(parts.check_quantizer(f)['threshold']) < 1e-9

@pytest.mark.parametrize('f', [two_values_off, downwards, infinite, a_mean,
                               lambda x: torch.where(x >= 0, 1., -1.)])
def test_what_is_no_sign(f):
    with pytest.raises(ValueError): parts.check_quantizer(f)

# what a researcher tries: it works with equal numbers, or is refused where it is registered ---------

def straight(y, x): return x.clamp(-1, 1) + (y - x.clamp(-1, 1)).detach()
def signs(x): return torch.where(x >= 0, 1., -1.)

class Stateless(nn.Module):
    def forward(self, x): return straight(signs(x), x)

class Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return signs(x)
    @staticmethod
    def backward(ctx, grad): return grad*(ctx.saved_tensors[0].abs() < 1)

def late(x, t=0.): return straight(signs(x - t), x - t)

WORKS = dict(module=Stateless(), function=Straight.apply, tanh=lambda x: straight(signs(x), torch.tanh(x)),
             fixed=partial(late, t=.1), half=lambda x: late(x).half(), double=lambda x: late(x).double(),
             sign=lambda x: straight(torch.where(x == 0, 1., x.sign()), x))

@pytest.mark.parametrize('name', WORKS)
def test_signs_that_work(name, tmp_path):
    "trained, copied, saved and packed with the same logits; in half precision its dtype is the network's"
    parts.register_quantizer(f'my_{name}', WORKS[name])
    test_trained_saved_loaded_packed(dict(quantizer=f'my_{name}'), tmp_path)
    net = binary_net(**MINI, quantizer=f'my_{name}').eval()
    assert torch.equal(copy.deepcopy(net)(X), net(X))
    assert net.to(torch.bfloat16)(X.bfloat16()).dtype == torch.bfloat16

class Learns(Stateless):
    def __init__(self):
        super().__init__()
        self.t = nn.Parameter(torch.tensor(.2))

class Counts(Stateless):
    def __init__(self):
        super().__init__()
        self.register_buffer('n', torch.zeros(()))

REFUSED = [
    (lambda x: (late(x), x.mean()), 'gives a tuple'), (lambda x: [late(x)], 'gives a list'),
    (lambda x: straight(torch.where(x.abs() < .5, 0., x.sign()), x), 'only -1 and 1 fit'),
    (lambda x: straight(x.sign(), x), '0 at 0; only -1 and 1 fit'),
    (lambda x: signs(x).long(), 'no gradient'), (lambda x: x > 0, 'no gradient'),
    (lambda x: x.abs().mean()*late(x), 'only -1 and 1'), (lambda x: late(x - x.mean()), 'numbers beside it'),
    (lambda x: late(x - x.mean(0, keepdim=True)) if x.dim() > 1 else late(x), 'numbers beside it'),
    (lambda x: late(x).flatten(), 'the same shape'), (lambda x, y: late(x), 'f\\(x\\) fails'),
    (Learns(), 'it keeps t'), (Counts(), 'it keeps n'), (Stateless, 'give an instance'),
    (None, 'not callable'), ('sign', 'not callable')]

@pytest.mark.parametrize('f,word', REFUSED)
def test_signs_that_are_refused(f, word):
    with pytest.raises(ValueError, match=word): parts.register_quantizer('refused', f)
    assert 'refused' not in parts.quantizers

class Dropped(BiRealBlock):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.drop = nn.Dropout2d(.3)
    def forward(self, x): return self.drop(super().forward(x))

class DroppedFolds(Dropped, Folds): pass

class Excited(BiRealBlock):
    "a squeeze-and-excite branch"
    def __init__(self, ni, nf, *args, **kwargs):
        super().__init__(ni, nf, *args, **kwargs)
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(nf, nf, 1), nn.Sigmoid())
    def forward(self, x):
        y = super().forward(x)
        return y*self.gate(y)

class Remembers(BiRealBlock):
    "its own state, in a buffer"
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.register_buffer('mean', torch.zeros(()))
    def forward(self, x):
        if self.training: self.mean.lerp_(x.detach().mean(), .1)
        return super().forward(x) + self.mean

class MaybeTwo(BiRealBlock):
    def forward(self, x, other=None): return super().forward(x if other is None else x + other)

@pytest.mark.parametrize('block', [Dropped, Excited, Remembers, MaybeTwo, DroppedFolds])
def test_blocks_that_work(block, tmp_path):
    parts.register_block(block.__name__, block)
    torch.manual_seed(0)
    net = binary_net(**MINI, block=block.__name__)
    net(X).sum().backward()
    net.eval()
    again = load_network(save_network(net, tmp_path/'net.safetensors'))
    for other in (again, copy.deepcopy(net)): assert torch.equal(other(X), net(X))
    if hasattr(block, 'fold'): return agree(net.requires_grad_(False))
    with pytest.raises(ValueError, match=f'{block.__name__}: give it a method fold'): pack(net)

class TwoInputs(BiRealBlock):
    def forward(self, x, other): return super().forward(x + other)
class GivesTuple(BiRealBlock):
    def forward(self, x): return super().forward(x), x
class TooFew(nn.Module):
    def __init__(self, ni, nf): super().__init__()
class Forgets(Remembers):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.register_buffer('mean', torch.zeros(()), persistent=False)
class Draws(BiRealBlock):
    def forward(self, x): return super().forward(x) + torch.randn(())
class SameSize(BiRealBlock):
    def __init__(self, ni, nf, stride, spec, betas=(1.,)): super().__init__(ni, nf, 1, spec, betas)

@pytest.mark.parametrize('block,word', [
    (TwoInputs, 'it takes one map'), (GivesTuple, 'gives a tuple'), (TooFew, 'TooFew\\(ni, nf, stride'),
    (Forgets, 'from its state dict'), (Draws, 'in evaluation the next time'), (SameSize, 'is needed'),
    (nn.Conv2d, 'forward\\(x\\) fails'), (lambda *args: BiRealBlock(*args), 'a class of modules')])
def test_blocks_that_are_refused(block, word):
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match=word): parts.register_block('refused', block)
    assert 'refused' not in parts.blocks and torch.equal(before, torch.get_rng_state())
    if isinstance(block, type):
        with pytest.raises(ValueError, match=word): register_backbone('refused', Backbone(block, ((16, 1, 1),)))

class LeavesOut(Folds):
    def forward(self, x): return 2*super().forward(x)
class FoldsNothing(BiRealBlock):
    def fold(self, folder, name, x): pass
class FoldsWrong(BiRealBlock):
    def fold(self, folder, name, x): return self.nothing

@pytest.mark.parametrize('block,word', [(LeavesOut, 'look at what fold of LeavesOut leaves out'),
                                        (FoldsNothing, 'gives a NoneType'), (FoldsWrong, 'fails .AttributeError')])
def test_a_fold_of_one_s_own_is_named(block, word):
    parts.register_block(block.__name__, block)
    with pytest.raises(ValueError, match=word): pack(binary_net(**MINI, block=block.__name__).eval())

@pytest.mark.parametrize('field,value', [
    ('block', 'bireal'), ('stages', ()), ('stages', ((16, 1),)), ('stages', ((16, 0, 1),)), ('stages', ((16., 1, 1),)),
    ('stages', ((16, 1, 0),)), ('stem_channels', 0), ('cifar', 'cifar'), ('imagenet', (4, 2, True)),
    ('parts', (('rprelus', False),))])
def test_a_row_that_is_none_says_which_field(field, value):
    with pytest.raises(ValueError, match=f'Backbone {field}='):
        Backbone(**(dict(block=Folds, stages=((16, 1, 1),)) | {field: value}))

def test_a_cell_that_is_run_again_registers_again():
    "the same name for the same definition; another one under that name is refused"
    def define():
        class Mine(Folds): pass
        def mine(x): return late_sign(x)
        for part in (Mine, mine): part.__qualname__ = part.__name__ # as in a notebook
        return Mine, mine
    for block, sign in (define(), define()):
        parts.register_block('again', block)
        parts.register_quantizer('again', sign)
    assert parts.blocks['again'] is block and parts.quantizers['again'].f is sign
    with pytest.raises(ValueError, match='there already'): parts.register_block('again', Plain)

class ReadsAgain(nn.Module):
    "an activation whose input is read once more, as before a convolution"
    inplace = False
    def __init__(self, ni, nf, stride, spec, betas=(1.,)):
        super().__init__()
        if (ni, stride) != (nf, 1): raise ValueError('of one size only')
        self.act, self.sign, self.conv = spec.act(ni), spec.sign(ni), spec.conv(ni, nf, 3, signs=True)
        if self.inplace: self.act.inplace = True
    def forward(self, x): return x + self.conv(self.sign(self.act(x)), .2)

class WritesOver(ReadsAgain): inplace = True

@torch.no_grad()
def test_an_activation_leaves_its_input_to_whoever_reads_it_again():
    "only our own blocks, where nobody does, ask for the memory; a block that writes over it is refused"
    assert parts.check_block(ReadsAgain) == 1
    with pytest.raises(ValueError, match='under a hook: .* writes over a map .* inplace=False'):
        parts.check_block(WritesOver)
    for spec in (Spec(), Spec(own_act=parts.acts['rprelu'])):
        assert not spec.act(8).inplace
        block, x = ReadsAgain(8, 8, 1, spec), torch.randn(2, 8, 4, 4)
        block.act.shift_in.fill_(1.)
        want = x + block.conv(block.sign(block.act(x.clone())), .2)
        assert torch.equal(block(x.clone()), want)
    for own in (dict(), dict(act='rprelu'), dict(act='rprelu', block='react')):
        net = binary_net(**MINI, **own)
        assert all(m.inplace for m in net.modules() if isinstance(m, RPReLU))
