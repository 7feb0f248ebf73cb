"`make coverage`: no test and no chapter is left out, and what is kept of it adds up."
import json
from pathlib import Path
from types import SimpleNamespace
import pytest

ROOT = Path(__file__).parent.parent
RECORD = ROOT/'results'/'coverage.json'

@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT/'tools'))
    import line_coverage
    return line_coverage

def test_each_test_file_is_a_part(tool):
    files = [file for part in tool.parts_of('tests') for file in part.files]
    assert files == sorted((ROOT/'tests').glob('test_*.py'))

def test_each_chapter_is_in_one_part(tool):
    parts = tool.parts_of('tools/mutants')
    files = [file for part in parts for file in part.files]
    assert sorted(files) == sorted(ROOT.glob('nbs/[1-7]_*/*.ipynb'))
    assert len({part.name for part in parts}) == len(parts)

def test_a_part_is_run_again_when_a_file_of_it_has_changed(tool, tmp_path):
    file = tmp_path/'test_it.py'
    file.write_text('def test_it(): pass')
    before = tool.key_of([file])
    assert tool.key_of([file]) == before
    file.write_text('def test_it(): assert True')
    assert tool.key_of([file]) != before

def test_the_record_says_what_was_measured(tool):
    "all of it, or the files that were named; Make names the parts in any case"
    def command(*words): return tool.command_of(tool.arguments([*words, '--out', 'a.json']))
    assert command() == command('tests', 'tools/mutants') == 'make coverage OUT=a.json'
    assert command('tests/test_clip.py') == "make coverage COVERED='tests/test_clip.py' OUT=a.json"

def test_each_run_of_a_part_finds_no_code_of_an_earlier_one(tool, tmp_path, monkeypatch):
    "where a process keeps compiled code; what was kept would not be compiled, and its lines not run"
    monkeypatch.setattr(tool, 'KEPT', tmp_path/'kept')
    part, seen = tool.Part('one', ['tests'], []), []
    def run(command, cwd, env):
        folders = [Path(env[k]) for k in ('NUMBA_CACHE_DIR', 'XDG_CACHE_HOME')]
        seen.extend(f.exists() for f in folders)
        for f in folders: (f/'bnn_bn').mkdir(parents=True)
        return SimpleNamespace(returncode=1)
    monkeypatch.setattr(tool.subprocess, 'run', run)
    for _ in range(2): assert not tool.run(part)
    assert seen == [False]*4

@pytest.mark.skipif(not RECORD.is_file(), reason='make coverage OUT=results/coverage.json')
def test_the_record_adds_up(tool):
    "at least 95 % of the lines, and the modules together are the whole"
    record = json.loads(RECORD.read_text())
    modules = record['modules'].values()
    assert record['command'] == tool.command_of(tool.arguments(['--out', 'results/coverage.json']))
    assert sum(m['lines'] for m in modules) == record['lines']
    assert sum(m['run'] for m in modules) == record['run']
    assert record['share'] == round(record['run']/record['lines'], 4) >= .95
