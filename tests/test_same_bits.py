"""The same seed gives the same run, whatever the number of a loader's workers, in this process and in
another one; a batch's size, threads and ways of counting change no bit of a packed answer, and a
batch's size changes a trained network's answer within a bound."""
import hashlib
import json
import math
import os
import random
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
import numpy as np
import pytest
import torch
import fastai.callback.progress # noqa: F401, Learner.no_bar
from fastai.basics import set_seed
from bnn_bn.data import pixel_stats
from bnn_bn.deploy import load_packed, pack
from bnn_bn.folder import folder_dls
from bnn_bn.learner import bnn_learner
from bnn_bn.models import create_model
from bnn_bn.onebit.counting import has_way, ways
from folders import noise_folder

# Trainings ----------------------------------------------

@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    "crops and flips of training are random, and so is the order"
    return noise_folder(tmp_path_factory.mktemp('pictures'), dict(train=8, val=5))

def network(seed=0):
    torch.manual_seed(seed)
    return create_model('reactnet_mini_nobn', n_out=2, in_chans=3, width=.125)

def digest(state):
    "of all bits of a state dict"
    h = hashlib.sha256()
    for name, t in sorted(state.items()): h.update(name.encode() + t.cpu().numpy().tobytes())
    return h.hexdigest()

def trained(folder, workers, seed=0):
    "weights after two epochs, and what the recorder noted"
    set_seed(seed, reproducible=True)
    dls = folder_dls(folder, bs=4, size=32, workers=workers, device='cpu', seed=seed)
    learn = bnn_learner(dls, network(seed))
    with learn.no_bar(), learn.no_logging(): learn.fit(2, .01)
    return digest(learn.model.state_dict()), [list(v) for v in learn.recorder.values]

@pytest.fixture(scope='module')
def first(pictures): return trained(pictures, 0)

@pytest.mark.parametrize('workers', (0, 1, 3))
def test_the_seed_says_it_all_for_any_workers(workers, pictures, first):
    assert trained(pictures, workers) == first

def test_another_seed_is_another_run(pictures, first):
    assert trained(pictures, 0, seed=1)[0] != first[0]

@pytest.mark.parametrize('shape', [(1, 1, 1, 2), (7, 3, 5, 4), (150, 1, 16, 16)])
def test_statistics_of_pixels_are_exact_for_any_threads(shape):
    "mean and deviation of each channel are those of fractions, rounded once each"
    x = torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    before, found = torch.get_num_threads(), []
    try:
        for threads in 1, 2, 3:
            torch.set_num_threads(threads)
            found.append(pixel_stats(x))
    finally: torch.set_num_threads(before)
    assert found[0] == found[1] == found[2]
    for c, mean, std in zip(x.unbind(1), *found[0]):
        values = [Fraction(v, 255) for v in c.flatten().tolist()]
        exact = sum(values)/len(values)
        variance = sum((v - exact)**2 for v in values)/(len(values) - 1)
        assert mean == float(exact)
        assert std == pytest.approx(math.sqrt(variance), rel=4e-16)

def test_what_the_process_drew_before_changes_nothing(pictures, first):
    random.seed(7)
    np.random.seed(7)
    torch.manual_seed(7)
    assert trained(pictures, 2) == first

TRAIN = """
import json, sys
from pathlib import Path
from bnn_bn.checkpoint import load_model
from bnn_bn.train.run import bnn_train
from test_same_bits import digest
sys.argv = ['bnn_train', *sys.argv[1:]]
if __name__ == '__main__':
    bnn_train()
    out = Path(sys.argv[sys.argv.index('--out') + 1])
    print(json.dumps({f.name: digest(load_model(f).state_dict()) for f in out.glob('*.safetensors')
                      if 'state' not in f.name}))
"""

LEAST = ('fashion --device cpu --images 128 --holdout 32 --bs 32 --width .125 --epochs 1 --threads 1 '
         '--compile no')

def by_command(out, **env):
    "digests of a run's networks, in a process of its own"
    env = dict(os.environ) | env
    env['PYTHONPATH'] = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    command = [sys.executable, '-W', 'ignore', '-c', TRAIN, *LEAST.split(), '--out', str(out)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])

def test_a_run_on_one_thread_is_the_same_in_every_process(tmp_path):
    "hashes of texts and the threads that the environment asks for differ; `--threads 1` rules"
    one = by_command(tmp_path/'a', PYTHONHASHSEED='1', OMP_NUM_THREADS='1')
    two = by_command(tmp_path/'b', PYTHONHASHSEED='2', OMP_NUM_THREADS='3', MKL_NUM_THREADS='2')
    assert one == two and {'model.safetensors', 'best.safetensors'} <= set(one)

# Answers ----------------------------------------------

HERE = [k for k in ways if has_way(k)]
NAMES = 'reactnet_mini', 'reactnet18', 'reactnet_a'
NETWORKS = [(name, norm) for name in NAMES for norm in ('nobn', 'bn')]
BOUND = 1e-9 # of the largest answer, in float64: a batch of another size sums in another order

def moved(name, norm):
    "a network whose thresholds, gains and norms are drawn at random"
    torch.manual_seed(0)
    net = create_model(f'{name}_{norm}', n_out=10, in_chans=3, width=.125).eval()
    with torch.no_grad():
        for n, p in net.named_parameters():
            if any(k in n for k in ('shift', 'gain', 'slope', 'norm')): p += .2*torch.randn_like(p)
    return net

def noise(n=9, side=64):
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(1))

@pytest.mark.parametrize('name, norm', NETWORKS)
def test_packed_answers_are_the_same_bits(name, norm, tmp_path):
    "on 1, 2 and 3 threads, counted in each way of this CPU, in batches of any size"
    file, images = pack(moved(name, norm)).save(tmp_path/'net.bnn'), noise().numpy()
    want = load_packed(file)(images)
    assert np.isfinite(want).all() and len(np.unique(want)) > 9
    for way in HERE:
        for threads in (1, 2, 3):
            net = load_packed(file, threads=threads, way=way)
            for size in (1, 4, 9):
                parts = [net(images[i:i + size]) for i in range(0, 9, size)]
                assert np.concatenate(parts).tobytes() == want.tobytes(), (way, threads, size)

def real_sums(name, norm):
    "how far answers in float64 are from those of the whole batch, by the size of a part"
    net, images = moved(name, norm).double(), noise(5).double()
    with torch.no_grad():
        whole = net(images)
        parts = {n: torch.cat([net(p) for p in images.split(n)]) for n in (1, 2, 4)}
    return {n: float((p - whole).abs().max()/whole.abs().max()) for n, p in parts.items()}

@pytest.mark.parametrize('name, norm', NETWORKS)
def test_the_size_of_a_batch_moves_a_trained_network_by_rounding_alone(name, norm):
    "in float64 no sum comes near a threshold; what is left is far below the bound"
    assert max(real_sums(name, norm).values()) < BOUND
