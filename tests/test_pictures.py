"Pixels have units: the same picture in any form is the same picture at every door, or is refused."
import io
import os
import shutil
import warnings
import numpy as np
import pytest
import torch
from PIL import Image
from fastai.data.core import DataLoaders
from fastai.vision.all import ImageDataLoaders, Normalize, Resize, imagenet_stats
from hypothesis import given, settings, strategies as st
from torch.utils.data import DataLoader, TensorDataset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2
from torchvision.transforms._presets import ImageClassification
from folders import noise_folder
from bnn_bn.core.errors import DataError
from bnn_bn.data import tensor_dls
from bnn_bn.deploy import classify, load_packed, pack
from bnn_bn.train.distill import _image_stats
from bnn_bn.folder import folder_dls
from bnn_bn.learner import bnn_learner
from bnn_bn.images.loaders import describe
from bnn_bn.models import reactnet_nobn
from bnn_bn.images.pictures import Preparation, from_info, pixel_bytes, read_picture, to_info

RNG = np.random.default_rng(0)
GREY = np.kron(RNG.integers(0, 256, (6, 8), np.uint8), np.ones((8, 8), np.uint8))
COLOUR = np.kron(RNG.integers(0, 256, (6, 8, 3), np.uint8), np.ones((8, 8, 1), np.uint8))
DEEP = GREY.astype(np.uint16)*257

def lying(k):
    "a colour picture as a camera saves it that was turned, with the EXIF value k"
    turn = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
            6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}[k]
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = k
    Image.fromarray(COLOUR).transpose(turn).save(file, 'png', exif=exif)
    return file.getvalue()

def saved(im, kind, **kwargs):
    file = io.BytesIO()
    im.save(file, kind, **kwargs)
    return file.getvalue()

def palette():
    "a picture whose numbers are not its greys"
    im = Image.fromarray(255 - GREY).convert('P')
    im.putpalette([255 - i//3 for i in range(768)])
    return im

COLOURS = dict(
    array=COLOUR, floats=COLOUR/255, half=(COLOUR/255).astype(np.float32), words=COLOUR*np.uint16(257),
    tensor=torch.tensor(COLOUR).permute(2, 0, 1), unit=torch.tensor(COLOUR).permute(2, 0, 1)/255,
    pil=Image.fromarray(COLOUR),
    rgba=Image.fromarray(COLOUR).convert('RGBA'), file=saved(Image.fromarray(COLOUR), 'png'),
    four=np.dstack([COLOUR, np.full(COLOUR.shape[:2], 255, np.uint8)]), **{f'exif {k}': lying(k) for k in (2, 3, 6, 8)})
GREYS = dict(
    array=GREY, flat=GREY[..., None], stacked=np.dstack([GREY]*3), floats=GREY/255, words=DEEP,
    big=DEEP.astype('>u2'),
    tensor=torch.tensor(GREY)[None], pil=Image.fromarray(GREY), palette=palette(), deep=Image.fromarray(DEEP),
    deep_file=saved(Image.fromarray(DEEP), 'png'), deep_tiff=saved(Image.fromarray(DEEP), 'tiff'),
    float_tiff=saved(Image.fromarray((GREY/255).astype(np.float32)), 'tiff'), alpha=Image.fromarray(GREY).convert('LA'))

@pytest.mark.parametrize('form', COLOURS)
def test_colour(form):
    assert (np.asarray(read_picture(COLOURS[form])) == COLOUR).all()
    want = np.asarray(Image.fromarray(COLOUR).convert('L'))
    assert (np.asarray(read_picture(COLOURS[form], 1)) == want).all()

@pytest.mark.parametrize('form', GREYS)
def test_grey(form):
    assert (np.asarray(read_picture(GREYS[form], 1)) == GREY).all()
    assert (np.asarray(read_picture(GREYS[form])) == GREY[..., None]).all()

@pytest.mark.parametrize('form', ['CMYK', 'YCbCr'])
def test_lossy_modes(form):
    x = read_picture(saved(Image.fromarray(COLOUR).convert(form), 'tiff'))
    assert np.abs(np.asarray(x).astype(int) - COLOUR).mean() < 3

REFUSED = {
    'ints': (COLOUR.astype(int), 'which number is white'), 'floats of bytes': (COLOUR*1., 'x/255 mends'),
    'normalised': ((COLOUR/255 - .5)/.25, r'lie in \[0, 1\]'), 'NaN': (np.full((4, 8), np.nan), 'NaN'),
    'bytes in words': (COLOUR.astype(np.uint16), 'up to 249 only'),
    'I': (Image.fromarray(DEEP.astype(np.int32)), 'mode I'),
    'LAB': (Image.new('LAB', (8, 8)), 'mode LAB'),
    'F of bytes': (Image.fromarray(GREY.astype(np.float32)), r'\[0, 1\]'),
    'channels first': (COLOUR.transpose(2, 0, 1), 'of an array come last'),
    'channels last': (torch.tensor(COLOUR), 'of a tensor first'),
    'a folder': ('.', 'a folder is no picture'), 'none': (None, 'is no picture'),
    'a row': (COLOUR[0], 'of shape'), 'no file': (b'<html>', 'not a readable picture')}

@pytest.mark.parametrize('form', REFUSED)
def test_refused(form):
    picture, says = REFUSED[form]
    with pytest.raises(ValueError, match=says): read_picture(picture)

@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 255), min_size=1, max_size=40))
def test_units_agree(values):
    "a byte, its share of 255 and its 16 bits are one brightness"
    x = np.array(values, np.uint8)
    for dtype in (np.float32, np.float64): assert (pixel_bytes((x/255).astype(dtype)) == x).all()
    if x.max() > 0: assert (pixel_bytes(x*np.uint16(257)) == x).all()

@settings(max_examples=30, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.sampled_from(['crop', 'middle', 'squish', 'pad']), st.integers(0, 3))
def test_any_size_fits(h, w, method, border):
    p = Preparation((20, 24), 3, method, border=border)
    x = p(np.full((h, w, 3), 7, np.uint8))
    assert x.shape == (20, 24, 3) and x.dtype == np.uint8
    assert x.max() <= 7 if method == 'pad' else x.max() == 7
    assert from_info(to_info(p)) == p

# The doors -----------------------------------------------------------------------------------------

def test_tensor_dls_takes_units():
    "bytes, floats, 16 bits and arrays give the same batches"
    x, y = torch.randint(0, 256, (20, 3, 8, 8), dtype=torch.uint8), torch.arange(20) % 2
    want = tensor_dls(x, y, x, y, bs=4, device='cpu').valid.one_batch()[0]
    for form in (x/255, (x/255).numpy(), x.numpy(), x.numpy()*np.uint16(257), (x/255).double()):
        got = tensor_dls(form, y, form, y, bs=4, device='cpu')
        assert got.train.x.dtype == torch.uint8 and torch.equal(got.valid.one_batch()[0], want)

X, Y = torch.randint(0, 256, (20, 3, 8, 8), dtype=torch.uint8), torch.arange(20) % 2
@pytest.mark.parametrize('args,says', [
    ((X - 120.5, Y, X, Y), r'x: pixels .* lie in \[0, 1\]'), ((X, Y, X*1., Y), r'xv: pixels .* lie in \[0, 1\]'),
    ((X.long(), Y, X, Y), 'x: pixels of dtype int64'), ((X[:, 0], Y, X, Y), r'x\[:, None\]'),
    ((X.permute(0, 2, 3, 1), Y, X, Y), 'permute'), ((X, Y[:-1], X, Y), 'y: labels of shape .19,'),
    ((X, Y*1., X, Y), 'y: labels .*float32'), ((X, Y - 1, X, Y), 'y: labels from -1'),
    ((X, Y, X, Y + 4), 'yv: labels from 4 to 5'),
    ((X, Y, X[..., :6], Y), 'xv: images of shape'), ((X[:0], Y[:0], X, Y), 'N > 0')])
def test_tensor_dls_refuses(args, says):
    with pytest.raises(ValueError, match=says): tensor_dls(*args, bs=4, device='cpu', vocab=['a', 'b'])

@pytest.mark.parametrize('vocab', [{'b': 1, 'a': 0}, {0: 'a', 1: 'b'}, {'b', 'a'}, frozenset('ab')],
                         ids=['numbers', 'names', 'set', 'frozenset'])
def test_names_without_an_order_are_refused(vocab):
    with pytest.raises(ValueError, match='vocab: .* says no order'):
        tensor_dls(X, Y, X, Y, bs=4, device='cpu', vocab=vocab)

@pytest.mark.parametrize('dtype', [np.uint8, np.int16, np.uint16, np.uint32, np.int64], ids=lambda t: t.__name__)
def test_class_numbers_of_any_width(dtype):
    assert tensor_dls(X, Y.numpy().astype(dtype), X, Y, bs=4, device='cpu').valid.one_batch()[1].dtype == torch.int64

def make_folder(root, **forms):
    "each form as a file of both parts and classes"
    for part in ('train', 'val'):
        for c in 'ab':
            (root/part/c).mkdir(parents=True)
            for name, data in forms.items(): (root/part/c/name).write_bytes(data)
    return root

def test_folder_sees_the_picture(tmp_path):
    "16 bits, floats, a palette and a turned photo in a folder of grey and colour"
    grey = saved(Image.fromarray(GREY), 'png')
    others = {'1.png': GREYS['deep_file'], '2.tif': GREYS['float_tiff'], '3.png': saved(palette(), 'png')}
    dls = folder_dls(make_folder(tmp_path/'a', **{'0.png': grey}, **others), bs=4, size=32, workers=0, device='cpu')
    x = dls.valid.one_batch()[0]
    assert all(torch.equal(i, x[0]) for i in x[1:4])
    files = {'0.png': COLOURS['file'], '1.png': COLOURS['exif 6'], '2.png': COLOURS['exif 3']}
    dls = folder_dls(make_folder(tmp_path/'b', **files), bs=3, size=32, workers=0, device='cpu')
    x = dls.valid.one_batch()[0]
    assert torch.equal(x[0], x[1]) and torch.equal(x[0], x[2])
    bad = make_folder(tmp_path/'c', **{'odd.tif': saved(Image.fromarray(DEEP.astype(np.int32)), 'tiff')})
    with pytest.raises(ValueError, match='odd.tif: not a readable picture .mode I'):
        folder_dls(bad, bs=1, size=32, workers=0, device='cpu').valid.one_batch()

def test_a_folder_says_its_stats_to_a_teacher(tmp_path):
    dls = folder_dls(make_folder(tmp_path, **{'0.png': COLOURS['file']}), bs=1, size=32, workers=0, device='cpu')
    mean, std = _image_stats(dls.train, None, None)
    torch.testing.assert_close(torch.stack([mean.flatten(), std.flatten()]), torch.tensor(imagenet_stats))

# From the loaders of a training to a file ----------------------------------------------------------

@pytest.fixture(scope='module')
def root(tmp_path_factory):
    "four pictures of each of two classes, of unequal sizes"
    folder = tmp_path_factory.mktemp('set')
    return noise_folder(folder, dict(train=4, valid=4), sides=(9, 14), enlarge=4, seed=1)

def ours(root): return folder_dls(root, bs=4, size=32, workers=0, device='cpu', valid='valid')

def fastais(root):
    return ImageDataLoaders.from_folder(root, bs=4, item_tfms=Resize(32), num_workers=0,
                                        batch_tfms=Normalize.from_stats(*imagenet_stats, cuda=False), device='cpu')

def torchs(root):
    chain = v2.Compose([v2.Resize(40), v2.CenterCrop(32), v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True),
                        v2.Normalize([.4]*3, [.2]*3)])
    return DataLoaders(*[DataLoader(ImageFolder(root/p, chain), 4) for p in ('train', 'valid')])

def learner(dls):
    torch.manual_seed(0)
    return bnn_learner(dls, reactnet_nobn('mini', n_out=2, width=.25, stem='cifar'))

@pytest.mark.parametrize('make', [ours, fastais, torchs], ids=lambda f: f.__name__)
def test_the_file_labels_as_the_loaders_do(make, root, tmp_path):
    "classify of a path is the network's answer for the loader's own batch"
    dls = make(root)
    learn = learner(dls)
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        packed = load_packed(pack(learn).save(tmp_path/'net.bnn'))
    files = [f for f, _ in dls.valid.dataset.samples] if make is torchs else dls.valid.items
    files = [f[0] if isinstance(f, tuple) else f for f in files][:4]
    x = (next(iter(dls.valid)))[0].as_subclass(torch.Tensor)[:4]
    with torch.no_grad(): want = learn.model.eval()(x).softmax(1)
    for found, p in zip(classify(packed, files, top=2), want):
        assert found[0][0] == 'ab'[p.argmax()] and abs(found[0][1] - p.max()) < 1e-4
    if make is not torchs:
        with learn.no_bar(): label, _, p = learn.predict(files[1])
        found, = classify(packed, files[1])
        assert found[0][0] == str(label) and abs(found[0][1] - p.max()) < 1e-4

def test_pack_says_what_is_lacking():
    plain = DataLoader(TensorDataset(torch.randn(8, 3, 32, 32), torch.arange(8) % 2), 4)
    learn = learner(DataLoaders(plain, plain))
    with pytest.warns(UserWarning, match='mean .*mean=.*classes .*classes=') as said: packed = pack(learn)
    assert len([w for w in said if 'pack' in str(w.message)]) == 1
    with pytest.raises(ValueError, match='the mean of its images'): classify(packed, COLOUR)
    with pytest.raises(ValueError, match='classes.*2 names'): pack(learn, classes='abc', mean=0, std=1, resize='pad')
    with pytest.raises(ValueError, match='std=.*above 0'): pack(learn, classes='ab', mean=0, std=0, resize='pad')
    told = pack(learn, classes='ab', mean=0, std=1, resize='pad')
    assert classify(told, COLOUR)[0][0][0] in 'ab' and told.info['resize']['method'] == 'pad'

def test_without_resize_only_what_fits():
    "a file that does not say how pictures got their size takes pictures of that size"
    packed = pack(reactnet_nobn('mini', n_out=2, width=.25).eval(), mean=.5, std=.25, size=[48, 64])
    assert len(classify(packed, COLOUR)) == 1
    with pytest.raises(ValueError, match='48x64 are needed'): classify(packed, COLOUR[:32])

@pytest.mark.parametrize('form', GREYS)
def test_classify_any_form(form):
    "the label of a grey picture does not depend on its form"
    packed = classify_net()
    assert classify(packed, GREYS[form], top=3) == classify(packed, GREY, top=3)

NETS = []
def classify_net():
    if not NETS:
        torch.manual_seed(0)
        net = reactnet_nobn('mini', n_out=5, in_chans=1, width=.25).eval()
        NETS.append(pack(net, mean=.5, std=.25, size=32, resize='middle'))
    return NETS[0]

def test_describe_knows_a_subset(root):
    whole = torchs(root)
    half = DataLoader(torch.utils.data.Subset(whole.valid.dataset, range(4)), 2)
    assert describe(DataLoaders(half, half)).info == describe(whole).info

def turned(im, file):
    exif = Image.Exif()
    exif[0x0112] = 6
    im.save(file, exif=exif)
def transparent(im, file):
    im.putalpha(Image.linear_gradient('L').resize(im.size))
    im.save(file)
def deep(im, file): Image.fromarray(np.asarray(im.convert('L')).astype(np.uint16)*257).save(file)
def opaque(im, file): im.convert('RGBA').save(file)
def upright(im, file): im.save(file, exif=Image.Exif())

def of_names(root):
    "a table of names, as many have it"
    import pandas as pd
    files = sorted((root/'valid').glob('*/*.png'))
    df = pd.DataFrame(dict(name=[str(f.relative_to(root)) for f in files], label=[f.parent.name for f in files]))
    return ImageDataLoaders.from_df(df, root, fn_col='name', label_col='label', bs=2, item_tfms=Resize(32),
                                    num_workers=0, device='cpu')

@pytest.mark.parametrize('make', [fastais, of_names, torchs, ours], ids=lambda f: f.__name__)
@pytest.mark.parametrize('kind', [turned, transparent, deep, opaque, upright], ids=lambda f: f.__name__)
def test_pictures_that_are_read_in_another_way_are_told(make, kind, tmp_path):
    "a file reads them upright, on white and scaled; the loaders of others do not"
    noise_folder(tmp_path, dict(train=4, valid=4), sides=(9, 14), enlarge=4, seed=1)
    for f in tmp_path.glob('*/*/*.png'): kind(Image.open(f).convert('RGB'), f)
    dls = make(tmp_path)
    lacks, other = describe(dls).lacks, make is not ours and kind in (turned, transparent, deep)
    assert ('read' in lacks) == other and not lacks.keys() - {'read'}
    if not other: return
    assert f'{len(dls.valid_ds)} of {len(dls.valid_ds)} pictures' in lacks['read']
    if kind is deep: return # all white, of which no network can be calibrated
    with pytest.warns(UserWarning, match='read .*turned, transparent .*pack.*read='): pack(learner(dls))
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        assert pack(learner(dls), read='upright').info['resize']

@pytest.mark.parametrize('first', [[v2.Resize(40, antialias=False), v2.CenterCrop(32)],
                                   [v2.Resize(40, max_size=80), v2.CenterCrop(32)],
                                   [ImageClassification(crop_size=32, resize_size=40, antialias=False)]], ids=str)
def test_a_resize_that_no_file_can_keep_is_told(first, root):
    chain = v2.Compose([v2.ToImage(), *first, v2.ToDtype(torch.float32, scale=True)])
    dl = DataLoader(ImageFolder(root/'valid', chain), 1)
    assert {'mean', 'resize'} <= describe(DataLoaders(dl, dl)).lacks.keys()

SPOILT_FOLDERS = dict(
    a_circle=lambda p: (p/'train/a/loop').symlink_to(p/'train'),
    a_class_that_is_a_circle=lambda p: (p/'train/loop').symlink_to(p/'train'),
    a_link_to_itself=lambda p: (p/'train/a/loop.png').symlink_to('loop.png'),
    one_class=lambda p: [shutil.rmtree(p/part/'b') for part in ('train', 'val')],
    no_class=lambda p: [shutil.rmtree(p/'train'), (p/'train').mkdir()])

@pytest.mark.parametrize('name', SPOILT_FOLDERS)
def test_a_folder_that_cannot_be_trained_is_refused_at_once(name, tmp_path):
    "links in a circle would be read forty times, or for ever; one class teaches nothing"
    root = make_folder(tmp_path, **{'0.png': COLOURS['file']})
    SPOILT_FOLDERS[name](root)
    with pytest.raises(DataError, match='train.*(circle|loop|symbolic|at least two)'):
        folder_dls(root, bs=1, size=32, workers=0, device='cpu')

def test_hidden_folders_are_no_classes(tmp_path):
    root = make_folder(tmp_path, **{'0.png': COLOURS['file']})
    for name in ('.ipynb_checkpoints', '__MACOSX'): shutil.copytree(root/'train/a', root/'train'/name)
    (root/'val/.empty').mkdir()
    assert folder_dls(root, bs=1, size=32, workers=0, device='cpu').vocab == ['a', 'b']

@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='named pipes')
def test_a_pipe_is_no_picture(tmp_path):
    "to read it would wait for ever"
    os.mkfifo(tmp_path/'pipe.png')
    with pytest.raises(DataError, match='pipe.png: .*a pipe or a device'): read_picture(tmp_path/'pipe.png')

@pytest.mark.parametrize('data', [b'', b'garbage', COLOURS['file'][:60]], ids=['empty', 'garbage', 'cut'])
def test_a_damaged_picture_is_an_error_of_the_family(data, tmp_path):
    (tmp_path/'bad.png').write_bytes(data)
    with pytest.raises(DataError, match='bad.png: not a readable picture'): read_picture(tmp_path/'bad.png')
