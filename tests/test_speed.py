"The callbacks of `speed` with the real guard of `learner`, which their notebook may not import, and in a pickle."
import io, pickle
import pytest, torch
import fastai.callback.progress # noqa: F401, Learner.no_bar
from fastai.basics import Callback, set_seed
from bnn_bn.agc import AdaptiveGradClip
from bnn_bn.data import fashion_mini
from bnn_bn.learner import DivergenceError, DivergenceGuard, bnn_learner
from bnn_bn.models import reactnet_nobn
from bnn_bn.speed import EMA, Autocast, Compile, Throughput, fused

pytestmark = pytest.mark.filterwarnings('ignore:Autocast. cpu has no instructions')

class Overflow(Callback):
    "make gradients infinite from some step on, for so many steps"
    order = 0
    def __init__(self, start, stop): self.start, self.stop = start, stop
    def before_step(self):
        if self.start <= self.train_iter < self.stop: next(self.learn.model.parameters()).grad.view(-1)[0] = float('inf')

def learner(*cbs, n=128, patience=3):
    set_seed(0, reproducible=True)
    return bnn_learner(fashion_mini(bs=16, n=n, device='cpu'), reactnet_nobn('mini', n_out=10, in_chans=1, width=.125), opt=fused(), patience=patience, cbs=cbs)

def fit(learn, epochs=1):
    learn.dls.loaders[1] = [next(iter(learn.dls[1]))]
    with learn.no_bar(), learn.no_logging(): learn.fit(epochs, .001)
    return learn

def test_order(): assert Autocast.order < DivergenceGuard.order < AdaptiveGradClip.order < Compile.order < EMA.order < Throughput.order

def test_overflows_are_no_divergence():
    learn = fit(learner(Autocast(torch.float16, init_scale=1024.), Overflow(2, 5), EMA()))
    assert learn.autocast.skipped == 3 and learn.autocast.scaler.get_scale() == 128 and learn.divergence_guard.log == []
    assert learn.ema.state_dict()['n'] == 8 - 3
    assert all(p.isfinite().all() for p in learn.model.parameters())

def test_the_guard_has_the_last_word():
    learn = learner(Autocast(torch.float16, init_scale=2.), Overflow(1, 99))
    with pytest.raises(DivergenceError): fit(learn)
    assert learn.autocast.skipped == 1 and len(learn.divergence_guard.log) == 3      # 2 to 1; at 1/2 the guard takes over
    assert all(p.isfinite().all() for p in learn.model.parameters())

@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_state_and_pickle(dtype):
    "states hold tensors and plain Python, and a callback can be pickled"
    learn = fit(learner(Autocast(dtype), EMA(.9), Throughput(warmup=0)))
    for cb in (learn.autocast, learn.ema, learn.throughput):
        if hasattr(type(cb), 'state_dict'): # an instance passes unknown names on to the Learner, and that to the model
            f = io.BytesIO(); torch.save(cb.state_dict(), f); f.seek(0)
            type(cb)().load_state_dict(torch.load(f, weights_only=True))
        learn.remove_cb(cb)
        again = pickle.loads(pickle.dumps(cb))
        if isinstance(cb, EMA): assert all(torch.equal(a, b) for a, b in zip(again.model.parameters(), cb.model.parameters()))
