"What hooks, parametrizations and wrappers add to a network: kept, or refused by name; never lost."
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.optim.swa_utils import AveragedModel
from bnn_bn.checkpoint import load_network, save_network
from bnn_bn.convert import binarize, remove_bn
from bnn_bn.core.errors import CheckpointError, ExportError
from bnn_bn.deploy import pack
from bnn_bn.export import to_onnx
from bnn_bn.models import reactnet_nobn

IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))

def plain():
    torch.manual_seed(0)
    def block(ni): return nn.Conv2d(ni, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU()
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    return nn.Sequential(*block(3), *block(8), *block(8), *head).eval()

def ours():
    torch.manual_seed(0)
    return reactnet_nobn('mini', n_out=10, width=.125).eval()

def converted(): return remove_bn(plain(), binary='both').eval()

def conv(m): return [c for c in m.modules() if isinstance(c, nn.Conv2d)][2]
def linear(m): return [c for c in m.modules() if isinstance(c, nn.Linear)][-1]

# What is changed: each function gives the network, maybe wrapped

def twice(m, args, y): return 2*y
def twice_before(m, args): return (2*args[0],)
def saved_twice(m, state, prefix, meta): state.update({k: 2*v for k, v in state.items()})
def before_saving(m, prefix, keep_vars):
    with torch.no_grad(): linear(m).weight.mul_(1.5)

def wraps(wrap, register):
    def change(m):
        w = wrap(m)
        register(w)
        return w
    return change

def compiled(m): return torch.compile(m, backend='eager')
def averaged(m): return AveragedModel(m)
def forward(w): w.forward = lambda x, f=w.forward: 2*f(x)

class Doubled(nn.DataParallel):
    def forward(self, *args): return 2*super().forward(*args)

WRAPPED = { # name -> what is done, how it is called
    f'{wrap.__name__} {name}': (wraps(wrap, f), words)
    for wrap in (nn.DataParallel, compiled, averaged)
    for name, f, words in (
        ('forward', lambda w: w.register_forward_hook(twice), 'a hook'),
        ('before', lambda w: w.register_forward_pre_hook(twice_before), 'a hook'),
        ('state', lambda w: w._register_state_dict_hook(saved_twice), 'a state_dict hook'),
        ('pre_state', lambda w: w.register_state_dict_pre_hook(before_saving), 'a state_dict hook'))}
WRAPPED |= {'own forward': (wraps(nn.DataParallel, forward), 'a forward of its own'),
            'subclass': (Doubled, 'a forward of its own'),
            'inner': (wraps(lambda m: compiled(nn.DataParallel(m)),
                            lambda w: w._orig_mod.register_forward_hook(twice)), 'a hook')}

class Half(nn.Module):
    def forward(self, w): return w/2

INSIDE = {
    'state': (lambda m: m.register_state_dict_post_hook(saved_twice), 'a state_dict hook'),
    'state of a layer': (lambda m: conv(m).register_state_dict_post_hook(saved_twice), 'a state_dict hook'),
    'pre_state': (lambda m: m.register_state_dict_pre_hook(before_saving), 'a state_dict hook'),
    'parametrized': (lambda m: parametrize.register_parametrization(conv(m), 'weight', Half()),
                     'a parametrization of its weight'),
    'bias': (lambda m: parametrize.register_parametrization(linear(m), 'bias', Half()),
             'a parametrization of its bias'),
    'weight_norm': (lambda m: parametrizations.weight_norm(linear(m)), 'a parametrization of its weight'),
    'orthogonal': (lambda m: parametrizations.orthogonal(linear(m)), 'a parametrization of its weight'),
    'old weight_norm': (lambda m: nn.utils.weight_norm(linear(m)), 'a hook of torch.nn.utils.weight_norm'),
    'pruned': (lambda m: prune.l1_unstructured(linear(m), 'weight', .5), 'a hook of torch.nn.utils.prune'),
    'pruned conv': (lambda m: prune.random_unstructured(conv(m), 'weight', .5), 'a hook of torch.nn.utils.prune'),
    'pruned all': (lambda m: prune.global_unstructured([(conv(m), 'weight'), (linear(m), 'weight')],
                                                       prune.L1Unstructured, amount=.3),
                   'a hook of torch.nn.utils.prune')}

def load_twice(m, state, prefix, *args): state.update({k: 2*v for k, v in state.items()})
def pruned_for_good(m):
    prune.l1_unstructured(linear(m), 'weight', .5)
    prune.remove(linear(m), 'weight')
def made_permanent(m):
    parametrizations.weight_norm(linear(m))
    parametrize.remove_parametrizations(linear(m), 'weight')

HARMLESS = {
    'backward': lambda m: m.register_full_backward_hook(lambda m, a, b: None),
    'backward of a layer': lambda m: conv(m).register_full_backward_pre_hook(lambda m, a: None),
    'load': lambda m: m.register_load_state_dict_pre_hook(load_twice),
    'load of a layer': lambda m: conv(m).register_load_state_dict_pre_hook(load_twice),
    'after load': lambda m: m.register_load_state_dict_post_hook(lambda m, keys: None),
    'removed': lambda m: m.register_forward_hook(twice).remove(),
    'pruned for good': pruned_for_good, 'made permanent': made_permanent}

def refused(call, kind, *words):
    with pytest.raises(kind) as e: call()
    said = str(e.value)
    assert '\n' not in said and 'remove it' in said
    for w in words: assert w in said, said

@pytest.mark.parametrize('make', [ours, converted])
@pytest.mark.parametrize('change', WRAPPED)
def test_a_wrapper_that_does_more_is_refused(change, make, tmp_path):
    "by its class; a network saved without it would answer otherwise"
    change, words = WRAPPED[change]
    model, words = change(make()), ('around the network', words)
    refused(lambda: save_network(model, tmp_path/'n.safetensors'), CheckpointError, *words)
    refused(lambda: pack(model, images=IMAGES), ExportError, *words)
    refused(lambda: to_onnx(model, tmp_path/'n.onnx'), ExportError, *words)
    assert not any(tmp_path.iterdir())

@pytest.mark.parametrize('convert', [binarize, remove_bn])
def test_no_conversion_loses_it_either(convert):
    for change, words in WRAPPED.values():
        refused(lambda change=change: convert(change(plain())), ValueError, 'around the network', words)

@pytest.mark.parametrize('make', [ours, converted])
@pytest.mark.parametrize('change', INSIDE)
def test_what_is_in_a_layer_is_refused(change, make, tmp_path):
    change, words = INSIDE[change]
    model = make()
    change(model)
    refused(lambda: save_network(model, tmp_path/'n.safetensors'), CheckpointError, words)
    refused(lambda: pack(model, images=IMAGES), ExportError, words)
    refused(lambda: save_network(nn.DataParallel(model), tmp_path/'n.safetensors'), CheckpointError, words)
    assert not any(tmp_path.iterdir())

@torch.no_grad()
@pytest.mark.parametrize('wrap', [lambda m: m, nn.DataParallel, compiled, averaged])
@pytest.mark.parametrize('make', [ours, converted])
@pytest.mark.parametrize('change', HARMLESS)
def test_what_changes_no_answer_stays(change, make, wrap, tmp_path):
    "the file and the packed network answer as the network does"
    model = make()
    HARMLESS[change](model)
    model = wrap(model)
    want = model(IMAGES)
    save_network(model, tmp_path/'n.safetensors')
    torch.testing.assert_close(load_network(tmp_path/'n.safetensors')(IMAGES), want, rtol=0, atol=1e-5)
    torch.testing.assert_close(pack(model, images=IMAGES)(IMAGES), want, rtol=1e-4, atol=1e-4)

def test_body_and_head_with_a_hook(tmp_path):
    "as fastai's vision_learner joins them"
    for door, kind in ((lambda m: save_network(m, tmp_path/'x'), CheckpointError), (pack, ExportError)):
        model = ours()
        model = nn.Sequential(model.body, model.head)
        model.register_state_dict_pre_hook(before_saving)
        refused(lambda door=door, model=model: door(model), kind, 'the network has a state_dict hook')

@pytest.mark.parametrize('whose', ['global', 'inside'])
def test_what_a_hook_was_given_stays(whose):
    "whether it is torch's hook of all modules, or of a layer inside the one that a block calls"
    from torch.nn.modules.module import register_module_forward_hook
    model, seen = ours(), []
    def keep(m, args, y):
        if isinstance(m, nn.Conv2d): seen.append((y, y.clone()))
    if whose == 'inside':
        model.body.block1.conv.register_forward_hook(keep)
        model.body.block1.conv = Passes(model.body.block1.conv)
    handle = register_module_forward_hook(keep) if whose == 'global' else None
    try: model(IMAGES)
    finally:
        if handle: handle.remove()
    assert seen and all(torch.equal(now, then) for now, then in seen)

class Passes(nn.Module):
    "a wrapper of a layer"
    def __init__(self, inner):
        super().__init__()
        self.inner = inner
    def forward(self, *args): return self.inner(*args)
