"Small functions at their edges: what each refuses by name, and what a training alone would reach."
import json, signal
from functools import partial
from pathlib import Path
from types import SimpleNamespace
import numpy as np, pytest, torch
from fastai.basics import OptimWrapper
from fastai.torch_core import TensorImage
from PIL import Image, ImageOps
from torch import nn
from bnn_bn import commands
from bnn_bn.core.errors import CheckpointError, DataError, ExportError
from bnn_bn.deploy import pack
from bnn_bn.export import assert_norm_free, graph_of, to_onnx
from bnn_bn.images.pictures import Preparation, check_info, read_picture, split_pictures
from bnn_bn.images.protocol import ShardedDL, checked_tensors, picture_set
from bnn_bn.models import BinaryNet, binary_net
from bnn_bn.onebit.fold import fold
from bnn_bn.onebit.graph import write_bnn
from bnn_bn.onebit.packable import as_packable, check_logits, noise_images
from bnn_bn.optim import OptFunc
from bnn_bn.train.failures import or_nothing, readable, set_threads
from bnn_bn.train.plan import choose_amp, choose_compiled, span
from bnn_bn.train.recipes import make_recipe
from bnn_bn.train.resume import Interrupted
from bnn_bn.train.sizes import SmallFirst


def refused(match, kind=ValueError): return pytest.raises(kind, match=match)

def net(**options):
    torch.manual_seed(0)
    options = dict(width=.25, n_out=3, stem='cifar') | options
    return binary_net('reactnet_mini', **options).eval()


# Pictures ----------------------------------------------------------------------------------------

def slope(h, w):
    "grey levels that grow evenly to the right and downwards"
    rows, cols = np.mgrid[:h, :w]
    return Image.fromarray((255*(rows/h + cols/w)/2).astype(np.uint8))

def test_a_huge_size_is_never_made():
    "the cut out of 16 million pixels is resized alone: the same middle"
    small, huge = (Preparation((8, 8), 1, 'crop', resized=r) for r in (3100, 3300))
    a, b = (p(slope(50, 60)).astype(int) for p in (small, huge))
    assert a.shape == b.shape == (8, 8, 1) and abs(a - b).max() <= 1
    tall = Preparation((8, 8), 1, 'crop', resized=(4000, 3000))(slope(50, 60))
    assert abs(tall.astype(int) - a).max() <= 2


def test_a_picture_whose_exif_is_damaged_is_taken_as_it_lies(monkeypatch):
    def fail(im): raise SyntaxError('not a TIFF file')
    monkeypatch.setattr(ImageOps, 'exif_transpose', fail)
    assert (np.array(read_picture(slope(4, 6), 1)) == np.array(slope(4, 6))).all()


def test_arrays_of_other_channels_pass_as_they_are():
    p, x = Preparation((4, 6), 5), np.zeros((4, 6, 5), np.uint8)
    assert (p(x) == x).all()
    for bad in (x[:3], x[..., :3], slope(4, 6)):
        with refused(r'of 5 channels, arrays \(4,6,5\)'): p(bad)


@pytest.mark.parametrize('options, word', [
    (dict(resized=7, method='crop'), 'resized=7: at least size='), (dict(filter='x'), "filter='x'"),
    (dict(border=4), 'with border=4'), (dict(method='x'), 'method')])
def test_preparations_that_are_none(options, word):
    with refused(word): Preparation((8, 8), **options)


def test_what_a_file_says_of_its_pictures():
    for info, word in ((dict(classes=['a']), 'classes: 1 names, the network has 2'),
                       (dict(mean=.5), 'give both or neither'), (dict(channels=1), 'channels=1: '),
                       (dict(mean=[.1, .2], std=1), r'mean=\[0.1, 0.2\]: 3 finite'),
                       (dict(mean=0, std=np.nan), 'std=.*3 finite'),
                       (dict(mean=0, std=[1, 0, 1]), 'std=.*above 0')):
        with refused(word): check_info(info, 3, 2)
    assert check_info(dict(mean=0, std=[1, 2, 3], size=8), 3, 2) == dict(
        mean=[0., 0., 0.], std=[1., 2., 3.], size=[8, 8], channels=3)


def test_channels_that_come_first():
    for shape in ((3, 8, 8), (4, 8, 8)):
        with refused('channels last are needed'): split_pictures(np.zeros(shape, np.uint8), 3)
    with refused(r'of shape \(8, 8\): \(channels,H,W\)'): read_picture(torch.zeros(8, 8), 3)


# Loaders -----------------------------------------------------------------------------------------

@pytest.mark.parametrize('attributes, word', [
    (dict(shard=(2, 2)), 'rank must be from 0 to 1'), (dict(shard=(-1, 2)), 'rank must be'),
    (dict(shard=(0, 3)), 'cannot be dealt to 3 processes'), (dict(first=-1), 'first=-1'),
    (dict(first=4), 'an epoch has 3 batches')])
def test_shares_of_a_batch_that_cannot_be(attributes, word):
    dl = ShardedDL(list(range(12)), bs=4, drop_last=True)
    for k, v in attributes.items(): setattr(dl, k, v)
    with refused(word): list(dl)

def test_classes_of_pairs():
    "numbers, or names that are known"
    items = picture_set([(0, 1), (0, 'a'), (0, 'c'), 0], [lambda o: 0], ['a', 'b'])
    assert [int(items[i][1]) for i in (0, 1)] == [1, 0]
    with refused("class 'c': known are a, b"): items[2]
    with refused(r'pairs \(picture, class\)'): items[3]
    x, y = torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.tensor([0, 1])
    with refused('vocab: a name stands there twice'): checked_tensors(x, y, x, y, ['a', 'a'])
    with refused('xv: images of shape'): checked_tensors(x, y, x[..., :3], y, ['a', 'b'])


@pytest.mark.parametrize('epoch, side', enumerate((8, 8, 16, 16, 32, 32)))
def test_pictures_grow(epoch, side):
    "an even picture stays even; one of the right size is left alone"
    cb, x = SmallFirst((8, 16, 32)), torch.full((2, 3, 32, 32), .25)
    cb.learn = SimpleNamespace(epoch=epoch, n_epoch=6, xb=(x, 'more'))
    cb.before_batch()
    small, more = cb.learn.xb
    assert small.shape == (2, 3, side, side) and more == 'more'
    assert torch.allclose(small, x[..., :side, :side]) and (small is x) == (side == 32)

def test_sizes_that_are_none():
    for sizes in ((), (0,), (8, -1), (8., 16)):
        with refused('sizes'): SmallFirst(sizes)


# Commands ----------------------------------------------------------------------------------------

def test_an_interrupted_command_says_how_to_go_on(capsys):
    "exit 130, as a shell expects; a signal counts as Ctrl-C"
    def term(): signal.raise_signal(signal.SIGTERM)
    def stop(e): raise e
    for act, options, words in (
            (partial(stop, Interrupted('stopped in 1')), (), 'x: stopped in 1; --resume goes on'),
            (partial(stop, KeyboardInterrupt()), ['resume'], 'x: stopped; --resume goes on from'),
            (partial(stop, KeyboardInterrupt()), (), 'x: stopped'), (term, (), 'x: stopped'),
            (partial(stop, KeyboardInterrupt('why')), ['resume'], 'x: why')):
        with pytest.raises(SystemExit) as e, readable('x', options=options): act()
        assert e.value.code == 130
        said = capsys.readouterr().err
        assert said.startswith(words) and 'Traceback' not in said
    with pytest.raises(SystemExit), readable('x', debug=True): stop(KeyboardInterrupt())
    assert 'Traceback' in capsys.readouterr().err


def test_errors_in_one_line(capsys):
    "ours and those of files; others keep their traceback"
    with refused('^x: n.txt: no', SystemExit), readable('x'): raise FileNotFoundError('n.txt: no')
    with refused('^x: --amp half: no', SystemExit), readable('x', options=['amp']):
        raise CheckpointError("amp='half': no")
    with refused('threads=-1', SystemExit), readable('x', debug=True): set_threads(-1)
    assert 'Traceback' in capsys.readouterr().err
    with refused('not ours'), readable('x'): raise ValueError('not ours')


def test_threads():
    before = torch.get_num_threads()
    for none in (None, 0): set_threads(none)
    assert torch.get_num_threads() == before
    set_threads(before)
    with refused('threads=-1: at least 1'): set_threads(-1)


def test_an_error_leaves_no_half_written_folder(tmp_path):
    "what is new goes, what was there stays; a run that could go on keeps all"
    out = tmp_path/'a'/'b'
    with refused('x', KeyError), or_nothing(out):
        (out/'sub').mkdir(parents=True)
        (out/'f').touch()
        (out/'sub'/'g').touch()
        raise KeyError('x')
    assert not (tmp_path/'a').exists()
    out.mkdir(parents=True)
    for name in ('old', 'replaced'): (out/name).touch()
    with refused('x', KeyError), or_nothing(out, ['replaced', 'none']):
        assert not (out/'replaced').exists()
        for name in ('new', 'replaced'): (out/name).touch()
        raise KeyError('x')
    assert [p.name for p in out.iterdir()] == ['old']
    with refused('x', KeyError), or_nothing(out):
        for name in ('new', 'state-1.safetensors'): (out/name).touch()
        raise KeyError('x')
    assert len(list(out.iterdir())) == 3


def test_choices_of_a_run(monkeypatch):
    from bnn_bn.train import plan
    assert [choose_amp(a, 'cpu') for a in ('bf16', 'fp16', 'none', '')] == ['bf16', 'fp16', '', '']
    for fast, want in ((True, 'bf16'), (False, '')):
        monkeypatch.setattr(plan, 'bf16_is_fast', lambda device, fast=fast: fast)
        assert choose_amp('auto', 'cpu') == want and choose_amp('auto', 'mps') == ''
    with refused("amp='half': allowed are"): choose_amp('half', 'cpu')
    r = make_recipe('fashion')
    with refused("compiled='maybe': allowed are"): choose_compiled('maybe', r, None)
    for no in ('no', False): assert choose_compiled(no, r, None) == (False, 'not compiled')
    monkeypatch.setattr(plan, 'has_compiler', lambda: True)
    for yes in ('yes', True): assert choose_compiled(yes, r, None) == (True, 'compiled')
    monkeypatch.setattr(plan, 'num_distrib', lambda: 2)
    assert choose_compiled('auto', r, None)[0] is False
    monkeypatch.setattr(plan, 'num_distrib', lambda: 0)
    class Gain:
        pays = True
        def __str__(self): return 'it pays'
    monkeypatch.setattr(plan, 'payback', lambda *args: Gain())
    assert choose_compiled('auto', r, None) == (True, 'it pays')
    monkeypatch.setattr(plan, 'has_compiler', lambda: False)
    assert choose_compiled('yes', r, None)[0] is False

def test_times_for_people():
    times = {89: '89 s', 90: '2 min', 5399: '90 min', 5400: '1.5 h', 48*3600: '2.0 days'}
    assert {s: span(s) for s in times} == times


class Timed:
    "a rival whose calls take so many seconds"
    def __init__(self, name, seconds, error=None):
        self.name, self.seconds, self.error, self.first, self.stopped = name, seconds, error, .5, 0
    def start(self, threads): return self
    def run(self, n): return [self.seconds]*n
    def stop(self): self.stopped += 1

@pytest.fixture
def packed(tmp_path):
    file = tmp_path/'net.bnn'
    write_bnn(fold(net()), file)
    return file

def test_a_comparison_is_printed_drawn_and_kept(packed, tmp_path, monkeypatch, capsys):
    "all are stopped; an error of one is a line of the table"
    rivals = [Timed('ours', .001), Timed('other', .004), Timed('gone', 1, 'it is not installed')]
    asked = []
    def usual(*args): asked.append(args); return rivals
    monkeypatch.setattr(commands, 'usual_rivals', usual)
    out = tmp_path/'rows.json'
    commands.bnn_bench(str(packed), batch=2, rounds=3, out=str(out))
    assert asked == [(str(packed), (32, 32), 2, 1, ['packed', 'eager', 'compiled', 'onnx'])]
    assert [r.stopped for r in rivals] == [1, 1, 1]
    report = json.loads(out.read_text())
    assert [r.get('images_per_second') for r in report['rows']] == [2000, 500, None]
    assert report['rows'][1]['times_first'] == pytest.approx(4) and out.with_suffix('.png').exists()
    said = capsys.readouterr().out
    assert '4.00 x the first' in said and 'it is not installed' in said and '32x32 pixels' in said
    with refused('rows.json: is there already; --force', SystemExit):
        commands.bnn_bench(str(packed), out=str(out))
    for words, option in (('--only nine: allowed', dict(only='nine')), ('--batch 0', dict(batch=0)),
                          ('--rounds 0', dict(rounds=0)), ('--size -1', dict(size=-1))):
        with refused(words, SystemExit): commands.bnn_bench(str(packed), **option)
    with refused('none.bnn: no such file', SystemExit): commands.bnn_bench('none.bnn')


@pytest.mark.parametrize('gone', [(0,), (0, 1), (1, 2), (0, 1, 2)], ids=str)
def test_a_comparison_without_some_of_its_runtimes(gone, packed, tmp_path, monkeypatch, capsys):
    "is with the first that came up, or of nothing; the reasons of the others are said"
    rivals = [Timed('abc'[i], .001*2**i, f'reason {i}' if i in gone else None) for i in range(3)]
    monkeypatch.setattr(commands, 'usual_rivals', lambda *args: rivals)
    out = tmp_path/'rows.json'
    commands.bnn_bench(str(packed), rounds=1, out=str(out))
    said, rows = capsys.readouterr().out, json.loads(out.read_text())['rows']
    assert all(f'reason {i}' in said for i in gone) and {r['name'] for r in rows} == {*'abc'}
    measured = [r for r in rows if 'seconds' in r]
    assert [round(r['times_first']) for r in measured] == [2**i for i in range(3 - len(gone))]
    assert out.with_suffix('.png').exists() == bool(measured)

def test_pictures_of_words(tmp_path):
    for name in ('b.png', 'a.JPG'): slope(4, 4).save(tmp_path/name, format='png')
    (tmp_path/'notes.txt').touch()
    empty = tmp_path/'empty'
    empty.mkdir()
    found = commands._pictures([str(tmp_path), str(tmp_path/'b.png')])
    assert [Path(name).name for name, _ in found] == ['a.JPG', 'b.png', 'b.png']
    with refused('no such picture or folder', FileNotFoundError): commands._pictures(['none.png'])
    with refused('no picture in this folder', DataError): commands._pictures([str(empty)])
    with refused('^f: odd', DataError), commands._of('f'): raise ValueError('odd')
    with refused('^f is odd', DataError), commands._of('f'): raise ValueError('f is odd')

def test_forms_of_an_export(packed, tmp_path):
    with refused('the ending says the form', SystemExit):
        commands.bnn_export(str(packed), str(tmp_path/'net.txt'))
    for out, web in ((None, None), (str(tmp_path/'net.c'), str(tmp_path/'web'))):
        with refused('not both or none', SystemExit): commands.bnn_export(str(packed), out, web)


# Networks that cannot be packed ------------------------------------------------------------------

def with_head(*layers):
    model = net()
    model.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), *layers)
    return model.eval()

def changed(change):
    model = net()
    change(model)
    return model

class Derived(BinaryNet): pass

def derive(model): model.__class__ = Derived
def reorder(model): model.body._modules['stem'] = model.body._modules.pop('stem')

CANNOT = {
    'head is a Linear': lambda m: setattr(m, 'head', nn.Linear(3, 3)),
    'head holds AdaptiveAvgPool2d, Flatten, Linear, Tanh': lambda m: m.head.append(nn.Tanh()),
    r'head pools to \(2, 2\)': lambda m: setattr(m.head[0], 'output_size', (2, 2)),
    'body.block1.act is a PReLU, where a': lambda m: setattr(m.body.block1, 'act', nn.PReLU()),
    'body.block2 is missing': lambda m: delattr(m.body, 'block2'),
    'body.more is a ReLU, where none': lambda m: m.body.add_module('more', nn.ReLU()),
    'the modules of the body stand in another order': reorder,
    'Derived is derived from BinaryNet': derive,
    'body.block1 has a hook': lambda m: m.body.block1.register_forward_hook(print),
    'body.block1 has a forward of its own': lambda m: setattr(m.body.block1, 'forward', print),
    'the network has body, head, tail': lambda m: m.add_module('tail', nn.ReLU()),
    'body.stem.conv is a Linear': lambda m: setattr(m.body.stem, 'conv', nn.Linear(3, 3)),
    "body.stem.conv has padding='same'":
        lambda m: setattr(m.body.stem, 'conv', nn.Conv2d(3, 16, 3, padding='same'))}

@pytest.mark.parametrize('word', CANNOT)
def test_networks_that_cannot_be_packed(word):
    "each is refused by the name of the part"
    with refused(f'^{word}', ExportError): as_packable(changed(CANNOT[word]))

def test_a_network_of_others():
    with refused('^Linear is no BinaryNet', ExportError): as_packable(nn.Linear(2, 2))
    with refused('^Linear is no BinaryNet and has no SignConv2d or NFConv2d', ExportError): pack(nn.Linear(2, 2))


def test_heads_and_stems_that_can():
    "a plain convolution, no bias, and dropout and nested parts, which leave no trace"
    fc = nn.Linear(16, 3, bias=False)
    hidden = nn.Sequential(nn.Dropout(.5), nn.Linear(32, 16), nn.LeakyReLU(.1))
    model = with_head(hidden, nn.Identity(), fc)
    model.body.stem.conv = nn.Conv2d(3, 16, 5, padding=2, bias=False)
    plain = as_packable(model)
    x = noise_images(model, 2)[..., :16, :16]
    with torch.no_grad(): assert torch.allclose(plain(x), model(x), atol=1e-6)
    assert plain.head.fc.bias.abs().sum() == 0 and fc.bias is None
    assert check_logits(model, pack(model), x) < 1e-4


def test_answers_that_differ_are_found():
    model = net()
    x = noise_images(model, 4)
    assert x.shape == (4, 3, 64, 64) and torch.equal(x, noise_images(model, 4))
    assert check_logits(model, model, x) == 0
    def as_image(x): return TensorImage(model(x)*1.01) # as loaders of fastai give pictures
    for wrong in (lambda x: model(x)*1.01, lambda x: model(x)*torch.nan, as_image):
        with refused('answers otherwise', ExportError): check_logits(model, wrong, x)


def test_reference_rules_can_be_packed_on_demand():
    model = net(rules='reference')
    plain = as_packable(model, zero_is_plus=True)
    assert all(m.zero == 1 for m in plain.modules() if hasattr(m, 'zero'))
    assert any(m.zero == 0 for m in model.modules() if hasattr(m, 'zero'))


# Exports -----------------------------------------------------------------------------------------

def test_whatever_holds_a_graph(packed, tmp_path):
    graph = fold(net())
    assert graph_of(graph) is graph and graph_of(SimpleNamespace(graph=graph)) is graph
    for source in (net(), packed, str(packed)):
        assert len(graph_of(source).nodes) == len(graph.nodes)
    with refused('^int: a trained network'): graph_of(3)
    with refused('a file of weights; load_network'): graph_of(tmp_path/'net.safetensors')


def test_shapes_and_facts_of_an_export():
    graph = fold(net())
    for shape in ((1, 32), (1, 32, 0), (1, 32, 1.5), 'abc', (None, 32, 32)):
        with refused('shape='): to_onnx(graph, shape=shape)
    graph.info['odd'] = {1, 2}
    with refused('graph.info cannot be written as JSON', ExportError): to_onnx(graph)
    graph = fold(net())
    graph.nodes[0].tensors['weight'][0] = np.nan
    with refused('weight'): to_onnx(graph)


def reduction(axes, by_input=True, constant=False):
    "an ONNX model that takes a mean over axes"
    onnx = pytest.importorskip('onnx')
    h, number = onnx.helper, onnx.TensorProto.FLOAT
    nodes, arrays, kw = [], [], {}
    array = onnx.numpy_helper.from_array(np.int64(axes or []), 'axes')
    if not by_input and axes: kw['axes'] = axes
    if by_input and constant: nodes.append(h.make_node('Constant', [], ['axes'], value=array))
    elif by_input: arrays.append(array)
    inputs = ['x', 'axes'] if by_input else ['x']
    nodes.append(h.make_node('ReduceMean', inputs, ['y'], name='mean', **kw))
    x, y = (h.make_tensor_value_info(k, number, None) for k in 'xy')
    graph = h.make_graph(nodes, 'g', [x], [y], arrays)
    return h.make_model(graph, opset_imports=[h.make_opsetid('', 18 if by_input else 13)])

@pytest.mark.parametrize('by_input, constant', [(True, False), (True, True), (False, False)])
def test_a_mean_over_the_images_is_a_norm(by_input, constant):
    "over the batch, or over all; a mean over pixels is a pool"
    def made(axes): return reduction(axes, by_input, constant)
    for axes in ([0], [0, 2, 3], [-4], None):
        with refused('mean.*computes a statistic of the batch', AssertionError):
            assert_norm_free(made(axes))
    assert_norm_free(made([2, 3]))


# Optimizers --------------------------------------------------------------------------------------

def test_what_is_no_optimizer():
    with refused('opt=3: a torch optimizer class'): OptFunc(3)
    with refused(r'learn=None: OptFunc\(opt, learn\) needs its Learner'):
        OptFunc(torch.optim.SGD)([list(net().parameters())], .1)

def test_any_maker_of_an_optimizer():
    "torch's form of groups, fastai's, and one that is built already"
    model = net()
    learn, groups = SimpleNamespace(model=model), [list(model.parameters())]
    def torch_way(groups, lr=None): return torch.optim.SGD(groups, lr=.1)
    for opt in (torch.optim.SGD, partial(torch.optim.SGD, momentum=.9), torch_way,
                OptimWrapper(model.parameters(), torch.optim.SGD, lr=.1)):
        made = OptFunc(opt, learn)(groups, .1)
        found = [p for g in made.opt.param_groups for p in g['params']]
        assert {id(p) for p in found} == {id(p) for p in model.parameters()}
        assert any(g.get('exempt') for g in made.opt.param_groups)
        made.set_hyper('mom', .9)
        made.set_hyper('wd', .3)
        for g in made.opt.param_groups:
            assert g['weight_decay'] == (0 if g.get('exempt') else .3)
    with refused('rho=0.5: SGD has no such setting'): made.set_hyper('rho', .5)

class Wrapped(nn.Module):
    "a network of ours behind what somebody does to pictures"
    def __init__(self):
        super().__init__()
        self.net = net()
    def forward(self, x): return self.net((x - .5)/.25)

def test_a_network_inside_another_is_named():
    with refused('^Wrapped is no BinaryNet, its net is one: pack that; .* mean= and std=', ExportError):
        pack(Wrapped())
