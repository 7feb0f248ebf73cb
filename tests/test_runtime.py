"The runtime alone: which modules it needs, its wheel, a folder without torch, and a small server."
import ast, json, os, re, shutil, socket, subprocess, sys, urllib.error, urllib.request
from configparser import ConfigParser
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bnn_bn.deploy import PackedNet, classify, load_packed, pack
from bnn_bn.images.pictures import METHODS, read_picture
from bnn_bn.models import reactnet_nobn
from bnn_bn.onebit.graph import Graph
from bnn_bn.targets.runtime import Module, deploy_folder, needed_modules, new_statement, renamed
from bnn_bn.targets.runtime import write_runtime

ROOT = Path(__file__).parent.parent
NAME = 'fashion-reactnet_mini'
FILE = ROOT/f'bnn_bn/pretrained/{NAME}.bnn'

# Following imports -------------------------------------------------------------------------------

FILES = {
    '__init__.py': '__version__ = "1"\nfrom . import not_followed',
    'not_followed.py': '', 'files.py': 'import os, json.decoder', 'unused.py': 'import torch',
    'one/__init__.py': 'from .shared import x', 'one/shared.py': 'x = 1',
    'one/start.py': 'from .engine import run\nfrom .. import files, __version__\n'
                    'def f():\n    from pkg.unused import y\n    import torch',
    'one/engine.py': 'try: from ..two.deep.leaf import z\nexcept ImportError: z = 0\n'
                     'if z:\n    from pkg.absolute import a\nclass A:\n    from .tiles import t',
    'one/tiles.py': 'import numpy as np\nfrom .engine import run\nrun = t = 0\ng = lambda: 0',
    'absolute.py': 'import pkg.files\na = 0', 'two/__init__.py': '', 'two/deep/__init__.py': '',
    'two/deep/leaf.py': 'from ...absolute import a\nfrom . import other\nz = 0',
    'two/deep/other.py': ''}

def package(folder, **files):
    for name, text in {**FILES, **files}.items():
        (folder/'pkg'/name).parent.mkdir(parents=True, exist_ok=True)
        (folder/'pkg'/name).write_text(text)
    return folder/'pkg'


def test_all_that_is_imported_is_found(tmp_path):
    "relative imports of many levels, packages' files, conditions, classes, circles; no functions"
    found = needed_modules('pkg.one.start', package(tmp_path))
    short = {n.removeprefix('pkg.') for n in found}
    assert short == {'one', 'one.shared', 'one.start', 'one.engine', 'one.tiles', 'files',
                     'absolute', 'two', 'two.deep', 'two.deep.leaf', 'two.deep.other'}


@pytest.mark.parametrize('line', ('import torch', 'from fastai.vision.all import *',
                                  'if 1:\n    import torch.nn as nn', 'import os, pandas'))
def test_a_foreign_package_is_an_error(line, tmp_path):
    root = package(tmp_path, **{'one/tiles.py': line})
    with pytest.raises(ValueError, match=r'pkg.one.tiles imports (torch|fastai|pandas)'):
        needed_modules('pkg.one.start', root)


@pytest.mark.parametrize('line,new', (
    ('from pkg.files import x', 'from bnn_runtime.files import x'), ('from .. import files', None),
    ('from ..unused import y', 'from pkg.unused import y'), ('from pkg.unused import y', None),
    ('from pkg import __version__', 'from bnn_runtime import __version__'), ('import os', None),
    ('from .. import unused', 'from pkg import unused'), ('from pkg import unused', None),
    ('from pkg.one import engine', 'from bnn_runtime.one import engine'),
    ('from os import path', None)))
def test_import_statements(line, new, tmp_path):
    "what comes along gets the new name; what does not keeps the old one, relative or not"
    names = set(needed_modules('pkg.one.start', package(tmp_path)))
    module = Module('pkg.one.start', tmp_path/'pkg/one/start.py')
    assert new_statement(module, ast.parse(line).body[0], names) == new


def test_only_imports_change(tmp_path):
    "comments, strings and all other lines stay"
    text = ('"from pkg.files import x"\nfrom pkg.files import (x, # é\n    y)  # why\n'
            's = "é"; from pkg.files import z # both\n')
    module = Module('pkg.one.start', package(tmp_path)/'one/start.py')
    module.path.write_text(text, encoding='utf-8')
    assert renamed(module, {'pkg.files'}) == (
        '"from pkg.files import x"\nfrom bnn_runtime.files import x, y  # why\n'
        's = "é"; from bnn_runtime.files import z # both\n')


def test_the_engine_needs_no_more():
    found = needed_modules()
    packages = [n for n, m in found.items() if m.path.name == '__init__.py']
    assert PackedNet.__module__ in found and len(found) - len(packages) < 14
    assert not {'fold', 'packable', 'models', 'weights'} & {n.split('.')[-1] for n in found}


# Without torch -----------------------------------------------------------------------------------

BLOCK = '''
import runpy, sys
absent, *sys.argv = sys.argv[1:]
class Block:
    def find_spec(self, name, path=None, target=None):
        top = name.split('.')[0]
        if top in absent.split(','): raise ImportError(f'no {top} here')
sys.meta_path.insert(0, Block())
sys.path.insert(0, sys.argv[0].rpartition('/')[0])
runpy.run_path(sys.argv[0], run_name='__main__')
'''
NONE = 'torch,fastai,fastcore,bnn_bn'

def environment(path=''): return {**os.environ, 'PYTHONPATH': str(path)}

def command(program, *args, without=NONE):
    return [sys.executable, '-W', 'ignore', '-c', BLOCK, without, str(program), *map(str, args)]

def run(program, *args, path='', without=NONE):
    "a program where some packages cannot be imported"
    return subprocess.run(command(program, *args, without=without), capture_output=True, text=True,
                          env=environment(path), timeout=300)


@pytest.fixture(scope='module')
def server_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('deploy')
    return deploy_folder(NAME, folder/'server')

@pytest.fixture(scope='module')
def picture(tmp_path_factory):
    "a picture file of another size and with colours"
    file = tmp_path_factory.mktemp('picture')/'a.png'
    pixels = np.random.default_rng(0).integers(0, 256, (50, 40, 3), np.uint8)
    Image.fromarray(pixels).save(file)
    return file

def labels(picture):
    "the file of this network does not say how its pictures were resized"
    grey = read_picture(picture, 1).resize((32, 32))
    return classify(load_packed(NAME), grey, top=3)[0]


def test_a_folder_runs_without_torch(server_folder, picture):
    done = run(server_folder/'classify.py', picture)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == ''.join(f'{p:6.1%}  {label}\n' for label, p in labels(picture))


def test_what_is_in_the_folder(server_folder):
    found = {str(f.relative_to(server_folder)) for f in server_folder.rglob('*') if f.is_file()}
    outside = {f for f in found if not f.startswith('bnn_runtime')}
    assert outside == {'net.bnn', 'requirements.txt', 'classify.py', 'serve.py', 'README.txt'}
    lines = (server_folder/'requirements.txt').read_text().splitlines()
    assert f'numpy=={np.__version__}' in lines and all('==' in x for x in lines)
    assert (server_folder/'net.bnn').read_bytes() == FILE.read_bytes()
    assert len((server_folder/'classify.py').read_text().splitlines()) <= 12


def pictures_of_all_kinds(folder):
    "a turned photo, a transparent picture, one of 16 bits, and colours, in sizes of their own"
    g = np.random.default_rng(1)
    def blocks(*shape): return g.integers(0, 256, shape, np.uint8).repeat(16, 0).repeat(16, 1)
    turned, clear = Image.Exif(), blocks(4, 5, 4)
    turned[0x0112], clear[16:, :, 3] = 6, 0
    kinds = dict(turned=Image.fromarray(blocks(2, 5)), clear=Image.fromarray(clear),
                 deep=Image.fromarray(g.integers(0, 65536, (50, 33)).astype(np.uint16)),
                 wide=Image.fromarray(blocks(3, 7, 3)), fits=Image.fromarray(blocks(2, 2)))
    for name, im in kinds.items(): im.save(folder/f'{name}.png', exif=turned if name == 'turned' else b'')
    return sorted(folder.glob('*.png'))

EACH = """
import json, pathlib, runpy, shutil, sys
here = pathlib.Path(__file__).parent
def answers(file): # of both programs
    sys.argv = ['classify.py', file]
    try: runpy.run_path(here/'classify.py')
    except ValueError as e: print('refused:', e)
    data, answer = pathlib.Path(file).read_bytes(), runpy.run_path(here/'serve.py')['answer']
    try: print(json.dumps(answer(data)))
    except ValueError as e: print('refused:', e)
nets, files = sys.argv[1].split(','), sys.argv[2:]
for net in nets:
    shutil.copy(net, here/'net.bnn')
    for file in files: answers(file)
"""

def told(net, file):
    "what both programs say of a picture: the words of `classify`"
    try: found = classify(net, file, top=3)[0]
    except ValueError as e: return [f'refused: {e}']*2
    shown = ''.join(f'{p:6.1%}  {label}\n' for label, p in found).splitlines()
    return [*shown, json.dumps([dict(label=label, probability=round(p, 4)) for label, p in found])]

@pytest.mark.parametrize('channels', (1, 3))
def test_programs_prepare_a_picture_as_the_file_says(channels, tmp_path):
    "each method of resizing, a border, another filter: as `classify` of this package does"
    net = reactnet_nobn('mini', n_out=3, in_chans=channels, width=.25, stem='cifar').eval()
    ways = [dict(method=m, resized=40 if m == 'crop' else None) for m in METHODS]
    ways += [dict(method='crop', resized=[36, 48]), dict(method='middle', border=3, filter='lanczos')]
    nets = [pack(net, mean=.4, std=.1, size=(32, 32), resize=way) for way in ways]
    names = [n.save(tmp_path/f'{i}.bnn') for i, n in enumerate(nets)]
    folder, files = deploy_folder(nets[0], tmp_path/'server'), pictures_of_all_kinds(tmp_path)
    (folder/'each.py').write_text(EACH)
    done = run(folder/'each.py', ','.join(map(str, names)), *files)
    assert done.returncode == 0, done.stderr[-2000:]
    said = [line for n in nets for f in files for line in told(n, f)]
    assert done.stdout.splitlines() == said
    assert len({told(n, files[-1])[-1] for n in nets}) == len(nets), 'the ways differ'


def post(url, data, **headers):
    "status and answer"
    request = urllib.request.Request(url, data, headers)
    try: reply = urllib.request.urlopen(request, timeout=120)
    except urllib.error.HTTPError as e: reply = e
    return reply.status, json.loads(reply.read())


def raw(url, length):
    "the beginning of an answer to a header that no client sends"
    host, port = url.removeprefix('http://').split(':')
    with socket.create_connection((host, int(port)), 60) as s:
        s.sendall(f'POST / HTTP/1.1\r\nContent-Length: {length}\r\n\r\n'.encode('latin-1'))
        return s.recv(100)

SILENT = """
import pathlib, runpy, socket, threading
names = runpy.run_path(pathlib.Path(__file__).parent/'serve.py')
assert 0 < names['Handler'].timeout <= 60
names['Handler'].timeout = .2
server = names['ThreadingHTTPServer'](('127.0.0.1', 0), names['Handler'])
threading.Thread(target=server.serve_forever, daemon=True).start()
for sent in (b'POST / HTTP/1.1\\r\\nContent-Length: 100\\r\\n\\r\\nx', b'POST / HT'):
    with socket.create_connection(server.server_address, 20) as s:
        s.sendall(sent)
        print(s.makefile('rb').read().partition(b'\\r')[0].decode())
server.shutdown()
"""

def test_a_client_that_falls_silent_holds_no_thread(server_folder):
    (server_folder/'silent.py').write_text(SILENT)
    done = run(server_folder/'silent.py')
    (server_folder/'silent.py').unlink()
    assert done.stdout.splitlines() == ['HTTP/1.0 400 Bad Request', ''], done.stderr[-2000:]


def test_the_server(server_folder, picture):
    "classes by HTTP; what is no picture is refused with a sentence, and the server goes on"
    process = subprocess.Popen(command(server_folder/'serve.py', 0), stdout=subprocess.PIPE,
                               stderr=subprocess.DEVNULL, text=True, env=environment())
    try:
        url = process.stdout.readline().strip()
        status, found = post(url, b'no picture')
        assert status == 400 and 'not a readable picture' in found['error']
        for n in (200, 1000, 5000): assert post(url, picture.read_bytes()[:n])[0] == 400
        assert post(url, b'')[0] == 413
        assert post(url, b'x', **{'Content-Length': '99999999999'})[0] == 413
        for length in ('²', '9'*5000, '-1'): assert raw(url, length).split()[1] == b'413', length
        status, found = post(url, picture.read_bytes())
        want = [dict(label=label, probability=round(p, 4)) for label, p in labels(picture)]
        assert (status, found) == (200, want)
        assert json.loads(urllib.request.urlopen(url, timeout=60).read())['size'] == [32, 32]
    finally:
        process.terminate()
        process.wait(30)


def test_a_path_may_begin_at_home(tmp_path, monkeypatch):
    "a folder, a package and a file of the runtime: ~ is no name"
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setenv('USERPROFILE', str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert deploy_folder(NAME, '~/server') == tmp_path/'server'
    assert write_runtime('~/site')[0].is_relative_to(tmp_path/'site')
    (tmp_path/'a.py').write_text("from bnn_runtime import load_packed\nprint(load_packed('~/server/net.bnn').n_out)")
    done = run(tmp_path/'a.py', path=tmp_path/'site')
    assert done.stdout == '10\n', done.stderr[-2000:]
    assert not (tmp_path/'~').exists()


@pytest.mark.skipif(find_spec('setuptools') is None, reason='no setuptools here to build a wheel')
def test_the_wheel(tmp_path):
    "installed without bnn_bn, and beside it: the same bits"
    out = subprocess.run([sys.executable, ROOT/'tools/runtime.py', '--out', tmp_path], timeout=300,
                         capture_output=True, text=True, env=environment(ROOT))
    assert out.returncode == 0, out.stderr[-2000:]
    wheel, = tmp_path.glob('bnn_runtime-*.whl')
    pip = [sys.executable, '-m', 'pip', '-q', 'install', '--no-deps', '--no-index']
    subprocess.run([*pip, '--target', tmp_path/'site', wheel], check=True, timeout=300)
    assert {p.name.partition('-')[0] for p in (tmp_path/'site').iterdir()} == {'bnn_runtime'}
    (tmp_path/'a.py').write_text(f'''
import numpy as np
from bnn_runtime import __version__, load_packed
net = load_packed(r'{ROOT/"bnn_bn/pretrained"/NAME}.bnn')
print(__version__, net(np.ones((1, 1, 32, 32), np.float32)).tobytes().hex())
''')
    alone = run(tmp_path/'a.py', path=tmp_path/'site')
    beside = run(tmp_path/'a.py', path=f'{tmp_path/"site"}{os.pathsep}{ROOT}', without='torch')
    want = load_packed(NAME)(np.ones((1, 1, 32, 32), np.float32)).tobytes().hex()
    assert alone.stdout.split()[1:] == beside.stdout.split()[1:] == [want], alone.stderr[-2000:]


def test_what_the_runtime_lacks_is_named(tmp_path):
    "a network by name, and packing, belong to bnn_bn"
    write_runtime(tmp_path)
    (tmp_path/'a.py').write_text(f'''
from bnn_runtime import load_packed
from bnn_runtime.{PackedNet.__module__.partition(".")[2]} import pack
for f in (lambda: load_packed('{NAME}'), lambda: load_packed('no.bnn'), lambda: pack(0)):
    try: f()
    except (FileNotFoundError, ImportError) as e: print(e)
''')
    lines = run(tmp_path/'a.py').stdout.splitlines()
    assert lines == [f'{NAME}: no such file', 'no.bnn: no such file', 'no bnn_bn here']


# Errors ------------------------------------------------------------------------------------------

def test_nothing_is_overwritten(tmp_path):
    (tmp_path/'full').mkdir()
    (tmp_path/'full/mine.txt').write_text('mine')
    (tmp_path/'file').write_text('mine')
    for name in ('full', 'file'):
        refused = pytest.raises(FileExistsError, match=rf'folder=.*{name}')
        with refused: deploy_folder(NAME, tmp_path/name)
    assert [f.name for f in (tmp_path/'full').iterdir()] == ['mine.txt']
    (tmp_path/'empty').mkdir()
    assert (deploy_folder(NAME, tmp_path/'empty')/'net.bnn').is_file()
    with pytest.raises(FileExistsError, match='bnn_runtime'): write_runtime(tmp_path/'empty')


def test_an_empty_folder_is_filled_and_stays_the_same(tmp_path, monkeypatch):
    "the one in which somebody stands, by a link, or one whose disk is full"
    here = tmp_path/'here'
    here.mkdir()
    before = here.stat().st_ino
    (tmp_path/'link').symlink_to(here, target_is_directory=True)
    monkeypatch.chdir(here)
    with monkeypatch.context() as m:
        def full(*args, **kw): raise OSError(28, 'No space left on device')
        m.setattr(Path, 'write_text', full)
        with pytest.raises(OSError, match="here'$"): deploy_folder(NAME, '../here')
    names = {'README.txt', 'bnn_runtime', 'classify.py', 'net.bnn', 'requirements.txt', 'serve.py'}
    for name in ('.', tmp_path/'link'):
        assert not list(here.iterdir())
        deploy_folder(NAME, name)
        assert here.stat().st_ino == before and (tmp_path/'link').is_symlink()
        assert {p.name for p in here.iterdir()} == names
        for p in here.iterdir(): shutil.rmtree(p) if p.is_dir() else p.unlink()
    assert {p.name for p in tmp_path.iterdir()} == {'here', 'link'}


@pytest.mark.parametrize('change,word', (
    (['size'], 'size'), (['mean'], 'mean'), (['mean', 'std'], 'mean and std')))
def test_pictures_must_be_known(change, word, tmp_path):
    graph = load_packed(NAME).graph
    info = {k: v for k, v in graph.info.items() if k not in change}
    net = PackedNet(Graph(graph.channels, graph.nodes, info))
    refused = pytest.raises(ValueError, match=f'does not say the {word}')
    with refused: deploy_folder(net, tmp_path/'new')
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('change,word', (
    (dict(mean=[.1, .2]), 'mean='), (dict(std=[0.]), 'std='), (dict(size=[32]), 'size='),
    (dict(size=[1, 1]), '1x1 pixels'), (dict(classes=['a']), 'classes=')))
def test_what_the_file_says_must_fit(change, word, tmp_path):
    graph = load_packed(NAME).graph
    changed = Graph(graph.channels, graph.nodes, {**graph.info, **change})
    with pytest.raises(ValueError, match=word): deploy_folder(PackedNet(changed), tmp_path/'new')
    assert not list(tmp_path.iterdir())


def test_damaged_and_missing_files(tmp_path):
    (tmp_path/'a.bnn').write_bytes(FILE.read_bytes()[:-1])
    bad = {tmp_path/'a.bnn': 'truncated', tmp_path/'b.bnn': 'b.bnn', 'fashion_reactnet': 'did you'}
    for file, says in bad.items():
        refused = pytest.raises((ValueError, FileNotFoundError), match=says)
        with refused: deploy_folder(file, tmp_path/'new')
    assert [f.name for f in tmp_path.iterdir()] == ['a.bnn']


def test_the_package_asks_for_what_its_runtime_asks_for():
    "both have the engine, which needs numpy 2; Pillow comes with fastai"
    project = (ROOT/'tools/runtime.py').read_text()
    runtime = set(ast.literal_eval(re.search(r'^dependencies = (.*)$', project, re.M)[1]))
    config = ConfigParser(delimiters=['='], interpolation=None)
    config.read(ROOT/'settings.ini', encoding='utf-8')
    assert 'numba' in runtime and any(r.startswith('numpy>=') for r in runtime)
    assert runtime - {'pillow'} <= set(config['DEFAULT']['requirements'].split())


def test_make():
    text = (ROOT/'Makefile').read_text()
    assert '\nruntime: install\n\t$(BIN)/python tools/runtime.py\n' in text
