"""Writes a small packed CIFAR-10 file of the real format with generated images."""

import io

import numpy as np
from PIL import Image


def write_packed(path, *, train_per_class=20, test_per_class=4, seed=0, **changes):
    """Images of one color per class plus noise; ``changes`` replace arrays of the archive."""
    rng = np.random.default_rng(seed)
    colors = rng.integers(0, 256, (10, 1, 1, 3))
    blobs, labels, splits = [], [], []
    for split, count in ((0, train_per_class), (1, test_per_class)):
        for label in range(10):
            for _ in range(count):
                pixels = colors[label] + rng.normal(0, 20, (32, 32, 3))
                image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
                buffer = io.BytesIO()
                image.save(buffer, format="JPEG")
                blobs.append(np.frombuffer(buffer.getvalue(), dtype=np.uint8))
                labels.append(label)
                splits.append(split)
    arrays = {
        "data": np.concatenate(blobs),
        "offsets": np.cumsum([0, *map(len, blobs)]).astype(np.int64),
        "label": np.array(labels, dtype=np.int8),
        "split": np.array(splits, dtype=np.int8),
    }
    np.savez_compressed(path, **{**arrays, **changes})
    return path
