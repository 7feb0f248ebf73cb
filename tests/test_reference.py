"Our networks are the authors': equal to their recorded outputs, gradients, clipping, optimizer steps and training."
import json
import numpy as np, pytest, torch
from bnn_bn.agc import clipped_parameters
from bnn_bn.checkpoint import reference_names
from bnn_bn.models import binary_net, decay_groups
from bnn_bn.sigprop import signal_stats
from oracle import BINARY, CASES, DATA, NORMS, Case, distance, fill, measure, stats, u

def test_hash():
    assert u(0, 1, 0)[0] == 0.789138660999015 and u(0, 2, 0)[1] == -0.9093869638163596
    assert u(5, 12346, 7)[-1] == 0.4135690259281546 and u(100019, 1001, 0)[-1] == -0.456459112232551

@pytest.fixture(params=CASES)
def case(request): return Case(request.param)

def test_distance():
    a = np.array([[3., 10., 1.]])
    assert distance(a, a, [4]) == 0
    assert np.isclose(distance(a + [[0, 1e-3, 0]], a, [4]), 1e-4) and np.isclose(distance(a + [[0, 0, 1e-3]], a, [4]), 5e-5)

def test_fill(case):
    floats = [(n, s, i) for n, s, i in case.json['state_dict'] if i is not None]
    for (n, s, i), row in zip(floats, case.npz['param_check']): np.testing.assert_allclose(stats(fill(n, s, i, case.phase)), row, rtol=1e-11, atol=1e-9)

# What FORMAT.md allows. After a step some pre-activations lie 1.5e-9 from zero; without clipping, gradients near Adam's eps of 1e-8
# move the probe of the change by up to 4e-6.
LIMITS = dict(logits_eval=1e-9, logits_train=1e-9, loss_eval=1e-9, loss_train=1e-9, logits_eval_f32=1e-4, logits_train_f32=1e-4, grad=1e-8,
              **{f'agc_{c}': 1e-8 for c in (.02, .04)}, **{k: 1e-8 for k in ('adam_plain', 'adam_agc0.02_wd1e-5', 'adam_agc0.02_wd0')},
              **{'adam_plain_probe': 4e-6, 'adam_agc0.02_wd1e-5_probe': 1e-8, 'adam_agc0.02_wd0_probe': 1e-8}, trajectory_loss=1e-8, trajectory_logits=1e-8)

@pytest.mark.parametrize('name', CASES)
def test_equal_to_the_authors(name):
    found = measure(name)[0]
    assert set(found) == set(LIMITS)
    assert not {k: v for k, v in found.items() if not v <= LIMITS[k]}

@pytest.mark.parametrize('name', CASES)
def test_agc_changes_the_same_entries(name):
    "as many entries change in each tensor; only an exact zero of ours may be rounding noise of theirs, or the other way round"
    _, changed, raw = measure(name)
    npz = Case(name).npz
    noise = [abs((g == 0).sum().item() - z) for g, z in zip(raw, npz['grad_zero_count'])]
    for clip, ours in changed.items():
        assert all(abs(a - b) <= n for a, b, n in zip(ours, npz[f'agc_{clip}_changed'], noise))

def test_groups(case):
    "which parameters decay, and which are clipped"
    model, params = case.build()
    listed = lambda key: {id(params[p['name']]) for p in case.json['parameters'] if p[key]}
    assert {id(p) for p in decay_groups(model)[0]['params']} == listed('decay')
    assert {id(p) for p in clipped_parameters(model)} == listed('agc')
    assert sum(p.numel() for p in params.values()) == case.json['num_parameters']

def test_blocks(case):
    "the signal after each block, and how many activations of each binarisation are positive"
    model, _ = case.build(); found, sizes, signs = [], [], []
    def add(m, args, out): found.append(stats(out)); sizes.append(out.numel())
    for n, m in model.body.named_children():
        if n.startswith('block'): m.register_forward_hook(add)
    for m in model.modules():
        if type(m).__name__ == 'RSign': m.register_forward_hook(lambda m, args, out: signs.append([(out > 0).sum().item(), (out < 0).sum().item(), (out == 0).sum().item()]))
    case.forward(model, False)
    names = [t['module'] for t in case.json['trace']]
    blocks = [i for i, n in enumerate(names) if n.count('.') == 1 and n.split('.')[1].isdigit() and n != 'feature.0']
    assert len(blocks) == len(found) == len(case.json['blocks'])
    assert distance(found, case.npz['trace_eval'][blocks], sizes) < 1e-10
    assert signs == case.npz['bin_eval'][:, :3].tolist()

def test_alpha_and_beta(case):
    model, _ = case.build()
    blocks = [m for n, m in model.body.named_children() if n.startswith('block')]
    for want, m in zip(case.json['blocks'], blocks, strict=True):
        betas = [want[k] for k in ('beta', 'beta1', 'beta2') if k in want] or [1., 1.][:1 if case.arch == '18' else 2]
        assert m.alpha == (want.get('alpha') or case.json['alpha'] or 1.)
        np.testing.assert_allclose([m.beta] if case.arch == '18' else m.betas, betas, rtol=1e-12)

def test_effective_weights(case):
    model, _ = case.build(); theirs, found = reference_names(model), {}
    for n, m in model.named_modules():
        if hasattr(m, 'gain'):
            w, scale = m.kernel()
            w = w if scale is None else w*scale
            found[theirs[f'{n}.weight'].rpartition('.')[0]] = stats(w), w.numel()
    names = [e['module'] for e in case.json['effective_weights']]
    assert sorted(names) == sorted(found) and bool(names) == (case.norm == 'nobn')
    if names: assert distance([found[n][0] for n in names], case.npz['effective_weight'], [found[n][1] for n in names]) < 1e-10

def test_running_statistics(case):
    model, _ = case.build(); case.forward(model, True)
    own, theirs = model.state_dict(), {t: n for n, t in reference_names(model).items()}
    names = case.json.get('buffers_after_names', [])
    assert bool(names) == (case.norm == 'bn')
    if names: assert distance([stats(own[theirs[n]]) for n in names], case.npz['buffers_after_one_train_forward'], [own[theirs[n]].numel() for n in names]) < 1e-10

@pytest.mark.parametrize('name', ['Qa_reactnet_18_bf', 'Qa_reactnet_A_bf', 'Qaw_reactnet_18_none', 'Qaw_reactnet_A_none'])
def test_signal_at_the_authors_start(name):
    "first weights, alpha and beta under the reference rules: the mean square that the authors' networks showed at each block's input"
    binary, _, arch, norm = name.split('_')
    torch.manual_seed(0)
    model = binary_net({'18': 'reactnet18', 'A': 'reactnet_a'}[arch], NORMS[norm], BINARY[binary], 1000, 'imagenet', rules='reference')
    found = signal_stats(model, torch.randn(2, 3, 224, 224)).mean_sq.values[:-1]
    want = np.array([row[2] for row in json.loads((DATA/'traps.json').read_text())['signal_propagation_at_reference_init'][name]['rows']])
    assert np.abs(found/want - 1).max() < .05    # both are random draws, over two images
