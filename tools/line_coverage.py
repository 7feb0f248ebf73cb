"""Which lines of the library tests and the chapters' cells run: `make coverage`.

One part after the other: a test file, or the cells of a folder of chapters. What a part has run is
kept in `.coverage_parts`, so the same command goes on where it was stopped. A part is run again
when its own files or the library have changed, or when a test failed in it. Kernels are compiled
into an empty folder by each part: of code that an earlier run has kept no line would be counted.
"""
import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from datetime import date
from itertools import groupby
from pathlib import Path
import coverage

ROOT = Path(__file__).parent.parent
KEPT = ROOT/'.coverage_parts'
CELLS = ROOT/'tools'/'mutants'
CACHES = 'NUMBA_CACHE_DIR', 'XDG_CACHE_HOME' # folders where a process keeps compiled code
ALL = ['tests', 'tools/mutants']

# Parts --------------------------------------------------------

@dataclass
class Part:
    "what is run in one process"
    name:str
    tests:list  # as pytest takes them
    files:list  # that they are written in

    folder = property(lambda self: KEPT/self.name)

def test_part(file): return Part(file.stem, [str(file)], [file])

def chapter_parts():
    "a part for each folder of chapters"
    sys.path.insert(0, str(CELLS))
    from test_cells import CHAPTERS
    for folder, names in groupby(CHAPTERS, lambda name: CHAPTERS[name].parent):
        names = list(names)
        tests = [f'{CELLS/"test_cells.py"}::test_cells[{name}]' for name in names]
        yield Part(f'cells_{folder.name}', tests, [CHAPTERS[name] for name in names])

def parts_of(target):
    "the parts of a test file, of a folder of them, or of the chapters"
    path = ROOT/target
    if path == CELLS: return [*chapter_parts()]
    return [*map(test_part, sorted(path.glob('test_*.py')) if path.is_dir() else [path])]

def key_of(files):
    "a digest of the library and of a part's files"
    digest = hashlib.sha256()
    for file in [*sorted((ROOT/'bnn_bn').rglob('*.py')), *files]: digest.update(file.read_bytes())
    return digest.hexdigest()

# Runs ---------------------------------------------------------

def run(part):
    "measure one part unless it was; did its tests pass?"
    done, key = part.folder/'done', key_of(part.files)
    if done.is_file() and done.read_text() == key: return True
    shutil.rmtree(part.folder, ignore_errors=True)
    part.folder.mkdir(parents=True)
    env = dict(os.environ, COVERAGE_FILE=str(part.folder/'data'))
    env |= {name: str(part.folder/name.lower()) for name in CACHES}
    print(part.name, flush=True)
    command = [sys.executable, '-m', 'coverage', 'run', '-m', 'pytest', '-q', *part.tests]
    passed = subprocess.run(command, cwd=ROOT, env=env).returncode == 0
    if passed: done.write_text(key)
    return passed

def combined(parts):
    "what all parts have run"
    files = [str(file) for part in parts for file in part.folder.glob('data.*')]
    whole = coverage.Coverage(data_file=str(KEPT/'whole'), config_file=str(ROOT/'pyproject.toml'))
    whole.combine(files, keep=True)
    whole.save()
    return whole

# The record ---------------------------------------------------

def counts(summary):
    "lines in all, and how many were run"
    lines, run = summary['num_statements'], summary['covered_lines']
    return dict(lines=lines, run=run, share=round(run/lines, 4) if lines else 1.)

def command_of(args):
    "as one types it"
    covered = '' if args.targets == ALL else f" COVERED='{' '.join(args.targets)}'"
    return f'make coverage{covered} OUT={args.out}'

def record(whole, parts, command):
    "what is kept of a measurement: all lines, and the lines of each module"
    file = KEPT/'whole.json'
    whole.json_report(outfile=str(file))
    found = json.loads(file.read_text())
    modules = {Path(name).as_posix(): counts(of['summary']) for name, of in found['files'].items()}
    return dict(command=command, tool=f'coverage {coverage.__version__}',
                python=sys.version.split()[0], measured=str(date.today()),
                parts=[part.name for part in parts], **counts(found['totals']), modules=modules)

def arguments(words=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('targets', nargs='*', default=ALL,
                        help='test files, folders of them, tools/mutants for the chapters')
    parser.add_argument('--out', type=Path, help='a JSON file for the figures of each module')
    return parser.parse_args(words)

def main():
    args = arguments()
    os.chdir(ROOT)
    parts = [part for target in args.targets for part in parts_of(target)]
    failed = [part.name for part in parts if not run(part)]
    whole = combined(parts)
    whole.report()
    if failed: sys.exit(f'failed, and measured in part: {", ".join(failed)}')
    if args.out: args.out.write_text(json.dumps(record(whole, parts, command_of(args)), indent=1) + '\n')

if __name__ == '__main__': main()
