"""The authors' recorded numbers (tests/data, made by running BNN_NoBN at commit d277784), the formula that filled their networks,
and how far ours are from them: `python tests/oracle.py` prints the largest disagreement of each case."""
import json
from functools import lru_cache
from pathlib import Path
import numpy as np, pandas as pd, torch, torch.nn.functional as F
from bnn_bn.agc import adaptive_clip_grad, clipped_parameters
from bnn_bn.checkpoint import from_reference, reference_names
from bnn_bn.models import decay_groups

DATA = Path(__file__).parent/'data'
CASES = sorted(p.stem for p in DATA.glob('Q*.json'))
NORMS, BINARY = {'bf': 'nobn', 'bn': 'bn', 'none': 'naive'}, {'Qa': 'act', 'Qaw': 'both'}

def u(stream, n, phase):
    "n hash uniforms in (-1, 1), float64: an integer hash of (element, stream, phase), exact on every machine"
    m = np.uint64(2**32 - 1)
    j = np.arange(n, dtype=np.uint64)
    x = (j*np.uint64(2246822519) + np.uint64((stream*2654435761 + phase*3266489917 + 374761393) % 2**32)) & m
    for shift, mult in ((16, 0x2c1b3c6d), (15, 0x297a2d39)):
        x ^= x >> np.uint64(shift)
        x = (x*np.uint64(mult)) & m
    x ^= x >> np.uint64(16)
    return (x.astype(np.float64) + .5)/2**31 - 1

def fill(name, shape, stream, phase):
    "float32-rounded value of one tensor of the state dict"
    if stream is None: return torch.zeros(shape, dtype=torch.long)
    kind, v = name.rsplit('.', 1)[-1], u(stream, int(np.prod(shape)), phase).reshape(shape)
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
        self.json, self.npz = json.loads((DATA/f'{name}.json').read_text()), np.load(DATA/f'{name}.npz')
        model, config = name.split('__')
        self.arch, self.norm = model.split('_')[2], NORMS[model.split('_')[3]]
        self.binary, self.stem = BINARY[model.split('_')[0]], 'cifar' if self.json['constructor_kwargs'].get('imagenet') is False else 'imagenet'
        self.n_out, self.phase = self.json['constructor_kwargs']['num_classes'], self.json['phase']
        self.names = [p['name'] for p in self.json['parameters']]
        shape = self.json['input_shape']
        self.x = torch.from_numpy((1.5*u(100003, int(np.prod(shape)), self.phase)).reshape(shape).astype(np.float32))
        self.y = torch.tensor(self.json['labels'])

    def state(self): return {n: fill(n, s, i, self.phase) for n, s, i in self.json['state_dict']}

    def build(self, dtype=torch.float64):
        "our network with the recorded fill, and its parameters under the authors' names in their order"
        model = from_reference(self.state(), self.arch, self.norm, self.binary, self.n_out, self.stem).to(dtype)
        theirs = reference_names(model)
        params = {theirs[n]: p for n, p in model.named_parameters()}
        assert sorted(params) == sorted(self.names)
        return model, {n: params[n] for n in self.names}

    def forward(self, model, train):
        model.train(train)
        return model(self.x.to(next(model.parameters()).dtype))

def distance(found, wanted, sizes):
    """Largest relative distance of rows [sum, norm, probe]. A change of relative size r moves the norm by at most r*norm, and sum
    and probe by at most r*norm*sqrt(n), so each is divided by that."""
    found, wanted, root = np.asarray(found), np.asarray(wanted), np.sqrt(np.asarray(sizes, float))[:, None]
    scale = np.maximum(np.abs(wanted[:, 1:2]), 1e-300) * np.concatenate([root, np.ones_like(root), root], 1)
    return (np.abs(found - wanted)/scale).max()

@lru_cache
def measure(name):
    "disagreement of our network with one recorded case: absolute for logits and losses, relative for the rest; and the clipped gradients"
    case = Case(name); npz, out = case.npz, {}
    (model, params), (single, _) = case.build(), case.build(torch.float32)
    sizes = [p.numel() for p in params.values()]
    start = {n: t.clone() for n, t in model.state_dict().items()}
    gap = lambda a, b: np.abs(a.detach().numpy() - b).max()
    with torch.no_grad():
        for mode in ('eval', 'train'):
            out[f'logits_{mode}_f32'] = gap(case.forward(single, mode == 'train'), npz[f'logits_{mode}_f32'])
        logits = case.forward(model, False)
        out['logits_eval'], out['loss_eval'] = gap(logits, npz['logits_eval_f64']), abs(F.cross_entropy(logits, case.y).item() - case.json['loss']['eval_f64'])
    logits = case.forward(model, True); loss = F.cross_entropy(logits, case.y); loss.backward()
    out['logits_train'], out['loss_train'] = gap(logits, npz['logits_train_f64']), abs(loss.item() - case.json['loss']['train_f64'])
    rows = lambda: [stats(p.grad) for p in params.values()]
    out['grad'] = distance(rows(), npz['grad'], sizes)
    raw = [p.grad.clone() for p in params.values()]
    clipped, changed = clipped_parameters(model), {}
    for clip in (.04, .02):
        for p, g in zip(params.values(), raw): p.grad.copy_(g)
        adaptive_clip_grad(clipped, clip)
        out[f'agc_{clip}'] = distance(rows(), npz[f'agc_{clip}'], sizes)
        changed[clip] = [(p.grad != g).sum().item() for p, g in zip(params.values(), raw)]
    agc = [p.grad.clone() for p in params.values()]
    for recipe, grads, wd in (('adam_plain', raw, 0.), ('adam_agc0.02_wd1e-5', agc, 1e-5), ('adam_agc0.02_wd0', agc, 0.)):
        model.load_state_dict(start)
        for p, g in zip(params.values(), grads): p.grad = g.clone()
        before = [p.detach().clone() for p in params.values()]
        torch.optim.Adam(decay_groups(model, wd), **ADAM).step()
        found = np.array([[*stats(p)[:2], *stats(p - b)[1:]] for p, b in zip(params.values(), before)])
        out[recipe] = max(distance(found[:, [0, 1, 1]], npz[recipe][:, [0, 1, 1]], sizes), (np.abs(found[:, 2]/npz[recipe][:, 2] - 1)).max())
        out[f'{recipe}_probe'] = np.abs(found[:, 3] - npz[recipe][:, 3]).max()
    out.update(_trajectory(case))
    return out, changed, raw

ADAM = dict(lr=5e-4, betas=(.9, .999), eps=1e-8)

def _trajectory(case):
    "several steps in train mode: relative gap of each loss, absolute gap of the final logits"
    model, _ = case.build(); t = case.json['trajectory']
    opt = torch.optim.Adam(decay_groups(model, float(t['recipe'].split('weight decay ')[1].split()[0])), **ADAM)
    losses = []
    for _ in t['loss_before_each_step']:
        opt.zero_grad()
        loss = F.cross_entropy(case.forward(model, True), case.y); loss.backward(); losses.append(loss.item())
        adaptive_clip_grad(clipped_parameters(model), .02); opt.step()
    final = case.forward(model, False).detach().numpy()
    return dict(trajectory_loss=np.abs(np.array(losses)/t['loss_before_each_step'] - 1).max(),
                trajectory_logits=np.abs(final - case.npz['trajectory_final_eval_logits']).max())

if __name__ == '__main__':
    with pd.option_context('display.width', 200): print(pd.DataFrame({n: measure(n)[0] for n in CASES}).map('{:.1e}'.format).to_string())
