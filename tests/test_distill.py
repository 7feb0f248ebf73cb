"Distillation beyond one notebook: several processes, fastai's tensors, autocast, the real timm."
import importlib.util
import pytest, torch
import torch.distributed.nn # noqa: F401, its functions would keep a connection made before it
from torch import nn
from fastai.basics import Callback, set_seed
import fastai.callback.progress # noqa: F401, Learner.no_bar
from fastai.callback.fp16 import MixedPrecision
from fastai.torch_core import TensorBase, TensorImage
from bnn_bn.data import fashion_mini
from bnn_bn.train.distill import Distill, Teacher, distill_loss, load_teacher
from bnn_bn.learner import bnn_learner
from bnn_bn.models import reactnet_nobn
from bnn_bn.train.speed import Autocast

def make_teacher():
    layers = nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return Teacher(nn.Sequential(*layers, nn.Linear(8, 10)), [.3], [.3], size=28)

class Wrap(Callback):
    "DistributedDataParallel around the model while it trains, as fastai does it"
    order = 11
    def before_fit(self): self.learn.model = nn.parallel.DistributedDataParallel(self.learn.model)
    def after_fit(self): self.learn.model = self.learn.model.module

def make_learner(*cbs, teacher=None, n=192, device='cpu', **kw):
    set_seed(0, reproducible=True)
    model = reactnet_nobn('mini', n_out=10, in_chans=1, width=.25)
    distill = Distill(make_teacher() if teacher is None else teacher)
    dls = fashion_mini(bs=64, n=n, device=device, **kw)
    dls.train.rng.seed(0)
    return bnn_learner(dls, model, cbs=[distill, *cbs])

def fit(learn, epochs=2):
    with learn.no_bar(), learn.no_logging(): learn.fit(epochs, .01)
    return learn

def trained(*cbs): return fit(make_learner(*cbs))

def has_gloo():
    return torch.distributed.is_available() and torch.distributed.is_gloo_available()

@pytest.mark.skipif(not has_gloo(), reason='needs gloo')
def test_ddp(tmp_path):
    "one process behind DistributedDataParallel gives the weights of none"
    alone = trained()
    store = f'file://{tmp_path}/store'
    torch.distributed.init_process_group('gloo', init_method=store, rank=0, world_size=1)
    try: wrapped = trained(Wrap())
    finally: torch.distributed.destroy_process_group()
    pairs = zip(alone.model.named_parameters(), wrapped.model.parameters(), strict=True)
    for (n, p), q in pairs: torch.testing.assert_close(p, q, rtol=0, atol=1e-6, msg=n)

def test_teacher_stays_outside():
    "what is written of a learner holds no teacher; its answer draws no random number"
    learn = trained()
    d = learn.distill
    assert 'teacher' not in d.__getstate__()
    assert not [k for k in learn.model.state_dict() if 'teacher' in k]
    before = torch.get_rng_state()
    d.before_fit()
    d.answer(torch.zeros(4, 1, 32, 32))
    assert torch.equal(before, torch.get_rng_state())

def test_validation_without_teacher():
    "the validation loss is the learner's own"
    learn = trained()
    with learn.no_bar():
        loss = learn.validate()[0]
        learn.remove_cb(learn.distill)
        assert learn.validate()[0] == loss

def test_follows_the_batch():
    "accelerate may move the model after before_fit: teacher and statistics go where the batch is"
    d = trained().distill
    assert d._where.type == 'cpu'
    out = d.answer(torch.zeros(2, 1, 32, 32, device='meta')) # a device that no other tensor is on
    on = {t.device.type for t in (out, *d._stats, *d.teacher.parameters(), *d.teacher.buffers())}
    assert on == {'meta'}

class Seen:
    "What student and teacher take and give while they train."
    def __init__(self, learn):
        self.learn, self.images, self.dtypes = learn, {}, {}
        teacher = learn.distill.teacher
        learn.model.register_forward_pre_hook(self.takes('student'))
        teacher.register_forward_pre_hook(self.takes('teacher'))
        learn.model.body.stem.conv.register_forward_hook(self.gives('student'))
        teacher.model[0].register_forward_hook(self.gives('teacher'))

    def takes(self, who):
        def hook(m, args):
            if not self.learn.training: return
            if len(args[0]) > 1: self.images[who] = args[0].clone()
        return hook

    def gives(self, who):
        def hook(m, args, out):
            if not self.learn.training: return
            if len(out) > 1: self.dtypes[who] = out.dtype
        return hook

def change(x):
    "an augmentation that draws random numbers"
    return torch.where(torch.rand(len(x), 1, 1, 1) < .5, x.flip(3), 255 - x)

class Dim(Callback):
    "changes the batch after Distill has seen it, as smaller pictures do"
    order = 6
    def before_batch(self): self.learn.xb = (self.learn.xb[0]*.5,)

def test_same_picture():
    "the teacher gets the picture that the student got, augmented and changed by callbacks"
    teacher = Teacher(make_teacher().model) # takes the student's own images
    learn = make_learner(Dim(), teacher=teacher, augment=change)
    seen = Seen(learn)
    fit(learn, 1)
    assert torch.equal(seen.images['student'], seen.images['teacher'])
    dl = learn.dls.train
    plain = (dl.x[:64] - dl.mean)/dl.std*.5
    assert not torch.equal(seen.images['student'].sort(0)[0], plain.sort(0)[0])

class OnCPU(MixedPrecision):
    "fastai's callback, without the GPU that its autocast and its scaler need"
    def before_fit(self): self.autocast = torch.autocast('cpu', torch.bfloat16)
    def before_backward(self): pass
    def before_step(self): pass
    def after_step(self): pass
    def after_fit(self): pass

CASTS = {'none': (torch.float32, []), 'bfloat16': (torch.bfloat16, [Autocast(torch.bfloat16)]),
         'float16': (torch.float16, [Autocast(torch.float16)]),
         "fastai's": (torch.bfloat16, [OnCPU()])}

@pytest.mark.parametrize('case', CASTS)
def test_same_autocast(case):
    "the teacher computes in the student's dtype"
    dtype, cbs = CASTS[case]
    learn = make_learner(*cbs, n=64)
    seen = Seen(learn)
    fit(learn, 1)
    assert seen.dtypes == dict(student=dtype, teacher=dtype)

def test_fastais_tensors():
    "fastai's tensor subclasses pass, and the teacher sees plain ones"
    seen = []
    class See(nn.Module):
        def forward(self, x):
            seen.append(type(x))
            return x.mean((1, 2, 3))[:, None].repeat(1, 10)
    logits = torch.randn(4, 10, requires_grad=True)
    answer = Teacher(See())(TensorImage(torch.rand(4, 1, 32, 32)))
    distill_loss(logits.as_subclass(TensorBase), answer).backward()
    assert seen == [torch.Tensor] and logits.grad.isfinite().all()

@pytest.mark.skipif(importlib.util.find_spec('timm') is None, reason='timm is optional')
def test_timm():
    zero, one = torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)
    t = load_teacher('timm/resnet18.a1_in1k', pretrained=False)
    assert t.size == 224 and t.mean.shape == (1, 3, 1, 1)
    assert t(torch.zeros(1, 1, 32, 32), zero, one).shape == (1, 1000)
    assert load_teacher('resnet10t', n_out=10, pretrained=False).model.num_classes == 10
    with pytest.raises(ValueError, match='near it are'): load_teacher('timm/dm_nfnet_f9')
    with pytest.raises(ValueError, match='a new last layer is untrained'):
        load_teacher('timm/dm_nfnet_f0', n_out=10)
