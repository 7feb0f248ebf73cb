"""Does a packed network answer as the trained one does? Top-1 agreement, accuracy and flipped signs on a test set.

    python bench/agree.py RUN/best.safetensors ... --path DATA --out results/agreement.json

For each network the signs of every binary convolution are compared on the first `--flips` images, the answers on all
`--images`. An image whose signs all agree must have logits that agree within rounding: the largest difference among
those is given too.
"""
import argparse, json
from pathlib import Path
import numpy as np, torch
from fastprogress.fastprogress import progress_bar
from bnn_bn.activations import RSign
from bnn_bn.checkpoint import load_model
from bnn_bn.data import cifar10_dls
from bnn_bn.deploy import pack
from bnn_bn.engine import signs_seen
from bnn_bn.files import write_file


def signs_of(model, x):
    "the trained network's logits and the signs of each of its binarisations"
    seen, hooks = [], []
    for m in model.modules():
        if isinstance(m, RSign): hooks.append(m.register_forward_hook(lambda m, i, o: seen.append(o[0].numpy() > 0)))
    with torch.no_grad(): y = model(x)
    for h in hooks: h.remove()
    return y[0].numpy(), seen


def compare(model, images, labels, flips):
    packed, model = pack(model), model.eval()
    signs = flipped = touched = 0
    same = []
    for x in progress_bar(images[:flips].split(1), leave=False):
        y, ours = signs_of(model, x)
        theirs = signs_seen(packed.engine, x.numpy())
        n = sum(int((a != (b > 0)).sum()) for a, b in zip(ours, theirs, strict=True))
        signs, flipped, touched = signs + sum(a.size for a in ours), flipped + n, touched + (n > 0)
        if not n: same.append(float(np.abs(packed(x.numpy())[0] - y).max()))
    with torch.no_grad(): y = torch.cat([model(x) for x in images.split(250)])
    z = packed(images)
    return dict(images=len(images), agree=float((y.argmax(1) == z.argmax(1)).float().mean()), disagree=int((y.argmax(1) != z.argmax(1)).sum()),
                accuracy=float((y.argmax(1) == labels).float().mean()), packed_accuracy=float((z.argmax(1) == labels).float().mean()),
                flip_images=len(images[:flips]), signs=signs, flipped=flipped, images_with_flips=touched,
                largest_difference_without_flip=max(same, default=None), largest_logit=float(y.abs().max()))


def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('networks', nargs='+'); p.add_argument('--path', required=True); p.add_argument('--out', required=True)
    p.add_argument('--images', type=int, default=10000); p.add_argument('--flips', type=int, default=10000); p.add_argument('--threads', type=int, default=1)
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    dls = cifar10_dls(a.path, bs=500, download=False, device='cpu')
    x, y = (torch.cat(t)[:a.images] for t in zip(*dls.valid))
    out = Path(a.out)
    rows = json.loads(out.read_text()) if out.exists() else {}
    for f in a.networks:
        name = Path(f).parent.name
        if name not in rows:
            rows[name] = compare(load_model(f), x, y, a.flips)
            write_file(out, json.dumps(rows, indent=1).encode())
        print(name, rows[name], flush=True)


if __name__ == '__main__': main()
