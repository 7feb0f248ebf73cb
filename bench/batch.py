"""Accuracy against the batch size, BN-free and with batch norm, on the same images.

    python bench/batch.py --out results/batch_size.json [--images 2000] [--epochs 1] [--seeds 3]

`reactnet_mini` on `fashion_mini`, the recipe of `bnn_demo`. The learning rate at batch size 64 is
the demo's, and falls with the batch size or with its square root. Which of the two is chosen for
each network by trials on seed 100, validated on training images that no run here trains with. Then
the seeds are run and tested. A network with batch norm is tested as usual, with its running
statistics, and with the statistics of batches of its training's size. The JSON is written after
each run, and the same command goes on.
"""
import argparse, json, time
from dataclasses import asdict, dataclass
from pathlib import Path
import numpy as np, torch
from bnn_bn.data import fashion_mini
from bnn_bn.train.demo import train_one
from bnn_bn.core.files import write_file
from bnn_bn.learner import DivergenceError
from bnn_bn.train.run import versions

KINDS, SIZES, PEAK = ('nobn', 'bn'), (64, 16, 4, 2, 1), .02
RULES = dict(linear=lambda bs: PEAK*bs/64, root=lambda bs: PEAK*(bs/64)**.5)

@dataclass(frozen=True)
class Run:
    "What makes a run; a row of the results begins with it."
    network:str
    bs:int
    rule:str
    seed:int
    images:int
    epochs:int
    trial:bool = False

    @property
    def lr(self): return RULES[self.rule](self.bs)
    def is_in(self, rows):
        mine = asdict(self).items()
        return any(all(r[k] == v for k, v in mine)
                   for r in rows)

def loaders(bs, images, trial):
    "the first `images` in batches of `bs`; the test images, in a trial the last training images"
    dls = fashion_mini(bs=64, device='cpu')
    x, y = dls.train.x, dls.train.y
    most = len(x) - 2000
    if images > most: raise SystemExit(f'bench/batch.py: --images {images}: at most {most}')
    dls.loaders[0] = dls.train.new(bs=bs, x=x[:images], y=y[:images])
    if trial: dls.loaders[1] = dls.valid.new(x=x[-2000:], y=y[-2000:])
    return dls

@torch.no_grad()
def with_batch_statistics(model, dl, bs):
    "accuracy with the statistics of each batch; they move the running ones, so this comes last"
    model.train()
    right = []
    for xs, ys in dl:
        batches = [(x, y) for x, y in zip(xs.split(bs), ys.split(bs)) if len(x) == bs]
        right += [(model(x).argmax(1) == y).float().mean().item() for x, y in batches]
    return float(np.mean(right))

def row_of(run):
    "train and test one network"
    dls, start = loaders(run.bs, run.images, run.trial), time.perf_counter()
    row = dict(asdict(run), lr=run.lr)
    try: learn, r = train_one(run.network, dls, run.seed, run.epochs, run.lr)
    except DivergenceError as e:
        return dict(row, diverged=str(e), seconds=round(time.perf_counter() - start, 1))
    row |= dict(diverged='', accuracy=r['accuracy'], loss=r['loss'], seconds=r['seconds'])
    if run.network == 'bn' and not run.trial:
        accuracy = with_batch_statistics(learn.model, dls.valid, run.bs)
        row['accuracy_batch_statistics'] = round(accuracy, 6)
    return row

def best_rule(rows, kind):
    "the rule with the higher mean accuracy in the trials; a diverged one counts as chance"
    trials = [r for r in rows if r['trial'] and r['network'] == kind]
    def mean(rule): return np.mean([r.get('accuracy', .1) for r in trials if r['rule'] == rule])
    return max(RULES, key=mean)

def add(run, data, out):
    "a run's row, unless it is there"
    if run.is_in(data['rows']): return
    print(f'{run.network}, batch {run.bs}, {run.rule}, seed {run.seed}', flush=True)
    data['rows'].append(row_of(run))
    print(data['rows'][-1], flush=True)
    write_file(out, json.dumps(data, indent=1).encode())

def arguments():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--out', type=Path, required=True)
    p.add_argument('--images', type=int, default=2000)
    p.add_argument('--epochs', type=int, default=1)
    p.add_argument('--seeds', type=int, default=3)
    p.add_argument('--threads', type=int, default=1)
    return p.parse_args()

def main():
    a = arguments()
    torch.set_num_threads(a.threads)
    size = dict(images=a.images, epochs=a.epochs)
    command = f'python bench/batch.py --images {a.images} --epochs {a.epochs} --seeds {a.seeds}'
    fresh = dict(command=command, versions=versions(), rows=[])
    data = json.loads(a.out.read_text()) if a.out.exists() else fresh
    for bs in (1, 4):
        for rule in RULES:
            for kind in KINDS: add(Run(kind, bs, rule, 100, **size, trial=True), data, a.out)
    data['rules'] = {kind: best_rule(data['rows'], kind) for kind in KINDS}
    for seed in range(a.seeds):
        for bs in SIZES:
            for kind in KINDS: add(Run(kind, bs, data['rules'][kind], seed, **size), data, a.out)
    write_file(a.out, json.dumps(data, indent=1).encode())

if __name__ == '__main__': main()
