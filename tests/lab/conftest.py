"""Run folders without any training, for the tests of reports and of the pages of experiments."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lab.experiments.spectral.synthetic import spectral_run as synthetic_spectral
from lab.report.synthetic import synthetic_run
from orthotrain.lab.report import write_report

RunWriter = Callable[..., Path]


@pytest.fixture
def write_run(tmp_path: Path) -> RunWriter:
    """``write_run(name="run", variants=..., seeds=..., steps=..., epochs=...) -> folder``."""

    def write(*, name: str = "run", **settings: Any) -> Path:
        return synthetic_run(tmp_path / name, **settings)

    return write


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of all variants with three seeds. Do not write into it."""
    return synthetic_run(tmp_path_factory.mktemp("finished") / "run")


@pytest.fixture(scope="session")
def finished_page(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its report; several seconds of drawing, so made once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("orthotrain.lab.report.style.DOTS_PER_INCH", 60)
        return write_report([finished_run], tmp_path_factory.mktemp("finished") / "report")


@pytest.fixture
def write_spectral(tmp_path: Path) -> RunWriter:
    """``write_spectral(name="run", names=..., seeds=..., steps=..., pooling=...) -> folder``."""

    def write(*, name: str = "run", **settings: Any) -> Path:
        return synthetic_spectral(tmp_path / name, **{"steps": 60, **settings})

    return write


@pytest.fixture(scope="session")
def spectral_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished whitening run of all variants with three seeds. Do not write into it."""
    return synthetic_spectral(tmp_path_factory.mktemp("spectral") / "run", steps=120)


@pytest.fixture(scope="session")
def pooling_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of covariance pooling, small. Do not write into it."""
    names = ("bn", "zca", "ns", "nog", "olr")
    folder = tmp_path_factory.mktemp("pooling") / "run"
    return synthetic_spectral(folder, names=names, steps=40, pooling=True)
