"What other users met at other doors, by the kinds of the users' cases: each a property."
import copy
import warnings
from pathlib import Path
import numpy as np
import pytest
import torch
from fastai.basics import CrossEntropyLossFlat, DataLoaders, DataBlock, L, params
from fastai.callback.tracker import ReduceLROnPlateau
from fastai.data.transforms import GrandparentSplitter, Normalize, get_image_files, parent_label
from fastai.losses import BCEWithLogitsLossFlat
from fastai.optimizer import ranger
from fastai.vision.augment import Resize
from fastai.vision.data import CategoryBlock, ImageBlock, MultiCategoryBlock
import fastai.callback.progress # noqa: F401, Learner.no_bar
from PIL import Image
from torch import nn
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2
from folders import noise_folder
from bnn_bn import cost
from bnn_bn.agc import adaptive_clip_grad
from bnn_bn.checkpoint import load_info, load_network, save_network
from bnn_bn.convert import remove_bn
from bnn_bn.core.errors import DataError, DivergenceError
from bnn_bn.core.files import full_path, write_file
from bnn_bn.data import fashion_mini, tensor_dls
from bnn_bn.deploy import classify, load_packed, pack
from bnn_bn.images.loaders import describe
from bnn_bn.learner import bnn_learner
from bnn_bn.models import reactnet_bn, reactnet_nobn

IMAGES = torch.randn(4, 1, 32, 32, generator=torch.Generator().manual_seed(0))

def mini(**kw):
    torch.manual_seed(0)
    return reactnet_nobn('mini', **(dict(n_out=10, in_chans=1, width=.125) | kw)).eval()

def few(n=48, bs=16, **kw):
    data = fashion_mini(device='cpu')
    x, y = data.train.x[:n], data.train.y[:n]
    return tensor_dls(x, y, x[:16], y[:16], bs=bs, device='cpu', vocab=data.vocab, **kw)

@pytest.fixture(scope='module')
def dls(): return few()

def learner(dls, folder, model=None, **kw):
    learn = bnn_learner(dls, mini() if model is None else model, path=folder, **kw)
    learn.logger = lambda row: None
    learn.remove_cbs(learn.cbs.filter(lambda c: c.name == 'progress'))
    return learn

# what a file would lose --------------------------------------------------------------------------

def behind(m): m.append(nn.Softmax(1))
def in_body(m): m.body.add_module('more', nn.ReLU())
def in_stem(m): m.body.stem.add_module('more', nn.ReLU())
def in_block(m): m.body.block1.add_module('more', nn.Dropout())
def other_order(m):
    first = m.body._modules.pop('block1')
    m.body._modules['block1'] = first

@pytest.mark.parametrize('change', [behind, in_body, in_stem, in_block, other_order])
def test_a_part_without_weights_or_another_order_is_not_lost(change, tmp_path):
    net = mini()
    change(net)
    with pytest.raises(ValueError, match='would not bring it back'): save_network(net, tmp_path/'n.safetensors')
    assert not any(tmp_path.iterdir())

# values in files ---------------------------------------------------------------------------------

VALUES = [np.float32(.5), np.int64(3), np.bool_(True), torch.tensor(.25), np.arange(3), L('a', 'b'),
          dict(a=np.float64(1), b=[torch.tensor(2)]), {0: 'a'}.values(), range(3)]
PLAIN = [.5, 3, True, .25, [0, 1, 2], ['a', 'b'], dict(a=1., b=[2]), ['a'], [0, 1, 2]]

@pytest.mark.parametrize('value, plain', list(zip(VALUES, PLAIN)), ids=[type(v).__name__ for v in VALUES])
def test_numbers_and_lists_of_others_are_kept(value, plain, tmp_path):
    file = save_network(mini(), tmp_path/'n.safetensors', metric=value)
    assert load_info(file)['info'] == dict(metric=plain)
    assert load_packed(pack(mini(), metric=value).save(tmp_path/'n.bnn')).info['metric'] == plain

@pytest.mark.parametrize('value', [object(), {1, 2}, b'x', 1j, [1, {2}]])
def test_what_a_file_cannot_keep_is_named_at_once(value, tmp_path):
    for door in (lambda: save_network(mini(), tmp_path/'n.safetensors', metric=value),
                 lambda: pack(mini(), metric=value)):
        with pytest.raises(ValueError, match='^metric.*numbers, texts, lists'): door()
    assert not any(tmp_path.iterdir())

def test_classes_as_the_data_hold_them(dls):
    names = [str(v) for v in dls.vocab]
    for found in (dls.train_ds.vocab, L(dls.vocab), dict(enumerate(names)).values(), np.array(names)):
        assert pack(mini(), classes=found).info['classes'] == names

def test_a_tilde_that_is_no_home(tmp_path, monkeypatch):
    "a file whose name begins with one is that file; a home that is not known is said"
    monkeypatch.chdir(tmp_path)
    write_file('~no-such-user.bin', b'1')
    assert full_path('~no-such-user.bin').read_bytes() == b'1'
    with pytest.raises(ValueError, match='no pretrained network .~no-such-user'): load_packed('~no-such-user')
    assert [p.name for p in tmp_path.iterdir()] == ['~no-such-user.bin']
    def unknown(path): raise RuntimeError('Could not determine home directory.')
    monkeypatch.setattr(Path, 'expanduser', unknown)
    with pytest.raises(ValueError, match='~/net.bnn: the home folder'): full_path('~/net.bnn')

@pytest.mark.parametrize('path', ['', '.', '/'])
def test_a_file_needs_a_name(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    packed = pack(mini())
    for door in (packed.save, lambda p: save_network(mini(), p)):
        with pytest.raises((ValueError, IsADirectoryError), match='name of a file'): door(path)
    (tmp_path/'file').write_text('x')
    with pytest.raises(NotADirectoryError, match='file is a file, no folder'):
        packed.save(tmp_path/'file'/'n.bnn')

# networks without values, and layers that cannot be -----------------------------------------------

def test_weights_without_values_are_named(tmp_path):
    with torch.device('meta'): net = mini()
    plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).to('meta')
    for door in (lambda: save_network(net, tmp_path/'n'), lambda: pack(net), lambda: remove_bn(plain)):
        with pytest.raises(ValueError, match='weight lies on the device meta'): door()

def test_batch_norms_without_a_convolution_before():
    first = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 8, 3))
    x = torch.randn(64, 3, 8, 8)
    removed = remove_bn(first, example=x)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in removed.modules())
    want, got = first(x), removed(x) # both begin with the deviation of each channel brought to one
    assert got.shape == want.shape and got.isfinite().all()
    none = nn.Sequential(nn.ConvTranspose2d(3, 8, 3), nn.BatchNorm2d(8))
    with pytest.raises(ValueError, match='has no nn.Conv2d'): remove_bn(none)

def test_gradients_without_units_are_refused():
    table = nn.Embedding(10, 4, sparse=True)
    table(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(ValueError, match='sparse_coo has no units'): adaptive_clip_grad(table.parameters())

# torch.jit.trace ---------------------------------------------------------------------------------

@pytest.mark.parametrize('make', [mini, lambda: reactnet_bn('mini', n_out=10, in_chans=1, width=.125).eval(),
                                  lambda: mini(binary='act'), lambda: mini(binary='real')])
def test_a_traced_network_is_saved_and_has_the_same_gradients(make, tmp_path):
    net = make()
    torch.jit.trace(net, IMAGES).save(str(tmp_path/'t.pt'))
    traced = torch.jit.load(str(tmp_path/'t.pt'))
    torch.testing.assert_close(traced(IMAGES), net(IMAGES), atol=1e-5, rtol=1e-5)
    for f in (net, traced): f(IMAGES).square().sum().backward()
    theirs = dict(traced.named_parameters())
    for name, p in net.named_parameters():
        if p.grad is not None: torch.testing.assert_close(theirs[name].grad, p.grad, atol=1e-4, rtol=1e-3)

# trainings ---------------------------------------------------------------------------------------

@pytest.mark.parametrize('opt', [torch.optim.Adam, torch.optim.SGD, ranger])
def test_a_rate_that_a_callback_writes_arrives(opt, dls, tmp_path):
    learn = learner(dls, tmp_path, opt_func=opt)
    plateau = ReduceLROnPlateau(min_delta=100, patience=1) # no epoch is that much better
    learn.fit(3, 1e-2, cbs=plateau)
    assert [h['lr'] for h in learn.opt.hypers] == pytest.approx([1e-4, 1e-4])
    inner = getattr(learn.opt, 'opt', None)
    if inner: assert {g['lr'] for g in inner.param_groups} == {learn.opt.hypers[0]['lr']}

def test_a_training_set_without_a_batch_is_refused(tmp_path):
    learn = learner(few(n=8, bs=16), tmp_path)
    before = copy.deepcopy(learn.model.state_dict())
    with pytest.raises(DataError, match='^dls.train has no batch: 8 pictures, bs=16'): learn.fit(1, 1e-3)
    assert all(torch.equal(t, before[n]) for n, t in learn.model.state_dict().items())

@pytest.mark.parametrize('rate', [float('nan'), float('inf')])
def test_a_rate_that_is_no_number_leaves_the_weights(rate, dls, tmp_path):
    learn = learner(dls, tmp_path)
    with pytest.raises(DivergenceError, match='learning rate (nan|inf): a finite number'): learn.fit(1, rate)
    assert all(p.isfinite().all() for p in learn.model.parameters())

def test_one_loader_is_no_dataloaders(dls):
    for one in (dls.train, dls.train_ds, torch.utils.data.DataLoader(range(4)), (dls.train, dls.valid), None):
        with pytest.raises(ValueError, match='^dls: a .* is no DataLoaders'): bnn_learner(one, mini())

def test_a_batch_of_one_says_what_to_do(tmp_path):
    "in the words of the package alone"
    with pytest.raises(DataError, match='^a batch of one picture.*calibrated=False'):
        learner(few(n=4, bs=1), tmp_path).fit(1, 1e-3)
    learner(few(n=4, bs=1), tmp_path, calibrated=False).fit(1, 1e-3)

def test_pictures_of_other_channels_are_named(dls, tmp_path):
    with pytest.raises(DataError, match='^images of shape .*takes .B,3,H,W'):
        learner(dls, tmp_path, mini(in_chans=3)).fit(1, 1e-3)

@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return noise_folder(tmp_path_factory.mktemp('pictures'), dict(train=6, val=3), ('left', 'right'), (34, 60), 4)

def block(folder, y, get_y, batch=()):
    made = DataBlock((ImageBlock, y), get_items=get_image_files, get_y=get_y, item_tfms=Resize(32),
                     splitter=GrandparentSplitter(valid_name='val'), batch_tfms=batch)
    return made.dataloaders(folder, bs=4, device='cpu', num_workers=0)

def test_the_data_bring_their_loss(folder, tmp_path):
    several = block(folder, MultiCategoryBlock, lambda f: [f.parent.name])
    learn = learner(several, tmp_path, mini(n_out=2, in_chans=3), metrics=None)
    assert isinstance(learn.loss_func, BCEWithLogitsLossFlat)
    learn.fit(1, 1e-3)
    one = learner(block(folder, CategoryBlock, parent_label), tmp_path, mini(n_out=2, in_chans=3))
    assert isinstance(one.loss_func, CrossEntropyLossFlat)

# what loaders say --------------------------------------------------------------------------------

floats = v2.ToImage(), v2.ToDtype(torch.float32, scale=True)
half = v2.Normalize([.5]*3, [.25]*3)
KEPT = dict(squish=(v2.Resize((32, 32)), *floats, half), cut=(v2.Resize(40), v2.CenterCrop(32), *floats, half))
NOT_KEPT = dict(
    grey=(v2.Grayscale(3), v2.Resize((32, 32)), *floats, half),
    twice=(v2.Resize((32, 32)), *floats, half, half),
    two_sizes=(v2.Resize((48, 48)), v2.Resize((32, 32)), *floats, half),
    cut_first=(v2.Resize(40), v2.CenterCrop(36), v2.Resize((32, 32)), *floats, half),
    cut_twice=(v2.Resize(40), v2.CenterCrop(36), v2.CenterCrop(32), *floats, half),
    padded=(v2.Resize(24), v2.CenterCrop(32), *floats, half))

def of_torch(folder, tfms):
    parts = [ImageFolder(folder/p, v2.Compose(tfms)) for p in ('train', 'val')]
    return DataLoaders(*[torch.utils.data.DataLoader(p, 3) for p in parts])

@pytest.mark.parametrize('name', [*KEPT, *NOT_KEPT])
def test_a_chain_of_transforms_is_kept_whole_or_named(name, folder):
    "what a file keeps labels a picture as the network did behind these transforms"
    dls, net = of_torch(folder, (KEPT | NOT_KEPT)[name]), mini(n_out=2, in_chans=3)
    if name in NOT_KEPT:
        assert {'mean', 'resize'} <= describe(dls).lacks.keys()
        return
    packed, data = pack(net, dls), dls.valid.dataset
    with torch.no_grad(): want = net(torch.stack([x for x, _ in data])).softmax(1).max(1).values
    got = [found[0][1] for found in classify(packed, [f for f, _ in data.samples])]
    assert got == pytest.approx(want.tolist(), abs=2e-3)

def test_two_normalisations_of_fastai_are_named(folder):
    both = [Normalize.from_stats([.5]*3, [.25]*3), Normalize.from_stats([.1]*3, [.5]*3)]
    dls = block(folder, CategoryBlock, parent_label, both[0])
    dls.valid.after_batch.add(both[1])
    assert 'Normalize' in describe(dls).lacks['mean']

# pictures ----------------------------------------------------------------------------------------

def test_pictures_that_cannot_be_read_are_named_in_full(tmp_path):
    packed = pack(mini(), mean=[0.], std=[1.], size=32, resize='squish')
    noise = np.random.default_rng(0).integers(0, 256, (32, 32), np.uint8)
    Image.fromarray(noise).save(tmp_path/'whole.png')
    data = (tmp_path/'whole.png').read_bytes()
    (tmp_path/'half.png').write_bytes(data[:len(data)//2])
    opened = Image.open(tmp_path/'half.png')
    for picture in (tmp_path/'half.png', str(tmp_path/'half.png'), opened):
        with pytest.raises(DataError, match=str(tmp_path/'half.png')): classify(packed, picture)
    with pytest.raises(FileNotFoundError, match=str(tmp_path/'none.png')): classify(packed, tmp_path/'none.png')

def test_a_mask_is_not_dropped():
    pixels = np.zeros((4, 1, 32, 32), np.uint8)
    pixels[:, :, :9] = 255
    masked = np.ma.masked_array(pixels, pixels > 0)
    packed = pack(mini(), mean=[0.], std=[1.], size=32)
    for door in (lambda: classify(packed, masked[0, 0]), lambda: tensor_dls(masked, [0, 1, 0, 1], pixels, [0]*4)):
        with pytest.raises(ValueError, match='masked array'): door()

def test_a_sharded_network_is_not_counted():
    class FullyShardedDataParallel(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net
    with pytest.raises(ValueError, match='holds its weights in pieces'):
        cost.summary(FullyShardedDataParallel(mini()), (1, 32, 32))

def test_a_network_that_was_saved_is_read_again(tmp_path):
    "the checks above refuse nothing that is kept"
    net = mini()
    net.head.fc = nn.Sequential(nn.Dropout(.2), nn.Linear(net.head.fc.in_features, 3))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        again = load_network(save_network(net.eval(), tmp_path/'n.safetensors', at=np.float32(.5)))
    assert torch.equal(again(IMAGES), net(IMAGES))
    assert len(list(params(again))) == len(list(params(net)))

def test_one_loader_says_what_loaders_do(folder):
    "fastai's and torch's; what is none is named"
    loaders = of_torch(folder, KEPT['cut']), block(folder, CategoryBlock, parent_label, half_of_fastai())
    for dls in loaders:
        whole, one = pack(mini(n_out=2, in_chans=3), dls).info, pack(mini(n_out=2, in_chans=3), dls.valid).info
        assert whole == one and {'mean', 'size', 'classes', 'resize'} <= one.keys()
    for wrong in ([1], loaders[0].valid.dataset, torch.rand(2, 3, 32, 32)):
        with pytest.raises(ValueError, match='^dls: a .* is none of loaders'): pack(mini(n_out=2, in_chans=3), wrong)

def half_of_fastai(): return Normalize.from_stats([.5]*3, [.25]*3)
