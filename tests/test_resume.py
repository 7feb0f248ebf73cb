"A training stopped at any batch, and what its state holds; a tiny network tries each place."
import copy, json, math, random, signal, threading, warnings
import numpy as np, pytest, torch
from fastai.basics import Adam, Callback, DataLoader, DataLoaders, Learner, OptimWrapper, set_seed
from fastai.callback import progress, schedule  # noqa: F401 (no_bar, fit_one_cycle, lr_find)
from fastai.callback.training import GradientAccumulation
from torch import nn
from bnn_bn.checkpoint import save_network, write_tensors
from bnn_bn.core.errors import CheckpointError
from bnn_bn.models import binary_net, decay_groups
from bnn_bn.train import resume
from bnn_bn.train.resume import STOP, ExactResume, Interrupted, load_state, on_signals, pack_tree
from bnn_bn.train.resume import previous_file, random_states, restore_random_states, same_settings
from bnn_bn.train.resume import save_state, state_of, stop_signals, unpack_tree


def refused(match): return pytest.raises(CheckpointError, match=match)

def same_tensors(a, b): return torch.equal(a, b) and a.dtype == b.dtype

def same(a, b):
    "equal to the bit, trees of tensors and numbers; NaN equals itself"
    if isinstance(a, torch.Tensor): return same_tensors(a, b)
    if isinstance(a, float): return a == b or math.isnan(a) and math.isnan(b) # numpy's too
    if type(a) is not type(b): return False
    if isinstance(a, dict): return a.keys() == b.keys() and same([*a.values()], [b[k] for k in a])
    if isinstance(a, (list, tuple)): return len(a) == len(b) and all(map(same, a, b))
    return a == b

@pytest.fixture
def file(tmp_path): return tmp_path/'state.safetensors'


# Trees and files ---------------------------------------------------------------------------------

T = torch.arange(3)
TREE = dict(a=[1, 2.5, None, True, 'x', (T, [T + 1])], b={'c': {}, 1: T + 2, '1': T + 3}, e=[],
            f=(), g={1: math.nan}, h=T[:0])

@pytest.mark.parametrize('tree', (TREE, T, 3, None, 'x', [], {'tensor': 'a'}, {'dict': {'list': T}},
                                  {'a.b': T, 'a': {'b': T + 1}, "a.b'": T + 2}), ids=str)
def test_a_tree_comes_back(tree):
    "types of keys, tuples and lists, and names that are spelt alike; through JSON"
    skeleton, tensors = pack_tree(tree)
    assert same(unpack_tree(json.loads(json.dumps(skeleton)), tensors), tree)


def test_names_of_tensors_and_of_what_has_no_place():
    skeleton, tensors = pack_tree({'a': [0, (T, T)], 'b': T})
    assert list(tensors) == ['state.a.1.0', 'state.a.1.1', 'state.b']
    assert list(pack_tree([T], 'x')[1]) == ['x.0'] and list(pack_tree(T)[1]) == ['state']
    for bad in ({1}, np.ones(2), object(), 1j):
        with refused(f'^state.opt.1 is a {type(bad).__name__}: a state holds'):
            pack_tree({'opt': [T, bad]})
    with refused('^here is a set'): pack_tree(set(), 'here')


def test_the_state_before_is_kept(file):
    assert load_state(file) is None
    save_state(file, TREE)
    assert same(load_state(file), TREE) and not previous_file(file).exists()
    first = file.read_bytes()
    save_state(str(file), dict(n=2))
    assert load_state(str(file)) == dict(n=2) and previous_file(file).read_bytes() == first
    assert previous_file(file) == file.with_name('state.previous.safetensors')


def test_a_damaged_state_gives_way_to_the_one_before(file):
    "with a warning at the place of the caller's caller; two damaged ones are an error"
    for n in (1, 2): save_state(file, dict(n=n))
    data = file.read_bytes()
    for damaged in (data[:-1], b'', data[:-1] + bytes([data[-1] ^ 1])):
        file.write_bytes(damaged)
        with pytest.warns(UserWarning, match=f'^{file}: .*{previous_file(file)} is taken') as said:
            assert load_state(file) == dict(n=1)
        assert len(said) == 1
    previous_file(file).write_bytes(b'x')
    with refused(f'(?s)^no state can be read: {file}: .*; {previous_file(file)}: .*start again'):
        load_state(file)
    file.unlink()
    with refused(f'^no state can be read: {previous_file(file)}'): load_state(file)


def test_the_state_before_alone(file):
    "a crash between two renames leaves it so: no fault, no warning"
    for n in (1, 2): save_state(file, dict(n=n))
    file.unlink()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert load_state(file) == dict(n=1)


def test_files_of_something_else(file, tmp_path):
    save_network(binary_net('reactnet_mini', width=.25, n_out=2), file)
    with refused(f'^{file}: holds no state of a training'): load_state(file)
    wrong = {'tensor': 'none'}, {'set': []}, {}, {'dict': 3}, {'dict': [1]}, {'a': 1, 'b': 2}
    for skeleton in wrong:
        write_tensors(file, {'state': T}, state=skeleton)
        with refused('its header names what is not there'): load_state(file)
    assert same(load_state(write_state(file, {'tensor': 'state'})), T)

def write_state(file, skeleton):
    write_tensors(file, {'state': T}, state=skeleton)
    return file


# Generators --------------------------------------------------------------------------------------

class Numbers:
    "a dataset of numbered rows"
    def __init__(self, n): self.x = torch.randn(n, 3, generator=torch.Generator().manual_seed(n))
    def __len__(self): return len(self.x)
    def __getitem__(self, i): return self.x[i], self.x[i].sum()[None]

def loaders(n=20, bs=5):
    dls = DataLoaders(DataLoader(Numbers(n), bs=bs, shuffle=True), DataLoader(Numbers(10), bs=bs))
    dls.train.rng.seed(0)
    return dls

def draw(dls):
    "a number of each generator, and the order of the pictures"
    order = [y.view(-1).tolist() for _, y in dls.train]
    return random.random(), np.random.randn(), torch.rand(1).item(), order

def test_generators_go_on_where_they_were():
    "the second number of a pair that numpy draws at once, too; the states are plain"
    dls = loaders()
    np.random.randn()
    states = unpack_tree(*pack_tree(random_states(dls)))
    first, second = draw(dls), draw(dls)
    assert first != second and first[3] != second[3]
    for again in (dls, loaders()):
        restore_random_states(again, states)
        assert draw(again) == first
    assert set(states) == {'python', 'numpy', 'torch', 'cuda', 'loaders', 'own'}
    assert len(states['loaders']) == 2


class Gpus:
    "two generators in the place of those of two GPUs"
    def __init__(self, drawn=()):
        self.all = [torch.Generator().manual_seed(0) for _ in range(2)]
        for g in drawn: torch.rand(7, generator=self.all[g])
    def put(self, patch):
        def index(device): return torch.device(device).index
        patch.setattr(torch.cuda, 'is_available', lambda: True)
        patch.setattr(torch.cuda, 'device_count', lambda: 2)
        patch.setattr(torch.cuda, 'get_rng_state_all', lambda: [g.get_state() for g in self.all])
        patch.setattr(torch.cuda, 'set_rng_state_all',
                      lambda states: [g.set_state(s) for g, s in zip(self.all, states)])
        patch.setattr(torch.cuda, 'get_rng_state', lambda device: self.all[index(device)].get_state())
        patch.setattr(torch.cuda, 'set_rng_state', lambda state, device: self.all[index(device)].set_state(state))
        return self

@pytest.mark.parametrize('before, after', [(0, 1), (1, 0), (0, 0)])
def test_the_generator_of_the_own_gpu_goes_on(before, after, monkeypatch):
    "in a process that has another one than the process that wrote, or with another number"
    dls = loaders()
    dls.device = torch.device('cuda', before)
    first = Gpus([before]).put(monkeypatch)
    states = unpack_tree(*pack_tree(random_states(dls)))
    dls.device, again = torch.device('cuda', after), Gpus().put(monkeypatch)
    restore_random_states(dls, states)
    wanted, found = first.all[before].get_state(), again.all[after].get_state()
    assert torch.equal(wanted, found)
    del states['own'] # of an earlier version
    restore_random_states(dls, states)


class Skips(DataLoader):
    "can leave out its first batches"
    first, made = 0, 0
    def create_batches(self, ids):
        for i, b in enumerate(super().create_batches(ids)):
            if i < self.first: continue
            self.made += 1
            yield b

@pytest.mark.parametrize('kind', (DataLoader, Skips))
def test_the_rest_of_a_loader(kind):
    "the same batches from the n-th on; those before are not made where that can be"
    def made(): return kind(list(range(12)), bs=3, shuffle=True)
    whole = [b.tolist() for b in make_seeded(made())]
    for n in range(1, 5):
        dl, said = make_seeded(made()), []
        rest = resume._Rest(dl, n, lambda said=said: said.append(0))
        assert len(rest) == 4 and rest.bs == 3 and rest.dataset == dl.dataset
        assert not said
        assert [b.tolist() for b in rest] == whole[n:] and said == [0]
        if kind is Skips:
            assert (dl.first, dl.made) == (0, 4 - (n - 1))
            assert len(list(dl)) == 4
    with pytest.raises(AttributeError): rest.no_such_thing
    with pytest.raises(AttributeError): resume._Rest.__new__(resume._Rest).bs # as a copy begins

def make_seeded(dl):
    dl.rng.seed(1)
    return dl


# Signals -----------------------------------------------------------------------------------------

def listen_to(request, number):
    "a handler of Python's for the length of a test, also where the signal came in ignored"
    old = signal.signal(number, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(number, old))

def test_signals_are_handled_within(request):
    "handlers are put back; what is ignored stays so, but for Ctrl-C; threads change nothing"
    for s in STOP: listen_to(request, getattr(signal, s))
    heard, before = [], {s: signal.getsignal(getattr(signal, s)) for s in STOP}
    def note(number, frame): heard.append(number)
    with on_signals(note):
        for s in STOP: signal.raise_signal(getattr(signal, s))
    assert heard == [getattr(signal, s) for s in STOP]
    assert {s: signal.getsignal(getattr(signal, s)) for s in STOP} == before
    with pytest.raises(ZeroDivisionError), on_signals(note): 1/0
    assert {s: signal.getsignal(getattr(signal, s)) for s in STOP} == before

@pytest.mark.parametrize('name', ('SIGINT', 'SIGTERM'))
def test_an_ignored_signal(name):
    number, heard = getattr(signal, name), []
    old = signal.signal(number, signal.SIG_IGN)
    try:
        with on_signals(lambda n, f: heard.append(n), ('SIGINT', 'SIGTERM', 'SIGNONE')):
            signal.raise_signal(number)
        assert signal.getsignal(number) == signal.SIG_IGN
    finally: signal.signal(number, old)
    assert heard == ([number] if name == 'SIGINT' else [])

def test_other_threads_leave_signals_alone():
    found = []
    def look():
        with on_signals(print): found.append(signal.getsignal(signal.SIGTERM))
    t = threading.Thread(target=look)
    t.start()
    t.join()
    assert found == [signal.getsignal(signal.SIGTERM)]

def test_a_second_interrupt_ends_at_once():
    with stop_signals() as stop:
        assert not stop.is_set()
        for _ in range(2):
            signal.raise_signal(signal.SIGTERM)
            assert stop.is_set()
        with pytest.raises(KeyboardInterrupt): signal.raise_signal(signal.SIGINT)
    with stop_signals() as stop:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        assert stop.is_set()
    assert issubclass(Interrupted, KeyboardInterrupt)


# Trainings ---------------------------------------------------------------------------------------

EPOCHS, BATCHES = 2, 4 # and two batches of validation

class At(Callback):
    "Call a function in a batch of an epoch"
    def __init__(self, f, *at): self.f, self.at = f, at
    def after_batch(self):
        if (self.epoch, self.iter, self.training) == self.at: self.f()

class Seen(Callback):
    "What a schedule or a progress bar sees in each step"
    def __init__(self): self.steps = []
    def after_batch(self):
        row = self.training, self.epoch, self.iter, self.n_epoch, self.pct_train, self.loss.item()
        self.steps.append((*row, self.train_iter))

class Total(Callback):
    "A sum over the steps of a training"
    def __init__(self): self.sum = 0.
    def after_batch(self):
        if self.training: self.sum += self.loss.item()
    def state_dict(self): return dict(sum=self.sum)
    def load_state_dict(self, s): self.sum = s['sum']

def adamw(params, lr, **kw): return OptimWrapper(params, torch.optim.AdamW, lr=lr)

def learner(opt=None, **kw):
    set_seed(0, reproducible=True)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(.5), nn.Linear(4, 1))
    kw = dict(opt_func=opt) if opt else {}
    return Learner(loaders(), net, loss_func=nn.MSELoss(), cbs=[Total()], **kw)

def train(file=None, *cbs, epochs=EPOCHS, learn=None, opt=None, one_cycle=True, **kw):
    "a Learner from nothing, and what was seen of its training"
    learn, seen = learn or learner(opt), Seen()
    cbs = [*cbs, seen, *([ExactResume(file, **kw)] if file else [])]
    fit = learn.fit_one_cycle if one_cycle else learn.fit
    with learn.no_bar(), learn.no_logging(): fit(epochs, .1, cbs=cbs)
    return learn, seen.steps

def all_of(learn): return state_of(learn) | dict(total=learn.total.sum)

@pytest.fixture(scope='module')
def whole(): return train()

def stopped(file, at, *cbs, **kw):
    stop = threading.Event()
    with pytest.raises(Interrupted) as e: train(file, At(stop.set, *at), *cbs, stop=stop, **kw)
    return str(e.value)


TRAINING = [(e, b, True) for e in range(EPOCHS) for b in range(BATCHES)]
VALIDATION = [(e, b, False) for e in range(EPOCHS) for b in range(2)]

@pytest.mark.parametrize('at', TRAINING + VALIDATION, ids=str)
def test_stopped_anywhere_goes_on_to_the_same_bits(at, whole, file):
    "weights, moments, statistics, dropout, order, schedule, recorder: as if nothing had been"
    said = stopped(file, at)
    epoch, batch, training = at
    place = epoch, batch + 1 if training else BATCHES
    state = load_state(file)
    assert (state['epoch'], state['batch']) == place
    assert said == (f'stopped in epoch {place[0] + 1} after {place[1]} batches; '
                    f'{file} goes on from there')
    learn, seen = train(file)
    assert same(all_of(learn), all_of(whole[0]))
    steps = whole[1]
    first = next(i for i, s in enumerate(steps) if (s[1], s[2] if s[0] else BATCHES) >= place)
    assert seen == steps[first:]
    assert load_state(file)['epoch'] == EPOCHS


def summing(): return GradientAccumulation(15) # a step after three batches, also of two epochs

@pytest.fixture(scope='module')
def accumulated(): return all_of(train(None, summing(), epochs=3)[0])

@pytest.mark.parametrize('at', [a for a in TRAINING + VALIDATION if a[1] % 2 or a[0]], ids=str)
def test_gradients_that_are_accumulated_go_on(at, accumulated, file):
    "stopped before their step, within an epoch or while it validates"
    stopped(file, at, summing(), epochs=3)
    learn, _ = train(file, summing(), epochs=3)
    assert same(all_of(learn), accumulated)

def test_gradients_that_wait_at_the_end_of_an_epoch(accumulated, file):
    with pytest.raises(Crash): train(file, At(crash, 1, 0, True), summing(), epochs=3)
    state = load_state(file)
    assert state['epoch'] == 1 and state['callbacks']['gradient_accumulation']['count'] == 5
    learn, _ = train(file, summing(), epochs=3)
    assert same(all_of(learn), accumulated)

def test_a_state_of_accumulated_gradients_belongs_to_such_a_training(file):
    with pytest.raises(Crash): train(file, At(crash, 1, 0, True), summing())
    with refused('gradient_accumulation'): train(file)

def steps_of(seen): return [s for s in seen if s[0]]

class Crash(Exception): pass

def crash(): raise Crash('the power is gone')

@pytest.mark.parametrize('steps', (1, 2, 3, 4, 5, None))
def test_a_crash_goes_on_from_the_last_save(steps, whole, file):
    "saves each so many steps of an epoch, and after each epoch"
    with pytest.raises(Crash): train(file, At(crash, 1, 2, True), steps=steps)
    saves = [b for b in range(1, 3) if steps and b % steps == 0]
    state = load_state(file)
    assert (state['epoch'], state['batch']) == (1, max(saves, default=0))
    learn, seen = train(file, steps=steps)
    assert same(all_of(learn), all_of(whole[0]))
    first = BATCHES + max(saves, default=0)
    assert steps_of(seen) == steps_of(whole[1])[first:]


def test_stopped_twice(whole, file):
    "the second time in the same epoch"
    for at in ((1, 0, True), (1, 1, True), (1, 3, True)): stopped(file, at)
    assert same(all_of(train(file)[0]), all_of(whole[0]))


@pytest.mark.parametrize('one_cycle', (False, True))
@pytest.mark.parametrize('opt', (adamw, None))
def test_optimizers_of_torch_and_of_fastai(opt, one_cycle, file):
    want = train(opt=opt, one_cycle=one_cycle)[0]
    for at in ((0, 1, True), (1, 2, True)): stopped(file, at, opt=opt, one_cycle=one_cycle)
    assert same(all_of(train(file, opt=opt, one_cycle=one_cycle)[0]), all_of(want))


def test_a_fit_more_trains_on(file):
    "within one process a second fit is a new training; a new process is told that all is done"
    learn = learner()
    cb = ExactResume(file)
    learn.add_cb(cb)
    train(learn=learn)
    assert cb.finished
    before = copy.deepcopy(learn.model.state_dict())
    _, seen = train(learn=learn)
    assert len(seen) == EPOCHS*(BATCHES + 2) and not same(before, dict(learn.model.state_dict()))
    with pytest.warns(UserWarning, match=f'^{file}: all 2 epochs of this training are done'):
        again, seen = train(file)
    assert seen == [] and same(all_of(again)['model'], all_of(learn)['model'])
    assert not any(isinstance(c, resume._Place) for c in learn.cbs + again.cbs)


def test_a_training_that_begins_with_a_later_epoch(file):
    "epochs before it are skipped, and a stop within the others goes on to the same bits"
    def late(*cbs, **kw):
        fit, seen = learner(), Seen()
        with fit.no_bar(), fit.no_logging():
            fit.fit_one_cycle(4, .1, cbs=[*cbs, seen, ExactResume(file, **kw)], start_epoch=2)
        return all_of(fit), steps_of(seen.steps)
    whole, steps = late()
    assert [s[1] for s in steps] == [2]*BATCHES + [3]*BATCHES and load_state(file)['epoch'] == 4
    file.unlink()
    stop = threading.Event()
    with pytest.raises(Interrupted): late(At(stop.set, 3, 1, True), stop=stop)
    again, rest = late()
    assert same(again, whole) and rest == steps[BATCHES + 2:]


def test_trials_leave_no_state(file, tmp_path):
    learn = learner()
    learn.path = tmp_path
    learn.add_cb(ExactResume(file))
    with learn.no_bar(), learn.no_logging():
        learn.lr_find(num_it=3, show_plot=False, suggest_funcs=None)
        learn.validate()
    assert not file.exists()


def test_settings_that_differ(file):
    "each is named; a setting that an earlier version did not save does not count"
    train(file, info=dict(lr=1, name='x'))
    for kw, words in ((dict(info=dict(lr=1, name='x'), epochs=3), 'epochs: 2 there, 3 now'),
                      (dict(info=dict(lr=2, name='x')), 'lr: 1 there, 2 now'),
                      (dict(info=dict(lr=1)), "name: 'x' there, None now"),
                      (dict(info=dict(lr=1, name='x', a=0)), 'a: None there, 0 now')):
        with refused(rf'^{file} belongs to another training \({words}\)'): train(file, **kw)
    learn = learner()
    learn.dls = loaders(n=25)
    with refused('batches: 4 there, 5 now'): train(file, learn=learn, info=dict(lr=1, name='x'))
    info = {'lr': 1, 'name': 'x', 'sha256 of the pictures': 'ab'}
    with pytest.warns(UserWarning, match='are done'): train(file, info=info)
    with refused('a state is there already; resume from it'): train(file, resume=False)
    train(file.with_name('new.safetensors'), resume=False)


def test_same_settings():
    assert same_settings(dict(a=1, b=None), dict(b=None, a=1), 'f') is None
    assert same_settings(dict(a=None), {}, 'f') is None
    with refused(r'^f belongs to another training \(a: 1 there, 2 now; b: 1 there, None now; '
                 r'c: None there, 3 now\); use its settings, or another directory'):
        same_settings(dict(a=1, b=1, d=0), dict(a=2, c=3, d=0), 'f')


@pytest.mark.parametrize('steps', (0, -1))
def test_steps_below_one(steps, file):
    with pytest.raises(ValueError, match=f'^steps={steps}: at least 1'):
        ExactResume(file, steps=steps)


def test_states_that_do_not_fit(file):
    "places beyond the training, parts that lack, an optimizer or callbacks of another kind"
    train(file)
    good = load_state(file)
    parts = 'epoch', 'batch', 'settings', 'start', 'now', 'model', 'opt', 'pct_train', 'train_iter'
    bad = [({k: v for k, v in good.items() if k != p}, f'lacks {p}; start')
           for p in (*parts, 'recorder', 'callbacks')]
    bad += [([1], 'lacks batch, callbacks, epoch'), (dict(good, epoch=3), 'epoch=3, from 0 to 2'),
            (dict(good, epoch=-1), 'epoch=-1'), (dict(good, epoch=1.), 'epoch=1.0'),
            (dict(good, batch=5), 'batch=5, from 0 to 4'), (dict(good, batch=True), 'batch=True'),
            (dict(good, opt=dict(state=3)), 'no state of this training'),
            (dict(good, callbacks={}), r'had callbacks with a state \[\], this one has .*total'),
            (dict(good, model=dict(good['model'], **{'0.weight': T})), '0.weight')]
    for state, words in bad:
        save_state(file, state)
        with refused(f'^{file}: .*{words}'): train(file)
    for state in (dict(good, epoch=0, batch=4), dict(good, epoch=1, batch=0)):
        save_state(file, state)
        train(file)


class NoDisk(Callback):
    "From a place on nothing can be written; until another place"
    order = 80
    def __init__(self, monkeypatch, until=None): self.patch, self.until = monkeypatch, until
    def after_epoch(self):
        def fail(*args): raise OSError('no space')
        real = save_state
        self.patch.setattr(resume, 'save_state', real if self.epoch == self.until else fail)

def test_a_disk_that_is_full(whole, file, monkeypatch):
    "one warning a save, training goes on; an error at the end if the last state is not there"
    with pytest.warns(UserWarning, match=rf'^{file}: not written \(no space\); .*goes on'):
        learn, _ = train(file, NoDisk(monkeypatch, until=1))
    assert same(all_of(learn), all_of(whole[0])) and load_state(file)['epoch'] == 2
    with pytest.raises(OSError, match=r'last state could not be written \(no space\)') as e, \
            pytest.warns(UserWarning):
        train(file.with_name('b.safetensors'), NoDisk(monkeypatch))
    assert isinstance(e.value.__cause__, OSError)


def test_one_process_writes(file, monkeypatch):
    "of several, the first"
    monkeypatch.setattr(resume, 'rank_distrib', lambda: 1)
    train(file)
    assert not file.exists()


# Optimizers --------------------------------------------------------------------------------------

def stepped(opt, model):
    for i, p in enumerate(model.parameters()): p.grad = torch.full_like(p, i + 1.)
    opt.step()
    return opt

def test_an_earlier_state_of_two_groups():
    "each parameter keeps its moments; groups that decay and those exempt, their settings"
    model = binary_net('reactnet_mini', width=.25, n_out=2)
    earlier = stepped(torch.optim.Adam(decay_groups(model, .3), lr=.5), model)
    earlier.param_groups[1]['lr'] = .25
    decay, free = (g['params'] for g in earlier.param_groups)
    groups = [dict(params=free[:3], exempt=True), dict(params=decay),
              dict(params=free[3:], exempt=True)]
    now = torch.optim.Adam(groups, lr=1.)
    state = resume._regrouped(now, copy.deepcopy(earlier.state_dict()), model)
    resume._restore_opt(now, state)
    for p in model.parameters(): assert same(dict(now.state[p]), dict(earlier.state[p]))
    settings = [(g['lr'], g['weight_decay']) for g in now.param_groups]
    assert settings == [(.25, 0.), (.5, .3), (.25, 0.)]
    assert [len(g['params']) for g in now.param_groups] == [3, len(decay), len(free) - 3]


def test_what_is_not_regrouped():
    "groups that fit, and networks of others"
    model = binary_net('reactnet_mini', width=.25, n_out=2)
    two = torch.optim.Adam(decay_groups(model), lr=.5)
    three = torch.optim.Adam([dict(params=[p]) for p in model.parameters()], lr=.5)
    linear = nn.Linear(2, 2)
    for opt, state, net in ((two, two.state_dict(), model), (three, three.state_dict(), model),
                            (three, two.state_dict(), linear), (three, {}, model),
                            (None, two.state_dict(), model)):
        assert resume._regrouped(opt, state, net) is state
    fresh = resume._regrouped(three, two.state_dict(), model)
    assert fresh['state'] == {} and len(fresh['param_groups']) == len(list(model.parameters()))


def test_moments_lie_in_memory_as_their_weights():
    "channels last, so that compiled steps meet what they were made for; counters stay as they are"
    conv = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    old = stepped(torch.optim.Adam(conv.parameters()), conv)
    state = unpack_tree(*pack_tree(old.state_dict()))
    state['state'][0] = {k: v.contiguous() for k, v in state['state'][0].items()}
    new = torch.optim.Adam(conv.parameters())
    resume._restore_opt(new, state)
    moments = new.state[conv.weight]
    assert same(dict(moments), dict(old.state[conv.weight]))
    plain = state['state'][0]['exp_avg'].stride()
    assert moments['exp_avg'].stride() == conv.weight.stride() != plain
    assert moments['step'].dim() == 0


def test_counters_stay_where_the_optimizer_reads_them(monkeypatch):
    "Adam's, one a weight, on the CPU: from a GPU each would be read anew in each step; fastai's state is moved"
    moved = []
    monkeypatch.setattr(resume, 'to_device', lambda state, device: moved.append(device) or state)
    linear = nn.Linear(2, 2)
    theirs = stepped(torch.optim.Adam(linear.parameters()), linear)
    resume._restore_opt(theirs, theirs.state_dict())
    assert not moved
    ours = Adam([list(linear.parameters())], lr=1.)
    ours.step()
    resume._restore_opt(ours, ours.state_dict())
    assert moved == [torch.device('cpu')]
