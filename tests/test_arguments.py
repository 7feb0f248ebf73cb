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
from bnn_bn.checkpoint import load_network, save_network
from bnn_bn.convert import binarize, remove_bn
from bnn_bn.core.arguments import plain_values
from bnn_bn.core.autocast import Autocast
from bnn_bn.cost import summary
from bnn_bn.data import TensorDL, fashion_mini, tensor_dls
from bnn_bn.deploy import classify, load_packed, pack
from bnn_bn.export import run_onnx, to_onnx
from bnn_bn.onebit.fold import fold
from bnn_bn.folder import folder_dls, imagenet_transforms
from bnn_bn.images.augment import cutout, pca_lighting, random_crop, random_flip
from bnn_bn.images.inventory import read_pictures, take_inventory
from bnn_bn.images.pictures import Preparation
from bnn_bn.layers.activations import RPReLU, RSign
from bnn_bn.layers.blocks import Spec
from bnn_bn.layers.conv import QuantConv2d, ScaledStdConv2d, standardize
from bnn_bn.layers.pixels import set_pixels
from bnn_bn.layers.signed import ScaleShift, SignConv2d
from bnn_bn.learner import DivergenceGuard, bnn_learner
from bnn_bn.models import check_side, create_model, list_models
from bnn_bn.signal.ledger import gamma_of, nf_betas, plot_sigprop, signal_stats
from bnn_bn.signal.probe import SigProp, probe, ste_cosine
from bnn_bn.signal.start import CalibratedStart, calibrate
from bnn_bn.signal.theory import predict_variance
from bnn_bn.targets.export_c import to_c
from bnn_bn.targets.web import to_web
from bnn_bn.train.demo import train_one
from bnn_bn.train.distill import Distill, distill_loss
from bnn_bn.train.ema import EMA, ema_decay
from bnn_bn.train.own import picture_dls
from bnn_bn.train.recipes import make_dls, make_learner, make_recipe
from bnn_bn.train.resume import ExactResume
from bnn_bn.train.run import evaluate
from bnn_bn.train.sizes import SmallFirst, parse_sizes
from bnn_bn.train.steps import Best, Schedule
from bnn_bn.train.teachers import load_teacher
from bnn_bn.train.throughput import Throughput
from bnn_bn.train.vision import bnn_vision_learner, nobn_head

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
    'fold': (lambda h, **w: fold(h['net'], **w), dict(zero_is_plus=SWITCH)),
    'list_models': (call(list_models), dict(pretrained=SWITCH)),
    'check_side': (call(check_side, backbone='reactnet_mini', stem='cifar', side=32), dict(backbone=WORD)),
    'TensorDL': (call(TensorDL, x=_bytes(8), y=torch.arange(8) % 2, bs=4),
        dict(mean=('x', nan, [nan], [], [1., 2.]), std=('x', [], [1., 2.]))),
    'picture_dls': (
        lambda h, **w: picture_dls(**dict(path=h['folder'], size=32, bs=4, device='cpu') | w),
        dict(size=COUNT, bs=(*COUNT, inf), seed=COUNT0, augment=('flip', False))),
    'bnn_learner': (_learner,
        dict(clip_factor=(-1., nan, inf, 'x'), wd=(-1., nan, inf, 'x'), patience=COUNT,
             calibrated=('no', 3), loss_func=FUNCTION, splitter=FUNCTION)),
    'fit_step': (_fit_step,
        dict(epochs=COUNT, lr=ABOVE[:-1], wd=(-1., nan, inf, 'x'), schedule=WORD)),
    'fit_two_step': (_fit_two,
        dict(epochs=(0, (1,), (0, 1), (1, 2.5), None), lr=ABOVE[:-1], wd=(-1., (nan, 0), (1,)),
             schedule=WORD)),
    'Schedule': (call(Schedule, lr=.1), dict(lr=ABOVE + (slice(nan, .1), ()))),
    'Best': (call(Best), dict(facts=(3, 'x', [1]))),
    'ExactResume': (call(ExactResume, file='x.safetensors'),
        dict(steps=COUNT[:4] + COUNT[5:], resume=SWITCH, info=(3, 'x', [1], dict(a=nn)))),
    'make_learner': (lambda h, **w: make_learner(make_recipe('fashion', bs=8), h['dls'], **w),
        dict(amp=WORD, compiled=SWITCH)),
    'nobn_head': (call(nobn_head, nf=8, n_out=3),
        dict(nf=COUNT, n_out=COUNT, lin_ftrs=(512, None, 'x', [0]), ps=SHARE, concat_pool=SWITCH)),
    'bnn_vision_learner': (
        lambda h, **w: bnn_vision_learner(**dict(dls=h['dls'], arch='reactnet_mini_nobn', pretrained=False) | w),
        dict(dls=(None, 3, 'x'), n_out=(0, -1, 2.5, 'x', True))),
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
        dict(teacher=(None, 3), T=ABOVE, label_weight=SHARE, mean=('x', nan), std=(0, 'x', nan))),
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
    'RPReLU': (call(RPReLU, ni=4), dict(ni=COUNT, slope=(nan, inf, 'x', None), inplace=SWITCH)),
    'ScaleShift': (call(ScaleShift, ni=4), dict(ni=COUNT)),
    'set_pixels': (call(set_pixels, mean=.5, std=.5), dict(conv=(None, nn.Conv2d(3, 8, 3)))),
    'Spec': (call(Spec), dict(norm=WORD, binary=WORD, alpha=ABOVE, gamma=ABOVE, own_act=FUNCTION,
                              rules=(None, 'default'), quantizer=('ste_sign',))),
    'nf_betas': (call(nf_betas, transitions=[True]),
        dict(transitions=(3, None, 'x'), alpha=ABOVE, branches=COUNT, rule=WORD)),
    'gamma_of': (call(gamma_of, act=torch.relu), dict(act=FUNCTION, latent=('zzz', 3))),
    'signal_stats': (lambda h, **w: signal_stats(**dict(data=h['images']) | w), dict(model=(None, 3))),
    'images to measure': (lambda h, data: signal_stats(h['net'], data),
        dict(data=(None, 3, 'x', [], {}, np.ones((2, 1, 32, 32), np.float32)))),
    'plot_sigprop': (lambda h, **w: plot_sigprop(h['net'], h['images'], **w), dict(stat=('mean', None))),
    'probe': (lambda h, **w: probe(h['net'], yb=torch.arange(4), **w), dict(xb=(None, np.ones(3), _bytes(2)))),
    'ste_cosine': (lambda h, **w: ste_cosine(h['net'], yb=torch.arange(4), **w),
        dict(xb=(None, np.ones(3), _bytes(2)))),
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
             shift=SWITCH, norms=SWITCH, inplace=SWITCH, skip=(None, 3))),
    'save_network': (lambda h, **w: save_network(**dict(path='x') | w), dict(model=(None, 3))),
    'pack': (lambda h, **w: pack(**dict(model=h['net']) | w),
        dict(threads=COUNT, way=('zzz', 3), zero_is_plus=SWITCH)),
    'load_packed': (call(load_packed, path='fashion-reactnet_mini'),
        dict(threads=COUNT, way=('zzz', 3))),
    'classify': (
        lambda h, **w: classify(**dict(packed=h['packed'], pictures=np.zeros((32, 32), np.uint8)) | w),
        dict(packed=(None, 3, 'x', nn.Linear(1, 1)), top=COUNT)),
    'to_onnx': (lambda h, **w: to_onnx(h['packed'], **w), dict(integers=SWITCH)),
    'run_onnx': (lambda h, **w: run_onnx(to_onnx(h['packed']), h['images'].numpy(), **w), dict(fuse=SWITCH)),
    'to_c': (lambda h, **w: to_c(h['packed'], h['folder']/'net.c', **w),
        dict(size=(3, 'x', (0, 32), (32.5, 32), (True, 1)), ram=COUNT[:4] + COUNT[5:])),
    'summary': (lambda h, **w: summary(h['net'], **w), dict(input_shape=(3, (), (1, 0, 32), (1., 32, 32)))),
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


def _fitted(h, decay=None, **given):
    "weights after two steps"
    dls = tensor_dls(_bytes(4), torch.arange(4), _bytes(4), torch.arange(4), bs=2, device='cpu')
    net = create_model('reactnet_mini_nobn', n_out=4, in_chans=1, width=.25, stem='cifar')
    net.load_state_dict({k: torch.full_like(v, .1) for k, v in net.state_dict().items()})
    dls.train.rng.seed(0)
    learn = bnn_learner(dls, net, wd=decay)
    with learn.no_bar(), learn.no_logging(): learn.fit_step(**dict(epochs=1, lr=.25) | given)
    return [p.tolist() for p in net.parameters()]

def _kept(h, **given):
    "what a file of a network of these arguments holds"
    net = create_model('reactnet_mini_nobn', **dict(n_out=3, width=.25, stem='cifar') | given)
    return load_network(save_network(net, h['folder']/'kept.safetensors')).cfg

def _order(dls): return dls.train.get_idxs()

SAME = { # name -> function of a number, and that number
    'n_out': (lambda h, v: _kept(h, n_out=v), 3), 'in_chans': (lambda h, v: _kept(h, in_chans=v), 1),
    'width': (lambda h, v: _kept(h, width=v), .5), 'alpha': (lambda h, v: _kept(h, alpha=v), .25),
    'gamma': (lambda h, v: _kept(h, gamma=v), 1.25),
    'stem': (lambda h, v: _kept(h, stem=(v, 1, False)), 3),
    'stride of the stem': (lambda h, v: pack(create_model(
        'reactnet_mini_nobn', n_out=3, width=.25, stem=(3, v, False)).eval()).graph.nodes[0].stride, 1),
    'slope': (lambda h, v: RPReLU(4, slope=v).slope.tolist(), 0),
    'lr': (lambda h, v: _fitted(h, lr=v), .25), 'lr of groups': (lambda h, v: _fitted(h, lr=[v, v]), .25),
    'slice': (lambda h, v: _fitted(h, lr=slice(v)), .25), 'wd': (lambda h, v: _fitted(h, wd=v), .5),
    'wd of the Learner': (_fitted, .5),
    'seed of predict_variance': (lambda h, v: predict_variance(h['net'], 32, 2, seed=v).to_csv(), 3),
    'seed of picture_dls': (lambda h, v: _order(picture_dls(h['folder'], 32, 4, device='cpu', seed=v)), 3),
    'seed of folder_dls': (lambda h, v: _order(
        folder_dls(h['folder'], 4, 32, workers=0, device='cpu', seed=v)), 3),
    'seed of make_dls': (lambda h, v: _order(make_dls(make_recipe('fashion', bs=8), device='cpu', seed=v)), 3),
    'seed of train_one': (lambda h, v: train_one('linear', h['dls'], seed=v, epochs=1)[1]['seed'], 3),
    'recipe': (lambda h, v: json.dumps(vars(make_recipe('fashion', lr=v, width=v, clip=v))), .25),
    'bs of a recipe': (lambda h, v: json.dumps(vars(make_recipe('fashion', bs=v, cutout=v))), 8),
    'input_shape': (lambda h, v: summary(h['net'], (1, v, v)).to_csv(), 32),
    'shape': (lambda h, v: to_onnx(h['packed'], shape=(1, v, v)).SerializeToString(), 32),
    'size': (lambda h, v: to_c(h['packed'], h['folder']/'n.c', size=(v, v)).read_text(), 32),
    'ram': (lambda h, v: to_c(h['packed'], h['folder']/'n.c', ram=v).read_text(), 10**6),
    'top': (lambda h, v: classify(h['packed'], np.zeros((32, 32), np.uint8), top=v), 2),
    'example': (lambda h, v: str(binarize(resnet18(), example=(v, 3, 64, 64))), 2),
}
WHOLE, REAL = (np.int64, np.int32, np.uint8), (np.float64, np.float32, np.float16)

@pytest.mark.parametrize('name', SAME)
def test_a_number_of_numpy_is_a_number(at_hand, name):
    f, v = SAME[name]
    kinds = [k for k in (WHOLE if isinstance(v, int) else REAL) if k is not np.uint8 or v < 256]
    with torch.random.fork_rng():
        wanted = f(at_hand, v)
        for kind in kinds: assert f(at_hand, kind(v)) == wanted, kind

def test_what_needs_a_folder_says_so(at_hand):
    learn = bnn_learner(at_hand['dls'], at_hand['net'])
    with pytest.raises(TypeError, match='best is .*needs out='): learn.fit_step(1, .01, best='best.safetensors')

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
