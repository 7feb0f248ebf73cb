"What is refused, and how: each error names what is wrong, and says what mends it."
import copy
import json
import subprocess
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from PIL import Image

from bnn_bn import data
from bnn_bn.checkpoint import load_network, save_network
from bnn_bn.convert import remove_bn
from bnn_bn.core.arguments import check_number
from bnn_bn.core.errors import CheckpointError, DataError, ExportError, PackedFormatError
from bnn_bn.core.files import locked
from bnn_bn.data import fashion_mini
from bnn_bn.deploy import pack
from bnn_bn.layers.activations import RPReLU
from bnn_bn.layers.parts import acts, check_quantizer, register_act
from bnn_bn.learner import bnn_learner
from bnn_bn.models import backbones, binary_net, create_model, register_backbone
from bnn_bn.onebit import engine
from bnn_bn.onebit.graph import Graph, Node
from bnn_bn.onebit.latent import latent_info, restore_latent
from bnn_bn.onebit.stem import int8_stem
from bnn_bn.onebit.unpack import unpack
from bnn_bn.signal.start import calibrate
from bnn_bn.targets import web
from bnn_bn.targets.runtime import needed_modules
from bnn_bn.targets.web import to_web
from bnn_bn.train.demo import bnn_demo
from bnn_bn.train.recipes import make_dls, make_recipe
from bnn_bn.train.runs import list_runs, read_run
from bnn_bn.train.steps import Best, History
from bnn_bn.train.throughput import Throughput
from bnn_bn.weights import add_pretrained


def refused(match, kind=ValueError): return pytest.raises(kind, match=match)

def net(**options):
    torch.manual_seed(0)
    return binary_net('reactnet_mini', **dict(width=.25, n_out=3, stem='cifar') | options).eval()


# Names and arguments --------------------------------------------------------------------------

def test_a_number_beyond_all_floats():
    with refused('alpha=1000.* needed'): check_number(alpha=10**400)

@pytest.mark.parametrize('name', ('two words', 'a-b', '', '1st'))
def test_names_of_backbones(name):
    row = backbones['reactnet_mini']
    with refused('letters, digits and _ are needed'): register_backbone(name, row)

@pytest.mark.parametrize('name', ('a/b', '..\\up', 'two words', ''))
def test_names_of_weights(name, tmp_path):
    with refused('letters, digits, -, _ and . only'): add_pretrained(name, b'', tmp_path)
    assert not any(tmp_path.iterdir())

def test_a_misspelt_argument_of_a_learner():
    dls = fashion_mini(bs=32, n=64, device='cpu')
    with refused("unexpected argument 'weight_decay'.*wd", TypeError):
        bnn_learner(dls, net(n_out=10, in_chans=1), weight_decay=.1)

def test_weights_that_several_names_may_mean():
    with refused('has several, say which: .*none of them has width=0.3'):
        create_model('reactnet18_nobn', pretrained='cifar10', width=.3)

@pytest.mark.parametrize('options', (dict(images=10), dict(holdout=10), dict(valid_images=10)))
def test_small_pictures_only(options, tmp_path):
    for split in ('train', 'val'): (tmp_path/split).mkdir()
    with refused('not for imagenet; leave them out'):
        make_dls(make_recipe('imagenet'), tmp_path, device='cpu', **options)

def test_a_metric_that_is_not_there():
    learn = bnn_learner(fashion_mini(bs=32, n=64, device='cpu'), net(n_out=10, in_chans=1))
    with learn.no_bar(), learn.no_logging(), refused("no metric 'f1' to choose by"):
        learn.fit(1, cbs=Best(monitor='f1'))


# Networks of others ---------------------------------------------------------------------------

def normed(conv, channels=8):
    "a network of others: a convolution, another one, batch norms"
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), conv,
                         nn.BatchNorm2d(channels), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(channels, 2))

def constant():
    conv = nn.Conv2d(8, 8, 3, padding=1)
    nn.init.ones_(conv.weight)
    return conv

CONVS = {
    "padding_mode='reflect'; only zeros": partial(nn.Conv2d, 8, 8, 3, padding_mode='reflect'),
    'not the same on both sides': partial(nn.Conv2d, 8, 8, 4, padding='same'),
    'one weight a filter': partial(nn.Conv2d, 8, 8, 1, groups=8),
    'every filter is constant': constant}

@pytest.mark.parametrize('words', CONVS)
def test_convolutions_that_cannot_be_standardised(words):
    with refused(words): remove_bn(normed(CONVS[words]()), example=torch.randn(8, 3, 16, 16))

class Asking(nn.BatchNorm2d):
    def forward(self, x): return super().forward(x) if x.sum() > 0 else x

class Weighted(nn.Module):
    "a residual sum whose shortcut is weighted in the sum itself"
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
    def forward(self, x): return torch.add(self.norm(self.conv(x)), x, alpha=2)

def shared():
    model = normed(nn.Conv2d(8, 8, 3, padding=1))
    model.insert(3, nn.Conv2d(8, 8, 3, padding=1))
    model[3].weight = model[4].weight
    return model

NETS = {
    'Asking, a batch norm with forward of its own, which cannot be traced':
        lambda: nn.Sequential(normed(nn.Conv2d(8, 8, 3)), nn.Unflatten(1, (2, 1, 1)), Asking(2)),
    'alpha=2; multiply in a step of its own': lambda: normed(Weighted()),
    'ConvTranspose2d: only Conv2d': lambda: normed(nn.ConvTranspose2d(8, 8, 3)),
    'shares a weight with': shared}

@pytest.mark.parametrize('words', NETS)
def test_networks_whose_norms_cannot_be_removed(words):
    with refused(words): remove_bn(NETS[words](), example=torch.randn(8, 3, 16, 16))

@pytest.mark.parametrize('example', (torch.randn(1, 3, 16, 16), (1, 3, 16, 16)))
def test_statistics_of_one_picture(example):
    with refused('example has 1 image; statistics need 2 or more'):
        remove_bn(normed(nn.Conv2d(8, 8, 3)), example=example)


# Files ----------------------------------------------------------------------------------------

@pytest.mark.parametrize('size', ((28, 28), (56, 28), (28, 57)))
def test_a_strip_of_another_size(size, tmp_path):
    Image.new('L', size).save(tmp_path/'strip.png')
    with refused('a strip of .* pixels, expected .*; reinstall', DataError):
        data._read_strip(tmp_path/'strip.png', 2, '')

def test_facts_that_contradict_the_network():
    packed = pack(net(), mean=[.5]*3, std=[.2]*3)
    packed.graph.info['mean'] = [.5]*2
    with refused('info says mean=.*3 finite numbers are needed', PackedFormatError):
        packed.save('nowhere.bnn')

@pytest.mark.parametrize('text, words', (('not base64!', 'no base64'), ('AAAA', 'no base64'),
                                         ('AACAPw==', 'has 1 numbers')))
def test_latent_weights_that_are_none(text, words):
    model = net(norm='nobn')
    latent = copy.deepcopy(latent_info(model)['latent'])
    name = next(iter(latent))
    latent[name]['weight'] = text
    with refused(words, PackedFormatError): restore_latent(model, latent)

@pytest.mark.parametrize('wrong, words', [
    (None, 'latent is a NoneType'), ([1], 'latent is a list'), ({'nope': {}}, "latent: 'nope' is no name of a real"),
    (dict(config=dict(foo=1)), "latent: 'config' is no name"),
    ({'body.stem.conv': None}, 'body.stem.conv is a NoneType'),
    ({'body.stem.conv': dict(nothing='AAAA')}, "'nothing' is no name of its weight"),
    ({'body.stem.conv': dict(weight=5)}, 'body.stem.conv.weight is no base64')], ids=str)
def test_what_is_no_latent(wrong, words):
    "in a network and in a file, whoever wrote it"
    model = net(norm='nobn')
    with refused(words, PackedFormatError): restore_latent(model, wrong)
    graph = pack(model, **latent_info(model)).graph
    with refused(words, PackedFormatError): unpack(replace(graph, info=graph.info | dict(latent=wrong)))

@pytest.mark.parametrize('config', [dict(foo=1), dict(n_out='4'), dict(backbone='nothing')], ids=str)
def test_a_config_that_makes_no_network(config):
    model = net(norm='nobn')
    graph = pack(model).graph
    with refused('config of the file makes no network', PackedFormatError):
        unpack(replace(graph, info=graph.info | dict(config=graph.info['config'] | config)))

class Own(type(net())):
    def forward(self, x): return 2*super().forward(x)

def forward_of_its_own(model): model.__class__ = Own
def hooked(model): model.head.register_forward_hook(lambda *args: None)
def one_weight_more(model): model.register_buffer('more', torch.zeros(1))

@pytest.mark.parametrize('change, words', ((forward_of_its_own, 'Own has a forward of its own'),
                                           (hooked, 'hook'), (one_weight_more, 'more: the conf')))
def test_what_a_file_would_lose(change, words, tmp_path):
    model = net()
    change(model)
    with refused(words, CheckpointError): save_network(model, tmp_path/'net.safetensors')
    assert not any(tmp_path.iterdir())

def test_a_picture_in_place_of_a_network(tmp_path):
    file = tmp_path/'net.safetensors'
    Image.new('L', (8, 8)).save(file, 'PNG')
    with refused('not a', CheckpointError): load_network(file)


# Parts and networks of ours -------------------------------------------------------------------

class SlopeOf(torch.autograd.Function):
    "a sign whose gradient is what is asked for"
    @staticmethod
    def forward(ctx, x, slope):
        ctx.slope = slope
        return torch.where(x >= 0, 1., -1.)
    @staticmethod
    def backward(ctx, grad): return grad*ctx.slope, None

def in_place(x):
    y = SlopeOf.apply(x, 1.)
    if not x.requires_grad: x.data.zero_()
    return y

SIGNS = {'is not finite': lambda x: SlopeOf.apply(x, float('inf')),
         'is 0 everywhere: nothing would train': lambda x: SlopeOf.apply(x, 0.),
         'writes over its input; begin with': in_place}

@pytest.mark.parametrize('words', SIGNS)
def test_signs_that_cannot_be_trained(words):
    with refused(words): check_quantizer(SIGNS[words])

def test_an_activation_that_is_no_module():
    with refused('gives a builtin_function_or_method; a module is needed'):
        register_act('odd', lambda channels: torch.relu)
    assert 'odd' not in acts

def test_ways_of_torch_to_read_a_network():
    "script and fx name what takes it instead; trace does"
    model = net()
    with refused('torch.jit.trace and torch.export.export take it', NotImplementedError):
        torch.jit.script(model)
    with refused('torch.export.export takes it'): torch.fx.symbolic_trace(model)
    x = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(torch.jit.trace(model, x)(x), model(x)) # by other operations

def test_arrays_in_place_of_tensors():
    with refused(r'images are a numpy.ndarray: a torch tensor is needed; torch.as_tensor'):
        net()(numbers(1, 3, 32, 32))

def test_heads_of_any_kind_are_replaced():
    "the last linear layer is; where there is none, the whole head"
    model = net()
    features = model.num_features
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model.head = nn.Sequential(pool, nn.Identity(), nn.Dropout(), nn.Linear(features, 3))
    model.reset_classifier(7)
    assert type(model.head[2]) is nn.Dropout and model.head[3].out_features == 7
    model.head = pool
    assert model.num_features == features


# Starts ---------------------------------------------------------------------------------------

def test_pictures_of_one_colour_hold_no_signal():
    "grey or not: pictures are normalised, so that grey has another number in each channel"
    for channels in (1, 3):
        flat = torch.rand(4, channels, 1, 1).expand(4, 3, 32, 32)
        with refused('every image is of one colour'): calibrate(net(norm='nobn'), flat)

def test_a_start_that_would_not_be_finite_changes_nothing():
    model, x = net(norm='nobn'), torch.randn(4, 3, 32, 32)
    for m in model.modules():
        if isinstance(m, RPReLU): nn.init.constant_(m.slope, 3e38)
    before = copy.deepcopy(model.state_dict())
    with refused('would not be finite: the signal leaves torch.float32'): calibrate(model, x)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


# Runs -----------------------------------------------------------------------------------------

@pytest.mark.parametrize('text', ('', '[]', '{"settings": {}}', '{"settings": {}, "results": 3}',
                                  '{"settings": {}, "results": [{"network": "bn"}]}', '['*9999))
def test_results_of_a_demo_that_are_none(text, tmp_path):
    (tmp_path/'results.json').write_text(text)
    with refused('results.json: not the results of a demo', SystemExit):
        bnn_demo(str(tmp_path), images=128)
    assert (tmp_path/'results.json').read_text() == text

def test_a_demo_with_other_settings_is_kept(tmp_path):
    text = json.dumps(dict(settings={}, results=[], complete=True))
    (tmp_path/'results.json').write_text(text)
    with refused('a demo with other settings is there; --force replaces it', SystemExit):
        bnn_demo(str(tmp_path), images=128)
    assert (tmp_path/'results.json').read_text() == text

QUICK = dict(images=128, epochs=1)

def contents(folder): return {p.name: p.read_bytes() for p in folder.iterdir()}

def test_a_demo_works_alone_in_its_folder(tmp_path):
    words = 'demo', '--only', 'linear', '--images', '128', '--epochs', '1', '--out', str(tmp_path/'demo')
    with locked(tmp_path/'demo'):
        done = subprocess.run([sys.executable, '-m', 'bnn_bn', *words], capture_output=True, text=True)
        assert done.returncode == 1 and 'is running there' in done.stderr
    assert not (tmp_path/'demo').exists()

@pytest.mark.parametrize('config', ('{}', '[', '{"recipe": {}, "demo": false}', None))
@pytest.mark.parametrize('name', ('best.safetensors', 'history.csv', 'state-1.safetensors'))
def test_a_demo_leaves_files_of_something_else(name, config, tmp_path):
    (tmp_path/name).write_text('mine')
    if config: (tmp_path/'config.json').write_text(config)
    before = contents(tmp_path)
    with refused(f'has .*{name} and no results.json, so it is of no demo', SystemExit):
        bnn_demo(str(tmp_path), only='linear', **QUICK)
    assert contents(tmp_path) == before

def test_a_demo_that_was_killed_before_its_first_result_goes_on(tmp_path):
    (tmp_path/'config.json').write_text('{"recipe": {}, "demo": true}')
    (tmp_path/'best.safetensors').write_text('half a network')
    bnn_demo(str(tmp_path), only='linear', **QUICK)
    assert {*contents(tmp_path)} == {'results.json', 'history.csv', 'curves.png'}

def test_a_forced_demo_leaves_nothing_of_the_one_before(tmp_path):
    bnn_demo(str(tmp_path), only='nobn', **QUICK)
    (tmp_path/'notes.txt').touch()
    bnn_demo(str(tmp_path), only='linear', force=True, **QUICK)
    assert {*contents(tmp_path)} == {'results.json', 'history.csv', 'curves.png', 'notes.txt'}

@pytest.mark.parametrize('recipe,history', (('"bread"', None), ('null', None), ('{}', 'a,b\n1,2\n'),
                                            ('{}', 'step,accuracy\n1,much\n'), ('{}', 'step\n1\n'), ('{}', '\udcff')))
def test_a_list_of_runs_passes_over_what_is_none(recipe, history, tmp_path):
    for name, text in dict(foreign=f'{{"recipe": {recipe}}}', own='{"recipe": {"norm": "bn"}}').items():
        (tmp_path/name).mkdir()
        (tmp_path/name/'config.json').write_text(text)
    if history: (tmp_path/'foreign/history.csv').write_text(history, errors='surrogateescape')
    assert [r.folder for r in list_runs(tmp_path)] == [str(tmp_path/'own')]
    with refused('foreign', DataError): read_run(tmp_path/'foreign')

def test_speed_in_a_history_is_what_was_measured():
    "of a `Throughput` where there is one, which knows the loader's share"
    speed, history = Throughput(warmup=0), History()
    learn = bnn_learner(fashion_mini(bs=32, n=128, device='cpu'), net(n_out=10, in_chans=1))
    with learn.no_bar(), learn.no_logging(): learn.fit(1, cbs=[speed, history])
    row, = history.rows
    assert row['images_per_s'] == round(speed.rows[0]['images_per_s'], 1)
    assert row['loader_share'] == round(speed.rows[0]['loader_share'], 4)


# The packed network ---------------------------------------------------------------------------

def numbers(*shape): return torch.randn(shape, generator=torch.Generator().manual_seed(0)).numpy()
def head(i): return Node('conv', (i,), dict(weight=numbers(2, 4, 1, 1), bias=numbers(2)))

def two_readers():
    def conv(): return Node('conv', (0,), dict(weight=numbers(4, 3, 3, 3), bias=numbers(4)))
    return Graph(3, [conv(), conv(), Node('mean', (2,)), head(3)])

def test_stems_that_have_no_eight_bits():
    with refused('all read the image; one convolution may', ExportError):
        int8_stem(two_readers(), .5, .2)

def test_pictures_that_no_memory_holds(monkeypatch):
    "the size that is named is that of the pictures, the step the one that failed"
    def full(*args): raise MemoryError
    packed = pack(net())
    monkeypatch.setattr(engine, 'plan_step', full)
    with refused('images of 16x16 pixels: step 0 .* more memory than there is; use smaller images'):
        packed(torch.zeros(1, 3, 16, 16))

def test_pages_for_grey_and_colour(tmp_path):
    packed = pack(net(in_chans=2), mean=[.5]*2, std=[.2]*2, size=[16, 16])
    with refused('pictures of 2 channels: a page takes grey .1. or', ExportError):
        to_web(packed, tmp_path/'page')
    assert not (tmp_path/'page').exists()


def wide():
    "a filter of more products than a sum of 16 bits holds"
    def conv(n, c): return dict(weight=numbers(n, c, 1, 1), bias=numbers(n))
    signs = np.sign(numbers(4, 1024, 8, 8)).astype(np.int8)
    bits = dict(weight=signs, scale=numbers(4), bias=numbers(4), threshold=numbers(1024))
    nodes = [Node('conv', (0,), conv(1024, 3)), Node('bconv', (1,), bits), Node('mean', (2,)), head(3)]
    return Graph(3, nodes, dict(mean=[.5]*3, std=[.2]*3, size=[8, 8]))

def test_filters_and_pictures_too_large_for_a_page(tmp_path, monkeypatch):
    with refused('a filter of 65536 products; kernels for browsers take at most', ExportError):
        to_web(wide(), tmp_path/'page')
    monkeypatch.setattr(web, 'MOST_MEMORY', 1000)
    packed = pack(net(), mean=[.5]*3, std=[.2]*3, size=[16, 16])
    with refused('of memory would be needed, .* use smaller images', ExportError):
        to_web(packed, tmp_path/'page')
    assert not (tmp_path/'page').exists()


# The runtime ----------------------------------------------------------------------------------

@pytest.mark.parametrize('line, words', (('import torch', 'imports torch when it is imported'),
                                         ('from torch import nn', 'imports torch when')))
def test_a_package_that_a_runtime_does_not_have(line, words, tmp_path):
    root = tmp_path/'ours'
    root.mkdir()
    (root/'__init__.py').touch()
    (root/'first.py').write_text(f'{line}\n')
    with refused(words): needed_modules('ours.first', root)
    with refused('no such module in ours'): needed_modules('ours.none', root)
