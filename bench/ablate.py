"""What each technique is worth: a BN-free network trained with all of them, and with one taken away in turn.

    python bench/ablate.py --out results/ablation.json [--images 4000] [--epochs 4] [--lrs .002 .01] [--seeds 3] [--without clipping 'second step' ...]

ReActNet-18 with a quarter of the channels and the ImageNet stem on `fashion_mini`; `--epochs` of each of the two steps. Taken away:
- standardisation: the kernels are the latent weights (1-bit: their signs times mean|W|) times the gain, which stays
- clipping: no AGC
- alpha and beta: both are 1, the weights stay standardised
- second step: weights and activations have 1 bit from the start, in as many epochs
Beside them plain removal (without the first and the third) and batch norm. The JSON is written after each run, and the same command goes on.
"""
import argparse, json, shlex, sys, time
from pathlib import Path
import torch
from fastai.basics import Callback, set_seed
import fastai.callback.progress # noqa: F401, Learner.no_bar
from bnn_bn.blocks import BiRealBlock
from bnn_bn.conv import QuantConv2d, ScaledStdConv2d
from bnn_bn.files import write_file
from bnn_bn.learner import DivergenceError
from bnn_bn.recipes import make_dls, make_learner, make_recipe
from bnn_bn.run import show_progress, versions
from bnn_bn.steps import History, final


class PlainConv2d(ScaledStdConv2d):
    "`ScaledStdConv2d` that does not standardise: same parameters, other kernels"
    latent = QuantConv2d.latent
    def kernel(self):
        w, scale = QuantConv2d.kernel(self)
        return (w*self.gain, None) if scale is None else (w, scale*self.gain)


def plain_kernels(m):
    if type(m) is ScaledStdConv2d: m.__class__ = PlainConv2d

def ones(m):
    if isinstance(m, BiRealBlock): m.alpha, m.beta = 1., 1.


class Change(Callback):
    "Apply a function to each module before a fit: `fit_two_step` makes a new network for each step"
    def __init__(self, f): self.f = f
    def before_fit(self): self.learn.model.apply(self.f)


VARIANTS = {'all': {}, 'standardisation': dict(f=plain_kernels), 'clipping': dict(clip=0.), 'alpha and beta': dict(f=ones), 'second step': dict(steps=1),
            'plain removal': dict(norm='naive'), 'batch norm': dict(norm='bn')}


def one(name, lr, seed, a):
    change = dict(VARIANTS[name])
    f, start = change.pop('f', None), time.perf_counter()
    r = make_recipe('fashion', **(dict(model='reactnet18', width=.25, alpha=.25, steps=2, epochs=a.epochs, bs=64, lr=lr, wd=5e-6, select='last') | change))
    set_seed(seed, reproducible=True)
    learn = make_learner(r, make_dls(r, device='cpu', images=a.images, seed=seed), cbs=[history := History()] + ([Change(f)] if f else []))
    row = dict(without=name, lr=lr, seed=seed, images=a.images, epochs=2*a.epochs)
    try:
        with show_progress(learn):
            if r.steps == 2: learn.fit_two_step((r.epochs, r.epochs), r.lr, (r.wd, 0.), r.select, schedule=r.schedule)
            else: learn.fit_step(2*r.epochs, r.lr, schedule=r.schedule, wd=0.)
        row |= dict(diverged='', accuracy=round(final(learn), 6))
    except DivergenceError as e: row |= dict(diverged=str(e))
    return dict(row, skipped=history.rows[-1]['skipped'] if history.rows else None, curve=[h['accuracy'] for h in history.rows], seconds=round(time.perf_counter() - start, 1))


def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--out', type=Path, required=True); p.add_argument('--images', type=int, default=4000); p.add_argument('--epochs', type=int, default=4)
    p.add_argument('--lrs', type=float, nargs='+', default=[.002, .01]); p.add_argument('--seeds', type=int, default=3); p.add_argument('--threads', type=int, default=1)
    p.add_argument('--without', nargs='+', choices=VARIANTS, default=list(VARIANTS))
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    data = json.loads(a.out.read_text()) if a.out.exists() else dict(command=shlex.join(['python', 'bench/ablate.py', *sys.argv[1:]]), versions=versions(), rows=[])
    rows = data['rows']
    for seed in range(a.seeds):
        for name in a.without:
            for lr in a.lrs:
                if (name, lr, seed) in {(r['without'], r['lr'], r['seed']) for r in rows}: continue
                print(f'without {name}, rate {lr}, seed {seed}', flush=True)
                rows.append(one(name, lr, seed, a)); print({k: v for k, v in rows[-1].items() if k != 'curve'}, flush=True)
                write_file(a.out, json.dumps(data, indent=1).encode())


if __name__ == '__main__': main()
