"""What each technique is worth: a BN-free network with all of them, and one taken away in turn.

    python bench/ablate.py --out results/ablation.json [--images 4000] [--epochs 4]
        [--lrs .002 .01] [--seeds 3] [--without clipping 'second step' ...]

ReActNet-18 with a quarter of the channels and the ImageNet stem on `fashion_mini`, from the start
as it is drawn; `--epochs` of each of the two steps. Taken away:
- standardisation: the kernels are the latent weights (1-bit: their signs times mean|W|) times the
  gain, which stays
- clipping: no AGC
- alpha and beta: both are 1, the weights stay standardised
- second step: weights and activations have 1 bit from the start, in as many epochs
Beside them plain removal (without the first and the third) and batch norm. The JSON is written
after each run, and the same command goes on.
"""
import argparse, json, shlex, sys, time
from itertools import product
from pathlib import Path
import torch
from fastai.basics import Callback, set_seed
import fastai.callback.progress # noqa: F401, Learner.no_bar
from bnn_bn.layers.blocks import BiRealBlock
from bnn_bn.layers.conv import QuantConv2d, ScaledStdConv2d
from bnn_bn.core.files import write_file
from bnn_bn.learner import DivergenceError
from bnn_bn.train.recipes import make_dls, make_learner, make_recipe
from bnn_bn.train.run import show_progress, versions
from bnn_bn.train.steps import History, final


class PlainConv2d(ScaledStdConv2d):
    "`ScaledStdConv2d` that does not standardise: same parameters, other kernels"
    latent = QuantConv2d.latent

    def kernel(self):
        w, scale = QuantConv2d.kernel(self)
        if scale is None: return w*self.gain, None
        return w, scale*self.gain

def use_plain_kernels(module):
    if type(module) is ScaledStdConv2d: module.__class__ = PlainConv2d

def set_alpha_and_beta_to_one(module):
    if isinstance(module, BiRealBlock): module.alpha, module.beta = 1., 1.

class ChangeModules(Callback):
    "Apply a function to each module before a fit: `fit_two_step` makes a new network for each step"
    def __init__(self, change): self.change = change
    def before_fit(self): self.learn.model.apply(self.change)


BASE = dict(model='reactnet18', width=.25, alpha=.25, steps=2, bs=64, wd=5e-6,
            select='last', start='')
VARIANTS = { # fields of the recipe that differ
    'all': {},
    'standardisation': {},
    'clipping': dict(clip=0.),
    'alpha and beta': {},
    'second step': dict(steps=1),
    'plain removal': dict(norm='naive'),
    'batch norm': dict(norm='bn')}
CHANGES = { # what is done to each module
    'standardisation': use_plain_kernels,
    'alpha and beta': set_alpha_and_beta_to_one}


def make_one(name, lr, seed, options):
    "the recipe of a variant, its Learner and what keeps its history"
    recipe = make_recipe('fashion', **(BASE | dict(epochs=options.epochs, lr=lr) | VARIANTS[name]))
    history = History()
    change = [ChangeModules(CHANGES[name])] if name in CHANGES else []
    set_seed(seed, reproducible=True)
    dls = make_dls(recipe, device='cpu', images=options.images, seed=seed)
    return recipe, make_learner(recipe, dls, cbs=[history, *change]), history

def fit(learn, recipe):
    "two steps, or one of the same length"
    n, shared = recipe.epochs, dict(lr=recipe.lr, schedule=recipe.schedule)
    if recipe.steps == 1: learn.fit_step(2*n, wd=0., **shared)
    else: learn.fit_two_step((n, n), wd=(recipe.wd, 0.), select=recipe.select, **shared)

def run(name, lr, seed, options):
    "a row of the result"
    start = time.perf_counter()
    recipe, learn, history = make_one(name, lr, seed, options)
    row = dict(without=name, lr=lr, seed=seed, images=options.images, epochs=2*options.epochs)
    try:
        with show_progress(learn): fit(learn, recipe)
        row |= dict(diverged='', accuracy=round(final(learn), 6))
    except DivergenceError as e: row |= dict(diverged=str(e))
    skipped = history.rows[-1]['skipped'] if history.rows else None
    curve = [r['accuracy'] for r in history.rows]
    return dict(row, skipped=skipped, curve=curve, seconds=round(time.perf_counter() - start, 1))


def parse_options():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--out', type=Path, required=True, help='JSON file of the result')
    p.add_argument('--images', type=int, default=4000, help='training images')
    p.add_argument('--epochs', type=int, default=4, help='of each step')
    p.add_argument('--lrs', type=float, nargs='+', default=[.002, .01], help='learning rates')
    p.add_argument('--seeds', type=int, default=3, help='how many, from 0 on')
    p.add_argument('--threads', type=int, default=1)
    p.add_argument('--without', nargs='+', choices=VARIANTS, default=list(VARIANTS))
    return p.parse_args()

def read_result(options):
    "what an earlier call has written, or a new head; SystemExit if its runs were of another size"
    file, size = options.out, dict(images=options.images, epochs=2*options.epochs)
    if file.exists():
        result = json.loads(file.read_text())
        other = [r for r in result['rows'] if r | size != r]
        if not other: return result
        there = {k: other[0][k] for k in size}
        raise SystemExit(f'{file} has runs of {there}, not {size}: give another --out')
    command = shlex.join(['python', 'bench/ablate.py', *sys.argv[1:]])
    return dict(command=command, versions=versions(), rows=[])

def main():
    options = parse_options()
    torch.set_num_threads(options.threads)
    result = read_result(options)
    done = {(r['without'], r['lr'], r['seed']) for r in result['rows']}
    for seed, name, lr in product(range(options.seeds), options.without, options.lrs):
        if (name, lr, seed) in done: continue
        print(f'without {name}, rate {lr}, seed {seed}', flush=True)
        row = run(name, lr, seed, options)
        result['rows'].append(row)
        print({k: v for k, v in row.items() if k != 'curve'}, flush=True)
        write_file(options.out, json.dumps(result, indent=1).encode())


if __name__ == '__main__': main()
