"""Traversals of one method as plain arrays: frames, labels, activeness, and their checks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8

from orthotrain.errors import ConfigError, NonFiniteError, ShapeError

# Two forward passes of one image may round one 8-bit level apart; more is another image.
_ROUNDING_LEVELS = 1


@dataclass(frozen=True, eq=False)
class Traversals:
    """What a method's generator draws when one latent dimension is moved and the rest is held.

    Every method of a page starts from the same latents, the samples.

    Args:
        method: Name of the method; markup in it is shown as text.
        frames: ``(dims, steps, samples, height, width, channels)`` uint8, one or three channels.
            ``frames[i, k, s]`` is sample ``s`` with dimension ``i`` set to the page's value ``k``.
        base: ``(samples, height, width, channels)`` uint8, the samples with nothing moved. May
            be left out where the values are offsets from the sample: the frames at value zero
            are then the base, the same for every dimension.
        base_values: ``(samples, dims)``, the samples' own latents, where a slider rests.
            Goes with ``base``.
        labels: Name of each dimension; ``z[0]``, ``z[1]``, ... where left out.
        activeness: How much each dimension changes the image, none negative. Sliders are ordered
            by it.
        note: A sentence on the method, or nothing.

    Raises:
        ShapeError: An array or list has another shape than stated above.
        ConfigError: An array is no numpy array or of another dtype, the name is empty, an
            activeness is negative, or one of ``base`` and ``base_values`` is missing.
        NonFiniteError: ``base_values`` or ``activeness`` holds NaN or infinity.
    """

    method: str
    frames: UInt8[np.ndarray, "dims steps samples height width channels"]
    base: UInt8[np.ndarray, "samples height width channels"] | None = None
    base_values: Float[np.ndarray, "samples dims"] | None = None
    labels: Sequence[str] | None = None
    activeness: Sequence[float] | Float[np.ndarray, " dims"] | None = None
    note: str = ""

    def __post_init__(self) -> None:
        if not self.method.strip():
            raise ConfigError("Traversals needs the name of the method, got an empty one")
        self._check_frames()
        self._check_base()
        if self.labels is not None:
            self._check_labels(self.labels)
        if self.activeness is not None:
            self._check_activeness(self.activeness)

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

    def names(self) -> list[str]:
        """A label for each dimension."""
        return [f"z[{i}]" for i in range(self.dims)] if self.labels is None else list(self.labels)

    def order(self) -> list[int]:
        """The dimensions, most active first; as they are without activeness."""
        if self.activeness is None:
            return list(range(self.dims))
        activeness = self.activeness
        return sorted(range(self.dims), key=lambda i: -activeness[i])

    def require_offset_frames(self, zero: int) -> None:
        """Raise ConfigError unless all dimensions show the same images at step ``zero``.

        Args:
            zero: The step whose value is zero.
        """
        at_zero = self.frames[:, zero].astype(np.int16)
        apart = int(np.abs(at_zero - at_zero[0]).max())
        if apart > _ROUNDING_LEVELS:
            raise ConfigError(
                f"traversals of {self.method!r} have no base, and their frames at value zero "
                f"differ by up to {apart} of 255 levels between dimensions, so zero is not the "
                "unmoved sample; give base=, the images of the samples, and base_values="
            )

    def _check_frames(self) -> None:
        self._require_uint8("frames", self.frames)
        shape = self.frames.shape
        if len(shape) != 6 or 0 in shape or shape[-1] not in (1, 3):
            raise ShapeError(
                f"traversals of {self.method!r} need frames of shape (dims, steps, samples, "
                f"height, width, channels), none empty, with 1 or 3 channels, got {shape}; move "
                "the channels last and leave an alpha channel out (image_frames does the former)"
            )

    def _check_base(self) -> None:
        if (self.base is None) != (self.base_values is None):
            names = ("base", "base_values")
            given, missing = names if self.base_values is None else reversed(names)
            raise ConfigError(
                f"traversals of {self.method!r} have {given} but no {missing}; give both, or "
                "neither where the frames at value zero are the unmoved samples"
            )
        if self.base is None or self.base_values is None:
            return
        self._require_uint8("base", self.base)
        if self.base.shape != self.frames.shape[2:]:
            raise ShapeError(
                self._says("base like one frame", self.base.shape, self.frames.shape[2:])
            )
        if np.shape(self.base_values) != (self.samples, self.dims):
            raise ShapeError(
                self._says(
                    "base_values (samples, dims)",
                    np.shape(self.base_values),
                    (self.samples, self.dims),
                )
            )
        if not np.isfinite(self.base_values).all():
            raise NonFiniteError(
                f"traversals of {self.method!r} need finite base_values, got NaN or infinity; "
                "give the latents the samples were drawn from"
            )

    def _check_labels(self, labels: Sequence[str]) -> None:
        if isinstance(labels, str) or not all(isinstance(label, str) for label in labels):
            raise ConfigError(
                f"traversals of {self.method!r} need labels as a list of texts, got {labels!r}; "
                "give one for each dimension"
            )
        if len(labels) != self.dims:
            raise ShapeError(self._says("a label for each dimension", len(labels), self.dims))

    def _check_activeness(self, activeness: Sequence[float] | Float[np.ndarray, " dims"]) -> None:
        if len(activeness) != self.dims:
            raise ShapeError(self._says("activeness of each dimension", len(activeness), self.dims))
        if not np.isfinite(activeness).all():
            raise NonFiniteError(
                f"traversals of {self.method!r} need finite activeness, got "
                f"{[float(a) for a in activeness]}; a generator that draws NaN has none: leave "
                "activeness out"
            )
        if min(activeness) < 0:
            raise ConfigError(
                f"traversals of {self.method!r} need activeness of at least zero, got "
                f"{min(activeness)}; give a variance or another size"
            )

    def _require_uint8(self, name: str, array: object) -> None:
        if not isinstance(array, np.ndarray) or array.dtype != np.uint8:
            got = getattr(array, "dtype", None) if isinstance(array, np.ndarray) else None
            raise ConfigError(
                f"traversals of {self.method!r} need {name} as a numpy array of uint8, got "
                f"{type(array).__name__ if got is None else got}; image_frames makes it from "
                "floats, tensor.cpu().numpy() from a tensor"
            )

    def _says(self, what: str, got: object, need: object) -> str:
        return f"traversals of {self.method!r} need {what}: {need}, got {got}"


def image_frames(
    images: Float[np.ndarray, "*leading channels height width"],
    *,
    low: float = -1.0,
    high: float = 1.0,
) -> UInt8[np.ndarray, "*leading height width channels"]:
    """Images of a generator as frames of a page: channels last, 8 bits.

    Args:
        images: ``(*leading, channels, height, width)`` floats.
        low: Value that becomes black; what is below it, too.
        high: Value that becomes white; what is above it, too.

    Returns:
        ``(*leading, height, width, channels)`` uint8, rounded to the nearest level.

    Raises:
        ShapeError: Fewer than three axes.
        ConfigError: ``images`` is no numpy array of floats, or ``low`` is not below ``high``.
        NonFiniteError: ``images`` holds NaN or infinity.
    """
    if not isinstance(images, np.ndarray) or images.dtype.kind != "f":
        raise ConfigError(
            f"image_frames needs a numpy array of floats, got {type(images).__name__} of dtype "
            f"{getattr(images, 'dtype', None)}; convert it, from a tensor with "
            "images.float().cpu().numpy()"
        )
    if images.ndim < 3:
        raise ShapeError(
            f"image_frames needs (*leading, channels, height, width), got {images.shape}; give "
            "gray images one channel"
        )
    if not low < high:
        raise ConfigError(f"image_frames needs low < high, got low={low} and high={high}")
    if not np.isfinite(images).all():
        raise NonFiniteError(
            f"image_frames needs finite pixels, got NaN or infinity in {images.shape}; the "
            "generator has diverged: take an earlier checkpoint"
        )
    # Half precision holds no 8-bit level between 128 and 255 to better than an eighth.
    last = np.moveaxis(images, -3, -1).astype(np.result_type(images.dtype, np.float32))
    levels = (last - low) * (255.0 / (high - low))
    return np.clip(np.rint(levels), 0, 255).astype(np.uint8)
