"""Writes small data sets of the real formats with generated images."""

import io

import numpy as np
from PIL import Image


def pixels_of(rng, color, shape):
    """One color plus noise, ``(height, width, 3)``."""
    return (color + rng.normal(0, 20, (*shape, 3))).clip(0, 255).astype(np.uint8)


def write_packed(
    path, *, train_per_class=20, test_per_class=4, marks=(0, 1), shape=(32, 32), seed=0, **changes
):
    """Images of one color per class plus noise; ``changes`` replace arrays, None drops one.

    All marks but the first get ``test_per_class`` images a class. ``shape`` is (height, width).
    """
    rng = np.random.default_rng(seed)
    colors = rng.integers(0, 256, (10, 1, 1, 3))
    blobs, labels, splits = [], [], []
    for split in marks:
        for label in range(10):
            for _ in range(train_per_class if split == marks[0] else test_per_class):
                image = Image.fromarray(pixels_of(rng, colors[label], shape))
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
    arrays |= changes
    np.savez_compressed(path, **{k: v for k, v in arrays.items() if v is not None})
    return path


def write_folder(root, *, parts=("train", "val"), classes=("cat", "dog", "eel"), per_class=10):
    """A tree of ``part/class/000.png``; each image has one color, which names its part and class.

    Red is 40 times the class, green 100 times the part, blue the number of the image.
    """
    for i, part in enumerate(parts):
        for j, name in enumerate(classes):
            (root / part / name).mkdir(parents=True)
            for k in range(per_class):
                image = Image.new("RGB", (12 + k, 9), (40 * j, 100 * i, k))
                image.save(root / part / name / f"{k:03d}.png")
    return root
