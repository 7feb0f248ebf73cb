"""What trained weights are worth for a small set of own pictures, and which rate fits.

    python bench/own.py [--out results/own_pictures.json] [--seeds 0]

The set: 250 of the embedded pictures in colour, five classes that are easily confused (T-shirt,
Pullover, Dress, Coat, Shirt); accuracy on 500 test pictures after 10 epochs of batch 32, by the
recipe `folder` at 32 pixels. It starts from the package's CIFAR-10 network, or from random weights
that are calibrated on the first batch. The JSON is written after each run, and the same command
goes on where it stopped.
"""
import argparse, json
from dataclasses import asdict, dataclass
from pathlib import Path
import torch
import fastai.callback.progress # noqa: F401, Learner.no_bar
from fastai.basics import set_seed
from bnn_bn.core.files import write_file
from bnn_bn.data import CIFAR10_STATS, fashion_mini, tensor_dls
from bnn_bn.train.own import move
from bnn_bn.train.recipes import make_learner, make_recipe
from bnn_bn.train.run import versions

CLASSES = 0, 2, 3, 4, 6

@dataclass(frozen=True)
class Try:
    "A training: what differs."
    start:str
    lr:float
    ema:float = .99

TRIES = [Try('pretrained', .004), Try('pretrained', .001), Try('calibrated', .004),
         Try('pretrained', .0003), Try('pretrained', .002, .95), Try('pretrained', .01)]

def part(x, y, n):
    "the first n pictures of the classes, in colour"
    kept = torch.isin(y, torch.tensor(CLASSES))
    numbers = torch.tensor([CLASSES.index(int(k)) for k in y[kept][:n]])
    return x[kept][:n].repeat(1, 3, 1, 1), numbers

def accuracies(t, seed, epochs=10):
    "of each epoch"
    known = fashion_mini(device='cpu')
    train, valid = part(known.train.x, known.train.y, 250), part(known.valid.x, known.valid.y, 500)
    set_seed(seed, reproducible=True)
    mean, std = CIFAR10_STATS
    dls = tensor_dls(*train, *valid, bs=32, device='cpu', augment=move(32), mean=mean, std=std)
    r = make_recipe('folder', size=32, epochs=epochs, start=t.start, lr=t.lr, ema=t.ema)
    learn = make_learner(r, dls)
    with learn.no_bar(), learn.no_logging(): learn.fit_step(r.epochs, r.lr, r.schedule)
    return [round(float(row[2]), 4) for row in learn.recorder.values]

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument('--out', default='results/own_pictures.json')
    p.add_argument('--seeds', type=int, nargs='+', default=[0])
    a = p.parse_args()
    rows = json.loads(Path(a.out).read_text())['rows'] if Path(a.out).exists() else []
    for seed in a.seeds:
        for t in TRIES:
            row = dict(asdict(t), seed=seed)
            if any(row.items() <= r.items() for r in rows): continue
            rows.append(dict(row, accuracy=accuracies(t, seed)))
            write_file(a.out, json.dumps(dict(versions=versions(), rows=rows), indent=1).encode())
            print(rows[-1], flush=True)

if __name__ == '__main__': main()
