"""The cells of a notebook that are not exported, run against its module: what `make mutants` runs.

A notebook defines what it exports, so a changed module would never meet the notebook's own tests.
Here the exported cells are left out, and their names come from the module.
"""
import importlib
import json
import re
import sys
from pathlib import Path
import matplotlib
import pytest

ROOT = next(p for p in Path(__file__).parents if (p/'nbs').is_dir())
NOTEBOOKS = {
    'agc': '2_no_norm/20_agc',
    'layers.conv': '1_one_bit/02_conv',
    'onebit.fold': '5_packed/31b_fold',
    'onebit.kernels': '5_packed/31e_kernels',
    'onebit.engine': '5_packed/31f_engine',
    'checkpoint': '4_training/13_checkpoint',
    'train.resume': '4_training/24_resume'}
FLAGS = 'export|exporti|exports|default_exp|eval: false|cuda|slow'
LEFT_OUT = re.compile(rf'^(#\|\s*({FLAGS})\b|[%!])', re.M)

def cells(name):
    "code of the cells that are not exported"
    found = json.loads((ROOT/'nbs'/f'{NOTEBOOKS[name]}.ipynb').read_text())['cells']
    codes = [''.join(c['source']) for c in found if c['cell_type'] == 'code']
    return [code for code in codes if not LEFT_OUT.search(code)]

@pytest.mark.parametrize('name', NOTEBOOKS)
def test_cells(name, monkeypatch):
    matplotlib.use('agg')
    monkeypatch.chdir((ROOT/'nbs'/NOTEBOOKS[name]).parent)
    names = dict(vars(importlib.import_module(f'bnn_bn.{name}')), __name__='__main__', display=repr)
    monkeypatch.setitem(sys.modules, '__main__', sys.modules['__main__'])
    for code in cells(name): exec(compile(code, name, 'exec'), names)
