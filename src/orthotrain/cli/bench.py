"""``orthotrain bench``: run the scripts that stand behind the performance claims."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import orthotrain
from orthotrain.cli.command import Command
from orthotrain.errors import ConfigError


def run_bench(command: Command) -> int:
    """Run one script, or all one after the other; the first failure ends the command."""
    scripts = benchmark_scripts(Path(orthotrain.__file__))
    name = command.arguments.name
    if name is not None:
        if name not in scripts:
            raise ConfigError(f"bench: {name!r} does not exist; choose from {', '.join(scripts)}")
        scripts = {name: scripts[name]}
    for title, script in scripts.items():
        print(f"== {title}", flush=True)
        code = subprocess.run([sys.executable, str(script)], check=False).returncode
        if code != 0:
            raise ConfigError(f"bench: {script} ended with exit code {code}; see its output above")
    return 0


def benchmark_scripts(package_file: Path) -> dict[str, Path]:
    """Scripts of the source checkout that holds the package, by name.

    Raises:
        ConfigError: The package was installed without its sources.
    """
    folder = package_file.resolve().parents[2] / "benchmarks"
    scripts = {
        path.stem: path for path in sorted(folder.glob("*.py")) if not path.name.startswith("_")
    }
    if not scripts:
        raise ConfigError(
            f"bench: no scripts in {folder}; the benchmarks are part of the source checkout, not "
            "of an installed package; clone the repository and run it from there"
        )
    return scripts
