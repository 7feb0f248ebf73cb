"Distillation beyond one notebook: behind DistributedDataParallel, with fastai's tensors, and with the real timm where it is installed."
import importlib.util
import pytest, torch
from torch import nn
from fastai.basics import Callback, set_seed
import fastai.callback.progress # noqa: F401, Learner.no_bar
from fastai.torch_core import TensorBase, TensorImage
from bnn_bn.data import fashion_mini
from bnn_bn.distill import Distill, Teacher, distill_loss, load_teacher
from bnn_bn.learner import bnn_learner
from bnn_bn.models import reactnet_nobn

def make_teacher(): return Teacher(nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)), [.3], [.3], size=28)

class Wrap(Callback):
    "DistributedDataParallel around the model while it trains, as fastai's DistributedTrainer does it"
    order = 11
    def before_fit(self): self.learn.model = nn.parallel.DistributedDataParallel(self.learn.model)
    def after_fit(self): self.learn.model = self.learn.model.module

def trained(*cbs):
    set_seed(0, reproducible=True)
    learn = bnn_learner(fashion_mini(bs=64, n=192, device='cpu'), reactnet_nobn('mini', n_out=10, in_chans=1, width=.25), cbs=[Distill(make_teacher()), *cbs])
    learn.dls.train.rng.seed(0)
    with learn.no_bar(), learn.no_logging(): learn.fit(2, .01)
    return learn

@pytest.mark.skipif(not torch.distributed.is_available() or not torch.distributed.is_gloo_available(), reason='needs gloo')
def test_ddp(tmp_path):
    "one process behind DistributedDataParallel gives the weights of none"
    alone = trained()
    torch.distributed.init_process_group('gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    try: wrapped = trained(Wrap())
    finally: torch.distributed.destroy_process_group()
    for (n, p), q in zip(alone.model.named_parameters(), wrapped.model.parameters(), strict=True): torch.testing.assert_close(p, q, rtol=0, atol=1e-6, msg=n)

def test_teacher_stays_outside():
    "what is written of a learner holds no teacher; validation is the same without it; its answer draws no random number"
    learn = trained()
    d = learn.distill
    assert 'teacher' not in d.__getstate__() and not [k for k in learn.model.state_dict() if 'teacher' in k]
    before = torch.get_rng_state()
    d.before_fit(); d.answer(torch.zeros(4, 1, 32, 32))
    assert torch.equal(before, torch.get_rng_state())
    with learn.no_bar():
        loss = learn.validate()[0]
        learn.remove_cb(d)
        assert learn.validate()[0] == loss

def test_follows_the_batch():
    "accelerate may move the model after before_fit: teacher and statistics go where the batch is"
    d = trained().distill
    d._where, d._stats = torch.device('meta'), tuple(s.to('cpu') for s in d._stats) # as if before_fit had seen another device
    assert d.answer(torch.zeros(2, 1, 32, 32)).device.type == d._where.type == 'cpu'

def test_fastais_tensors():
    "fastai's tensor subclasses pass, and the teacher sees plain ones"
    seen = []
    class See(nn.Module):
        def forward(self, x): seen.append(type(x)); return x.mean((1, 2, 3))[:, None].repeat(1, 10)
    logits = torch.randn(4, 10, requires_grad=True)
    distill_loss(logits.as_subclass(TensorBase), Teacher(See())(TensorImage(torch.rand(4, 1, 32, 32)))).backward()
    assert seen == [torch.Tensor] and logits.grad.isfinite().all()

@pytest.mark.skipif(importlib.util.find_spec('timm') is None, reason='timm is optional')
def test_timm():
    t, zero, one = load_teacher('timm/resnet18.a1_in1k', pretrained=False), torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)
    assert t.size == 224 and t.mean.shape == (1, 3, 1, 1) and t(torch.zeros(1, 1, 32, 32), zero, one).shape == (1, 1000)
    assert load_teacher('resnet10t', n_out=10, pretrained=False).model.num_classes == 10
    with pytest.raises(ValueError, match='near it are'): load_teacher('timm/dm_nfnet_f9')
    with pytest.raises(ValueError, match='a new last layer is untrained'): load_teacher('timm/dm_nfnet_f0', n_out=10)
