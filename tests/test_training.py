"What only processes can show: kills, signals, a lost rank; and every recipe on a few batches."
import csv, json, os, random, shutil, signal, subprocess, sys, threading, time
from dataclasses import replace
from pathlib import Path
import numpy as np, pytest, torch
from fastai.basics import Callback, Learner, set_seed
from PIL import Image
from safetensors import safe_open
from folders import noise_folder
from bnn_bn.checkpoint import save_network
from bnn_bn.core.errors import CheckpointError
from bnn_bn.data import tensor_dls
from bnn_bn.folder import folder_dls
from bnn_bn.train.distill import Distill
from bnn_bn.learner import bnn_learner
from bnn_bn.models import assert_bn_free, binary_net
from bnn_bn.others.realnet import real_nets
from bnn_bn.train.recipes import make_dls, make_learner, make_recipe, recipes
from bnn_bn.train.resume import ExactResume, Interrupted, load_state, previous_file
from bnn_bn.train.resume import save_state
from bnn_bn.train import recipes as recipes_of_runs, run
from bnn_bn.train.run import evaluate
from bnn_bn.train.runs import clean_runs, read_run
from bnn_bn.train.speed import EMA, Autocast, has_compiler

BIN = Path(sys.executable).parent
ENV = dict(os.environ, OMP_NUM_THREADS='1', PYTHONWARNINGS='ignore')
RUN = ('fashion --device cpu --images 512 --bs 64 --width .25 --steps 2 --epochs 2 --ema .9 '
       '--save-steps 3 --threads 1 --amp none --compile no').split() # 8 batches an epoch

def train(out, *more, launch=(), **kw):
    words = [*map(str, launch), str(BIN/'bnn_train'), *RUN, '--out', str(out), *more]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    return subprocess.Popen(words, env=ENV, text=True, **pipes, **kw)

def finish(p, code=0, timeout=300):
    out, err = p.communicate(timeout=timeout)
    assert p.returncode == code, (p.returncode, err[-2000:])
    return out, err

def wait_for_state(p, out):
    "until a training has saved; one that fails is not waited for"
    while not (out/'state-1.safetensors').exists():
        assert p.poll() is None, p.stderr.read()[-2000:]
        time.sleep(.05)

def resume(out):
    "the rest of a run, in this process: it may have begun in another"
    run.bnn_train([*RUN, '--out', str(out), '--resume'])

def tensors(file):
    with safe_open(file, 'pt') as f: return {k: f.get_tensor(k) for k in f.keys()}

CLOCKS = 'images_per_s', 'loader_share', 'seconds' # of an epoch, and all that differs in the file
NETWORKS = 'model.safetensors', 'best.safetensors', 'step1.safetensors'

def same_tensors(x, y):
    if x.keys() != y.keys(): return False
    return all(torch.equal(x[k], y[k]) for k in x)

def same_run(a, b):
    "the networks, the optimizer and the rows of two runs are equal to the bit"
    for name in NETWORKS:
        assert (a/name).exists() == (b/name).exists(), name
        if (a/name).exists(): assert same_tensors(tensors(a/name), tensors(b/name)), name
    last = max(f.name for f in a.glob('state-[12].safetensors'))
    x, y = (load_state(d/last) for d in (a, b))
    for i in x['opt']['state']: assert same_tensors(x['opt']['state'][i], y['opt']['state'][i])
    kept = [[without_clocks(r, 'hours') for r in s['callbacks']['history']['rows']] for s in (x, y)]
    assert kept[0] == kept[1]
    rows = [list(csv.DictReader((d/'history.csv').open())) for d in (a, b)]
    assert [*map(without_clocks, rows[0])] == [*map(without_clocks, rows[1])] != []

def without_clocks(row, *more): return {k: v for k, v in row.items() if k not in (*CLOCKS, *more)}

@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp('whole')/'run'
    finish(train(out))
    return out

# imports once; each kill meets a process of its own, which begins as a copy of this one
KILLER = """
import json, os, signal, sys
from bnn_bn.train.run import bnn_train
def die_at(name, n):
    real, calls = getattr(os, name), [0]
    def dying(*args):
        calls[0] += str(args[0]).find('state-') >= 0 or name == 'fsync'
        if calls[0] == n:
            if name == 'fsync': os.ftruncate(args[0], os.fstat(args[0]).st_size // 2) # half a file
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args)
    setattr(os, name, dying)
for name, n in json.loads(sys.argv[1]):
    child = os.fork()
    if not child:
        die_at(name, n)
        bnn_train(sys.argv[2:])
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, (name, n, status)
"""

@pytest.mark.skipif(not hasattr(os, 'fork'), reason='forks')
def test_killed_inside_saves(whole, tmp_path):
    "half a file written; between the two renames; in either step: it ends with the same bits"
    out = tmp_path/'run'
    kills = ('fsync', 4), ('replace', 4), ('fsync', 2), ('replace', 3), ('fsync', 5), ('replace', 2)
    words = [sys.executable, '-c', KILLER, json.dumps(kills), *RUN, '--out', str(out), '--resume']
    p = subprocess.run(words, env=ENV, capture_output=True, text=True)
    assert p.returncode == 0, p.stderr[-2000:]
    resume(out)
    same_run(whole, out)
    assert not list(out.glob('*.tmp'))

def test_newest_state_damaged(whole, tmp_path):
    out = tmp_path/'run'
    subprocess.run(['cp', '-r', str(whole), str(out)], check=True)
    f = out/'state-2.safetensors'; f.write_bytes(f.read_bytes()[:-100])
    for name in ('best', 'model'): (out/f'{name}.safetensors').unlink()
    assert load_state(f)['epoch'] == 1 and previous_file(f).exists()
    resume(out) # best.safetensors is written if a later epoch is better
    assert same_tensors(*(tensors(d/'model.safetensors') for d in (out, whole)))

def test_lost_states_are_said(whole, tmp_path, capsys):
    "a run without its states begins anew, in a line that says so; one with them goes on without it"
    out = tmp_path/'run'
    subprocess.run(['cp', '-r', str(whole), str(out)], check=True)
    resume(out)
    assert 'no state' not in capsys.readouterr().out
    for f in *out.glob('state-*'), out/'result.json': f.unlink()
    resume(out)
    assert f'{out}: no state is there to go on from; the run begins anew' in capsys.readouterr().out
    same_run(whole, out)

class Killed(BaseException):
    "what nothing catches: after it, the run is what lies on the disk, as after SIGKILL"

def count_down(real, n, before=False):
    "a function that kills the run at its n-th call, before or after its work"
    left = [n]
    def dying(*args, **kw):
        left[0] -= 1
        if before and not left[0]: raise Killed
        result = real(*args, **kw)
        if not left[0]: raise Killed
        return result
    return dying

FASHION = dict(images=128, holdout=64)

def attempt(recipe, out, where=None, data=FASHION, **kw):
    "train, and die at a place if one is given; did it end?"
    patch = pytest.MonkeyPatch()
    if where:
        owner, name, before, n = where
        patch.setattr(owner, name, count_down(getattr(owner, name), n, before))
    kw = dict(amp='none', compiled='no') | kw
    try: run.train(recipe, out, device='cpu', **data, **kw)
    except Killed: return False
    finally: patch.undo()
    return True

TINY = replace(recipes['fashion'], width=.125, bs=32, epochs=2) # 4 + 2 batches an epoch
KILLED = {
    'two steps, EMA, saves within the epoch': (dict(steps=2, ema=.9), dict(save_steps=3)),
    'sizes, a calibrated start, EMA, two steps':
        (dict(steps=2, ema=.9, sizes='16,32', start='calibrated'), dict(save_steps=1)),
    'float16, mixup, cutout, two steps from the last':
        (dict(steps=2, select='last', mixup=.2, cutout=8), dict(amp='fp16', save_steps=2)),
    'batch norm, EMA, bfloat16': (dict(norm='bn', ema=.9), dict(amp='bf16'))}

@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('name', KILLED)
def test_killed_anywhere(name, tmp_path, capfd):
    "after a batch, before or after a file is put in its place, three times in a run: the same bits"
    fields, kw = KILLED[name]
    recipe, draw = replace(TINY, **fields), random.Random(name)
    attempt(recipe, tmp_path/'whole', **kw)
    batches = 12*recipe.steps
    places = [(Learner, '_do_one_batch', False, draw.randint(1, batches)) for _ in range(2)]
    places.append((os, 'replace', draw.random() < .5, draw.randint(1, 8*recipe.steps)))
    if recipe.steps == 2: places.append((Learner, '_do_one_batch', False, 13)) # no state yet
    for i, place in enumerate(places):
        out = tmp_path/str(i)
        for n in (place[-1], draw.randint(1, 6), draw.randint(1, 6)):
            if attempt(recipe, out, (*place[:-1], n), resume=True, **kw): break
        assert attempt(recipe, out, resume=True, **kw)
        same_run(tmp_path/'whole', out)

@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('fast,same,others', [(True, 'bf16', ('fp16', 'none')),
                                              (False, 'none', ('fp16', 'bf16'))])
def test_what_auto_chose_may_be_said(fast, same, others, tmp_path, monkeypatch, capfd):
    "a resumed run is told the precision that auto took: the same training; any other is refused"
    monkeypatch.setattr('bnn_bn.train.plan.bf16_is_fast', lambda device: fast)
    out, died = tmp_path/'run', (Learner, '_do_one_batch', False, 9)
    assert attempt(TINY, tmp_path/'whole', amp='auto')
    assert not attempt(TINY, out, died, amp='auto')
    for amp in others:
        with pytest.raises(CheckpointError, match='another training .*amp:'):
            attempt(TINY, out, resume=True, amp=amp)
    assert attempt(TINY, out, resume=True, amp=same)
    same_run(tmp_path/'whole', out)

def no_teacher(*args, **kw): raise KeyboardInterrupt # as Ctrl-C while it is fetched

def no_writer(): raise ImportError('tensorboard')

@pytest.fixture(scope='module')
def ended(tmp_path_factory):
    "the folder of a run that has ended"
    out = tmp_path_factory.mktemp('ended')/'run'
    assert attempt(replace(TINY, epochs=1), out)
    return out

@pytest.mark.filterwarnings('ignore')
def test_a_list_of_runs_says_what_made_them(ended, tmp_path, monkeypatch):
    "the command, of a run that has ended; or its data. A service may have no standard output to print to"
    monkeypatch.setattr(sys, 'stdout', None)
    assert attempt(replace(TINY, epochs=1), tmp_path/'run', command='bnn_train fashion --epochs 1')
    monkeypatch.undo()
    assert read_run(tmp_path/'run').recipe == 'bnn_train fashion'
    (tmp_path/'run/result.json').unlink()
    assert read_run(tmp_path/'run').recipe == read_run(ended).recipe == 'fashion'

@pytest.mark.filterwarnings('ignore')
def test_going_on_and_beginning_anew_are_not_both_meant(ended, tmp_path):
    out = shutil.copytree(ended, tmp_path/'run')
    before = contents(out)
    with pytest.raises(ValueError, match='resume=True .*force=True'):
        attempt(replace(TINY, epochs=1), out, resume=True, force=True)
    assert contents(out) == before

def contents(out): return {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in out.iterdir()}

@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('cleaned', [False, True])
@pytest.mark.parametrize('given', [
    dict(teacher='runs/typo'), dict(teacher='torchvision/resnet18', teacher_file='typo.pth'),
    dict(load_teacher=no_teacher, teacher='torchvision/resnet18'), dict(writer=no_writer)],
    ids=['teacher', 'teacher_file', 'stopped', 'writer'])
def test_a_run_is_replaced_once_the_new_one_can_begin(given, cleaned, ended, tmp_path, monkeypatch):
    "with force, what fails before it trains leaves the run that is there as it was"
    out = shutil.copytree(ended, tmp_path/'run')
    if cleaned: clean_runs(tmp_path)
    before, given = contents(out), dict(given)
    if 'load_teacher' in given: monkeypatch.setattr(recipes_of_runs, 'load_teacher', given.pop('load_teacher'))
    r = replace(TINY, teacher=given.pop('teacher', ''))
    with pytest.raises((ValueError, OSError, ImportError, KeyboardInterrupt)):
        attempt(r, out, force=True, **given)
    assert contents(out) == before
    assert attempt(replace(TINY, epochs=1), out, force=True)
    assert contents(out).keys() - before.keys() <= {f.name for f in ended.iterdir()}

@pytest.mark.filterwarnings('ignore')
def test_a_forced_run_that_fails_at_its_first_step_leaves_nothing_of_either(ended, tmp_path):
    out = shutil.copytree(ended, tmp_path/'run')
    (out/'notes.txt').touch()
    assert not attempt(TINY, out, (Learner, '_do_one_batch', False, 1), force=True)
    assert [*contents(out)] == ['notes.txt']

@pytest.mark.filterwarnings('ignore')
def test_a_run_that_has_ended_and_was_cleaned_is_not_trained_again(ended, tmp_path, capfd):
    "its result is what it was, other settings are refused"
    out, r = shutil.copytree(ended, tmp_path/'run'), replace(TINY, epochs=1)
    assert clean_runs(tmp_path)
    before = contents(out)
    kw = dict(device='cpu', resume=True, amp='none', compiled='no', **FASHION)
    assert run.train(r, out, **kw) == json.loads((out/'result.json').read_text())
    assert 'this run has ended' in capfd.readouterr().out
    with pytest.raises(CheckpointError, match='another training .*epochs'): run.train(TINY, out, **kw)
    assert contents(out) == before

def draw_pictures(root, seed, parts=(('train', 8), ('val', 4))):
    "two classes of noise; a BMP of 32 pixels has always the same size"
    g = np.random.default_rng(seed)
    for part, n in parts:
        for name in [f'{part}/{c}/{i}.bmp' for c in 'ab' for i in range(n)]:
            (root/name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(g.integers(0, 256, (32, 32, 3), np.uint8)).save(root/name)

def other_pixels(root): draw_pictures(root, 1)
def other_validation(root): draw_pictures(root, 1, [('val', 4)])
def other_classes(root):
    for part in ('train', 'val'): (root/part/'a').rename(root/part/'z')

@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('saved', [False, True]) # killed before the first state, or after it
@pytest.mark.parametrize('change,word', [(other_pixels, 'data'), (other_classes, 'classes'),
                                         (other_validation, 'validation data')])
def test_other_pictures_under_the_same_names(change, word, saved, tmp_path, capfd):
    "a run does not go on with them, whether it has saved a state or not"
    root, out = tmp_path/'pictures', tmp_path/'run'
    def data(): return dict(data=dict(dls=folder_dls(root, bs=4, size=32, workers=0, device='cpu')))
    draw_pictures(root, 0)
    in_epoch_2 = Learner, '_do_one_batch', False, 7
    assert not attempt(TINY, out, in_epoch_2, **data())
    for f in out.iterdir():
        if not saved and f.name != 'config.json': f.unlink()
    before = {f.name: f.read_bytes() for f in out.iterdir()}
    change(root)
    with pytest.raises(CheckpointError, match=f'another training .*{word}'):
        attempt(TINY, out, resume=True, **data())
    assert before.items() <= {f.name: f.read_bytes() for f in out.iterdir()}.items()

@pytest.mark.filterwarnings('ignore')
def test_a_run_that_began_before_validation_was_summed_goes_on(tmp_path):
    "neither its settings nor its states hold those sums"
    out, died = tmp_path/'run', (Learner, '_do_one_batch', False, 9)
    assert attempt(TINY, tmp_path/'whole')
    assert not attempt(TINY, out, died)
    def earlier(settings): return {k: v for k, v in settings.items() if 'validation' not in k}
    config, file = json.loads((out/'config.json').read_text()), out/'state-1.safetensors'
    assert earlier(config) != config
    (out/'config.json').write_text(json.dumps(earlier(config)))
    state = load_state(file)
    save_state(file, state | dict(settings=earlier(state['settings'])))
    assert attempt(TINY, out, resume=True)
    same_run(tmp_path/'whole', out)

# 4 batches and one of validation an epoch
COMPILED = ('fashion --device cpu --images 256 --holdout 64 --bs 64 --width .125 --epochs 2 '
            '--ema .9 --start calibrated --threads 1 --amp bf16 --compile --save-steps 1').split()

KILL_IN_BATCH = """
import os, signal, sys
n = int(sys.argv.pop(1))
from fastai.basics import Learner
real, calls = Learner._do_one_batch, [0]
def dying(self):
    real(self)
    calls[0] += 1
    if calls[0] == n: os.kill(os.getpid(), signal.SIGKILL)
Learner._do_one_batch = dying
from bnn_bn.train.run import bnn_train
bnn_train()
"""

NO_COMPILER = 'torch.compile needs a C++ compiler, and there is none (g++, or what CXX names)'

@pytest.mark.skipif(not has_compiler(), reason=NO_COMPILER)
def test_compiled_run_resumes(tmp_path):
    "compiled, in bfloat16, killed within an epoch: the same bits; the choice is in the files"
    kw = dict(env=ENV, capture_output=True, text=True, timeout=900)
    words = [str(BIN/'bnn_train'), *COMPILED, '--out']
    done = subprocess.run([*words, str(tmp_path/'whole')], **kw)
    assert done.returncode == 0 and 'bf16 on cpu; compiled' in done.stdout, done.stderr[-2000:]
    in_epoch_2 = '7'
    killed = [sys.executable, '-c', KILL_IN_BATCH, in_epoch_2, *COMPILED, '--out', str(tmp_path/'run')]
    done = subprocess.run(killed, **kw)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    words = [w for w in words if w not in ('--amp', 'bf16', '--compile')] # auto: as it began
    done = subprocess.run([*words, str(tmp_path/'run'), '--resume'], **kw)
    assert done.returncode == 0, done.stderr[-2000:]
    assert 'bf16 on cpu; compiled as before' in done.stdout
    same_run(tmp_path/'whole', tmp_path/'run')
    for name in ('config.json', 'result.json'):
        values = json.loads((tmp_path/'run'/name).read_text())
        assert (values['amp'], values['compiled']) == ('bf16', True)

@pytest.mark.parametrize('sig', [signal.SIGINT, signal.SIGTERM])
def test_signals(whole, tmp_path, sig):
    out = tmp_path/'run'
    p = train(out, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    wait_for_state(p, out)
    p.send_signal(sig)
    _, err = finish(p, 130)
    assert 'goes on from there' in err and 'Traceback' not in err
    resume(out)
    same_run(whole, out)

def test_divergence(tmp_path):
    "a rate that ruins the network: the error says where, the last good state stays and loads"
    out = tmp_path/'run'
    _, err = finish(train(out, '--lr', '1e30', '--clip', '0', '--save-steps', '1'), 1)
    said = '5 steps in a row were not finite', 'at epoch 1, step', 'first at forward:'
    for part in (*said, 'clip factor None'): assert part in err, err
    assert 'Traceback' not in err
    state = load_state(out/'state-1.safetensors')
    assert all(t.isfinite().all() for t in state['model'].values())

TORCHRUN = [BIN/'torchrun', '--standalone', '--no-python', '--nproc_per_node', '2']

def children(pid):
    threads = Path(f'/proc/{pid}/task').iterdir()
    return [int(p) for t in threads for p in (t/'children').read_text().split()]

@pytest.mark.skipif(not Path('/proc/self/task').exists(), reason='looks for processes in /proc')
def test_lost_rank(tmp_path):
    "one of two processes dies: the other ends too, and what was saved goes on, here in one process"
    out = tmp_path/'run'
    p = train(out, '--epochs', '30', launch=TORCHRUN)
    wait_for_state(p, out)
    os.kill(children(p.pid)[1], signal.SIGKILL)
    start = time.monotonic()
    p.communicate(timeout=120)
    assert p.returncode != 0 and time.monotonic() - start < 60
    state = load_state(out/'state-1.safetensors')
    assert (state['epoch'], state['batch']) >= (0, 3)
    p = train(out, '--epochs', '30', '--resume')
    place, end = (state['epoch'], state['batch']), time.monotonic() + 120
    while (s := load_state(out/'state-1.safetensors')) and (s['epoch'], s['batch']) <= place:
        assert p.poll() is None and time.monotonic() < end
        time.sleep(.5)
    p.send_signal(signal.SIGTERM)
    p.communicate(timeout=60)

@pytest.fixture(scope='module')
def by_two(tmp_path_factory):
    "a run in two processes, and what it said"
    out = tmp_path_factory.mktemp('by_two')/'run'
    return out, finish(train(out, launch=TORCHRUN))[0]

def test_two_processes(whole, by_two):
    "the same files, written once; nothing but the first process speaks"
    out, said = by_two
    assert said.count('epoch 1:') == 2 and said.count('step 2 (') == 1        # once a step
    assert {f.name for f in out.iterdir()} == {f.name for f in whole.iterdir()}
    first = [json.loads((d/'result.json').read_text())['steps'][0] for d in (out, whole)]
    assert abs(first[0]['last'] - first[1]['last']) < .05 # rounding flips signs: near, not equal

def test_two_processes_resume(by_two, tmp_path):
    "the launcher is told to stop, both processes save the same place, and go on to the same bits"
    whole, out = by_two[0], tmp_path/'run'
    p = train(out, launch=TORCHRUN)
    wait_for_state(p, out)
    p.send_signal(signal.SIGTERM)
    p.communicate(timeout=120)
    assert p.returncode != 0 and not (out/'result.json').exists()
    finish(train(out, '--resume', launch=TORCHRUN))
    same_run(whole, out)

class StopAfter(Callback):
    "ask for an end after so many steps of a fit"
    def __init__(self, n): self.n, self.stop = n, threading.Event()
    def before_fit(self): self.left = self.n
    def after_step(self):
        self.left -= 1
        if not self.left: self.stop.set()

def half_precision(file, n=None):
    "3 epochs in float16 with a loss scale that overflows and grows, averaged weights and a teacher"
    set_seed(0, reproducible=True)
    dls = make_dls(make_recipe('fashion', bs=32), device='cpu', images=128)
    kw = dict(n_out=10, in_chans=1, width=.125)
    net, teacher = (binary_net('reactnet_mini', binary=b, **kw) for b in ('both', 'real'))
    cast = Autocast(torch.float16, init_scale=2.**20, growth_interval=3)
    stop = [StopAfter(n)] if n else []
    learn = bnn_learner(dls, net, cbs=[cast, EMA(.9), Distill(teacher), *stop])
    resume = ExactResume(file, stop=stop[0].stop if stop else None)
    with learn.no_bar(), learn.no_logging(): learn.fit(3, .01, cbs=resume)
    return learn

def test_half_precision_resumes(tmp_path):
    "scale, skipped steps and averaged weights go on too"
    whole = half_precision(tmp_path/'whole.safetensors')
    assert 0 < whole.autocast.skipped < 12 and all(p.isfinite().all() for p in whole.model.parameters())
    for _ in range(3):
        with pytest.raises(Interrupted): half_precision(tmp_path/'parts.safetensors', 3)
    parts = half_precision(tmp_path/'parts.safetensors')
    for a, b in ((whole.model, parts.model), (whole.ema.model, parts.ema.model)):
        assert same_tensors(a.state_dict(), b.state_dict())
    assert whole.autocast.state_dict() == parts.autocast.state_dict()
    assert [list(r) for r in whole.recorder.values] == [list(r) for r in parts.recorder.values]

def small_dls(r, tmp):
    "data of the recipe's kind: noise of CIFAR's shape, or a folder of pictures"
    if r.data == 'fashion': return make_dls(r, device='cpu', images=2*r.bs)
    rng = np.random.default_rng(0)
    if r.data != 'imagenet':
        classes = 100 if r.data == 'cifar100' else 10
        x = torch.from_numpy(rng.integers(0, 256, (2*r.bs, 3, 32, 32), dtype=np.uint8))
        y = torch.arange(2*r.bs) % classes
        return tensor_dls(x, y, x[:10], y[:10], r.bs, 'cpu', vocab=range(classes))
    return make_dls(r, noise_folder(tmp, dict(train=4, val=4), 'abc'), 'cpu')

@pytest.mark.parametrize('name', recipes)
def test_every_recipe(name, tmp_path):
    set_seed(0)
    width = .5 if recipes[name].model == 'airbench94' else .125 # its least with three channels
    r = replace(recipes[name], width=width, bs=4)
    dls = small_dls(r, tmp_path)
    teacher = None
    if r.teacher:
        net = binary_net('reactnet_mini', 'bn', 'real', dls.c)
        teacher = str(save_network(net, tmp_path/'teacher.safetensors'))
    learn = make_learner(replace(r, teacher=teacher or ''), dls)
    with learn.no_bar(), learn.no_logging():
        kw = dict(schedule=r.schedule)
        if r.steps == 2: results = learn.fit_two_step((1, 1), r.lr, (r.wd, 0.), r.select, **kw)
        else: results = [learn.fit_step(2, r.lr, **kw)]
    real = r.model in real_nets
    assert len(results) == r.steps
    assert learn.model.cfg['binary'] == ('real' if real else 'both')
    assert learn.model.cfg['rules'] == r.rules
    if not real: assert_bn_free(learn.model)
    assert all(p.isfinite().all() for p in learn.model.parameters())
    assert not learn.divergence_guard.log
    images = len(dls.valid.x) if hasattr(dls.valid, 'x') else 3*4 # of the folder's three classes
    assert evaluate(learn.model, dls.valid)['images'] == images
