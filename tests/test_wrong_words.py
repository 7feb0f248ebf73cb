"Wrong words at each command: one line that names what was wrong as it was typed, and nothing is written."
import os
import shutil
from pathlib import Path
import pytest
import torch
from PIL import Image
from bnn_bn import commands as done
from bnn_bn.checkpoint import save_network
from bnn_bn.images.inventory import ENDINGS
from bnn_bn.models import create_model
from bnn_bn.onebit.graph import read_bnn
from bnn_bn.weights import pretrained_path
from test_given import NAME, as_run, one_line, run

@pytest.fixture(scope='module')
def room(tmp_path_factory):
    "one of each kind of file and folder that a user could name"
    home = tmp_path_factory.mktemp('room')
    shutil.copy(pretrained_path(NAME), home/'net.bnn')
    model, info = create_model(home/'net.bnn'), read_bnn(home/'net.bnn').info
    save_network(model, home/'net.safetensors', **{k: info[k] for k in ('classes', 'mean', 'std', 'size')})
    save_network(model, home/'untold.safetensors')
    torch.save(model.state_dict(), home/'w.pth')
    as_run(home/'run', home/'net.safetensors')
    as_run(home/'broken', home/'net.safetensors')
    (home/'broken/config.json').write_text('{')
    for name in ('net.bnn', 'net.safetensors'):
        (home/name.replace('net', 'cut')).write_bytes((home/name).read_bytes()[:5000])
        (home/name.replace('net', 'nothing')).write_bytes(b'')
    for name in ('text.txt', 'there.onnx', 'bad.png', 'full/x'):
        (home/name).parent.mkdir(exist_ok=True)
        (home/name).write_text('x')
    (home/'empty').mkdir()
    Image.new('L', (32, 32)).save(home/'p.png')
    return home

def files(folder): return {str(p): p.stat().st_mtime_ns for p in Path(folder).rglob('*')}

# what each command that takes a network says of what is none, whatever follows
NO_NETWORK = {
    'nowhere': 'nowhere: no such file', 'fashion-reactnet_min': 'did you mean fashion-reactnet_mini',
    'text.txt': 'text.txt: not a whole safetensors file', 'empty': 'empty is no run', 'p.png': 'a picture',
    'nothing.bnn': 'nothing.bnn: not a .bnn file (it is empty)', 'cut.bnn': 'cut.bnn: truncated, 5000 of',
    'nothing.safetensors': 'nothing.safetensors: not a whole', 'cut.safetensors': 'cut.safetensors: not a whole',
    'broken': 'broken/config.json: cannot be read', '': 'an empty name', 'w.pth': 'w.pth: '}
BEHIND = dict(eval=(), pack=('--out', 'new.bnn'), classify=('p.png',), export=('new.onnx',), deploy=('new',),
              bench=('--out', 'new.json'))

@pytest.mark.parametrize('word', NO_NETWORK)
@pytest.mark.parametrize('name', BEHIND)
def test_what_is_no_network(name, word, room, monkeypatch):
    monkeypatch.chdir(room)
    before, words = files(room), NO_NETWORK[word]
    if name == 'pack' and word in ('nothing.bnn', 'cut.bnn'): words = 'is packed already'
    one_line(run(name, word, *BEHIND[name]), words)
    assert files(room) == before

WRONG = '''
eval run --which ../net :: --which ../net
eval run --which last :: --which last is not there, but best
eval nowhere --which model :: nowhere: no such file
eval run/best.safetensors --which model :: --which model: chooses from the folder of a run, and run/best.safetensors
classify net.bnn p.png --which model :: --which model: chooses from the folder of a run, and net.bnn is none
bench fashion-reactnet_mini --which mdoel :: --which mdoel: chooses from the folder of a run, and fashion-reactnet_mini
eval run --threads -1 :: --threads -1: at least 1
eval run --threads x :: --threads: invalid int value: 'x'
eval run --device cuda:77 :: --device cuda:77: this machine has
eval run --device gpu :: --device gpu: cpu, cuda
eval run --path nowhere :: --path nowhere: the pictures of fashion come with the package
eval run --data mnist :: --data mnist: allowed are
eval run --valid-images 99999999 :: --valid-images 99999999: from 1 to
eval net.safetensors :: no config.json beside it; say which data with --data
eval net.bnn :: no config.json beside it; say which data with --data
pack run --out net.bnn :: net.bnn: is there already; --force replaces it
pack run --out full :: full: a folder; name a file
pack run --out full --force :: full: a folder; name a file
pack run --out text.txt/a/x.bnn :: text.txt/a/x.bnn: text.txt is a file, no folder
pack run --out x.bnn --least nan :: --least nan: a share from 0 to 1
pack run --out x.bnn --least 2 :: --least 2.0: a share
pack run --out x.bnn --stem int4 :: --stem int4: allowed are
pack run --out x.bnn --path nowhere :: --path nowhere: the pictures of fashion
pack net.safetensors --out x.bnn --path full :: --path full: no config.json
classify run nowhere.png :: nowhere.png: no such picture or folder
classify run bad.png :: bad.png: not a readable picture
classify run empty :: empty: no picture in this folder
classify run p.png --threads 0 :: --threads 0: a whole number from 1
classify run p.png --threads 99999 :: --threads 99999: a whole number from 1
classify run p.png --top 0 :: classify: --top 0: a whole number from 1
classify untold.safetensors p.png :: untold.safetensors: it does not say the size and mean and std
export run :: one of a file to write and --web DIR
export run there.onnx :: there.onnx: is there already; --force
export run x.tflite :: x.tflite: the ending says the form
export run text.txt/x.onnx :: text.txt/x.onnx: text.txt is a file
export run x.c --size -1 :: --size -1: a whole number
export run x.c --ram -1 :: --ram -1: a whole number from 1 on
export run x.onnx --size 64 :: --size 64: not for .onnx
export run x.onnx --ram 64 :: --ram 64: not for .onnx
export run --web x --ram 64 :: --ram 64: not for a page
export run --web full :: --web full is there already and is not empty
export run --web text.txt :: --web text.txt is there already and is no folder
export run --web text.txt/x :: text.txt is a file, no folder
export untold.safetensors x.c :: --size 0: untold.safetensors does not say the size
export untold.safetensors --web x :: --size 0: untold.safetensors does not say the size
deploy run full :: deploy: full is there already and is not empty
deploy run text.txt :: deploy: text.txt is a file, no folder
deploy run text.txt/x :: text.txt is a file, no folder
deploy untold.safetensors x :: untold.safetensors: it does not say the size and mean and std
bench run --threads 0 :: --threads 0: at least 1
bench run --threads 99999 :: --threads 99999: at most 1024
bench run --rounds 0 :: --rounds 0: at least 1
bench run --only x :: --only x: allowed are
bench run --out full :: full: a folder; name a file
bench run --out text.txt :: text.txt: is there already
bench run --out text.txt/x.json :: text.txt is a file
bench run --out x.png :: --out x.png: the rows are JSON
runs nowhere :: nowhere: no such folder
runs text.txt :: text.txt: a file
runs a b :: unrecognized arguments: b
runs a --folder b :: --folder: not allowed with argument folder
warm --way x :: --way x: allowed are
demo --threads -1 :: --threads -1: at least 1
demo --out text.txt --only linear --epochs 1 --images 128 :: text.txt is a file, no folder
train fashion --path full :: --path full: the pictures of fashion
train fashion --threads -2 :: --threads -2: at least 1
train fashion --out text.txt :: text.txt: a file, no directory
train fashion --save-steps 0 :: --save-steps 0: at least 1
train fashion --out new --resume --force :: --resume goes on with a run, and --force deletes it
train fashion --out new --compile no --teacher-file w.pth :: --teacher-file w.pth: of which network? Name it by
train folder --path text.txt :: text.txt: no such folder
train folder --path empty :: empty: 0 class folders
train cifar10 --path full --no-download :: full: no data_batch_1.bin
train cifar10 --path full --no-download :: bnn train without --no-download
eval run --data cifar100 --path full :: bnn train without --no-download
'''.strip().splitlines()

@pytest.mark.parametrize('line', WRONG)
def test_wrong_words(line, room, monkeypatch):
    monkeypatch.chdir(room)
    words, _, said = line.partition(' :: ')
    before = files(room)
    one_line(run(*words.split()), said)
    assert files(room) == before

def test_a_place_that_takes_nothing(room, monkeypatch):
    "is named as it was given, without the temporary file that was tried"
    monkeypatch.chdir(room)
    if not os.path.isdir('/proc'): pytest.skip('no folder here that refuses files even to root')
    for words in (('pack', 'run', '--out', '/proc/x.bnn'), ('export', 'run', '/proc/x.onnx'),
                  ('deploy', 'run', '/proc/x')):
        said = run(*words)
        one_line(said, f'{words[-1]}: ')
        assert 'tmp' not in said.err and 'Errno' not in said.err

def test_a_pipe_is_no_picture_file(room, tmp_path, monkeypatch):
    "and says how one is read from; nothing can be read where the standard input is closed"
    monkeypatch.chdir(room)
    if hasattr(os, 'mkfifo'):
        os.mkfifo(tmp_path/'pipe')
        one_line(run('classify', 'net.bnn', tmp_path/'pipe'), 'pipe: a pipe or a device; - reads')
    monkeypatch.setattr('sys.stdin', None)
    one_line(run('classify', 'net.bnn', '-'), '-: the standard input is closed')

def test_pictures_of_a_folder_have_the_endings_of_a_training(room, tmp_path, monkeypatch):
    "and hidden files, as macOS writes beside each of them, are none"
    monkeypatch.chdir(room)
    for ending in ENDINGS: Image.new('L', (32, 32)).save(tmp_path/f'a{ending}', KIND.get(ending))
    (tmp_path/'._a.png').write_text('x')
    said = run('classify', 'net.bnn', tmp_path)
    assert said.code == 0, said.err
    assert [Path(line.partition(': ')[0]).suffix for line in said.out.splitlines()] == sorted(ENDINGS)

KIND = {'.jfif': 'JPEG', '.pgm': 'PPM'} # of Pillow, where the ending does not say it

def test_answers_that_differ_are_not_written(room, monkeypatch):
    monkeypatch.chdir(room)
    monkeypatch.setattr(done, 'compare', lambda *a: dict(images=10, agree=.5, difference=1.))
    before = files(room)
    one_line(run('pack', 'run', '--out', 'x.bnn'), 'only 50.00% of 10 answers agree; nothing was written')
    assert files(room) == before
