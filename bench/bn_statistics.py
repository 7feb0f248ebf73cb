"""Batch norm's statistics counted again for the averaged weights of finished runs.

    python bench/bn_statistics.py --path DATA --out results/bn_statistics.json RUN...

A run validates with the running mean of its weights, and beside them stand the statistics that
batch norm counted while the weights of the last steps passed by. This counts them anew on 10,000
augmented training images with the averaged weights, as torch's `update_bn` does, and validates both
on all test images, in float32. A run that the file holds already is left out.
"""
import argparse, json
from itertools import islice
from pathlib import Path
import torch
from fastai.basics import set_seed
from torch import Tensor
from torch.optim.swa_utils import update_bn
from bnn_bn.checkpoint import load_network
from bnn_bn.core.files import write_file
from bnn_bn.data import cifar10_dls

BATCHES, SIZE = 20, 500

def parse_options():
    p = argparse.ArgumentParser(description=__doc__)
    p.formatter_class = argparse.RawDescriptionHelpFormatter
    p.add_argument('runs', nargs='+', type=Path, help='directories of runs with batch norm')
    p.add_argument('--path', required=True, help='directory of CIFAR-10')
    p.add_argument('--out', type=Path, default=Path('results/bn_statistics.json'))
    p.add_argument('--device', default='cpu', help='cpu or cuda')
    return p.parse_args()

@torch.no_grad()
def accuracy(model, dl):
    "share of the test images, in percent"
    model.eval()
    right = sum((model(Tensor(x)).argmax(1) == y).sum().item() for x, y in dl)
    return round(100*right/len(dl.x), 2)

def row_of(run, dls):
    "accuracy with the statistics of the run, and with those of the averaged weights"
    set_seed(0)
    dls.train.rng.seed(0) # the same images for each run and call
    model = load_network(run/'model.safetensors').to(dls.device)
    as_saved = accuracy(model, dls.valid)
    update_bn((Tensor(x) for x, _ in islice(dls.train, BATCHES)), model)
    recipe = json.loads((run/'config.json').read_text())
    return dict(seed=recipe['seed'], lr=recipe['recipe']['lr'], as_saved=as_saved,
                counted_anew=accuracy(model, dls.valid))

def main():
    options = parse_options()
    dls = cifar10_dls(options.path, bs=SIZE, device=options.device, download=False)
    done = json.loads(options.out.read_text()) if options.out.exists() else dict(runs={})
    for run in options.runs:
        name = f'{run.parent.name}/{run.name}'
        if name in done['runs']: continue
        done['runs'][name] = row_of(run, dls)
        print(name, done['runs'][name], flush=True)
        write_file(options.out, (json.dumps(done, indent=1) + '\n').encode())

if __name__ == '__main__': main()
