"`make coverage`: no test and no chapter is left out, and what is kept of it adds up."
import json
from pathlib import Path
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

@pytest.mark.skipif(not RECORD.is_file(), reason='make coverage OUT=results/coverage.json')
def test_the_record_adds_up(tool):
    "at least 95 % of the lines, and the modules together are the whole"
    record = json.loads(RECORD.read_text())
    modules = record['modules'].values()
    assert record['command'] == tool.COMMAND
    assert sum(m['lines'] for m in modules) == record['lines']
    assert sum(m['run'] for m in modules) == record['run']
    assert record['share'] == round(record['run']/record['lines'], 4) >= .95
