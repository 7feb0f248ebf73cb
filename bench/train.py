"""How fast and how large a training step is, beside the authors' network and loop.

    python bench/train.py --peer DIRECTORY [--batch 64] [--threads 1] [--rounds 7] [--device cpu]
                          [--out runs/bench_train]
    python bench/train.py --quick --out /tmp/bench     # does it work? a minute, no figures

DIRECTORY is a checkout of VITA-Group/BNN_NoBN, of which nothing is part of this project; without
it, the rows of our own remain. ReActNet-18 BN-free, 1-bit weights and activations, 32x32, CIFAR
stem, the same images for all. Contenders take turns, a step each; medians and ratios are printed
and written as JSON, with a picture of what each technique adds.

The rows: the authors' module and loop; our network in it; then one technique more in each: grouped
AGC, fused Adam, channels_last (the float32 row), bf16, bf16 compiled. bf16 is left out where the
hardware has no instructions for it, compiling where there is no C++ compiler; --no_amp and
--no_compile leave them out too. Run it on a machine that does nothing else. The two compiled rows
(ours, and batch norm) take minutes at first, then come from the user's cache. `speed` is images
a second over those of the first row; `over_float32` the same over the float32 row.
"""
import argparse, importlib, json, math, platform, statistics, sys, time
from pathlib import Path
import torch, torch.nn.functional as F
from bnn_bn.agc import adaptive_clip_grad, clipped_parameters
from bnn_bn.models import decay_groups, reactnet_bn, reactnet_nobn
from bnn_bn.train.speed import bf16_is_fast, fused, has_compiler, keep_compiled

# dense bfloat16 operations a second, from the makers' data sheets
PEAK = {'H100': 989e12, 'H200': 989e12, 'A100': 312e12}

FLOAT32, BATCH_NORM = 'and channels_last', 'with batch norm' # names of rows

class Contender:
    "a network, an optimizer and a clipping function"
    def __init__(self, name, net, opt, clip, *, last=False, backend=None, amp=False):
        self.name, self.clip, self.amp = name, clip, amp
        self.net = net.to(memory_format=torch.channels_last if last else torch.contiguous_format)
        self.opt = opt(self.net)
        if backend: self.net.compile(backend=backend, dynamic=False)
        self.times, self.clips = [], []

    def forward(self, x, y):
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.amp): out = self.net(x)
        return F.cross_entropy(out.float(), y)

    def step(self, x, y, clock):
        start = clock()
        loss = self.forward(x, y)
        loss.item()
        self.opt.zero_grad()
        loss.backward()
        before = clock()
        self.clip(self.net)
        after = clock()
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
    loss.backward()
    contender.opt.zero_grad()
    return size

def macs(net, x):
    "multiply-adds of one image"
    from torch.utils.flop_counter import FlopCounterMode
    with FlopCounterMode(display=False) as count, torch.no_grad(): net(x[:1])
    return count.get_total_flops()/2

def ours(norm, device, width=1.):
    torch.manual_seed(0)
    make = dict(nobn=reactnet_nobn, bn=reactnet_bn)[norm]
    return make('18', n_out=10, stem='cifar', width=width).to(device)

def authors(peer, device):
    "their network, their groups and optimizer, their clipping"
    sys.path.insert(0, str(peer))
    module = importlib.import_module('models.Qaw_reactnet_18_bf')
    agc = importlib.import_module('agc')
    def opt(net):
        weights = [p for n, p in net.named_parameters() if p.dim() == 4 or 'conv' in n]
        ids = {id(p) for p in weights}
        others = [p for p in net.parameters() if id(p) not in ids]
        groups = [dict(params=others), dict(params=weights, weight_decay=1e-5)]
        return torch.optim.Adam(groups, lr=5e-4)
    def clip(net):
        params = [p for n, p in net.named_parameters() if 'fc' not in n]
        agc.adaptive_clip_grad(params, clip_factor=.02)
    torch.manual_seed(0)
    return module.birealnet18(num_classes=10, imagenet=False).to(device), opt, clip

def contenders(a):
    "the authors' step first, then one technique more in each row"
    plain = lambda net: torch.optim.Adam(decay_groups(net, 1e-5), lr=5e-4)
    fast = lambda net: fused(torch.optim.Adam, a.device)(decay_groups(net, 1e-5), lr=5e-4)
    clip = lambda net: adaptive_clip_grad(clipped_parameters(net), clip_factor=.02)
    net = lambda norm='nobn': ours(norm, a.device, a.width)
    rows = peer_rows(a, net, plain) if a.peer else []
    rows.append(Contender('and grouped AGC', net(), plain, clip))
    rows.append(Contender('and fused Adam', net(), fast, clip))
    rows.append(Contender(FLOAT32, net(), fast, clip, last=True))
    if a.amp: rows.append(Contender('and bf16', net(), fast, clip, last=True, amp=True))
    best = dict(last=True, amp=a.amp, backend=a.backend)
    if a.backend: rows.append(Contender('and compiled', net(), fast, clip, **best))
    rows.append(Contender(BATCH_NORM, net('bn'), fast, clip, **best))
    return rows

def peer_rows(a, net, plain):
    "the authors' network in their loop, and ours in it"
    theirs, opt, loop = authors(a.peer, a.device)
    def clip(net): sys.modules['agc'].adaptive_clip_grad(clipped_parameters(net), clip_factor=.02)
    return [Contender('authors', theirs, opt, loop), Contender('our network', net(), plain, clip)]

def draw(table, file):
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    rows = [r for r in table if r['name'] != BATCH_NORM]
    panels = (('speed', 'images/s, the first row = 1', '#0072B2', '.2f'),
              ('kept_mib', 'kept for the backward pass (MiB)', '#D55E00', '.0f'))
    fig, axs = plt.subplots(1, 2, figsize=(9, .45*len(rows) + 1.2), sharey=True)
    for ax, (key, label, colour, form) in zip(axs, panels):
        bars = ax.barh([r['name'] for r in rows], [r[key] for r in rows], color=colour)
        ax.bar_label(bars, [format(r[key], form) for r in rows], padding=3, fontsize=8)
        ax.set(xlabel=label)
        ax.spines[['top', 'right']].set_visible(False)
        ax.margins(x=.15)
    axs[0].invert_yaxis()
    fig.tight_layout()
    fig.savefig(file, dpi=110)

def arguments():
    form = argparse.RawDescriptionHelpFormatter
    p = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    p.add_argument('--peer', type=Path)
    p.add_argument('--batch', type=int, default=64)
    p.add_argument('--threads', type=int, default=1)
    p.add_argument('--rounds', type=int, default=7)
    p.add_argument('--device', default='cpu')
    p.add_argument('--out', type=Path, default=Path('runs/bench_train'))
    p.add_argument('--no_amp', action='store_true', help='no rows in bf16')
    p.add_argument('--no_compile', action='store_true', help='no compiled rows')
    p.add_argument('--quick', action='store_true', help='narrow, a small batch, no real compiler')
    a = p.parse_args()
    if a.peer and not (a.peer/'models/Qaw_reactnet_18_bf.py').is_file():
        raise SystemExit(f'{a.peer}: no checkout of VITA-Group/BNN_NoBN '
                         '(models/Qaw_reactnet_18_bf.py is missing)')
    a.amp = not a.no_amp and bf16_is_fast(a.device)
    a.backend = 'inductor' if has_compiler() and not a.no_compile else None
    a.width = 1.
    if a.quick: a.batch, a.rounds, a.width, a.backend = 4, 1, .125, a.backend and 'eager'
    return a

def clock_of(device):
    "seconds, after all that the device has to do"
    def clock():
        if device.startswith('cuda'): torch.cuda.synchronize(device)
        return time.perf_counter()
    return clock

def measure(rows, a, x, y):
    "steps in turn; the first two rounds are left out"
    clock = clock_of(a.device)
    for i in range(a.rounds + 2):
        for c in rows: c.step(x, y, clock)
        print(f'round {i + 1} of {a.rounds + 2}', end='\r', file=sys.stderr)

def median(times): return statistics.median(times[2:])

def make_table(rows, size):
    "a dict of ratios for each contender"
    first, bn = rows[0], rows[-1]
    float32 = next(c for c in rows if c.name == FLOAT32)
    return [dict(
        name=c.name, seconds=median(c.times), speed=median(first.times)/median(c.times),
        over_float32=median(float32.times)/median(c.times),
        kept_mib=round(size[c.name], 1), kept=size[c.name]/size[first.name],
        agc_share=median(c.clips)/median(c.times), agc_of_first=median(c.clips)/median(first.clips),
        bn_over_this=median(bn.times)/median(c.times)) for c in rows]

def add_rates(table, a, x, info):
    "images a second, on a device of our own"
    operations = 2*3*macs(ours('nobn', a.device, a.width), x)*a.batch
    peak = next((v for k, v in PEAK.items() if k in info['device']), math.nan)
    for r in table:
        share = operations/r['seconds']/peak
        r.update(images_per_s=a.batch/r['seconds'], epoch_seconds=50000/a.batch*r['seconds'],
                 share_of_peak=None if math.isnan(share) else share)

def facts(a):
    "what the figures were measured with"
    words = ['PEER' if w == str(a.peer) else w for w in sys.argv[1:]]
    device = torch.cuda.get_device_name(a.device) if a.device.startswith('cuda') else platform.machine()
    return dict(command=' '.join(['python bench/train.py', *words]), batch=a.batch,
                threads=a.threads, rounds=a.rounds, device=device, torch=torch.__version__)

def short(row):
    floats = {k: round(v, 4) for k, v in row.items() if isinstance(v, float)}
    return row | floats

COLUMNS = {
    'speed': ('speed', '.2f'), '/float32': ('over_float32', '.2f'), 'kept MiB': ('kept_mib', '.0f'),
    'kept': ('kept', '.1%'), 'AGC/step': ('agc_share', '.2%'), 'AGC/first': ('agc_of_first', '.2f'),
    'BN/this': ('bn_over_this', '.2f')}

def show(table):
    "print the ratios"
    print(' '*20 + ''.join(f'{title:>11}' for title in COLUMNS))
    for r in table:
        cells = [format(r[key], form) for key, form in COLUMNS.values()]
        print(f"{r['name']:20}" + ''.join(f'{c:>11}' for c in cells))

def main():
    a = arguments()
    torch.set_num_threads(a.threads)
    torch.manual_seed(0)
    keep_compiled()
    x = torch.randn(a.batch, 3, 32, 32, device=a.device)
    y = torch.randint(0, 10, (a.batch,), device=a.device)
    rows = contenders(a)
    size = {c.name: kept(c, x, y) for c in rows}
    measure(rows, a, x, y)
    table, info = make_table(rows, size), facts(a)
    if a.device.startswith('cuda'): add_rates(table, a, x, info)
    else:
        for r in table: del r['seconds'] # of one shared machine: ratios only
    a.out.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(dict(info, rows=[short(r) for r in table]), indent=1)
    a.out.with_suffix('.json').write_text(text + '\n')
    draw(table, a.out.with_suffix('.png'))
    show(table)

if __name__ == '__main__': main()
