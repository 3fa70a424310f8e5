"""The whitening matrix of evaluation, remembered: a constant of the graph that is exported.

No graph holds a decision on numbers, and ONNX has no eigenvalues. In evaluation the matrix depends
on the running covariance alone, so it is made where numbers can still be read.
"""

from __future__ import annotations

from abc import abstractmethod
from contextlib import suppress
from typing import Any, Self

import torch
from torch import Tensor, nn

from orthotrain.errors import OrthotrainError, StateError


class FixedRoot(nn.Module):
    """A layer that remembers its matrix whenever it enters evaluation, moves or loads values."""

    running_covariance: Tensor | None
    # Plain attributes: which buffers a model has must not depend on its mode.
    _fixed_root: Tensor | None = None
    _fixed_from: tuple[Tensor, int] | None = None

    @abstractmethod
    def _running_root(self, dtype: torch.dtype) -> Tensor:
        """The matrix of evaluation in ``dtype``; calls ``remember``."""

    def remember(self, root: Tensor, covariance: Tensor) -> None:
        """Keep a matrix, and of which covariance in which state it is."""
        if not torch.compiler.is_compiling():
            self._fixed_root, self._fixed_from = root.detach(), (covariance, covariance._version)

    def remembered(self, layer: str) -> Tensor:
        """The matrix.

        Raises:
            StateError: There is none, or the covariance was changed since.
        """
        root, origin = self._fixed_root, self._fixed_from
        if root is None or origin is None or origin[0]._version != origin[1]:
            raise StateError(
                f"{layer} needs the whitening matrix of evaluation to be exported, and its "
                f"statistics are new or have none; call eval() on the model, or run it once, first"
            )
        return root

    def _refresh(self) -> None:
        self._fixed_root = self._fixed_from = None
        covariance = getattr(self, "running_covariance", None)
        if self.training or covariance is None or torch.compiler.is_compiling():
            return
        place = covariance.device.type
        # Without a root, or without values, evaluation says what is wrong when it is asked for.
        with (
            suppress(OrthotrainError, RuntimeError),
            torch.no_grad(),
            torch.autocast(device_type=place, enabled=False),
        ):
            self._running_root(torch.promote_types(covariance.dtype, torch.float32))

    def train(self, mode: bool = True) -> Self:
        """Set the mode; evaluation remembers its matrix."""
        super().train(mode)
        self._refresh()
        return self

    def _apply(self, *args: Any, **kwargs: Any) -> Self:
        super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]
        self._refresh()
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._refresh()
