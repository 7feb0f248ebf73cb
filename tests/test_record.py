"The recorder keeps what FORMAT.md says, shown on a network of two blocks in the authors' style."
import sys
import numpy as np
import pytest
from oracle import fill, stats
from record import CONFIGS, Config, differences, record, write

LAYERS = '''
import torch
from torch import nn
import torch.nn.functional as F

class BinaryActivation(nn.Module):
    def forward(self, x): return x.sign().detach() + x - x.detach()

class StandardConv(nn.Conv2d):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.gain = nn.Parameter(torch.ones(self.out_channels, 1, 1, 1))
        self.scale, self.eps = self.weight[0].numel()**-.5, 1e-5
    def forward(self, x): return F.conv2d(x, 2*self.gain*self.weight, None, 1, 1)

class Block(nn.Module):
    alpha, beta = .2, .5
    def __init__(self):
        super().__init__()
        self.binary_activation = BinaryActivation()
        self.binary_conv = StandardConv(4, 4, 3, bias=False)
    def forward(self, x):
        signs = self.binary_activation(x*self.beta)
        return x + self.alpha*self.binary_conv(signs)

class Net(nn.Module):
    def __init__(self, num_classes, imagenet):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, bias=False)
        self.layer1 = nn.Sequential(Block(), Block())
        self.fc = nn.Linear(4, num_classes)
    def forward(self, x): return self.fc(self.layer1(self.conv1(x)).mean((2, 3)))

def birealnet18(**kwargs): return Net(**kwargs)
'''
AGC = '''
def adaptive_clip_grad(parameters, clip_factor):
    for p in parameters: p.grad *= clip_factor
'''

@pytest.fixture(scope='module')
def case(tmp_path_factory):
    "facts and arrays of the toy"
    folder = tmp_path_factory.mktemp('checkout')
    (folder/'models').mkdir()
    (folder/'models/Qa_toy_bf.py').write_text(LAYERS)
    (folder/'agc.py').write_text(AGC)
    path, modules = list(sys.path), set(sys.modules)
    CONFIGS['toy'] = Config(dict(num_classes=3, imagenet=False), None, (2, 3, 8, 8))
    yield record(folder, 'Qa_toy_bf', 'toy', phase=1)
    del CONFIGS['toy']
    sys.path[:] = path
    for name in set(sys.modules) - modules: del sys.modules[name]

def test_facts(case):
    facts, _ = case
    assert facts['model'] == 'Qa_toy_bf__toy' and facts['labels'] == [0, 1]
    assert facts['alpha'] == .2 and [b['beta'] for b in facts['blocks']] == [.5, .5]
    names = [b['module'] for b in facts['binarisations']]
    assert names == ['layer1.0.binary_activation', 'layer1.1.binary_activation']
    assert [t['module'] for t in facts['trace']] == [
        'conv1', 'layer1.0.binary_conv', 'layer1.0', 'layer1.1.binary_conv', 'layer1.1', 'fc']
    listed = {p['name']: (p['decay'], p['agc']) for p in facts['parameters']}
    assert listed['layer1.0.binary_conv.gain'] == (True, True)
    assert listed['fc.weight'] == (False, False)

def test_arrays(case):
    "numbers that follow from the toy: filled weights, convolved weights, clipped gradients"
    facts, arrays = case
    filled = {row[0]: fill(*row, 1).double() for row in facts['state_dict']}
    gain, weight = (filled[f'layer1.0.binary_conv.{n}'] for n in ('gain', 'weight'))
    for row, found in zip(facts['state_dict'], arrays['param_check']):
        np.testing.assert_array_equal(found, stats(fill(*row, 1)))
    np.testing.assert_allclose(arrays['effective_weight'][0], stats(2*gain*weight))
    is_clipped = np.array([p['agc'] for p in facts['parameters']])
    factor = np.where(is_clipped, .02, 1)[:, None]
    np.testing.assert_allclose(arrays['agc_0.02'], arrays['grad']*factor, atol=1e-15)
    np.testing.assert_allclose(arrays['logits_eval_f32'], arrays['logits_eval_f64'], atol=1e-5)
    assert (arrays['bin_eval'][:, :3].sum(1) == 2*4*6*6).all()
    assert facts['trajectory']['loss_before_each_step'][0] == facts['loss']['train_f64']
    assert np.diff(facts['trajectory']['loss_before_each_step']).max() < 0

def test_written_and_read(case, tmp_path):
    facts, arrays = case
    write(facts, arrays, 'toy', tmp_path)
    again = np.load(tmp_path/'toy.npz')
    assert max(differences(arrays, again).values()) == 0
    assert (tmp_path/'toy.json').read_text().startswith('{\n "model": "Qa_toy_bf__toy"')
