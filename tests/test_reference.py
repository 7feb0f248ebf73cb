"Our networks are the authors': equal to their recorded outputs, gradients, clipping, optimizer steps and training."
from functools import lru_cache
import numpy as np, pytest, torch, torch.nn.functional as F
from bnn_bn.agc import adaptive_clip_grad, clipped_parameters
from bnn_bn.checkpoint import from_reference, reference_names
from bnn_bn.models import decay_groups
from oracle import CASES, Case, fill, stats, u

case_of = lru_cache(Case)
HYPER = dict(lr=5e-4, betas=(.9, .999), eps=1e-8)

def build(case, dtype=torch.float64):
    "the network with the recorded fill, and its parameters under the authors' names in their order"
    model = from_reference(case.state(), case.arch, case.norm, case.binary, case.n_out, case.stem).to(dtype)
    theirs = reference_names(model)
    params = {theirs[n]: p for n, p in model.named_parameters()}
    assert list(sorted(params)) == sorted(case.names)
    return model, {n: params[n] for n in case.names}

def forward(model, case, train):
    model.train(train)
    return model(case.x.to(next(model.parameters()).dtype))

def backward(model, case):
    F.cross_entropy(forward(model, case, True), case.y).backward()

def assert_stats(found, wanted, names, rel, probe_rel=None):
    "rows of [sum, norm, probe]: each entry within `rel` of the row's norm (a sum within sqrt(n) of it, hence the relative bound on the norm's scale)"
    for name, a, b in zip(names, found, wanted):
        scale = max(abs(b[1]), 1e-300)
        assert abs(a[1] - b[1]) <= rel*scale, (name, a, b)
        assert abs(a[2] - b[2]) <= (probe_rel or rel)*scale*30, (name, a, b)
        assert abs(a[0] - b[0]) <= (probe_rel or rel)*scale*30 + 1e-12*abs(b[0]), (name, a, b)

def test_hash():
    assert u(0, 1, 0)[0] == 0.789138660999015 and u(0, 2, 0)[1] == -0.9093869638163596
    assert u(5, 12346, 7)[-1] == 0.4135690259281546 and u(100019, 1001, 0)[-1] == -0.456459112232551

@pytest.fixture(params=CASES)
def case(request): return case_of(request.param)

def test_fill(case):
    floats = [(n, s, i) for n, s, i in case.json['state_dict'] if i is not None]
    for (n, s, i), row in zip(floats, case.npz['param_check']): np.testing.assert_allclose(stats(fill(n, s, i, case.phase)), row, rtol=1e-11, atol=1e-9)

def test_count(case):
    model, _ = build(case)
    assert sum(p.numel() for p in model.parameters()) == case.json['num_parameters']

@pytest.mark.parametrize('mode', ['eval', 'train'])
def test_logits_and_loss(case, mode):
    logits = forward(build(case)[0], case, mode == 'train')
    np.testing.assert_allclose(logits.detach(), case.npz[f'logits_{mode}_f64'], rtol=0, atol=1e-9)
    assert abs(F.cross_entropy(logits, case.y).item() - case.json['loss'][f'{mode}_f64']) < 1e-9
    logits = forward(build(case, torch.float32)[0], case, mode == 'train')
    np.testing.assert_allclose(logits.detach(), case.npz[f'logits_{mode}_f32'], rtol=0, atol=1e-4)

def test_blocks(case):
    "the signal after each block, and how many activations of each binarisation are positive"
    model, _ = build(case); found, signs = [], []
    for n, m in model.body.named_children():
        if n.startswith('block'): m.register_forward_hook(lambda m, args, out: found.append(stats(out)))
    for n, m in model.named_modules():
        if type(m).__name__ == 'RSign':
            m.register_forward_hook(lambda m, args, out: signs.append(((out > 0).sum().item(), (out < 0).sum().item(), (out == 0).sum().item())))
    forward(model, case, False)
    names = [t['module'] for t in case.json['trace']]
    blocks = [i for i, n in enumerate(names) if n.count('.') == 1 and n.split('.')[1].isdigit() and n != 'feature.0']
    assert len(blocks) == len(found) == len(case.json['blocks'])
    assert_stats(found, case.npz['trace_eval'][blocks], [names[i] for i in blocks], 1e-10)
    assert signs == [tuple(r[:3]) for r in case.npz['bin_eval']]

def test_betas(case):
    model, _ = build(case)
    for b, (_, m) in zip(case.json['blocks'], [c for c in model.body.named_children() if c[0].startswith('block')]):
        if case.norm != 'nobn': continue
        assert m.alpha == b['alpha']
        want = [b['beta']] if case.arch == '18' else [b['beta1'], b['beta2']]
        np.testing.assert_allclose([m.beta] if case.arch == '18' else m.betas, want, rtol=1e-12)

def test_effective_weights(case):
    if case.norm != 'nobn': return
    model, _ = build(case); theirs, found = reference_names(model), {}
    for n, m in model.named_modules():
        if hasattr(m, 'gain'):
            w, scale = m.kernel()
            found[theirs[f'{n}.weight'].rpartition('.')[0]] = stats(w if scale is None else w*scale)
    names = [e['module'] for e in case.json['effective_weights']]
    assert sorted(names) == sorted(found)
    assert_stats([found[n] for n in names], case.npz['effective_weight'], names, 1e-10)

def test_running_statistics(case):
    if case.norm != 'bn': return
    model, _ = build(case); forward(model, case, True)
    theirs = {t: n for n, t in reference_names(model).items()}
    own = model.state_dict()
    found = [stats(own[theirs[n]]) for n in case.json['buffers_after_names']]
    assert_stats(found, case.npz['buffers_after_one_train_forward'], case.json['buffers_after_names'], 1e-10)

def test_gradients(case):
    model, params = build(case); backward(model, case)
    assert_stats([stats(p.grad) for p in params.values()], case.npz['grad'], params, 1e-8)

@pytest.mark.parametrize('clip', [.02, .04])
def test_agc(case, clip):
    model, params = build(case); backward(model, case)
    before = [p.grad.clone() for p in params.values()]
    clipped = clipped_parameters(model)
    assert {id(p) for p in clipped} == {id(params[p['name']]) for p in case.json['parameters'] if p['agc']}
    adaptive_clip_grad(clipped, clip)
    assert_stats([stats(p.grad) for p in params.values()], case.npz[f'agc_{clip}'], params, 1e-8)
    assert [(p.grad != b).sum().item() for p, b in zip(params.values(), before)] == case.npz[f'agc_{clip}_changed'].tolist()

@pytest.mark.parametrize('recipe', ['adam_plain', 'adam_agc0.02_wd1e-5', 'adam_agc0.02_wd0'])
def test_adam(case, recipe):
    model, params = build(case); backward(model, case)
    groups = decay_groups(model, 1e-5 if 'wd1e-5' in recipe else 0.)
    assert {id(p) for p in groups[0]['params']} == {id(params[p['name']]) for p in case.json['parameters'] if p['decay']}
    if 'agc' in recipe: adaptive_clip_grad(clipped_parameters(model), .02)
    before = [p.detach().clone() for p in params.values()]
    torch.optim.Adam(groups, **HYPER).step()
    for name, p, b, want in zip(params, params.values(), before, case.npz[recipe]):
        after, change = stats(p), stats(p - b)
        assert abs(after[1] - want[1]) <= 1e-8*want[1], (name, after, want)
        assert abs(change[1] - want[2]) <= 1e-8*want[2] + 1e-15, (name, change, want)
        # a gradient near Adam's eps moves the probe by up to 4e-6 absolute without clipping, for two values a channel
        assert abs(change[2] - want[3]) <= (4e-6 if recipe == 'adam_plain' else 1e-8), (name, change, want)

def test_trajectory(case):
    t = case.json['trajectory']
    model, params = build(case)
    wd = float(t['recipe'].split('weight decay ')[1].split()[0])
    opt = torch.optim.Adam(decay_groups(model, wd), **HYPER)
    for loss in t['loss_before_each_step']:
        opt.zero_grad()
        now = F.cross_entropy(forward(model, case, True), case.y)
        assert abs(now.item() - loss) < 1e-6                 # margins of 1.5e-9 after an update: FORMAT.md, section 4
        now.backward()
        adaptive_clip_grad(clipped_parameters(model), .02)
        opt.step()
    np.testing.assert_allclose(forward(model, case, False).detach(), case.npz['trajectory_final_eval_logits'], rtol=0, atol=1e-6)
