"""Make the embedded Fashion-MNIST subset from the four official idx files.

    python tools/make_embedded.py DIR      # DIR holds train-images-idx3-ubyte.gz and the other three

Writes bnn_bn/embedded/fashion_mini_{train,test}.png: the first 1,000 (200) images of each class in file order, interleaved
so that picture i has class i % 10, as lossless strips of 28 pixels' width. Prints the sha256 of the pixels, which
nbs/03_data.ipynb holds.
"""
import gzip, hashlib, sys
from pathlib import Path
import numpy as np
from PIL import Image

def read(file, head): return np.frombuffer(gzip.open(file).read(), np.uint8)[head:]

def strip(folder, split, per_class):
    x, y = read(folder/f'{split}-images-idx3-ubyte.gz', 16).reshape(-1, 28, 28), read(folder/f'{split}-labels-idx1-ubyte.gz', 8)
    index = np.stack([np.flatnonzero(y == c)[:per_class] for c in range(10)], 1).reshape(-1)
    assert (y[index] == np.arange(len(index)) % 10).all()
    return x[index].reshape(-1, 28)

if __name__ == '__main__':
    out = Path(__file__).parent.parent/'bnn_bn/embedded'
    for split, name, per_class in (('train', 'train', 1000), ('t10k', 'test', 200)):
        pixels, file = strip(Path(sys.argv[1]), split, per_class), out/f'fashion_mini_{name}.png'
        Image.fromarray(pixels).save(file, optimize=True)
        print(name, len(pixels)//28, 'images', file.stat().st_size, 'bytes, sha256 of the pixels', hashlib.sha256(pixels.tobytes()).hexdigest())
