"""Validation and predictions do not depend on the number of processes, however few images the last
batch has; and nothing of several processes stays behind them."""
import json
import os
import subprocess
import sys
import warnings
from contextlib import suppress
from pathlib import Path
import pytest
import torch
from torch.distributed import is_initialized
import fastai.callback.progress # noqa: F401, Learner.no_bar
from fastai.basics import SGD, Callback, DataLoader, Metric, accuracy, set_seed
from fastai.metrics import F1Score
from bnn_bn.data import tensor_dls
from bnn_bn.learner import bnn_learner
from bnn_bn.train.processes import several_processes
from mutations import small

SIZES = 1, 17, 20, 32 # of a validation set, in batches of 16: the last batch has 1, 1, 4 and 16 images
PROCESSES = 3

def pictures():
    x = torch.randint(0, 256, (36, 1, 32, 32), generator=torch.Generator().manual_seed(0))
    return x.to(torch.uint8), torch.arange(36) % 10

def learner(**kw):
    "of a network that gives two classes by chance"
    set_seed(0)
    x, y = pictures()
    dls = tensor_dls(x[:6], y[:6], x, y, 6, 'cpu', vocab=list(range(10)))
    return bnn_learner(dls, small(), opt_func=SGD, **kw)

def values():
    "loss and metrics of each number of images after an epoch that changes no weight"
    learn, (x, y) = learner(metrics=[accuracy, F1Score(average='macro')]), pictures()
    found = []
    for part in (SIZES[:2], SIZES[2:]): # the processes are joined twice in one program
        with several_processes(learn), learn.no_bar(), learn.no_logging():
            found += [value_of(learn, x[:n], y[:n]) for n in part]
    return found

def value_of(learn, x, y):
    learn.dls.loaders[1] = learn.dls.valid.new(x=x, y=y, bs=16)
    learn.fit(1, 0.)
    return [float(v) for v in learn.recorder.values[-1][1:]]

class Alone(Metric):
    "counts images, and says nothing that could be joined"
    value, name = 1., 'alone'

def predictions():
    "of 17 images, by our loader and by one of fastai's; F1 of a training pass"
    learn, (x, y) = learner(metrics=[F1Score(average='macro'), Alone()]), pictures()
    learn.recorder.train_metrics = True
    ours = learn.dls.valid.new(x=x[:17], y=y[:17], bs=16)
    pairs = [(x.float(), y) for x, y in zip(*(t[:17] for t in pictures()))]
    theirs = DataLoader(pairs, bs=4)
    with several_processes(learn), learn.no_bar(), learn.no_logging(), \
            warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        learn.fit(1, 0.)
        f1 = learn.recorder.values[0][1]
        found = [learn.get_preds(dl=ours), learn.get_preds(dl=ours, reorder=False),
                 learn.get_preds(dl=theirs), learn.tta(dl=ours, n=1)]
    named = [str(w.message) for w in caught if str(w.message).startswith('alone: ')]
    return dict(f1=f1, named=len(named),
                preds=[[t.tolist() for t in both] for both in found])

class Broken(Callback):
    order = 100
    def after_batch(self): raise ZeroDivisionError('broken')

def threads():
    "names of the threads of this process, on Linux"
    names = []
    for f in Path('/proc/self/task').glob('*/comm'):
        with suppress(OSError): names.append(f.read_text()) # one may have ended
    return names

def left_behind():
    "what is not as before, after a validation of another loader and a fit that breaks off"
    learn, (x, y) = learner(), pictures()
    network, other = learn.model, learn.dls.valid.new(x=x[:17], y=y[:17])
    learn.dls.loaders[1] = before = DataLoader([(x.float(), y) for x, y in zip(x, y)], bs=4)
    with several_processes(learn) as joined, learn.no_bar(), learn.no_logging():
        processes = getattr(joined, 'processes', None)
        learn.validate(dl=other)
        kept = len(processes.accelerator._models) if processes else 0
    try:
        with several_processes(learn), learn.no_bar(), learn.no_logging(): learn.fit(1, 0., cbs=Broken())
    except ZeroDivisionError: pass
    wrong = dict(threads=any('gloo' in name for name in threads()), connection=is_initialized(),
                 wrappers=kept, network=learn.model is not network, share=other.shard != (0, 1),
                 own=learn.dls.train.shard != (0, 1), loader=learn.dls.valid is not before)
    return [k for k, v in wrong.items() if v]

def broken_by_one():
    "the error of a fit in which the last process breaks off alone, and the loss of a fit after it"
    learn, error = learner(), None
    last = os.environ.get('RANK') == str(PROCESSES-1)
    try:
        with several_processes(learn), learn.no_bar(), learn.no_logging():
            learn.fit(4, 0., cbs=Broken() if last else None)
    except RuntimeError: error = 'RuntimeError' # or one of its kinds, as torch has it
    except ZeroDivisionError: error = 'ZeroDivisionError'
    with several_processes(learn), learn.no_bar(), learn.no_logging(): learn.fit(1, 0.)
    return error, float(learn.recorder.values[-1][1])

def write_values(file):
    "in each process"
    found = dict(values=values(), predictions=predictions(), left=left_behind(), broken=broken_by_one())
    Path(f"{file}{os.environ.get('RANK', '')}").write_text(json.dumps(found))

CODE = """
import sys, warnings
warnings.simplefilter('ignore')
from test_uneven_shares import write_values
if __name__ == '__main__': write_values(sys.argv[1])
"""

@pytest.fixture(scope='module')
def dealt_out(tmp_path_factory):
    folder = tmp_path_factory.mktemp('uneven')
    (folder/'program.py').write_text(CODE)
    env = dict(os.environ, OMP_NUM_THREADS='1')
    env['PYTHONPATH'] = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    launch = [sys.executable, '-m', 'torch.distributed.run', '--standalone']
    command = [*launch, '--nproc_per_node', PROCESSES, folder/'program.py', folder/'values.json']
    done = subprocess.run([*map(str, command)], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return [json.loads((folder/f'values.json{rank}').read_text()) for rank in range(PROCESSES)]

@pytest.fixture(scope='module')
def alone(): return dict(values=values(), predictions=predictions())

@pytest.mark.parametrize('i', range(len(SIZES)), ids=lambda i: f'{SIZES[i]} images')
def test_validation_is_that_of_one_process(i, alone, dealt_out):
    "a mean and F1, which is none, in each process; up to the order of sums in float32"
    for found in dealt_out: assert found['values'][i] == pytest.approx(alone['values'][i], abs=1e-5)

def test_metrics_of_training_are_those_of_one_process(alone, dealt_out):
    for found in dealt_out: assert found['predictions']['f1'] == alone['predictions']['f1']

def test_predictions_are_those_of_one_process(alone, dealt_out):
    "in their order, from any loader"
    for found in dealt_out:
        for mine, whole in zip(found['predictions']['preds'], alone['predictions']['preds']):
            for a, b in zip(mine, whole): assert torch.allclose(torch.tensor(a), torch.tensor(b), atol=1e-5)

def test_a_metric_that_cannot_be_joined_is_named_once(alone, dealt_out):
    assert not alone['predictions']['named']
    assert [found['predictions']['named'] > 0 for found in dealt_out] == [True, False, False]

def test_nothing_stays_of_several_processes(dealt_out):
    for found in dealt_out: assert not found['left']

def test_one_that_breaks_off_is_noticed_by_the_others(dealt_out):
    "at once, and all can train together again"
    errors, losses = zip(*(found['broken'] for found in dealt_out))
    assert errors == ('RuntimeError',)*(PROCESSES-1) + ('ZeroDivisionError',)
    assert len(set(losses)) == 1 and losses[0] == losses[0]
