"""The traps of the authors' code (tests/data/traps.json, measured on BNN_NoBN at commit d277784):
under `rules='reference'` ours has them too, where they are part of the network; by default not."""
import json
import math
from types import SimpleNamespace
import numpy as np
import pytest
import torch
from fastai.basics import Adam
from bnn_bn.images.augment import pca_lighting
from bnn_bn.layers.binarize import magnitude_aware_sign
from bnn_bn.checkpoint import reference_names
from bnn_bn.layers.conv import QuantConv2d
from bnn_bn.models import binary_net, decay_groups
from bnn_bn.train.steps import Schedule, schedules
from oracle import BINARY, DATA, NORMS

TRAPS = json.loads((DATA/'traps.json').read_text())
ARCHS = {'18': 'reactnet18', 'A': 'reactnet_a'}
EPOCHS, BASE = 256, 5e-4

def network(name, rules='reference'):
    "our network of the authors' name, such as Qaw_reactnet_18_bf, for 1000 classes"
    binary, _, arch, norm = name.split('_')
    torch.manual_seed(0)
    return binary_net(ARCHS[arch], NORMS[norm], BINARY[binary], 1000, 'imagenet', rules=rules)

def binary_convs(model):
    convs = [m for m in model.modules() if isinstance(m, QuantConv2d)]
    return [m for m in convs if m.binary]

# The learning rate

def rate(epoch, kind='linear-reference'):
    "what the callback sets before the first batch of an epoch"
    opt = Adam([torch.nn.Parameter(torch.zeros(1))], lr=0.)
    schedule = Schedule(BASE, kind)
    schedule.learn = SimpleNamespace(
        training=True, epoch=epoch, n_epoch=EPOCHS, iter=0, n_iter=1, opt=opt)
    schedule.before_fit()
    schedule.before_batch()
    return opt.hypers[-1]['lr']

def test_schedule_is_the_authors():
    trap = TRAPS['lr_schedule_E256_base5e-4']
    assert [rate(e) for e in range(3)] == pytest.approx(trap['first3'], rel=1e-15)
    assert [rate(e) for e in range(EPOCHS - 3, EPOCHS)] == pytest.approx(trap['last3'], rel=1e-12)

def test_default_schedule_uses_its_last_epoch():
    "the authors' last epoch changes nothing; ours does"
    assert TRAPS['lr_schedule_E256_base5e-4']['last3'][-1] == 0
    assert rate(0, 'linear') == BASE and rate(EPOCHS - 1, 'linear') == BASE/EPOCHS

def test_schedule_after_a_resume():
    "theirs has moved on by one after a resume and ends below zero; ours depends on the epoch only"
    trap = TRAPS['lr_after_resume_from_checkpoint_of_epoch_99']
    epoch = trap['first_epoch_rerun']
    assert rate(epoch) == pytest.approx(trap['uninterrupted_value_for_that_epoch'], rel=1e-15)
    assert rate(epoch + 1) == pytest.approx(trap['first'], rel=1e-15)
    assert trap['last3'][-1] < 0

@pytest.mark.parametrize('kind', schedules)
def test_no_schedule_falls_below_zero(kind): assert min(rate(e, kind) for e in range(EPOCHS)) >= 0

def test_adam_with_a_negative_rate_moves_uphill():
    "so a rate below zero undoes a training: why no schedule may give one"
    p = torch.nn.Parameter(torch.ones(1))
    opt = torch.optim.Adam([p], lr=1e-3)
    opt.param_groups[0]['lr'] = -1e-3
    (p**2).sum().backward()
    opt.step()
    assert (p.item() > 1) == TRAPS['adam_with_negative_group_lr_moves_uphill']

# Colour noise on bytes

def changes(value, n=20_000):
    "each change of a grey pixel under the authors' rule, and how often it comes"
    torch.manual_seed(0)
    x = torch.full((n, 3, 1, 1), value, dtype=torch.uint8)
    rows = pca_lighting(x, rule='truncate')[:, :, 0, 0].int().tolist()
    found, counts = np.unique(rows, axis=0, return_counts=True)
    return {str(row): count/n for row, count in zip(found.tolist(), counts)}

def test_lighting_darkens_by_one_level():
    "both shares are of random draws: 2,000 of theirs, 20,000 of ours; four deviations apart at most"
    trap = TRAPS['lighting_uint8_effect_of_2000_draws']
    ours = changes(100)
    for change, count in trap.items():
        share = count/2000
        found = ours.get(str([100 + c for c in json.loads(change)]), 0)
        assert abs(found - share) < 4*math.sqrt(max(share*(1 - share), .001)*(1/2000 + 1/20000))
    assert set(np.ravel([json.loads(k) for k in ours])) == {99, 100}

def test_lighting_at_the_ends():
    trap = TRAPS['lighting_at_0_and_255']
    assert sorted(changes(0)) == trap['zero']
    assert set(trap['full']) <= set(changes(255))

def test_lighting_on_floats_goes_both_ways():
    torch.manual_seed(0)
    change = pca_lighting(torch.full((2000, 3, 1, 1), .4)) - .4
    assert abs(change.mean().item()) < 4*change.std().item()/math.sqrt(2000)
    assert (change > 0).float().mean() == pytest.approx(.5, abs=.05)

# First weights

INITS = TRAPS['init']

@pytest.fixture(params=INITS)
def first(request): return network(request.param), INITS[request.param]

def test_first_binary_weights(first):
    "as many layers, all weights in [0, 0.001), so that each sign is +1 (or 0)"
    model, trap = first
    convs = binary_convs(model)
    assert len(convs) == trap['binary_conv_layers']
    assert min(m.weight.min().item() for m in convs) >= 0
    assert max(m.weight.max().item() for m in convs) == pytest.approx(trap['weight_max'], rel=1e-5)
    assert max((m.weight < 0).float().mean().item() for m in convs) == trap['fraction_negative_sign_raw']

def test_parameters_that_start_at_zero(first):
    "shifts and the biases of batch norm, whose clipping limit is that of the least norm"
    model, trap = first
    theirs = reference_names(model)
    zeros = {'.'.join(theirs[n].split('.')[-2:]) for n, p in model.named_parameters() if not p.any()}
    assert sorted(zeros) == trap['zero_norm_parameters_at_init']

STANDARD = [k for k, v in INITS.items() if 'std_over_std_plus_eps_range' in v]

@pytest.mark.parametrize('name', STANDARD)
def test_first_standardised_weights(name):
    "what eps takes from the deviation of so small weights, and the energy that is left in a filter"
    model, trap = network(name), INITS[name]
    kept, energy = [], []
    for m in binary_convs(model):
        std = m.weight.flatten(1).std(1, correction=0)
        sign, scale = m.kernel()
        kept.append(std/(std + m.eps))
        energy.append(((sign*scale)**2).flatten(1).sum(1))
    # The ends of random draws, one of theirs and one of ours (seed 0). Over 40 seeds the ends of
    # ReActNet-A's small filters spread by 1 % (deviation) and 20 % (energy, the lower end).
    for found, key, limit in ((kept, 'std_over_std_plus_eps_range', .01),
                              (energy, 'fan_in_times_mean_square_effective_weight_range', .06)):
        found = torch.cat(found)
        ends = [found.min().item(), found.max().item()]
        assert ends == pytest.approx(trap[key], rel=limit)

@pytest.mark.parametrize('name', STANDARD)
def test_our_binary_kernels_have_one_magnitude(name):
    "theirs, made by a - c + c, have several in float32"
    assert INITS[name]['distinct_abs_values_within_one_filter_float32'] > 1
    for m in binary_convs(network(name)):
        sign, scale = m.kernel()
        assert set(sign[0].abs().unique().tolist()) <= {0., 1.}
        assert scale.shape == (m.out_channels, 1, 1, 1)

def test_no_rounding_in_a_binary_kernel():
    "theirs deviates by 1e-7; ours is exact"
    assert TRAPS['HardBinaryConv_float32_effective_weight']['max_rel_spread'] > 0
    torch.manual_seed(0)
    w = magnitude_aware_sign(torch.rand(8, 64, 3, 3)*1e-3)
    assert all(filter_.abs().unique().numel() == 1 for filter_ in w)
    assert torch.equal(w[:, 0, 0, 0].abs(), w.abs().flatten(1).amax(1))

def channel_gap(weight):
    "how far the output channels of a binary convolution are from one map times a factor"
    torch.manual_seed(1)
    m = QuantConv2d(16, 8, 3, binary=True)
    m.weight.data.copy_(weight)
    y = m(torch.randn(2, 16, 8, 8)).detach()
    scale = m.kernel()[1].detach().view(1, -1, 1, 1)
    return (y/scale - (y/scale)[:, :1]).abs().max().item()

def test_positive_weights_make_all_channels_one():
    torch.manual_seed(0)
    positive = torch.rand(8, 16, 3, 3)*1e-3
    limit = TRAPS['HardBinaryConv_init_all_channels_same_up_to_scale_maxdev']
    assert channel_gap(positive) <= limit
    assert channel_gap(positive - positive.mean()) > 1
    assert all(m.weight.min() < 0 < m.weight.max()
               for m in binary_convs(network('Qaw_reactnet_18_none', 'default')))

# Names and groups

@pytest.mark.parametrize('kind', TRAPS['Qa_and_Qaw_state_dict_names_shapes_order_equal'])
def test_both_steps_have_the_same_names(kind):
    "names, shapes and order of the two steps' networks agree, so one's weights load into the other"
    arch, norm = kind.split('_')
    shapes = []
    for binary in ('Qa', 'Qaw'):
        model = network(f'{binary}_reactnet_{arch}_{norm}')
        theirs = reference_names(model)
        shapes.append([(theirs[n], n, t.shape) for n, t in model.state_dict().items()])
    same = TRAPS['Qa_and_Qaw_state_dict_names_shapes_order_equal'][kind]
    assert (shapes[0] == shapes[1]) == same

KINDS = {'shift': 'LearnableBias.bias', 'shift_in': 'LearnableBias.bias',
         'shift_out': 'LearnableBias.bias', 'slope': 'PReLU.weight'}

def kind_of(module, name):
    "the authors' module and parameter for one of ours"
    own = type(module).__name__.replace('QuantConv2d', 'Conv2d')
    return KINDS.get(name, f'{own}.{name}')

@pytest.mark.parametrize('name', TRAPS['decay_group'])
def test_decay_group(name):
    "the numbers of each kind that decay, and that do not"
    model = network(name)
    decayed = {id(p) for p in decay_groups(model)[0]['params']}
    found = dict(decayed={}, not_decayed={})
    for m in model.modules():
        for n, p in m.named_parameters(recurse=False):
            group = found['decayed' if id(p) in decayed else 'not_decayed']
            group[kind_of(m, n)] = group.get(kind_of(m, n), 0) + p.numel()
    assert found == TRAPS['decay_group'][name]

def test_every_recording_is_used():
    "each key of the file stands in a test"
    tests = ''.join((DATA.parent/f'test_{n}.py').read_text() for n in ('traps', 'reference'))
    assert [k for k in TRAPS if f"['{k}']" not in tests] == []
