"""Counts what is handed to the SVD."""

from __future__ import annotations

import pytest
import torch

from orthotrain.linalg import _polar_derivative, _polar_routes


def counted_svds(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of what the SVD of ``polar_factor`` is given from now on."""
    taken: list[tuple[int, ...]] = []
    svd = _polar_routes.svd_route

    def spy(a: torch.Tensor, rule: _polar_routes.Rule) -> _polar_routes.Route:
        taken.append(tuple(a.shape))
        return svd(a, rule)

    for module in (_polar_routes, _polar_derivative):
        monkeypatch.setattr(module, "svd_route", spy)
    return taken
