"The calibrated start where a notebook cannot show it: two steps, files, processes, modes and devices."
import copy, gc, json
import pytest, torch
import torch.distributed as dist
import torch.distributed.nn # noqa: F401, its functions would keep a connection made before it
import torch.multiprocessing as mp
import fastai.callback.progress # noqa: F401, Learner.no_bar
from fastai.basics import set_seed
from bnn_bn.checkpoint import load_network, save_network
from bnn_bn.core.errors import DataError
from bnn_bn.data import fashion_mini
from bnn_bn.layers.blocks import BiRealBlock
from bnn_bn.learner import bnn_learner
from bnn_bn.models import assert_bn_free, create_model, reactnet_nobn
from bnn_bn.train.recipes import make_dls, make_learner, make_recipe
from bnn_bn.train.run import train
from bnn_bn.signal.ledger import plot_sigprop, signal_stats
from bnn_bn.signal.probe import dead_channels, flip_ratio, probe, signs
from bnn_bn.signal.start import CalibratedStart, calibrate, is_fresh, start_parameters
import bnn_bn.train.steps # noqa: F401, Learner.fit_two_step
from test_uneven_shares import threads

torch.manual_seed(0)
IMAGES = torch.randn(32, 1, 32, 32)


def mini(**kw):
    set_seed(0)
    return reactnet_nobn('mini', n_out=10, in_chans=1, width=.25, **kw)


def quiet_fit(learn, **kw):
    with learn.no_bar(), learn.no_logging(): return learn.fit_step(1, 1e-3, **kw)


def learner(model, **kw): return bnn_learner(fashion_mini(bs=32, n=64, device='cpu'), model, **kw)


def test_deterministic():
    a, b = mini(), mini()
    calibrate(a, IMAGES)
    calibrate(b, IMAGES)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters()))


def test_only_the_start_parameters_change_and_modes_stay():
    net = mini().train()
    net.body.block2.eval()
    before, modes = copy.deepcopy(net.state_dict()), [m.training for m in net.modules()]
    calibrate(net, IMAGES)
    changed = {k for k, v in net.state_dict().items() if not torch.equal(v, before[k])}
    assert changed and changed <= set(start_parameters(net))
    assert modes == [m.training for m in net.modules()]
    assert_bn_free(net)
    assert all(p.grad is None for p in net.parameters())


def test_the_scale_of_the_images_does_not_matter_behind_the_stem():
    "gains undo what scales the images: the calibrated networks answer alike"
    a, b = mini(), mini()
    calibrate(a, IMAGES)
    calibrate(b, 7*IMAGES)
    assert torch.allclose(a(IMAGES), b(7*IMAGES), atol=1e-3)


def test_autocast_outside_changes_nothing():
    a, b = mini(), mini()
    calibrate(a, IMAGES)
    with torch.autocast('cpu', torch.bfloat16): calibrate(b, IMAGES)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters()))


@pytest.mark.parametrize('part, ending', [('gains', 'gain'), ('thresholds', 'sign.shift'), ('shifts', 'shift_in')])
def test_one_part_alone(part, ending):
    net = mini()
    before = copy.deepcopy(net.state_dict())
    calibrate(net, IMAGES, parts=(part,))
    changed = [k for k, v in net.state_dict().items() if not torch.equal(v, before[k])]
    assert changed and all(k.endswith(ending) for k in changed)


def test_dead_channels_are_named_and_keep_their_gain():
    net = mini()
    with torch.no_grad(): net.body.block1.conv.weight[3] = .5  # constant: less its mean nothing is left
    table = calibrate(net, IMAGES)
    assert table.loc['body.block1.conv', 'dead'] == [3]
    assert net.body.block1.conv.gain[3] == 1
    assert all(p.isfinite().all() for p in net.parameters())


def test_step_two_keeps_what_step_one_learned():
    learn = learner(mini(binary='act'), clip_factor=None)
    seen = []
    real = CalibratedStart.before_batch
    def spy(self):
        due = self.due
        real(self)
        if due: seen.append((self.model.cfg['binary'], self.table is not None))
        if due: self.table = None
    CalibratedStart.before_batch = spy
    try:
        with learn.no_bar(), learn.no_logging(): learn.fit_two_step((1, 1), 1e-3)
    finally: CalibratedStart.before_batch = real
    assert seen == [('act', True), ('both', False)]


def test_a_loaded_network_stays(tmp_path):
    learn = learner(mini())
    quiet_fit(learn)
    save_network(learn.model, tmp_path/'net.safetensors')
    again = learner(load_network(tmp_path/'net.safetensors'))
    quiet_fit(again)
    assert again.calibrated_start.table is None


def test_lr_find_leaves_the_network_fresh():
    learn = learner(mini())
    import fastai.callback.schedule # noqa: F401
    with learn.no_bar(), learn.no_logging(): learn.lr_find(num_it=20, show_plot=False)
    assert is_fresh(learn.model)
    quiet_fit(learn)
    assert learn.calibrated_start.table is not None


def test_the_recipe_says_it_and_the_run_records_it(tmp_path):
    r = make_recipe('fashion', epochs=1, width=.25, bs=32, start='calibrated')
    result = train(r, tmp_path/'run', images=64, device='cpu')
    assert result['recipe']['start'] == 'calibrated'
    assert json.loads((tmp_path/'run/config.json').read_text())['recipe']['start'] == 'calibrated'
    learn = make_learner(make_recipe('cifar10', width=.25), fashion_mini(bs=32, n=64, device='cpu'))
    assert not hasattr(learn, 'calibrated_start')  # as published


def test_batch_norm_by_the_same_recipe_is_left_alone():
    r = make_recipe('fashion', norm='bn', epochs=1, width=.25, bs=32, start='calibrated')
    learn = make_learner(r, make_dls(r, device='cpu', images=64))
    quiet_fit(learn)
    assert learn.calibrated_start.table is None


def _process(rank, world, file, out):
    "one of several processes: calibrate on its share of the batch"
    dist.init_process_group('gloo', init_method=f'file://{file}', rank=rank, world_size=world)
    net, start = mini(), CalibratedStart()
    if rank: torch.nn.init.constant_(net.head.fc.bias, 3.)  # what is not calibrated may differ
    joined = type('Joined', (), {})()
    joined.accelerator = None  # as fastai's DistributedTrainer has one
    start.learn = type('Learn', (), dict(model=net, xb=(IMAGES[rank::world],), cbs=[joined]))()
    start.before_fit()
    start.before_batch()
    torch.save({n: p.detach() for n, p in start_parameters(net).items()}, f'{out}/{rank}.pt')
    dist.destroy_process_group()
    gc.collect() # a thread of the connection that is at work while Python shuts down aborts it
    assert not [name for name in threads() if 'gloo' in name]


def test_two_processes_start_where_one_does(tmp_path):
    mp.spawn(_process, (2, tmp_path/'store', tmp_path), nprocs=2)
    net = mini()
    calibrate(net, IMAGES)
    for rank in (0, 1):
        found = torch.load(tmp_path/f'{rank}.pt')
        for name, p in start_parameters(net).items(): assert torch.equal(found[name], p), (rank, name)


@pytest.mark.parametrize('stem', ['cifar', 'imagenet'])
@pytest.mark.parametrize('name', ['reactnet34_nobn', 'birealnet34_nobn', 'vgg11_nobn'])
def test_other_depths_and_stems(name, stem):
    set_seed(0)
    net = create_model(name, n_out=10, stem=stem, in_chans=1, width=.125)
    x = torch.nn.functional.interpolate(IMAGES, (64, 64)) if stem == 'imagenet' else IMAGES
    table = calibrate(net, x)
    assert not table.dead.dropna().map(len).any()
    again = calibrate(net, x, again=True)
    gains = again[again.set == 'gains']
    assert torch.allclose(torch.tensor(gains.met.tolist()), torch.tensor(gains.wanted.tolist()), rtol=1e-4)


def test_a_walk_that_fails_puts_everything_back():
    net = mini()
    before = copy.deepcopy(net.state_dict())
    def fail(m, args): raise RuntimeError('no memory')
    net.body.block4.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match='no memory'): calibrate(net, IMAGES)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert not any(m._forward_hooks for m in net.modules())


def by_name(self, x):
    "as `BiRealBlock.forward`, but with the factors by name"
    shortcut = x if self.shortcut is None else self.transition(x)
    branch = self.norm(self.conv(self.sign(x=x, factor=self.beta), factor=self.alpha))
    return self.act(branch + shortcut)


def test_a_factor_given_by_name_counts(monkeypatch):
    "for gains, thresholds and the probe alike"
    places, names = mini(), mini()
    table = calibrate(places, IMAGES)
    health = probe(places, IMAGES, torch.zeros(32, dtype=torch.long))
    dead, found = dead_channels(places, IMAGES), signs(places, IMAGES)
    monkeypatch.setattr(BiRealBlock, 'forward', by_name)
    assert calibrate(names, IMAGES).equals(table)
    assert all(torch.equal(p, q) for p, q in zip(places.parameters(), names.parameters()))
    assert probe(names, IMAGES, torch.zeros(32, dtype=torch.long)).equals(health)
    assert dead_channels(names, IMAGES).equals(dead)
    assert not flip_ratio(found, signs(names, IMAGES)).any(axis=None)


def test_parts_that_a_network_does_not_have():
    "the words name them, and nothing changes"
    cases = dict(shifts=dict(act='none'), thresholds=dict(rules='reference', act='none'))
    for part, kw in cases.items():
        net = create_model('birealnet18_nobn', n_out=10, stem='cifar', in_chans=1, width=.125, **kw)
        before = copy.deepcopy(net.state_dict())
        with pytest.raises(ValueError, match=f"{part}.*leave parts out"): calibrate(net, IMAGES, parts=(part,))
        with pytest.raises(DataError, match=part):
            quiet_fit(learner(net, calibrated=False), cbs=CalibratedStart(parts=(part,)))
        assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
        assert len(calibrate(net, IMAGES, parts=(part, 'gains')))


def compiled_before(net):
    c = torch.compile(net.eval(), backend='eager')
    c(IMAGES)
    return c


def compiled_in_place(net):
    net.eval().compile(backend='eager')
    net(IMAGES)
    return net


@pytest.mark.parametrize('wrap', [compiled_before, compiled_in_place, torch.nn.DataParallel])
def test_the_signal_of_a_wrapped_network(wrap):
    torch._dynamo.reset()
    expected = signal_stats(mini(), IMAGES)
    assert signal_stats(wrap(mini()), IMAGES).equals(expected)
    plot_sigprop(wrap(mini()), IMAGES)
