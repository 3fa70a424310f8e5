"""Traversals of one method as plain arrays: frames, the samples themselves, and activeness."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8

from orthotrain.errors import NonFiniteError, ShapeError


@dataclass(frozen=True, eq=False)
class Traversals:
    """What a method's generator draws when one latent dimension is moved and the rest is held.

    Every method of a page starts from the same latents, the samples.

    Args:
        method: Name of the method; markup in it is shown as text.
        frames: ``(dims, steps, samples, height, width, channels)`` uint8, one or three channels.
            ``frames[i, k, s]`` is sample ``s`` with dimension ``i`` set to ``values[k]``.
        base: ``(samples, height, width, channels)`` uint8, the samples with nothing moved.
        base_values: ``(samples, dims)``, the samples' own latents, where a slider rests.
        values: ``(steps,)``, what the dimensions are set to, increasing.
        activeness: ``(dims,)``, how much each dimension changes the image. Sliders are ordered
            by it.

    Raises:
        ShapeError: An array has another shape or dtype than stated above.
        NonFiniteError: ``base_values``, ``values`` or ``activeness`` holds NaN or infinity.
    """

    method: str
    frames: UInt8[np.ndarray, "dims steps samples height width channels"]
    base: UInt8[np.ndarray, "samples height width channels"]
    base_values: Float[np.ndarray, "samples dims"]
    values: Float[np.ndarray, " steps"]
    activeness: Float[np.ndarray, " dims"]

    def __post_init__(self) -> None:
        shape = self.frames.shape
        kinds = {self.frames.dtype, self.base.dtype}
        if len(shape) != 6 or 0 in shape or shape[-1] not in (1, 3) or kinds != {np.dtype("u1")}:
            raise ShapeError(
                f"traversals of {self.method!r} need uint8 frames (dims, steps, samples, height, "
                f"width, channels), none empty, with 1 or 3 channels, got {self.frames.dtype} "
                f"{shape} and a base of {self.base.dtype}"
            )
        wanted = {
            "base": shape[2:],
            "base_values": (self.samples, self.dims),
            "values": (self.steps,),
            "activeness": (self.dims,),
        }
        for name, needed in wanted.items():
            if (got := getattr(self, name).shape) != needed:
                raise ShapeError(f"traversals of {self.method!r} need {name}: {needed}, got {got}")
        for name in ("base_values", "values", "activeness"):
            if not np.isfinite(getattr(self, name)).all():
                raise NonFiniteError(
                    f"traversals of {self.method!r} need finite {name}, got NaN or infinity; the "
                    "generator has diverged"
                )

    @property
    def dims(self) -> int:
        """Number of latent dimensions that are moved."""
        return int(self.frames.shape[0])

    @property
    def steps(self) -> int:
        """Number of values each dimension is set to."""
        return int(self.frames.shape[1])

    @property
    def samples(self) -> int:
        """Number of latents the traversals start from."""
        return int(self.frames.shape[2])

    def order(self) -> list[int]:
        """The dimensions, most active first."""
        return sorted(range(self.dims), key=lambda i: -self.activeness[i])
