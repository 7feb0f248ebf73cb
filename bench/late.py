"""What batch norm still has in a longer training, and what was tried to make up for it.

    python bench/late.py --path DATA [--only 'batch norm'] [--seeds 2] [--out results/late.json]
                         [--runs runs/late]

ReActNet-18, a quarter of the channels, 1-bit weights and activations in one step, all of CIFAR-10
at 16 pixels in training and validation: 20 epochs take a quarter of an hour of one core. The
weights are not averaged, so that batch norm's statistics are those of the weights that are
validated. Each run is a process of `bnn_train`; after a stop the same command goes on.
"""
import argparse, json, os, sys
from itertools import product
from pathlib import Path
import torch
from torch import nn
import trainings
from bnn_bn import checkpoint
from bnn_bn.core.files import write_file
from bnn_bn.layers import binarize, blocks
from bnn_bn.signal import start
from bnn_bn.signal.ledger import find_blocks, keep_modes
from bnn_bn.train.run import bnn_train
from bnn_bn.train.sizes import SmallFirst

WORDS = ('cifar10-plus --width .25 --epochs 20 --bs 125 --sizes 16 --ema 0 --amp bf16 '
         '--compile yes --threads 1 --no_download --resume').split()

# Changes ------------------------------------------------------

def _across_scale(z, grad):
    "`grad` without its part along `z`, for each image: that part would only rescale the signal"
    z, grad = z.float(), grad.float()
    length = z.square().sum((1, 2, 3), keepdim=True).clamp_(min=1e-12)
    return grad - (grad*z).sum((1, 2, 3), keepdim=True)/length*z

def _backward(ctx, grad):
    "of the sign, with `_across_scale`"
    x, shift = ctx.saved_tensors
    z = binarize._affine(x, shift, ctx.factor)
    grad_x = _across_scale(z, ctx.slope_(z.clone())*grad).to(grad.dtype)
    grad_shift = grad_x.sum_to_size(shift.shape) if ctx.needs_input_grad[1] else None
    return grad_x*ctx.factor, grad_shift, None, None, None

def no_gradient_of_scale():
    "sign(k z) = sign(z) for k > 0, but the straight-through gradient has a part along z"
    binarize._Sign.backward = staticmethod(_backward)

def _deviation(z): return z.float().std((0, 2, 3)).square().mean().sqrt().item()

def _at_signs(blocks, model, x):
    "deviation of what each block's sign is taken of, in evaluation mode"
    found, hooks = {}, []
    for name, block in blocks.items():
        def note(sign, args, name=name):
            found[name] = _deviation(torch.add(sign.shift, args[0], alpha=args[1]))
        hooks.append(block.sign.register_forward_pre_hook(note))
    with keep_modes(model): model(x)
    for hook in hooks: hook.remove()
    return found

@torch.no_grad()
def _measure_betas(model, x):
    "each block's beta times its signal gets unit deviation; the network computes what it did"
    blocks = find_blocks(model)
    deviations = _at_signs(blocks, model, x)
    for name, block in blocks.items():
        factor = 1/deviations[name]
        block.beta *= factor
        block.sign.shift.mul_(factor)
        if block.shortcut is not None: block.shortcut.conv.gain.div_(factor)

def measured_betas():
    "the ledger does not count that RPReLU takes half of the stream's variance"
    calibrate = start.calibrate
    def calibrate_all(model, x, *args, **kwargs):
        table = calibrate(model, x, *args, **kwargs)
        _measure_betas(model, x)
        return table
    start.calibrate = calibrate_all
    checkpoint._parts = lambda model: {} # a file would not bring these betas back; none is read

class _Centred(torch.autograd.Function):
    "nothing on the way forward; on the way back a channel's gradient loses its mean"
    @staticmethod
    def forward(ctx, x): return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return grad - grad.mean((0, 2, 3), keepdim=True, dtype=torch.float32).to(grad.dtype)

class CentredGradient(nn.Module):
    "stands where batch norm would"
    def forward(self, x): return _Centred.apply(x)

def centred_gradient():
    "half of batch norm's backward pass, and nothing of its forward pass"
    blocks.Spec.bn = lambda spec, nf: CentredGradient()

def nothing(): pass

ROWS = {'BN-free': (nothing, ['--lr', '.004']),
        'batch norm': (nothing, ['--lr', '.008', '--norm', 'bn']),
        'BN-free, measured betas': (measured_betas, ['--lr', '.004']),
        'BN-free, no gradient of scale': (no_gradient_of_scale, ['--lr', '.004']),
        'BN-free, centred gradient': (centred_gradient, ['--lr', '.004']),
        'BN-free, rate .008': (nothing, ['--lr', '.008'])}

# Runs ---------------------------------------------------------

def train(name, words):
    "what the process of one run does"
    change, _ = ROWS[name]
    change()
    SmallFirst.run_valid = True # 16 pixels in validation too
    bnn_train(words)

def run_of(name, seed, options):
    "begin a run, or go on with it; what it came to"
    folder = options.runs/f'{name.replace(", ", "-").replace(" ", "_")}-{seed}'
    words = [*WORDS, *ROWS[name][1], '--seed', str(seed), '--path', options.path, '--out', folder]
    if not trainings.is_done(folder, words):
        command = [sys.executable, __file__, '--train', name, *words]
        path = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get('PYTHONPATH')]))
        trainings.run(command, env=dict(os.environ, PYTHONPATH=path))
    result = json.loads((folder/'result.json').read_text())
    history = (folder/'history.csv').read_text().splitlines()
    column = history[0].split(',').index('train_loss')
    losses = [float(line.split(',')[column]) for line in history[1:]]
    return dict(name=name, seed=seed, accuracy=result['accuracy'], train_loss=losses,
                seconds=result['seconds'])

def parse_options():
    p = argparse.ArgumentParser(description=__doc__)
    p.formatter_class = argparse.RawDescriptionHelpFormatter
    p.add_argument('--path', required=True, help='directory of the data')
    p.add_argument('--only', nargs='+', choices=ROWS, default=list(ROWS), help='which rows')
    p.add_argument('--seeds', type=int, default=1, help='how many, from 0 on')
    p.add_argument('--runs', type=Path, default=Path('runs/late'), help='directory of the runs')
    p.add_argument('--out', type=Path, default=Path('results/late.json'))
    return p.parse_args()

def kept(file):
    "the runs that the file holds"
    return json.loads(file.read_text())['runs'] if file.exists() else []

def main():
    options = parse_options()
    trainings.stop_on_term()
    for seed, name in product(range(options.seeds), options.only):
        found = run_of(name, seed, options)
        others = [r for r in kept(options.out) if (r['name'], r['seed']) != (name, seed)]
        about = dict(network='reactnet18, width 0.25', words=' '.join(WORDS))
        text = json.dumps(dict(**about, runs=[*others, found]), indent=1) + '\n'
        write_file(options.out, text.encode())
        print(f"{name}, seed {seed}: {100*found['accuracy']:.2f} %", flush=True)

if __name__ == '__main__':
    if sys.argv[1:2] == ['--train']: train(sys.argv[2], sys.argv[3:])
    else: main()
