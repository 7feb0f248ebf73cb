"The first call: code that is kept, found without numba, damaged, of another CPU, or not to be kept."
import json, os, subprocess, sys
from pathlib import Path

import numpy as np
import pytest

from benches import load_bench
from bnn_bn.onebit import kernels, native
from bnn_bn.onebit.kernels import code_for, packed_conv2d, ways
from bnn_bn.targets.runtime import write_runtime

ROOT = Path(__file__).parent.parent
CONV = '''import sys, numpy as np
from {package}.onebit.kernels import packed_conv2d
x, w = np.ones((1, 64, 8, 8)), np.ones((32, 64, 3, 3))
assert (packed_conv2d(x, w, way='portable') == 576).all()
print(*sorted({{'numba', 'torch'}} & set(sys.modules)), 'right')'''

def process(folder, package='bnn_bn', site=ROOT, **env):
    "what a process prints that convolves; `folder` is where it may keep code"
    env = os.environ | dict(PYTHONPATH=str(site), NUMBA_CACHE_DIR=str(folder)) | env
    env = {k: v for k, v in env.items() if v is not None}
    command = [sys.executable, '-W', 'ignore', '-c', CONV.format(package=package)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=env, cwd='/')
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.split()

def code_files(folder): return sorted(Path(folder).rglob('*.code'))

@pytest.fixture(scope='module')
def warmed(tmp_path_factory):
    "a folder with the code of one process"
    folder = tmp_path_factory.mktemp('code')
    assert process(folder) == ['numba', 'right']
    return folder


def test_a_later_process_needs_no_numba(warmed):
    "one file, which is read and not written again"
    file, = code_files(warmed)
    before = file.stat().st_mtime_ns
    assert process(warmed) == ['right']
    assert file.stat().st_mtime_ns == before


def damaged(data, how):
    at = len(data)//2
    return dict(cut=data[:at], empty=b'', changed=data[:at] + bytes([data[at] ^ 255]) + data[at + 1:],
                longer=data + b'\0', key=data[:40] + bytes([data[40] ^ 1]) + data[41:])[how]

@pytest.mark.parametrize('how', ('cut', 'empty', 'changed', 'longer', 'key'))
def test_a_damaged_file_counts_as_missing(how, warmed, tmp_path):
    file, = code_files(warmed)
    name, key = file.name, file.read_bytes()[32:64]
    copy = tmp_path/name
    copy.write_bytes(file.read_bytes())
    assert native.read_code(copy, key) == file.read_bytes()[64:]
    copy.write_bytes(damaged(file.read_bytes(), how))
    assert native.read_code(copy, key) is None


def test_a_damaged_file_is_mended(warmed):
    file, = code_files(warmed)
    whole = file.read_bytes()
    file.write_bytes(damaged(whole, 'changed'))
    assert process(warmed) == ['numba', 'right']
    assert len(file.read_bytes()) == len(whole) and process(warmed) == ['right']


def test_another_cpu_has_another_file(warmed):
    before = code_files(warmed)
    assert process(warmed, NUMBA_CPU_NAME='generic') == ['numba', 'right']
    assert len(code_files(warmed)) == len(before) + 1
    for env in (dict(), dict(NUMBA_CPU_NAME='generic')): assert process(warmed, **env) == ['right']


def test_other_sources_have_another_key(monkeypatch):
    key = native.key_of([b'a', b'b'])
    assert native.key_of([b'a', b'c']) != key == native.key_of([b'a', b'b'])
    monkeypatch.setenv('NUMBA_CPU_NAME', 'generic')
    assert native.key_of([b'a', b'b']) != key


def test_the_runtime_keeps_its_code_beside_itself_or_in_the_users_folder(tmp_path):
    "an install that cannot be written, a user with a cache folder, and one without a home"
    write_runtime(tmp_path)
    pycache = tmp_path/'bnn_runtime/onebit/__pycache__'
    pycache.write_text('no folder') # as read-only as root can have it
    def run(**env):
        return process('', 'bnn_runtime', tmp_path, **(dict(NUMBA_CACHE_DIR=None) | env))
    assert run(XDG_CACHE_HOME='/proc/nowhere') == ['numba', 'right']
    assert not code_files(tmp_path)
    for said in (['numba', 'right'], ['right']): assert run(XDG_CACHE_HOME=str(tmp_path/'x')) == said
    assert [f.parent for f in code_files(tmp_path)] == [tmp_path/'x/bnn_bn/native']
    pycache.unlink()
    for said in (['numba', 'right'], ['right']): assert run(XDG_CACHE_HOME='/proc/nowhere') == said
    assert pycache in {f.parent for f in code_files(tmp_path)}


def test_a_user_without_a_home(monkeypatch):
    def nowhere(): raise RuntimeError('no home')
    monkeypatch.setattr(native.Path, 'home', nowhere)
    monkeypatch.delenv('NUMBA_CACHE_DIR', raising=False)
    monkeypatch.delenv('XDG_CACHE_HOME', raising=False)
    assert native.places() == [Path(native.__file__).parent/'__pycache__']


def refuses(*args): raise AttributeError('no such part of numba')

@pytest.mark.parametrize('change', ((native, 'compiled', refuses), (native.sys, 'platform', 'win32')))
def test_another_numba_or_system(change, monkeypatch, tmp_path):
    "compiled as numba does it, with the same bits"
    def double(x): return 2*x
    monkeypatch.setenv('NUMBA_CACHE_DIR', str(tmp_path))
    monkeypatch.setattr(*change)
    functions, path = native.machine_code('double', dict(double=double), [b'source'])
    assert functions['double'](21) == 42 and path is None and not code_files(tmp_path)


def test_each_way_has_its_own_code():
    "values of ways are equal tuples: a cache by value would mix them up"
    kinds = [k for k in ways if kernels.has_way(k)]
    assert len({id(code_for(ways[k])) for k in kinds}) == len(kinds)
    g = np.random.default_rng(0)
    x, w = (g.choice([-1, 1], s) for s in ((1, 70, 5, 5), (40, 70, 3, 3)))
    found = [packed_conv2d(x, w, way=k).tolist() for k in kinds]
    assert all(f == found[0] for f in found)


def test_what_is_left_open_is_no_secret(monkeypatch):
    "code that would call what a process may lack is not kept"
    monkeypatch.setattr(native, 'KNOWN', set())
    def yields(x, looks): return 1 if kernels.wait_here(x, 1, looks) else 0
    with pytest.raises(AttributeError, match='sched_yield'): native.compiled(dict(f=yields))


@pytest.fixture
def bench(monkeypatch):
    "two ways that start no process, and the rounds that were run"
    bench = load_bench('first_call')
    monkeypatch.setattr(bench, 'ways_of', lambda net, folder: [bench.Way('one', 'x'), bench.Way('two', 'y')])
    bench.calls = []
    def run(self, folder):
        bench.calls.append(self.name)
        return dict(wall=1. + len(bench.calls), cpu=.5, call=.001)
    monkeypatch.setattr(bench.Way, 'run', run)
    monkeypatch.setattr(bench.os, 'getloadavg', lambda: (3., 2., 1.))
    return bench

@pytest.fixture
def measure(bench, monkeypatch, tmp_path):
    def main(rounds, *words):
        out = tmp_path/'first.json'
        monkeypatch.setattr(sys, 'argv', ['x', '--rounds', str(rounds), '--out', str(out), *words])
        bench.main()
        return json.loads(out.read_text())
    return main

def test_the_bench_goes_on_and_says_when_it_is_provisional(bench, measure):
    first = measure(1)
    assert bench.calls == ['one', 'two']*2
    assert first['provisional'] and first['load']['before'][0] == 3
    again = measure(3)
    assert len(bench.calls) == 4 + 2 + 4 and again['tries']['one'][0] == first['tries']['one'][0]
    assert again['rows']['two']['wall']['least'] == first['tries']['two'][0]['wall']

def test_the_bench_mixes_no_rounds_of_two_machines(bench, measure, monkeypatch):
    "nor of other versions or networks; --again begins anew"
    first = measure(1)
    other_version = lambda name: 'another'
    for owner, name, new, says in ((bench, 'cpu_info', lambda: {'model name': 'another'}, 'cpu'),
                                   (bench.os, 'cpu_count', lambda: 77, 'cores'),
                                   (bench, 'version', other_version, 'versions')):
        with monkeypatch.context() as m:
            m.setattr(owner, name, new)
            with pytest.raises(SystemExit, match=f'{says} .*, now .*take another --out'): measure(2)
    with pytest.raises(SystemExit, match='net .*, now another'): measure(2, '--net', 'another')
    assert measure(1)['tries'] == first['tries'] != measure(1, '--again')['tries']


@pytest.mark.parametrize('threads', ('0', '-1'))
def test_settings_that_numba_does_not_start_with(threads, tmp_path):
    "one line that shows the variable; no frame of numba"
    env = os.environ | dict(PYTHONPATH=str(ROOT), NUMBA_CACHE_DIR=str(tmp_path), NUMBA_NUM_THREADS=threads)
    command = [sys.executable, '-W', 'ignore', '-m', 'bnn_bn', 'warm']
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=env, cwd='/')
    assert done.returncode and f'NUMBA_NUM_THREADS={threads}: numba does not start' in done.stderr
    assert 'unset' in done.stderr and 'Traceback' not in done.stderr
    command[3:] = ['-c', CONV.format(package='bnn_bn')]
    said = subprocess.run(command, capture_output=True, text=True, timeout=600, env=env, cwd='/').stderr
    assert 'ValueError' in said.splitlines()[-1] and 'site-packages/numba' not in said
