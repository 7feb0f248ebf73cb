"What was found wrong beside the users' cases, by the same kinds of fault: each a property, on small networks."
import copy
import pickle
import pytest
import torch
from fastai.basics import Adam, SGD, load_learner
from fastai.optimizer import ranger
import fastai.callback.progress # noqa: F401, Learner.no_bar
import fastai.callback.schedule # noqa: F401, Learner.fit_one_cycle
from torch import nn
from torch.nn.utils import prune
from folders import noise_folder
from bnn_bn.checkpoint import load_network, save_network
from bnn_bn.convert import binarize, drop_bn, remove_bn
from bnn_bn.data import fashion_mini, tensor_dls
from bnn_bn.deploy import as_module, classify, pack
from bnn_bn.folder import folder_dls
from bnn_bn.learner import bnn_learner
from bnn_bn.models import reactnet_nobn
from bnn_bn.train.own import picture_dls

IMAGES = torch.randn(4, 1, 32, 32, generator=torch.Generator().manual_seed(0))

def mini(**kw):
    torch.manual_seed(0)
    return reactnet_nobn('mini', **(dict(n_out=10, in_chans=1, width=.125) | kw)).eval()

@pytest.fixture(scope='module')
def dls(): # an epoch of a second
    data = fashion_mini(device='cpu')
    x, y = data.train.x[:48], data.train.y[:48]
    return tensor_dls(x, y, x[:16], y[:16], bs=16, device='cpu', vocab=data.vocab)

def learner(dls, folder, **kw):
    learn = bnn_learner(dls, mini(n_out=dls.c, in_chans=dls.one_batch()[0].shape[1]), path=folder, **kw)
    learn.logger = lambda row: None
    learn.remove_cbs(learn.cbs.filter(lambda c: c.name == 'progress'))
    return learn

# optimizers ------------------------------------------------------------------------------------

@pytest.mark.parametrize('opt', [Adam, SGD, ranger, torch.optim.Adam])
def test_a_body_that_was_trained_rests_once_it_is_frozen(dls, opt, tmp_path):
    learn = learner(dls, tmp_path, opt_func=opt)
    learn.fit(1, 1e-2)
    learn.freeze()
    before = copy.deepcopy(learn.model.state_dict())
    learn.fit(1, 1e-2, wd=.1)
    moved = {n for n, p in learn.model.state_dict().items() if not torch.equal(p, before[n])}
    assert moved == {'head.fc.weight', 'head.fc.bias'}

@pytest.mark.parametrize('name', ['Adagrad', 'Adadelta', 'ASGD', 'RMSprop'])
def test_schedules_take_optimizers_without_momentum(dls, name, tmp_path):
    learn = learner(dls, tmp_path, opt_func=getattr(torch.optim, name))
    learn.fit_one_cycle(1, slice(1e-3), wd=.01)
    assert [h['wd'] for h in learn.opt.hypers] == [.01, .01]

# files of Learners -----------------------------------------------------------------------------

def loaders(kind, folder):
    if kind == 'tensors': return tensor_dls(*[t[:20] for t in 2*_grey()], bs=10, device='cpu')
    noise_folder(folder, dict(train=10, val=3), ('left', 'right'), sides=(30, 60))
    if kind == 'folder': return folder_dls(folder, bs=10, size=32, workers=0, device='cpu', seed=0)
    if kind == 'own': return picture_dls(folder, size=32, bs=10, device='cpu')
    from fastai.vision.all import ImageDataLoaders, Resize
    return ImageDataLoaders.from_folder(folder, valid='val', item_tfms=Resize(32, 'squish'), bs=10,
                                        device='cpu', num_workers=0)

def _grey():
    data = fashion_mini(device='cpu')
    return data.valid.x, data.valid.y % 2

@pytest.mark.parametrize('kind', ['tensors', 'folder', 'own', 'fastai'])
def test_a_learner_that_was_read_is_packed(kind, tmp_path):
    "its loaders are empty; the file labels a picture as the Learner does"
    data = loaders(kind, tmp_path)
    learner(data, tmp_path).export('l.pkl')
    learn = load_learner(tmp_path/'l.pkl')
    picture = data.valid_ds.items[0]
    picture = picture[0] if isinstance(picture, tuple) else picture
    packed = pack(learn)
    with learn.no_bar(): label, _, p = learn.predict(picture)
    (found, share), = classify(packed, picture)[0]
    assert found == str(label) and share == pytest.approx(p.max().item(), abs=1e-4)
    assert packed.info['size'] == [32, 32] and packed.info['classes'] == [str(v) for v in learn.dls.vocab]

def test_own_pictures_can_be_pickled(tmp_path):
    noise_folder(tmp_path, dict(train=4, val=4), ('left', 'right'), sides=(30, 60))
    data = pickle.loads(pickle.dumps(picture_dls(tmp_path, size=32, bs=4, device='cpu')))
    assert data.train.one_batch()[0].shape == (4, 3, 32, 32)

# networks --------------------------------------------------------------------------------------

def hook(m): m.body.block1.forward = lambda x, f=m.body.block1.forward: 2*f(x)
def more(m): m.add_module('aux', nn.Linear(2, 2))
def parameter(m): m.body.block2.register_parameter('extra', nn.Parameter(torch.zeros(1)))
class Twice(type(mini())):
    def forward(self, x): return 2*super().forward(x)
def derived(m): m.__class__ = Twice

@pytest.mark.parametrize('change', [hook, more, parameter, derived])
def test_what_a_file_would_lose_is_refused_when_it_is_written(change, tmp_path):
    net = mini()
    change(net)
    with pytest.raises(ValueError, match='would not bring it back'): save_network(net, tmp_path/'n.safetensors')
    assert not any(tmp_path.iterdir())

def test_a_replaced_head_may_have_weights_of_its_own(tmp_path):
    net = mini()
    net.head.fc = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 3))
    again = load_network(save_network(net, tmp_path/'n.safetensors'))
    assert torch.equal(again(IMAGES), net.eval()(IMAGES))

def convs():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8))

def lazy(): return nn.Sequential(nn.Conv2d(3, 8, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.Conv2d(8, 8, 3))
def pruned():
    net = convs()
    prune.l1_unstructured(net[0], 'weight', .5)
    return net

@pytest.mark.parametrize('make,says', [(pruned, '0.weight is computed'), (lazy, '1 is a LazyBatchNorm2d without')])
@pytest.mark.parametrize('door', [remove_bn, drop_bn, binarize])
def test_a_layer_that_cannot_be_copied_is_named(door, make, says):
    with pytest.raises(ValueError, match=says): door(make())

def test_the_images_to_compare():
    net = mini()
    x = IMAGES.numpy()
    assert abs(pack(net, images=x)(x) - net(IMAGES).detach().numpy()).max() < 1e-4
    for bad in ([1, 2], x[0], 'noise'):
        with pytest.raises(ValueError, match='images=.*are needed'): pack(net, images=bad)

def test_a_packed_module_is_copied_and_not_traced(tmp_path):
    module = as_module(pack(mini()))
    torch.save(module, tmp_path/'m.pt')
    twins = copy.deepcopy(module), pickle.loads(pickle.dumps(module)), torch.load(tmp_path/'m.pt', weights_only=False)
    assert all(torch.equal(t(IMAGES), module(IMAGES)) for t in twins)
    with pytest.raises(ValueError, match='cannot be traced'): torch.jit.trace(module, IMAGES)

def test_what_torch_cannot_read_is_said_and_what_it_can_works():
    net = mini()
    with pytest.raises(NotImplementedError, match='torch.jit.script cannot read'): torch.jit.script(net)
    with pytest.raises(ValueError, match='torch.fx cannot trace'): torch.fx.symbolic_trace(net)
    for made in (torch.jit.trace(net, IMAGES), torch.export.export(net, (IMAGES,)).module()):
        torch.testing.assert_close(made(IMAGES), net(IMAGES))
    assert copy.deepcopy(net).to('meta')(IMAGES.to('meta')).shape == (4, 10)

def test_labels_that_are_names():
    x = torch.zeros(2, 1, 32, 32, dtype=torch.uint8)
    with pytest.raises(ValueError, match='^y: .*names go to vocab'): tensor_dls(x, ['a', 'b'], x, [0, 1], bs=2)

def test_a_memoryview_is_a_file(tmp_path):
    from io import BytesIO
    from PIL import Image
    file, net = BytesIO(), pack(mini(), mean=[0.], std=[1.], size=32, resize='squish')
    Image.new('L', (32, 32), 90).save(file, 'png')
    data = file.getvalue()
    assert classify(net, memoryview(data)) == classify(net, data)
