"`binarize`: whatever has convolutions becomes 1-bit with its own weights, or is refused by name."
import copy
import pytest, torch, torch.nn.functional as F
from torch import nn
from bnn_bn.convert import binarize, drop_bn, remove_bn, what_changed
from bnn_bn.layers.activations import RPReLU
from bnn_bn.layers.parts import register_quantizer
from bnn_bn.layers.signed import NFConv2d, SignConv2d
from bnn_bn.models import assert_bn_free
from bnn_bn.others.whitened import ShiftNorm2d

tv = pytest.importorskip('torchvision').models

def ending(channels): return nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5)

def small(*middle, channels=8):
    "a stem, what is to be tried, and a head"
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, channels, 3, padding=1), nn.ReLU(), *middle, *ending(channels))

def convs(net): return {n: m for n, m in net.named_modules() if isinstance(m, nn.Conv2d)}

def by_hand(conv, x, standardize, shift):
    "torch's convolution of signs by mean|w| * sign(w), of the filters less their mean if standardised"
    w = conv.weight.detach()
    if standardize: w = w - w.mean((1, 2, 3), keepdim=True)
    plain = copy.deepcopy(conv)
    plain.weight.data = torch.where(w >= 0, 1., -1.).to(w)*w.abs().mean((1, 2, 3), keepdim=True)
    return plain(torch.where(x + shift >= 0, 1., -1.).to(x))

GEOMETRY = [dict(), dict(stride=2), dict(groups=2), dict(groups=8), dict(padding=(0, 2)), dict(dilation=2),
            dict(padding='same'), dict(padding='valid'), dict(padding=1, padding_mode='reflect'),
            dict(padding=2, padding_mode='circular', stride=(2, 1)), dict(bias=False, padding=1)]

@pytest.mark.parametrize('standardize', [False, True])
@pytest.mark.parametrize('geometry', GEOMETRY, ids=str)
@pytest.mark.parametrize('size', [3, (1, 5)], ids=str)
def test_geometry(geometry, standardize, size):
    "all that Conv2d takes, against torch's own convolution"
    if geometry.get('padding_mode') and size != 3: geometry = dict(geometry, padding=(0, 2))
    old = nn.Conv2d(8, 8, size, **geometry)
    new = binarize(small(old), standardize=standardize)[2]
    x = torch.randn(2, 8, 12, 12)
    torch.testing.assert_close(new(x), by_hand(old, x, standardize, new.sign.shift), rtol=1e-4, atol=1e-5)

NETS = dict(resnet18=20, mobilenet_v2=52, mobilenet_v3_small=52, densenet121=120, shufflenet_v2_x0_5=56,
            squeezenet1_1=26, regnet_x_400mf=None)

@pytest.mark.parametrize('name', ['resnet18', 'mobilenet_v2', 'mobilenet_v3_small', 'densenet121', 'squeezenet1_1'])
def test_families(name):
    "weights kept, first and head real, gates real, finite gradients, the network given as it was"
    torch.manual_seed(0)
    net = tv.get_model(name, weights=None, num_classes=5)
    state, kinds, rng = copy.deepcopy(net.state_dict()), [type(m) for m in net.modules()], torch.get_rng_state()
    new = binarize(net)
    assert torch.equal(torch.get_rng_state(), rng) and type(new) is type(net)
    assert [type(m) for m in net.modules()] == kinds
    assert all(torch.equal(a, net.state_dict()[k]) for k, a in state.items())
    assert all(torch.equal(a, new.state_dict()[k]) for k, a in state.items())
    table = what_changed(new)
    assert len(table) == NETS[name] and table.why.iloc[0] == 'first'
    for n, m in convs(new).items(): assert (type(m) is SignConv2d) == (table.why[n] == '')
    gates = [n for n in convs(net) if 'fc1' in n or 'fc2' in n]
    assert set(table.index[table.why == 'single pixel']) == set(gates)
    out = new.train()(torch.randn(4, 3, 64, 64))
    out.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in new.parameters())

def test_thresholds_start_at_the_means():
    "behind a ReLU, where nothing is negative, each channel has both signs; norms have learned nothing"
    net = tv.resnet18(num_classes=5)
    new, seen = binarize(net), {}
    signs = {n: m.sign for n, m in convs(new).items() if type(m) is SignConv2d}
    for n, m in signs.items():
        m.register_forward_hook(lambda m, args, out, n=n: seen.__setitem__(n, out.mean((0, 2, 3))))
    with torch.no_grad(): new.train()(torch.randn(8, 3, 96, 96))
    for n, mean in seen.items(): assert (mean.abs() < 1).float().mean() > .95, n
    assert binarize(net, shift=False).layer1[0].conv1.sign.shift is None
    fresh = binarize(net).state_dict()
    assert not any(fresh[k].any() for k in fresh if k.endswith('num_batches_tracked'))

def test_images_as_example():
    "the thresholds are those of the pictures given"
    torch.manual_seed(0)
    net, pictures = small(nn.Conv2d(8, 8, 3)), torch.rand(16, 3, 20, 20)
    mean = net[:2](pictures).mean((0, 2, 3))
    torch.testing.assert_close(-binarize(net, example=pictures)[2].sign.shift.flatten(), mean)

def test_in_place_keeps_parameters_modes_and_optimizers():
    net = small(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)).eval()
    net[2].weight.requires_grad_(False)
    weight, bias = net[2].weight, net[2].bias
    assert binarize(net, inplace=True) is net
    assert net[2].weight is weight and net[2].bias is bias and not weight.requires_grad
    assert not any(m.training for m in net.modules())

@pytest.mark.parametrize('binary, bits', [('act', 32), ('both', 1)])
def test_kinds(binary, bits):
    net = binarize(small(nn.Conv2d(8, 8, 3)), binary=binary)
    assert net[2].one_bit == binary and what_changed(net).weight_bits.tolist() == [32, bits]
    values = net[2].sign(torch.randn(1, 8, 4, 4)).unique().tolist()
    assert values == [-1, 1]

def test_shared_layer_and_layer_called_twice():
    "one layer at two places becomes one layer at two places"
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.a = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
            self.b, self.fc = self.a, nn.Linear(8, 2)
        def forward(self, x): return self.fc(self.b(self.a(self.stem(x)).relu()).mean((2, 3)))
    net = binarize(Twice())
    assert net.a is net.b and type(net.a) is SignConv2d
    assert len(what_changed(net)) == 2

def test_order_is_that_of_the_calls():
    "the first convolution is the one that reads the image, wherever it was defined"
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.late, self.early, self.fc = nn.Conv2d(8, 8, 3), nn.Conv2d(3, 8, 3), nn.Linear(8, 2)
        def forward(self, x): return self.fc(self.late(self.early(x)).mean((2, 3)))
    with pytest.raises(ValueError, match='example'): binarize(Backwards()) # which channels has an image?
    table = what_changed(binarize(Backwards(), example=(3, 32, 32)))
    assert table.why.to_dict() == dict(late='', early='first')

def test_skip():
    net = tv.resnet18()
    for skip in ('layer1', ['layer1'], lambda n, m: n.startswith('layer1.')):
        why = what_changed(binarize(net, skip=skip)).why
        assert set(why.index[why == 'skip']) == {n for n in why.index if n.startswith('layer1.')}
    assert not what_changed(binarize(net, first=True)).why['conv1']
    for word in ('layer', 'layer1.0.conv', 'layer5'):
        with pytest.raises(ValueError, match=f'skip: no convolution {word!r}'): binarize(net, skip=word)

def test_a_skipped_layer_may_be_anything():
    class Own(nn.Conv2d):
        def forward(self, x): return 2*super().forward(x)
    net = small(Own(8, 8, 3), nn.Conv2d(8, 8, 3))
    with pytest.raises(ValueError, match='2 is a Own'): binarize(net)
    assert type(binarize(net, skip='2')[2]) is Own

def test_acts():
    "one for each ReLU, with as many channels as it sees; a gate's stays"
    net = binarize(tv.resnet18(), act='rprelu')
    assert sum(type(m).__name__ == 'RPReLU' for m in net.modules()) == 9
    gated = binarize(tv.mobilenet_v3_small(), act='prelu')
    assert isinstance(gated.features[1].block[1].activation, nn.ReLU)
    with pytest.raises(ValueError, match=r"act='prelu': layer1.0.relu is called for \[64, 256\]"):
        binarize(tv.resnet50(), act='prelu')

class ChannelsLast(nn.Module):
    "a linear layer for each pixel, as in ConvNeXt"
    def __init__(self, channels):
        super().__init__()
        self.fc, self.act = nn.Linear(channels, channels), nn.GELU()
    def forward(self, x): return self.act(self.fc(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)

def test_acts_where_channels_come_last():
    "such an activation stays: one of ours would have a number for each row"
    net = binarize(small(nn.Conv2d(8, 8, 3), ChannelsLast(8)), act='prelu', example=(3, 32, 32))
    assert type(net[1]) is nn.PReLU and type(net[3].act) is nn.GELU
    assert net(torch.randn(2, 3, 40, 24)).shape == (2, 5)
    alone = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), ChannelsLast(8), *ending(8))
    with pytest.raises(ValueError, match=r"act='prelu': no layer.*works on maps \(B,C,H,W\)"):
        binarize(alone, act='prelu')

def test_own_sign_and_norms():
    class Third(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x): return torch.where(x >= .5, 1., -1.)
        @staticmethod
        def backward(ctx, grad): return grad/3
    register_quantizer('third', Third.apply)
    net = binarize(small(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)), quantizer='third', shift=False, norms=False)
    assert_bn_free(net)
    assert net[2].sign.shift is None
    assert net[2].sign(torch.full((1, 8, 1, 1), .4)).unique().tolist() == [-1]

def test_standardised_starts_as_the_filters_less_their_mean():
    old = nn.Conv2d(8, 4, 3)
    new = binarize(nn.Sequential(nn.Conv2d(3, 8, 3), old, *ending(4)), binary='act', standardize=True)[1]
    assert type(new) is NFConv2d
    kernel, _ = new.kernel()
    torch.testing.assert_close(kernel, old.weight - old.weight.mean((1, 2, 3), keepdim=True))

def test_compiled_and_wrapped():
    net = nn.DataParallel(small(nn.Conv2d(8, 8, 3)))
    assert type(binarize(net)) is nn.Sequential

def hooked():
    net = small(nn.Conv2d(8, 8, 3))
    net[2].register_forward_hook(lambda m, args, out: out)
    return net

WRONG = [(lambda: binarize('net'), 'model is a str'), (lambda: binarize(nn.Linear(2, 2)), 'no Conv2d'),
         (lambda: binarize(small(nn.Conv2d(8, 8, 3)), binary='weights'), "binary='weights'"),
         (lambda: binarize(small(nn.Conv2d(8, 8, 3)), quantizer='sign'), "quantizer='sign'"),
         (lambda: binarize(small(nn.Conv2d(8, 8, 3)), act='relu'), "act='relu'"),
         (lambda: binarize(small()), 'no convolution is left'), (lambda: binarize(hooked()), '2 has a hook'),
         (lambda: binarize(small(nn.ConvTranspose2d(8, 8, 3))), '2 is a ConvTranspose2d'),
         (lambda: binarize(nn.Sequential(nn.Conv3d(3, 4, 3))), 'no Conv2d'),
         (lambda: binarize(small(nn.LazyConv2d(8, 3))), '2 is a LazyConv2d'),
         (lambda: binarize(small(nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 3)))), '2 is a Param'),
         (lambda: binarize(binarize(small(nn.Conv2d(8, 8, 3)))), 'quantised already'),
         (lambda: binarize(small(nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 1, groups=8)),
                           standardize=True), '3 has one weight a filter'),
         (lambda: binarize(small(nn.Conv2d(8, 8, 3)), example=(4, 32, 32)), r'\(4, 32, 32\) do not pass'),
         (lambda: what_changed(small()), 'does not come from binarize')]

@pytest.mark.parametrize('call, words', WRONG, ids=[w for _, w in WRONG])
def test_refused(call, words):
    with pytest.raises(ValueError, match=words): call()

def test_refused_in_place_changes_nothing():
    net = small(nn.Conv2d(8, 8, 3), nn.ConvTranspose2d(8, 8, 3))
    kinds = [type(m) for m in net.modules()]
    with pytest.raises(ValueError): binarize(net, inplace=True)
    assert [type(m) for m in net.modules()] == kinds

class Auxiliary(nn.Module):
    "a head in training alone, which needs maps of 5 pixels, that is images of 300"
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, 8, 1), nn.Conv2d(8, 8, 3, 8, 1)
        self.fc, self.aux = nn.Linear(8, 2), nn.Linear(8, 2)
    def forward(self, x):
        y = self.b(self.a(x).relu()).relu()
        out = self.fc(y.mean((2, 3)))
        return (out, self.aux(F.avg_pool2d(y, 5)[:, :, 0, 0])) if self.training else out

def test_the_size_tried_passes_in_training_too():
    "thresholds are measured in training; with none to measure, evaluation says the size"
    net = binarize(Auxiliary(), inplace=True) # as Inception
    assert net.image_shape[1] == 320 and type(net.b) is SignConv2d and len(net.binarized) == 2
    assert binarize(Auxiliary(), shift=False).image_shape[1] == 96

@pytest.mark.parametrize('norms', [True, False])
def test_an_error_while_thresholds_are_measured_changes_nothing(norms):
    "a sign that fails is met late, when all layers are made"
    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            if broken: raise RuntimeError('broken')
            return torch.where(x >= 0, 1., -1.)
        @staticmethod
        def backward(ctx, grad): return grad
    broken = False
    register_quantizer(f'broken{norms}', Broken.apply)
    broken, net = True, small(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    kinds, state = [type(m) for m in net.modules()], copy.deepcopy(net.state_dict())
    with pytest.raises(RuntimeError, match='broken'):
        binarize(net, quantizer=f'broken{norms}', act='prelu', norms=norms, inplace=True)
    assert [type(m) for m in net.modules()] == kinds and not hasattr(net, 'binarized')
    assert all(torch.equal(a, net.state_dict()[k]) for k, a in state.items())

def test_a_skipped_layer_stays_binary_as_it_is():
    "thresholds that were trained, and what the table says of them"
    first = binarize(small(nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)), skip='4')
    nn.init.constant_(first[2].sign.shift, .123)
    second = binarize(first, skip='2')
    assert (second[2].sign.shift == .123).all() and second[4].sign.shift.any()
    table = what_changed(second)
    assert table.kind.tolist() == ['real', 'both', 'both'] and table.weight_bits.tolist() == [32, 1, 1]
    assert table.why.tolist() == ['first', 'skip', '']
    with pytest.raises(ValueError, match='2 is a NFConv2d with real weights'): binarize(small(NFConv2d(8, 8, 3)))

class BNAct(nn.BatchNorm2d):
    "as timm has it"
    def __init__(self, channels):
        super().__init__(channels)
        self.act = nn.PReLU(channels)
    def forward(self, x): return self.act(super().forward(x))

class Behind1d(nn.BatchNorm1d):
    def forward(self, x): return super().forward(x).relu()

@pytest.mark.parametrize('drop', [drop_bn, lambda net: binarize(net, norms=False)])
def test_an_activation_in_the_class_of_a_norm_is_not_dropped(drop):
    net = small(nn.Conv2d(8, 8, 3), BNAct(8), nn.Conv2d(8, 8, 3), ShiftNorm2d(8))
    nn.init.constant_(net[5].shift, 3.)
    nn.init.constant_(net[3].act.weight, -1.)
    new, x = drop(net), torch.randn(2, 8, 5, 5)
    assert_bn_free(new)
    torch.testing.assert_close(new[3](x), x.abs())
    torch.testing.assert_close(new[5](x), x + 24)
    with pytest.raises(ValueError, match='3.2 is a Behind1d'):
        drop(small(nn.Conv2d(8, 8, 3), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), Behind1d(8),
                                                     nn.Unflatten(1, (8, 1, 1)))))

def test_a_dropped_norm_leaves_the_parameters_behind_it():
    net = small(nn.Conv2d(8, 8, 3), BNAct(8))
    slope = net[3].act.weight
    assert binarize(net, norms=False, inplace=True)[3].act.weight is slope
    assert type(binarize(small(nn.Conv2d(8, 8, 3), BNAct(8)), norms=False, act='rprelu')[3].act) is RPReLU

def test_words_skip_transposed_convolutions():
    "the word that the error says"
    net = small(nn.Conv2d(8, 8, 3), nn.ConvTranspose2d(8, 8, 2, 2))
    assert type(binarize(net, skip='3')[3]) is nn.ConvTranspose2d
    with pytest.raises(ValueError, match="no convolution '5'"): binarize(net, skip=['3', '5'])

def test_acts_that_cannot_be_replaced():
    "called as functions, or with a hook: nothing is ignored"
    class Functions(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.fc = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 2)
        def forward(self, x): return self.fc(F.relu(self.b(F.relu(self.a(x)))).mean((2, 3)))
    with pytest.raises(ValueError, match="act='rprelu'.*make them layers"): binarize(Functions(), act='rprelu')
    net = small(nn.Conv2d(8, 8, 3))
    net[1].register_forward_hook(lambda m, args, out: 2*out)
    with pytest.raises(ValueError, match='1 has a hook'): binarize(net, act='rprelu')
    assert len(binarize(net)[1]._forward_hooks) == 1

NO_EXAMPLES = [(32, 'example=32'), ((3, 3), r'example=\(3, 3\)'), (torch.ones(3, 32, 32), r'a tensor of shape \(3, 32'),
               (torch.ones(4, 3, 32, 32).byte(), 'uint8'), (torch.full((4, 3, 32, 32), torch.nan), 'NaN'),
               (torch.ones(1, 3, 32, 32), 'example has 1 image')]

@pytest.mark.parametrize('example, words', NO_EXAMPLES, ids=[w for _, w in NO_EXAMPLES])
@pytest.mark.parametrize('door', [binarize, remove_bn])
def test_no_examples(door, example, words):
    "both doors refuse the same"
    with pytest.raises(ValueError, match=words):
        door(small(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)), example=example)

@pytest.mark.parametrize('shape', [(3, 32, 32), [3, 32, 32], (1, 3, 32, 32), torch.Size((8, 3, 32, 32))])
def test_shapes_as_example(shape):
    assert binarize(small(nn.Conv2d(8, 8, 3)), example=shape).image_shape == (3, 32, 32)

def test_it_learns():
    "a few steps on what can be learned lower the loss"
    torch.manual_seed(0)
    net = binarize(small(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()))
    x, y = torch.randn(64, 3, 12, 12), torch.arange(64) % 5
    x += F.one_hot(y, 5).float().repeat_interleave(3, 1)[:, :12, None].repeat(1, 1, 12)[:, None]
    opt, losses = torch.optim.Adam(net.parameters(), .01), []
    for _ in range(60):
        loss = F.cross_entropy(net(x), y)
        opt.zero_grad(), loss.backward(), opt.step()
        losses.append(loss.item())
    assert losses[-1] < .7*losses[0]

class PreActivated(nn.Module):
    def __init__(self):
        super().__init__()
        self.act, self.conv = nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1)
    def forward(self, x): return x + self.conv(self.act(x))

@torch.no_grad()
def test_an_activation_whose_input_is_read_again():
    "the shifts move what the activation gives, not what the shortcut adds"
    block = binarize(small(PreActivated()), act='rprelu')[2]
    block.act.shift_in.fill_(1.)
    x = torch.randn(2, 8, 6, 6)
    want = x + block.conv(block.act(x.clone()))
    assert torch.equal(block(x.clone()), want)
