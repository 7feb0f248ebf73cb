"""What each chapter adds: one small network on the embedded pictures, a technique more in each row.

    python bench/thread.py [--out results/thread.json] [--epochs 4] [--seeds 0 1 2]
                           [--images 2500]

`reactnet_mini` with 1-bit weights and activations sees 2,500 of the embedded pictures in batches
of 64: Adam, one cycle with a peak of .02. Accuracy is that on the 2,000 test pictures after the
last epoch. Each row keeps what the rows above it have. The last one packs the network of the row
before it and measures the file; batch norm stands beside them. The JSON is written after each
run, and the same command goes on. The book draws it with `plots.plot_thread`.
"""
import argparse, json, random, shlex, sys, time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
import torch
from fastai.basics import Callback, CancelValidException, set_seed
import fastai.callback.schedule # noqa: F401, Learner.fit_one_cycle
import fastai.callback.progress # noqa: F401, Learner.no_bar
from fastprogress import progress_bar
from bnn_bn.data import fashion_mini
from bnn_bn.deploy import pack
from bnn_bn.files import write_file
from bnn_bn.layers.blocks import BiRealBlock
from bnn_bn.learner import DivergenceError, bnn_learner
from bnn_bn.models import backbones, binary_net
from bnn_bn.signal.ledger import gamma_of
from bnn_bn.train.run import versions
from bnn_bn.train.steps import with_binary

GAMMA = gamma_of(torch.sign, 'uniform') # keeps the variance of a binary kernel
backbones['mini_of_signs'] = replace(backbones['reactnet_mini'], parts=(('rprelu', False),))

@dataclass
class Row:
    "A training: what the network and its Learner have."
    name:str
    chapter:str
    backbone:str = 'reactnet_mini'
    norm:str = 'nobn'
    gamma:float = GAMMA
    rescaled:bool = True    # alpha of .5 and its betas? else both are 1
    calibrated:bool = False
    clip_factor:float = None
    steps:int = 1           # two steps of half the epochs each

ROWS = [
    Row('signs alone', '00_binarize', backbone='mini_of_signs', norm='naive'),
    Row('+ RSign and RPReLU', '01_activations', norm='naive'),
    Row('+ standardised convolution', '02_conv', gamma=1., rescaled=False),
    Row('+ gamma', '10_ledger', rescaled=False),
    Row('+ alpha and beta', '11_blocks'),
    Row('+ calibrated start', '12c_start', calibrated=True),
    Row('+ AGC', '20_agc', calibrated=True, clip_factor=.02),
    Row('+ two steps', '25_steps', calibrated=True, clip_factor=.02, steps=2),
    Row('batch norm', '12_models', norm='bn', clip_factor=.02),
]
PACKED = Row('packed file', '32_deploy')


def make_network(row):
    "the row's network, with 1-bit activations only where two steps begin with it"
    net = binary_net(row.backbone, row.norm, 'both' if row.steps == 1 else 'act',
                     n_out=10, in_chans=1, alpha=.5, gamma=row.gamma)
    if not row.rescaled: net.apply(set_alpha_and_beta_to_one)
    return net

def set_alpha_and_beta_to_one(module):
    if isinstance(module, BiRealBlock): module.alpha, module.beta = 1., 1.

class OnlyAtTheEnd(Callback):
    "Leave out every validation but the last one."
    def before_validate(self):
        if self.epoch < self.n_epoch - 1: raise CancelValidException

def fit(learn, row, epochs):
    "one cycle, or two of half the length: in the second one the weights have 1 bit too"
    learn.fit_one_cycle(epochs//row.steps, .02)
    if row.steps == 1: return
    learn.model = with_binary(learn.model, 'both')
    learn.opt = None
    learn.fit_one_cycle(epochs//2, .02)

def train(row, seed, options):
    "the Learner of a row after its training"
    set_seed(seed, reproducible=True)
    dls = fashion_mini(bs=64, n=options.images)
    dls.train.rng = random.Random(seed)
    learn = bnn_learner(dls, make_network(row), row.clip_factor, calibrated=row.calibrated,
                        cbs=OnlyAtTheEnd())
    with learn.no_bar(), learn.no_logging(): fit(learn, row, options.epochs)
    return learn

def packed_accuracy(learn):
    "share of right answers of the packed file, and its bytes"
    net, right, n = pack(learn), 0, 0
    for x, y in learn.dls.valid:
        answers = torch.as_tensor(net(x)).argmax(1)
        right, n = right + int((answers == y).sum()), n + len(y)
    with TemporaryDirectory() as folder:
        return dict(accuracy=right/n, bytes=net.save(Path(folder)/'net.bnn').stat().st_size)

def result(row, seed, begin, **figures):
    "what is written of a run"
    seconds = round(time.perf_counter() - begin, 1)
    return dict(asdict(row), seed=seed, **figures, seconds=seconds)

def run(row, seed, options):
    "the results of a training; where there are two steps, that of its packed file as well"
    begin = time.perf_counter()
    try: learn = train(row, seed, options)
    except DivergenceError as e: return [result(row, seed, begin, accuracy=None, diverged=str(e))]
    found = [result(row, seed, begin, accuracy=round(learn.recorder.values[-1][-1], 6))]
    if row.steps == 1: return found
    packed, begin = replace(row, name=PACKED.name, chapter=PACKED.chapter), time.perf_counter()
    return found + [result(packed, seed, begin, **packed_accuracy(learn))]


def parse_options():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--out', type=Path, default=Path('results/thread.json'))
    p.add_argument('--epochs', type=int, default=4, help='of each row in all')
    p.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    p.add_argument('--images', type=int, default=2500, help='training images')
    p.add_argument('--threads', type=int, default=1)
    return p.parse_args()

def read_result(options):
    "what an earlier call has written, or a new head; ValueError if it had other settings"
    settings = dict(epochs=options.epochs, images=options.images)
    if options.out.exists():
        old = json.loads(options.out.read_text())
        if old['settings'] == settings: return old
        raise SystemExit(f"{options.out} has {old['settings']}, not {settings}: give another --out")
    command = shlex.join(['python', 'bench/thread.py', *sys.argv[1:]])
    return dict(command=command, settings=settings, versions=versions(), runs=[])

def main():
    options = parse_options()
    torch.set_num_threads(options.threads)
    done = read_result(options)
    had = {(r['name'], r['seed']) for r in done['runs']}
    plan = [(seed, row) for seed in options.seeds for row in ROWS]
    for seed, row in progress_bar(plan):
        if (row.name, seed) in had: continue
        done['runs'] += run(row, seed, options)
        print(row.name, seed, done['runs'][-1]['accuracy'], flush=True)
        write_file(options.out, json.dumps(done, indent=1).encode())


if __name__ == '__main__': main()
