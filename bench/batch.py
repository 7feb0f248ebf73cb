"""Accuracy against the batch size, BN-free and with batch norm: `reactnet_mini` on `fashion_mini`, the recipe of `bnn_demo`, the same images whatever the batch.

    python bench/batch.py --out results/batch_size.json [--images 2000] [--epochs 1] [--seeds 3]

The learning rate at batch size 64 is the demo's, and falls with the batch size or with its square root. Which of the two is chosen
for each network by trials on seed 100, validated on training images that no run here trains with. Then the seeds are run and tested.
A network with batch norm is tested as usual, with its running statistics, and with the statistics of batches of its training's size.
The JSON is written after each run, and the same command goes on.
"""
import argparse, json, time
from pathlib import Path
import numpy as np, torch
from bnn_bn.data import fashion_mini
from bnn_bn.demo import train_one
from bnn_bn.files import write_file
from bnn_bn.learner import DivergenceError
from bnn_bn.run import versions

SIZES, PEAK = (64, 16, 4, 2, 1), .02
RULES = dict(linear=lambda bs: PEAK*bs/64, root=lambda bs: PEAK*(bs/64)**.5)


def loaders(bs, images, trial):
    "the first `images` for training in batches of `bs`; the test images, or in a trial the last 2,000 training images"
    dls = fashion_mini(bs=64, device='cpu')
    x, y = dls.train.x, dls.train.y
    if images > len(x) - 2000: raise SystemExit(f'bench/batch.py: --images {images}: at most {len(x) - 2000}')
    dls.loaders[0] = dls.train.new(bs=bs, x=x[:images], y=y[:images])
    if trial: dls.loaders[1] = dls.valid.new(x=x[-2000:], y=y[-2000:])
    return dls


@torch.no_grad()
def with_batch_statistics(model, dl, bs):
    "accuracy with the statistics of each batch; they move the running ones, so this comes last"
    model.train()
    return float(np.mean([(model(x).argmax(1) == y).float().mean().item() for xs, ys in dl for x, y in zip(xs.split(bs), ys.split(bs)) if len(x) == bs]))


def one(kind, bs, rule, seed, a, trial=False):
    dls, lr, start = loaders(bs, a.images, trial), RULES[rule](bs), time.perf_counter()
    row = dict(network=kind, bs=bs, rule=rule, lr=lr, seed=seed, images=a.images, epochs=a.epochs, trial=trial)
    try: learn, r = train_one(kind, dls, seed, a.epochs, lr)
    except DivergenceError as e: return dict(row, diverged=str(e), seconds=round(time.perf_counter() - start, 1))
    row |= dict(diverged='', accuracy=r['accuracy'], loss=r['loss'], seconds=r['seconds'])
    if kind == 'bn' and not trial: row['accuracy_batch_statistics'] = round(with_batch_statistics(learn.model, dls.valid, bs), 6)
    return row


def best_rule(rows, kind):
    "the rule with the higher mean accuracy in the trials; a diverged one counts as chance"
    mean = {rule: np.mean([r.get('accuracy', .1) for r in rows if r['trial'] and (r['network'], r['rule']) == (kind, rule)]) for rule in RULES}
    return max(mean, key=mean.get)


def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--out', type=Path, required=True); p.add_argument('--images', type=int, default=2000); p.add_argument('--epochs', type=int, default=1)
    p.add_argument('--seeds', type=int, default=3); p.add_argument('--threads', type=int, default=1)
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    data = json.loads(a.out.read_text()) if a.out.exists() else dict(command=f'python bench/batch.py --images {a.images} --epochs {a.epochs} --seeds {a.seeds}', versions=versions(), rows=[])
    rows, key = data['rows'], lambda r: tuple(r[k] for k in ('network', 'bs', 'rule', 'seed', 'images', 'epochs', 'trial'))
    def run(kind, bs, rule, seed, trial=False):
        if (kind, bs, rule, seed, a.images, a.epochs, trial) in set(map(key, rows)): return
        print(f"{kind}, batch {bs}, {rule}, seed {seed}", flush=True)
        rows.append(one(kind, bs, rule, seed, a, trial)); print(rows[-1], flush=True)
        write_file(a.out, json.dumps(data, indent=1).encode())
    for bs in (1, 4):
        for rule in RULES:
            for kind in ('nobn', 'bn'): run(kind, bs, rule, 100, True)
    data['rules'] = {kind: best_rule(rows, kind) for kind in ('nobn', 'bn')}
    for seed in range(a.seeds):
        for bs in SIZES:
            for kind in ('nobn', 'bn'): run(kind, bs, data['rules'][kind], seed)
    write_file(a.out, json.dumps(data, indent=1).encode())


if __name__ == '__main__': main()
