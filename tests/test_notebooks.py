"What a reader finds in a notebook: its form, its outputs, and that nothing is out of step."
import json, os, re, shutil, subprocess, sys
from pathlib import Path
import pytest

ROOT = Path(__file__).parent.parent
TUTORIALS = sorted((ROOT/'nbs/tutorials').glob('*.ipynb'))
NOTEBOOKS = sorted((ROOT/'nbs').glob('*.ipynb')) + TUTORIALS
cells = lambda nb, kind: [c for c in json.loads(nb.read_text())['cells'] if c['cell_type'] == kind]
source = lambda c: ''.join(c['source'])

@pytest.mark.parametrize('nb', NOTEBOOKS, ids=lambda p: p.stem)
def test_form(nb):
    first = json.loads(nb.read_text())['cells'][0]
    assert re.match(r'# \S.*\n\n> \S', source(first)), 'the first cell is a title and a subtitle'
    assert nb.stat().st_size < 150_000
    assert len(cells(nb, 'code')) + len(cells(nb, 'markdown')) < 60
    ids = [c['id'] for c in json.loads(nb.read_text())['cells']]
    assert len(set(ids)) == len(ids)

@pytest.mark.parametrize('nb', NOTEBOOKS, ids=lambda p: p.stem)
def test_exports_are_tested(nb):
    "each public export is used in a cell that is not exported"
    code = [source(c) for c in cells(nb, 'code')]
    plain = '\n'.join(c for c in code if not c.startswith('#| export'))
    for c in code:
        if c.startswith('#| exports'):
            for name in re.findall(r'^(?:def|class) ([a-zA-Z]\w*)', c, re.M): assert re.search(rf'\b{name}\b', plain), name
            assert len(c.splitlines()) <= 30, c.splitlines()[1]

@pytest.mark.parametrize('nb', TUTORIALS, ids=lambda p: p.stem)
def test_tutorials_export_nothing(nb):
    "a tutorial uses the package and adds nothing to it; its name is no layer's number"
    assert not re.search(r'#\|\s*(default_exp|export)', '\n'.join(source(c) for c in cells(nb, 'code')))
    assert not nb.stem[0].isdigit()

@pytest.mark.parametrize('nb', NOTEBOOKS, ids=lambda p: p.stem)
def test_outputs(nb):
    "no errors, warnings, progress bars or paths; a cell that draws has its picture"
    drawn = 0
    for c in cells(nb, 'code'):
        for o in c['outputs']:
            assert o['output_type'] != 'error'
            assert o.get('name') != 'stderr', source(c)
            text = json.dumps({k: v for k, v in o.get('data', {}).items() if k != 'image/png'}) + ''.join(o.get('text', ''))
            assert not re.search(r'/(home|root|tmp|work|usr)/|Warning', text), source(c)
            drawn += 'image/png' in o.get('data', {})
    if any('import matplotlib' in source(c) for c in cells(nb, 'code')): assert drawn

def copy_of(tmp):
    "the working tree (tracked and new files) as a git repository of its own"
    files = subprocess.run(['git', 'ls-files', '-co', '--exclude-standard', '-z'], cwd=ROOT, capture_output=True, check=True).stdout.decode().split('\0')
    for f in files:
        if f and (ROOT/f).is_file():
            (tmp/f).parent.mkdir(parents=True, exist_ok=True); shutil.copy(ROOT/f, tmp/f)
    git = lambda *a: subprocess.run(['git', '-c', 'user.name=t', '-c', 'user.email=t@t', *a], cwd=tmp, check=True, capture_output=True).stdout.decode()
    git('init', '-q'); git('add', '-A'); git('commit', '-qm', 'as found')
    return git

@pytest.mark.skipif(not (ROOT/'.git').exists(), reason='needs a git checkout')
@pytest.mark.parametrize('command', [['nbdev_export'], ['nbdev_clean'], [sys.executable, 'tools/readme.py']], ids=['export', 'clean', 'readme'])
def test_in_step(command, tmp_path):
    git = copy_of(tmp_path)
    env = dict(os.environ, PATH=f'{Path(sys.executable).parent}:{os.environ["PATH"]}', PYTHONPATH=str(tmp_path), PYTHONWARNINGS='ignore')
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert git('status', '--porcelain') == ''

@pytest.mark.skipif(not (ROOT/'.git').exists(), reason='needs a git checkout')
def test_no_machine_in_the_files():
    "no home or build folder of a machine stands in what we ship"
    files = subprocess.run(['git', 'ls-files', '-co', '--exclude-standard'], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for f in files:
        if Path(f).suffix in ('.npz', '.png', '.safetensors') or not (ROOT/f).is_file(): continue
        text = (ROOT/f).read_text(errors='replace')
        assert not re.search(r'/(root|home/\w+|work|opt)/(?!/)\w', text) or f == 'tests/test_notebooks.py', f
