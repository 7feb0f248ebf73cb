"""Take the batch norm out of every classifier of torchvision: what became of the signal.

Written to results/convert.json.

    OMP_NUM_THREADS=1 python bench/convert.py [--out results/convert.json] [--only resnet18 ...]

One network after the other, written as it goes; a second call goes on where the first was stopped.
An hour on one thread, less with --side 64. Random weights (seed 0). Variances are those at the inputs
of the blocks and at the end of the last one, on white noise of another seed than the calibration's and
on Fashion-MNIST's test images, enlarged (for 'on images' the channels are set on others of these).
"""
import argparse, json, os, time
from pathlib import Path
import torch, torchvision
from torch import nn
from torch.nn import functional as F
from torchvision import models as tv
from bnn_bn.convert import drop_bn, remove_bn
from bnn_bn.data import fashion_mini
from bnn_bn.models import assert_bn_free
from bnn_bn.signal.ledger import signal_stats

VARIANTS = {'ledger': dict(calibrate=False), 'real': {}, 'act': dict(binary='act'),
            'both': dict(binary='both')}
LARGE = 4e8 # parameters above which a backward pass needs more than 24 GB

def build(name):
    torch.manual_seed(0)
    kwargs = {'init_weights': False} if name in ('googlenet', 'inception_v3') else {}
    return tv.get_model(name, weights=None, **kwargs)

def refusal(name):
    "what `remove_bn` says to a network without batch norm, made without memory; None for others"
    try:
        with torch.device('meta'): net = build(name)
    except NotImplementedError: return None # RegNet computes its first weights
    if any(isinstance(m, nn.BatchNorm2d) for m in net.modules()): return None
    try: remove_bn(net)
    except ValueError as e: return str(e)

def span(values): return [round(values.min(), 4), round(values.max(), 4)]

def size_of(net): return sum(p.numel() for p in net.parameters())

def finite_step(net, x):
    "are the outputs of a training pass finite, and (but for the largest networks) all gradients?"
    backward = size_of(net) < LARGE
    with torch.set_grad_enabled(backward): out = net.train()(x)
    outputs = [o for o in (out if isinstance(out, tuple) else [out]) if o is not None]
    if backward: sum(o.square().mean() for o in outputs).backward()
    found = outputs + [p.grad for p in net.parameters() if p.grad is not None]
    return all(t.isfinite().all().item() for t in found)

def measure_variant(name, net, noise, images):
    "one way to take the norm out: a row, and the names of the network's blocks"
    start = time.time()
    new = remove_bn(net, example=tuple(noise.shape), **VARIANTS[name])
    seconds = round(time.time() - start, 1)
    assert_bn_free(new)
    stats = signal_stats(new, noise)
    row = dict(blocks=len(stats) - 1, noise=span(stats['var']),
               expected=span(stats.expected.dropna()), seconds=seconds,
               finite=finite_step(new, noise[:2]))
    if name == 'real': row['images'] = span(signal_stats(new, images)['var'])
    return row, [n for n, m in new.named_modules() if hasattr(m, 'expected_var')]

def measure_plain_removal(net, blocks, noise):
    "the negative control, at the same places"
    naive = drop_bn(net)
    for n in blocks: naive.get_submodule(n).expected_var = 1.
    var = signal_stats(naive, noise)['var']
    return dict(noise=[float(f'{q:.3g}') for q in (var.min(), var.max())])

def measure(net, noise, images):
    "a row of the file; of the images the first 48 are for the calibration"
    seen, others = images[:48], images[48:]
    out = {}
    for name in VARIANTS: out[name], blocks = measure_variant(name, net, noise, others)
    on_images = remove_bn(net, example=seen)
    out['on images'] = dict(images=span(signal_stats(on_images, others)['var']))
    del on_images # the largest has 2.6 GB
    return out | dict(naive=measure_plain_removal(net, blocks, noise))

def measure_network(name, side, pictures):
    "a network's row, or why it was refused"
    if reason := refusal(name): return dict(batch_norm=False, refused=reason)
    net = build(name)
    side = max(side, 320 if name == 'inception_v3' else 0) # its auxiliary classifier needs that
    row = dict(batch_norm=True, parameters=size_of(net), side=side)
    shape = 4 if side > 96 else 8, 3, side, side
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    images = F.interpolate(pictures, size=(side, side), mode='bilinear')
    images = images.repeat(1, 3, 1, 1)
    try: return row | measure(net, noise, images)
    except ValueError as e: return row | dict(refused=str(e))

def write(path, networks):
    "the file as a whole, one network a line"
    head = dict(command='python bench/convert.py', torch=torch.__version__,
                torchvision=torchvision.__version__, threads=torch.get_num_threads())
    rows = ',\n'.join(f'  {json.dumps(n)}: {json.dumps(r)}' for n, r in sorted(networks.items()))
    path.with_suffix('.tmp').write_text(f'{json.dumps(head)[:-1]}, "networks": {{\n{rows}\n}}}}\n')
    os.replace(path.with_suffix('.tmp'), path)

def main():
    formatter = argparse.RawDescriptionHelpFormatter
    p = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    p.add_argument('--out', type=Path, default=Path('results/convert.json'))
    p.add_argument('--only', nargs='+')
    p.add_argument('--side', type=int, default=96, help='pixels; each row of the file says its own')
    a = p.parse_args()
    networks = json.loads(a.out.read_text())['networks'] if a.out.exists() else {}
    pictures = fashion_mini(bs=64, device='cpu', augment=None).valid.one_batch()[0]
    for name in a.only or tv.list_models(module=tv):
        if name in networks: continue
        print(name, flush=True)
        networks[name] = measure_network(name, a.side, pictures)
        write(a.out, networks)

if __name__ == '__main__': main()
