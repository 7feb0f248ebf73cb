"What fastai's and torch's users try first: groups, rates, wrappers, hooks, files; in one table a kind."
import copy
import multiprocessing as mp
import os
import pickle
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path
import matplotlib
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, grad, jvp, stack_module_state, vmap
from torch.optim.swa_utils import AveragedModel
import fastai.callback.progress # noqa: F401, Learner.no_bar
import fastai.callback.schedule # noqa: F401, Learner.lr_find
from fastai.basics import Adam, BCEWithLogitsLossFlat, Callback, CancelEpochException, CancelTrainException
from fastai.basics import CancelValidException, CrossEntropyLossFlat, DataLoaders, Learner, MSELossFlat
from fastai.basics import OptimWrapper, accuracy, error_rate, load_learner, mse, params, set_seed
from fastai.callback.tracker import EarlyStoppingCallback, SaveModelCallback
from fastai.callback.training import GradientAccumulation, ShortEpochCallback
from fastai.optimizer import ranger
from fastai.torch_core import TensorImage
from bnn_bn import cost
from bnn_bn.agc import AdaptiveGradClip
from bnn_bn.checkpoint import load_network, save_network
from bnn_bn.layers.conv import QuantConv2d, ScaledStdConv2d
from bnn_bn.layers.signed import ScaleShift
from bnn_bn.data import CIFAR10_STATS, fashion_mini, tensor_dls
from bnn_bn.deploy import load_packed, pack
from bnn_bn.core.files import write_file
from bnn_bn.learner import DivergenceGuard, bnn_learner, first_nonfinite
from bnn_bn.models import assert_bn_free, binary_net, create_model, exempt_parameters, reactnet_bn
from bnn_bn.models import reactnet_nobn
from bnn_bn.optim import OptFunc
from bnn_bn.signal.probe import probe
from bnn_bn.others.realnet import resnet9
from bnn_bn.train.recipes import recipes
from bnn_bn.train.resume import ExactResume, load_state
from bnn_bn.train.speed import EMA, Autocast, Throughput
from bnn_bn.signal.start import CalibratedStart, calibrate
from bnn_bn.train.steps import Best, History, schedules, with_binary
from bnn_bn.train.teachers import load_teacher
from bnn_bn.train.vision import bnn_vision_learner, fastai_arch, nobn_head
from bnn_bn.core.unwrap import bare, plain_state

matplotlib.use('Agg')
IMAGES = torch.randn(4, 1, 32, 32, generator=torch.Generator().manual_seed(0))
COMPILE = partial(torch.compile, backend='eager')

def mini(**kw):
    set_seed(0)
    return reactnet_nobn('mini', **(dict(n_out=10, in_chans=1, width=.25) | kw))

@pytest.fixture(scope='module')
def dls(): return fashion_mini(bs=32, n=128, device='cpu')

@pytest.fixture
def learner(dls, tmp_path):
    "makes a quiet Learner whose files lie in a folder of the test"
    def make(model=None, **kw):
        learn = bnn_learner(dls, mini() if model is None else model, path=tmp_path, **kw)
        learn.logger = lambda row: None
        learn.remove_cbs(learn.cbs.filter(lambda c: c.name == 'progress'))
        return learn
    return make

def learning(model): return {n.split('.')[0] for n, p in bare(model).named_parameters() if p.requires_grad}

def decaying(learn):
    "names of the parameters that the optimizer lets decay"
    names = {id(p): n for n, p in bare(learn.model).named_parameters()}
    if not isinstance(learn.opt, OptimWrapper):
        states = learn.opt.state.items()
        free = {id(p) for p, s in states if not s.get('do_wd', True)}
        return {n for i, n in names.items() if i not in free}
    groups = [g for g in learn.opt.opt.param_groups if g['weight_decay']]
    return {names[id(p)] for g in groups for p in g['params']}

REAL = {'body.stem.conv.weight', 'head.fc.weight'}
WRAPS = dict(bare=lambda m: m, compiled=COMPILE, parallel=nn.DataParallel,
             both=lambda m: COMPILE(nn.DataParallel(m)))

# groups ----------------------------------------------------------------------------------------

@pytest.mark.parametrize('wrap', WRAPS)
def test_groups_are_body_and_head(learner, wrap):
    learn = learner(WRAPS[wrap](mini()))
    learn.freeze()
    assert learning(learn.model) == {'head'}
    learn.unfreeze()
    assert learning(learn.model) == {'body', 'head'}
    learn.opt.set_hypers(lr=slice(1e-3), wd=.1)
    assert [(h['lr'], h['wd']) for h in learn.opt.hypers] == [(1e-4, .1), (1e-3, .1)]
    assert decaying(learn) == REAL

OPTIMIZERS = dict(adam=torch.optim.Adam, sgd=partial(torch.optim.SGD, momentum=.9), fastai=Adam, ranger=ranger,
                  wrapped=partial(OptimWrapper, opt=torch.optim.AdamW), function=lambda ps, lr: torch.optim.SGD(ps, lr))

@pytest.mark.parametrize('name', OPTIMIZERS)
def test_any_optimizer_and_what_decays(learner, name):
    learn = learner(opt_func=OPTIMIZERS[name], clip_factor=None)
    before = copy.deepcopy(learn.model.state_dict())
    learn.fit_one_cycle(1, slice(1e-3), wd=1e-2)
    assert decaying(learn) <= REAL
    assert len(learn.opt.hypers) == 2
    moved = [n for n, p in learn.model.state_dict().items() if not torch.equal(p, before[n])]
    assert len(moved) == len(before)

@pytest.mark.parametrize('opt', [partial(Adam, lr=3e-4), partial(torch.optim.AdamW, lr=3e-4, weight_decay=.1),
                                 partial(OptimWrapper, opt=torch.optim.AdamW, lr=3e-4)],
                         ids=['fastai', 'torch', 'wrapped'])
def test_the_rate_of_a_partial(few, opt, tmp_path):
    "is that of a fit without one, as for a plain Learner"
    ours = bnn_learner(few, mini(), opt_func=opt, path=tmp_path, calibrated=False)
    with ours.no_bar(), ours.no_logging():
        ours.fit(1)
        assert [h['lr'] for h in ours.opt.hypers] == [3e-4]*2 and ours.lr == 3e-4
        ours.fit(1, 1e-2)
        assert [h['lr'] for h in ours.opt.hypers] == [1e-2]*2

@pytest.mark.parametrize('call', [lambda l: l.fit(1, 1e-3, wd=.1), lambda l: l.fine_tune(1, 1e-3, wd=.1),
                                  lambda l: l.fit_flat_cos(1, 1e-3, wd=.1), lambda l: l.fit_step(1, 1e-3, wd=.1)])
def test_the_exempt_never_decay(learner, call):
    learn, seen = learner(), []
    class See(Callback):
        def before_train(self): seen.append(decaying(self.learn))
    learn.add_cb(See())
    call(learn)
    assert seen and all(names <= REAL for names in seen)

def test_a_splitter_of_the_user(learner):
    learn = learner(splitter=lambda m: [params(m.body.stem), params(m)[len(params(m.body.stem)):-2], params(m.head)])
    learn.freeze_to(1)
    assert not any(p.requires_grad for p in learn.model.body.stem.parameters())
    assert len(learn.opt.hypers) == 3 and decaying(learn) <= REAL

def test_fine_tune_of_a_fresh_network_is_calibrated(learner):
    learn = learner()
    learn.fine_tune(1, 1e-3)
    assert learn.calibrated_start.table is not None

def test_our_layers_in_other_networks():
    block = mini().body.block1
    net = nn.Sequential(nn.Conv2d(1, 16, 3), block, nn.Flatten(), nn.Linear(16, 2))
    assert {id(p) for p in exempt_parameters(net)} == {id(p) for p in block.parameters()}
    end = ScaleShift(16)
    assert {id(p) for p in exempt_parameters(nn.Sequential(net, end))} == {
        id(p) for m in (block, end) for p in m.parameters()}

# heads of fastai --------------------------------------------------------------------------------

HEADS = dict(
    plain=dict(lin_ftrs=[], first_bn=False, concat_pool=False),
    ours=dict(custom_head=lambda: nobn_head(128, 10)),
    hidden=dict(custom_head=lambda: nobn_head(128, 10, [32, 16], .5)),
    two_pools=dict(custom_head=lambda: nobn_head(128, 10, concat_pool=True)),
    theirs={})
ARCHS = dict(registered=lambda: fastai_arch('reactnet_mini_nobn', in_chans=1),
             partial=lambda: partial(create_model, 'reactnet_mini_nobn', in_chans=1),
             function=lambda: partial(reactnet_nobn, 'mini', in_chans=1))

@pytest.fixture(scope='module')
def few(): # pictures for an epoch of a second
    data = fashion_mini(device='cpu')
    x, y = data.train.x[:48], data.train.y[:48]
    return tensor_dls(x, y, x[:8], y[:8], bs=16, device='cpu', vocab=data.vocab)

def vision(dls, arch, head, **kw):
    learner = pytest.importorskip('fastai.vision.learner')
    kw |= {k: v() if callable(v) else v for k, v in HEADS[head].items()}
    return learner.vision_learner(dls, ARCHS[arch](), metrics=accuracy, **kw)

def answers(learn, net):
    "are the logits of a network those of the Learner's?"
    x = learn.dls.valid.one_batch()[0][:4]
    with torch.no_grad(): return (net(x) - learn.model.eval()(x)).abs().max() < 1e-4

@pytest.mark.parametrize('arch,head', [('registered', 'plain'), ('partial', 'ours'), ('function', 'hidden')])
def test_vision_learner_of_fastai(few, arch, head, tmp_path):
    learn = vision(few, arch, head, path=tmp_path)
    assert learning(learn.model) == {'1'} # the head; the body is frozen
    with learn.no_bar(), learn.no_logging(): learn.fine_tune(1, 1e-3)
    assert learning(learn.model) == {'0', '1'} and len(learn.opt.hypers) == 2
    assert_bn_free(learn.model)
    assert answers(learn, pack(learn))
    assert answers(learn, load_network(save_network(learn.model, tmp_path/'n.safetensors')))
    learn.freeze()
    assert learning(learn.model) == {'1'}

@pytest.mark.parametrize('head,name', [('theirs', 'AdaptiveConcatPool2d'), ('two_pools', 'AdaptiveConcatPool2d')])
def test_a_head_that_has_no_place_is_refused_by_name(few, head, name):
    learn = vision(few, 'partial', head)
    with pytest.raises(ValueError, match=f'head holds.*{name}'): pack(learn)
    with pytest.raises(ValueError, match=name): save_network(learn.model, 'never.safetensors')
    if head == 'theirs':
        with pytest.raises(AssertionError, match='BatchNorm1d'): assert_bn_free(learn.model)

def test_our_rules_for_a_network_that_fastai_joined(few, tmp_path):
    learn = bnn_learner(few, vision(few, 'partial', 'ours', pretrained=False).model, path=tmp_path)
    learn.freeze()
    assert learning(learn.model) == {'head'}
    learn.unfreeze()
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3, wd=.1)
    assert decaying(learn) == {'body.stem.conv.weight', 'head.2.weight'} and answers(learn, pack(learn))

@pytest.mark.parametrize('kw', [dict(), dict(lin_ftrs=[16], ps=.2), dict(pretrained=False),
                                dict(arch=partial(reactnet_nobn, 'mini'))])
def test_vision_learner_of_ours(few, kw, tmp_path):
    learn = bnn_vision_learner(few, **(dict(arch='reactnet_mini_nobn', path=tmp_path) | kw))
    whole = {'head'} if kw.get('pretrained', True) else {'body', 'head'}
    assert learning(learn.model) == whole and learn.model.n_out == 10
    with learn.no_bar(), learn.no_logging(): learn.fine_tune(1, 1e-3)
    assert_bn_free(learn.model)
    assert answers(learn, pack(learn))
    learn.export(tmp_path/'l.pkl')

def test_hooks_of_a_joined_network_are_not_lost(few):
    learn = vision(few, 'partial', 'ours')
    learn.model.register_forward_hook(lambda m, x, y: 2*y)
    with pytest.raises(ValueError): pack(learn)
    learn = vision(few, 'partial', 'ours')
    learn.model[0].register_forward_hook(lambda m, x, y: 2*y)
    with pytest.raises(ValueError): pack(learn)

def test_normalised_once(tmp_path):
    from fastai.data.transforms import Normalize
    from fastai.vision.core import PILImage
    from fastai.vision.data import ImageDataLoaders
    from fastcore.basics import risinstance
    from PIL import Image
    for k, name in enumerate('ab'*8): Image.new('RGB', (32, 32), (15*k, 9, 70)).save(tmp_path/f'{name}_{k}.png')
    files = sorted(tmp_path.glob('*.png'))
    loaders = ImageDataLoaders.from_name_func(tmp_path, files, lambda n: n[0], bs=2, device='cpu', num_workers=0)
    assert loaders.one_batch()[0].shape[1] == 3 and PILImage
    for _ in range(2): bnn_vision_learner(loaders, 'reactnet18_nobn')
    added = loaders.after_batch.fs.filter(risinstance(Normalize))
    assert len(added) == 1 and added[0].mean.flatten().tolist() == pytest.approx(CIFAR10_STATS[0], abs=1e-3)

# steps -----------------------------------------------------------------------------------------

@pytest.mark.parametrize('opt', [Adam, partial(OptimWrapper, opt=torch.optim.Adam)])
def test_two_steps_on_a_plain_learner(dls, tmp_path, opt):
    learn = Learner(dls, mini(), loss_func=CrossEntropyLossFlat(), metrics=accuracy, path=tmp_path,
                    wd=.05, opt_func=opt)
    with learn.no_bar(), learn.no_logging(): learn.fit_two_step((1, 1), 1e-3)
    assert learn.opt_func is opt and learn.wd == .05 and {h['wd'] for h in learn.opt.hypers} == {.05}
    assert decaying(learn) <= REAL

@pytest.mark.parametrize('words,says', [
    (dict(shedule='cosine'), "'shedule' .did you mean schedule"), (dict(fact={}), "'fact' .did you mean facts"),
    (dict(resum=False), "'resum' .did you mean resume"), (dict(nothing=1), "unexpected argument 'nothing'"),
    (dict(stop=3), 'stop is of the saved state, which needs out='), (dict(steps=5), 'steps is of')], ids=str)
@pytest.mark.parametrize('fit', [lambda l, **kw: l.fit_step(1, 1e-3, **kw),
                                 lambda l, **kw: l.fit_two_step((1, 1), **kw)], ids=['one', 'two'])
def test_a_misspelt_argument_of_a_training(learner, fit, words, says):
    "before anything changes"
    learn = learner()
    model = learn.model
    with pytest.raises(TypeError, match=says): fit(learn, **words)
    if 'is of' not in says:
        with pytest.raises(TypeError, match=says): fit(learn, out=learn.path/'run', **words)
    assert learn.model is model and learn.opt is None and not (learn.path/'run').exists()

def test_a_step_leaves_settings_as_they_were(learner):
    learn = learner(wd=.01)
    learn.fit_step(1, 1e-3, wd=.5)
    assert learn.wd == .01 and {h['wd'] for h in learn.opt.hypers} == {.01}
    with pytest.raises(ValueError, match='no metric'): learn.fit_step(1, 1e-3, wd=.5, monitor='f1')
    assert learn.wd == .01 and isinstance(learn.opt_func, OptFunc)

class Cancel(Callback):
    "raises at an event of the second epoch, after all others or before them"
    def __init__(self, event, error, order=200):
        self.error, self.order = error, order
        setattr(self, event, self.cancel)
    def cancel(self):
        if self.epoch == 1: raise self.error

CANCELLED = dict(train=(Cancel('before_train', CancelTrainException), 'train'),
                 rest=(ShortEpochCallback(.5, short_valid=False), 'train'),
                 valid=(Cancel('before_validate', CancelValidException, -50), 'valid'))

@pytest.mark.parametrize('both', [False, True], ids=['valid_metrics', 'all_metrics'])
@pytest.mark.parametrize('name', CANCELLED)
def test_a_row_of_an_epoch_that_lacks_a_part(learner, name, both, tmp_path):
    "each value stands under its name, and what was not measured is empty"
    learn, (cb, part) = learner(cbs=History(tmp_path/'h.csv')), CANCELLED[name]
    learn.recorder.train_metrics = both
    names = dict(train=['train_loss'], valid=['valid_loss', 'accuracy'])[part]
    if both: names = [f'{part}_loss', f'{part}_accuracy']
    learn.fit(3, 1e-3, cbs=[cb, keep := Best(monitor='valid_accuracy' if both else 'accuracy')])
    rows = learn.history.rows
    assert [k for k, v in rows[1].items() if v is None and k != 'loader_share'] == names
    for row in rows:
        losses, shares = ([v for k, v in row.items() if k.endswith(w) and v is not None] for w in ('loss', 'accuracy'))
        assert all(v > 1.5 for v in losses) and all(0 <= v <= 1 for v in shares) and row['images_per_s'] > 0
    assert len(rows) == 3 and 0 <= keep.value <= 1

@pytest.mark.parametrize('event', ['before_epoch', 'before_train', 'after_batch', 'before_validate', 'after_validate'])
def test_a_cancelled_epoch_has_no_row(learner, event):
    learn = learner(cbs=History())
    learn.fit(3, 1e-3, cbs=Cancel(event, CancelEpochException))
    assert [r['epoch'] for r in learn.history.rows] == [1, 3]
    learn.fit(3, 1e-3, start_epoch=1)
    assert [r['epoch'] for r in learn.history.rows] == [1, 3, 2, 3]

def test_two_steps_with_metrics_of_both_parts(learner):
    learn = learner()
    learn.recorder.train_metrics = True
    with pytest.raises(ValueError, match="no metric 'accuracy'.*valid_accuracy"): learn.fit_two_step((1, 1), 1e-3)
    assert bare(learn.model).cfg['binary'] == 'both'
    found = learn.fit_two_step((1, 1), 1e-3, monitor='valid_accuracy')
    assert [0 <= step['last'] <= 1 for step in found] == [True, True]

class Board:
    "as TensorBoard's writer, which holds an open file"
    def add_scalar(self, *args): pass
    def __reduce__(self): raise TypeError('an open file')

@pytest.mark.filterwarnings('ignore:load_learner')
def test_a_learner_is_exported_and_copied_whatever_its_callbacks_hold(learner, tmp_path):
    "an event and an open file lie in none; who was read or copied trains on"
    learn = learner(cbs=[History(writer=Board()), Best(), EMA(.9), Throughput(), ExactResume(tmp_path/'s.safetensors')])
    learn.fit(1, 1e-3)
    learn.export(tmp_path/'l.pkl')
    assert learn.history.writer is not None and len(learn.dls.train) == 4
    for other in load_learner(tmp_path/'l.pkl'), copy.deepcopy(learn):
        assert other.history.writer is None and other.exact_resume.stop is not learn.exact_resume.stop
        other.dls = learn.dls
        other.fit(1, 1e-3)
        assert len(other.history.rows) == 2

@pytest.mark.parametrize('name', recipes)
def test_one_epoch_of_a_recipe_trains(name):
    f = schedules[recipes[name].schedule]
    assert max(f(0, 1, i/10) for i in range(10)) > .5

# trials ----------------------------------------------------------------------------------------

def memory(learn):
    "what callbacks remember, as text"
    kept = {c.name: c.state_dict() for c in learn.cbs if hasattr(type(c), 'state_dict')}
    kept['history'].pop('hours') # the clock goes on
    for name in ('throughput', 'calibrated_start'):
        kept[name] = str(vars(getattr(learn, name)).get('rows')), str(getattr(learn, name).__dict__.get('table'))
    return str(kept)

@pytest.mark.parametrize('trained', [False, True])
def test_trials_leave_no_trace(learner, tmp_path, trained):
    file = tmp_path/'state.safetensors'
    cbs = [ExactResume(file), History(tmp_path/'h.csv'), Best(), EMA(.9), Throughput(warmup=0), Autocast(torch.float16)]
    learn = learner(cbs=cbs)
    if trained: learn.fit(1, 1e-3)
    before, weights = memory(learn), copy.deepcopy(learn.model.state_dict())
    on_disk = {f.name: f.read_bytes() for f in tmp_path.glob('*.*')}
    found = learn.lr_find(num_it=20, show_plot=False)
    learn.validate()
    learn.get_preds()
    learn.tta(n=1)
    assert 0 < found.valley < 10
    assert memory(learn) == before
    assert {f.name: f.read_bytes() for f in tmp_path.glob('*.*')} == on_disk
    assert all(torch.equal(p, weights[n]) for n, p in learn.model.state_dict().items())

class NaNPixel(Callback):
    "in training batches of these numbers"
    order = 0
    def __init__(self, *batches): self.batches = batches
    def before_batch(self):
        if not self.training or self.iter not in self.batches: return
        self.learn.xb = (self.xb[0].index_fill(0, torch.tensor(0), torch.nan),)

@pytest.mark.parametrize('images', [1, 64]) # of a step: one batch of 32, or two
def test_a_bad_picture_leaves_running_statistics_as_they_are(learner, images):
    net = reactnet_bn('mini', n_out=10, in_chans=1, width=.25)
    learn = learner(net, cbs=[NaNPixel(2), GradientAccumulation(images)])
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='.*steps were skipped')
        learn.fit(2, 1e-3)
    guard = learn.divergence_guard
    assert (guard.skipped, guard.steps) == {1: (2, 8), 64: (2, 4)}[images]
    assert all(b.isfinite().all() for b in learn.model.buffers())

def test_to_look_at_a_bad_batch_changes_nothing():
    net = reactnet_bn('mini', n_out=10, in_chans=1, width=.25).train()
    before = copy.deepcopy(net.state_dict())
    assert first_nonfinite(net, IMAGES*torch.nan).startswith('forward: ')
    assert first_nonfinite(net, IMAGES) == 'loss'
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())

def test_a_fit_that_ends_early_and_trained_nothing_says_so(learner):
    learn = learner(calibrated=False, patience=50, cbs=[NaNPixel(*range(4)), EarlyStoppingCallback(patience=1)])
    with pytest.warns(UserWarning, match='8 of 8 steps were skipped.*nothing was trained'): learn.fit(5, 1e-3)

def test_a_second_fit_trains(learner, tmp_path):
    steps = []
    class Count(Callback):
        def after_step(self): steps.append(self.epoch)
    file = tmp_path/'state.safetensors'
    learn = learner(cbs=[ExactResume(file), Count()])
    for n in (1, 1, 2): learn.fit(n, 1e-3)
    assert len(steps) == 4*4 and load_state(file)['epoch'] == 2
    other = learner(cbs=[ExactResume(file), Count()])
    with pytest.warns(UserWarning, match='nothing is left to do'): other.fit(2, 1e-3)
    assert len(steps) == 4*4

# what a Learner of ours adds -------------------------------------------------------------------

class OwnGuard(DivergenceGuard): pass

OWN = DivergenceGuard(50), DivergenceGuard, OwnGuard(50), AdaptiveGradClip(.5), CalibratedStart(images=16)

@pytest.mark.parametrize('own', OWN, ids=lambda c: c.__name__ if isinstance(c, type) else type(c).__name__)
def test_a_callback_of_the_user_takes_the_place_of_ours(learner, own):
    kinds = DivergenceGuard, AdaptiveGradClip, CalibratedStart
    found = [[c for c in learner(cbs=own).cbs if isinstance(c, kind)] for kind in kinds]
    assert [len(cs) for cs in found] == [1, 1, 1]
    assert isinstance(own, type) or any(cs == [own] for cs in found)

@pytest.mark.parametrize('loss,metrics', [
    (CrossEntropyLossFlat(), ['accuracy']), (nn.CrossEntropyLoss(), ['accuracy']),
    (BCEWithLogitsLossFlat(), ['accuracy_multi']), (nn.BCEWithLogitsLoss(), ['accuracy_multi']),
    (MSELossFlat(), []), (nn.L1Loss(), [])])
def test_the_metric_fits_the_loss(learner, loss, metrics):
    assert learner(loss_func=loss).metrics.attrgot('name') == metrics
    assert learner(loss_func=loss, metrics=[]).metrics == []
    assert learner(loss_func=loss, metrics=error_rate).metrics.attrgot('name') == ['error_rate']

@pytest.mark.parametrize('loss', [F.mse_loss, F.l1_loss, mse, partial(F.smooth_l1_loss, beta=.5), nn.L1Loss(), None])
def test_numbers_of_a_picture_have_no_accuracy(learner, dls, loss):
    "also by a loss that says nothing, such as a function: then the data say it"
    with_numbers = copy.copy(dls.train_ds)
    with_numbers.loss_func = MSELossFlat()
    train = dls.train.new(with_numbers)
    of_numbers = DataLoaders(train, dls.valid)
    learn = bnn_learner(of_numbers, mini(), loss_func=loss, calibrated=False)
    assert learn.metrics == []
    assert bnn_learner(of_numbers, mini(), loss_func=nn.CrossEntropyLoss()).metrics.attrgot('name') == ['accuracy']
    assert learner(loss_func=F.cross_entropy).metrics.attrgot('name') == ['accuracy']

def test_decay_that_has_no_effect_is_refused(learner):
    with pytest.raises(ValueError, match='wd_bn_bias=True: biases'): learner(wd_bn_bias=True)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
    assert learner(net, wd_bn_bias=True).wd_bn_bias and not learner(wd_bn_bias=False).wd_bn_bias

def test_points_say_how_many_numbers(tmp_path):
    "as for fastai's `vision_learner`"
    from fastai.data.block import DataBlock
    from fastai.data.transforms import RandomSplitter, get_image_files
    from fastai.vision.augment import Resize
    from fastai.vision.data import ImageBlock, PointBlock
    from PIL import Image
    for k in range(12): Image.new('RGB', (40, 32), (20*k, 9, 70)).save(tmp_path/f'{k}.png')
    block = DataBlock((ImageBlock, PointBlock), get_items=get_image_files, splitter=RandomSplitter(seed=0),
                      get_y=lambda f: torch.tensor([[8., 9.], [3., 20.]]), item_tfms=Resize(32))
    loaders = block.dataloaders(tmp_path, bs=2, num_workers=0, device='cpu')
    learn = bnn_vision_learner(loaders, 'reactnet_mini_nobn', pretrained=False, path=tmp_path, calibrated=False)
    assert learn.metrics == [] and learn.model(loaders.one_batch()[0]).shape == (2, 4)
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)

def test_several_labels_a_picture_have_a_metric(tmp_path):
    from fastai.data.block import DataBlock, MultiCategoryBlock
    from fastai.data.transforms import RandomSplitter, get_image_files
    from fastai.vision.augment import Resize
    from fastai.vision.data import ImageBlock
    from PIL import Image
    for k in range(12): Image.new('RGB', (32, 32), (20*k, 9, 70)).save(tmp_path/f'{k}.png')
    def labels(p): return [c for c, n in zip('abc', (2, 3, 4)) if int(p.stem) % n == 0]
    block = DataBlock((ImageBlock, MultiCategoryBlock(vocab=list('abc'))), get_items=get_image_files, get_y=labels,
                      splitter=RandomSplitter(seed=0), item_tfms=Resize(32))
    loaders = block.dataloaders(tmp_path, bs=2, num_workers=0, device='cpu')
    learn = bnn_learner(loaders, mini(n_out=3, in_chans=3), path=tmp_path, calibrated=False)
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)
    assert list(learn.recorder.metric_names)[1:4] == ['train_loss', 'valid_loss', 'accuracy_multi']

# EMA -------------------------------------------------------------------------------------------

def test_what_was_validated_is_saved_exported_and_packed(learner, capsys):
    learn = learner(cbs=EMA(.9), clip_factor=None)
    keep = SaveModelCallback()
    learn.fit(2, 2e-2, cbs=keep)
    assert learn.validate()[0] == pytest.approx(float(keep.best), abs=1e-6)
    learn.fit(1, 2e-2)
    average = learn.ema.model.eval()
    last = learn.recorder.values[-1][1]
    assert learn.validate()[0] == pytest.approx(last, abs=1e-6)
    learn.save('last')
    learn.load('last')
    packed = pack(learn.model)
    with torch.no_grad(): wanted = average(IMAGES)
    assert torch.equal(learn.model.eval()(IMAGES), wanted)
    assert (packed(IMAGES) - wanted).abs().max() < 1e-3*wanted.abs().max()

# wrappers --------------------------------------------------------------------------------------

DOORS = {
    'cost': lambda m, d: cost.summary(m, (1, 32, 32)).loc['total', 'ops'],
    'save': lambda m, d: sorted(load_network(save_network(m, d/'m.safetensors')).state_dict()),
    'pack': lambda m, d: pack(m)(IMAGES).tolist(),
    'decay': lambda m, d: len(exempt_parameters(m)),
    'probe': lambda m, d: list(probe(m, IMAGES, torch.zeros(4).long()).index),
    'steps': lambda m, d: sorted(with_binary(m, 'act').state_dict()),
    'calibrate': lambda m, d: len(calibrate(m, IMAGES, again=True)),
    'checks': lambda m, d: assert_bn_free(m)}

@pytest.mark.parametrize('door', DOORS)
def test_every_door_takes_a_wrapped_network(door, tmp_path):
    wraps = WRAPS | dict(averaged=AveragedModel)
    answers = [DOORS[door](wrap(mini().eval()), tmp_path) for wrap in wraps.values()]
    assert all(a == answers[0] for a in answers)

def test_cost_of_a_network_with_a_compiled_part():
    net = mini()
    whole = cost.summary(net, (1, 32, 32)).loc['total', 'ops']
    net.body.block1 = COMPILE(net.body.block1)
    net.compile(backend='eager')
    assert cost.summary(net, (1, 32, 32)).loc['total', 'ops'] == whole

FILES = {
    'module': lambda w: {f'module.{k}': v for k, v in w.items()},
    'compiled': lambda w: {f'_orig_mod.{k}': v for k, v in w.items()},
    'both': lambda w: {f'module._orig_mod.{k}': v for k, v in w.items()},
    'state_dict': lambda w: dict(state_dict=w, epoch=3), 'model': lambda w: dict(model=w, opt={}),
    'ema': lambda w: dict(model={k: v*0 for k, v in w.items()}, ema=w),
    'ema, wrapped': lambda w: dict(ema={f'module.{k}': v for k, v in w.items()} | dict(n_averaged=torch.ones(())))}

@pytest.mark.parametrize('kind', FILES)
def test_names_of_wrappers_in_files(kind):
    weights = mini().state_dict()
    found = plain_state(FILES[kind](weights))
    assert list(found) == list(weights)
    assert all(torch.equal(found[k], weights[k]) for k in found)

def test_a_teacher_from_a_wrapped_file(tmp_path):
    pytest.importorskip('torchvision')
    teacher = load_teacher('torchvision/resnet18', n_out=3, pretrained=False)
    torch.save(FILES['both'](teacher.model.state_dict()), tmp_path/'t.pth')
    again = load_teacher('torchvision/resnet18', n_out=3, file=tmp_path/'t.pth')
    assert torch.equal(again.model.fc.weight, teacher.model.fc.weight)

# an ordinary module ----------------------------------------------------------------------------

NETS = ['reactnet_mini_nobn', 'reactnet_a_nobn', 'xnornet18_nobn', 'vgg11_nobn', 'reactnet_mini_bn']

def made(name):
    set_seed(0)
    stem = 'imagenet' if 'vgg' in name else 'cifar'
    return create_model(name, n_out=10, in_chans=1, width=.125, stem=stem).eval()

@pytest.mark.parametrize('name', NETS)
def test_picture_tensors_and_hooks_on_every_module(name):
    net, pixels = made(name), torch.randn(2, 1, 64, 64)
    x = pixels.clone().requires_grad_()
    net(x)[:, 0].sum().backward()
    wanted = {n: p.grad.clone() for n, p in net.named_parameters()}
    net.zero_grad()
    seen, kept = [], []
    for m in net.modules():
        m.register_full_backward_hook(lambda m, gi, go: seen.append(go[0].shape))
        m.register_forward_hook(lambda m, i, o: kept.append((o.detach(), o.detach().clone())))
    y = TensorImage(pixels.clone()).requires_grad_()
    net(y)[:, 0].sum().backward()
    assert torch.equal(y.grad.as_subclass(torch.Tensor), x.grad)
    assert all(torch.equal(p.grad, wanted[n]) for n, p in net.named_parameters())
    assert len(seen) > 10 and all(torch.equal(a, b) for a, b in kept) # no output is written over

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes_and_copies(dtype):
    net = mini().to(dtype).eval()
    y = net(IMAGES.to(dtype))
    assert y.dtype == dtype and y.isfinite().all()
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))): assert torch.equal(twin(IMAGES.to(dtype)), y)

def close(a, b): return (a - b).abs().max() <= 1e-4*b.abs().max() + 1e-7

@pytest.mark.parametrize('name', ['reactnet_mini_nobn', 'xnornet18_nobn', 'reactnet_a_nobn'])
def test_transforms_of_torch_func(name):
    net, x = made(name), IMAGES
    values = {k: v.detach() for k, v in net.named_parameters()}
    def loss(p, x): return functional_call(net, p, (x,)).square().sum()
    by_func = grad(loss)(values, x)
    each = vmap(grad(lambda p, x: loss(p, x[None])), in_dims=(None, 0))(values, x)
    net(x).square().sum().backward()
    for k, p in net.named_parameters():
        assert close(by_func[k], p.grad) and close(each[k].sum(0), p.grad), k
    direction = {k: torch.randn_like(v) for k, v in values.items()}
    _, along = jvp(lambda p: loss(p, x), (values,), (direction,))
    assert along.item() == pytest.approx(sum((by_func[k]*direction[k]).sum().item() for k in values), rel=1e-2)

def test_an_ensemble_by_vmap():
    nets = [mini(alpha=a) for a in (.2, .2, .2)]
    weights, base = stack_module_state(nets), copy.deepcopy(nets[0]).to('meta')
    y = vmap(lambda p, b: functional_call(base, (p, b), (IMAGES,)))(*weights)
    assert close(y, torch.stack([net(IMAGES) for net in nets]))

@pytest.mark.parametrize('cls', [QuantConv2d, ScaledStdConv2d])
@pytest.mark.parametrize('binary', [False, True])
@pytest.mark.parametrize('kw', [
    dict(kernel_size=(3, 5), padding=(0, 2), stride=(1, 2)),
    dict(kernel_size=2, padding='same'),
    dict(kernel_size=3, padding='valid', dilation=(2, 1)),
    dict(kernel_size=3, padding=(1, 2), padding_mode='circular'),
    dict(kernel_size=5, padding=2, padding_mode='reflect', stride=2, groups=2)])
def test_convolutions_take_what_torch_takes(cls, binary, kw):
    set_seed(0)
    ours = cls(4, 6, **kw, bias=True, binary=binary, dtype=torch.float64, device='cpu')
    w, scale = ours.kernel()
    theirs = nn.Conv2d(4, 6, **kw, dtype=torch.float64)
    theirs.weight.data, theirs.bias.data = (w if scale is None else w*scale).detach(), ours.bias.data
    x = torch.randn(2, 4, 9, 11, dtype=torch.float64)
    assert torch.allclose(ours(x), theirs(x), atol=1e-12) and torch.allclose(ours(x[0]), theirs(x[0]), atol=1e-12)

# the live network ------------------------------------------------------------------------------

def test_the_words_of_timm(tmp_path):
    for net in (mini(n_out=7), reactnet_nobn('mini', num_classes=7, in_chans=1, width=.25),
                binary_net('reactnet_mini', num_classes=7, in_chans=1, width=.25)):
        assert net.num_classes == net.n_out == 7
        assert net.reset_classifier(num_classes=5)(IMAGES).shape == (4, 5)
    file = save_network(net, tmp_path/'five.safetensors')
    with pytest.warns(UserWarning, match='fresh'): assert load_network(file, num_classes=3).num_classes == 3
    with pytest.raises(TypeError, match='same thing'): load_network(file, n_out=3, num_classes=3)

@pytest.mark.parametrize('make', [
    partial(create_model, 'cifar10-reactnet18-w50'),
    partial(create_model, 'cifar10-reactnet18-w50', pretrained=True),
    partial(create_model, 'reactnet_mini_nobn'), partial(create_model, 'vgg11_real'), partial(reactnet_nobn, 'mini'),
    partial(binary_net, 'reactnet_mini')])
@pytest.mark.filterwarnings('ignore:.*fresh')
def test_both_words_for_the_classes(make):
    "either of them, num_classes=None as if it were left out, and both are refused"
    own = make().state_dict()
    again = make(num_classes=None).state_dict()
    assert {k: v.shape for k, v in again.items()} == {k: v.shape for k, v in own.items()}
    for words in dict(n_out=7), dict(num_classes=7), dict(n_out=None, num_classes=7):
        assert list(make(**words).parameters())[-1].shape == (7,)
    with pytest.raises(TypeError, match='same thing'): make(n_out=10, num_classes=20)

def test_a_fresh_classifier_keeps_what_stands_behind_it():
    net, x = resnet9(width=.125), torch.randn(2, 3, 32, 32)
    assert net.reset_classifier(4)(x).shape == (2, 4) and type(net.head[-1]).__name__ == 'Scale'
    assert net.forward_head(net.forward_features(x), pre_logits=True).shape == (2, 64)
    net = mini()
    net.head.fc = nn.Identity()
    assert net.reset_classifier(3)(IMAGES).shape == (4, 3)

def test_numbers_of_numpy(tmp_path):
    import numpy as np
    net = mini(n_out=np.int64(7), in_chans=np.int32(1), width=np.float32(.25))
    assert load_network(save_network(net, tmp_path/'n.safetensors')).cfg == net.cfg
    with pytest.raises(ValueError, match='n_out=True'): mini(n_out=True)

@pytest.mark.parametrize('word,near', [('weight_decay', 'wd'), ('optimizer', 'opt'),
                                       ('clip_facter', 'clip_factor'), ('metric', 'metrics')])
def test_did_you_mean(learner, word, near):
    with pytest.raises(TypeError, match=f"'{word}' .did you mean .*{near}"): learner(**{word: 1})

# files -----------------------------------------------------------------------------------------

def _write_often(path, byte, queue):
    try:
        for _ in range(20): write_file(path, bytes([byte])*200_000, previous=f'{path}.previous')
        queue.put(None)
    except Exception as e: queue.put(repr(e))

def test_two_writers_of_one_file(tmp_path):
    path, queue = str(tmp_path/'best.bin'), mp.get_context('spawn').Queue()
    ps = [mp.get_context('spawn').Process(target=_write_often, args=(path, i, queue)) for i in range(3)]
    for p in ps: p.start()
    assert [queue.get(timeout=200) for _ in ps] == [None]*3
    for p in ps: p.join()
    data = Path(path).read_bytes()
    assert data == data[:1]*200_000 and sorted(f.name for f in tmp_path.iterdir()) == ['best.bin', 'best.bin.previous']

def test_only_leftovers_of_killed_writers_are_removed(tmp_path):
    mine, living = tmp_path/'m.bin.notes.tmp', tmp_path/f'm.bin.{os.getpid()}.tmp'
    for f in (mine, living): f.touch()
    write_file(tmp_path/'m.bin', b'new')
    assert mine.exists() and living.exists()

def test_tilde_is_home_at_every_door(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('HOME', str(tmp_path/'home'))
    net = mini()
    file, packed = save_network(net, '~/a/m.safetensors'), pack(net).save('~/a/m.bnn')
    for f in (file, packed): assert f.parent == tmp_path/'home/a' and f.is_file()
    load_network('~/a/m.safetensors')
    load_packed('~/a/m.bnn')
    assert ExactResume('~/s.safetensors').file == tmp_path/'home/s.safetensors'
    assert not (tmp_path/'~').exists()

def test_a_learner_of_ours_brings_its_trainings():
    "in a process that has imported the learner alone"
    code = '''
from bnn_bn.data import fashion_mini
from bnn_bn.learner import DivergenceGuard, bnn_learner, first_nonfinite
from bnn_bn.models import reactnet_nobn
net = reactnet_nobn('mini', n_out=10, in_chans=1, stem='cifar', width=.25)
learn = bnn_learner(fashion_mini(bs=50, n=100, device='cpu'), net)
try: learn.fit_step(1, lr=float('nan'))
except ValueError as e: print(e, callable(learn.fit_two_step))
'''
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True)
    assert done.stdout.strip() == 'lr=nan: a finite number above 0 is needed True', done.stderr
