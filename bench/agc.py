"""How long adaptive gradient clipping takes: two loops over tensors against `adaptive_clip_grad`.

    python bench/agc.py [--rounds 30] [--threads 1]

ReActNet-18 BN-free (106 tensors, 11.2 million parameters), interleaved in one run, medians; prints the ratios.
"""
import argparse, statistics, time
import torch
from bnn_bn.agc import adaptive_clip_grad, clipped_parameters, unitwise_norm
from bnn_bn.models import reactnet_nobn

@torch.no_grad()
def loop(parameters, clip_factor):
    "tensor by tensor, with a clipped copy, a choice and a copy back, as it is usually written"
    for p in parameters:
        limit, norm = clip_factor*unitwise_norm(p).clamp(min=1e-3), unitwise_norm(p.grad)
        p.grad.copy_(torch.where(norm < limit, p.grad, p.grad*(limit/norm.clamp(min=1e-6))))

@torch.no_grad()
def lean_loop(parameters, clip_factor):
    "tensor by tensor, multiplying in place"
    for p in parameters:
        limit, norm = clip_factor*unitwise_norm(p).clamp(min=1e-3), unitwise_norm(p.grad)
        p.grad.mul_(torch.where(norm < limit, 1., limit/norm.clamp(min=1e-6)))

def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument('--rounds', type=int, default=30); a.add_argument('--threads', type=int, default=1); a = a.parse_args()
    torch.set_num_threads(a.threads); torch.manual_seed(0)
    ps = clipped_parameters(reactnet_nobn('18', n_out=10, stem='cifar'))
    raw, times = [torch.randn_like(p) for p in ps], {loop: [], lean_loop: [], adaptive_clip_grad: []}
    for _ in range(a.rounds + 3):
        for f, ts in times.items():
            for p, g in zip(ps, raw): p.grad = g.clone()
            t = time.perf_counter(); f(ps, .02); ts.append(time.perf_counter() - t)
    slow, lean, ours = (statistics.median(ts[3:]) for ts in times.values())
    print(f'usual loop / adaptive_clip_grad = {slow/ours:.2f}, lean loop / adaptive_clip_grad = {lean/ours:.2f} (medians of {a.rounds}, {a.threads} thread(s))')

if __name__ == '__main__': main()
