"The weights that come with the package, the way from a run to a card, and what packing refuses."
import csv, itertools, json, re, shutil, subprocess, sys
from fnmatch import fnmatch
from pathlib import Path
import numpy as np, pytest, torch
from torch import nn
from bnn_bn.onebit.graph import from_bytes
from bnn_bn.checkpoint import load_network, save_network
from bnn_bn.core.errors import PackedFormatError
from bnn_bn.deploy import load_packed, pack
from bnn_bn.onebit.fold import FoldedNet, fold
from bnn_bn.models import create_model, list_models, reactnet_nobn
from bnn_bn.onebit.packable import BOUND, check_logits, noise_images
from bnn_bn.signal.start import start_parameters
from bnn_bn.onebit.unpack import compare_graphs, latent_info, unpack
from bnn_bn.weights import LIMIT, PRETRAINED, Card, add_pretrained, card, cards, pretrained_bytes

ROOT = Path(__file__).parent.parent
NAMES = sorted(cards())


def scramble(model, seed):
    "random values where training would put some"
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for n, p in model.named_parameters():
            if any(k in n for k in ('shift', 'slope', 'gain', 'norm')):
                p += .3*torch.randn(p.shape, generator=g)
        for m in model.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.running_mean += .3*torch.randn(m.running_mean.shape, generator=g)
                m.running_var *= torch.rand(m.running_var.shape, generator=g) + .5
    return model.eval()


# The package's own ----------------------------------------

def test_there_is_one():
    assert 'fashion-reactnet_mini' in NAMES and NAMES == list_models(pretrained=True)
    assert sum((PRETRAINED/c.file).stat().st_size for c in cards().values()) <= LIMIT


def test_the_files_are_in_the_wheel():
    setup, manifest = (ROOT/'setup.py').read_text(), (ROOT/'MANIFEST.in').read_text()
    assert "'pretrained/*'" in setup and 'recursive-include bnn_bn/pretrained *' in manifest
    for c in cards().values(): assert fnmatch(f'pretrained/{c.file}', 'pretrained/*')


@pytest.mark.parametrize('name', NAMES)
def test_pretrained_is_packed(name):
    "the same signs, thresholds and scales to the bit; logits within the bound of `pack`"
    net, packed = create_model(name, pretrained=True), load_packed(name)
    rounded = compare_graphs(fold(net), packed.graph)
    weights = {n.name: n.tensors['weight'] for n in packed.graph.nodes if 'weight' in n.tensors}
    real = {name for name, w in weights.items() if w.dtype == np.float32}
    assert set(rounded) <= real - {'fc'}
    assert check_logits(net, packed, noise_images(net)) <= BOUND
    assert not net.training and net.cfg == card(name).config
    assert net.card == card(name) and net.__doc__ == str(card(name))


@pytest.mark.parametrize('name', NAMES)
def test_a_card_is_complete(name):
    c = card(name)
    for k in ('data', 'recipe', 'command', 'cost', 'versions', 'validated_on', 'limits', 'licence',
              'rebuilt'): assert getattr(c, k), k
    assert 0 < c.accuracy_last <= c.accuracy_best <= 1 and c.epochs > 0 and c.hours > 0
    assert load_packed(name).info['accuracy'] == c.accuracy


@pytest.mark.parametrize('name', NAMES)
def test_every_damaged_byte(name, tmp_path):
    shutil.copytree(PRETRAINED, tmp_path/'p')
    file, data = tmp_path/'p'/card(name).file, bytearray(pretrained_bytes(name))
    for i in [0, len(data) - 1, *np.random.default_rng(0).integers(0, len(data), 40)]:
        data[i] ^= 1 << i % 8
        file.write_bytes(data)
        with pytest.raises(ValueError, match=f'{card(name).file}: damaged'):
            pretrained_bytes(name, tmp_path/'p')
        data[i] ^= 1 << i % 8
    file.write_bytes(data)
    assert pretrained_bytes(name, tmp_path/'p') == bytes(data)


def test_a_start_would_not_take_it_for_fresh():
    from bnn_bn.signal.start import is_fresh
    net = create_model('fashion-reactnet_mini', pretrained=True)
    assert start_parameters(net)
    assert not is_fresh(net.reset_classifier(3))
    assert not is_fresh(net.reset_stem(3))


# There and back ----------------------------------------

@pytest.mark.parametrize('seed', range(2))
@pytest.mark.parametrize('name, width', [('reactnet18_nobn', .25), ('reactnet_mini_nobn', 1.),
                                         ('reactnet_mini_bn', .5), ('reactnet_a_nobn', .25)])
def test_pack_of_unpack(name, width, seed):
    "pack(unpack(f)) == f in all arrays, to the bit"
    torch.manual_seed(seed)
    model = scramble(create_model(name, n_out=10, width=width, stem='cifar',
                                  alpha=.25 if seed else .2), seed)
    graph = fold(model, **latent_info(model))
    back = unpack(graph)
    assert compare_graphs(fold(back), graph) == []
    assert check_logits(model, back, noise_images(model, 4)) <= BOUND


@pytest.mark.parametrize('norm, block', itertools.product(('naive', 'bn'), ('bireal', 'react')))
def test_thresholds_without_a_shift_come_back(norm, block):
    "signs that learn no threshold have that of the activation before them, or of the stem's norm"
    torch.manual_seed(0)
    model = scramble(create_model(f'birealnet18_{norm}', n_out=4, width=.125, stem='cifar', block=block,
                                  act='rprelu'), 0)
    graph = fold(model)
    assert compare_graphs(fold(unpack(graph)), graph) == []


@pytest.mark.parametrize('norm', ('nobn', 'naive', 'bn'))
@pytest.mark.parametrize('act', ('prelu', 'none'))
def test_other_activations_come_back(norm, act):
    "each slope of a PReLU is that of the file"
    torch.manual_seed(0)
    model = scramble(create_model(f'reactnet_mini_{norm}', n_out=4, width=.125, stem='cifar', act=act), 0)
    for m in model.modules():
        if isinstance(m, nn.PReLU): nn.init.normal_(m.weight)
    graph = fold(model, **latent_info(model))
    assert compare_graphs(fold(unpack(graph)), graph) == []


def test_what_cannot_come_back_is_said_by_name():
    "a stem's bias that a shortcut mixes; a file whose arrays are not those of its config"
    torch.manual_seed(0)
    graph = fold(scramble(create_model('vgg11_bn', n_out=4, width=.05, stem='cifar', block='xnor'), 0))
    with pytest.raises(PackedFormatError, match='block1.2: bias'): unpack(graph)
    for name in ('reactnet_mini_bn', 'birealnet18_bn'):
        graph = fold(create_model(name, n_out=4, width=.25, stem='cifar').eval())
        graph.info['config']['width'] = .125
        with pytest.raises(PackedFormatError, match='not what its config says'): unpack(graph)


@pytest.mark.parametrize('kind,stem', (('18', 'cifar'), ('mini', 'imagenet')))
def test_a_network_of_the_reference_rules_comes_back(kind, stem):
    "their standardised weights have an eps, which the real kernels of the file do not say"
    torch.manual_seed(0)
    model = scramble(reactnet_nobn(kind, n_out=3, in_chans=1, width=.25, stem=stem, rules='reference'), 0)
    graph = fold(model, zero_is_plus=True)
    back = unpack(graph)
    assert set(compare_graphs(fold(back, zero_is_plus=True), graph)) <= {n.name for n in graph.nodes}
    x = noise_images(model, 4)
    with torch.no_grad(): got, want = (FoldedNet(fold(m, zero_is_plus=True))(x) for m in (back, model))
    assert (got - want).abs().median() < 1e-4*want.abs().max()


@pytest.mark.parametrize('wrap', [nn.DataParallel, lambda m: torch.compile(m, backend='eager')])
def test_latent_weights_of_a_wrapped_network(wrap):
    "the first convolution comes back to the bit"
    model = create_model('reactnet_mini_nobn', n_out=10, width=.25, stem='cifar')
    wrapped = wrap(model)
    back = unpack(pack(wrapped, **latent_info(wrapped)).graph)
    assert torch.equal(back.body.stem.conv.weight, model.body.stem.conv.weight)


def test_a_rebuilt_network_trains():
    net = create_model('fashion-reactnet_mini', pretrained=True).train()
    net(torch.randn(4, 1, 32, 32)).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    assert sum(p.grad.abs().sum() > 0 for p in net.parameters()) > .9*len(list(net.parameters()))


# From a run to a card ----------------------------------------

@pytest.fixture(scope='module')
def added(tmp_path_factory):
    "a run's folder with invented figures, and what the tool makes of it"
    run, folder = tmp_path_factory.mktemp('run'), tmp_path_factory.mktemp('pretrained')
    torch.manual_seed(0)
    model = scramble(reactnet_nobn('mini', n_out=10, in_chans=1, width=.25, stem='imagenet'), 0)
    for which in ('model', 'best'): save_network(model, run/f'{which}.safetensors')
    recipe = dict(data='fashion', model='reactnet_mini', norm='nobn', stem='imagenet', width=.25,
                  bs=64)
    step = dict(step=1, binary='both', last=.61, best=.625, best_epoch=1)
    result = dict(steps=[step], seed=7, command='bnn_train fashion', recipe=recipe,
                  versions=dict(torch='9.9', threads=3, device='cpu'))
    (run/'result.json').write_text(json.dumps(result))
    with open(run/'history.csv', 'w') as f:
        csv.writer(f).writerows([['epoch', 'seconds'], [1, 1800.], [2, 900.]])
    command = [sys.executable, '-W', 'ignore', ROOT/'tools/add_pretrained.py', run, 'test-mini',
               '--folder', folder]
    return command, folder, model, subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def test_tool(added):
    "the figures of the card are those of the run"
    _, folder, model, done = added
    assert done.returncode == 0, done.stderr
    c = card('test-mini', folder)
    assert (c.accuracy_last, c.accuracy_best, c.shipped) == (.61, .625, 'last')
    assert (c.seed, c.epochs, c.hours) == (7, 2, .75)
    assert 'cpu, 3 threads' in c.cost and c.recipe['width'] == .25 and c.config == model.cfg
    graph = from_bytes(pretrained_bytes('test-mini', folder))
    assert graph.info['accuracy'] == .61 and len(graph.info['classes']) == 10
    assert check_logits(model, unpack(graph), noise_images(model)) <= BOUND


def test_tool_replaces_nothing(added, tmp_path):
    command, _, _, done = added
    again = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert again.returncode != 0 and 'is there already' in again.stderr
    command = [*command[:4], tmp_path, *command[5:]] # another run
    none = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=ROOT)
    assert none.returncode != 0 and 'no result.json' in none.stderr
    assert 'Traceback' not in none.stderr


def test_no_room(tmp_path):
    facts = dict(config={}, data='x', accuracy_last=0., accuracy_best=0., shipped='last', epochs=1,
                 seed=0, hours=1., cost='')
    assert isinstance(add_pretrained('a', bytes(LIMIT), tmp_path, **facts), Card)
    with pytest.raises(ValueError, match='more than 8 MB'):
        add_pretrained('b', b'1', tmp_path, **facts)
    add_pretrained('a', b'1', tmp_path, force=True, **facts) # in place of the large one


# The live network is packed, saved and loaded ----------------------------------------

PARTS = { # what is put where in a network of width 16, 16 and 32 with four classes
    'prelu': ('body.block1.act', lambda: nn.PReLU(16)),
    'pool': ('head.pool', lambda: nn.AdaptiveMaxPool2d(1)),
    'dropout': ('head.fc', lambda: nn.Sequential(nn.Dropout(.5), nn.Linear(32, 4))),
    'no_bias': ('head.fc', lambda: nn.Linear(32, 4, bias=False)),
    'two': ('head.fc', lambda: nn.Sequential(nn.Linear(32, 8), nn.Linear(8, 4))),
    'stem': ('body.stem.conv', lambda: nn.Conv2d(1, 16, 5, padding=2)),
    'reflect': ('body.stem.conv', lambda: nn.Conv2d(1, 16, 3, padding=1, padding_mode='reflect')),
    'groups': ('body.block1.conv', lambda: nn.Conv2d(16, 16, 3, padding=1)),
    'norm': ('body.block2.norm', lambda: nn.BatchNorm2d(16))}

def softmax(m): m.head.add_module('softmax', nn.Softmax(1))
def hook(m): m.body.register_forward_hook(lambda m, x, y: y*2)
def pre(m): m.head.fc.register_forward_pre_hook(lambda m, x: (x[0]*2,))
def method(m): m.head.forward = lambda x: x.mean((2, 3))[:, :4]
def alpha(m): m.body.block1.alpha = .9
def weight_norm(m): nn.utils.parametrizations.weight_norm(m.head.fc)
def act_quant(m): m.body.block1.sign.binary = False

OF_THE_OBJECT = hook, pre, method   # not of the network, so that a file need not keep them
CHANGES = {f.__name__: f for f in (softmax, alpha, weight_norm, act_quant, *OF_THE_OBJECT)}
ALL = [*PARTS, *CHANGES]

def changed(how):
    "a network of which a part is another one, or does something else"
    torch.manual_seed(0)
    m = reactnet_nobn('mini', n_out=10, in_chans=1, width=.25, stem='cifar')
    if how in CHANGES: CHANGES[how](m)
    else:
        name, make = PARTS[how]
        m.set_submodule(name, make())
    return m.eval()

@pytest.mark.parametrize('how', ALL)
def test_packed_as_it_is_or_refused(how):
    m, x = changed(how), torch.randn(4, 1, 32, 32)
    try: packed = pack(m)
    except ValueError as e:
        assert how not in ('dropout', 'stem', 'alpha'), e
        return
    with torch.no_grad(): assert (packed(x) - m(x)).abs().max() < 1e-4


@pytest.mark.parametrize('how', [k for k in ALL if CHANGES.get(k) not in OF_THE_OBJECT])
def test_saved_as_it_is_or_refused(how, tmp_path):
    m, x = changed(how), torch.randn(4, 1, 32, 32)
    try: file = save_network(m, tmp_path/'m.safetensors')
    except ValueError as e:
        assert how not in ('dropout', 'stem', 'softmax', 'two', 'no_bias', 'pool', 'reflect'), e
        return
    back = load_network(file)
    with torch.no_grad():
        assert torch.equal(back(x), m(x)), 'saved without a word as another network'
    assert back.cfg == m.cfg

RUNS = {'cifar10-reactnet18': 'results/cifar10_gpu/full-teacher-nobn.json',
        'cifar10-reactnet18-w50': 'results/cifar10_full/half_nobn-0.json',
        'cifar10-reactnet18-w50-bn': 'results/cifar10_full/half_bn-0.json',
        'cifar10-reactnet18-w25': 'results/cifar10_longer/q30-0-nobn-r008.json'}

@pytest.mark.parametrize('name', RUNS)
def test_the_front_page_says_what_was_measured(name):
    "accuracy, bytes, epochs and hours of a network stand there as in its card, and as its run had it"
    text = (ROOT/'README.md').read_text(encoding='utf-8')
    line = next(x for x in text.splitlines() if f'`{name}`' in x)
    said = line[line.index(f'`{name}`'):]
    known, run = cards()[name], json.loads((ROOT/RUNS[name]).read_text(encoding='utf-8'))
    last = run['steps'][-1]
    assert (known.accuracy_last, known.accuracy_best) == (last['last'], last['best'])
    found = re.search(r'(\d+) kB: ([\d.]+) % on .*? after (\d+) epochs, ([\d.]+) hours', said)
    want = (known.size/1e3, 100*known.accuracy_last, known.epochs, run['seconds']/3600)
    places = (0, 1, 0, 1)
    assert found.groups() == tuple(f'{v:.{p}f}' for v, p in zip(want, places))

def test_the_front_page_says_what_the_packed_network_has():
    text = (ROOT/'README.md').read_text(encoding='utf-8')
    again = json.loads((ROOT/'results/cifar10_gpu/float32.json').read_text(encoding='utf-8'))
    accuracy = again['accuracy']['full-teacher-nobn']
    assert f'packed, in float32, it has {100*accuracy:.1f} %' in text

def test_the_full_width_is_meant_and_a_width_that_none_has_is_named():
    net = create_model('reactnet18_nobn', pretrained='cifar10')
    assert net.card.name == 'cifar10-reactnet18' and net.cfg['width'] == 1
    half = create_model('reactnet18_nobn', pretrained='cifar10', width=.5)
    assert half.card.name == 'cifar10-reactnet18-w50'
    with pytest.raises(ValueError, match=r"w50 \(width=0.5\); none of them has width=0.7"):
        create_model('reactnet18_nobn', pretrained='cifar10', width=.7)
