"""Train the three columns (BN-free, batch norm, plain removal) over seeds, and keep one JSON and one CSV a run.

    python bench/columns.py --path DATA --out results/cifar10_narrow [--seeds 3] [--runs runs/columns] -- cifar10-plus --images 10000 ...

What follows `--` goes to bnn_train. Runs are taken one after the other and resumed where they were stopped; the same command goes on.
"""
import argparse, shutil, subprocess, sys
from pathlib import Path

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--path'); p.add_argument('--out', type=Path, required=True); p.add_argument('--seeds', type=int, default=3)
    p.add_argument('--runs', type=Path, default=Path('runs/columns')); p.add_argument('options', nargs='+')
    a = p.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    for seed in range(a.seeds):
        for norm in ('nobn', 'bn', 'naive'):
            run = a.runs/f'{norm}-{seed}'
            if not (run/'result.json').exists():
                print(run, flush=True)
                subprocess.run([Path(sys.executable).parent/'bnn_train', *a.options, *(['--path', a.path] if a.path else []), '--norm', norm, '--seed', str(seed),
                                '--out', run, '--resume'], check=True)
            shutil.copy(run/'result.json', a.out/f'{norm}-{seed}.json'); shutil.copy(run/'history.csv', a.out/f'{norm}-{seed}.csv')

if __name__ == '__main__': main()
