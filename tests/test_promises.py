"""Promises of every training and every network: kills, seeds, workers, batch sizes, warnings.

docs/promises.md lists them all, with the test of each.
"""
import os
import random
import re
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
import pytest
import torch
import fastai.callback.progress # noqa: F401, Learner.no_bar
from fastai.basics import Callback, set_seed
from folders import noise_folder
from bnn_bn.core.errors import CheckpointError
from bnn_bn.data import fashion_mini
from bnn_bn.deploy import pack
from bnn_bn.folder import folder_dls
from bnn_bn.learner import bnn_learner
from bnn_bn.train.ema import EMA
from bnn_bn.train.recipes import recipes
from bnn_bn.train.run import train
import bnn_bn.train.steps # noqa: F401, Learner.fit_two_step
from mutations import small

KILLS = 30

# One run, killed ----------------------------------------------

class Killed(BaseException):
    "what nothing catches: after it, the run is what lies on the disk, as after SIGKILL"

class KillAfter(Callback):
    "end everything after so many batches of training and validation"
    order = 95
    def __init__(self, batches): self.left = batches
    def after_batch(self):
        self.left -= 1
        if not self.left: raise Killed

def run(out, *cbs, seed=0):
    "two steps of two epochs with a mean of the weights, saved every two batches"
    set_seed(seed, reproducible=True)
    dls = fashion_mini(bs=32, n=160, device='cpu')
    dls.rng = dls.train.rng = random.Random(seed)
    dls.loaders[1] = dls.valid.new(x=dls.valid.x[:64], y=dls.valid.y[:64], bs=32)
    learn = bnn_learner(dls, small(binary='act'), cbs=[EMA(.9), *cbs])
    with learn.no_bar(), learn.no_logging(), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        steps = learn.fit_two_step((2, 2), .01, out=out, steps=2)
    return dict(learn.model.state_dict()), dict(learn.ema.model.state_dict()), steps

def same(a, b):
    "networks, means of weights and results of two runs"
    if a[2] != b[2]: return False
    pairs = zip(a[:2], b[:2])
    return all(torch.equal(x[k], y[k]) for x, y in pairs for k in x)

@pytest.fixture(scope='module')
def whole(tmp_path_factory): return run(tmp_path_factory.mktemp('whole'))

def killed_at_a_rename(monkeypatch, rng):
    "the run dies before or after a file takes its name"
    real, left, before = os.replace, [rng.randint(1, 4)], rng.random() < .5
    def replace(*args):
        left[0] -= 1
        if before and not left[0]: raise Killed
        real(*args)
        if not left[0]: raise Killed
    monkeypatch.setattr(os, 'replace', replace)

def test_thirty_kills(whole, tmp_path, monkeypatch):
    "at moments drawn at random; each time that the run ends, it ends with the same bits"
    rng, kills, ends = random.Random(0), 0, 0
    while kills < KILLS:
        at_a_rename = rng.random() < .3
        if at_a_rename: killed_at_a_rename(monkeypatch, rng)
        try:
            batches = 0 if at_a_rename else rng.randint(1, 7)
            assert same(run(tmp_path/'run', KillAfter(batches)), whole)
            shutil.rmtree(tmp_path/'run')
            ends += 1
        except Killed: kills += 1
        monkeypatch.undo()
    assert same(run(tmp_path/'run'), whole)
    assert not list((tmp_path/'run').glob('*.tmp'))

def test_the_seed_says_it_all(whole, tmp_path):
    "the same seed gives the same bits, another one others"
    assert same(run(tmp_path/'a'), whole)
    assert not same(run(tmp_path/'b', seed=1), whole)

# The order of the data ----------------------------------------------

@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    "a folder of 2 x 6 pictures, whose crops and flips are random"
    return noise_folder(tmp_path_factory.mktemp('pictures'), dict(train=6, val=6))

def batches(folder, workers, seed=0):
    "two epochs of training"
    torch.manual_seed(workers) # the state of the process must not matter
    dls = folder_dls(folder, bs=4, size=32, workers=workers, device='cpu', seed=seed)
    return [(x, y) for _ in range(2) for x, y in dls.train]

def test_the_number_of_workers_changes_nothing(pictures):
    first = batches(pictures, 0)
    for workers in (1, 3):
        again = batches(pictures, workers)
        assert len(again) == len(first) == 6
        assert all(torch.equal(a, b) for x, y in zip(first, again) for a, b in zip(x, y))
    assert not torch.equal(first[0][0], batches(pictures, 0, seed=1)[0][0])

# The size of a batch ----------------------------------------------

@pytest.mark.parametrize('norm', ['nobn', 'bn', 'naive'])
def test_the_size_of_a_batch_changes_no_answer(norm):
    "packed: no bit; in float32: 1e-4 of the largest answer, for sums may have another order"
    net = small(norm).eval()
    images = torch.randn(70, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    packed = pack(net)
    with torch.no_grad(): trained, counted = net(images), packed(images)
    for size in (1, 3, 16, 64):
        parts = images.split(size)
        assert torch.equal(torch.cat([packed(p) for p in parts]), counted)
        with torch.no_grad(): answers = torch.cat([net(p) for p in parts])
        torch.testing.assert_close(answers, trained, rtol=0, atol=1e-4*float(trained.abs().max()))

# Warnings of libraries ----------------------------------------------

MODULES = ('bnn_bn.layers.conv', True), ('bnn_bn', True), ('torch.nn', False)

@pytest.mark.parametrize('module,ours', MODULES)
@pytest.mark.parametrize('kind', [DeprecationWarning, FutureWarning, PendingDeprecationWarning])
def test_a_warning_that_our_own_use_of_a_library_causes_is_an_error(kind, module, ours):
    "as pyproject.toml says; what other packages do among themselves is theirs"
    code = compile("warnings.warn('old', kind)", 'x.py', 'exec')
    names = dict(warnings=warnings, kind=kind, __name__=module)
    if not ours: return exec(code, names)
    with pytest.raises(kind, match='old'): exec(code, names)

# The table ----------------------------------------------

ROOT = Path(__file__).parent.parent

def test_every_test_of_the_table_exists():
    table = (ROOT/'docs'/'promises.md').read_text()
    named = re.findall(r'`((?:tests|nbs)/[\w/.]+)(?:::(\w+))?`', table)
    assert len(named) > 40
    for file, test in named:
        assert (ROOT/file).is_file(), file
        if test: assert f'def {test}(' in (ROOT/file).read_text(), test

# One run a folder ----------------------------------------------

HOLD = """
import sys
from bnn_bn.core.files import locked
with locked(sys.argv[1]):
    print('begun', flush=True)
    sys.stdin.read()
"""

@pytest.fixture
def holder(tmp_path):
    "another process, which works in a folder"
    env = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path)))
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    p = subprocess.Popen([sys.executable, '-c', HOLD, str(tmp_path/'run')], env=env, **pipes)
    assert p.stdout.readline() == 'begun\n'
    yield p
    p.kill()
    p.communicate()

@pytest.mark.skipif(sys.platform == 'win32', reason='no locks of files there')
def test_a_second_run_in_a_folder_is_refused(holder, tmp_path):
    "and leaves it as it is; after a kill of the first, the next goes on at once"
    out, recipe = tmp_path/'run', replace(recipes['fashion'], width=.125, bs=32, epochs=1)
    kw = dict(device='cpu', images=64, holdout=32, amp='none', compiled='no')
    for resume in (False, True):
        with pytest.raises(CheckpointError, match=f'run: another process .{holder.pid} on'):
            train(recipe, out, resume=resume, **kw)
    assert [f.name for f in out.iterdir()] == ['.lock']
    holder.kill()
    holder.communicate()
    train(recipe, out, **kw)
    assert (out/'model.safetensors').exists() and not (out/'.lock').exists()

# Several processes ----------------------------------------------

OTHER = """
import os, sys
if os.environ['RANK'] == '1': sys.argv += ['--lr', '.5']
from bnn_bn.train.run import bnn_train
bnn_train()
"""

def test_processes_with_other_settings_are_refused_by_name(tmp_path):
    "and nothing is written"
    (tmp_path/'other.py').write_text(OTHER)
    least = ('--device cpu --images 64 --holdout 32 --bs 32 --width .125 --epochs 1 --threads 1 '
             '--compile no')
    launch = Path(sys.executable).parent/'torchrun', '--standalone', '--nproc_per_node', '2'
    words = [*launch, tmp_path/'other.py', 'fashion', *least.split(), '--out', tmp_path/'run']
    env = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path)), OMP_NUM_THREADS='1')
    done = subprocess.run([*map(str, words)], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode and 'differ in lr: 0.02 in the first, 0.5 in number 1' in done.stderr
    assert not (tmp_path/'run').exists()
