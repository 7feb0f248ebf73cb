"Nothing silent: files of strangers, trainings that go wrong, and what is said of them."
import json
import os
import random
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path
import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel
import fastai.callback.progress # noqa: F401, Learner.no_bar
from fastai.basics import Callback, set_seed
from bnn_bn.core import errors
from bnn_bn.core.autocast import Autocast
from bnn_bn.layers.binarize import sign_and_scale
from bnn_bn.checkpoint import load_info, load_model, read_weights, save_model, write_tensors
from bnn_bn.agc import clipped_parameters
from bnn_bn.convert import drop_bn, remove_bn
from bnn_bn.core.files import write_file
from bnn_bn.cost import summary
from bnn_bn.export import assert_norm_free
from bnn_bn.layers.conv import standard_sign
from bnn_bn.models import assert_bn_free, binary_net, decay_groups
from bnn_bn.onebit.fold import fold
from bnn_bn.signal.start import calibrate
from bnn_bn.data import fashion_mini, tensor_dls
from bnn_bn.deploy import classify, load_packed, pack
from bnn_bn.core.errors import CheckpointError, DataError, DivergenceError
from bnn_bn.core.errors import ExportError, PackedFormatError
from bnn_bn.onebit.graph import from_bytes, read_bnn, to_bytes
from bnn_bn.learner import bnn_learner
from bnn_bn.signal.probe import dead_channels
from bnn_bn.others.published import from_mmpretrain, from_reference, load_strictly, read_torch
from bnn_bn.others.published import to_reference, without_prefixes
from bnn_bn.train.demo import plot_curves
from bnn_bn.train.resume import ExactResume, load_state, previous_file, save_state
from mutations import READERS, SIGNED, mutations, small, write_files
from bnn_bn.train.run import network_in, plot_history, recipe_beside

SEEDED = 2000 # mutations of each kind of file

# The family

@pytest.mark.parametrize('name', ['CheckpointError', 'DataError', 'ExportError', 'PackedFormatError'])
def test_a_file_error_is_a_value_error(name):
    kind = getattr(errors, name)
    assert issubclass(kind, ValueError) and issubclass(kind, errors.BnnError)

def test_divergence_is_a_runtime_error_with_its_own_words():
    error = DivergenceError('first at forward: stem')
    error.args = 'Exception occured in a callback', # as fastai does
    assert isinstance(error, RuntimeError) and str(error) == 'first at forward: stem'

# A training that goes wrong

class At(Callback):
    "do something to the Learner in some steps of the training"
    order = 9
    def __init__(self, event, steps, f): self.event, self.steps, self.f, self.n = event, steps, f, 0
    def go(self, event):
        if event == self.event and self.n in self.steps: self.f(self.learn)
        self.n += event == self.event
    def before_batch(self):
        if self.training: self.go('before_batch')
    def before_step(self): self.go('before_step')

def bad_pixel(learn):
    x = learn.xb[0].clone()
    x[0, 0, 5, 5] = float('nan')
    learn.xb = (x,)

def fitted(norm, *cbs, steps=8):
    "a Learner after an epoch of so many steps, its warnings, and the error if there was one"
    set_seed(0, reproducible=True)
    learn, error = bnn_learner(fashion_mini(bs=32, n=32*steps, device='cpu'), small(norm), cbs=cbs), None
    learn.dls.loaders[1] = learn.dls.valid.new(x=learn.dls.valid.x[:64], y=learn.dls.valid.y[:64])
    with learn.no_bar(), learn.no_logging(), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        try: learn.fit(1, .01)
        except DivergenceError as e: error = e
    return learn, ' '.join(str(w.message) for w in said), error

def whole(tensors): return all(t.isfinite().all() for t in tensors if t.is_floating_point())

@pytest.mark.parametrize('norm', ['nobn', 'bn'])
def test_one_bad_picture_leaves_nothing_behind(norm):
    learn, said, error = fitted(norm, At('before_batch', {3}, bad_pixel))
    assert error is None and whole(learn.model.state_dict().values())
    assert learn.divergence_guard.skipped == 1 and 'skipped' not in said

def test_running_statistics_are_those_of_the_last_good_step():
    seen = []
    def remember(learn): seen.append([b.clone() for b in learn.model.buffers()])
    learn, _, error = fitted('bn', At('before_batch', {3}, remember), At('before_batch', range(3, 9), bad_pixel))
    assert 'steps in a row' in str(error)
    assert all(torch.equal(a, b) for a, b in zip(seen[0], learn.model.buffers()))

@pytest.mark.parametrize('value', [1e25, -1e20, float('inf')])
def test_a_gradient_whose_square_overflows_is_no_step(value):
    def huge(learn): list(learn.model.parameters())[0].grad.fill_(value)
    learn, _, _ = fitted('nobn', At('before_step', {3}, huge))
    moments = [s['exp_avg_sq'] for s in learn.opt.opt.state.values()]
    assert whole(moments) and learn.divergence_guard.skipped == 1

def test_a_fit_that_skipped_half_says_so():
    _, said, error = fitted('nobn', At('before_batch', range(0, 8, 2), bad_pixel))
    assert error is None and '4 of 8 steps were skipped' in said

def test_a_fit_that_trained_nothing_is_an_error():
    learn, _, error = fitted('nobn', At('before_batch', range(9), bad_pixel), steps=4)
    assert 'nothing was trained' in str(error)
    learn, _, error = fitted('nobn', Autocast(torch.float16, init_scale=2.**100), steps=2)
    assert '2 of 2 steps were skipped' in str(error)

def test_validation_on_nan_says_so():
    class Spoil(Callback):
        def before_validate(self):
            self.learn.dls.valid.mean.fill_(float('nan'))
    assert 'validation loss nan in epoch 1' in fitted('nobn', Spoil())[1]

def test_the_place_is_looked_for_in_the_precision_of_the_training():
    def overflow(learn): learn.model.body.stem.conv.gain.data.fill_(1e6)
    class Overflow(Callback):
        def before_fit(self): overflow(self.learn)
    _, _, error = fitted('nobn', Overflow(), Autocast(torch.float16, max_skips=2, init_scale=1.))
    assert 'first at forward: body.stem' in str(error)

@pytest.mark.parametrize('pixels', [0, 255])
def test_a_constant_channel_is_refused(pixels):
    x = torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8)
    x[:, 1] = pixels
    with pytest.raises(DataError, match='channel 1 .* std=0'):
        tensor_dls(x, torch.arange(64) % 4, x, torch.arange(64) % 4, 32, 'cpu')

def test_a_dead_channel_is_named_by_layer_and_index():
    net = small(width=.25)
    net.body.block2.sign.shift.data[0, 3] = 1e9
    net.body.block3.sign.shift.data[0, 5] = -1e9
    before = [t.clone() for t in net.state_dict().values()]
    rows = {tuple(r) for r in dead_channels(net, torch.randn(4, 1, 32, 32)).itertuples(index=False)}
    assert {('body.block2.sign', 3, 1), ('body.block3.sign', 5, -1)} <= rows
    assert all(torch.equal(a, b) for a, b in zip(before, net.state_dict().values()))

# Half precision

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('deviation', [1e-4, .02, 20., 1000.])
@pytest.mark.parametrize('f', [sign_and_scale, standard_sign])
def test_weights_in_half_precision(f, deviation, dtype):
    torch.manual_seed(0)
    w = (torch.randn(4, 512, 3, 3)*deviation).to(dtype).requires_grad_()
    (signs, scale), wide = f(w), f(w.detach().float())
    assert torch.equal(signs.float(), wide[0]) and signs.dtype == scale.dtype == dtype
    torch.testing.assert_close(scale.float(), wide[1], rtol=2**-8, atol=1e-6)
    (signs*scale).sum().backward()
    assert whole([w.grad])

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize('f', [sign_and_scale, standard_sign])
def test_the_gradient_of_zeros_is_finite(f, dtype):
    w = torch.zeros(2, 8, 3, 3, dtype=dtype, requires_grad=True)
    signs, scale = f(w)
    (signs*scale).sum().backward()
    assert whole([w.grad, scale])

# Files of strangers

@pytest.fixture(scope='module')
def files(tmp_path_factory): return write_files(tmp_path_factory.mktemp('files'))

@pytest.mark.parametrize('name', READERS)
def test_mutations(name, files, tmp_path):
    "one clear error or, where there is no checksum or it is right, other numbers; never another error"
    found = mutations(name, files, tmp_path, range(SEEDED))
    assert sum(found.values()) == SEEDED and found['refused'] > SEEDED/10
    if name in SIGNED: assert found['other'] == 0

@pytest.mark.parametrize('name', ['net.safetensors', 'foreign.safetensors'])
def test_a_flipped_bit_of_our_own_file_is_refused_as_a_teacher(name, files, tmp_path):
    data, rng, refused = (files/name).read_bytes(), random.Random(1), 0
    for _ in range(300):
        at, file = rng.randrange(len(data)), tmp_path/name
        file.write_bytes(data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1:])
        try: read_weights(file)
        except CheckpointError: refused += 1
    if name == 'net.safetensors': assert refused == 300

class Command:
    "a pickle that would run a command"
    def __init__(self, mark): self.mark = mark
    def __reduce__(self): return os.system, (f'touch {self.mark}',)

@pytest.mark.parametrize('ending', ['safetensors', 'pth', 'bin', 'bnn'])
@pytest.mark.parametrize('new', [True, False])
def test_a_pickle_by_any_name_is_not_run(new, ending, tmp_path):
    file, mark = tmp_path/f'gift.{ending}', tmp_path/'ran'
    torch.save({'state_dict': {'w': Command(mark)}}, file, _use_new_zipfile_serialization=new)
    for read in (load_model, read_weights, from_mmpretrain, read_bnn, load_state, load_packed):
        with pytest.raises(errors.BnnError, match='gift') as e: read(file)
        assert 'weights_only' not in str(e.value) and 'False' not in str(e.value)
    assert not mark.exists()

@pytest.mark.parametrize('compressed', [zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED])
def test_a_zip_that_grows_is_not_unpacked(compressed, tmp_path, monkeypatch):
    file = tmp_path/'bomb.pth'
    with zipfile.ZipFile(file, 'w', compressed) as z: z.writestr('archive/data.pkl', bytes(10**6))
    def unpack(*args, **kwargs): raise AssertionError('torch.load was called')
    if compressed: monkeypatch.setattr(torch, 'load', unpack)
    with pytest.raises(CheckpointError): read_torch(file)

@pytest.mark.parametrize('change', [dict(width=1e7), dict(n_out=2**40), dict(in_chans=10**9), dict(width=-1),
                                    dict(backbone='no'), dict(backbone=[]), dict(norm=None), dict(extra=1)])
def test_a_header_that_asks_for_terabytes(change, tmp_path):
    net, file = small(), tmp_path/'net.safetensors'
    write_tensors(file, net.state_dict(), config=net.cfg | change, info={})
    with pytest.raises(CheckpointError, match='net.safetensors'): load_model(file)

HUGE = dict(type='Linear', args=dict(in_features=10**9, out_features=10**9))
PARTS = [{'body': dict(type='Identity', args={})}, {'head': {}}, {'head': dict(type='no', args={})}, {'head': HUGE}]

@pytest.mark.parametrize('parts', [*PARTS, [1], 7])
def test_a_part_that_is_none(parts, tmp_path):
    net, file = small(), tmp_path/'net.safetensors'
    write_tensors(file, net.state_dict(), config=net.cfg, info={}, parts=parts)
    with pytest.raises(CheckpointError, match='net.safetensors'): load_model(file)

@pytest.mark.parametrize('weight', [torch.ones(2, 2).long(), torch.ones(2, 2) > 0, torch.ones(2, 2) + 1j,
                                    torch.full((2, 2), float('nan')), torch.full((2, 2), float('inf')),
                                    torch.ones(1).expand(2, 2), torch.ones(2, 2).to_sparse()])
def test_weights_that_are_none(weight):
    net = torch.nn.Linear(2, 2, bias=False)
    before = net.weight.detach().clone()
    with pytest.raises(CheckpointError, match='weight'): load_strictly(net, dict(weight=weight))
    assert torch.equal(net.weight, before)

FLOAT64, META = torch.tensor([1e39, 0.], dtype=torch.float64), torch.zeros(2, device='meta')
SPOILT_STATES = [
    (dict(weight=META), 'without numbers'), (dict(weight=FLOAT64), 'too large for float32 in: weight'),
    (dict(bias=torch.tensor([0., float('nan')])), 'NaN or infinity in: bias'),
    (dict(running_var=torch.tensor([1., -1.])), 'negative variance in: running_var'),
    (dict(num_batches_tracked=torch.tensor(1e30)), 'too large for int64 in: num_batches_tracked'),
    (dict(weight=1.), "not tensors by name: 'weight'"), (dict(weight=[1., 2.]), "by name: 'weight'"),
    ({5: META}, 'by name: 5'), ({None: META}, 'by name: None'), ({('a', 1): META}, "by name: .'a', 1."),
    (dict(weight=torch.zeros(2).to(torch.float8_e5m2)), 'weight float8_e5m2 instead of real'),
    (dict(weight=torch.nested.nested_tensor([torch.zeros(1), torch.zeros(1)])), "by name: 'weight'")]

@pytest.mark.parametrize('change,words', SPOILT_STATES, ids=[w for _, w in SPOILT_STATES])
def test_a_state_dict_with_a_wrong_entry_is_refused_whole(change, words):
    layer = torch.nn.BatchNorm1d(2)
    before = {k: t.clone() for k, t in layer.state_dict().items()}
    with pytest.raises(CheckpointError, match=words): load_strictly(layer, before | change)
    assert all(torch.equal(t, before[k]) for k, t in layer.state_dict().items())

@pytest.mark.parametrize('state', [None, [1], 'x.pth', torch.zeros(2)], ids=str)
def test_a_state_that_is_no_dict(state):
    with pytest.raises(CheckpointError, match='state is a'): load_strictly(torch.nn.Linear(2, 2), state)

def test_numbers_that_fit_are_taken_in_any_precision():
    layer = torch.nn.BatchNorm1d(2)
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        load_strictly(layer, {k: t.to(dtype) for k, t in layer.state_dict().items()})
    load_strictly(layer, layer.state_dict() | dict(weight=torch.tensor([1e38, 0], dtype=torch.float64)))
    assert layer.weight[0] == torch.tensor(1e38)

def in_itself():
    state = {}
    state['state_dict'] = dict(model=state)
    return state

@pytest.mark.parametrize('state', [in_itself(), {5: torch.zeros(1)}, {'w': torch.zeros(1), 'module.w': torch.zeros(1)}])
def test_a_torch_file_whose_dict_is_none_of_weights(state, tmp_path):
    "one error of the family, which names the file, by every door"
    torch.save(state, tmp_path/'gift.pth')
    for read in (read_weights, from_mmpretrain):
        with pytest.raises(CheckpointError, match='gift.pth: '): read(tmp_path/'gift.pth')

def test_a_weight_by_both_names_is_refused():
    "one of the two would be lost"
    state = to_reference(binary_net('reactnet18', 'nobn', 'both', 10, 'cifar', rules='reference'))
    twice = state | {'head.fc.weight': state['fc.weight']}
    with pytest.raises(CheckpointError, match='two names of one weight: fc.weight and head.fc.weight'):
        from_reference(twice, '18', n_out=10, stem='cifar')

@pytest.mark.parametrize('prefix', ['module.', '_orig_mod.'])
def test_a_name_that_is_there_twice(prefix):
    with pytest.raises(CheckpointError, match='a second entry'): without_prefixes({'w': 1, f'{prefix}w': 2})

@pytest.mark.parametrize('wrap', [lambda m: m, nn.DataParallel, AveragedModel,
                                  lambda m: nn.DataParallel(AveragedModel(m)),
                                  lambda m: torch.compile(AveragedModel(m), backend='eager')])
def test_a_child_called_module_keeps_its_name(wrap):
    "beside others; only what all names begin with is a wrapper's"
    net = nn.ModuleDict(dict(module=nn.Linear(2, 3), head=nn.Linear(3, 2)))
    assert list(without_prefixes(wrap(net).state_dict())) == list(net.state_dict())

def test_weights_that_are_not_finite_are_not_written(tmp_path):
    net = small()
    net.head.fc.bias.data[3] = float('inf')
    with pytest.raises(CheckpointError, match='head.fc.bias'): save_model(net, tmp_path/'x.safetensors')
    assert not list(tmp_path.iterdir())

# Packed files

@pytest.mark.parametrize('fact', [dict(std=[0.]), dict(std=[-1.]), dict(mean=[float('nan')]), dict(mean=[0., 0.]),
                                  dict(mean='x'), dict(classes=['a']), dict(classes=5), dict(size=[0, 32]),
                                  dict(size=[32.5, 32]), dict(size=None), dict(std=[True])])
def test_facts_that_are_none(fact, tmp_path):
    packed = pack(small())
    with pytest.raises(PackedFormatError, match=next(iter(fact))): pack(small(), **fact)
    packed.info.update(fact)
    with pytest.raises(PackedFormatError): packed.save(tmp_path/'net.bnn')
    data = to_bytes(packed.graph)
    assert from_bytes(data).info.keys() == packed.info.keys()
    with pytest.raises(PackedFormatError, match=next(iter(fact))): load_packed(data)
    (tmp_path/'net.bnn').write_bytes(data)
    with pytest.raises(PackedFormatError, match=f'net.bnn: .*{next(iter(fact))}'): load_packed(tmp_path/'net.bnn')

@pytest.mark.parametrize('top', [0, -1, 2.5, None, True, '1'])
def test_a_number_of_labels(top):
    packed = pack(small(), mean=[.5], std=[.2], size=[32, 32])
    with pytest.raises(ValueError, match='top='): classify(packed, np.zeros((32, 32), np.uint8), top)

SPOILT = [dict(alpha=None), dict(alpha='1'), dict(gamma=[]), dict(gamma='nobn'), dict(gamma=True), dict(alpha=10**40),
          dict(width='1'), dict(rules=dict(zero='x')), dict(rules=dict(eps=None)), dict(rules=dict(decay_4d=1))]

@pytest.mark.parametrize('change', SPOILT, ids=str)
def test_a_field_of_a_wrong_type_is_refused_when_the_file_is_read(change, tmp_path):
    net, file = small(), tmp_path/'net.safetensors'
    write_tensors(file, net.state_dict(), config=net.cfg | change, info={})
    with pytest.raises(CheckpointError, match=f'net.safetensors: .*{next(iter(change))}'): load_model(file)

@pytest.mark.parametrize('args', [dict(p='x'), dict(p=True), dict(q=1), dict(device='cuda')])
def test_an_argument_of_a_part_that_is_none(args, tmp_path):
    net, file = small(), tmp_path/'net.safetensors'
    parts = {'head': dict(type='Dropout', args=args)}
    write_tensors(file, net.state_dict(), config=net.cfg, info={}, parts=parts)
    with pytest.raises(CheckpointError, match='net.safetensors: .*no argument of Dropout'): load_model(file)

@pytest.mark.parametrize('size', [None, [], [1], [1, 1, 1], 0, [1, -1], '1', [None]])
def test_a_size_that_no_pool_has(size, tmp_path):
    "torch takes these when it makes the layer, and fails when it is called"
    net, file = small(), tmp_path/'net.safetensors'
    parts = {'head': dict(type='AdaptiveAvgPool2d', args=dict(output_size=size))}
    write_tensors(file, net.state_dict(), config=net.cfg, info={}, parts=parts)
    with pytest.raises(CheckpointError, match='net.safetensors: .*output_size='): load_model(file)

# Pictures

@pytest.mark.parametrize('picture,word', [
    (np.zeros((3, 32, 32), np.uint8), 'channels last'), (np.zeros((4, 32, 32)), 'channels last'),
    (np.zeros((2, 3, 32, 32), np.uint8), 'channels'), (None, 'a NoneType is no picture'),
    (7, 'a int is no picture'), ([np.zeros((3, 32, 32), np.uint8)], 'channels')])
def test_pictures_that_may_be_misread(picture, word):
    packed = pack(small(in_chans=3), mean=[.5]*3, std=[.2]*3, size=[32, 32])
    with pytest.raises(ValueError, match=word): classify(packed, picture)

def test_three_grey_pictures_of_a_grey_network():
    packed = pack(small(), mean=[.5], std=[.2], size=[32, 32])
    assert len(classify(packed, np.zeros((3, 32, 32), np.uint8))) == 3

def test_an_onnx_file_that_is_cut_at_any_length(tmp_path):
    "an empty one, too, which is a whole protobuf: it has no step, so nothing could be found in it"
    onnx, file = pytest.importorskip('onnx'), tmp_path/'net.onnx'
    nodes = [onnx.helper.make_node('Relu', ['x'], ['y']), onnx.helper.make_node('Relu', ['y'], ['z'])]
    graph = onnx.helper.make_graph(nodes, 'g', [], [])
    whole = onnx.helper.make_model(graph, producer_name='p').SerializeToString()
    file.write_bytes(whole)
    assert_norm_free(file)
    for n in range(len(whole)):
        file.write_bytes(whole[:n])
        with pytest.raises(ExportError, match='net.onnx: '): assert_norm_free(file)

# What is no network, no file

def none_of(door):
    "what a door is given that is no network and no file; a text may be a path"
    return [None, 3, torch.zeros(2), {}] + (['x'] if door in NETWORKS else [])

NETWORKS = dict(
    pack=pack, fold=fold, remove_bn=remove_bn, drop_bn=drop_bn, assert_bn_free=assert_bn_free,
    save=lambda x: save_model(x, 'never.safetensors'), clipped=clipped_parameters, groups=decay_groups,
    start=lambda x: calibrate(x, torch.zeros(1, 1, 32, 32)),
    learner=lambda x: bnn_learner(fashion_mini(bs=32, n=64, device='cpu'), x),
    dead=lambda x: dead_channels(x, torch.zeros(1, 1, 32, 32)), summary=lambda x: summary(x, (1, 1, 8, 8)))
FILES = dict(
    model=load_model, info=load_info, packed=load_packed, weights=read_weights, state=load_state,
    norms=assert_norm_free, write=lambda x: write_file(x, b''))
DOORS = NETWORKS | FILES

@pytest.mark.parametrize('door', DOORS)
def test_what_is_no_network_or_no_file(door):
    "is named by its type, in a ValueError of ours"
    for value in none_of(door):
        with pytest.raises(ValueError, match=type(value).__name__) as caught: DOORS[door](value)
        assert 'bnn_bn' in str(caught.traceback[-1].path), door

# Inputs of a trained network

@pytest.mark.parametrize('x,word', [(torch.zeros(1, 1, 32, 32, dtype=torch.uint8), 'uint8'),
                                    (torch.zeros(1, 1, 32, 32).double(), 'float64'),
                                    (torch.zeros(1, 1, 0, 0), 'no pixels'),
                                    (np.zeros((1, 1, 32, 32), np.float32), 'numpy'), (None, 'NoneType')])
def test_images_that_are_none(x, word):
    with pytest.raises(ValueError, match=word): small()(x)

# States

def resumed(learn, file):
    with learn.no_bar(), learn.no_logging(): learn.fit(1, .01, cbs=ExactResume(file))

@pytest.fixture(scope='module')
def begun(tmp_path_factory):
    "a Learner, and the file with its state after an epoch"
    set_seed(0)
    learn = bnn_learner(fashion_mini(bs=32, n=64, device='cpu'), small())
    learn.dls.loaders[1] = learn.dls.valid.new(x=learn.dls.valid.x[:64], y=learn.dls.valid.y[:64])
    file = tmp_path_factory.mktemp('begun')/'state.safetensors'
    resumed(learn, file)
    return learn, file

@pytest.mark.parametrize('change', [
    lambda s: s.pop('opt'), lambda s: s.pop('epoch'), lambda s: s.update(epoch=99), lambda s: s.update(epoch=-1),
    lambda s: s.update(batch=True), lambda s: s['model'].pop('head.fc.weight'), lambda s: s.pop('now'),
    lambda s: s['model']['head.fc.weight'].fill_(float('nan')), lambda s: s.update(callbacks=3),
    lambda s: s.update(opt={}), lambda s: s.update(recorder=[])])
def test_a_state_that_is_rightly_signed_and_wrong(change, begun, tmp_path):
    (learn, good), file = begun, tmp_path/'state.safetensors'
    state = load_state(good)
    change(state)
    save_state(file, state)
    with pytest.raises(CheckpointError, match='state.safetensors'): resumed(learn, file)
    assert whole(learn.model.parameters())

def test_an_older_state_is_taken_with_a_word(tmp_path):
    file = tmp_path/'state.safetensors'
    save_state(file, dict(epoch=1))
    save_state(file, dict(epoch=2))
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.warns(UserWarning, match='previous'): assert load_state(file) == dict(epoch=1)
    previous_file(file).unlink()
    with pytest.raises(CheckpointError): load_state(file)

# Names and paths

@pytest.mark.parametrize('which', ['../outside', '/etc/passwd', 'a/b', '..', ''])
def test_a_network_outside_the_run(which, tmp_path):
    with pytest.raises(ValueError, match='which='): network_in(tmp_path, which)

CONFIGS = ['', '[]', 'null', '{}', '{"recipe": []}', '['*50000, '{"recipe": {"data": "mnist"}}',
           '{"recipe": {"data": "fashion", "bs": "64"}}', '{"recipe": {"data": "fashion", "bs": NaN}}',
           '{"recipe": {"data": "fashion", "new": 1}}', '{"recipe": {"data": []}}']

@pytest.mark.parametrize('text', CONFIGS)
def test_a_config_that_is_none(text, tmp_path):
    (tmp_path/'config.json').write_text(text)
    with pytest.raises(CheckpointError, match='config.json'): recipe_beside(tmp_path/'best.safetensors')
    (tmp_path/'config.json').write_text(json.dumps(dict(recipe=dict(data='fashion', epochs=3))))
    assert recipe_beside(tmp_path/'best.safetensors').epochs == 3

# A disk that takes no more

FULL = """
import resource, signal, sys, warnings
warnings.simplefilter('ignore')
from pathlib import Path
from mutations import small
from bnn_bn.checkpoint import load_model, save_model
from bnn_bn.core.files import write_file
from bnn_bn.deploy import load_packed, pack
from bnn_bn.train.resume import load_state, save_state
folder, net = Path(sys.argv[1]), small(width=.25)
packed = pack(net, classes=[*'abcdefghij'])
writers = {
    'a.safetensors': (lambda f: save_model(net, f), load_model),
    'a.bnn': (packed.save, load_packed),
    'a.bin': (lambda f: write_file(f, bytes(5000)), Path.read_bytes),
    'state-1.safetensors': (lambda f: save_state(f, dict(model=dict(net.state_dict()))), load_state)}
for name, (write, read) in writers.items(): write(folder/name)
names = sorted(f.name for f in folder.iterdir())
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
for name, (write, read) in writers.items():
    before = (folder/name).read_bytes()
    try: write(folder/name)
    except OSError as e: assert name in str(e), e
    else: raise AssertionError(name)
    assert (folder/name).read_bytes() == before
    read(folder/name)
assert sorted(f.name for f in folder.iterdir()) == names
"""

@pytest.mark.skipif(sys.platform != 'linux', reason='limits the size of files as Linux does')
def test_a_full_disk_leaves_the_old_files_and_is_named(tmp_path):
    env = dict(os.environ, PYTHONPATH=os.pathsep.join([str(Path(__file__).parent), *sys.path]))
    done = subprocess.run([sys.executable, '-c', FULL, str(tmp_path)], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]

HEADS = {plot_history: 'step,epoch,accuracy,train_loss,valid_loss\n', plot_curves: 'network,seed,epoch,accuracy\n'}
ODD_ROWS = {plot_history: '1,x,.5,1,1\n', plot_curves: 'nobn,0,x,.5\n'}

@pytest.mark.parametrize('plot', HEADS)
def test_a_history_that_is_none_is_named(plot, tmp_path):
    "empty, of other columns, of texts where numbers are, of bytes; nothing is drawn"
    file, picture, head = tmp_path/'h.csv', tmp_path/'h.png', HEADS[plot]
    texts = '', 'hello\n', '\x00\x01\n', head.replace('epoch', 'x'), head + ODD_ROWS[plot]
    for data in (b'\xff\xfe\x80', *(t.encode() for t in texts)):
        file.write_bytes(data)
        with pytest.raises(CheckpointError, match='h.csv: '): plot(file, picture)
    assert not picture.exists()

def test_a_picture_that_could_not_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    (tmp_path/'history.csv').write_text('step,epoch,accuracy,train_loss,valid_loss\n1,1,.5,1,1\n')
    plot_history(tmp_path/'history.csv', tmp_path/'curves.png')
    before = (tmp_path/'curves.png').read_bytes()
    def full(fd): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(OSError, match='curves.png'):
        plot_history(tmp_path/'history.csv', tmp_path/'curves.png')
    assert (tmp_path/'curves.png').read_bytes() == before
    assert sorted(f.name for f in tmp_path.iterdir()) == ['curves.png', 'history.csv']
