"The import table: no module imports upward, and some stand alone."
import ast, configparser, json
from pathlib import Path
import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT/'nbs').glob('[0-9]*.ipynb'))
NUMBER = {p.stem.partition('_')[2]: int(p.stem[:2]) for p in NOTEBOOKS if '#| default_exp' in p.read_text()}
ALONE = 'binarize', 'augment', 'sigprop', 'agc', 'speed'
ALLOWED = dict(data={'augment'}, folder={'augment', 'data'}, convert={'activations', 'conv'}) # nearly alone

def imported(name):
    "modules of ours that a module imports"
    tree = ast.parse((ROOT/f'bnn_bn/{name}.py').read_text())
    mods = [n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module] + [a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names]
    return {m.split('.')[1] for m in mods if m.startswith('bnn_bn.')}

def test_found(): assert set(ALONE) < set(NUMBER)

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
            if line.startswith('from bnn_bn.'): assert NUMBER[line.split()[1].split('.')[1]] < int(nb.stem[:2]), line

def test_torchvision_only_where_used():
    "the library works without torchvision: it is imported inside functions only"
    for name in NUMBER:
        tree = ast.parse((ROOT/f'bnn_bn/{name}.py').read_text())
        for n in tree.body:
            if isinstance(n, ast.ImportFrom): assert not (n.module or '').startswith('torchvision') and n.module != 'fastai.vision.all', name

def test_settings():
    cfg = configparser.ConfigParser(delimiters=['='], interpolation=None); cfg.read(ROOT/'settings.ini')
    s = cfg['DEFAULT']
    import bnn_bn
    assert bnn_bn.__version__ == s['version'] and 'torch>=2.11' in s['requirements'] and 'nbdev>=2.4.14,<3' in s['dev_requirements']
    for script in s['console_scripts'].split():
        module, func = script.split('=')[1].split(':')
        assert callable(getattr(__import__(module, fromlist=[func]), func))
