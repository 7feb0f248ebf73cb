"What only processes can show: kills inside a save, signals, a lost rank, and every recipe on a few batches."
import json, os, signal, subprocess, sys, time
from dataclasses import replace
from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image
from fastai.basics import set_seed
from safetensors import safe_open
from bnn_bn.checkpoint import save_model
from bnn_bn.data import tensor_dls
from bnn_bn.models import assert_bn_free, binary_net
from bnn_bn.recipes import make_dls, make_learner, recipes
from bnn_bn.resume import load_state, previous_file
from bnn_bn.run import evaluate

BIN = Path(sys.executable).parent
ENV = dict(os.environ, OMP_NUM_THREADS='1', PYTHONWARNINGS='ignore')
RUN = 'fashion --device cpu --images 512 --bs 64 --width .25 --steps 2 --epochs 2 --ema .9 --save_steps 3 --threads 1'.split() # 8 batches an epoch

def train(out, *more, launch=(), **kw):
    return subprocess.Popen([*map(str, launch), str(BIN/'bnn_train'), *RUN, '--out', str(out), *more], env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kw)

def finish(p, code=0, timeout=300):
    out, err = p.communicate(timeout=timeout)
    assert p.returncode == code, (p.returncode, err[-2000:])
    return out, err

def tensors(file):
    with safe_open(file, 'pt') as f: return {k: f.get_tensor(k) for k in f.keys()}

def same_run(a, b):
    for name in ('model', 'best', 'step1'):
        x, y = tensors(a/f'{name}.safetensors'), tensors(b/f'{name}.safetensors')
        assert x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x), name
    x, y = (load_state(d/'state-2.safetensors') for d in (a, b))
    for i in x['opt']['state']: assert all(torch.equal(x['opt']['state'][i][k], y['opt']['state'][i][k]) for k in x['opt']['state'][i])
    rows = [[{k: v for k, v in r.items() if k not in ('images_per_s', 'loader_share', 'seconds')} for r in s['callbacks']['history']['rows']] for s in (x, y)]
    assert rows[0] == rows[1]

@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp('whole')/'run'
    finish(train(out)); return out

KILLER = """
import os, signal, sys
import bnn_bn.checkpoint as c
name, n = sys.argv.pop(1), int(sys.argv.pop(1))
real, calls = getattr(os, name), [0]
def dying(*args):
    calls[0] += str(args[0]).find('state-') >= 0 or name == 'fsync'
    if calls[0] == n:
        if name == 'fsync': os.ftruncate(args[0], os.fstat(args[0]).st_size // 2) # half a file on disk
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args)
setattr(os, name, dying)
from bnn_bn.run import bnn_train
bnn_train()
"""

def test_killed_inside_saves(whole, tmp_path):
    "half a file written; between the two renames; in either step; each time it goes on, and ends with the same bits"
    out = tmp_path/'run'
    for name, n in (('fsync', 4), ('replace', 4), ('fsync', 2), ('replace', 3), ('fsync', 5), ('replace', 2)):
        p = subprocess.run([sys.executable, '-c', KILLER, name, str(n), *RUN, '--out', str(out), '--resume'], env=ENV, capture_output=True, text=True)
        assert p.returncode == -signal.SIGKILL, p.stderr[-2000:]
    finish(train(out, '--resume'))
    same_run(whole, out)
    assert not list(out.glob('*.tmp'))

def test_newest_state_damaged(whole, tmp_path):
    out = tmp_path/'run'
    subprocess.run(['cp', '-r', str(whole), str(out)], check=True)
    f = out/'state-2.safetensors'; f.write_bytes(f.read_bytes()[:-100])
    for name in ('best', 'model'): (out/f'{name}.safetensors').unlink()
    assert load_state(f)['epoch'] == 1 and previous_file(f).exists()
    finish(train(out, '--resume')) # best.safetensors is written again only if a later epoch is better
    assert all(torch.equal(a, b) for a, b in zip(tensors(out/'model.safetensors').values(), tensors(whole/'model.safetensors').values()))

@pytest.mark.parametrize('sig', [signal.SIGINT, signal.SIGTERM])
def test_signals(whole, tmp_path, sig):
    out = tmp_path/'run'
    p = train(out, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    while not (out/'state-1.safetensors').exists(): time.sleep(.05)
    p.send_signal(sig)
    _, err = finish(p, 130)
    assert 'goes on from there' in err and 'Traceback' not in err
    finish(train(out, '--resume'))
    same_run(whole, out)

def test_divergence(tmp_path):
    "a rate that ruins the network: the error says where, the last good state stays and loads"
    out = tmp_path/'run'
    _, err = finish(train(out, '--lr', '1e30', '--clip', '0', '--save_steps', '1'), 1)
    for part in ('5 steps in a row were not finite', 'epoch 0, step', 'first at forward:', 'clip factor None'): assert part in err, err
    assert 'Traceback' not in err
    state = load_state(out/'state-1.safetensors')
    assert all(t.isfinite().all() for t in state['model'].values())

TORCHRUN = [BIN/'torchrun', '--standalone', '--no-python', '--nproc_per_node', '2']

def children(pid): return [int(p) for t in Path(f'/proc/{pid}/task').iterdir() for p in (t/'children').read_text().split()]

@pytest.mark.skipif(not Path('/proc/self/task').exists(), reason='looks for child processes in /proc')
def test_lost_rank(tmp_path):
    "one of two processes dies: the other ends too, and what was saved goes on, here in one process"
    out = tmp_path/'run'
    p = train(out, '--epochs', '30', launch=TORCHRUN)
    while not (out/'state-1.safetensors').exists(): assert p.poll() is None, p.stderr.read()[-2000:]; time.sleep(.05)
    os.kill(children(p.pid)[1], signal.SIGKILL)
    start = time.monotonic(); p.communicate(timeout=120)
    assert p.returncode != 0 and time.monotonic() - start < 60
    state = load_state(out/'state-1.safetensors')
    assert (state['epoch'], state['batch']) >= (0, 3)
    p = train(out, '--epochs', '30', '--resume')
    time.sleep(12); p.send_signal(signal.SIGTERM); p.communicate(timeout=60)
    later = load_state(out/'state-1.safetensors')
    assert (later['epoch'], later['batch']) > (state['epoch'], state['batch'])

def test_two_processes(whole, tmp_path):
    "the same files, written once; nothing but the first process speaks"
    out = tmp_path/'run'
    said, _ = finish(train(out, launch=TORCHRUN))
    assert said.count('epoch 1:') == 2 and said.count('step 2 (') == 1        # once a step
    assert {f.name for f in out.iterdir()} == {f.name for f in whole.iterdir()}
    first = [json.loads((d/'result.json').read_text())['steps'][0] for d in (out, whole)]
    assert abs(first[0]['last'] - first[1]['last']) < .05                    # float32: rounding flips signs, so near and not equal

def small_dls(r, tmp):
    "data of the recipe's kind: noise of CIFAR's shape, or a folder of pictures"
    if r.data == 'fashion': return make_dls(r, device='cpu', images=2*r.bs)
    rng = np.random.default_rng(0)
    if r.data != 'imagenet':
        x, y = torch.from_numpy(rng.integers(0, 256, (2*r.bs, 3, 32, 32), dtype=np.uint8)), torch.arange(2*r.bs) % (100 if r.data == 'cifar100' else 10)
        return tensor_dls(x, y, x[:10], y[:10], r.bs, 'cpu', vocab=range(100 if r.data == 'cifar100' else 10))
    for part in ('train', 'val'):
        for c in ('a', 'b', 'c'):
            (tmp/part/c).mkdir(parents=True)
            for i in range(4): Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(tmp/part/c/f'{i}.png')
    return make_dls(r, tmp, 'cpu')

@pytest.mark.parametrize('name', recipes)
def test_every_recipe(name, tmp_path):
    set_seed(0)
    r = replace(recipes[name], width=.125, bs=4)
    dls = small_dls(r, tmp_path)
    teacher = None
    if r.teacher: teacher = str(save_model(binary_net('reactnet_mini', 'bn', 'real', dls.c), tmp_path/'teacher.safetensors'))
    learn = make_learner(replace(r, teacher=teacher or ''), dls)
    with learn.no_bar(), learn.no_logging():
        if r.steps == 2: results = learn.fit_two_step((1, 1), r.lr, (r.wd, 0.), r.select, schedule=r.schedule)
        else: results = [learn.fit_step(2, r.lr, r.schedule)]
    assert len(results) == r.steps and learn.model.cfg['binary'] == 'both' and learn.model.cfg['rules'] == r.rules
    assert_bn_free(learn.model)
    assert all(p.isfinite().all() for p in learn.model.parameters()) and not learn.divergence_guard.log
    assert evaluate(learn.model, dls.valid)['images'] == len(dls.valid.x) if hasattr(dls.valid, 'x') else True
