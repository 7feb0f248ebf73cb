"""Each public door names the argument that is wrong, and its value or what is wanted of it.

A row is a call that works and, for each of its arguments, values that no reader would take for
meaningful. One argument is replaced at a time. Nothing may be accepted, and no error may come out
of the depths without the argument's name.
"""
import json, math, re
from pathlib import Path
import numpy as np, pytest, torch
from fastai.basics import set_seed
from torch import nn
from torchvision.models import resnet18
from bnn_bn.agc import AdaptiveGradClip, adaptive_clip_grad, clipped_parameters, unitwise_norm
from bnn_bn.bench import take_turns
from bnn_bn.checkpoint import save_network
from bnn_bn.convert import binarize, remove_bn
from bnn_bn.core.arguments import plain_values
from bnn_bn.core.autocast import Autocast
from bnn_bn.data import fashion_mini, tensor_dls
from bnn_bn.deploy import classify, load_packed, pack
from bnn_bn.export import to_onnx
from bnn_bn.folder import folder_dls, imagenet_transforms
from bnn_bn.images.augment import cutout, pca_lighting, random_crop, random_flip
from bnn_bn.images.inventory import read_pictures, take_inventory
from bnn_bn.images.pictures import Preparation
from bnn_bn.layers.activations import RPReLU, RSign
from bnn_bn.layers.blocks import Spec
from bnn_bn.layers.conv import QuantConv2d, ScaledStdConv2d, standardize
from bnn_bn.layers.signed import SignConv2d
from bnn_bn.learner import DivergenceGuard, bnn_learner
from bnn_bn.models import create_model
from bnn_bn.signal.ledger import gamma_of, nf_betas, signal_stats
from bnn_bn.signal.probe import SigProp
from bnn_bn.signal.start import CalibratedStart, calibrate
from bnn_bn.signal.theory import predict_variance
from bnn_bn.targets.web import to_web
from bnn_bn.train.distill import Distill, distill_loss
from bnn_bn.train.ema import EMA, ema_decay
from bnn_bn.train.recipes import make_dls, make_recipe
from bnn_bn.train.run import evaluate
from bnn_bn.train.sizes import SmallFirst, parse_sizes
from bnn_bn.train.steps import Schedule
from bnn_bn.train.teachers import load_teacher
from bnn_bn.train.throughput import Throughput

nan, inf = math.nan, math.inf
COUNT = 0, -1, 2.5, '3', None, nan, True, []   # no whole number from 1 on
COUNT0 = -1, 2.5, '3', nan, True, []           # no whole number from 0 on
ABOVE = 0., -1., nan, inf, 'x', None, []       # no finite number above 0
LEAST = -1., nan, inf, 'x', None, []           # no finite number from 0 on
SHARE = -1., nan, 2., 'x', None                # no number from 0 to 1
SWITCH = 'no', 3, None, 2.5
FUNCTION = 3, 'flip'
WORD = 'zzz', 3, None

@pytest.fixture(scope='module')
def at_hand(tmp_path_factory):
    "small things that calls below need"
    set_seed(0)
    net = create_model('reactnet_mini_nobn', n_out=10, in_chans=1, width=.25)
    images = torch.randn(4, 1, 32, 32)
    folder = tmp_path_factory.mktemp('pictures')
    for part, name in (('train', 'a'), ('train', 'b'), ('val', 'a'), ('val', 'b')):
        (folder/part/name).mkdir(parents=True)
        for i in range(4): _save_picture(folder/part/name/f'{i}.png')
    packed = pack(net.eval(), size=[32, 32], mean=[.3], std=[.3])
    dls = fashion_mini(bs=8, n=40, device='cpu')
    return dict(net=net, images=images, folder=folder, packed=packed, dls=dls)

def _save_picture(file):
    from PIL import Image
    Image.new('RGB', (40, 40)).save(file)

def _bytes(n): return torch.zeros(n, 1, 8, 8, dtype=torch.uint8) + torch.arange(8, dtype=torch.uint8)

def _learner(h, **wrong): return bnn_learner(h['dls'], h['net'], **wrong)

def _fit_step(h, **wrong):
    learn = bnn_learner(h['dls'], h['net'])
    before = [p.clone() for p in h['net'].parameters()]
    try: learn.fit_step(**dict(epochs=1, lr=.01) | wrong)
    finally: assert all(map(torch.equal, before, h['net'].parameters())), 'something was trained'

def _fit_two(h, **wrong):
    learn = bnn_learner(h['dls'], h['net'])
    learn.fit_two_step(**dict(epochs=(1, 1), lr=.01, wd=(0., 0.)) | wrong)

def call(f, **good): return lambda h, **wrong: f(**good | wrong)

DOORS = {
    'fashion_mini': (call(fashion_mini, bs=8, n=40, device='cpu'),
        dict(bs=COUNT, size=COUNT, n=COUNT, device=('gpu', 'cuda:99'), augment=FUNCTION,
             mix=FUNCTION)),
    'tensor_dls': (
        call(tensor_dls, x=_bytes(8), y=torch.arange(8) % 2, xv=_bytes(4), yv=torch.arange(4) % 2,
             bs=4, device='cpu'),
        dict(bs=COUNT, augment=FUNCTION, mix=FUNCTION, vocab=(3,), device=('gpu',),
             mean=('x', nan, [nan], [1., 2.]), std=(0., [0.], [-1.], nan, 'x', [1., 2.]))),
    'folder_dls': (
        lambda h, **w: folder_dls(**dict(path=h['folder'], bs=4, size=32, workers=0, device='cpu') | w),
        dict(bs=COUNT, size=COUNT + ((32, 0),), workers=COUNT0, device=('gpu', 'cuda:99'),
             scale=(0, (0, 1), (1, .5), (.1, 2), (.1,), 'x', (nan, 1)), lighting=LEAST,
             rules=WORD, train=(3,), valid=(3,), seed=COUNT0)),
    'imagenet_transforms': (call(imagenet_transforms), dict(size=COUNT, scale=(3, 'x', (1, 0)))),
    'create_model': (call(create_model, name='reactnet_mini_nobn', n_out=10),
        dict(n_out=COUNT, in_chans=COUNT, width=ABOVE, alpha=ABOVE[:-2], gamma=ABOVE, stem=WORD)),
    'bnn_learner': (_learner,
        dict(clip_factor=(-1., nan, inf, 'x'), wd=(-1., nan, inf, 'x'), patience=COUNT,
             calibrated=('no', 3), loss_func=FUNCTION, splitter=FUNCTION)),
    'fit_step': (_fit_step,
        dict(epochs=COUNT, lr=ABOVE[:-1], wd=(-1., nan, inf, 'x'), schedule=WORD)),
    'fit_two_step': (_fit_two,
        dict(epochs=(0, (1,), (0, 1), (1, 2.5), None), lr=ABOVE[:-1], wd=(-1., (nan, 0), (1,)),
             schedule=WORD)),
    'Schedule': (call(Schedule, lr=.1), dict(lr=ABOVE[:-1] + (slice(nan, .1),))),
    'AdaptiveGradClip': (call(AdaptiveGradClip),
        dict(clip_factor=ABOVE, eps=ABOVE, norm_type=(0., -1., nan, 'x', None), exclude=(3,))),
    'adaptive_clip_grad': (
        call(adaptive_clip_grad, parameters=[torch.zeros(2, 2)]),
        dict(clip_factor=ABOVE, eps=ABOVE, norm_type=(0., nan, 'x'), parameters=(3, None, [3]))),
    'unitwise_norm': (call(unitwise_norm, x=torch.ones(2, 2)),
        dict(x=(None, 3, np.ones(3)), norm_type=(0., -1., nan, 'x', None))),
    'clipped_parameters': (lambda h, **w: clipped_parameters(h['net'], **w), dict(exclude=(3,))),
    'DivergenceGuard': (call(DivergenceGuard), dict(patience=COUNT)),
    'EMA': (call(EMA), dict(decay=(1, *SHARE), warmup=SWITCH, use_buffers=SWITCH)),
    'ema_decay': (call(ema_decay, n=1), dict(n=COUNT0, decay=SHARE)),
    'Autocast': (call(Autocast), dict(dtype=('x', torch.int8), max_skips=COUNT)),
    'Throughput': (call(Throughput), dict(warmup=COUNT0)),
    'SmallFirst': (call(SmallFirst), dict(sizes=('16', 3, None, (), (0,), (2.5,)))),
    'parse_sizes': (call(parse_sizes), dict(sizes=('x', '0', '16,', 3, None, []))),
    'Distill': (lambda h, **w: Distill(**dict(teacher=h['net']) | w),
        dict(T=ABOVE, label_weight=SHARE, mean=('x', nan), std=(0, 'x', nan))),
    'distill_loss': (
        call(distill_loss, student_logits=torch.ones(2, 3), teacher_logits=torch.ones(2, 3),
             label=torch.zeros(2, dtype=torch.long), label_weight=.5),
        dict(T=ABOVE, label_weight=SHARE, label_smoothing=SHARE)),
    'load_teacher': (call(load_teacher, name='torchvision/resnet18', pretrained=False),
        dict(name=(3, None), n_out=(0, -1, 2.5, 'x'), size=(0, -1, 2.5, 'x'))),
    'make_recipe': (call(make_recipe, name='cifar10-plus'),
        dict(epochs=COUNT, bs=COUNT, steps=COUNT, cutout=COUNT0, sizes=(3, '0'),
             lr=ABOVE, width=ABOVE, alpha=ABOVE, gamma=ABOVE, temperature=ABOVE, wd=LEAST,
             clip=LEAST, mixup=LEAST, ema=SHARE, smoothing=SHARE, label_weight=SHARE)),
    'make_dls': (lambda h, **w: make_dls(make_recipe('fashion', bs=8), device='cpu', **w),
        dict(images=COUNT[:4], holdout=COUNT0, valid_images=COUNT0)),
    'random_flip': (call(random_flip), dict(x=(None, np.ones(3), torch.ones(3)))),
    'random_crop': (call(random_crop, x=torch.ones(1, 1, 8, 8)),
        dict(x=(None, torch.ones(3)), pad=COUNT0)),
    'cutout': (call(cutout, x=torch.ones(1, 3, 8, 8), size=2),
        dict(x=(None,), size=COUNT, fill=('x', nan, [1, 2], None))),
    'pca_lighting': (call(pca_lighting, x=torch.ones(1, 3, 8, 8)),
        dict(x=(None, torch.ones(3, 8, 8)), std=LEAST, rule=WORD, noise=(3, torch.ones(3)))),
    'take_inventory': (lambda h, **w: take_inventory(h['folder']/'train', **w),
        dict(valid=(-1., nan, 1., 'x', None))),
    'read_pictures': (
        lambda h, **w: read_pictures(
            **dict(files=[h['folder']/'train/a/0.png'], prepare=Preparation((8, 8))) | w),
        dict(files=(None, 3), prepare=(None, 3), skip_bad=LEAST)),
    'Preparation': (call(Preparation, size=(8, 8)),
        dict(size=(None, 0, 'x', (0, 1), (2.5, 3), (1,)), channels=COUNT, method=WORD,
             filter=WORD, border=COUNT0, resized=('x', -1, (1, 2, 3)))),
    'QuantConv2d': (call(QuantConv2d, in_channels=4, out_channels=4, kernel_size=3),
        dict(in_channels=COUNT, out_channels=COUNT, groups=(*COUNT, 3), binary=SWITCH,
             kernel_size=(*COUNT, (3,), (3, 3, 3)), stride=COUNT, dilation=COUNT,
             padding=(-1, 2.5, 'x', nan), padding_mode=WORD, zero=(3, nan, 'x'), bias=SWITCH)),
    'ScaledStdConv2d': (call(ScaledStdConv2d, in_channels=4, out_channels=4, kernel_size=3),
        dict(gamma=ABOVE, floor=LEAST, eps=LEAST)),
    'SignConv2d': (call(SignConv2d, in_channels=4, out_channels=4, kernel_size=3),
        dict(in_channels=COUNT, kernel_size=COUNT, groups=COUNT, binary=('zzz', 3),
             quantizer=('zzz', 3))),
    'standardize': (call(standardize),
        dict(w=(torch.ones(4), torch.ones(4, 0, 3, 3), torch.ones(4, 4, dtype=torch.int64)))),
    'RSign': (call(RSign, ni=4),
        dict(ni=COUNT, sign=WORD, zero=(3, nan, 'x'), shift=SWITCH, binary=SWITCH)),
    'RPReLU': (call(RPReLU, ni=4), dict(ni=COUNT, slope=(nan, inf, 'x', None))),
    'Spec': (call(Spec), dict(norm=WORD, binary=WORD, alpha=ABOVE, gamma=ABOVE)),
    'nf_betas': (call(nf_betas, transitions=[True]),
        dict(transitions=(3, None, 'x'), alpha=ABOVE, branches=COUNT, rule=WORD)),
    'gamma_of': (call(gamma_of, act=torch.relu), dict(act=FUNCTION, latent=('zzz', 3))),
    'signal_stats': (lambda h, **w: signal_stats(**dict(data=h['images']) | w), dict(model=(None, 3))),
    'SigProp': (call(SigProp), dict(every=COUNT, images=(0, -1, 2.5, 'x'), draw=SWITCH)),
    'predict_variance': (lambda h, **w: predict_variance(**dict(model=h['net'], size=32) | w),
        dict(model=(None, 3), size=COUNT, n=COUNT, seed=COUNT0)),
    'calibrate': (lambda h, **w: calibrate(**dict(model=h['net'], images=h['images']) | w),
        dict(model=(None, 3), images=(None, 3, 'x', torch.ones(3)), again=SWITCH, frozen=SWITCH,
             parts=(3, 'gains', ('zzz',), ()))),
    'CalibratedStart': (call(CalibratedStart),
        dict(images=(1, *COUNT), parts=(3, 'gains', ('zzz',), ()))),
    'remove_bn': (call(remove_bn, model=resnet18()),
        dict(model=(None, 3, 'x'), alpha=ABOVE, bias=SWITCH, calibrate=SWITCH, binary=('zzz', 3))),
    'binarize': (call(binarize, model=resnet18()),
        dict(model=(None, 3), binary=WORD, quantizer=WORD, first=SWITCH, standardize=SWITCH,
             shift=SWITCH, norms=SWITCH, inplace=SWITCH)),
    'save_network': (lambda h, **w: save_network(**dict(path='x') | w), dict(model=(None, 3))),
    'pack': (lambda h, **w: pack(**dict(model=h['net']) | w),
        dict(threads=COUNT, way=('zzz', 3), zero_is_plus=SWITCH)),
    'load_packed': (call(load_packed, path='fashion-reactnet_mini'),
        dict(threads=COUNT, way=('zzz', 3))),
    'classify': (
        lambda h, **w: classify(**dict(packed=h['packed'], pictures=np.zeros((32, 32), np.uint8)) | w),
        dict(packed=(None, 3, 'x', nn.Linear(1, 1)), top=COUNT)),
    'to_onnx': (lambda h, **w: to_onnx(h['packed'], **w), dict(integers=SWITCH)),
    'to_web': (lambda h, **w: to_web(h['packed'], h['folder']/'web', **w), dict(force=SWITCH, float_too=SWITCH)),
    'evaluate': (lambda h, **w: evaluate(**dict(dl=h['dls'].valid) | w), dict(model=(None, 3))),
    'take_turns': (call(take_turns, rivals=[]), dict(rounds=COUNT, seconds=ABOVE, calls=COUNT)),
}
CASES = [(door, name, v) for door, (_, args) in DOORS.items() for name, vs in args.items() for v in vs]

def _id(v): return 'tensor' + str(tuple(v.shape)) if torch.is_tensor(v) else repr(v)[:30]

@pytest.mark.parametrize('door,name,value', CASES, ids=_id)
def test_a_wrong_argument_is_named(at_hand, door, name, value):
    f, _ = DOORS[door]
    with torch.random.fork_rng(), pytest.raises(ValueError) as e:
        f(at_hand, **{name: value})
    assert re.search(rf'\b{name}\b', str(e.value)), str(e.value) # a word of its own


@pytest.mark.parametrize('info', [dict(a=1, b=[.5, None, 'x'], c={'d': {'e': True}}), dict(a={3: 'cat', .5: 'dog'}),
                                  dict(a=np.float32(.25), b=torch.arange(3), c=Path('x')), dict(a=(1, (2, 3)))],
                         ids=str)
def test_what_a_file_keeps_is_what_it_gives_back(info):
    kept = plain_values(info)
    assert json.loads(json.dumps(kept, allow_nan=False)) == kept

@pytest.mark.parametrize('info,says', [
    (dict(x=nan), 'x=nan: a finite'), (dict(x=[1., -inf]), r'x\[1\]=-inf: a finite'),
    (dict(x=torch.tensor(nan)), 'x=nan'), (dict(x={(1, 2): 3}), r'x: key=\(1, 2\): a text'),
    (dict(x={'y': {None: 3}}), r"x\['y'\]: key=None: a text")], ids=str)
def test_what_no_file_can_keep_is_named(info, says):
    with pytest.raises(ValueError, match=says): plain_values(info)
