"The import table: no module imports upward, and some stand alone."
import ast, configparser, json
from pathlib import Path
import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT/'nbs').glob('[0-9]*.ipynb'))
NUMBER = {p.stem.partition('_')[2]: p.stem.partition('_')[0] for p in NOTEBOOKS if '#| default_exp' in p.read_text()}
ALONE = 'binarize', 'augment', 'sigprop', 'agc', 'speed', 'cost', 'files', 'counting'
ALLOWED = dict(probe={'activations', 'conv', 'sigprop'}, theory={'conv', 'sigprop'}, data={'augment'}, folder={'augment', 'data'},
               graph={'files'}, bnnfile={'graph'}, tiles={'counting'}, kernels={'counting', 'tiles'},
               engine={'graph', 'counting', 'tiles', 'kernels'}, export={'files', 'graph', 'engine'}, convert={'activations', 'conv'}) # nearly alone

def imported(name):
    "modules of ours that a module imports"
    tree = ast.parse((ROOT/f'bnn_bn/{name}.py').read_text())
    froms = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)] # nbdev writes them relative: from .agc import x, from . import agc
    mods = [m for n in froms for m in ([n.module] if n.module else [a.name for a in n.names]) if n.level] + [n.module[7:] for n in froms if (n.module or '').startswith('bnn_bn.')]
    mods += [a.name[7:] for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names if a.name.startswith('bnn_bn.')]
    return set(mods) & set(NUMBER)

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
    for cell in json.loads(nb.read_text())['cells']:
        if cell['cell_type'] != 'code': continue
        for line in ''.join(cell['source']).splitlines():
            if line.startswith('from bnn_bn.'): assert NUMBER[line.split()[1].split('.')[1]] < nb.stem.partition('_')[0], line

def test_torchvision_only_where_used():
    "the library works without torchvision: it is imported inside functions only"
    for name in NUMBER:
        tree = ast.parse((ROOT/f'bnn_bn/{name}.py').read_text())
        for n in tree.body:
            if isinstance(n, ast.ImportFrom): assert not (n.module or '').startswith('torchvision') and n.module != 'fastai.vision.all', name

def test_extras_only_where_used():
    "onnx, onnxruntime and qonnx are extras: no module imports one when it is imported"
    for name in NUMBER:
        for n in ast.parse((ROOT/f'bnn_bn/{name}.py').read_text()).body:
            mods = [n.module or ''] if isinstance(n, ast.ImportFrom) else [a.name for a in n.names] if isinstance(n, ast.Import) else []
            assert not {'onnx', 'onnxruntime', 'qonnx'} & {m.split('.')[0] for m in mods}, name

def test_what_others_import_is_public():
    "the modules of the engine import only what the others offer"
    for name in ('fold', 'tiles', 'kernels', 'engine', 'deploy', 'bench'):
        tree = ast.parse((ROOT/f'bnn_bn/{name}.py').read_text())
        for n in ast.walk(tree):
            if isinstance(n, ast.ImportFrom) and n.level and n.module in ('graph', 'counting', 'tiles', 'kernels', 'engine', 'fold'):
                module = __import__(f'bnn_bn.{n.module}', fromlist=['__all__'])
                assert {a.name for a in n.names} <= set(module.__all__), name

def test_settings():
    cfg = configparser.ConfigParser(delimiters=['='], interpolation=None); cfg.read(ROOT/'settings.ini')
    s = cfg['DEFAULT']
    import bnn_bn
    assert bnn_bn.__version__ == s['version'] and 'torch>=2.11' in s['requirements'] and 'nbdev>=2.4.14,<3' in s['dev_requirements']
    assert {'onnx', 'onnxruntime'} <= set(s['export_requirements'].split()) and 'qonnx' in s['qonnx_requirements'].split() and 'numba' in s['requirements'].split()
    for script in s['console_scripts'].split():
        module, func = script.split('=')[1].split(':')
        assert callable(getattr(__import__(module, fromlist=[func]), func))
