"Folders of small pictures that several tests train on, or read."
import numpy as np
from PIL import Image

def noise_folder(folder, parts, classes='ab', sides=None, enlarge=1, seed=0):
    """Noise in `folder`/PART/CLASS/NUMBER.png; `parts` is part -> pictures of each class.

    Pictures have 40 rows and 50 columns; with `sides` a random number of each, from the first up
    to below the second. Each random pixel is drawn as a square of `enlarge` by `enlarge`.
    """
    rng = np.random.default_rng(seed)
    for part, n in parts.items():
        for name in classes:
            (folder/part/name).mkdir(parents=True)
            for i in range(n):
                shape = rng.integers(*sides, 2) if sides else (40, 50)
                pixels = rng.integers(0, 256, (*shape, 3), np.uint8)
                pixels = np.kron(pixels, np.ones((enlarge, enlarge, 1), np.uint8))
                Image.fromarray(pixels).save(folder/part/name/f'{i}.png')
    return folder
