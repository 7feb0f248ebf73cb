"""How fast and how large a training step is, beside the authors' network and loop.

    python bench/train.py --peer DIRECTORY [--batch 64] [--threads 1] [--rounds 7] [--device cpu] [--out results/bench_train]

DIRECTORY is a checkout of VITA-Group/BNN_NoBN, of which nothing is part of this project; without it, the rows of our own remain.
ReActNet-18 BN-free, 1-bit weights and activations, 32x32, CIFAR stem, the same images for all. Contenders take turns, a step each; medians
and ratios are printed and written as JSON, with a picture of what each technique adds.
"""
import argparse, importlib, json, platform, statistics, sys, time
from contextlib import nullcontext
from pathlib import Path
import torch, torch.nn.functional as F
from bnn_bn.agc import adaptive_clip_grad, clipped_parameters
from bnn_bn.models import decay_groups, reactnet_bn, reactnet_nobn
from bnn_bn.speed import fused

PEAK = {'H100': 989e12, 'H200': 989e12, 'A100': 312e12} # dense bfloat16 operations a second, from the makers' data sheets

class Contender:
    "a network, an optimizer and a clipping function"
    def __init__(self, name, net, opt, clip, memory_format=torch.contiguous_format, compiled=False, amp=False):
        self.name, self.net, self.clip, self.amp = name, net.to(memory_format=memory_format), clip, amp
        self.opt = opt(self.net)
        if compiled: self.net.compile()
        self.times, self.clips = [], []

    def forward(self, x, y):
        with torch.autocast(x.device.type, torch.bfloat16) if self.amp else nullcontext(): out = self.net(x)
        return F.cross_entropy(out.float(), y)

    def step(self, x, y, clock):
        start = clock()
        loss = self.forward(x, y)
        loss.item()
        self.opt.zero_grad(); loss.backward()
        before = clock(); self.clip(self.net); after = clock()
        self.opt.step()
        self.times.append(clock() - start); self.clips.append(after - before)

def kept(contender, x, y):
    "MiB that autograd keeps between forward and backward, parameters left out"
    own, seen = {p.untyped_storage().data_ptr() for p in contender.net.parameters()}, {}
    def note(t):
        s = t.untyped_storage()
        if s.data_ptr() not in own: seen[s.data_ptr()] = s.nbytes()
        return t
    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t): loss = contender.forward(x, y)
    size = sum(seen.values())/2**20
    loss.backward(); contender.opt.zero_grad()
    return size

def macs(net, x):
    "multiply-adds of one image"
    from torch.utils.flop_counter import FlopCounterMode
    with FlopCounterMode(display=False) as count, torch.no_grad(): net(x[:1])
    return count.get_total_flops()/2

def ours(norm, device):
    torch.manual_seed(0)
    return (reactnet_nobn if norm == 'nobn' else reactnet_bn)('18', n_out=10, stem='cifar').to(device)

def authors(peer, device):
    "their network, their groups and optimizer, their clipping"
    sys.path.insert(0, str(peer))
    module, agc = importlib.import_module('models.Qaw_reactnet_18_bf'), importlib.import_module('agc')
    def opt(net):
        weights = [p for n, p in net.named_parameters() if p.dim() == 4 or 'conv' in n]
        ids = {id(p) for p in weights}
        return torch.optim.Adam([dict(params=[p for p in net.parameters() if id(p) not in ids]), dict(params=weights, weight_decay=1e-5)], lr=5e-4)
    clip = lambda net: agc.adaptive_clip_grad([p for n, p in net.named_parameters() if 'fc' not in n], clip_factor=.02)
    torch.manual_seed(0)
    return module.birealnet18(num_classes=10, imagenet=False).to(device), opt, clip

def contenders(a):
    "the authors' step first, then one technique more in each row"
    plain = lambda net: torch.optim.Adam(decay_groups(net, 1e-5), lr=5e-4)
    fast = lambda net: fused(torch.optim.Adam, a.device)(decay_groups(net, 1e-5), lr=5e-4)
    clip = lambda net: adaptive_clip_grad(clipped_parameters(net), clip_factor=.02)
    rows, loop = [], clip
    if a.peer:
        net, opt, loop_ = authors(a.peer, a.device)
        rows.append(Contender('authors', net, opt, loop_))
        loop = lambda net: sys.modules['agc'].adaptive_clip_grad(clipped_parameters(net), clip_factor=.02)
        rows.append(Contender('our network', ours('nobn', a.device), plain, loop))
    last = dict(memory_format=torch.channels_last)
    rows += [Contender('and grouped AGC', ours('nobn', a.device), plain, clip), Contender('and fused Adam', ours('nobn', a.device), fast, clip),
             Contender('and channels_last', ours('nobn', a.device), fast, clip, **last)]
    if a.amp: rows.append(Contender('and bf16', ours('nobn', a.device), fast, clip, **last, amp=True))
    if a.compile: rows.append(Contender('and compiled', ours('nobn', a.device), fast, clip, **last, amp=a.amp, compiled=True))
    rows.append(Contender('with batch norm', ours('bn', a.device), fast, clip, **last, amp=a.amp, compiled=a.compile))
    return rows

def draw(table, file):
    import matplotlib; matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    rows = [r for r in table if r['name'] != 'with batch norm']
    fig, axs = plt.subplots(1, 2, figsize=(9, .45*len(rows) + 1.2), sharey=True)
    for ax, key, label, c in ((axs[0], 'speed', 'images/s, the first row = 1', '#0072B2'), (axs[1], 'kept_mib', 'kept for the backward pass (MiB)', '#D55E00')):
        bars = ax.barh([r['name'] for r in rows], [r[key] for r in rows], color=c)
        ax.bar_label(bars, [f'{r[key]:.2f}' if key == 'speed' else f'{r[key]:.0f}' for r in rows], padding=3, fontsize=8)
        ax.set(xlabel=label); ax.spines[['top', 'right']].set_visible(False); ax.margins(x=.15)
    axs[0].invert_yaxis(); fig.tight_layout(); fig.savefig(file, dpi=110)

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--peer', type=Path); p.add_argument('--batch', type=int, default=64); p.add_argument('--threads', type=int, default=1)
    p.add_argument('--rounds', type=int, default=7); p.add_argument('--device', default='cpu'); p.add_argument('--out', type=Path, default=Path('results/bench_train'))
    p.add_argument('--amp', action='store_true', help='bf16 from some row on'); p.add_argument('--compile', action='store_true')
    a = p.parse_args()
    if a.peer and not (a.peer/'models/Qaw_reactnet_18_bf.py').is_file(): raise SystemExit(f'{a.peer}: no checkout of VITA-Group/BNN_NoBN (models/Qaw_reactnet_18_bf.py is missing)')
    torch.set_num_threads(a.threads); torch.manual_seed(0)
    gpu = a.device.startswith('cuda')
    def clock():
        if gpu: torch.cuda.synchronize()
        return time.perf_counter()
    x, y = torch.randn(a.batch, 3, 32, 32, device=a.device), torch.randint(0, 10, (a.batch,), device=a.device)
    rows = contenders(a)
    size = {c.name: kept(c, x, y) for c in rows}
    for i in range(a.rounds + 2):
        for c in rows: c.step(x, y, clock)
        print(f'round {i + 1} of {a.rounds + 2}', end='\r', file=sys.stderr)
    median = lambda ts: statistics.median(ts[2:])
    first, bn = rows[0], rows[-1]
    table = [dict(name=c.name, seconds=median(c.times), speed=median(first.times)/median(c.times), kept_mib=round(size[c.name], 1), kept=size[c.name]/size[first.name],
                  agc_share=median(c.clips)/median(c.times), agc_of_first=median(c.clips)/median(first.clips), bn_over_this=median(bn.times)/median(c.times)) for c in rows]
    info = dict(command='python bench/train.py ' + ' '.join(w if w != str(a.peer) else 'PEER' for w in sys.argv[1:]), batch=a.batch, threads=a.threads, rounds=a.rounds,
                device=torch.cuda.get_device_name() if gpu else platform.machine(), torch=torch.__version__)
    if gpu:
        operations = 2*3*macs(ours('nobn', a.device), x)*a.batch
        peak = next((v for k, v in PEAK.items() if k in info['device']), None)
        for r in table: r.update(images_per_s=a.batch/r['seconds'], epoch_seconds=50000/a.batch*r['seconds'], share_of_peak=operations/r['seconds']/peak if peak else None)
    else:
        for r in table: del r['seconds'] # of one shared machine: ratios only
    a.out.parent.mkdir(parents=True, exist_ok=True)
    a.out.with_suffix('.json').write_text(json.dumps(dict(info, rows=[{k: round(v, 4) if isinstance(v, float) else v for k, v in r.items()} for r in table]), indent=1) + '\n')
    draw(table, a.out.with_suffix('.png'))
    print(f"{'':20}{'speed':>8}{'kept MiB':>10}{'kept':>8}{'AGC/step':>10}{'AGC/first':>11}{'BN/this':>9}")
    for r in table: print(f"{r['name']:20}{r['speed']:8.2f}{r['kept_mib']:10.0f}{r['kept']:8.1%}{r['agc_share']:10.2%}{r['agc_of_first']:11.2f}{r['bn_over_this']:9.2f}")

if __name__ == '__main__': main()
