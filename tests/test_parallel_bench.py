"bench/parallel.py: trainings side by side, a teacher first, failures named, finished ones kept."
import json
from types import SimpleNamespace
import pytest
from benches import load_bench

parallel = load_bench('parallel')

STAND_IN = '''
import json, sys, time
from pathlib import Path
words = sys.argv[1:]
out = Path(words[words.index('--out') + 1])
if 'broken' in words: sys.exit('no such recipe')
out.mkdir(exist_ok=True)
time.sleep(.2)
(out/'history.csv').write_text('epoch')
(out/'result.json').write_text(json.dumps(dict(words=words, recipe={}, ended=time.time())))
'''

@pytest.fixture
def options(tmp_path, monkeypatch):
    "folders, and a training that takes a fifth of a second"
    monkeypatch.setattr(parallel, 'PROGRAM', STAND_IN)
    monkeypatch.setattr(parallel.trainings, 'settings_of', lambda words: {})
    folders = dict(runs=tmp_path/'runs', out=tmp_path/'out')
    for folder in folders.values(): folder.mkdir()
    return SimpleNamespace(**folders, path='DATA', jobs=3)

def words_of(options, name): return json.loads((options.out/f'{name}.json').read_text())['words']

def test_a_pupil_waits_for_its_teacher_and_is_told_where_it_is(options):
    lines = ['first cifar10 # a comment', '', 'big cifar10-teacher', 'pupil cifar10 --teacher TEACHER:big']
    jobs = parallel.read_list('\n'.join(lines))
    assert parallel.look_after(jobs, options) == []
    words = words_of(options, 'pupil')
    assert words[words.index('--teacher') + 1] == str(options.runs/'big')
    assert words[words.index('--path') + 1] == 'DATA' and '--resume' in words
    ended = {n: json.loads((options.out/f'{n}.json').read_text())['ended'] for n in ('big', 'pupil')}
    assert ended['pupil'] - ended['big'] > .2
    assert sorted(f.name for f in options.out.iterdir()) == [
        f'{n}.{kind}' for n in ('big', 'first', 'pupil') for kind in ('csv', 'json')]

def test_what_is_finished_is_not_begun_again(options):
    jobs = parallel.read_list('one cifar10')
    parallel.look_after(jobs, options)
    before = (options.runs/'one/result.json').stat().st_mtime_ns
    (options.out/'one.json').unlink()
    assert parallel.look_after(parallel.read_list('one cifar10'), options) == []
    assert (options.runs/'one/result.json').stat().st_mtime_ns == before
    assert (options.out/'one.json').exists()

def test_a_failure_is_named_and_its_pupils_are_not_begun(options, capsys):
    text = 'bad broken\npupil cifar10 --teacher TEACHER:bad\ngood cifar10'
    assert parallel.look_after(parallel.read_list(text), options) == ['bad', 'pupil']
    assert 'bad: failed' in capsys.readouterr().out
    assert 'no such recipe' in (options.runs/'bad.log').read_text()
    assert [f.name for f in options.out.iterdir() if f.suffix == '.json'] == ['good.json']

@pytest.mark.parametrize('text, says', [
    ('alone', 'alone: a recipe is needed'), ('a cifar10\na cifar10', 'a: there are two'),
    ('a cifar10 --teacher TEACHER:b\nb cifar10', 'a: its teacher b is not in a line above')])
def test_a_bad_line_is_named(text, says):
    with pytest.raises(ValueError, match=says): parallel.read_list(text)

@pytest.mark.parametrize('text, words, says', [
    (None, [], 'list.txt: .*No such file'), ('alone', [], 'list.txt: alone: a recipe'),
    ('a cifar10', ['--jobs', '0'], '--jobs 0: at least 1')])
def test_bad_input_is_one_line_and_nothing_is_made(text, words, says, tmp_path, monkeypatch):
    file = tmp_path/'list.txt'
    if text: file.write_text(text)
    monkeypatch.setattr('sys.argv', ['parallel.py', str(file), '--out', str(tmp_path/'out'), *words])
    with pytest.raises(SystemExit, match=says): parallel.main()
    assert not (tmp_path/'out').exists()

def test_the_list_that_the_results_name_can_be_read():
    file = parallel.ROOT/'results/cifar10_gpu/list.txt'
    names = {j.name for j in parallel.read_list(file.read_text())}
    kept = {f.stem for f in file.parent.glob('*.csv')}
    assert names == kept
