"""Take the batch norm out of every classifier of torchvision and write what became of the signal to results/convert.json.

    OMP_NUM_THREADS=1 python bench/convert.py [--out results/convert.json] [--only resnet18 ...]

One network after the other, written as it goes; a second call goes on where the first was stopped. An hour on one thread, less with --side 64.
Random weights (seed 0). Variances are those at the inputs of the blocks and at the end of the last one, on white noise of another seed than the
calibration's and on Fashion-MNIST's test images, enlarged (for 'on images' the scales are calibrated on others of these).
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
from bnn_bn.sigprop import signal_stats

VARIANTS = {'ledger': dict(calibrate=False), 'real': {}, 'act': dict(binary='act'), 'both': dict(binary='both')}

def build(name):
    torch.manual_seed(0)
    return tv.get_model(name, weights=None, **({'init_weights': False} if name in ('googlenet', 'inception_v3') else {}))

def refusal(name):
    "what `remove_bn` says to a network without batch norm, made without memory; None for others"
    try:
        with torch.device('meta'): net = build(name)
    except NotImplementedError: return None # RegNet computes its first weights
    if any(isinstance(m, nn.BatchNorm2d) for m in net.modules()): return None
    try: remove_bn(net)
    except ValueError as e: return str(e)

def span(v): return [round(v.min(), 4), round(v.max(), 4)]

def finite_step(net, x):
    "are all outputs of a training pass and all gradients finite? Outputs alone above 4e8 parameters, whose backward pass needs more than 24 GB"
    step = sum(p.numel() for p in net.parameters()) < 4e8
    with torch.set_grad_enabled(step): out = net.train()(x)
    out = [o for o in (out if isinstance(out, tuple) else [out]) if o is not None]
    if step: sum(o.square().mean() for o in out).backward()
    return all(o.isfinite().all().item() for o in out) and all(p.grad is None or p.grad.isfinite().all().item() for p in net.parameters())

def measure(net, noise, images):
    out = {}
    for name, kw in VARIANTS.items():
        start = time.time()
        new = remove_bn(net, example=tuple(noise.shape), **kw)
        seconds = time.time() - start
        assert_bn_free(new)
        s = signal_stats(new, noise)
        out[name] = dict(blocks=len(s) - 1, noise=span(s['var']), expected=span(s.expected.dropna()), seconds=round(seconds, 1), finite=finite_step(new, noise[:2]))
        if name == 'real': out[name]['images'] = span(signal_stats(new, images[len(noise):])['var'])
        blocks = [n for n, m in new.named_modules() if hasattr(m, 'expected_var')]
        del new # the largest has 2.6 GB, and as much again of gradients
    seen = remove_bn(net, example=images[:len(noise)])
    out['on images'] = dict(images=span(signal_stats(seen, images[len(noise):])['var']))
    del seen
    naive = drop_bn(net)
    for n in blocks: naive.get_submodule(n).expected_var = 1. # measured at the same places
    v = signal_stats(naive, noise)['var']
    return out | dict(naive=dict(noise=[float(f'{q:.3g}') for q in (v.min(), v.max())]))

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--out', type=Path, default=Path('results/convert.json')); p.add_argument('--only', nargs='+')
    p.add_argument('--side', type=int, default=96, help='pixels; each row of the file says its own')
    a = p.parse_args()
    nets = json.loads(a.out.read_text())['networks'] if a.out.exists() else {}
    pictures = fashion_mini(bs=64, device='cpu', augment=None).valid.one_batch()[0]
    for name in a.only or tv.list_models(module=tv):
        if name in nets: continue
        print(name, flush=True)
        if reason := refusal(name): nets[name] = dict(batch_norm=False, refused=reason)
        else:
            net = build(name)
            size = sum(q.numel() for q in net.parameters())
            side = max(a.side, 320 if name == 'inception_v3' else 0) # its auxiliary classifier needs that
            row = nets[name] = dict(batch_norm=True, parameters=size, side=side)
            noise = torch.randn(4 if side > 96 else 8, 3, side, side, generator=torch.Generator().manual_seed(1))
            try: row.update(measure(net, noise, F.interpolate(pictures[:2*len(noise)], size=(side, side), mode='bilinear').repeat(1, 3, 1, 1)))
            except ValueError as e: row['refused'] = str(e)
        head = dict(command='python bench/convert.py', torch=torch.__version__, torchvision=torchvision.__version__, threads=torch.get_num_threads())
        rows = ',\n'.join(f'  {json.dumps(n)}: {json.dumps(r)}' for n, r in sorted(nets.items()))
        a.out.with_suffix('.tmp').write_text(f'{json.dumps(head)[:-1]}, "networks": {{\n{rows}\n}}}}\n'); os.replace(a.out.with_suffix('.tmp'), a.out)

if __name__ == '__main__': main()
