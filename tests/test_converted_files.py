"Networks of other packages, converted: saved and loaded with equal logits, packed or refused by name."
import inspect, json
import numpy as np, pytest, torch
from torch import nn
from bnn_bn.checkpoint import CheckpointError, load_info, load_network, read_tensors, save_network, write_tensors
from bnn_bn.convert import binarize, ledger, remove_bn
from bnn_bn.core.errors import ExportError
from bnn_bn.deploy import load_packed, pack
from bnn_bn.layers.activations import RPReLU
from bnn_bn.layers.signed import ScaleShift, SignConv2d
from bnn_bn.onebit.packable import BOUND
from bnn_bn.signal.start import calibrate, is_fresh

tv = pytest.importorskip('torchvision').models
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet # noqa: E402
from torchvision.models.vgg import VGG, make_layers # noqa: E402

SHAPE = 3, 32, 32

def residual(block, **kwargs):
    torch.manual_seed(0)
    return ResNet(block, [1, 1, 1, 1], num_classes=5, **kwargs)

def vgg(pool=7):
    torch.manual_seed(0)
    net = VGG(make_layers([8, 'M', 16, 16, 'M'], batch_norm=True), num_classes=5, init_weights=False)
    net.avgpool = nn.AdaptiveAvgPool2d(pool)
    net.classifier = nn.Sequential(nn.Linear(16*pool**2, 20), nn.ReLU(), nn.Dropout(), nn.Linear(20, 5))
    return net

class PreAct(nn.Module):
    "x + conv(relu(bn(x))): a norm and an activation before the sign"
    def __init__(self, c):
        super().__init__()
        self.bn, self.act, self.conv = nn.BatchNorm2d(c), nn.ReLU(), nn.Conv2d(c, c, 3, padding=1)
    def forward(self, x): return x + self.conv(self.act(self.bn(x)))

def preact():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), PreAct(8), PreAct(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(8, 5))

def moved(net, shape=SHAPE):
    "the network in evaluation, its norms with the statistics of a batch: signs differ between images"
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d): m.momentum = 1.
    with torch.no_grad(): net.train()(torch.randn(16, *shape))
    return net.eval()

def converted(make, how, side=32):
    net = make()
    if how == 'binarize': return moved(binarize(net, example=(3, side, side)), (3, side, side))
    if how == 'standardize':
        return moved(binarize(net, standardize=True, example=(3, side, side)), (3, side, side))
    return remove_bn(net, binary='both', example=(8, 3, side, side)).eval()

SAVED = [('resnet18', None), ('mobilenet_v2', 'both'), ('mobilenet_v3_small', 'both'), ('shufflenet_v2_x0_5', 'act'),
         ('mnasnet0_5', 'both'), ('squeezenet1_1', 'binarize')]

@pytest.mark.parametrize('name, binary', SAVED)
def test_saved_and_loaded(name, binary, tmp_path):
    "names, weights and logits are those of the network, to the bit"
    torch.manual_seed(0)
    net = tv.get_model(name, weights=None, num_classes=5)
    if binary == 'binarize': net = binarize(net)
    else: net = remove_bn(net, binary=binary, calibrate=False, example=(2, 3, 64, 64))
    x = torch.randn(2, 3, 64, 64)
    again = load_network(save_network(net, tmp_path/'net.safetensors', seed=0))
    with torch.no_grad(): assert torch.equal(again(x), net.eval()(x))
    assert list(again.state_dict()) == sorted(net.state_dict(), key=list(again.state_dict()).index)
    assert load_info(tmp_path/'net.safetensors') == dict(info=dict(seed=0))
    if binary != 'binarize':
        rows, found = ledger(net), ledger(again)
        assert found.loc[rows.index].equals(rows)

def test_loaded_network_trains_and_is_saved_again(tmp_path):
    net = converted(lambda: residual(BasicBlock), 'remove_bn')
    again = load_network(save_network(net, tmp_path/'a.safetensors'))
    again.train()(torch.randn(2, *SHAPE)).square().mean().backward()
    assert all(p.grad is not None for p in again.parameters())
    twice = load_network(save_network(again, tmp_path/'b.safetensors'))
    assert torch.equal(twice(torch.ones(1, *SHAPE)), again.eval()(torch.ones(1, *SHAPE)))
    half = load_network(save_network(net.half(), tmp_path/'c.safetensors'))
    assert next(half.parameters()).dtype == torch.float16

PACKED = dict(basic=lambda: residual(BasicBlock), bottleneck=lambda: residual(Bottleneck),
              wide=lambda: residual(Bottleneck, width_per_group=8), vgg=vgg, vgg1=lambda: vgg(1), preact=preact)

@pytest.mark.parametrize('how', ['remove_bn', 'binarize', 'standardize'])
@pytest.mark.parametrize('name', PACKED)
def test_packed(name, how, tmp_path):
    "logits of the engine are those of the module, within the bound that `pack` states; the file too"
    side = 28 if name == 'vgg' else 32 # whose head looks at 7x7 pixels
    net = converted(PACKED[name], how, side)
    x = torch.randn(6, 3, side, side)
    packed = pack(net, classes=list('abcde'))
    with torch.no_grad(): want = net(x)
    off = (packed(x) - want).abs().amax(1).median()/want.abs().max()
    assert off <= BOUND and want.std(0).max() > 1e-4
    again = load_packed(packed.save(tmp_path/'net.bnn'))
    assert torch.equal(again(x), packed(x)) and again.info['classes'] == list('abcde')
    loaded = load_network(save_network(net, tmp_path/'net.safetensors'))
    assert torch.equal(pack(loaded)(x), packed(x))
    assert {n.op for n in packed.graph.nodes} >= {'bconv', 'conv'}

def of_parts(pool):
    "a shifted PReLU behind a real convolution, a norm without statistics behind a binary one, a pool to a grid"
    torch.manual_seed(0)
    norm = ScaleShift(8)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), RPReLU(8), SignConv2d(8, 8, 3, padding=1), norm, nn.ReLU(),
                        nn.AdaptiveAvgPool2d(pool), nn.Flatten(), nn.Linear(8*pool**2, 5))
    for m in (net[1], norm):
        for p in m.parameters(): p.data.add_(.3*torch.randn_like(p))
    norm.scale.fill_(.7)
    return net.eval()

@pytest.mark.parametrize('pool', [1, 2, 4, 16, 32])
def test_packed_parts(pool):
    "pixels are averaged where the grid divides them"
    net, x = of_parts(pool), torch.randn(6, *SHAPE)
    with torch.no_grad(): want = net(x)
    off = (pack(net)(x) - want).abs().amax(1).median()/want.abs().max()
    assert off <= BOUND and want.std(0).max() > 1e-4

HAS_BIAS = 'bias' in inspect.signature(nn.BatchNorm2d).parameters # in newer torch

@pytest.mark.parametrize('kwargs', [dict(affine=False), dict(bias=False)], ids=str)
def test_norms_without_parameters(kwargs, tmp_path):
    "packed and saved as the numbers that they are"
    if 'bias' in kwargs and not HAS_BIAS: pytest.skip('this torch has no batch norm without a bias')
    norms = nn.BatchNorm2d(8, **kwargs), nn.BatchNorm2d(8, **kwargs)
    net = around(norms[0], nn.ReLU(), SignConv2d(8, 8, 3), norms[1], nn.ReLU())
    for m in norms: m.running_mean.normal_(), m.running_var.uniform_(.5, 2)
    x = torch.randn(6, *SHAPE)
    with torch.no_grad(): want = net(x)
    assert ((pack(net)(x) - want).abs().amax(1).median()/want.abs().max()) <= BOUND
    torch.testing.assert_close(load_network(save_network(net, tmp_path/'net.safetensors'))(x), want)

@pytest.mark.parametrize('norm', [nn.GroupNorm(2, 8, affine=False), nn.GroupNorm(2, 8),
                                  nn.LayerNorm(30, elementwise_affine=False), nn.LayerNorm(30, bias=False)], ids=str)
def test_other_norms_are_saved(norm, tmp_path):
    net, x = around(norm, SignConv2d(8, 8, 3)), torch.randn(2, *SHAPE)
    with torch.no_grad(): want = net(x)
    assert torch.equal(load_network(save_network(net, tmp_path/'net.safetensors'))(x), want)

class Twice(nn.Module):
    "a convolution's output, added to itself"
    def __init__(self):
        super().__init__()
        self.conv = SignConv2d(8, 8, 3)
    def forward(self, x):
        y = self.conv(x)
        return y + y

@pytest.mark.parametrize('binary', ['act', 'both'])
def test_a_file_says_whether_a_network_is_fresh(binary, tmp_path):
    "one that `remove_bn` set on noise can be calibrated on images after it was loaded; a trained one is not fresh"
    net = remove_bn(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3),
                                  nn.BatchNorm2d(8)), binary=binary, example=(8, *SHAPE))
    net.append(nn.Flatten()).append(nn.Linear(8*28*28, 2))
    loaded = load_network(save_network(net, tmp_path/'net.safetensors'))
    assert is_fresh(net) and is_fresh(loaded)
    again = load_network(save_network(loaded, tmp_path/'again.safetensors'))
    images = torch.rand(16, *SHAPE)
    assert calibrate(again, images).equals(calibrate(net, images)) and not is_fresh(again)
    assert not is_fresh(load_network(save_network(again, tmp_path/'again.safetensors')))

def test_a_grid_that_does_not_divide():
    with pytest.raises(ExportError, match=r'pools \(32, 32\) pixels to \(3, 3\)'):
        pack(of_parts(3))

def test_other_sizes():
    "a mean takes any size; a head that looks at 7x7 pixels takes its own, and says so"
    net, larger = converted(PACKED['basic'], 'binarize'), torch.randn(3, 3, 64, 48)
    torch.testing.assert_close(pack(net)(larger), net(larger).detach(), rtol=1e-3, atol=1e-4)
    packed = pack(converted(vgg, 'binarize', 28))
    with pytest.raises(ValueError, match='is the last and makes a map of'): packed(torch.zeros(1, 3, 56, 56))

class Cat(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = SignConv2d(8, 8, 3, padding=1)
    def forward(self, x): return torch.cat([x, self.conv(x)], 1)

class Gate(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = SignConv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
    def forward(self, x): return x*self.fc(self.conv(x).mean((2, 3), keepdim=True)).sigmoid()

class Alone(nn.Module):
    "a sum of two pools"
    def __init__(self):
        super().__init__()
        self.conv, self.pool = SignConv2d(8, 8, 3, padding=1), nn.MaxPool2d(2)
    def forward(self, x):
        return self.pool(x) + self.pool(self.conv(x))

class Late(nn.Module):
    "an activation that a pool reads, behind a value that something else reads, too"
    def __init__(self):
        super().__init__()
        self.conv, self.relu, self.pool = SignConv2d(8, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 1, 1)
    def forward(self, x):
        y = self.conv(x)
        return self.pool(self.relu(y)) + y

def around(*middle, channels=8):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), *middle, nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(channels, 5)).eval()

REFUSED = dict(
    groups=(lambda: around(SignConv2d(8, 8, 3, groups=2)), '1 is a convolution of 2 groups'),
    depthwise=(lambda: around(SignConv2d(8, 8, 3, groups=8)), '1 is a convolution of 8 groups'),
    cat=(lambda: around(Cat(), channels=16), 'a concatenation'),
    gate=(lambda: around(Gate()), 'a sigmoid, as of a gate'),
    mirror=(lambda: around(SignConv2d(8, 8, 3, padding=1, padding_mode='reflect')), "1 has padding_mode='reflect'"),
    sides=(lambda: around(SignConv2d(8, 8, (1, 3), padding=(0, 1))), '1: groups or unequal sides'),
    act=(lambda: around(SignConv2d(8, 8, 3), nn.GELU()), '2 is a GELU'),
    softmax=(lambda: around(SignConv2d(8, 8, 3)).append(nn.Softmax(1)), '5 is a Softmax'),
    real=(lambda: around(SignConv2d(8, 8, 3, binary='act')), '1: its weights are real'),
    image=(lambda: nn.Sequential(SignConv2d(3, 8, 3), *around()[1:]), '0 takes signs of the image'),
    overlap=(lambda: around(SignConv2d(8, 8, 3), nn.AvgPool2d(3, 2)), '2 is an average pool of overlapping'),
    ceil=(lambda: around(SignConv2d(8, 8, 3), nn.MaxPool2d(2, ceil_mode=True)), '2 is a pool with ceil_mode'),
    grid=(lambda: around(SignConv2d(8, 8, 3), nn.AdaptiveAvgPool2d(2)), r'2 makes \(2, 2\) pixels .* no linear'),
    spread=(lambda: around(nn.AdaptiveAvgPool2d(1), nn.AdaptiveAvgPool2d(4), SignConv2d(8, 8, 3)),
            r'2 makes \(4, 4\) pixels'),
    twice=(lambda: around(Twice()), 'adds values of which none'),
    batch=(lambda: around(SignConv2d(8, 8, 3), nn.BatchNorm2d(8, track_running_stats=False)),
           '2 has no running statistics'),
    batch_first=(lambda: around(nn.BatchNorm2d(8, track_running_stats=False), SignConv2d(8, 8, 3)),
                 '1 has no running statistics'),
    alone=(lambda: around(Alone()), 'adds values of which none'),
    late=(lambda: around(Late()), 'reads a ReLU that follows no convolution alone'),
    linear=(lambda: nn.Linear(3, 3), 'Linear is no BinaryNet'),
    plain=(lambda: tv.resnet18(), 'ResNet is no BinaryNet'))

@pytest.mark.parametrize('name', REFUSED)
def test_refused_by_name(name):
    make, words = REFUSED[name]
    with pytest.raises(ExportError, match=words): pack(make())

def test_not_finite_and_hooks():
    net = around(SignConv2d(8, 8, 3))
    net[1].register_forward_hook(lambda m, args, out: 2*out)
    with pytest.raises(ExportError, match='1 has a hook'): pack(net)
    with pytest.raises(CheckpointError, match='1 has a hook'): save_network(net, 'x')
    net = around(SignConv2d(8, 8, 3))
    net[1].weight.data[0] = torch.nan
    with pytest.raises(ExportError, match='1.weight is not finite'): pack(net)

def test_numbers_are_compared(monkeypatch):
    "a fold that forgets an activation is found by its logits"
    net = around(SignConv2d(8, 8, 3), nn.LeakyReLU(.5))
    monkeypatch.setattr('bnn_bn.onebit.fold_steps._as_prelu', lambda call: nn.Identity())
    with pytest.raises(ValueError, match='answers otherwise'): pack(net)

# Files of strangers: the header is rightly signed, and lies.

def lie(change, tmp_path):
    "a saved network whose description was changed, and what loading says"
    net = around(SignConv2d(8, 8, 3))
    file = save_network(net, tmp_path/'net.safetensors')
    tensors, head = read_tensors(file)
    head.pop('version')
    change(head['network'])
    write_tensors(file, tensors, **json.loads(json.dumps(head)))
    with pytest.raises(CheckpointError, match='net.safetensors') as e: load_network(file)
    return str(e.value)

def set_step(**kw): return lambda net: net['steps'][1].update(kw)
def set_layer(kind, notes=None, **args):
    spec = dict(type=kind, args=args, notes=notes or {})
    return lambda net: net['layers'].__setitem__(1, ['1', spec])

LIES = [set_step(kind='function', target='os.system'), set_step(kind='method', target='__class__'),
        set_step(kind='module', target='9'), set_step(kind='exec'), set_step(args=[dict(v=99)]),
        set_step(args=[dict(v=-1)]), set_step(args=[dict(v=True)]), set_step(args=[dict(v='0')]),
        set_layer('eval'), set_layer('Linear', in_features=10**9, out_features=10**9),
        set_layer('SignConv2d', in_channels=8, out_channels=8, kernel_size=3, quantizer='no'),
        set_layer('NFConv2d', dict(forward=1), in_channels=8, out_channels=8, kernel_size=3),
        lambda net: net.update(steps=[]), lambda net: net.update(layers=[]), lambda net: net.pop('steps'),
        lambda net: net['layers'].append(['forward', dict(type='ReLU', args={})]),
        lambda net: net['layers'].append(['', dict(type='ReLU', args={})]),
        lambda net: net.update(image_shape='big'), lambda net: net.update(steps=[1, 2])]

@pytest.mark.parametrize('i', range(len(LIES)))
def test_lying_headers(i, tmp_path): assert lie(LIES[i], tmp_path)

def test_weights_are_checked(tmp_path):
    net = around(SignConv2d(8, 8, 3))
    file = save_network(net, tmp_path/'net.safetensors')
    tensors, head = read_tensors(file)
    head.pop('version')
    for wrong in (dict(tensors, more=torch.ones(1)), {k: v for k, v in tensors.items() if k != '1.weight'},
                  dict(tensors, **{'1.weight': torch.ones(2, 2)})):
        write_tensors(file, wrong, **head)
        with pytest.raises(CheckpointError): load_network(file)

def test_other_classes_are_refused(tmp_path):
    file = save_network(around(SignConv2d(8, 8, 3)), tmp_path/'net.safetensors')
    assert load_network(file, n_out=5).n_out == 5
    for given in (dict(n_out=7), dict(in_chans=1)):
        with pytest.raises(CheckpointError, match='replace the layer yourself'): load_network(file, **given)

def test_wrapped_and_training(tmp_path):
    "what wraps a network is taken off; a network in training stays so"
    net = around(SignConv2d(8, 8, 3)).train()
    again = load_network(save_network(nn.DataParallel(net), tmp_path/'net.safetensors'))
    assert net.training and not again.training
    x = torch.randn(2, *SHAPE)
    assert np.array_equal(again(x).detach(), net.eval()(x).detach())

@torch.no_grad()
@pytest.mark.parametrize('share', ['layer', 'weight'])
def test_a_layer_at_several_places(share, tmp_path):
    "is saved and packed as it answers"
    torch.manual_seed(0)
    first, second = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
    parts = first, nn.ReLU(), first if share == 'layer' else second, nn.ReLU()
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
    x = torch.randn(4, 3, 16, 16)
    net = binarize(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), *parts, *head), example=x).eval()
    net[4].weight = net[2].weight
    assert torch.equal(load_network(save_network(net, tmp_path/'n.safetensors'))(x), net(x))
    torch.testing.assert_close(pack(net, images=x)(x), net(x), rtol=1e-4, atol=1e-4)
