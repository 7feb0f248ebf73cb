"The authors' recorded numbers (tests/data, made by running BNN_NoBN at commit d277784) and the formula that filled their networks."
import json
from pathlib import Path
import numpy as np, torch

DATA = Path(__file__).parent/'data'
CASES = sorted(p.stem for p in DATA.glob('Q*.json'))

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
        self.arch, self.norm = model.split('_')[2], {'bf': 'nobn', 'bn': 'bn', 'none': 'naive'}[model.split('_')[3]]
        self.binary, self.stem = {'Qa': 'act', 'Qaw': 'both'}[model.split('_')[0]], 'cifar' if self.json['constructor_kwargs'].get('imagenet') is False else 'imagenet'
        self.n_out, self.phase = self.json['constructor_kwargs']['num_classes'], self.json['phase']
        self.names = [p['name'] for p in self.json['parameters']]
        shape = self.json['input_shape']
        self.x = torch.from_numpy((1.5*u(100003, int(np.prod(shape)), self.phase)).reshape(shape).astype(np.float32))
        self.y = torch.tensor(self.json['labels'])

    def state(self): return {n: fill(n, s, i, self.phase) for n, s, i in self.json['state_dict']}
