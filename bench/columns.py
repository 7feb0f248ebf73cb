"""Train the three columns (BN-free, batch norm, plain removal) over seeds; a JSON and a CSV a run.

    python bench/columns.py --path DATA --out results/cifar10_narrow [--seeds 3]
        [--runs runs/columns] [--norms bn] -- cifar10-plus --images 10000 ...

What follows `--` goes to bnn_train. Runs are taken one after the other and resumed where they were
stopped; the same command goes on. Finished runs of other options are refused.
"""
import argparse, shutil, sys
from itertools import product
from pathlib import Path
import trainings

NORMS = 'nobn', 'bn', 'naive'

def parse_options():
    p = argparse.ArgumentParser(description=__doc__)
    p.formatter_class = argparse.RawDescriptionHelpFormatter
    p.add_argument('--path', help='directory of the data, for bnn_train')
    p.add_argument('--out', type=Path, required=True, help='directory of the results')
    p.add_argument('--seeds', type=int, default=3, help='how many, from 0 on')
    p.add_argument('--runs', type=Path, default=Path('runs/columns'), help='directory of the runs')
    p.add_argument('--norms', nargs='+', choices=NORMS, default=NORMS, help='which columns')
    p.add_argument('options', nargs='+', help='of bnn_train, the recipe first')
    return p.parse_args()

def words_of(options, norm, seed, run):
    "of bnn_train"
    path = ['--path', options.path] if options.path else []
    return [*options.options, *path, '--norm', norm, '--seed', seed, '--out', run, '--resume']

def main():
    options = parse_options()
    trainings.stop_on_term()
    options.out.mkdir(parents=True, exist_ok=True)
    for seed, norm in product(range(options.seeds), options.norms):
        run = options.runs/f'{norm}-{seed}'
        words = words_of(options, norm, seed, run)
        if not trainings.is_done(run, words):
            print(run, flush=True)
            trainings.run([Path(sys.executable).parent/'bnn_train', *words])
        shutil.copy(run/'result.json', options.out/f'{norm}-{seed}.json')
        shutil.copy(run/'history.csv', options.out/f'{norm}-{seed}.csv')

if __name__ == '__main__': main()
