"""How long adaptive gradient clipping takes: two loops over tensors against `adaptive_clip_grad`.

    python bench/agc.py [--rounds 30] [--threads 1]

ReActNet-18 BN-free (106 tensors, 11.2 million parameters), in turns in one run, medians; prints the
ratios.
"""
import argparse, statistics, time
import torch
from bnn_bn.agc import adaptive_clip_grad, clipped_parameters, unitwise_norm
from bnn_bn.models import reactnet_nobn

def limit_and_norm(p, clip_factor):
    return clip_factor*unitwise_norm(p).clamp(min=1e-3), unitwise_norm(p.grad)

@torch.no_grad()
def loop(parameters, clip_factor):
    "tensor by tensor, with a clipped copy, a choice and a copy back, as it is usually written"
    for p in parameters:
        limit, norm = limit_and_norm(p, clip_factor)
        clipped = p.grad*(limit/norm.clamp(min=1e-6))
        p.grad.copy_(torch.where(norm < limit, p.grad, clipped))

@torch.no_grad()
def lean_loop(parameters, clip_factor):
    "tensor by tensor, multiplying in place"
    for p in parameters:
        limit, norm = limit_and_norm(p, clip_factor)
        p.grad.mul_(torch.where(norm < limit, 1., limit/norm.clamp(min=1e-6)))

def seconds(clip, parameters, gradients):
    for p, g in zip(parameters, gradients): p.grad = g.clone()
    start = time.perf_counter()
    clip(parameters, .02)
    return time.perf_counter() - start

def main():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--rounds', type=int, default=30)
    p.add_argument('--threads', type=int, default=1)
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    torch.manual_seed(0)
    parameters = clipped_parameters(reactnet_nobn('18', n_out=10, stem='cifar'))
    gradients = [torch.randn_like(p) for p in parameters]
    times = {f: [] for f in (loop, lean_loop, adaptive_clip_grad)}
    for _ in range(a.rounds + 3): # the first three warm up
        for clip, ts in times.items(): ts.append(seconds(clip, parameters, gradients))
    usual, lean, ours = (statistics.median(ts[3:]) for ts in times.values())
    print(f'usual loop / adaptive_clip_grad = {usual/ours:.2f}, '
          f'lean loop / adaptive_clip_grad = {lean/ours:.2f} '
          f'(medians of {a.rounds}, {a.threads} thread(s))')

if __name__ == '__main__': main()
