"""Two networks of the package as pages that a browser opens: make web

    python tools/web.py [--out _web]
"""
import argparse
from importlib import resources
from pathlib import Path
import numpy as np
from PIL import Image
from bnn_bn.targets.web import to_web

def fashion_samples(n=10):
    "n test pictures, whose classes take turns, with a border of two pixels: (n,32,32)"
    file = resources.files('bnn_bn')/'embedded/fashion_mini_test.png'
    strip = np.asarray(Image.open(str(file))).reshape(-1, 28, 28)
    return np.pad(strip[:n], ((0, 0), (2, 2), (2, 2)))

def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--out', type=Path, default=Path('_web'), help='folder to write')
    out = parser.parse_args().out
    to_web('fashion-reactnet_mini', out/'fashion', samples=fashion_samples(), force=True,
           float_too=True)
    to_web('cifar10-reactnet18-w50', out/'cifar10', force=True, float_too=True)
    for folder in ('fashion', 'cifar10'):
        size = sum(f.stat().st_size for f in (out/folder).iterdir())
        print(f'{out/folder}/index.html: {size/1e3:.0f} kB in all')

if __name__ == '__main__': main()
