"The import table: no module imports upward, some stand alone, none hides a name of fastai."
import ast
import configparser
import importlib
import json
import re
from pathlib import Path
import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT/'nbs').rglob('[0-9]*.ipynb'))
EXP = re.compile(r'#\| default_exp ([\w.]+)')

def module_of(nb):
    "the module that a notebook makes, or ''"
    found = EXP.search(nb.read_text(encoding='utf-8'))
    return found[1] if found else ''

ADDS = re.compile(r'#\| exports?i? ([\w.]+)')

def modules_of(nb):
    "the module that a notebook makes, and those that it adds cells to: {'onebit.tiles'}"
    return {module_of(nb), *ADDS.findall(nb.read_text(encoding='utf-8'))} - {''}

# modules with the number of their notebook: {'layers.conv': '02'}
# of the last one, where several add cells to it
NUMBER = {m: p.stem.partition('_')[0] for p in NOTEBOOKS for m in modules_of(p)}
DRAWS = 'core.plots' # stands alone, so that the cells of any chapter may draw with it
ALONE = ('layers.binarize', 'core.arguments', 'core.files', 'core.unwrap',
         'core.trials', 'core.plots', 'onebit.counting')
CORE = {'core.arguments', 'core.autocast', 'core.errors', 'core.files', 'core.places', 'core.unwrap',
        'core.trials', 'core.plots'}
# nearly alone: what they may import beside `core`
ALLOWED = {
    'agc': set(), 'cost': set(), 'images.augment': set(), 'images.pictures': set(),
    'signal.ledger': set(), 'others.netgraph': set(), 'core.autocast': set(),
    'train.throughput': set(), 'train.ema': set(), 'optim': {'models'},
    'train.speed': {'core.autocast', 'train.ema', 'train.throughput'},
    'signal.probe': {'layers.activations', 'layers.conv', 'signal.ledger'},
    'signal.theory': {'layers.conv', 'signal.ledger'},
    'images.protocol': {'images.pictures'}, 'images.loaders': {'images.pictures', 'images.protocol'},
    'data': {'images.augment', 'images.pictures', 'images.protocol'},
    'folder': {'images.augment', 'images.pictures', 'images.protocol'}, 'onebit.graph': set(),
    'onebit.tiles': {'onebit.counting'}, 'onebit.native': {'onebit.counting'},
    'onebit.kernels': {'onebit.counting', 'onebit.native', 'onebit.tiles'},
    'onebit.stem': {'onebit.graph'}, 'layers.pixels': {'layers.conv'},
    'onebit.engine': {'onebit.graph', 'onebit.stem', 'onebit.counting', 'onebit.tiles',
                      'onebit.kernels'},
    'export': {'onebit.graph', 'onebit.engine', 'onebit.stem'},
    'others.branches': {'others.netgraph'},
    'others.variance': {'others.netgraph', 'others.branches'},
    'others.normfree': {'layers.signed', 'others.netgraph', 'others.variance'},
    'layers.signed': {'layers.activations', 'layers.conv', 'layers.parts'},
    'others.described': {'layers.activations', 'layers.binarize', 'layers.conv', 'layers.signed'},
    'others.to_bits': {'layers.activations', 'layers.conv', 'layers.parts', 'layers.signed',
                       'others.described', 'others.netgraph'},
    'convert': {'others.netgraph', 'others.variance', 'others.normfree', 'others.to_bits',
                'signal.start'}}

def file_of(name): return ROOT/f'bnn_bn/{name.replace(".", "/")}.py'

def tree_of(name): return ast.parse(file_of(name).read_text(encoding='utf-8'))

def targets(node, here=''):
    "what an import statement in a module of ours names; `here` is the module's package"
    if isinstance(node, ast.Import): return [a.name for a in node.names]
    if not isinstance(node, ast.ImportFrom): return []
    base = base_of(node, here)
    modules = [f'{base}.{a.name}'.strip('.') for a in node.names]
    ours = [m for m in modules if m.removeprefix('bnn_bn.') in NUMBER]
    inside = node.level and ours
    return modules if inside else [base]

def base_of(node, here):
    "the module behind `from`: nbdev writes ours relative, `from ..agc import x`"
    if not node.level: return node.module
    parts = ['bnn_bn', *here.split('.')] if here else ['bnn_bn']
    parts = parts[:len(parts) - node.level + 1]
    return '.'.join([*parts, node.module or '']).strip('.')

def package_of(name): return name.rpartition('.')[0]

def imported(name):
    "modules of ours that a module imports"
    nodes, package = ast.walk(tree_of(name)), package_of(name)
    found = [t for n in nodes for t in targets(n, package)]
    ours = {t for t in found if t.startswith('bnn_bn.')}
    return {t.removeprefix('bnn_bn.') for t in ours} & set(NUMBER)

def on_import(tree, here=''):
    "what is imported when a module is: every statement that stands in no function"
    kinds = ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda
    found = []
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, kinds): continue
        found += targets(node, here) + on_import(node, here)
    return found

def within(target, packages): return any(f'{target}.'.startswith(f'{p}.') for p in packages)

def test_found():
    assert set(ALONE) < set(NUMBER)
    engine = {'graph', 'stem', 'counting', 'tiles', 'kernels'}
    assert imported('onebit.engine') - CORE == {f'onebit.{m}' for m in engine}

@pytest.mark.parametrize('name', NUMBER)
def test_no_import_upward(name):
    assert all(NUMBER[m] < NUMBER[name] for m in imported(name))
    if name in ALONE: assert imported(name) <= {'core.errors'}
    if name in ALLOWED: assert imported(name) <= ALLOWED[name] | CORE

def test_no_orphan():
    "each module has its notebook, and each notebook its module"
    files = [p.relative_to(ROOT/'bnn_bn') for p in (ROOT/'bnn_bn').rglob('*.py')]
    modules = {'.'.join(p.with_suffix('').parts) for p in files if p.name != '__init__.py'}
    assert modules - {'_modidx', '__main__'} == set(NUMBER)

# What a package may import from outside, as its docstring says; the doors stand above all of them.
ROOMS = dict(
    core=set(), images={'core'}, layers={'core'}, signal={'core', 'layers'},
    others={'core', 'layers', 'models'}, targets={'core', 'onebit', 'images', 'deploy'},
    onebit={'core', 'layers', 'models', 'others', 'weights'},
    train={'layers', 'signal', 'models', 'data', 'images', 'folder', 'learner', 'checkpoint',
           'others', 'core', 'weights', 'optim'})

def room(module): return module.partition('.')[0]

def arrows():
    "which room imports from which: {(from, to)}"
    pairs = set()
    for name in set(NUMBER) - {'all'}:
        pairs |= {(room(name), room(m)) for m in imported(name)}
    return {(a, b) for a, b in pairs if a != b}

def test_rooms():
    "few rooms, few arrows; those to `core`, on which everything stands, say nothing"
    rooms = {room(m) for m in NUMBER if not m.startswith('_')}
    assert len(rooms) <= 24
    assert len([b for a, b in arrows() if b != 'core']) <= 60

@pytest.mark.parametrize('package', ROOMS)
def test_a_package_imports_what_it_says(package):
    "and its docstring names each module that it has"
    assert {b for a, b in arrows() if a == package} <= ROOMS[package]
    doc = importlib.import_module(f'bnn_bn.{package}').__doc__
    inside = {m.partition('.')[2] for m in NUMBER if room(m) == package}
    assert inside <= set(re.findall(r'\w+', doc))

# Modules reached by their name at the time of a call, against the order. This list can only shrink:
# `pretrained=` of a network's factory needs the packed files, which are made from networks;
# `to_onnx` takes a trained network, which `deploy` folds;
# `bnn_learner` brings `fit_step` and `fit_two_step`, which need a Learner of ours.
LATE = {('models', 'onebit.unpack'), ('export', 'deploy'), ('learner', 'train.steps')}

def test_by_name():
    calls = re.compile(r"import_module\('bnn_bn\.([\w.]+)'")
    found = {(name, m) for name in NUMBER
             for m in calls.findall(file_of(name).read_text(encoding='utf-8'))}
    assert found == LATE

def test_no_circle_of_rooms():
    "rooms that import nothing are taken away until none is left"
    left, found = {room(m) for m in NUMBER}, arrows()
    while left:
        free = {r for r in left if not any(a == r and b in left for a, b in found)}
        assert free, f'a circle among {sorted(left)}'
        left -= free

@pytest.mark.parametrize('nb', NOTEBOOKS, ids=lambda p: p.stem)
def test_cells_import_downward(nb):
    "cells that are not exported obey the same order"
    cells = json.loads(nb.read_text(encoding='utf-8'))['cells']
    code = [''.join(c['source']) for c in cells if c['cell_type'] == 'code']
    lines = [x for c in code for x in c.splitlines() if x.startswith('from bnn_bn.')]
    for line in lines:
        module = line.split()[1].removeprefix('bnn_bn.')
        below = NUMBER.get(module, '') < nb.stem.partition('_')[0]
        assert below or module == DRAWS or module in modules_of(nb), line

TORCHVISION = 'torchvision', 'fastai.vision.all', 'fastai.vision.models', 'fastai.vision.learner'

@pytest.mark.parametrize('name', NUMBER)
def test_torchvision_only_where_used(name):
    "the library works without torchvision: it is imported inside functions only"
    assert not [t for t in on_import(tree_of(name), package_of(name)) if within(t, TORCHVISION)]

@pytest.mark.parametrize('name', NUMBER)
def test_extras_only_where_used(name):
    "onnx, onnxruntime and qonnx are extras: no module imports one when it is imported"
    extras = 'onnx', 'onnxruntime', 'qonnx'
    assert not [t for t in on_import(tree_of(name), package_of(name)) if within(t, extras)]

@pytest.mark.parametrize('text,seen', [
    ('import torchvision', True), ('import os, torchvision.models as m', True),
    ('from torchvision.models import vgg11', True), ('from fastai.vision.all import *', True),
    ('try: import torchvision\nexcept ImportError: pass', True),
    ('class A:\n    import torchvision', True), ('def f(): import torchvision', False),
    ('import torchvisionary', False)])
def test_an_import_is_seen(text, seen):
    assert any(within(t, TORCHVISION) for t in on_import(ast.parse(text))) == seen

def public(name):
    "the names of `from bnn_bn.name import *`"
    nodes = [n for n in tree_of(name).body if isinstance(n, ast.Assign)]
    values = [n.value for n in nodes if ast.unparse(n.targets[0]) == '__all__']
    found = set()
    for v in values:
        if isinstance(v, ast.List): found |= set(ast.literal_eval(v))
    return found

@pytest.fixture(scope='module', params=['fastai.basics', 'fastai.vision.all'])
def of_fastai(request):
    if request.param == 'fastai.vision.all': pytest.importorskip('torchvision')
    return {n for n in vars(importlib.import_module(request.param)) if not n.startswith('_')}

def test_no_name_hides_one_of_fastai(of_fastai):
    found = {name: public(name) & of_fastai for name in NUMBER}
    found = {name: hidden for name, hidden in found.items() if hidden}
    assert 'Learner' in of_fastai and not found

def test_star_import_hides_none(of_fastai):
    "the names of `from bnn_bn.all import *` that are ours, modules too; the old names go on by name"
    everything = importlib.import_module('bnn_bn.all')
    def own(v): return getattr(v, '__module__', getattr(v, '__name__', '')).startswith('bnn_bn')
    ours = {n for n in everything.__all__ if own(getattr(everything, n))}
    assert not ours & of_fastai
    checkpoint = importlib.import_module('bnn_bn.checkpoint')
    assert checkpoint.save_model is checkpoint.save_network
    assert checkpoint.load_model is checkpoint.load_network

ENGINE = 'graph', 'counting', 'tiles', 'kernels', 'engine', 'fold'
IMPORTERS = *(f'onebit.{m}' for m in ('fold', 'tiles', 'kernels', 'engine')), 'deploy', 'bench'

@pytest.mark.parametrize('name', IMPORTERS)
def test_what_others_import_is_public(name):
    "the modules of the engine import only what the others offer"
    nodes = ast.walk(tree_of(name))
    froms = [n for n in nodes if isinstance(n, ast.ImportFrom)]
    for n in froms:
        last = (n.module or '').rpartition('.')[2]
        ours = n.level and last in ENGINE
        if ours: assert {a.name for a in n.names} <= public(f'onebit.{last}')

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
