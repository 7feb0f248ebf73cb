"What devices that are not here would need: tensors that stand in for those of Apple's mps, GPUs that are named alone."
import copy
import sys
from pathlib import Path
from types import SimpleNamespace
import numpy as np
import pytest
import torch
from fastai.basics import DataLoaders, default_device
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
import fastai.callback.progress # noqa: F401, Learner.no_bar
from bnn_bn.convert import _Behind
from bnn_bn.core.arguments import as_device, as_float64
from bnn_bn.data import tensor_dls
from bnn_bn.folder import FolderDL
from bnn_bn.images.loaders import device_of
from bnn_bn.learner import any_process
from bnn_bn.layers.pixels import zero_point
from bnn_bn.layers.signed import NFConv2d
from bnn_bn.models import reactnet_nobn
from bnn_bn.onebit.fold import as_numpy
from bnn_bn.others.netgraph import _mean_of
from bnn_bn.others.normfree import _ledger_scale
from bnn_bn.others.whitened import WhitenConv2d, whiten
from bnn_bn.signal.ledger import signal_stats
from bnn_bn.signal.start import CalibratedStart, calibrate, start_parameters
from bnn_bn.train import plan, run
from bnn_bn.train.processes import checked_device
from bnn_bn.train.recipes import make_learner, make_recipe
from bnn_bn.train.run import evaluate
from bnn_bn.train.speed import step_seconds

BENCH = Path(__file__).parent.parent/'bench'

# Apple's mps --------------------------------------------------------------------------------------

class Metal(Tensor):
    "a tensor that says it is on mps: not in float64, nor in any sum with such a tensor"
    device = property(lambda self: torch.device('mps'))
    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        args = tuple(torch.device('cpu') if isinstance(a, torch.device) else a for a in args)
        out = super().__torch_function__(func, types, args, kwargs or {})
        if func is Tensor.cpu: return out.as_subclass(Tensor)
        if isinstance(out, cls) and out.dtype == torch.float64:
            raise TypeError("the MPS framework doesn't support float64")
        return out

def on_metal(x):
    "a tensor or a network there"
    if isinstance(x, Tensor): return x.as_subclass(Metal)
    x = copy.deepcopy(x)
    for m in x.modules():
        for k, p in m._parameters.items():
            if p is not None: m._parameters[k] = nn.Parameter(on_metal(p.detach()))
        for k, b in m._buffers.items():
            if b is not None: m._buffers[k] = on_metal(b)
    return x

def numbers(x): return torch.tensor(x.tolist() if hasattr(x, 'tolist') else x).double().nan_to_num(9.)

IMAGES = torch.randn(8, 1, 32, 32, generator=torch.Generator().manual_seed(0))

def net(**kw):
    torch.manual_seed(0)
    return reactnet_nobn('mini', n_out=10, in_chans=1, width=.125, **kw)

def calibrated(network, x):
    calibrate(network, x)
    return torch.cat([numbers(p.detach()).flatten() for p in start_parameters(network).values()])

@torch.no_grad()
def in_bytes(network, x):
    for m in network.modules():
        if hasattr(m, 'rest'): m.mean.fill_(.3), m.std.fill_(.25)
    return network.eval()(x)

def whitened(conv, x): return whiten(conv, x).weight.detach()
def measured(network, x): return signal_stats(network, x).select_dtypes('number').values
def evaluated(network, x): return evaluate(network, [(x, torch.arange(len(x)).as_subclass(type(x)))])['loss']
def scaled(conv, _): return _ledger_scale(conv, SimpleNamespace(target_std=1., input_std=1., sign_std=1.))
def mean_of_weights(conv, _): return _mean_of(nn.Sequential(conv), '0.weight')

def behind(conv, x):
    graph = torch.fx.symbolic_trace(nn.Sequential(conv))
    run = _Behind(graph, set(graph.graph.nodes) - {list(graph.graph.nodes)[-1]})
    run.run(x)
    return list(run.found.values())

def mean(): return torch.tensor([.3, .5])
def convolution(kind=nn.Conv2d):
    torch.manual_seed(0)
    return kind(1, 4, 3)

CASES = dict(
    float64=(mean, lambda t, _: as_float64(t)), zero_point=(mean, lambda t, _: zero_point(t)),
    as_numpy=(mean, lambda t, _: as_numpy(t)), calibrated=(net, calibrated), measured=(net, measured),
    in_bytes=(lambda: net(stem_bits=8), in_bytes), evaluated=(net, evaluated),
    whitened=(lambda: WhitenConv2d(1, 2), whitened), scaled=(lambda: convolution(NFConv2d), scaled),
    mean=(convolution, mean_of_weights), behind=(convolution, behind))

@pytest.mark.parametrize('name', CASES)
def test_the_same_numbers_where_there_is_no_float64(name):
    make, call = CASES[name]
    there = call(on_metal(make()), on_metal(IMAGES))
    assert torch.equal(numbers(call(make(), IMAGES)), numbers(there))

# GPUs ---------------------------------------------------------------------------------------------

@pytest.fixture
def gpus(monkeypatch):
    "two GPUs, as far as torch says; the devices that were waited for"
    waited = []
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    monkeypatch.setattr(torch.cuda, 'synchronize', lambda *args: waited.append(args))
    return waited

@pytest.mark.parametrize('device, says', [
    ('cuda', r"'cuda' is there and cannot be used \(out of memory\)"),
    ('cuda:1', "'cuda:1' is there"), ('cuda:2', 'this machine has 2 CUDA devices')])
def test_a_gpu_that_is_full_is_no_gpu_that_lacks(gpus, device, says, monkeypatch):
    def zeros(*args, **kwargs): raise torch.OutOfMemoryError('out of memory\nmore words')
    monkeypatch.setattr(torch, 'zeros', zeros)
    with pytest.raises(ValueError, match=says): as_device(device)

def test_a_process_without_a_gpu_is_told(gpus, monkeypatch):
    for rank in (0, 1):
        monkeypatch.setenv('LOCAL_RANK', str(rank))
        assert checked_device() == torch.device('cuda', rank)
    monkeypatch.setenv('LOCAL_RANK', '3')
    with pytest.raises(ValueError, match='^LOCAL_RANK=3: this machine has 2 CUDA devices'): checked_device()

@pytest.mark.parametrize('there, asked, same', [
    ('cuda:0', 'cuda:1', False), ('cuda:1', 'cuda:1', True), ('cuda:1', 'cuda', True), ('cpu', 'cuda', False)])
def test_loaders_of_another_gpu_are_refused(there, asked, same, monkeypatch):
    monkeypatch.setattr(run, 'checked_device', torch.device)
    monkeypatch.setattr(run, 'set_seed', lambda *args, **kwargs: None)
    dls = SimpleNamespace(device=torch.device(there))
    if same: assert run.prepared(make_recipe('fashion'), dls=dls, device=asked)[1] is dls
    else:
        with pytest.raises(ValueError, match=f"^device='{asked}': dls are on {there}"):
            run.prepared(make_recipe('fashion'), dls=dls, device=asked)

@pytest.mark.parametrize('name', ['train', 'sigprop'])
def test_a_clock_waits_for_the_gpu_that_works(gpus, name, monkeypatch):
    monkeypatch.syspath_prepend(BENCH)
    monkeypatch.delitem(sys.modules, name, raising=False)
    bench = __import__(name)
    if name == 'train': bench.clock_of('cuda:1')()
    else: bench.seconds(lambda: None, 'cuda:1')
    assert set(gpus) == {('cuda:1',)}

class Kinds(nn.Module):
    "notes the type of numbers that comes"
    def __init__(self):
        super().__init__()
        self.fc, self.found = nn.Linear(1, 1), []
    def forward(self, x):
        self.found.append(self.fc(x).dtype)
        return x

@pytest.mark.parametrize('amp, dtype', [('', torch.float32), ('bf16', torch.bfloat16)])
def test_a_validation_is_timed_as_it_will_run(gpus, amp, dtype, monkeypatch):
    "in half precision where the training is; the clock waits for a GPU before and after"
    learn = SimpleNamespace(model=Kinds(), dls=SimpleNamespace(valid=[(torch.zeros(2, 1), 0)]*4))
    plan._check_seconds(learn, amp)
    assert learn.model.found == [dtype]*2 and not gpus
    plan._seconds(torch.device('cuda', 1))
    assert gpus == [(torch.device('cuda', 1),)]

def test_chance_is_put_back_on_the_device_of_the_images_alone(gpus, recwarn):
    torch.manual_seed(0)
    first = torch.rand(1)
    torch.manual_seed(0)
    step_seconds(net(), IMAGES)
    torch.manual_seed(0)
    assert torch.rand(1) == first and not [w for w in recwarn if 'CUDA' in str(w.message)]

# Loaders ------------------------------------------------------------------------------------------

def test_loaders_of_torch_train_by_a_recipe():
    "they do not say a device; fastai's default is meant"
    x, y = torch.rand(32, 1, 32, 32), torch.arange(32) % 10
    dls = DataLoaders(*[DataLoader(TensorDataset(x, y), 16)]*2)
    dls.c = 10
    assert not hasattr(dls, 'device') and device_of(dls) == default_device()
    r, dls = run.prepared(make_recipe('fashion', bs=16, width=.125, epochs=1), dls=dls)
    learn = make_learner(r, dls)
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)
    assert len(learn.recorder.values) == 1
    assert plan.plan_of(r, dls, timed=1).device == str(default_device())

@pytest.mark.parametrize('make', [lambda v: v, np.array, torch.tensor, lambda v: [np.float64(v[0])]])
def test_batches_are_float32_whatever_the_statistics_are(make):
    x, y = torch.randint(0, 256, (8, 1, 32, 32), dtype=torch.uint8), torch.arange(8)
    dls = tensor_dls(x, y, x, y, bs=4, device='cpu', mean=make([.5]), std=make([.25]))
    assert dls.one_batch()[0].dtype == torch.float32
    assert torch.equal(dls.valid.one_batch()[0], (x.float() - 127.5)/63.75)
    folder = FolderDL([(x[0].expand(3, 32, 32), 0)]*4, bs=2, mean=make([.5]), std=make([.25]))
    assert folder.one_batch()[0].dtype == torch.float32

# Processes ----------------------------------------------------------------------------------------

def test_a_connection_alone_joins_no_trainings(monkeypatch):
    "processes that are connected, of which each trains a network of its own"
    monkeypatch.setattr(torch.distributed, 'is_initialized', lambda: True)
    def refuse(*args, **kwargs): raise AssertionError('asked the others')
    for name in ('all_reduce', 'all_gather', 'broadcast', 'get_backend', 'get_world_size'):
        monkeypatch.setattr(torch.distributed, name, refuse)
    learn = SimpleNamespace(cbs=[], model=net(), xb=(IMAGES,))
    assert any_process(True, learn) and not any_process(False, learn)
    start = CalibratedStart()
    start.learn = learn
    start.before_fit()
    start.before_batch()
    assert len(start.table)
    learn.cbs = [SimpleNamespace(accelerator=None)]
    with pytest.raises(AssertionError, match='asked the others'): any_process(True, learn)
