"""The images of a classifier, by configuration; only the chosen loader is imported."""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

import torch

from orthotrain.data.batches import BatchStream
from orthotrain.lab.experiments.classifier.config import DataConfig
from orthotrain.lab.run.reproducibility import stream_seed

if TYPE_CHECKING:
    from orthotrain.data.splits import ImageData

# Images of the textures, the garments and of folders have no size of their own.
_IMAGE_SIZE = 128


def load_data(config: DataConfig, *, device: torch.device) -> ImageData:
    """Load the data set that ``config`` names onto ``device``."""
    size, limit = config.image_size or _IMAGE_SIZE, config.train_limit
    match config.name:
        case "digits":
            from orthotrain.data.digits import load_digits

            return load_digits(train_limit=limit, device=device)
        case "cifar10":
            from orthotrain.data.cifar10 import load_cifar10

            return load_cifar10(data=config.dir, train_limit=limit, device=device)
        case "textures":
            from orthotrain.data.textures import load_textures

            return load_textures(data=config.dir, image_size=size, train_limit=limit, device=device)
        case "clothing":
            from orthotrain.data.clothing import load_clothing

            return load_clothing(data=config.dir, image_size=size, train_limit=limit, device=device)
        case "image-folder":
            from orthotrain.data.image_folder import load_image_folder

            return load_image_folder(config.dir, image_size=size, train_limit=limit, device=device)
        case _:
            assert_never(config.name)


def batches_of(data: ImageData, config: DataConfig, *, seed: int) -> BatchStream:
    """The training part in batches, in an order that is the seed's own."""
    return BatchStream(
        data.train,
        batch_size=config.batch_size,
        seed=stream_seed(seed, "batches"),
        crop_padding=config.crop_padding,
        crop_area=config.crop_area,
        flip=config.flip,
        mixup=config.mixup,
        classes=data.classes,
    )
