"What a fastai user does with DataLoaders, on those of each factory of ours."
import hashlib
import random
import warnings
import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image
from fastai.basics import CrossEntropyLossFlat, Learner, accuracy, load_learner
from fastai.interpret import ClassificationInterpretation
from torch import nn
import fastai.callback.all # noqa: F401
from folders import noise_folder
from bnn_bn.data import (_cifar10, _cifar100, cifar100_dls, cifar10_dls, fashion_mini, random_flip,
                         tensor_dls)
from bnn_bn.folder import folder_dls

matplotlib.use('Agg')

def fashion(folder): return fashion_mini(bs=20, n=60, device='cpu')

def tensors(folder):
    "an array of floats, four classes without a name, sides of 20 and 24 pixels"
    x, y = np.random.default_rng(0).random((60, 3, 20, 24), np.float32), torch.arange(60) % 4
    return tensor_dls(x, y, x[:30], y[:30], bs=20, device='cpu', augment=random_flip)

def cifar_files(folder, kind):
    "20 random records in each file"
    (folder/kind.folder).mkdir()
    rng, sums = np.random.default_rng(0), {}
    for name in kind.files:
        records = rng.integers(0, 256, (20, len(kind.labels) + 3072), dtype=np.uint8)
        for i, classes in enumerate(kind.labels): records[:, i] = np.arange(20) % classes
        (folder/kind.folder/name).write_bytes(records.tobytes())
        sums[name] = hashlib.md5(records.tobytes()).hexdigest()
    return sums

def cifar10(folder):
    return cifar10_dls(folder, bs=20, device='cpu', download=False, md5=cifar_files(folder, _cifar10))

def cifar100(folder):
    cifar_files(folder, _cifar100)
    return cifar100_dls(folder, bs=20, device='cpu', download=False, n=(20, 20))

def folders(folder):
    "20 training and 6 validation pictures of two classes, all of another size"
    noise_folder(folder, dict(train=10, val=3), ('left', 'right'), sides=(30, 60))
    return folder_dls(folder, bs=10, size=32, workers=0, device='cpu', seed=0)

FACTORIES = fashion, tensors, cifar10, cifar100, folders

@pytest.fixture(scope='module', params=FACTORIES, ids=lambda f: f.__name__)
def learn(request, tmp_path_factory):
    "a small network that tells pictures apart, and has not been trained"
    folder = tmp_path_factory.mktemp('data')
    dls = request.param(folder)
    torch.manual_seed(0)
    channels = dls.one_batch()[0].shape[1]
    net = nn.Sequential(nn.AdaptiveAvgPool2d(6), nn.Flatten(), nn.Linear(36*channels, dls.c))
    made = Learner(dls, net, loss_func=CrossEntropyLossFlat(), metrics=accuracy, path=folder)
    with made.no_bar(), made.no_logging(): yield made

def rows_of(learn, dl=None):
    "what the network says of each batch, called directly"
    with torch.no_grad():
        return torch.cat([learn.model(b[0]) for b in dl or learn.dls.valid]).softmax(1)

def item(dls, i=0):
    "a validation picture as a user has it: a path, or bytes"
    found = dls.valid_ds.items[i]
    return found[0]

def forms(dls):
    "a validation picture as a path, PIL, an array, floats, a tensor"
    x = item(dls)
    im = Image.open(x).convert('RGB') if isinstance(x, str) else None
    array = np.asarray(im) if im else x.permute(1, 2, 0).numpy()
    im = im or Image.fromarray(array.squeeze())
    tensor = torch.tensor(array).permute(2, 0, 1)
    return dict(item=x, PIL=im, array=array, floats=array/255, tensor=tensor, half=(tensor/255).half())

def test_fit(learn):
    "training goes on after all the looking; a batch is a plain tensor"
    x, y = learn.dls.one_batch()
    assert type(x) is torch.Tensor and type(y) is torch.Tensor and x.dtype == torch.float32
    saved = {k: v.clone() for k, v in learn.model.state_dict().items()}
    learn.fit(1, 1e-3)
    assert not torch.equal(saved['2.weight'], learn.model.state_dict()['2.weight'])
    learn.model.load_state_dict(saved)

def test_get_preds(learn):
    preds, targets = learn.get_preds()
    torch.testing.assert_close(preds, rows_of(learn))
    assert targets.tolist() == torch.cat([b[1] for b in learn.dls.valid]).tolist()
    preds, targets, losses = learn.get_preds(ds_idx=0, with_loss=True)
    assert len(preds) == len(targets) == len(losses) == len(learn.dls.train_ds)

def test_new_pictures(learn):
    "rows of `test_dl` belong to the pictures that were given, in their order"
    want = rows_of(learn)
    order = [2, 0, 1]
    given = [item(learn.dls, i) for i in order]
    got, targets = learn.get_preds(dl=learn.dls.test_dl(given))
    torch.testing.assert_close(got, want[order])
    assert targets is None
    with_class = [(item(learn.dls, i), learn.dls.valid_ds[i][1].item()) for i in order]
    got, targets = learn.get_preds(dl=learn.dls.test_dl(with_class, with_labels=True))
    torch.testing.assert_close(got, want[order])
    assert targets.tolist() == [c for _, c in with_class]
    assert len(learn.get_preds(dl=learn.dls.test_dl(torch.zeros(5, 3, 40, 40)))[0]) == 5
    assert len(learn.get_preds(dl=learn.dls.test_dl(np.zeros((5, 40, 40), np.uint8)))[0]) == 5

def test_predict(learn):
    "a class by name, its number and probabilities; the same whatever the picture comes as"
    want = rows_of(learn)[0]
    for name, picture in forms(learn.dls).items():
        label, number, p = learn.predict(picture)
        torch.testing.assert_close(p, want, atol=1e-5, rtol=0, msg=name)
        assert number == want.argmax() and str(label) == str(learn.dls.vocab[number])
    shown, *_ = learn.predict(picture, with_input=True)
    assert 0 <= shown.min() and shown.max() <= 1

def test_predict_refuses(learn):
    for bad in (torch.randn(3, 32, 32), np.full((32, 32), 7, np.int64), np.full((32, 32, 3), 200.)):
        with pytest.raises(ValueError, match='pixels of dtype'): learn.predict(bad)
    with pytest.raises(FileNotFoundError, match='none.png: no such file'): learn.predict('none.png')
    with pytest.raises(ValueError, match='no pictures'): learn.dls.test_dl([])
    with pytest.raises(ValueError, match='is no picture'): learn.predict(7)

def test_decode_batch(learn):
    "a batch goes back to pixels in [0, 1] and names"
    b = learn.dls.valid.one_batch()
    decoded = learn.dls.valid.decode_batch(b, max_n=3)
    assert len(decoded) == 3
    for (x, y), number in zip(decoded, b[1]):
        assert 0 <= x.min() and x.max() <= 1 and str(y) == str(learn.dls.vocab[number])
    if hasattr(learn.dls.valid, 'x'):
        torch.testing.assert_close(torch.as_tensor(decoded[0][0]), learn.dls.valid.x[0]/255, atol=1e-5, rtol=0)

def texts(): return [ax.get_title() for ax in matplotlib.pyplot.gcf().axes]

@pytest.fixture(autouse=True)
def close_figures():
    matplotlib.pyplot.close('all')
    yield
    matplotlib.pyplot.close('all')

def test_shows(learn):
    "pictures side by side under the names of their classes"
    import matplotlib.pyplot as plt
    learn.dls.valid.show_batch(max_n=4)
    first = [str(learn.dls.vocab[int(i)]) for i in learn.dls.valid.one_batch()[1][:4]]
    assert len(plt.get_fignums()) == 1 and texts()[:4] == first
    learn.dls.show_batch(max_n=2)
    learn.dls.show_batch(max_n=2, unique=True)
    learn.dls.test_dl([item(learn.dls)]).show_batch()
    plt.close('all')
    learn.show_results(max_n=4)
    assert len(plt.get_fignums()) == 1 and all('\n' in t for t in texts()[:4])

def test_interpretation(learn):
    found = ClassificationInterpretation.from_learner(learn)
    counts, n = found.confusion_matrix(), len(learn.dls.valid_ds)
    right = (rows_of(learn).argmax(1) == learn.get_preds()[1]).sum()
    assert counts.shape == (learn.dls.c,)*2 and counts.sum() == n and counts.trace() == right
    found.plot_confusion_matrix()
    found.most_confused()
    found.plot_top_losses(3)
    losses, where = found.top_losses(3)
    x, preds, targets, decoded, again = found[where]
    torch.testing.assert_close(-preds[range(3), targets].log(), torch.as_tensor(losses), atol=1e-4, rtol=1e-3)
    assert torch.equal(losses, again)
    found.show_results([0, 1])

def test_tta(learn):
    "the mean over changed pictures, which are those of the validation set"
    plain, targets = learn.get_preds()
    same, also = learn.tta(n=2, beta=1)
    torch.testing.assert_close(same, plain)
    assert also.tolist() == targets.tolist()
    changed, _ = learn.tta(n=2, beta=0)
    assert not torch.allclose(changed, plain)
    torch.testing.assert_close(learn.get_preds()[0], plain) # and the set is as before

def test_export(learn):
    "the file holds no pictures, and predicts as the Learner does"
    learn.export('export.pkl')
    loaded = load_learner(learn.path/'export.pkl')
    assert [len(dl.dataset) for dl in loaded.dls.loaders] == [0, 0]
    assert list(map(str, loaded.dls.vocab)) == list(map(str, learn.dls.vocab))
    with loaded.no_bar(): label, _, p = loaded.predict(item(learn.dls))
    torch.testing.assert_close(p, rows_of(learn)[0])
    assert str(label) == str(learn.predict(item(learn.dls))[0])
    assert len(learn.dls.train_ds) > 0

def test_new(learn):
    "the same pictures in another order, or others"
    dl = learn.dls.train
    other = dl.new(shuffle=False, drop_last=False, bs=7)
    assert (other.bs, other.shuffle, len(other)) == (7, False, -(-len(dl.dataset)//7))
    assert learn.dls.valid.new(shuffle=True).one_batch()[0].shape == learn.dls.valid.one_batch()[0].shape
    a, b = dl.new(), dl.new()
    a.rng, b.rng = random.Random(1), random.Random(1)
    for one, two in zip(a, b): assert torch.equal(one[0], two[0]) and torch.equal(one[1], two[1])

def test_transforms_of_fastai_are_refused(learn):
    from fastai.vision.augment import Flip
    dl = learn.dls.valid.new(after_batch=[Flip()])
    with pytest.raises(ValueError, match='has no place for Flip.*augment='): dl.one_batch()
    with pytest.raises(ValueError, match='has no place for'): learn.tta(n=1, item_tfms=Flip())

def test_normalised_once(learn):
    "fastai's vision_learner adds a Normalize to any loaders without one"
    from fastai.data.transforms import Normalize
    channels, before = learn.dls.one_batch()[0].shape[1], rows_of(learn)
    own = learn.dls.train.args
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        learn.dls.add_tfms([Normalize.from_stats(own['mean'], own['std'], cuda=False)], 'after_batch')
    with pytest.warns(UserWarning, match='is left out: .*give mean and std to the loaders'):
        learn.dls.add_tfms([Normalize.from_stats([.1]*channels, [.2]*channels, cuda=False)], 'after_batch')
    learn.dls.train.one_batch()
    assert torch.equal(rows_of(learn), before)

def test_a_vision_learner_of_fastai(tmp_path):
    from fastai.vision.learner import vision_learner
    from bnn_bn.train.vision import fastai_arch, nobn_head
    x = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8)
    for dls in tensor_dls(x, torch.arange(8) % 2, x, torch.arange(8) % 2, bs=4, device='cpu'), folders(tmp_path):
        before = [dls.valid.one_batch()[0] for _ in range(2)]
        with warnings.catch_warnings():
            warnings.filterwarnings('ignore', message='Normalize by')
            arch, head = fastai_arch('cifar10-reactnet18-w50'), nobn_head(256, dls.c)
            made = vision_learner(dls, arch, custom_head=head, path=tmp_path)
        with made.no_bar(), made.no_logging(): made.fit(1)
        assert torch.equal(dls.valid.one_batch()[0], before[0]) and torch.equal(*before)

def test_a_class_that_is_none(learn):
    x = item(learn.dls)
    for k in (-1, learn.dls.c):
        with pytest.raises(ValueError, match=f'class number {k}: from 0 to'):
            learn.dls.test_dl([(x, k)], with_labels=True).one_batch()

def test_mixed_pictures_have_the_names_of_their_parts():
    from torchvision.transforms import v2
    dls = fashion_mini(bs=8, n=64, device='cpu', mix=v2.MixUp(num_classes=10))
    x, y = dls.one_batch()
    shown = [str(c) for _, c in dls.train.decode_batch((x, y), 8)]
    for row, names in zip(y, shown): assert names.split(' + ') == [dls.vocab[k] for k in row.nonzero().flatten()]

def test_vocab(learn):
    assert learn.dls.c == len(learn.dls.vocab) == learn.dls.valid.c
    assert list(learn.dls.vocab) == list(learn.dls.valid.vocab)
    assert learn.dls.n_inp == 1
