"""An environment that holds the library and what its wheel asks for, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
import zipfile
from importlib import metadata
from pathlib import Path

from hatchling.builders.wheel import WheelBuilder
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]


def closure(names: list[str]) -> set[str]:
    """The distributions ``names`` and all that they require, without extras."""
    found: set[str] = set()
    todo = [canonicalize_name(name) for name in names]
    while todo:
        name = todo.pop()
        if name in found:
            continue
        found.add(name)
        needed = [Requirement(line) for line in metadata.requires(name) or ()]
        todo += [
            canonicalize_name(r.name)
            for r in needed
            if r.marker is None or r.marker.evaluate({"extra": ""})
        ]
    return found


class Environment:
    """A virtual environment with links into the one that runs the tests; nothing is downloaded."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder / "venv", symlinks=True)
        self.python = folder / "venv" / "bin" / "python"
        version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
        self.packages = folder / "venv" / "lib" / version / "site-packages"
        self.folder = folder

    def install_wheel(self) -> list[str]:
        """Build the wheel of the project and unpack it; returns what it requires."""
        (wheel,) = WheelBuilder(str(ROOT)).build(directory=str(self.folder), versions=["standard"])
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(self.packages)
        found = metadata.distributions(path=[str(self.packages)])
        (orthotrain,) = (d for d in found if d.name == "orthotrain")
        needed = [Requirement(line) for line in orthotrain.requires or ()]
        return [r.name for r in needed if r.marker is None or r.marker.evaluate({"extra": ""})]

    def link(self, names: list[str]) -> None:
        """Make distributions and all that they require importable."""
        for name in closure(names):
            distribution = metadata.distribution(name)
            for top in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
                place = self.packages / top
                if not place.exists():
                    place.symlink_to(distribution.locate_file(top))

    def run(self, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run the environment's Python in its folder."""
        kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
        return subprocess.run(
            [str(self.python), *map(str, arguments)],
            env={**kept, **environment},
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
        )
