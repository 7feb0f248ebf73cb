"""Does a calibrated start train better? The mini ReActNet on the embedded Fashion-MNIST, as it is, with gamma, and calibrated.

    python bench/calibration.py [--seeds 3] [--epochs 3] [--seconds 480] [--threads 1] [--out results/calibration.json]

Each run is a seed, an alpha and a start: 'as it is', 'gamma' (sqrt(4/3), gives back what binary kernels take), or 'calibrated' (`theory.calibrate`
on the first training batch). Seeds go round first, so that an early end leaves whole columns. The file is written after each run; runs that it
holds already are left out, and after `--seconds` no new one begins.
"""
import argparse, json, math, platform, time
from itertools import product
from pathlib import Path
import fastai.callback.progress, fastai.callback.schedule # noqa: F401, Learner.no_bar and fit_one_cycle
import torch
from fastai.basics import set_seed
from bnn_bn.data import fashion_mini
from bnn_bn.files import write_file
from bnn_bn.learner import DivergenceError, bnn_learner
from bnn_bn.models import reactnet_nobn
from bnn_bn.theory import calibrate

def run(seed, alpha, start, epochs, lr=3e-3):
    "accuracy and loss on the test images after each epoch, in percent"
    set_seed(seed, reproducible=True)
    dls, gamma = fashion_mini(bs=64, device='cpu'), math.sqrt(4/3) if start == 'gamma' else 1.
    net = reactnet_nobn('mini', n_out=10, in_chans=1, width=.5, alpha=alpha, gamma=gamma)
    if start == 'calibrated': calibrate(net, dls.train.x[:128].sub(dls.train.mean).div(dls.train.std))
    learn = bnn_learner(dls, net)
    try:
        with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(epochs, lr)
    except DivergenceError: pass
    rows = [[float(v) for v in r] for r in learn.recorder.values]
    return dict(seed=seed, alpha=alpha, start=start, epochs=epochs, lr=lr, valid_loss=[r[1] for r in rows], accuracy=[100*r[2] for r in rows])

def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument('--seeds', type=int, default=3); a.add_argument('--epochs', type=int, default=3); a.add_argument('--seconds', type=float, default=480)
    a.add_argument('--threads', type=int, default=1); a.add_argument('--out', type=Path, default=Path('results/calibration.json')); a = a.parse_args()
    torch.set_num_threads(a.threads)
    done = json.loads(a.out.read_text()) if a.out.exists() else dict(network='reactnet_mini_nobn, width 0.5, 32x32, imagenet stem', data='fashion_mini, 10,000 training images, batch 64',
        optimizer='Adam, one cycle, AGC 0.02', device='CPU', threads=a.threads, torch=torch.__version__, python=platform.python_version(), runs=[])
    key = lambda r: (r['seed'], r['alpha'], r['start'], r['epochs'])
    had, begin = {key(r) for r in done['runs']}, time.perf_counter()
    for seed, alpha, start in product(range(a.seeds), (.2, .5, 1.), ('as it is', 'gamma', 'calibrated')):
        if (seed, alpha, start, a.epochs) in had: continue
        if time.perf_counter() - begin > a.seconds: print('out of time: run again to go on'); break
        done['runs'].append(run(seed, alpha, start, a.epochs)); write_file(a.out, json.dumps(done, indent=1).encode())
        print(seed, alpha, start, [round(v, 1) for v in done['runs'][-1]['accuracy']], f'{time.perf_counter() - begin:.0f} s', flush=True)

if __name__ == '__main__': main()
