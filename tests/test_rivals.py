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
    assert quick.only == []
    assert not [a for a in (usual, quick) if 'results' in a.out.parts] # those are committed
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

def options(tmp_path, script=throughput, **changes):
    parser = infer.parser if script is infer else throughput.arguments
    a = parser().parse_args(['--out', str(tmp_path/'t.json'), '--threads', '1'])
    a.layers = False
    for k, v in dict(dict(nets=['ReActNet-A, 32x32'], missing=dict(OpenVINO='no wheel')), **changes).items():
        setattr(a, k, v)
    return a

def rivals(*names): return [SimpleNamespace(name=n) for n in names]

def counted_turns():
    "a `run_turns` that measures nothing, and the labels of its calls"
    labels = []
    def turns(a, rivals, threads, label, **kwargs):
        labels.append(label)
        return [dict(name=r.name, seconds=.001, times_first=1.) for r in rivals]
    return turns, labels

def stand_ins(monkeypatch, script, turns, rivals_of, machine=None):
    "nothing is started, no network is made, and the machine is what is asked for"
    def make(name, folder):
        (folder/'x.bnn').write_bytes(b'1')
        return folder/'x.bnn', 32
    monkeypatch.setattr(infer, 'machine', lambda a: dict(machine or {}))
    monkeypatch.setattr(infer.File, 'add_values', lambda *args: None)
    for name in ('draw', 'summary'): monkeypatch.setattr(infer, name, lambda *args: [])
    for name, new in dict(run_turns=turns, make=make, rivals_of=rivals_of).items():
        monkeypatch.setattr(script, name, new)

def test_throughput_goes_on_where_it_stopped(tmp_path, monkeypatch):
    "each batch is written when it is measured, and a rival that is not there keeps its reason"
    measured = []
    def turns(a, rivals, threads, label, **kwargs):
        if len(measured) == 2: raise KeyboardInterrupt
        measured.append(label)
        return [dict(name=infer.OURS, seconds=.001, times_first=1.),
                dict(name='torch', seconds=.01, times_first=10.)]
    stand_ins(monkeypatch, throughput, turns, lambda a, bench: rivals(infer.OURS, 'torch'))
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
    turns, labels = counted_turns()
    theirs = rivals(infer.OURS, 'OpenVINO')
    stand_ins(monkeypatch, throughput, turns, lambda a, bench: theirs[:1 + bool(a.openvino)])
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
    with pytest.raises(SystemExit, match='rounds 5, now 9'): throughput.run(a)

HERE = dict(cpu='this', cores=2, way='avx2', clock_ghz=3.1, versions=dict(torch='2.11'))

@pytest.mark.parametrize('key, there', (
    ('cpu', 'another'), ('cores', 8), ('way', 'vnni'), ('versions', dict(torch='2.10'))))
@pytest.mark.parametrize('script', (infer, throughput), ids=lambda s: s.__name__)
def test_rows_of_another_machine_stay_alone(script, key, there, tmp_path, monkeypatch):
    "nothing is taken for measured, and nothing written, unless --again is said: that begins anew"
    turns, labels = counted_turns()
    stand_ins(monkeypatch, script, turns, lambda a, bench: rivals(infer.OURS), HERE)
    a = options(tmp_path, script, nets=['ReActNet-A, 32x32'], batches=[1])
    script.run(a)
    data = json.loads(a.out.read_text())
    data['machine'][key], data['nets']['ReActNet-18, 32x32'] = there, dict(threads={})
    a.out.write_text(json.dumps(data))
    with pytest.raises(SystemExit, match=f'{key} .*, now .*take another --out, or --again'): script.run(a)
    assert json.loads(a.out.read_text()) == data and len(labels) == 1
    a.again = True
    script.run(a)
    data = json.loads(a.out.read_text())
    assert data['machine'] == HERE and len(labels) == 2 and [*data['nets']] == ['ReActNet-A, 32x32']

def test_the_clock_may_differ(tmp_path, monkeypatch):
    "it is measured anew by each call"
    turns, labels = counted_turns()
    for clock in (3.1, 2.9):
        here = HERE | dict(clock_ghz=clock)
        stand_ins(monkeypatch, throughput, turns, lambda a, bench: rivals(infer.OURS), here)
        throughput.run(options(tmp_path, batches=[1]))
    assert len(labels) == 1

@pytest.mark.parametrize('script', (infer, throughput), ids=lambda s: s.__name__)
def test_a_call_for_one_rival_keeps_the_others(script, tmp_path, monkeypatch):
    "what is not installed for another rival is no reason to measure; a new rival is, and drops no row"
    turns, labels = counted_turns()
    def rivals_of(a, bench):
        return rivals(infer.OURS, *['OpenVINO']*bool(a.openvino), *['Larq']*bool(a.larq))
    for asked in (dict(openvino='PY', missing=dict(Larq='no wheel')),
                  dict(openvino='PY', missing={}), dict(openvino=None, missing={}),
                  dict(openvino=None, larq='PY', missing=dict(OpenVINO='no wheel'))):
        stand_ins(monkeypatch, script, turns, rivals_of, HERE | {k: 1 for k in asked if asked[k] == 'PY'})
        a = options(tmp_path, script, batches=[1], nets=['ReActNet-A, 32x32'], **asked)
        script.run(a)
    data = json.loads(a.out.read_text())
    rows = data['nets']['ReActNet-A, 32x32']
    rows = rows['threads']['1'] if script is infer else rows['1']['1']
    assert len(labels) == 2 and {r['name'] for r in rows if 'seconds' in r} == {infer.OURS, 'OpenVINO', 'Larq'}
    assert len(rows) == 3 and data['machine'] == HERE | dict(openvino=1, larq=1)

def test_a_rival_that_is_not_there_hides_no_measured_one():
    "ONNX Runtime in float32 is measured whether or not its 8-bit form could be installed"
    from bnn_bn.bench import rivals_table
    onnx = environments.Environment('onnx', missing='no wheel')
    a = argparse.Namespace(missing=bench_all.missing(dict(onnx=onnx)), onnx=None, openvino=None,
                           larq=None, bnn_lab=None)
    rows = [dict(name=n, seconds=.001, times_first=2.) for n in (infer.OURS, 'ONNX Runtime')]
    rows = infer.together(a, rows, [])
    table = rivals_table(dict(nets=dict(net=dict(threads={'1': rows}))))
    assert table.loc['ONNX Runtime', 'net'] == '2.0' and 'not installed' in '\n'.join(table['net'])

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
