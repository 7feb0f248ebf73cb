"""Everything that wants a GPU, in pieces of a few minutes each.

    python bench/gpu.py --out results/gpu --path DATA [--seconds 540] [--only cells equal ...]

Call it again and again: it goes on where it stopped, and says when nothing is left. A piece writes
OUT/PIECE.json after each part of it; delete that file to run the piece anew.
**Of its pieces only `equal` has run to its end on a GPU** (an H100). `--device cpu --quick` runs all
small, in about a minute of one thread, and its figures mean nothing.

| piece | question |
|---|---|
| cells | do the notebook cells tagged `cuda` pass? |
| equal | is a float32 step the same on the GPU as on the CPU, and how far are both from float64? |
| speed | images/s of our loop beside the authors' (goal: 8 times); share of the card's peak |
| published | the published recipe for CIFAR-10 at full length (goal: 92.08 %) |
| ours | `cifar10-plus` at full length (goal: 93.75 %) |

Both trainings run in bf16 and compiled, stop by themselves when the time is up, and are resumed.
The float32 rows of `speed` are torch's default, which lets cuDNN use TF32; `equal` forbids that.

Neither nbdev nor an installed package is needed: cells are read from the notebooks' JSON and run in
order, and this folder's parent is put on the path. Where fastai is missing and there is no network,
fetch the wheels elsewhere, carry them along, and install them without what they require:

    pip download --no-deps -d wheels fastai==2.8.7 fastcore==1.14.5 fastprogress==1.0.5 \\
        fasttransform==0.0.2 fastdownload==0.0.8 plum-dispatch==2.9.0 beartype==0.23.1
    pip install --no-deps --no-index --find-links wheels fastai fastcore fastprogress \\
        fasttransform fastdownload plum-dispatch beartype

Beside them fastai imports pandas, scipy, scikit-learn, matplotlib, requests, pyyaml, rich and
cloudpickle (rich and cloudpickle are pure Python too, if they are missing).
"""
import argparse, json, linecache, math, os, signal, statistics, subprocess, sys, time, types
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT/'tests')]

import torch, torch.nn.functional as F
from fastai.basics import set_seed
import fastai.callback.progress # noqa: F401, Learner.no_bar
from bnn_bn.layers.activations import RPReLU, RSign
from bnn_bn.agc import adaptive_clip_grad, clipped_parameters, unitwise_norm
from bnn_bn.images.augment import flip_and_crop
from bnn_bn.layers.blocks import BiRealBlock
from bnn_bn.layers.conv import ScaledStdConv2d
from bnn_bn.data import tensor_dls
from bnn_bn.core.files import write_file
from bnn_bn.models import decay_groups, reactnet_nobn
from bnn_bn.train.recipes import make_learner, make_recipe
from bnn_bn.train.run import versions
from bnn_bn.train.speed import Compile

# dense bf16 operations a second, from the maker's data sheets
PEAK = {'H100': 989e12, 'H200': 989e12, 'A100': 312e12}


# ---- the authors' forms, written from a description of them; equal to ours in value

def authors_sign(x):
    "The sign with the piecewise quadratic's derivative, its parts chosen by float masks."
    below, negative, inside = (x < -1).float(), (x < 0).float(), (x < 1).float()
    soft = -below + (x*x + 2*x)*(1 - below)
    soft = soft*negative + (2*x - x*x)*(1 - negative)
    soft = soft*inside + (1 - inside)
    return x.sign().detach() - soft.detach() + soft

class AuthorsSign(RSign):
    def forward(self, x): return authors_sign(x + self.shift)

class AuthorsRPReLU(RPReLU):
    def forward(self, x): return F.prelu(x + self.shift_in, self.slope) + self.shift_out

class AuthorsConv(ScaledStdConv2d):
    def authors_kernel(self):
        w, dims = self.weight, (1, 2, 3)
        std, mean = torch.std_mean(w, dims, correction=0, keepdim=True)
        w = self.gamma/math.sqrt(w[0].numel())*(w - mean)/(std + self.eps)
        if not self.binary: return w
        scale, soft = w.abs().mean(dims, keepdim=True).detach(), w.clamp(-1, 1)
        return (scale*w.sign()).detach() - soft.detach() + soft

    def forward(self, x):
        return F.conv2d(x, self.gain*self.authors_kernel(), None, self.stride, self.padding)

class AuthorsBlock(BiRealBlock):
    def forward(self, x):
        scaled = x*self.beta
        shortcut = x if self.shortcut is None else self.shortcut(scaled)
        return self.act(self.alpha*self.conv(self.sign(scaled)) + shortcut)

FORMS = {RSign: AuthorsSign, RPReLU: AuthorsRPReLU,
         ScaledStdConv2d: AuthorsConv, BiRealBlock: AuthorsBlock}

def authors_form(model):
    "The same network with the same parameters, computed as the authors compute it."
    for m in model.modules():
        if type(m) in FORMS: m.__class__ = FORMS[type(m)]
    return model

@torch.no_grad()
def authors_clip(params, clip_factor=.02, eps=1e-3):
    "AGC as a loop over the tensors."
    for p in params:
        norm = unitwise_norm(p.grad)
        limit = clip_factor*unitwise_norm(p).clamp(min=eps)
        p.grad.copy_(torch.where(norm < limit, p.grad, p.grad*(limit/norm.clamp(min=1e-6))))


# ---- pieces: each takes the options, its record so far and the time to stop; it gives the record

def cells(a, record, until):
    "Run each notebook that has `cuda` cells in a process of its own, up to the last of them."
    files = [f for f in sorted((ROOT/'nbs').rglob('[0-9]*.ipynb')) if cuda_cells(f)]
    names = ['02b_augment'] if a.quick else [f.stem for f in files]
    for name in names:
        if name in record or time.monotonic() > until: continue
        command = [sys.executable, __file__, '--notebook', name]
        start = time.monotonic()
        done = subprocess.run(command, env=environment(), capture_output=True, text=True)
        record[name] = dict(passed=not done.returncode,
                            cuda_cells=len(cuda_cells(notebook(name))),
                            error=done.stderr.strip()[-300:] if done.returncode else '',
                            seconds=round(time.monotonic() - start, 1))
        keep(a, 'cells', record)
    return dict(record, done=all(n in record for n in names))

def notebook(name):
    "the file of a chapter, in whatever part it stands"
    return next((ROOT/'nbs').rglob(f'{name}.ipynb'))

def sources(file):
    "the code cells of a notebook"
    found = json.loads(file.read_text())['cells']
    return [''.join(c['source']) for c in found if c['cell_type'] == 'code']

def cuda_cells(file):
    "the places of the code cells that are tagged cuda"
    return [i for i, s in enumerate(sources(file)) if s.startswith('#| cuda')]

def run_notebook(name):
    "Run the code cells of a notebook up to the last that is tagged cuda."
    file = notebook(name)
    os.chdir(file.parent)
    os.environ.update(MPLBACKEND='Agg', IN_TEST='1')
    module = sys.modules['__main__'] = types.ModuleType('__main__') # where pickle looks for classes
    module.display = print
    for i, source in enumerate(sources(file)[:cuda_cells(file)[-1] + 1]):
        if source.startswith(('#| slow', '#| eval: false')): continue
        place = f'{name}, code cell {i}'
        linecache.cache[place] = len(source), None, source.splitlines(True), place
        exec(compile(source, place, 'exec'), vars(module))

def equal(a, record, until):
    "A step of the authors' recorded case: device and CPU in float32, and float64 beside them."
    from oracle import Case
    case = Case('Qaw_reactnet_18_bf__cifar32')
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    steps = dict(device=one_step(case, a.device, torch.float32),
                 cpu=one_step(case, 'cpu', torch.float32),
                 float64=one_step(case, 'cpu', torch.float64))
    torch.backends.cudnn.allow_tf32 = True
    pairs = (('device', 'cpu'), ('device', 'float64'), ('cpu', 'float64'))
    gaps = {f'{x} to {y}': distances(steps[x], steps[y]) for x, y in pairs}
    passed = all(gaps['device to cpu'][k] <= limit for k, limit in LIMITS.items())
    return dict(gaps=gaps, limits=LIMITS, passed=passed, done=True)

# of a logit, as the recordings allow; of the norm of a gradient, where a CPU is 1.4e-6 off
LIMITS = dict(logits=1e-4, gradients=1e-4)

def one_step(case, device, dtype):
    "logits, gradients and changes of the weights in a step with AGC and Adam, as float64 tensors"
    model, params = case.build(dtype)
    model.to(device).train()
    before = [p.detach().clone() for p in params.values()]
    logits = model(case.x.to(device, dtype))
    F.cross_entropy(logits, case.y.to(device)).backward()
    gradients = [p.grad.clone() for p in params.values()]
    adaptive_clip_grad(clipped_parameters(model), .02)
    torch.optim.Adam(decay_groups(model, 1e-5), lr=5e-4).step()
    changes = [p.detach() - b for p, b in zip(params.values(), before)]
    home = lambda tensors: [t.detach().double().cpu() for t in tensors]
    return dict(logits=home([logits])[0], gradients=home(gradients), changes=home(changes))

def distances(a, b):
    "largest difference of a logit; largest relative distance of a gradient, and of a change"
    distance = lambda x, y: ((x - y).norm()/y.norm().clamp(min=1e-30)).item()
    relative = lambda xs, ys: max(distance(x, y) for x, y in zip(xs, ys))
    logits = (a['logits'] - b['logits']).abs().max().item()
    return dict(logits=logits, gradients=relative(a['gradients'], b['gradients']),
                changes=relative(a['changes'], b['changes']))

def speed(a, record, until):
    "Images a second: the authors' form and loop, then ours with one technique more in each row."
    rows = dict(authors=None, float32={}, bf16=dict(amp='bf16'))
    if not a.quick: rows['compiled'] = dict(amp='bf16', compiled=True)
    if a.device == 'cuda': rows['CUDA graphs'] = dict(amp='bf16', cbs=[Compile('reduce-overhead')])
    for name, options in rows.items():
        if name in record or time.monotonic() > until: continue
        row = images_per_second(a, options)
        first = record.get('authors', row)['images_per_s']
        record[name] = dict(row, times_the_authors=round(row['images_per_s']/first, 2))
        keep(a, 'speed', record)
    return dict(record, done=all(n in record for n in rows))

def images_per_second(a, options):
    "median over the steps of one epoch; share of the card's bf16 peak and GiB at most, on a GPU"
    width, batch, batches = (.125, 16, 8) if a.quick else (1., 256, 60)
    set_seed(0)
    dls = noise_dls(batch, batches, a.device)
    if a.device == 'cuda': torch.cuda.reset_peak_memory_stats()
    rate = authors_rate(dls, width) if options is None else our_rate(dls, width, batch, options)
    row = dict(images_per_s=round(rate, 1), batch=batch)
    if a.device != 'cuda': return row
    name = torch.cuda.get_device_name()
    peak = next((v for k, v in PEAK.items() if k in name), None)
    operations = 2*3*multiply_adds(width)*rate
    return dict(row, share_of_peak=peak and round(operations/peak, 4), device=name,
                peak_gib=round(torch.cuda.max_memory_allocated()/2**30, 2))

def noise_dls(batch, batches, device):
    "pictures of noise in CIFAR's shape, as our loader serves them"
    x = torch.randint(0, 256, (batch*batches, 3, 32, 32), dtype=torch.uint8)
    y = torch.arange(len(x)) % 10
    return tensor_dls(x, y, x[:batch], y[:batch], batch, device, flip_and_crop, list(range(10)))

def multiply_adds(width):
    "of one image through ReActNet-18"
    from torch.utils.flop_counter import FlopCounterMode
    net = reactnet_nobn('18', n_out=10, stem='cifar', width=width)
    with FlopCounterMode(display=False) as count, torch.no_grad(): net(torch.zeros(1, 3, 32, 32))
    return count.get_total_flops()/2

def authors_rate(dls, width):
    "Their module and loop; the images come from our loader, which favours them."
    net = authors_form(reactnet_nobn('18', n_out=10, stem='cifar', width=width, rules='reference'))
    net.to(dls.device).train()
    opt = torch.optim.Adam(decay_groups(net, 1e-5), lr=5e-4)
    clipped, times, start = clipped_parameters(net), [], time.perf_counter()
    for x, y in dls.train:
        loss = F.cross_entropy(net(x), y)
        opt.zero_grad()
        loss.backward()
        authors_clip(clipped)
        opt.step()
        loss.item()
        if dls.device.type == 'cuda': torch.cuda.synchronize(dls.device)
        now = time.perf_counter()
        times.append(now - start)
        start = now
    return dls.train.bs/statistics.median(times[5:])

def our_rate(dls, width, batch, options):
    "our Learner's, as `Throughput` measures it"
    r = make_recipe('cifar10', rules='default', steps=1, epochs=1, width=width, bs=batch)
    learn = make_learner(r, dls, **options)
    with learn.no_bar(), learn.no_logging(): learn.fit_step(1, r.lr)
    return learn.throughput.rows[-1]['images_per_s']

def published(a, record, until): return training(a, 'published', 'cifar10', .9208, until)
def ours(a, record, until): return training(a, 'ours', 'cifar10-plus', .9375, until)

def training(a, name, recipe, goal, until):
    "Begin or resume a training, and stop it when the time is up; it saves its state then."
    run = a.out/name
    full = [recipe, '--path', a.path, '--amp', 'bf16', '--compile']
    words = ['fashion', *QUICK_RUN] if a.quick else full
    words += ['--out', run, '--device', a.device, '--resume', '--no-download']
    program = 'from bnn_bn.train.run import bnn_train; bnn_train()'
    command = [sys.executable, '-c', program, *map(str, words)]
    process = subprocess.Popen(command, env=environment())
    try: process.wait(max(1., until - time.monotonic()))
    except subprocess.TimeoutExpired: process.terminate()
    stopped = 130, -signal.SIGTERM # after a save, or before the first step
    if process.wait() not in (0, *stopped):
        raise SystemExit(f'{name}: the training failed, see above')
    result = run/'result.json'
    if not result.exists(): return dict(goal=goal, done=False)
    return dict(json.loads(result.read_text()), goal=goal, done=True)

QUICK_RUN = '--width .125 --images 256 --bs 64 --epochs 1 --threads 1'.split()

PIECES = dict(cells=cells, equal=equal, speed=speed, published=published, ours=ours)


# ---- records

def environment():
    "that of a process beside this one, which finds the package"
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))
    return dict(os.environ, PYTHONPATH=path, PYTHONWARNINGS='ignore')

def keep(a, name, record):
    head = dict(settings=dict(device=a.device, quick=a.quick), versions=versions(a.device))
    write_file(a.out/f'{name}.json', json.dumps(head | record, indent=1).encode())

def kept(a, name):
    "what a piece has written so far"
    file = a.out/f'{name}.json'
    if not file.exists(): return {}
    record, now = json.loads(file.read_text()), dict(device=a.device, quick=a.quick)
    if record['settings'] != now:
        made = record['settings']
        raise SystemExit(f'{file} was made with {made}, not {now}: choose another --out')
    return record

def options():
    p = argparse.ArgumentParser(description=__doc__)
    p.formatter_class = argparse.RawDescriptionHelpFormatter
    p.add_argument('--out', type=Path, default=Path('runs/gpu'), help='of records and runs')
    p.add_argument('--path', help='directory of CIFAR-10, for the two trainings')
    p.add_argument('--seconds', type=float, default=540, help='stop then; the next call goes on')
    p.add_argument('--only', nargs='+', choices=PIECES, default=list(PIECES), help='these pieces')
    p.add_argument('--device', choices=('cuda', 'cpu'), default='cuda')
    p.add_argument('--quick', action='store_true', help='small, to try the script itself')
    p.add_argument('--notebook', help=argparse.SUPPRESS) # run the cells of one notebook here
    return p.parse_args()

def check(a):
    "the options fit, before anything is run"
    if a.device == 'cuda' and not torch.cuda.is_available():
        raise SystemExit('--device cuda: torch sees no GPU; to try this give --device cpu --quick')
    if not a.path and not a.quick and {'published', 'ours'} & set(a.only):
        raise SystemExit('--path: the pieces published and ours need the directory of CIFAR-10')
    if not a.seconds > 0: raise SystemExit(f'--seconds {a.seconds:g}: must be > 0')

def main():
    a = options()
    if a.notebook: return run_notebook(a.notebook)
    check(a)
    until = time.monotonic() + a.seconds
    for name in a.only:
        record = kept(a, name)
        if not record.get('done') and time.monotonic() < until:
            record = PIECES[name](a, record, until)
            keep(a, name, record)
        print(f"{name}: {'done' if record.get('done') else 'not done yet'}", flush=True)
    left = [n for n in a.only if not kept(a, n).get('done')]
    if left: print(f"left: {', '.join(left)}; the same command goes on")
    else: print(f'nothing left; see {a.out}')

if __name__ == '__main__': main()
