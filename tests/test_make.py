"Rules of the Makefile, with a stand-in for Python that notes what it is asked for."
import ast, re, shutil, subprocess
from pathlib import Path
import pytest

ROOT = Path(__file__).parent.parent
MAKEFILE = (ROOT/'Makefile').read_text(encoding='utf-8')
needs_make = pytest.mark.skipif(not shutil.which('make'), reason='no make in PATH')
UNFINISHED = '#!/bin/sh\nexit 1\n' # has no pip
PYTHON = '''#!/bin/sh
echo "$*" >> said
case "$*" in
    *'-m venv'*) for last; do :; done; mkdir -p $last/bin; cp python $last/bin/python;;
    *'-m pip wheel'*) test ! -e build/lib/bnn_bn/gone.py;;
esac
'''

@pytest.fixture
def clone(tmp_path):
    "a folder with the Makefile, what its rules depend on, and the stand-in"
    for name in ('settings.ini', 'setup.py', 'constraints-tested.txt', 'docs/requirements.txt', 'Makefile'):
        (tmp_path/name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT/name, tmp_path/name)
    program(tmp_path/'python', PYTHON)
    return tmp_path

def program(file, text):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    file.chmod(0o755)

def make(clone, target):
    "what Python was asked for"
    said = clone/'said'
    said.unlink(missing_ok=True)
    subprocess.run(['make', target, 'PYTHON=./python'], cwd=clone, check=True, capture_output=True, timeout=60)
    return said.read_text() if said.exists() else ''

@needs_make
@pytest.mark.parametrize('target, folder', (('install', '.venv'), ('docs', '.venv-docs')))
def test_an_environment_that_was_not_finished_is_made_again(target, folder, clone):
    "its making was stopped before it had pip; a whole one is left as it is"
    program(clone/folder/'bin/python', UNFINISHED)
    assert f'-m venv {folder}' in make(clone, target)
    (clone/folder/'installed').unlink()
    said = make(clone, target)
    assert '-m pip install' in said and '-m venv' not in said

@needs_make
def test_a_wheel_has_nothing_of_an_earlier_build(clone):
    "setuptools adds to build/lib and packs all of it"
    (clone/'build/lib/bnn_bn').mkdir(parents=True)
    (clone/'build/lib/bnn_bn/gone.py').write_text('')
    assert '-m pip wheel' in make(clone, 'wheel')

def test_quick_leaves_out_what_is_slow_and_nothing_else():
    "pytest's -k takes no notice of capitals, and finds a word within another"
    left_out = re.findall(r'not (\w+)', re.search(r"-k '(.*)'", MAKEFILE)[1])
    files = re.findall(r'tests/test_\w+\.py', MAKEFILE[MAKEFILE.index('\nquick:'):MAKEFILE.index('-k ')])
    names = [n.name for file in files for n in ast.walk(ast.parse((ROOT/file).read_text(encoding='utf-8')))
             if isinstance(n, ast.FunctionDef) and n.name.startswith('test_')]
    assert len(names) > 40
    assert [n for n in names if any(word.lower() in n.lower() for word in left_out)] == ['test_in_step']
