"""Does a packed network answer as the trained one does? Top-1 agreement, accuracy, flipped signs.

    python bench/agree.py RUN/best.safetensors ... --path DATA --out results/agreement.json

For each network the signs of every binary convolution are compared on the first `--flips` images,
the answers on all `--images`. An image whose signs all agree must have logits that agree within
rounding: the largest difference among those is given too. A row is named by what it compares,
and one that is in the file is not measured again.
"""
import argparse, json
from pathlib import Path
import numpy as np, torch
from fastai.callback.hook import Hooks
from fastprogress.fastprogress import progress_bar
from bnn_bn.layers.activations import RSign
from bnn_bn.checkpoint import load_network
from bnn_bn.data import cifar10_dls
from bnn_bn.deploy import pack
from bnn_bn.onebit.engine import signs_seen
from bnn_bn.core.files import write_file

def signs_of(model, x):
    "the trained network's logits and the signs of each of its binarisations"
    def signs(m, args, out): return out[0].numpy() > 0
    modules = [m for m in model.modules() if isinstance(m, RSign)]
    with Hooks(modules, signs) as hooks, torch.no_grad():
        return model(x)[0].numpy(), list(hooks.stored)

def flips_of(model, packed, images):
    "signs that differ, and the logits of the images where none does"
    signs = flipped = touched = 0
    same = []
    for x in progress_bar(images.split(1), leave=False):
        y, ours = signs_of(model, x)
        theirs = signs_seen(packed.engine, x.numpy())
        n = sum(int((a != (b > 0)).sum()) for a, b in zip(ours, theirs, strict=True))
        signs += sum(a.size for a in ours)
        flipped += n
        touched += n > 0
        if not n: same.append(float(np.abs(packed(x.numpy())[0] - y).max()))
    return dict(flip_images=len(images), signs=signs, flipped=flipped, images_with_flips=touched,
                largest_difference_without_flip=max(same, default=None))

def answers_of(model, packed, images, labels):
    "top 1 of both, and how often they agree"
    with torch.no_grad(): y = torch.cat([model(x) for x in images.split(250)])
    ours, theirs = y.argmax(1), packed(images).argmax(1)
    def share(right): return float(right.float().mean())
    return dict(images=len(images), agree=share(ours == theirs),
                disagree=int((ours != theirs).sum()),
                accuracy=share(ours == labels), packed_accuracy=share(theirs == labels),
                largest_logit=float(y.abs().max()))

def compare(model, images, labels, flips):
    packed, model = pack(model), model.eval()
    row = flips_of(model, packed, images[:flips])
    return row | answers_of(model, packed, images, labels)

def name_of(file, images, flips):
    "the folder of the runs, the run, its network, and on how much it is compared"
    return f"{'/'.join(Path(file).resolve().parts[-3:])}, {images} images, {flips} for signs"

def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('networks', nargs='+')
    p.add_argument('--path', required=True)
    p.add_argument('--out', type=Path, required=True)
    p.add_argument('--images', type=int, default=10000)
    p.add_argument('--flips', type=int, default=10000)
    p.add_argument('--threads', type=int, default=1)
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    dls = cifar10_dls(a.path, bs=500, download=False, device='cpu')
    x, y = (torch.cat(t)[:a.images] for t in zip(*dls.valid))
    rows = json.loads(a.out.read_text()) if a.out.exists() else {}
    for f in a.networks:
        name = name_of(f, len(x), min(a.flips, len(x)))
        if name not in rows:
            rows[name] = compare(load_network(f), x, y, a.flips)
            write_file(a.out, json.dumps(rows, indent=1).encode())
        print(name, rows[name], flush=True)

if __name__ == '__main__': main()
