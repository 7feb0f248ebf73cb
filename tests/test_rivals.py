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
    (tmp_path/'speed.json').write_text('{"nets": {}}')
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
    def turns(a, rivals, threads, label, **kwargs):
        if len(measured) == 2: raise KeyboardInterrupt
        measured.append(label)
        return [dict(name=infer.OURS, seconds=.001, times_first=1.),
                dict(name='torch', seconds=.01, times_first=10.)]
    monkeypatch.setattr(throughput, 'run_turns', turns)
    monkeypatch.setattr(throughput, 'machine', lambda a: {})
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

def test_a_rival_that_has_come_is_measured(tmp_path, monkeypatch):
    "what was left out since it was not installed; nothing else is measured again"
    labels = []
    def turns(a, rivals, threads, label, **kwargs):
        labels.append(label)
        return [dict(name=r.name, seconds=.001, times_first=1.) for r in rivals]
    monkeypatch.setattr(throughput, 'run_turns', turns)
    monkeypatch.setattr(throughput, 'machine', lambda a: {})
    monkeypatch.setattr(throughput, 'make', lambda name, folder: (folder/'x.bnn', 32))
    ours, theirs = SimpleNamespace(name=infer.OURS), SimpleNamespace(name='OpenVINO')
    monkeypatch.setattr(throughput, 'rivals_of', lambda a, bench: [ours, theirs][:1 + bool(a.openvino)])
    for _ in range(2): throughput.run(options(tmp_path, batches=[1]))
    assert len(labels) == 1
    for _ in range(2): throughput.run(options(tmp_path, batches=[1], openvino='PY', missing={}))
    assert len(labels) == 2
    rows = json.loads((tmp_path/'t.json').read_text())['nets']['ReActNet-A, 32x32']['1']['1']
    assert [r['name'] for r in rows] == [infer.OURS, 'OpenVINO'] and 'error' not in rows[1]

def test_other_settings_are_refused(tmp_path):
    "rows of one file are measured alike"
    a = options(tmp_path, rounds=9)
    a.out.write_text(json.dumps(dict(nets={}, rounds=5, seconds=a.seconds)))
    with pytest.raises(SystemExit, match='other settings'): throughput.run(a)

def test_what_is_installed():
    "by the names of the packages; a package under another name is no fault, the first one missing is"
    found = infer.other_versions(sys.executable, 'numpy', 'tensorflow-cpu')
    assert set(found) == {'python', 'numpy'}
    with pytest.raises(SystemExit, match='no-such-package is not installed'):
        infer.other_versions(sys.executable, 'no-such-package', 'numpy')
    with pytest.raises(SystemExit, match='no interpreter'): infer.other_versions('/nowhere/python', 'a')

def test_stopped_by_hand(tmp_path, monkeypatch, capsys):
    "a sentence says that the same command goes on"
    def stop(*args): raise KeyboardInterrupt
    monkeypatch.setattr(bench_all, 'environments', lambda *args, **kwargs: {})
    monkeypatch.setattr(infer, 'run', stop)
    with pytest.raises(SystemExit, match='the same command goes on'):
        bench_all.main(['--out', str(tmp_path), '--only'])

def test_answers_are_compared_once(tmp_path, monkeypatch):
    "each rival's, written as they come"
    asked = []
    def values(r, *args):
        asked.append(r.name)
        if len(asked) == 2: raise KeyboardInterrupt
        return dict(answers='right')
    rivals = [SimpleNamespace(name=n) for n in ('ours', 'torch', 'other')]
    for name, new in dict(values=values, checked=lambda a, bench: rivals, read_bnn=lambda f: None).items():
        monkeypatch.setattr(infer, name, new)
    file = infer.File(argparse.Namespace(out=tmp_path/'a.json', again=False), dict(nets=dict(net={})), tmp_path)
    bench = infer.Bench(tmp_path/'x.bnn', 4, 1, 1)
    with pytest.raises(KeyboardInterrupt): file.add_values(file.data['nets']['net'], 'net', bench)
    assert list(json.loads((tmp_path/'a.json').read_text())['nets']['net']['values']) == ['ours']
    file.add_values(file.data['nets']['net'], 'net', bench)
    assert asked == ['ours', 'torch', 'torch', 'other']

def test_a_result_names_no_place_of_this_machine(monkeypatch):
    "the command that is kept with a table: absolute paths and other Pythons are hidden"
    words = ['bench/infer.py', '--openvino', 'env/bin/python', '--out', '/tmp/x.json', '--rounds', '7']
    monkeypatch.setattr(sys, 'argv', words)
    a = infer.parser().parse_args(words[1:])
    assert infer.command(a) == 'python bench/infer.py --openvino PYTHON --out PATH --rounds 7'
