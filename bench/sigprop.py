"""What probing costs: training steps without and with `SigProp`, in turns.

    python bench/sigprop.py [--rounds 9] [--batch 64] [--every 50] [--arch mini] [--threads 1]
                            [--device cpu]

A probed step and a plain step are timed in turns (medians). A probe every 50 steps then costs
(probed - plain) / (50 * plain) of the time. ReActNet BN-free, 1-bit weights and activations, 32x32,
with the cifar stem. The events of the callback are called as fastai calls them.
"""
import argparse, statistics, time
from types import SimpleNamespace
import torch, torch.nn.functional as F
from bnn_bn.agc import adaptive_clip_grad, clipped_parameters
from bnn_bn.models import reactnet_nobn
from bnn_bn.signal.probe import SigProp

class Training:
    "A network, a batch and an optimizer, with the callback beside."
    def __init__(self, arch, batch, device):
        self.net = reactnet_nobn(arch, n_out=10, stem='cifar').to(device)
        self.opt = torch.optim.Adam(self.net.parameters(), 1e-3)
        self.clipped = clipped_parameters(self.net)
        self.x = torch.randn(batch, 3, 32, 32, device=device)
        self.y = torch.randint(10, (batch,), device=device)
        self.callback = SigProp(every=1, draw=False)
        self.callback.learn = SimpleNamespace(model=self.net, xb=(self.x,), yb=(self.y,),
                                              loss_func=F.cross_entropy, training=True)

    def step(self):
        loss = F.cross_entropy(self.net(self.x), self.y)
        loss.backward()
        adaptive_clip_grad(self.clipped, .02)
        self.opt.step()
        self.opt.zero_grad()
        loss.item()

    def probed_step(self):
        self.callback.before_batch()
        self.step()
        self.callback.after_batch()

def seconds(step, device):
    "of one step, once the device has nothing else to do"
    def wait():
        if device.startswith('cuda'): torch.cuda.synchronize(device)
    wait()
    start = time.perf_counter()
    step()
    wait()
    return time.perf_counter() - start

def arguments():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in dict(rounds=9, batch=64, every=50, threads=1).items():
        p.add_argument(f'--{name}', type=int, default=default)
    p.add_argument('--arch', default='mini')
    p.add_argument('--device', default='cpu')
    return p.parse_args()

def main():
    a = arguments()
    torch.set_num_threads(a.threads)
    torch.manual_seed(0)
    training, plain, probed = Training(a.arch, a.batch, a.device), [], []
    for _ in range(a.rounds + 2): # the first two warm up
        plain.append(seconds(training.step, a.device))
        probed.append(seconds(training.probed_step, a.device))
    one, other = (1000*statistics.median(times[2:]) for times in (plain, probed))
    print(f'{a.arch}, batch {a.batch}, {a.threads} thread(s), {a.device}: a step {one:.0f} ms, '
          f'a probed step {other:.0f} ms; a probe every {a.every} steps costs '
          f'{100*(other - one)/one/a.every:.2f} % of the time (medians of {a.rounds})')

if __name__ == '__main__': main()
