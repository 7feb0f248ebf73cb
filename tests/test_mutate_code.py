"tools/mutate_code.py without mutmut: what it takes as known, and until when it begins further mutants."
import json, sys
from datetime import datetime
from pathlib import Path
from types import ModuleType
import pytest

ROOT = Path(__file__).parent.parent
STANDS_FOR = {'libcst': {}, 'libcst.metadata': dict(MetadataWrapper=object), 'mutmut': {}, 'mutmut.mutation': {},
              'mutmut.mutation.file_mutation': dict(MutationVisitor=object),
              'mutmut.mutation.mutators': dict(mutation_operators=[]),
              'mutmut.mutation.pragma_handling': dict(get_ignored_lines=None)}

@pytest.fixture
def tool(tmp_path, monkeypatch):
    "the script in a folder with a module of three mutants and one test file; `ran`: their numbers"
    monkeypatch.setenv('PYTEST_DISABLE_PLUGIN_AUTOLOAD', '') # the script sets it
    monkeypatch.syspath_prepend(str(ROOT/'tools'))
    for name, parts in STANDS_FOR.items():
        module = ModuleType(name)
        vars(module).update(parts)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, 'mutate_code', raising=False)
    import mutate_code
    ran = mutate_code.ran = []
    def fate(name, source, *args):
        ran.append(int(source))
        return 'killed'
    new = dict(ROOT=tmp_path, mutants_of=lambda source: [('f', i) for i in range(3)], mutated=str,
               run_tests=lambda tests: 0, forget=lambda name: None, fate=fate)
    for name, value in new.items(): monkeypatch.setattr(mutate_code, name, value)
    monkeypatch.chdir(tmp_path)
    (tmp_path/'bnn_bn').mkdir()
    (tmp_path/'bnn_bn/module.py').write_text('x = 1')
    (tmp_path/'test_it.py').write_text('def test_it(): pass')
    yield mutate_code
    sys.modules.pop('mutate_code')

def main(tool, monkeypatch, *words):
    "the numbers that a call runs"
    tool.ran.clear()
    argv = ['mutate_code.py', 'module', '--tests', 'test_it.py::test_it', '--out', 'out.jsonl', *words]
    monkeypatch.setattr(sys, 'argv', argv)
    tool.main()
    return sorted(tool.ran)

def test_what_is_known_is_of_the_same_module_and_tests(tool, tmp_path, monkeypatch):
    "a new test may kill what has survived, and another module has other mutants"
    assert main(tool, monkeypatch, '--most', '2') == sorted(tool.drawn([0]*3, 0, 2, ()))
    assert len(main(tool, monkeypatch)) == 1 and main(tool, monkeypatch) == []
    for file in ('test_it.py', 'bnn_bn/module.py'):
        (tmp_path/file).write_text((tmp_path/file).read_text() + '\n# more')
        assert main(tool, monkeypatch) == [0, 1, 2] and main(tool, monkeypatch) == []
    assert len(Path('out.jsonl').read_text().splitlines()) == 9
    assert {'number', 'function', 'end', 'key'} < json.loads(Path('out.jsonl').read_text().splitlines()[-1]).keys()

@pytest.mark.parametrize('text, now, end', (
    ('02:00', '01 23:00', '02 02:00'), ('23:30', '01 23:00', '01 23:30'), ('23:00', '01 23:00', '02 23:00')))
def test_until_is_the_next_time_that_a_clock_shows(text, now, end, tool):
    def day(s): return datetime.strptime(f'2026-01-{s}', '%Y-%m-%d %H:%M')
    assert tool.next_time(text, day(now)) == day(end)

def test_no_mutant_is_begun_after_the_time(tool, monkeypatch):
    "and all three are left for the next call"
    monkeypatch.setattr(tool, 'next_time', lambda text: datetime.min)
    assert main(tool, monkeypatch, '--until', '02:00') == []

def test_a_time_that_is_none_is_refused(tool, monkeypatch):
    with pytest.raises(SystemExit): main(tool, monkeypatch, '--until', 'soon')
