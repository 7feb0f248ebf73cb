"""Random mutations of each kind of file, as many as one likes: `python tools/mutate_files.py`.

A mutation has a number, which is its seed. The counts are written after each piece, and the same
command goes on where it stopped. Every mutation must end in an error of the family `BnnError`, in
the same numbers, or, where no checksum speaks against it, in other numbers; anything else is
raised with the mutation's number.
"""
import argparse
import json
import os
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT/'tests')]
from mutations import READERS, mutations, write_files # noqa: E402

COMMAND = 'python tools/mutate_files.py'

def counts_so_far(out):
    "what was counted: kind -> number of mutations and how they ended"
    if out.exists(): return json.loads(out.read_text())['kinds']
    return {name: dict(done=0, ends={}) for name in READERS}

def add_piece(kinds, name, n, folder, tmp):
    "the next n mutations of one kind"
    kind = kinds[name]
    numbers = range(kind['done'], kind['done'] + n)
    kind['ends'] = dict(Counter(kind['ends']) + mutations(name, folder, tmp, numbers))
    kind['done'] += n

def write_counts(out, kinds):
    new = out.with_suffix('.new')
    new.write_text(json.dumps(dict(command=COMMAND, kinds=kinds), indent=1) + '\n')
    os.replace(new, out)

def run(n, piece, out):
    "all kinds in turn, a piece at a time, up to n mutations of each"
    kinds = counts_so_far(out)
    with tempfile.TemporaryDirectory() as files, tempfile.TemporaryDirectory() as tmp:
        write_files(Path(files))
        while left := [name for name in kinds if kinds[name]['done'] < n]:
            for name in left:
                size = min(piece, n - kinds[name]['done'])
                add_piece(kinds, name, size, Path(files), Path(tmp))
                write_counts(out, kinds)
            print(', '.join(f"{name} {kinds[name]['done']}" for name in kinds), flush=True)
    return kinds

def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--n', type=int, default=100_000, help='mutations of each kind')
    parser.add_argument('--piece', type=int, default=1000, help='mutations between two writes')
    parser.add_argument('--out', type=Path, default=ROOT/'results'/'mutations.json')
    args = parser.parse_args()
    os.nice(10)
    warnings.simplefilter('ignore')
    run(args.n, args.piece, args.out)

if __name__ == '__main__': main()
