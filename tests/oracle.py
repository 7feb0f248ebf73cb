"""The authors' recorded numbers (tests/data, made by running BNN_NoBN at commit d277784), the
formula that filled their networks, and how far ours are from them: `python tests/oracle.py` prints
the largest disagreement of each case. tests/FORMAT.md says what a case holds."""
import json
from functools import lru_cache
from pathlib import Path
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from bnn_bn.agc import adaptive_clip_grad, clipped_parameters
from bnn_bn.checkpoint import from_reference, reference_names
from bnn_bn.models import decay_groups

DATA = Path(__file__).parent/'data'
CASES = sorted(p.stem for p in DATA.glob('Q*.json'))
NORMS = {'bf': 'nobn', 'bn': 'bn', 'none': 'naive'}
BINARY = {'Qa': 'act', 'Qaw': 'both'}
ADAM = dict(lr=5e-4, betas=(.9, .999), eps=1e-8)

def u(stream, n, phase):
    "n uniforms in (-1, 1), float64: an integer hash of (element, stream, phase), exact anywhere"
    m = np.uint64(2**32 - 1)
    j = np.arange(n, dtype=np.uint64)
    start = np.uint64((stream*2654435761 + phase*3266489917 + 374761393) % 2**32)
    x = (j*np.uint64(2246822519) + start) & m
    for shift, mult in ((16, 0x2c1b3c6d), (15, 0x297a2d39)):
        x ^= x >> np.uint64(shift)
        x = (x*np.uint64(mult)) & m
    x ^= x >> np.uint64(16)
    return (x.astype(np.float64) + .5)/2**31 - 1

def fill(name, shape, stream, phase):
    "float32-rounded value of one tensor of the state dict"
    if stream is None: return torch.zeros(shape, dtype=torch.long)
    kind = name.rsplit('.', 1)[-1]
    v = u(stream, int(np.prod(shape)), phase).reshape(shape)
    if kind == 'running_mean': v = .1*v
    elif kind == 'running_var': v = 1 + .3*v
    elif kind == 'gain': v = 1 + .2*v
    elif kind == 'bias': v = .1*v
    elif len(shape) == 4: v = v/np.sqrt(float(np.prod(shape[1:])))
    elif len(shape) == 2: v = .05*v
    elif 'prelu' in name: v = .25 + .1*v
    else: v = 1 + .2*v
    return torch.from_numpy(v.astype(np.float32))

def stats(t):
    "sum, L2 norm and a dot product that sees permutations, in float64"
    t = t.detach().double().flatten().numpy()
    return np.array([t.sum(), np.sqrt((t*t).sum()), t @ u(100019, t.size, 0)])

class Case:
    "One network of the authors with its recorded outputs"
    def __init__(self, name):
        self.json = json.loads((DATA/f'{name}.json').read_text())
        self.npz = np.load(DATA/f'{name}.npz')
        binary, _, self.arch, norm = name.split('__')[0].split('_')
        self.binary, self.norm = BINARY[binary], NORMS[norm]
        kwargs, shape = self.json['constructor_kwargs'], self.json['input_shape']
        self.stem = 'cifar' if kwargs.get('imagenet') is False else 'imagenet'
        self.n_out, self.phase = kwargs['num_classes'], self.json['phase']
        self.names = [p['name'] for p in self.json['parameters']]
        x = 1.5*u(100003, int(np.prod(shape)), self.phase)
        self.x = torch.from_numpy(x.reshape(shape).astype(np.float32))
        self.y = torch.tensor(self.json['labels'])

    def state(self): return {n: fill(n, s, i, self.phase) for n, s, i in self.json['state_dict']}

    def build(self, dtype=torch.float64):
        "our network with the recorded fill, and its parameters under the authors' names"
        state = self.state()
        model = from_reference(state, self.arch, self.norm, self.binary, self.n_out, self.stem)
        model, theirs = model.to(dtype), reference_names(model)
        params = {theirs[n]: p for n, p in model.named_parameters()}
        assert sorted(params) == sorted(self.names)
        return model, {n: params[n] for n in self.names}

    def forward(self, model, train):
        model.train(train)
        return model(self.x.to(next(model.parameters()).dtype))

def distance(found, wanted, sizes):
    """Largest relative distance of rows [sum, norm, probe]. A change of relative size r moves the
    norm by at most r*norm, and sum and probe by at most r*norm*sqrt(n): each is divided by that."""
    found, wanted = np.asarray(found), np.asarray(wanted)
    root = np.sqrt(np.asarray(sizes, float))[:, None]
    norm = np.maximum(np.abs(wanted[:, 1:2]), 1e-300)
    scale = norm*np.concatenate([root, np.ones_like(root), root], 1)
    return (np.abs(found - wanted)/scale).max()

def gap(a, b): return np.abs(a.detach().numpy() - b).max()

def rows(params): return [stats(p.grad) for p in params.values()]

def put(params, grads):
    for p, g in zip(params.values(), grads): p.grad = g.clone()

def _outputs(case, model, single):
    "gaps of logits and losses in both modes; leaves the gradients of train mode in the model"
    npz, loss, out = case.npz, case.json['loss'], {}
    for mode in ('eval', 'train'):
        is_train = mode == 'train'
        with torch.no_grad(): logits32 = case.forward(single, is_train)
        logits = case.forward(model, is_train)
        value = F.cross_entropy(logits, case.y)
        out[f'logits_{mode}_f32'] = gap(logits32, npz[f'logits_{mode}_f32'])
        out[f'logits_{mode}'] = gap(logits, npz[f'logits_{mode}_f64'])
        out[f'loss_{mode}'] = abs(value.item() - loss[f'{mode}_f64'])
    value.backward()
    return out

def _clipped(case, model, params, raw, sizes):
    "gaps of clipped gradients, how many entries changed, and the gradients clipped at 0.02"
    out, changed = {}, {}
    for clip in (.04, .02):
        put(params, raw)
        adaptive_clip_grad(clipped_parameters(model), clip)
        out[f'agc_{clip}'] = distance(rows(params), case.npz[f'agc_{clip}'], sizes)
        changed[clip] = [(p.grad != g).sum().item() for p, g in zip(params.values(), raw)]
    return out, changed, [p.grad.clone() for p in params.values()]

def _step(model, params, grads, wd):
    "sum and norm of each parameter after Adam's first step, norm and probe of its change"
    put(params, grads)
    before = [p.detach().clone() for p in params.values()]
    torch.optim.Adam(decay_groups(model, wd), **ADAM).step()
    pairs = zip(params.values(), before)
    return np.array([[*stats(p)[:2], *stats(p - b)[1:]] for p, b in pairs])

def _steps(case, model, params, raw, agc, sizes):
    "gaps of Adam's first step, for three recipes from the same weights"
    start, out = {n: t.clone() for n, t in model.state_dict().items()}, {}
    recipes = (('adam_plain', raw, 0.), ('adam_agc0.02_wd1e-5', agc, 1e-5),
               ('adam_agc0.02_wd0', agc, 0.))
    for recipe, grads, wd in recipes:
        model.load_state_dict(start)
        found, want = _step(model, params, grads, wd), case.npz[recipe]
        weights = distance(found[:, [0, 1, 1]], want[:, [0, 1, 1]], sizes)
        out[recipe] = max(weights, np.abs(found[:, 2]/want[:, 2] - 1).max())
        out[f'{recipe}_probe'] = np.abs(found[:, 3] - want[:, 3]).max()
    return out

def _trajectory(case):
    "several steps in train mode: relative gap of each loss, absolute gap of the final logits"
    (model, _), t = case.build(), case.json['trajectory']
    wd = float(t['recipe'].split('weight decay ')[1].split()[0])
    opt, losses = torch.optim.Adam(decay_groups(model, wd), **ADAM), []
    for _ in t['loss_before_each_step']:
        opt.zero_grad()
        loss = F.cross_entropy(case.forward(model, True), case.y)
        loss.backward()
        losses.append(loss.item())
        adaptive_clip_grad(clipped_parameters(model), .02)
        opt.step()
    final = case.npz['trajectory_final_eval_logits']
    return dict(trajectory_loss=np.abs(np.array(losses)/t['loss_before_each_step'] - 1).max(),
                trajectory_logits=gap(case.forward(model, False), final))

@lru_cache
def measure(name):
    """Disagreement of our network with one recorded case, absolute for logits and losses and
    relative for the rest; how many entries clipping changed; and the gradients."""
    case = Case(name)
    (model, params), (single, _) = case.build(), case.build(torch.float32)
    sizes = [p.numel() for p in params.values()]
    out = _outputs(case, model, single)
    out['grad'] = distance(rows(params), case.npz['grad'], sizes)
    raw = [p.grad.clone() for p in params.values()]
    clipping, changed, agc = _clipped(case, model, params, raw, sizes)
    out |= clipping | _steps(case, model, params, raw, agc, sizes) | _trajectory(case)
    return out, changed, raw

if __name__ == '__main__':
    table = pd.DataFrame({n: measure(n)[0] for n in CASES}).map('{:.1e}'.format)
    with pd.option_context('display.width', 200): print(table.to_string())
