"What somebody tries first and was answered wrongly: each test is the property, on several ways to it."
import io
import re
from pathlib import Path
import pytest
import torch
import fastai.callback.progress # noqa: F401, Learner.no_bar
from fastai.callback.hook import ActivationStats
from PIL import Image
from torch import nn
from folders import noise_folder
from bnn_bn.commands import bnn_pack
from bnn_bn.core.places import check_apart
from bnn_bn.folder import folder_dls
from bnn_bn.train.recipes import make_recipe
from bnn_bn.train.run import bnn_train, train
from bnn_bn.checkpoint import load_info, load_model, load_network, read_weights, save_network
from bnn_bn.deploy import load_packed, pack
from bnn_bn.export import graph_of
from bnn_bn.layers.binarize import ste_sign
from bnn_bn.learner import bnn_learner
from bnn_bn.models import reactnet_nobn
from bnn_bn.onebit.graph import read_bnn
from bnn_bn.train.steps import Best
from bnn_bn.data import fashion_mini, tensor_dls

IMAGES = torch.randn(4, 1, 32, 32, generator=torch.Generator().manual_seed(0))

def mini():
    torch.manual_seed(0)
    return reactnet_nobn('mini', n_out=10, in_chans=1, width=.125).eval()

# files that are none --------------------------------------------------------------------------

def picture():
    file = io.BytesIO()
    Image.new('RGB', (9, 9)).save(file, 'png')
    return file.getvalue()

@pytest.fixture
def room(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ('empty', 'dir.bnn', 'run'): (tmp_path/folder).mkdir()
    save_network(mini(), 'run/best.safetensors')
    pack(mini()).save('run/best.bnn')
    for name, data in dict(nothing=b'', picture=picture()).items():
        for ending in ('bnn', 'safetensors', 'pth'): (tmp_path/f'{name}.{ending}').write_bytes(data)
    return tmp_path

@pytest.mark.parametrize('door', [load_packed, load_model, load_network, load_info, read_weights, read_bnn])
@pytest.mark.parametrize('name', ['empty', 'dir.bnn', 'run', 'none.bnn', 'none/such.bnn', 'nothing.bnn',
                                  'nothing.safetensors', 'picture.bnn', 'picture.safetensors'])
@pytest.mark.parametrize('as_path', [False, True])
def test_a_file_that_is_none_is_named_with_the_mend(door, name, as_path, room):
    "one error of one line, for a text and a Path alike"
    with pytest.raises((ValueError, OSError)) as e: door(room/name if as_path else name)
    said = str(e.value)
    assert name in said and '\n' not in said
    if name.startswith('nothing') and door is not read_weights: assert 'it is empty' in said
    if name.startswith('picture') and door is not read_weights: assert 'a picture' in said
    if name in ('empty', 'dir.bnn'): assert 'no such file, a folder; give another path' in said
    if name == 'run' and door is read_weights: assert 'give another path' in said
    if name == 'run' and door in (load_packed, read_bnn): assert said.endswith('give a file in it: best.bnn')
    if name == 'run' and door in (load_model, load_info): assert said.endswith('in it: best.safetensors')

@pytest.mark.parametrize('door', [load_packed, read_bnn])
def test_what_is_open_and_gives_no_bytes(door, room):
    read = io.BytesIO((room/'run/best.bnn').read_bytes())
    read.read()
    with pytest.raises(ValueError, match='StringIO: gives str, not bytes'): door(io.StringIO('x'))
    with pytest.raises(ValueError, match='no bytes are left to read'): door(read)
    with open(room/'run/best.bnn', errors='replace') as text:
        with pytest.raises(ValueError, match="best.bnn: gives str.*open\\(path, 'rb'\\)"): door(text)
    with pytest.raises(ValueError, match='best.bnn: cannot be read'): door(text)
    for data in (b'', picture()):
        with pytest.raises(ValueError, match='the data: not a .bnn file'): door(data)

def test_files_of_each_other_s_kind(room):
    (room/'run/best.bnn').rename(room/'best.bnn')
    with pytest.raises(OSError, match='packed first: bnn pack run'): load_packed('run')
    (room/'best.bnn').rename(room/'run/best.bnn')
    with pytest.raises(ValueError, match='load_network reads'): load_packed('run/best.safetensors')
    with pytest.raises(ValueError, match='load_packed reads'): load_network('run/best.bnn')
    (room/'best').write_bytes((room/'run/best.bnn').read_bytes())
    assert load_packed('best').n_out == 10 and load_packed('fashion-reactnet_mini').n_out == 10
    with pytest.raises(OSError, match='a folder'): graph_of('dir.bnn')

# what a file would lose -----------------------------------------------------------------------

def after(m): m.body.block1.register_forward_hook(lambda m, args, y: 2*y)
def before(m): m.body.block2.register_forward_pre_hook(lambda m, args: (-args[0],))
def of_all(m): m.register_forward_hook(lambda m, args, y: 2*y)
def in_head(m): m.head.fc.register_forward_hook(lambda m, args, y: 2*y)
def spectral(m): nn.utils.spectral_norm(m.head.fc)
def weight_norm(m): nn.utils.parametrizations.weight_norm(m.body.block1.conv)
def in_head_weight(m): nn.utils.parametrizations.weight_norm(m.head.fc)
def forward(m): m.body.forward = lambda x, f=m.body.forward: 2*f(x)
def method(m): m.body.block3.transition = lambda x: 0*m.body.block3.shortcut(x)
def inner(m): m.body.block1._call_impl = lambda x, f=m.body.block1._call_impl: 2*f(x)
def derivative(m): m.body.block1.sign.sign = ste_sign

@pytest.mark.parametrize('change', [after, before, of_all, in_head, spectral, weight_norm, in_head_weight,
                                    forward, method, inner, derivative])
def test_what_a_file_would_lose_is_refused_in_one_line(change, tmp_path):
    net = mini()
    change(net)
    net.eval()(IMAGES)
    with pytest.raises(ValueError) as e: save_network(net, tmp_path/'n.safetensors')
    assert not any(tmp_path.iterdir()) and '\n' not in str(e.value)
    assert re.match('(body|head|the network)', str(e.value))
    if change is derivative: return # a packed network has no derivative
    with pytest.raises(ValueError): pack(net)

def test_fastai_s_hooks_only_look(tmp_path):
    "a training is watched by `ActivationStats` and keeps its best network all the same"
    data = fashion_mini(device='cpu')
    x, y = data.train.x[:32], data.train.y[:32]
    best = Best(tmp_path/'best.safetensors')
    learn = bnn_learner(tensor_dls(x, y, x, y, bs=16, device='cpu'), mini(), cbs=[ActivationStats(), best])
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)
    assert load_network(tmp_path/'best.safetensors')(IMAGES).shape == (4, 10)

# runs among pictures --------------------------------------------------------------------------

@pytest.fixture
def pics(tmp_path, monkeypatch):
    noise_folder(tmp_path/'pics', dict(train=4, val=2), ('left', 'right'), sides=(20, 30))
    monkeypatch.chdir(tmp_path)
    return tmp_path/'pics'

def names(folder): return sorted(p.relative_to(folder).as_posix() for p in folder.rglob('*'))

@pytest.mark.parametrize('path,out', [
    ('pics', 'pics'), ('pics', 'pics/runs/x'), ('pics', './pics/../pics/train/left'), ('pics/train', 'pics'),
    ('pics', '~/pics'), ('pics', 'link')])
@pytest.mark.parametrize('dry', [False, True])
def test_no_run_is_written_among_pictures(path, out, dry, pics, monkeypatch, capsys):
    monkeypatch.setenv('HOME', str(pics.parent))
    (pics.parent/'link').symlink_to(pics)
    before = names(pics.parent)
    with pytest.raises(SystemExit) as e:
        bnn_train(['folder', '--path', path, '--out', out, '--epochs', '1', *['--dry-run']*dry])
    said = str(e.value)
    where = Path(out).expanduser()
    assert said.startswith(f'bnn_train: --out {where}: what is written there would lie among the pictures '
                           f'of --path {path}; ')
    assert 'choose a folder beside them, such as --out' in said and '\n' not in said
    assert names(pics.parent) == before

def test_the_default_place_lies_among_pictures_of_this_folder(pics, monkeypatch):
    monkeypatch.chdir(pics)
    before = names(pics)
    with pytest.raises(SystemExit, match='would lie among the pictures of --path .; choose'):
        bnn_train(['folder', '--path', '.', '--epochs', '1'])
    assert names(pics) == before

@pytest.mark.parametrize('out', ['pics', 'pics/train', 'pics/train/x', 'pics/train/left/run'])
def test_nor_by_loaders_of_the_user_s(out, pics):
    dls = folder_dls('pics', bs=4, size=32, workers=0, device='cpu', seed=0)
    with pytest.raises(ValueError, match='would lie among the pictures of dls'):
        train(make_recipe('folder', epochs=1), out, dls=dls)

def test_a_place_beside_the_pictures_is_free(pics):
    for out in ('runs/x', 'pics2', 'pics.run'): check_apart(out, 'pics')
    check_apart('.', 'pics')

def test_nor_is_a_packed_file(pics):
    bnn_train(['folder', '--path', 'pics', '--out', 'run', '--epochs', '1', '--bs', '4', '--device', 'cpu',
               '--size', '32'])
    with pytest.raises(SystemExit, match='would lie among the pictures'):
        bnn_pack.__wrapped__('run', out='pics/net.bnn', path='pics')
    assert not (pics/'net.bnn').exists()
