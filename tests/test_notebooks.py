"What a reader finds in a notebook: its form, its outputs, and that nothing is out of step."
import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT/'docs'))
from chapters import read_parts # noqa: E402

TUTORIALS = sorted((ROOT/'nbs/tutorials').glob('*.ipynb'))
NOTEBOOKS = sorted((ROOT/'nbs').rglob('[0-9]*.ipynb')) + [ROOT/'nbs/index.ipynb'] + TUTORIALS

def cells(nb, kind):
    return [c for c in json.loads(nb.read_text(encoding='utf-8'))['cells'] if c['cell_type'] == kind]

def source(cell): return ''.join(cell['source'])

@pytest.mark.parametrize('nb', NOTEBOOKS, ids=lambda p: p.stem)
def test_form(nb):
    all_cells = json.loads(nb.read_text(encoding='utf-8'))['cells']
    first = source(all_cells[0])
    assert re.match(r'# \S.*\n\n> \S', first), 'the first cell is a title and a subtitle'
    assert nb.stat().st_size < 150_000
    assert len(all_cells) < 60
    assert len({c['id'] for c in all_cells}) == len(all_cells)
    written = ''.join(map(source, all_cells))
    assert not re.search(r'[\x00-\x09\x0b-\x1f]', written), 'a formula lost its backslash'

CHAPTERS = [c for part in read_parts(ROOT/'docs/parts.ini') for c in part.chapters]

def links_to(text, file):
    "the notebooks that a text of `file` links to"
    targets = re.findall(r'\]\(([^)#\s]+\.ipynb)', text)
    return {(file.parent/t).resolve() for t in targets}

@pytest.mark.parametrize('chapter,following', zip(CHAPTERS, CHAPTERS[1:]))
def test_leads_to_the_next(chapter, following):
    "the last cell of a chapter links to the next one, in the order of docs/parts.ini"
    file = ROOT/f'nbs/{chapter}.ipynb'
    last = json.loads(file.read_text(encoding='utf-8'))['cells'][-1]
    assert last['cell_type'] == 'markdown'
    assert (ROOT/f'nbs/{following}.ipynb').resolve() in links_to(source(last), file)

def test_index_lists_every_chapter():
    "and nine of them have a star"
    file = ROOT/'nbs/index.ipynb'
    text = '\n'.join(source(c) for c in cells(file, 'markdown'))
    assert {(ROOT/f'nbs/{c}.ipynb').resolve() for c in CHAPTERS} <= links_to(text, file)
    assert len(re.findall(r'^\| ★ \[', text, re.M)) == 9

def is_exported(code): return bool(re.match(r'#\|\s*exports?i?\b', code))

def parsed(code):
    "the syntax of a cell; lines of the notebook's own (%, !) are left out"
    lines = [x for x in code.splitlines() if not re.match(r'\s*[%!]', x)]
    return ast.parse('\n'.join(lines))

def defined(code):
    "public functions and classes that a cell defines"
    kinds = ast.FunctionDef, ast.ClassDef
    names = [n.name for n in parsed(code).body if isinstance(n, kinds)]
    return [n for n in names if not n.startswith('_')]

def in_string(text):
    "what a string uses that is run: a line `bnn_x ...` for the shell, or calls of Python code"
    return set(re.findall(r'^bnn_\w+(?= )', text)) | set(re.findall(r'\b\w+(?=\()', text))

def used(code):
    "names that a cell reads, alone or behind a dot, or calls in a string; a comment uses nothing"
    found = set()
    for n in ast.walk(parsed(code)):
        if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load): found.add(n.id)
        elif isinstance(n, ast.Attribute): found.add(n.attr)
        elif isinstance(n, ast.Constant) and isinstance(n.value, str): found |= in_string(n.value)
    return found

@pytest.mark.parametrize('nb', NOTEBOOKS, ids=lambda p: p.stem)
def test_exports_are_tested(nb):
    "each public export is used in a cell that is not exported"
    code = [source(c) for c in cells(nb, 'code')]
    shown = [c for c in code if re.match(r'#\|\s*exports\b', c)]
    names = {n for c in shown for n in defined(c)}
    plain = set().union(*(used(c) for c in code if not is_exported(c)))
    assert sorted(names - plain) == []
    assert max([len(c.splitlines()) for c in shown], default=0) <= 30

@pytest.mark.parametrize('code,names', [
    ('# f is tried here', set()), ("'f'", set()), ('f = 1', set()), ('def f(): pass', set()),
    ('f(2)', {'f'}), ('%timeit f(2)\ng(f)', {'f', 'g'}), ('import m\nm.f(1)', {'m', 'f'}),
    ('xs.map(f)', {'xs', 'map', 'f'}), ("run('bnn_f x')", {'run', 'bnn_f'}),
    ("run('f(2)')", {'run', 'f'}), ("says = 'bnn_f: no'", set())])
def test_a_use_is_seen(code, names): assert used(code) == names

@pytest.mark.parametrize('nb', TUTORIALS, ids=lambda p: p.stem)
def test_tutorials_export_nothing(nb):
    "a tutorial uses the package and adds nothing to it; its name is no layer's number"
    code = '\n'.join(source(c) for c in cells(nb, 'code'))
    assert not re.search(r'#\|\s*(default_exp|export)', code)
    assert not nb.stem[0].isdigit()

def text_of_output(output):
    "all that an output shows but for its pictures"
    data = {k: v for k, v in output.get('data', {}).items() if k != 'image/png'}
    return json.dumps(data) + ''.join(output.get('text', ''))

@pytest.mark.parametrize('nb', NOTEBOOKS, ids=lambda p: p.stem)
def test_outputs(nb):
    "no errors, warnings, progress bars or paths; a notebook that draws has a picture"
    code = cells(nb, 'code')
    outputs = [(c, o) for c in code for o in c['outputs']]
    for cell, o in outputs:
        assert o['output_type'] != 'error'
        assert o.get('name') != 'stderr', source(cell)
        assert not re.search(r'/(home|root|tmp|work|usr)/|Warning', text_of_output(o)), source(cell)
    pictures = [o for _, o in outputs if 'image/png' in o.get('data', {})]
    if any('import matplotlib' in source(c) for c in code): assert pictures

def listed():
    "tracked and new files of the working tree"
    command = ['git', 'ls-files', '-co', '--exclude-standard', '-z']
    names = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.decode()
    return [f for f in names.split('\0') if f and (ROOT/f).is_file()]

def copy_of(folder):
    "the working tree as a git repository of its own; gives a function that runs git in it"
    for f in listed():
        (folder/f).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT/f, folder/f)
    def git(*args):
        command = ['git', '-c', 'user.name=t', '-c', 'user.email=t@t', *args]
        return subprocess.run(command, cwd=folder, check=True, capture_output=True).stdout.decode()
    git('init', '-q')
    git('add', '-A')
    git('commit', '-qm', 'as found')
    return git

COMMANDS = dict(export=['nbdev_export'], clean=['nbdev_clean'],
                readme=[sys.executable, 'tools/readme.py'])

@pytest.mark.skipif(not (ROOT/'.git').exists(), reason='needs a git checkout')
@pytest.mark.parametrize('command', COMMANDS.values(), ids=COMMANDS.keys())
def test_in_step(command, tmp_path):
    git = copy_of(tmp_path)
    path = f'{Path(sys.executable).parent}:{os.environ["PATH"]}'
    env = dict(os.environ, PATH=path, PYTHONPATH=str(tmp_path), PYTHONWARNINGS='ignore')
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert git('status', '--porcelain') == ''

BINARY = '.npz', '.png', '.safetensors'

@pytest.mark.skipif(not (ROOT/'.git').exists(), reason='needs a git checkout')
def test_no_machine_in_the_files():
    "no home or build folder of a machine stands in what we ship"
    files = [f for f in listed() if Path(f).suffix not in BINARY and f != 'tests/test_notebooks.py']
    for f in files:
        text = (ROOT/f).read_text(errors='replace')
        assert not re.search(r'/(root|home/\w+|work|opt)/(?!/)\w', text), f
