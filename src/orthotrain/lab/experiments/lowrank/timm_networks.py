"""Networks of timm at the sizes of a configuration, with weights that one generator decides."""

from __future__ import annotations

from importlib import import_module
from typing import Any, Final

import torch
from torch import nn

from orthotrain.errors import ConfigError, MissingPackageError
from orthotrain.extras import missing_package
from orthotrain.lab.experiments.lowrank.image_config import FoundResNet, FoundViT
from orthotrain.models.resnet import STAGES, drawing_from
from orthotrain.models.transformer import check_sizes

_OWN: Final = "take the network of this package with --model.source own"


def timm_network(
    config: FoundViT | FoundResNet,
    *,
    image_shape: tuple[int, int, int],
    classes: int,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """``vit_base_patch16_224`` or ``resnetrs101`` of timm at these sizes, with fresh weights.

    At the sizes of the recipe they are these networks themselves. Neither has dropout. A ResNet-RS
    has a stem of its own: of ``config`` it takes depth, width and the channels of the stem.

    Args:
        config: Sizes.
        image_shape: ``(channels, size, size)``.
        classes: Outputs.
        generator: Source of the weights; torch's global state then stays as it is.

    Raises:
        ConfigError: Sizes that do not fit each other or the images, or timm does not import.
        MissingPackageError: timm is not installed.
    """
    timm = _timm()
    channels, size, _ = image_shape
    common = {"num_classes": classes, "in_chans": channels}
    with drawing_from(generator):
        if isinstance(config, FoundViT):
            _check_vit(config, size)
            vit: nn.Module = timm.create_model(
                "vit_base_patch16_224",
                img_size=size,
                patch_size=config.patch_size,
                embed_dim=config.width,
                depth=config.depth,
                num_heads=config.heads,
                mlp_ratio=config.mlp_ratio,
                **common,
            )
            return vit
        resnet: nn.Module = timm.create_model(
            "resnetrs101",
            layers=STAGES[config.depth][1],
            channels=tuple(config.width * 2**stage for stage in range(4)),
            stem_width=config.stem_channels // 2,
            **common,
        )
        return resnet


def _check_vit(config: FoundViT, size: int) -> None:
    sizes = {"width": config.width, "depth": config.depth, "patch_size": config.patch_size}
    check_sizes("timm's ViT", heads=config.heads, mlp_ratio=config.mlp_ratio, sizes=sizes)
    if size % config.patch_size:
        raise ConfigError(
            f"timm's ViT: model.patch_size={config.patch_size} does not divide the image size "
            f"{size}; choose a divisor"
        )


def _timm() -> Any:
    try:
        return import_module("timm")
    except ModuleNotFoundError as error:
        if error.name != "timm":
            raise _broken(error) from error
        missing = missing_package("timm's networks", "timm", extra="timm")
        raise MissingPackageError(f"{missing}; or {_OWN}") from error
    except Exception as error:  # whatever a package that it builds on raises
        raise _broken(error) from error


def _broken(error: Exception) -> ConfigError:
    return ConfigError(
        f"timm is installed and does not import ({error}); a torchvision of another build "
        f"than torch is the usual cause: install the one that belongs to this torch, or {_OWN}"
    )
