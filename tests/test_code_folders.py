"""A folder for compiled code that takes none, or holds anything at all: the code is compiled, and
nothing hangs."""
import os
import signal
import sys
from contextlib import contextmanager
from pathlib import Path
import pytest
from bnn_bn.onebit import native

pytestmark = pytest.mark.skipif(sys.platform == 'win32', reason='no code is kept there')

@contextmanager
def within(seconds):
    "an error where it takes longer"
    def late(*args): raise AssertionError(f'more than {seconds} s')
    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try: yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)

def double(x): return 2*x

def answer(folder, monkeypatch):
    "of a compiled function, and the path of its code, where that folder is named"
    monkeypatch.setenv('NUMBA_CACHE_DIR', str(folder))
    with within(60): functions, path = native.machine_code('double', dict(double=double), [b'source'])
    return functions['double'](21), path

# Folders ----------------------------------------------

def a_file(at): at.write_text('no folder')
def a_circle(at): at.symlink_to(at)
def a_link_to_nothing(at): at.symlink_to(at.parent/'gone'/'further')
def a_pipe(at): os.mkfifo(at)

@pytest.mark.parametrize('make', (a_file, a_circle, a_pipe))
def test_what_is_no_folder(make, tmp_path, monkeypatch):
    make(tmp_path/'cache')
    assert answer(tmp_path/'cache', monkeypatch) == (42, None)

@pytest.mark.parametrize('folder', ('/proc/x', '/dev/null', '/dev/full/x', 'x'*5000))
def test_places_that_take_nothing(folder, monkeypatch):
    assert answer(folder, monkeypatch) == (42, None)

@pytest.mark.skipif(not hasattr(os, 'geteuid') or os.geteuid() == 0, reason='root may write anywhere')
def test_a_folder_that_is_read_only(tmp_path, monkeypatch):
    (tmp_path/'cache').mkdir(mode=0o555)
    assert answer(tmp_path/'cache', monkeypatch) == (42, None)

def test_a_missing_folder_is_made(tmp_path, monkeypatch):
    found, path = answer(tmp_path/'a/b/c', monkeypatch)
    assert found == 42 and path.is_relative_to(tmp_path/'a/b/c')

# What lies in the file's place ----------------------------------------------

def a_device(at): at.symlink_to('/dev/zero')
def a_folder(at): at.mkdir()
def nothing_whole(at): at.write_bytes(bytes(range(256))*100)
def terabytes(at): # of which the disk holds none
    at.touch()
    os.truncate(at, 2**40)

KINDS = a_pipe, a_device, a_folder, a_circle, a_link_to_nothing, nothing_whole, terabytes

@pytest.mark.parametrize('make', KINDS)
def test_a_file_of_code_that_is_none(make, tmp_path, monkeypatch):
    "whatever it is, it counts as missing"
    name = native.file_name('double')
    (tmp_path/'bnn_bn').mkdir()
    try: make(tmp_path/'bnn_bn'/name)
    except OSError: pytest.skip('this file system has none such')
    with within(20): assert native.read_code(tmp_path/'bnn_bn'/name, b'') is None
    assert answer(tmp_path, monkeypatch)[0] == 42

def test_a_folder_full_of_damaged_files(tmp_path, monkeypatch):
    "each file that any process left there is cut, and the next process mends its own"
    answer(tmp_path, monkeypatch)
    for file in Path(tmp_path).rglob('*.code'): file.write_bytes(file.read_bytes()[:-9])
    for i in range(50): (tmp_path/'bnn_bn'/f'{i}.code').write_bytes(os.urandom(500))
    found, path = answer(tmp_path, monkeypatch)
    key = native.key_of([b'source'])
    assert found == 42 and native.read_code(path, key) is not None
