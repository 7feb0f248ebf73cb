"""Loss and accuracy of validation do not depend on the number of processes, however few images the
last batch has."""
import json
import os
import subprocess
import sys
from pathlib import Path
import pytest
import torch
import fastai.callback.progress # noqa: F401, Learner.no_bar
from fastai.basics import SGD, set_seed
from bnn_bn.data import tensor_dls
from bnn_bn.learner import bnn_learner
from bnn_bn.train.processes import several_processes
from mutations import small

SIZES = 1, 17, 20, 32 # of a validation set, in batches of 16: the last batch has 1, 1, 4 and 16 images
PROCESSES = 3

def values():
    "loss and accuracy of each number of images after an epoch that changes no weight"
    set_seed(0)
    x = torch.randint(0, 256, (36, 1, 32, 32), generator=torch.Generator().manual_seed(0))
    x, y = x.to(torch.uint8), torch.arange(36) % 10
    dls = tensor_dls(x[:6], y[:6], x, y, 6, 'cpu', vocab=list(range(10)))
    learn = bnn_learner(dls, small(), opt_func=SGD)
    found = []
    for part in (SIZES[:2], SIZES[2:]): # the processes are joined twice in one program
        with several_processes(learn), learn.no_bar(), learn.no_logging():
            found += [value_of(learn, x[:n], y[:n]) for n in part]
    return found

def value_of(learn, x, y):
    learn.dls.loaders[1] = learn.dls.valid.new(x=x, y=y, bs=16)
    learn.fit(1, 0.)
    return [float(v) for v in learn.recorder.values[-1][1:]]

def write_values(file):
    "in each process; the first one writes"
    found = values()
    if os.environ['RANK'] == '0': Path(file).write_text(json.dumps(found))

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
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads((folder/'values.json').read_text())

@pytest.fixture(scope='module')
def alone(): return values()

@pytest.mark.parametrize('i', range(len(SIZES)), ids=lambda i: f'{SIZES[i]} images')
def test_validation_is_that_of_one_process(i, alone, dealt_out):
    "up to the order of sums in float32"
    assert dealt_out[i] == pytest.approx(alone[i], abs=1e-5)
