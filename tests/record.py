"""Record one more case of the authors' networks: run their code and keep its numbers.

    git clone https://github.com/VITA-Group/BNN_NoBN CHECKOUT      # commit d277784
    python tests/record.py CHECKOUT Qaw_reactnet_18_none cifar32
    python tests/record.py CHECKOUT Qa_reactnet_18_bf cifar32 --check   # against tests/data

A case is a file of names and facts (.json) and one of arrays (.npz); tests/FORMAT.md says what they
hold. The tests take every case that lies in tests/data. Nothing of the authors' code is kept."""
import argparse
import importlib
import json
import platform
import re
import sys
from dataclasses import dataclass
from pathlib import Path
import numpy as np
import torch
import torch.nn.functional as F
from oracle import ADAM, DATA, fill, stats, u

@dataclass
class Config:
    "How a network is built, and on which pictures it runs"
    kwargs: dict          # of the constructor of ReActNet-18
    kwargs_a: dict        # of that of ReActNet-A, which has one stem
    shape: tuple          # of the batch

SMALL, LARGE = dict(num_classes=10), dict(num_classes=1000)
CONFIGS = {
    'imagenet224': Config(dict(LARGE, imagenet=True), LARGE, (2, 3, 224, 224)),
    'cifar32': Config(dict(SMALL, imagenet=False), SMALL, (2, 3, 32, 32)),
    'cifar32_imagenetstem': Config(dict(SMALL, imagenet=True), None, (2, 3, 32, 32)),
    'cifar32_batch8': Config(None, SMALL, (8, 3, 32, 32)),
}
TRACED = re.compile(r'conv1|bn1|maxpool|avgpool|pool1|fc|layer\d\.\d(\.(binary_conv|downsample))?'
                    r'|feature\.\d+(\.binary_(3x3|pw\w*))?')
BLOCK = re.compile(r'layer\d\.\d|feature\.[1-9]\d*')
CLIPS = .04, .02
RECIPES = (  # name, clip factor, weight decay
    ('adam_plain', None, 0.), ('adam_agc0.02_wd1e-5', .02, 1e-5), ('adam_agc0.02_wd0', .02, 0.))

class Reference:
    "The authors' network of a name, with the deterministic fill of a phase"
    def __init__(self, checkout, model, config, phase):
        sys.path.insert(0, str(checkout))
        self.clip = importlib.import_module('agc').adaptive_clip_grad
        module = importlib.import_module(f'models.{model}')
        is_a = '_A_' in model
        self.constructor = 'reactnet' if is_a else 'birealnet18'
        self.kwargs = CONFIGS[config].kwargs_a if is_a else CONFIGS[config].kwargs
        if self.kwargs is None: raise ValueError(f'{config}: not a configuration of {model}')
        self.model, self.phase, self.shape = model, phase, CONFIGS[config].shape
        self.net = getattr(module, self.constructor)(**self.kwargs)
        self.names = self.numbered()
        self.binary_steps = 2 if model.startswith('Qaw') else 1

    def numbered(self):
        "name, shape and stream of each entry of the state dict; integers have no stream"
        rows, i = [], 0
        for name, t in self.net.state_dict().items():
            rows.append([name, list(t.shape), i if t.is_floating_point() else None])
            i += t.is_floating_point()
        return rows

    def restore(self, dtype):
        "put the fill back, in this precision"
        self.net.load_state_dict({n: fill(n, s, i, self.phase) for n, s, i in self.names})
        return self.net.to(dtype)

    def images(self, dtype):
        x = 1.5*u(100003, int(np.prod(self.shape)), self.phase)
        return torch.from_numpy(x.reshape(self.shape).astype(np.float32)).to(dtype)

    def labels(self): return [(7*n + 3) % self.kwargs['num_classes'] for n in range(self.shape[0])]

    def forward(self, train, dtype=torch.float64):
        "logits from the filled state"
        return self.restore(dtype).train(train)(self.images(dtype))

    def loss(self, logits): return F.cross_entropy(logits, torch.tensor(self.labels()))

    def parameters(self): return dict(self.net.named_parameters())

    def clipped(self): return [p for n, p in self.parameters().items() if 'fc' not in n]

    def optimizer(self, wd):
        "Adam with weight decay on the parameters that are 4-dimensional or called conv"
        params = self.parameters()
        decays = [p for n, p in params.items() if decayed(n, p)]
        others = [p for n, p in params.items() if not decayed(n, p)]
        groups = [dict(params=decays, weight_decay=wd), dict(params=others, weight_decay=0.)]
        return torch.optim.Adam(groups, **ADAM)

def decayed(name, p): return p.dim() == 4 or 'conv' in name

class Watch:
    "Outputs of modules, inputs of signs and convolved weights of one forward pass"
    def __init__(self, net):
        self.outputs, self.signs, self.weights, self.handles = [], [], {}, []
        for name, m in net.named_modules():
            if TRACED.fullmatch(name): self.hook(m, name, self.keep_output)
            if type(m).__name__ == 'BinaryActivation': self.hook(m, name, self.keep_input)
            if hasattr(m, 'gain'): self.announce(m, name)
        self.now, self.conv2d = None, F.conv2d

    def hook(self, m, name, keep):
        self.handles.append(m.register_forward_hook(lambda m, x, y: keep(name, x[0], y)))

    def keep_output(self, name, x, y): self.outputs.append((name, list(y.shape), stats(y)))

    def keep_input(self, name, x, y): self.signs.append((name, x.detach().clone()))

    def announce(self, m, name):
        "the next convolution is that of this module"
        def set_now(m, x): self.now = name
        self.handles.append(m.register_forward_pre_hook(set_now))

    def convolve(self, x, w, *args, **kwargs):
        "conv2d that keeps the weight which a standardised convolution hands over"
        if self.now: self.weights[self.now], self.now = stats(w), None
        return self.conv2d(x, w, *args, **kwargs)

    def __enter__(self):
        F.conv2d = self.convolve
        return self

    def __exit__(self, *args):
        F.conv2d = self.conv2d
        for h in self.handles: h.remove()

def sign_counts(signs):
    "positive, negative, zero inputs and those within (-1, 1); mean, deviation and least magnitude"
    counts = [[(x > 0).sum(), (x < 0).sum(), (x == 0).sum(), (x.abs() < 1).sum()] for _, x in signs]
    moments = [[x.mean(), x.std(), x.abs().min()] for _, x in signs]
    return np.array(counts, np.int64), np.array(moments, np.float64)

def forwards(ref, arrays, facts):
    "logits, traces and signs, in both modes and precisions"
    for mode in ('eval', 'train'):
        is_train = mode == 'train'
        with torch.no_grad():
            single = ref.forward(is_train, torch.float32)
            ref.restore(torch.float64)
            with Watch(ref.net) as watch: double = ref.forward(is_train)
        arrays[f'logits_{mode}_f32'], arrays[f'logits_{mode}_f64'] = single.numpy(), double.numpy()
        arrays[f'trace_{mode}'] = np.array([row for _, _, row in watch.outputs])
        arrays[f'bin_{mode}'], arrays[f'bin_{mode}_stats'] = sign_counts(watch.signs)
        facts['loss'][f'{mode}_f64'] = ref.loss(double).item()
        facts['loss'][f'{mode}_f32'] = ref.loss(single).item()
        facts['robustness'][mode] = margins(watch.signs, single, double)
    facts['trace'] = [dict(module=n, shape=s) for n, s, _ in watch.outputs]
    facts['binarisations'] = [dict(module=n, shape=list(x.shape)) for n, x in watch.signs]
    facts['effective_weights'] = [weight_facts(n, ref.net.get_submodule(n)) for n in watch.weights]
    if watch.weights: arrays['effective_weight'] = np.array(list(watch.weights.values()))

def margins(signs, single, double):
    "how near the signs are to another answer: a small margin makes a case that other machines miss"
    values = torch.cat([x.flatten().abs() for _, x in signs])
    return dict(preactivations=values.numel(), exact_zeros=int((values == 0).sum()),
                min_abs=values.min().item(), below_1e_6=int((values < 1e-6).sum()),
                f32_max_abs_logit_diff=(single - double).abs().max().item())

def weight_facts(name, m): return dict(module=name, type=type(m).__name__, scale=m.scale, eps=m.eps)

def running_statistics(ref, arrays, facts):
    "buffers of batch norm after one forward pass in train mode"
    with torch.no_grad(): ref.forward(True)
    state = ref.net.state_dict()
    names = [n for n in state if n.endswith(('running_mean', 'running_var'))]
    facts['buffers_after_names'] = names
    if names: arrays['buffers_after_one_train_forward'] = np.array([stats(state[n]) for n in names])

def gradients(ref, arrays):
    "of the loss in train mode, in float64, plain and after the authors' clipping"
    ref.loss(ref.forward(True)).backward()
    params = ref.parameters().values()
    plain = [p.grad.clone() for p in params]
    found = {None: plain}
    arrays['grad'] = np.array([stats(g) for g in plain])
    arrays['grad_zero_count'] = np.array([(g == 0).sum() for g in plain], np.int64)
    for clip in CLIPS:
        for p, g in zip(params, plain): p.grad = g.clone()
        ref.clip(ref.clipped(), clip)
        found[clip] = [p.grad.clone() for p in params]
        changed = [(a != b).sum() for a, b in zip(found[clip], plain)]
        arrays[f'agc_{clip}'] = np.array([stats(g) for g in found[clip]])
        arrays[f'agc_{clip}_changed'] = np.array(changed, np.int64)
    return found

def one_step(ref, grads, wd):
    "sum and norm of each parameter after Adam's first step, norm and probe of its change"
    ref.restore(torch.float64)
    params = ref.parameters().values()
    before = [p.detach().clone() for p in params]
    for p, g in zip(params, grads): p.grad = g.clone()
    ref.optimizer(wd).step()
    return np.array([[*stats(p)[:2], *stats(p - b)[1:]] for p, b in zip(params, before)])

def trajectory(ref, arrays, steps=4):
    "losses of a few whole training steps on the same batch, and the logits after them"
    wd = 1e-5 if ref.binary_steps == 1 else 0.
    ref.restore(torch.float64).train()
    opt, x, losses = ref.optimizer(wd), ref.images(torch.float64), []
    for _ in range(steps):
        opt.zero_grad()
        loss = ref.loss(ref.net(x))
        loss.backward()
        losses.append(loss.item())
        ref.clip(ref.clipped(), .02)
        opt.step()
    with torch.no_grad(): arrays['trajectory_final_eval_logits'] = ref.net.eval()(x).numpy()
    recipe = ('cross entropy, train mode, AGC 0.02 on names without "fc", Adam lr 5e-4, '
              f'weight decay {wd} on the decay group')
    return dict(recipe=recipe, steps=steps, loss_before_each_step=losses)

def block_facts(name, m):
    "channels, stride and, without batch norm, alpha and the factors beta of a block's inputs"
    conv = getattr(m, 'binary_conv', None) or m.binary_3x3
    found = dict(block=name, in_channels=conv.weight.shape[1], stride=first(conv.stride))
    keys = [k for k in ('alpha', 'beta', 'beta1', 'beta2') if hasattr(m, k)]
    return found | {k: float(getattr(m, k)) for k in keys}

def first(x): return x[0] if isinstance(x, tuple) else x

def parameter_facts(ref):
    return [dict(name=n, shape=list(p.shape), decay=decayed(n, p), agc='fc' not in n)
            for n, p in ref.parameters().items()]

def facts_of(ref, config):
    "all that is known before the network runs"
    blocks = [block_facts(n, m) for n, m in ref.net.named_modules() if BLOCK.fullmatch(n)]
    alphas = {b.get('alpha') for b in blocks}
    versions = dict(torch=torch.__version__, numpy=np.__version__, python=platform.python_version())
    return dict(
        model=f'{ref.model}__{config}', reference_file=f'models/{ref.model}.py',
        reference_commit='d277784',
        constructor=ref.constructor, constructor_kwargs=ref.kwargs, input_shape=list(ref.shape),
        phase=ref.phase, labels=ref.labels(), state_dict=ref.names,
        num_parameters=sum(p.numel() for p in ref.parameters().values()),
        parameters=parameter_facts(ref), blocks=blocks,
        alpha=alphas.pop() if len(alphas) == 1 else None,
        loss={}, robustness={}, generated_with=dict(versions, threads=1))

def record(checkout, model, config, phase):
    "the two files of a case, as a dict and a dict of arrays"
    torch.set_num_threads(1)
    ref, arrays = Reference(checkout, model, config, phase), {}
    facts = facts_of(ref, config)
    floats = [row for row in ref.names if row[2] is not None]
    arrays['param_check'] = np.array([stats(fill(*row, phase)) for row in floats])
    forwards(ref, arrays, facts)
    running_statistics(ref, arrays, facts)
    grads = gradients(ref, arrays)
    for name, clip, wd in RECIPES: arrays[name] = one_step(ref, grads[clip], wd)
    facts['trajectory'] = trajectory(ref, arrays)
    return facts, arrays

def differences(arrays, old):
    "the largest gap of each recorded array from the one in tests/data"
    gaps = {}
    for key in sorted(set(arrays) & set(old)):
        a, b = np.asarray(arrays[key], float), np.asarray(old[key], float)
        gaps[key] = np.abs(a - b).max()/max(np.abs(b).max(), 1e-300)
    return gaps

def widest(model, checkout, config, tries):
    "the phase, out of the first few, whose smallest pre-activation is largest in both modes"
    found = {}
    for phase in range(tries):
        ref = Reference(checkout, model, config, phase)
        with torch.no_grad(), Watch(ref.net) as watch:
            for is_train in (False, True): ref.forward(is_train)
        found[phase] = min(x.abs().min().item() for _, x in watch.signs)
    return max(found, key=found.get)

def write(facts, arrays, name, out):
    out.mkdir(parents=True, exist_ok=True)
    (out/f'{name}.json').write_text(json.dumps(facts, indent=1) + '\n')
    np.savez_compressed(out/f'{name}.npz', **arrays)

def parsed_arguments():
    p = argparse.ArgumentParser(description='Record a case of the authors\' networks.')
    p.add_argument('checkout', type=Path, help='a clone of VITA-Group/BNN_NoBN')
    p.add_argument('model', help='a file of its models/, such as Qa_reactnet_18_bf')
    p.add_argument('config', choices=CONFIGS)
    p.add_argument('--phase', type=int, help='of the fill; without it the widest margin of --tries')
    p.add_argument('--tries', type=int, default=16, help='phases to try')
    p.add_argument('--out', type=Path, default=DATA, help='folder of the two files')
    p.add_argument('--check', action='store_true', help='compare with tests/data, write nothing')
    return p.parse_args()

def main():
    args = parsed_arguments()
    name = f'{args.model}__{args.config}'
    if args.check:
        known = json.loads((DATA/f'{name}.json').read_text())
        facts, arrays = record(args.checkout, args.model, args.config, known['phase'])
        different = [k for k in facts if k in known and k not in NEW and facts[k] != known[k]]
        print('facts that differ:', different or 'none')
        for key, gap in differences(arrays, np.load(DATA/f'{name}.npz')).items():
            print(f'{key:36}{gap:.1e}')
        return
    phase = args.phase
    if phase is None: phase = widest(args.model, args.checkout, args.config, args.tries)
    facts, arrays = record(args.checkout, args.model, args.config, phase)
    write(facts, arrays, name, args.out)
    print(json.dumps(facts['robustness'], indent=1))

NEW = 'robustness', 'generated_with', 'trajectory', 'loss', 'blocks'  # compared by their numbers

if __name__ == '__main__': main()
