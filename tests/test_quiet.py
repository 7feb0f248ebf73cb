"Each command by each of its names: what it writes to stderr, and both spellings of an option."
import configparser
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
import pytest
import torch
from PIL import Image
from bnn_bn.core.errors import DataError
from bnn_bn.train.failures import readable

ROOT = Path(__file__).parent.parent

def scripts():
    "name -> module:function, as the package installs them"
    config = configparser.ConfigParser(delimiters=['='], interpolation=None)
    config.read(ROOT/'settings.ini', encoding='utf-8')
    return dict(s.split('=') for s in config['DEFAULT']['console_scripts'].split())

WRONG = { # words that are refused only by the code that does the work, so all of it is imported
    'bnn': ['runs', '--folder', 'nowhere'], 'bnn_demo': ['--seeds', '0', '--out', 'demo'],
    'bnn_train': ['fashion', '--images', '0'], 'bnn_eval': ['nowhere'], 'bnn_pack': ['nowhere'],
    'bnn_bench': ['nowhere.bnn']}

def called(name, words, folder):
    "a command as its script calls it, in a process of its own; its user did not silence warnings"
    module, function = scripts()[name].split(':')
    file = folder/name
    file.write_text(f'import sys\nfrom {module} import {function}\nsys.exit({function}())\n')
    env = {k: v for k, v in os.environ.items() if k != 'PYTHONWARNINGS'}
    env['PYTHONPATH'] = str(ROOT)
    return subprocess.run([sys.executable, str(file), *words], cwd=folder, env=env, text=True,
                          capture_output=True)

@pytest.mark.parametrize('name', scripts())
def test_help_is_all_that_is_written(name, tmp_path):
    done = called(name, ['--help'], tmp_path)
    assert (done.returncode, done.stderr) == (0, '') and f'usage: {name}' in done.stdout

@pytest.mark.parametrize('name', scripts())
def test_an_error_is_one_line(name, tmp_path):
    "no warning of fastai's or torch's stands before it"
    done = called(name, WRONG[name], tmp_path)
    assert done.returncode and done.stderr.count('\n') == 1, done.stderr
    assert not [f for f in tmp_path.iterdir() if f.name != name]

PIPED = ['--version'], ['runs', '.']

@pytest.mark.skipif(sys.platform == 'win32', reason='no SIGPIPE')
@pytest.mark.parametrize('unbuffered', ['', '1'])
@pytest.mark.parametrize('words', PIPED, ids=' '.join)
def test_a_reader_that_ends_ends_the_command(words, unbuffered, tmp_path):
    "as `bnn runs | head` does: without a word, with the status of SIGPIPE"
    env = dict(os.environ, PYTHONPATH=str(ROOT), PYTHONUNBUFFERED=unbuffered, OMP_NUM_THREADS='1')
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    p = subprocess.Popen([sys.executable, '-m', 'bnn_bn', *words], cwd=tmp_path, env=env, **pipes)
    p.stdout.close()
    said = p.stderr.read()
    p.stderr.close()
    assert (p.wait(), said) == (141, '')

@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='no /dev/full')
@pytest.mark.parametrize('words', [*PIPED, ['runs', '--help']], ids=' '.join)
def test_output_for_which_the_disk_has_no_room(words, tmp_path):
    env = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1')
    with open('/dev/full', 'w') as full:
        done = subprocess.run([sys.executable, '-m', 'bnn_bn', *words], cwd=tmp_path, env=env, text=True,
                              stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 1 and done.stderr.count('\n') == 1, done.stderr
    assert done.stderr.startswith('bnn: the output cannot be written (')

def test_letters_that_the_output_lacks(tmp_path):
    "in names of pictures, and bytes that are none; the command goes on as with any other name"
    names = [b'caf\xc3\xa9.png', b'caf\xe9.png'] if sys.platform == 'linux' else ['caf\u00e9.png']
    for name in names: Image.new('L', (32, 32)).save(os.path.join(os.fsencode(tmp_path), os.fsencode(name)))
    env = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1', PYTHONIOENCODING='ascii')
    done = subprocess.run([sys.executable, '-m', 'bnn_bn', 'classify', 'fashion-reactnet_mini', '.'],
                          cwd=tmp_path, env=env, text=True, capture_output=True)
    assert done.returncode == 0 and len(done.stdout.splitlines()) == len(names), done.stderr

SPELT = [('bnn_train', 'fashion --valid-images -1'), ('bnn', 'train fashion --valid-images -1'),
         ('bnn', 'train fashion --save-steps -1'), ('bnn', 'train fashion --dry-run --bs 0')]

@pytest.mark.parametrize('name,words', SPELT)
def test_both_spellings_of_an_option(name, words, monkeypatch, capsys, tmp_path):
    "with fastcore 1 and fastcore 2: the parser is not fastcore's"
    monkeypatch.chdir(tmp_path)
    other = re.sub(r'(?<=[a-z])-(?=[a-z])', '_', words)
    by_hyphen, by_line = (written(name, w.split(), monkeypatch, capsys) for w in (words, other))
    assert by_hyphen == by_line
    assert 'unrecognized' not in by_hyphen and by_hyphen.count('\n') == 1

def written(name, words, monkeypatch, capsys):
    "what a command that ends with an error writes to stderr; it runs in this process"
    module, function = scripts()[name].split(':')
    monkeypatch.setattr(sys, 'argv', [name, *words])
    with pytest.raises(SystemExit) as end: getattr(import_module(module), function)()
    assert end.value.code not in (None, 0)
    is_said = isinstance(end.value.code, str) # Python writes it when the process ends
    return capsys.readouterr().err + f'{end.value.code}\n'*is_said

class Broken(torch.utils.data.Dataset):
    "whose second picture cannot be read"
    def __len__(self): return 2
    def __getitem__(self, i):
        if i: raise DataError(f'{i}.png: not a readable picture; remove it')
        return torch.zeros(1)

@pytest.mark.parametrize('workers', [0, 1])
def test_an_error_in_a_loaders_process_is_one_line_too(workers):
    with pytest.raises(SystemExit) as stop, readable('bnn_train'):
        list(torch.utils.data.DataLoader(Broken(), num_workers=workers))
    assert stop.value.code == 'bnn_train: 1.png: not a readable picture; remove it'
