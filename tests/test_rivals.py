"`make bench`: its arguments, environments that cannot be made, and results that are written as they come."
import argparse, importlib, json, sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT/'bench'))
bench_all, environments, infer, throughput = map(
    importlib.import_module, ('all', 'environments', 'infer', 'throughput'))


def requirements(tmp_path, text):
    "a folder with the file of one rival"
    (tmp_path/'one.txt').write_text(text)
    return tmp_path


# Environments ------------------------------------------------------------------------------------

def test_requirements_are_pinned():
    for name in environments.SHOWN:
        lines = (environments.FOLDER/f'{name}.txt').read_text().splitlines()
        needed = [line for line in lines if not line.startswith('#')]
        assert needed and all('==' in line for line in needed), name

def test_an_environment_is_made_once_and_again_when_its_file_changes(tmp_path, monkeypatch):
    commands = []
    def run(command):
        commands.append(command)
        (tmp_path/'env/one').mkdir(parents=True, exist_ok=True)
        return ''
    monkeypatch.setattr(environments, 'run', run)
    files = requirements(tmp_path, '# pip: --no-deps --pre\nrival==1\n')
    for _ in range(2):
        found = environments.environment('one', tmp_path/'env', files=files)
        assert found.python and not found.missing
    assert len(commands) == 2 and commands[1][-4:-2] == ['--no-deps', '--pre']
    requirements(tmp_path, 'rival==2\n')
    environments.environment('one', tmp_path/'env', files=files)
    assert len(commands) == 4

def test_a_rival_that_cannot_be_installed_has_a_reason(tmp_path, monkeypatch):
    said = 'WARNING: x\nERROR: No matching distribution found for rival==1 (from -r /a/b/one.txt)\n'
    def run(command, **kwargs): return SimpleNamespace(returncode=1, stderr=said, stdout='')
    monkeypatch.setattr(environments.subprocess, 'run', run)
    files = requirements(tmp_path, 'rival==1\n')
    found = environments.environment('one', tmp_path/'env', files=files)
    assert found.python is None and 'No matching distribution' in found.missing
    assert '/' not in found.missing
    assert 'no other.txt' in environments.environment('other', tmp_path/'env', files=files).missing

def test_a_python_that_is_not_there(tmp_path):
    files = requirements(tmp_path, 'rival==1\n')
    found = environments.environment('one', tmp_path/'env', python='/nowhere/python', files=files)
    assert found.python is None and found.missing and '/nowhere' not in found.missing


# Arguments ---------------------------------------------------------------------------------------

def test_arguments():
    usual, quick = bench_all.arguments([]), bench_all.arguments(['--quick', '--only'])
    assert usual.only == ['openvino', 'larq', 'onnx', 'bnn_lab'] and usual.out.name == 'rivals'
    assert quick.only == [] and 'results' not in quick.out.parts
    with pytest.raises(SystemExit): bench_all.arguments(['--only', 'tensorrt'])

def test_make():
    text = (ROOT/'Makefile').read_text()
    assert '\nbench: install\n\t$(BIN)/python bench/all.py $(BENCH)\n' in text
    assert '/.venv-bench/' in (ROOT/'.gitignore').read_text()

def test_both_scripts_get_the_environments_and_the_reasons(monkeypatch, tmp_path):
    found = dict(openvino=environments.Environment('openvino', 'PY'),
                 larq=environments.Environment('larq', missing='no wheel'))
    seen = []
    monkeypatch.setattr(bench_all, 'environments', lambda *args, **kwargs: found)
    monkeypatch.setattr(infer, 'run', seen.append)
    monkeypatch.setattr(throughput, 'run', seen.append)
    bench_all.main(['--quick', '--out', str(tmp_path)])
    for a in seen:
        assert a.openvino == 'PY' and a.missing == {'Larq': 'no wheel'} and a.threads == [1]
    assert [a.out for a in seen] == [tmp_path/'speed.json', tmp_path/'throughput.json']
    assert infer.absent(seen[0]) == [dict(name='Larq', error='not installed: no wheel')]


# Rows and verdicts -------------------------------------------------------------------------------

@pytest.mark.parametrize('off, same, said', (
    (0, 1, 'right'), (1e-6, 1, 'right'), (.03, 1, 'close'), (.03, .9, 'wrong'), (1.2, 1, 'wrong')))
def test_verdict(off, same, said): assert infer.verdict(off, same) == said

def test_wanted():
    rows = [SimpleNamespace(name=n) for n in ('ours', 'torch', 'torch.compile', 'Larq')]
    def names(**kwargs):
        a = argparse.Namespace(**dict(dict(rivals=None, without=[]), **kwargs))
        return [r.name for r in infer.wanted(a, rows)]
    assert names() == ['ours', 'torch', 'torch.compile', 'Larq']
    assert names(without=['compile', 'ours']) == ['ours', 'torch', 'Larq']
    assert names(rivals=['torch'], without=['compile']) == ['ours', 'torch']


# Results as they come ----------------------------------------------------------------------------

def options(tmp_path, **changes):
    a = throughput.arguments().parse_args(['--out', str(tmp_path/'t.json'), '--threads', '1'])
    for k, v in dict(dict(nets=['ReActNet-A, 32x32'], missing=dict(OpenVINO='no wheel')), **changes).items():
        setattr(a, k, v)
    return a

def test_throughput_goes_on_where_it_stopped(tmp_path, monkeypatch):
    "each batch is written when it is measured, and a rival that is not there keeps its reason"
    measured = []
    def turns(a, rivals, threads, label):
        if len(measured) == 2: raise KeyboardInterrupt
        measured.append(label)
        return [dict(name=throughput.OURS, seconds=.001, times_first=1.),
                dict(name='torch', seconds=.01, times_first=10.)]
    monkeypatch.setattr(throughput, 'run_turns', turns)
    monkeypatch.setattr(throughput, 'make', lambda name, folder: (folder/'x.bnn', 32))
    monkeypatch.setattr(throughput, 'rivals_of', lambda a, bench: [None, None])
    with pytest.raises(KeyboardInterrupt): throughput.run(options(tmp_path))
    first = json.loads((tmp_path/'t.json').read_text())['nets']['ReActNet-A, 32x32']['1']
    assert list(first) == ['1', '8']
    ours, torch, openvino = first['8']
    assert ours['pictures_a_second'] == 8000 and torch['pictures_a_second'] == 800
    assert openvino == dict(name='OpenVINO', error='not installed: no wheel')
    measured.clear()
    throughput.run(options(tmp_path))
    assert [m.split(',')[2].strip() for m in measured] == ['batch 64']
    assert (tmp_path/'t.png').stat().st_size > 1000

def test_the_table_says_what_is_missing(tmp_path):
    rows = {'1': [dict(name=throughput.OURS, pictures_a_second=10., times_first=1.),
                  dict(name='OpenVINO', error='not installed: no wheel')]}
    lines = throughput.table(dict(nets={'net': {'1': rows}}))
    assert any(throughput.OURS in line and '10 (1.0)' in line for line in lines)
    assert any('OpenVINO' in line and line.strip().endswith('-') for line in lines)
