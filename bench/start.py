"""What the start of a network is worth: ReActNet-18 on a part of CIFAR-10, one change at a time.

    python bench/start.py --path DATA [--seeds 0 1 2] [--only start agc] [--seconds 3600] [--threads 1]
                          [--pixels 16] [--amp none] [--out results/start.json]

A quarter of the channels, the first 10,000 training images, 8 epochs of batch 64, Adam, cosine
with warm-up, 1-bit weights and activations in one step. Everything is chosen on 5,000 training
images that no fit has seen (`holdout`); the test images are not touched. With `--pixels 16`
or 24 all of them are made as small, and rows of growing pictures are left out. The file is written after
each run; runs that it holds already are left out, and after `--seconds` no new one begins: the
same command goes on.
"""
import argparse, json, time
from pathlib import Path
import torch
from fastai.basics import set_seed
from bnn_bn.core.files import write_file
from bnn_bn.learner import DivergenceError
from bnn_bn.train.recipes import make_dls, make_learner, make_recipe
from bnn_bn.train.run import show_progress, versions
from bnn_bn.train.sizes import SmallFirst
from bnn_bn.signal.start import PARTS, CalibratedStart

BASE = dict(width=.25, steps=1, epochs=8, bs=64, lr=.004, clip=0, ema=0., alpha=.25,
            start='calibrated')
AS_IS = dict(start='', clip=.02)

# group -> name -> changes of the recipe;
# 'parts' are those of `calibrate`, 'slope' is PReLU's first one
GROUPS = {
    'start': {
        'as it is, AGC .02': AS_IS,
        'as it is, no AGC': dict(start=''),
        'gains': dict(parts=('gains',)),
        'gains and shifts': dict(parts=('gains', 'shifts')),
        'gains and thresholds': dict(parts=('gains', 'thresholds')),
        'shifts and thresholds': dict(parts=('shifts', 'thresholds')),
        'all three': {},
        'batch norm': dict(norm='bn'),
    },
    'controls': {
        'as it is, AGC .02, rate .002': AS_IS | dict(lr=.002),
        'batch norm, AGC .02': dict(norm='bn', clip=.02),
        'plain removal, AGC .02': dict(norm='naive', clip=.02),
    },
    'agc': {
        'AGC .02': dict(clip=.02),
        'AGC .16': dict(clip=.16),
        'no AGC, batch 256, rate .016': dict(bs=256, lr=.016),
        'AGC .02, batch 256, rate .016': dict(bs=256, lr=.016, clip=.02),
        'AGC .16, batch 256, rate .016': dict(bs=256, lr=.016, clip=.16),
        'rate .032': dict(lr=.032),
        'AGC .02, rate .032': dict(lr=.032, clip=.02),
        'as it is, no AGC, batch 256, rate .016': dict(start='', bs=256, lr=.016),
        'as it is, AGC .02, batch 256, rate .016': AS_IS | dict(bs=256, lr=.016),
    },
    'rate': {
        'rate .002': dict(lr=.002),
        'rate .008': dict(lr=.008),
        'rate .016': dict(lr=.016),
        'batch norm, rate .002': dict(norm='bn', lr=.002),
        'batch norm, rate .008': dict(norm='bn', lr=.008),
        'batch norm, rate .016': dict(norm='bn', lr=.016),
    },
    'alpha': {
        'alpha .1': dict(alpha=.1),
        'alpha .5': dict(alpha=.5),
        'alpha 1': dict(alpha=1.),
    },
    'other': {
        'two steps of 4 epochs': dict(steps=2, epochs=4),
        'mean of the weights .99': dict(ema=.99),
        'first slope .1': dict(slope=.1),
        'first slope .5': dict(slope=.5),
    },
    'small pictures first': {
        '16, then 32 pixels': dict(sizes='16,32'),
        '24, then 32 pixels': dict(sizes='24,32'),
    },
}


def set_slope(model, slope):
    "give each RPReLU another first slope"
    for name, p in model.named_parameters():
        if name.endswith('.slope'): p.data.fill_(slope)


def learner(changes, seed, options):
    "the Learner of one run, and its recipe"
    small = dict(sizes=str(options.pixels)) if options.pixels < 32 else {}
    changes = BASE | small | changes
    parts, slope = changes.pop('parts', PARTS), changes.pop('slope', None)
    recipe = make_recipe('cifar10-plus', **changes)
    set_seed(seed, reproducible=True)
    dls = make_dls(recipe, options.path, 'cpu', images=10000, download=False, seed=seed, holdout=5000)
    learn = make_learner(recipe, dls, amp=options.amp.replace('none', ''), compiled=True)
    for cb in learn.cbs.filter(lambda c: isinstance(c, CalibratedStart)): cb.parts = parts
    if slope is not None: set_slope(learn.model, slope)
    return learn, recipe


def fit(learn, recipe):
    "one step or two"
    kw = dict(schedule=recipe.schedule)
    if recipe.steps == 1: learn.fit_step(recipe.epochs, recipe.lr, **kw)
    else: learn.fit_two_step((recipe.epochs,)*2, recipe.lr, (recipe.wd, 0.), **kw)


def run(changes, seed, options):
    "accuracy on the held-out images after each epoch, in percent, and losses"
    torch._dynamo.reset()
    learn, recipe = learner(changes, seed, options)
    begin = time.perf_counter()
    try:
        with show_progress(learn):
            fit(learn, recipe)
        diverged = False
    except DivergenceError: diverged = True
    rows = [[float(v) for v in row] for row in learn.recorder.values]
    seconds = round(time.perf_counter() - begin, 1)
    return dict(accuracy=[round(100*row[2], 2) for row in rows],
                train_loss=[round(row[0], 4) for row in rows],
                diverged=diverged, seconds=seconds)


def planned(options):
    "(group, name, changes, seed) of all runs, whole tables first"
    rows = [(group, name, changes) for group, runs in GROUPS.items() for name, changes in runs.items()
            if {group, name} & set(options.only) and not (options.pixels < 32 and 'sizes' in changes)]
    for seed in options.seeds:
        for row in rows: yield *row, seed


def parse_options():
    p = argparse.ArgumentParser(description=__doc__)
    p.formatter_class = argparse.RawDescriptionHelpFormatter
    p.add_argument('--path', required=True)
    p.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    p.add_argument('--only', nargs='+', default=list(GROUPS), metavar='NAME', help='groups of runs, or rows of them',
                   choices=[*GROUPS, *(name for runs in GROUPS.values() for name in runs)])
    p.add_argument('--seconds', type=float, default=3600)
    p.add_argument('--threads', type=int, default=1)
    p.add_argument('--pixels', type=int, choices=(16, 24, 32), default=32, help='side of the pictures')
    p.add_argument('--amp', choices=('bf16', 'none'), default='bf16')
    p.add_argument('--out', type=Path, default=Path('results/start.json'))
    return p.parse_args()

def results_in(options):
    "what the file holds, or the head of a new one; SystemExit if its runs have other settings"
    settings, default = dict(pixels=options.pixels, amp=options.amp), dict(pixels=32, amp='bf16')
    if options.out.exists():
        done = json.loads(options.out.read_text())
        there = {k: done.get(k, default[k]) for k in settings}
        if there == settings: return done
        raise SystemExit(f'{options.out} has runs of {there}, not {settings}: give another --out')
    return dict(network='reactnet18, width 0.25, 1-bit weights and activations',
                data='CIFAR-10, 10,000 training images, 5,000 held out',
                **settings, base=BASE, versions=versions(), runs=[])

def main():
    options = parse_options()
    torch.set_num_threads(options.threads)
    SmallFirst.run_valid = options.pixels < 32 # then the held-out pictures are as small
    done, begin = results_in(options), time.perf_counter()
    had = {(r['name'], r['seed']) for r in done['runs']}
    for group, name, changes, seed in planned(options):
        if (name, seed) in had: continue
        if time.perf_counter() - begin > options.seconds:
            return print('out of time: the same command goes on')
        print(f'{group}: {name}, seed {seed}', flush=True)
        result = run(changes, seed, options)
        done['runs'].append(dict(group=group, name=name, seed=seed, changes=changes, **result))
        write_file(options.out, json.dumps(done, indent=1).encode())

if __name__ == '__main__': main()
