"""The cells of each chapter that are not exported, run against its module.

`make coverage` counts what they run, `make mutants` asks whether they see a change. A notebook defines
what it exports, so a module would never meet the notebook's own tests: here the exported cells are
left out, and their names come from the module.
"""
import importlib
import json
import re
import sys
from collections import ChainMap
from pathlib import Path
import matplotlib
import pytest

ROOT = next(p for p in Path(__file__).parents if (p/'nbs').is_dir())
FLAGS = 'export|exporti|exports|default_exp|eval: false|cuda|slow'
LEFT_OUT = re.compile(rf'^(#\|\s*({FLAGS})\b|[%!])', re.M)
EXPORTS = re.compile(r'^#\|\s*(?:default_exp|export) +([\w.]+)', re.M)

def codes_of(file):
    "the code cells of a notebook"
    found = json.loads(file.read_text())['cells']
    return [''.join(c['source']) for c in found if c['cell_type'] == 'code']

def modules_of(file):
    "modules that a notebook makes or adds to: {'onebit.tiles': None}, in order"
    return dict.fromkeys(EXPORTS.findall('\n\n'.join(codes_of(file))))

def chapters():
    "notebooks by the module they make, or by their name where another one makes it"
    found = {}
    for file in sorted(ROOT.glob('nbs/[1-7]_*/*.ipynb')):
        name = next(iter(modules_of(file)), file.stem)
        found[file.stem if name in found else name] = file
    return found

CHAPTERS = chapters()

def names_of(file):
    "what the exported cells would have defined"
    modules = [importlib.import_module(f'bnn_bn.{name}') for name in modules_of(file)]
    return dict(ChainMap(*map(vars, reversed(modules))))

@pytest.mark.parametrize('name', CHAPTERS)
def test_cells(name, monkeypatch):
    matplotlib.use('agg')
    monkeypatch.chdir(CHAPTERS[name].parent)
    names = dict(names_of(CHAPTERS[name]), __name__='__main__', display=repr)
    monkeypatch.setitem(sys.modules, '__main__', sys.modules['__main__'])
    for code in codes_of(CHAPTERS[name]):
        if not LEFT_OUT.search(code): exec(compile(code, name, 'exec'), names)
