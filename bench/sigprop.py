"""What probing costs: training steps without and with `SigProp`, in turns.

    python bench/sigprop.py [--rounds 9] [--batch 64] [--every 50] [--arch mini] [--threads 1] [--device cpu]

A probed step and a plain step are timed in turns (medians); a probe every 50 steps then costs (probed - plain) / (50 * plain) of the time.
ReActNet BN-free, 1-bit weights and activations, 32x32, with the cifar stem. The events of the callback are called as fastai calls them.
"""
import argparse, statistics, time
from types import SimpleNamespace
import torch, torch.nn.functional as F
from bnn_bn.agc import adaptive_clip_grad, clipped_parameters
from bnn_bn.models import reactnet_nobn
from bnn_bn.probe import SigProp

def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument('--rounds', type=int, default=9); a.add_argument('--batch', type=int, default=64); a.add_argument('--every', type=int, default=50)
    a.add_argument('--arch', default='mini'); a.add_argument('--threads', type=int, default=1); a.add_argument('--device', default='cpu'); a = a.parse_args()
    torch.set_num_threads(a.threads); torch.manual_seed(0)
    net = reactnet_nobn(a.arch, n_out=10, stem='cifar').to(a.device)
    opt, clipped = torch.optim.Adam(net.parameters(), 1e-3), clipped_parameters(net)
    x, y = torch.randn(a.batch, 3, 32, 32, device=a.device), torch.randint(10, (a.batch,), device=a.device)
    cb, times = SigProp(every=1, draw=False), {False: [], True: []}
    cb.learn = SimpleNamespace(model=net, xb=(x,), yb=(y,), loss_func=F.cross_entropy, training=True)
    wait = torch.cuda.synchronize if a.device.startswith('cuda') else lambda: None
    for i in range(2*(a.rounds + 2)):
        probed = i % 2 == 1
        wait(); t = time.perf_counter()
        if probed: cb.before_batch()
        loss = F.cross_entropy(net(x), y); loss.backward()
        adaptive_clip_grad(clipped, .02); opt.step(); opt.zero_grad(); loss.item()
        if probed: cb.after_batch()
        wait(); times[probed].append(time.perf_counter() - t)
    plain, probed = (statistics.median(times[k][2:]) for k in (False, True))
    print(f'{a.arch}, batch {a.batch}, {a.threads} thread(s), {a.device}: a step {1000*plain:.0f} ms, a probed step {1000*probed:.0f} ms; '
          f'a probe every {a.every} steps costs {100*(probed - plain)/plain/a.every:.2f} % of the time (medians of {a.rounds})')

if __name__ == '__main__': main()
