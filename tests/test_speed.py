"The callbacks of `speed` with the real guard of `learner`, and in a pickle."
import io, pickle, warnings, weakref
from dataclasses import replace
from types import SimpleNamespace
import pytest, torch
import fastai.callback.progress # noqa: F401, Learner.no_bar
from fastai.basics import Callback, set_seed
from bnn_bn.agc import AdaptiveGradClip
from bnn_bn.data import fashion_mini
from bnn_bn.learner import DivergenceError, DivergenceGuard, bnn_learner
from bnn_bn.models import reactnet_nobn
from bnn_bn.train.recipes import make_dls, make_learner, recipes
from bnn_bn.train.speed import EMA, Autocast, Compile, Throughput, fused

pytestmark = pytest.mark.filterwarnings('ignore:Autocast. cpu has no instructions')

class Overflow(Callback):
    "make gradients infinite from some step on, for so many steps"
    order = 0
    def __init__(self, start, stop): self.start, self.stop = start, stop
    def before_step(self):
        if not self.start <= self.train_iter < self.stop: return
        next(self.learn.model.parameters()).grad.view(-1)[0] = float('inf')

def learner(*cbs, n=128, patience=3):
    set_seed(0, reproducible=True)
    dls = fashion_mini(bs=16, n=n, device='cpu')
    net = reactnet_nobn('mini', n_out=10, in_chans=1, width=.125)
    return bnn_learner(dls, net, opt=fused(), patience=patience, cbs=cbs)

def fit(learn, epochs=1):
    learn.dls.loaders[1] = [next(iter(learn.dls[1]))]
    with learn.no_bar(), learn.no_logging(): learn.fit(epochs, .001)
    return learn

def test_order():
    callbacks = Autocast, DivergenceGuard, AdaptiveGradClip, Compile, EMA, Throughput
    order = [c.order for c in callbacks]
    assert order == sorted(order)

def test_overflows_are_no_divergence():
    learn = fit(learner(Autocast(torch.float16, init_scale=1024.), Overflow(2, 5), EMA()))
    assert learn.autocast.skipped == 3 and learn.autocast.scaler.get_scale() == 128
    assert learn.divergence_guard.log == []
    assert learn.ema.state_dict()['n'] == 8 - 3
    assert all(p.isfinite().all() for p in learn.model.parameters())

def test_the_guard_has_the_last_word():
    learn = learner(Autocast(torch.float16, init_scale=2.), Overflow(1, 99))
    with pytest.raises(DivergenceError): fit(learn)
    assert learn.autocast.skipped == 1                       # 2 to 1; at 1/2 the guard takes over
    assert len(learn.divergence_guard.log) == 3
    assert all(p.isfinite().all() for p in learn.model.parameters())

@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_state_and_pickle(dtype):
    "states hold tensors and plain Python, and a callback can be pickled"
    learn = fit(learner(Autocast(dtype), EMA(.9), Throughput(warmup=0)))
    for cb in (learn.autocast, learn.ema, learn.throughput):
        if hasattr(type(cb), 'state_dict'): # an instance passes unknown names on to the model
            f = io.BytesIO()
            torch.save(cb.state_dict(), f)
            f.seek(0)
            type(cb)().load_state_dict(torch.load(f, weights_only=True))
        learn.remove_cb(cb)
        again = pickle.loads(pickle.dumps(cb))
        if not isinstance(cb, EMA): continue
        pairs = zip(again.model.parameters(), cb.model.parameters())
        assert all(torch.equal(a, b) for a, b in pairs)

def counted(graphs):
    "a backend that keeps the graphs it gets, and runs them as they are"
    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward
    return backend

def two_steps(*cbs):
    "a recipe with three sizes of picture, a mean of weights and two steps, on 48 pictures"
    r = replace(recipes['fashion'], width=.125, bs=16, epochs=3, steps=2)
    r = replace(r, sizes='8,16,32', ema=.9, start='calibrated')
    set_seed(0, reproducible=True)
    learn = make_learner(r, make_dls(r, device='cpu', images=48, holdout=24), cbs=list(cbs))
    with learn.no_bar(), learn.no_logging(): learn.fit_two_step((3, 3), .01)
    return learn

def test_graphs_of_a_run():
    "one for each size and one for validation in a step; a short batch, EMA, a second run add none"
    torch._dynamo.reset()
    graphs, plain = [], two_steps()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        learn = two_steps(Compile(backend=counted(graphs)))
        n = len(graphs)
        two_steps(Compile(backend=counted(graphs)))
    assert n == 2*(3 + 1), n
    assert not [w for w in caught if 'Compile' in str(w.message)]
    pairs = zip(learn.model.parameters(), plain.model.parameters())
    assert all(torch.equal(a, b) for a, b in pairs)

def test_short_batch_at_a_resume():
    "a training that goes on in the short last batch of an epoch does not take it for a whole one"
    def batch(n, i, **dl):
        xb, dl = (torch.zeros(n, 1, 4, 4),), SimpleNamespace(**dl)
        compile.learn = SimpleNamespace(training=True, xb=xb, iter=i, dl=dl)
        return compile.is_whole()
    compile = Compile()
    compile.sizes = {}
    assert not batch(8, 3, bs=16)
    assert batch(16, 0, bs=16) and batch(16, 1, bs=16) and not batch(8, 3, bs=16)
    compile.sizes = {}
    assert batch(8, 3, bs=16, shard=(0, 2)) and not batch(4, 4, bs=16, shard=(0, 2)) # two processes
    compile.sizes = {}
    assert batch(5, 0, bs=16) and batch(5, 1, bs=16) # all are that short
    compile.sizes = {}
    assert batch(5, 2) # a loader that does not say

def test_compile_with_guard_and_ema():
    "a compiler that fails: one warning, and the bits of a fit without it"
    def broken(graph, inputs): raise MemoryError('out of memory')
    torch._dynamo.reset()
    with pytest.warns(UserWarning, match='a compiled step failed') as caught:
        learn = fit(learner(Compile(backend=broken), EMA(), Autocast()), 2)
    assert len([w for w in caught if 'Compile' in str(w.message)]) == 1
    plain = fit(learner(EMA(), Autocast()), 2)
    for a, b in ((learn.model, plain.model), (learn.ema.model, plain.ema.model)):
        assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters()))

def test_a_compiled_step_that_failed_keeps_no_memory():
    "neither while the batch runs without, nor after the fit; also that of an error behind the error"
    torch._dynamo.reset()
    held, alive = [], []
    def fails():
        first = torch.zeros(1000)
        held.append(weakref.ref(first))
        raise MemoryError('out of memory')
    def backend(graph, inputs):
        def call(*args):
            second = torch.zeros(1000)
            held.append(weakref.ref(second))
            try: fails()
            except MemoryError as e: raise RuntimeError('failed') from e
        return call
    class Look(Callback):
        def after_pred(self): alive.extend(w() is not None for w in held)
    with pytest.warns(UserWarning, match='a compiled step failed'):
        learn = fit(learner(Compile(backend=backend), Look()))
    assert held and isinstance(learn.compile.error, RuntimeError)
    assert not any(alive) and not any(w() is not None for w in held)
