"""Make the embedded Fashion-MNIST subset from the four official idx files.

    python tools/make_embedded.py DIR   # DIR has the official files

Writes bnn_bn/embedded/fashion_mini_{train,test}.png: the first 1,000 (200) images of each class in
file order, interleaved so that picture i has class i % 10, as lossless strips of 28 pixels' width.
Prints the sha256 of the pixels, which nbs/03_data.ipynb holds.
"""
import gzip
import hashlib
import sys
from pathlib import Path
import numpy as np
from PIL import Image

OUT = Path(__file__).parent.parent/'bnn_bn/embedded'

def read(file, head): return np.frombuffer(gzip.open(file).read(), np.uint8)[head:]

def strip(folder, split, per_class):
    "the first images of each class below each other"
    x = read(folder/f'{split}-images-idx3-ubyte.gz', 16).reshape(-1, 28, 28)
    y = read(folder/f'{split}-labels-idx1-ubyte.gz', 8)
    index = np.stack([np.flatnonzero(y == c)[:per_class] for c in range(10)], 1).reshape(-1)
    assert (y[index] == np.arange(len(index)) % 10).all()
    return x[index].reshape(-1, 28)

def write(pixels, file):
    "the strip as a picture; says what it holds"
    Image.fromarray(pixels).save(file, optimize=True)
    digest = hashlib.sha256(pixels.tobytes()).hexdigest()
    print(f'{file.name}: {len(pixels)//28} images, {file.stat().st_size} bytes')
    print(f'sha256 of the pixels: {digest}')

if __name__ == '__main__':
    folder = Path(sys.argv[1])
    for split, name, per_class in (('train', 'train', 1000), ('t10k', 'test', 200)):
        write(strip(folder, split, per_class), OUT/f'fashion_mini_{name}.png')
