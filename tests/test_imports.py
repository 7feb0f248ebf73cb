"The import table: no module imports upward, some stand alone, none hides a name of fastai."
import ast
import configparser
import importlib
import json
from pathlib import Path
import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT/'nbs').glob('[0-9]*.ipynb'))
EXPORTING = [p for p in NOTEBOOKS if '#| default_exp' in p.read_text(encoding='utf-8')]
NUMBER = {p.stem.partition('_')[2]: p.stem.partition('_')[0] for p in EXPORTING}
ALONE = ('binarize', 'augment', 'pictures', 'sigprop', 'agc', 'autocast', 'ema', 'throughput', 'cost', 'files', 'counting',
         'netgraph')
ALLOWED = dict( # nearly alone
    speed={'autocast', 'ema', 'throughput'}, probe={'activations', 'conv', 'sigprop'}, theory={'conv', 'sigprop'},
    protocol={'pictures'},
    data={'augment', 'pictures', 'protocol'}, folder={'augment', 'pictures', 'protocol'},
    loaders={'pictures', 'protocol'}, graph={'files'}, bnnfile={'graph'},
    tiles={'counting'}, kernels={'counting', 'tiles'}, export={'files', 'graph', 'engine'},
    engine={'graph', 'counting', 'tiles', 'kernels'}, branches={'netgraph'}, variance={'netgraph', 'branches'},
    normfree={'activations', 'conv', 'netgraph', 'variance'},
    convert={'netgraph', 'variance', 'normfree', 'start'})

def tree_of(name): return ast.parse((ROOT/f'bnn_bn/{name}.py').read_text(encoding='utf-8'))

def targets(node):
    "what an import statement names; nbdev writes ours relative: `from .agc import x`"
    if isinstance(node, ast.Import): return [a.name for a in node.names]
    if not isinstance(node, ast.ImportFrom): return []
    if node.level and not node.module: return [f'bnn_bn.{a.name}' for a in node.names]
    return [f'bnn_bn.{node.module}' if node.level else node.module]

def imported(name):
    "modules of ours that a module imports"
    found = [t for node in ast.walk(tree_of(name)) for t in targets(node)]
    return {t.removeprefix('bnn_bn.') for t in found if t.startswith('bnn_bn.')} & set(NUMBER)

def on_import(tree):
    "what is imported when a module is: every statement that stands in no function"
    kinds = ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda
    found = []
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, kinds): continue
        found += targets(node) + on_import(node)
    return found

def within(target, packages): return any(f'{target}.'.startswith(f'{p}.') for p in packages)

def test_found():
    assert set(ALONE) < set(NUMBER)
    assert imported('engine') == {'graph', 'counting', 'tiles', 'kernels'}

@pytest.mark.parametrize('name', NUMBER)
def test_no_import_upward(name):
    assert all(NUMBER[m] < NUMBER[name] for m in imported(name))
    if name in ALONE: assert not imported(name)
    if name in ALLOWED: assert imported(name) <= ALLOWED[name]

def test_no_orphan():
    "each module has its notebook, and each notebook its module"
    modules = {p.stem for p in (ROOT/'bnn_bn').glob('*.py')} - {'__init__', '_modidx'}
    assert modules == set(NUMBER)

@pytest.mark.parametrize('nb', NOTEBOOKS, ids=lambda p: p.stem)
def test_cells_import_downward(nb):
    "cells that are not exported obey the same order"
    cells = json.loads(nb.read_text(encoding='utf-8'))['cells']
    code = [''.join(c['source']) for c in cells if c['cell_type'] == 'code']
    lines = [x for c in code for x in c.splitlines() if x.startswith('from bnn_bn.')]
    for line in lines:
        module = line.split()[1].split('.')[1]
        assert NUMBER[module] < nb.stem.partition('_')[0], line

TORCHVISION = 'torchvision', 'fastai.vision.all', 'fastai.vision.models', 'fastai.vision.learner'

@pytest.mark.parametrize('name', NUMBER)
def test_torchvision_only_where_used(name):
    "the library works without torchvision: it is imported inside functions only"
    assert not [t for t in on_import(tree_of(name)) if within(t, TORCHVISION)]

@pytest.mark.parametrize('name', NUMBER)
def test_extras_only_where_used(name):
    "onnx, onnxruntime and qonnx are extras: no module imports one when it is imported"
    extras = 'onnx', 'onnxruntime', 'qonnx'
    assert not [t for t in on_import(tree_of(name)) if within(t, extras)]

@pytest.mark.parametrize('text,seen', [
    ('import torchvision', True), ('import os, torchvision.models as m', True),
    ('from torchvision.models import vgg11', True), ('from fastai.vision.all import *', True),
    ('try: import torchvision\nexcept ImportError: pass', True),
    ('class A:\n    import torchvision', True), ('def f(): import torchvision', False),
    ('import torchvisionary', False)])
def test_an_import_is_seen(text, seen):
    assert any(within(t, TORCHVISION) for t in on_import(ast.parse(text))) == seen

# Names of fastai that ours hide after `from bnn_bn.x import *`. This list can only shrink.
HIDES = {'checkpoint': {'load_model', 'save_model'}}

def public(name):
    "the names of `from bnn_bn.name import *`"
    nodes = [n for n in tree_of(name).body if isinstance(n, ast.Assign)]
    lists = [n.value for n in nodes if ast.unparse(n.targets[0]) == '__all__']
    return {x for n in lists for x in ast.literal_eval(n)}

@pytest.fixture(scope='module', params=['fastai.basics', 'fastai.vision.all'])
def of_fastai(request):
    if request.param == 'fastai.vision.all': pytest.importorskip('torchvision')
    return {n for n in vars(importlib.import_module(request.param)) if not n.startswith('_')}

def test_no_name_hides_one_of_fastai(of_fastai):
    found = {name: public(name) & of_fastai for name in NUMBER}
    found = {name: hidden for name, hidden in found.items() if hidden}
    assert 'Learner' in of_fastai and found == HIDES

ENGINE = 'graph', 'counting', 'tiles', 'kernels', 'engine', 'fold'

@pytest.mark.parametrize('name', ['fold', 'tiles', 'kernels', 'engine', 'deploy', 'bench'])
def test_what_others_import_is_public(name):
    "the modules of the engine import only what the others offer"
    froms = [n for n in ast.walk(tree_of(name)) if isinstance(n, ast.ImportFrom) and n.level]
    for n in froms:
        if n.module in ENGINE: assert {a.name for a in n.names} <= public(n.module)

def settings():
    config = configparser.ConfigParser(delimiters=['='], interpolation=None)
    config.read(ROOT/'settings.ini', encoding='utf-8')
    return config['DEFAULT']

def test_requirements():
    import bnn_bn
    s = settings()
    words = {k: set(s[f'{k}requirements'].split()) for k in ('', 'dev_', 'export_', 'qonnx_')}
    assert bnn_bn.__version__ == s['version']
    assert {'torch>=2.11', 'numba'} <= words['']
    assert 'nbdev>=2.4.14,<3' in words['dev_']
    assert {'onnx', 'onnxruntime'} <= words['export_']
    assert 'qonnx' in words['qonnx_']

@pytest.mark.parametrize('script', settings()['console_scripts'].split())
def test_commands(script):
    module, func = script.split('=')[1].split(':')
    assert callable(getattr(importlib.import_module(module), func))
