"""The setup of the scripts says what is missing, and does nothing twice."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ["awk", "bash", "cat", "df", "dirname", "grep", "rm", "tail", "uname"]
REAL_PYTHON = Path(sys.base_prefix) / "bin" / "python3"


@pytest.fixture
def project(tmp_path):
    """A copy of what setup reads, in a folder with a space in its name."""
    folder = tmp_path / "a clone"
    (folder / "scripts").mkdir(parents=True)
    shutil.copy(ROOT / "scripts" / "env.sh", folder / "scripts")
    shutil.copy(ROOT / "demo.sh", folder)
    shutil.copy(ROOT / "constraints.txt", folder)
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


@pytest.fixture
def tools(tmp_path):
    """A folder that holds the few tools setup may need, and no Python."""
    folder = tmp_path / "tools"
    folder.mkdir()
    for name in TOOLS:
        (folder / name).symlink_to(shutil.which(name))
    # With a GPU in the machine no other package index is looked for, so no test uses the network.
    put(folder, "nvidia-smi", "exit 0")
    return folder


def put(folder: Path, name: str, body: str) -> None:
    path = folder / name
    path.unlink(missing_ok=True)
    path.write_text(f"#!{shutil.which('bash')}\n{body}\n")
    path.chmod(0o755)


def demo(
    project: Path, tools: Path, *options: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(project / "demo.sh"), *options],
        env={"PATH": str(tools), "HOME": os.environ.get("HOME", ""), **environment},
        cwd=tools,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("found", ["none", "too old"])
def test_a_python_that_is_missing_or_old_is_named(project, tools, found):
    if found == "too old":
        put(tools, "python3", "exit 1")
    done = demo(project, tools)
    assert done.returncode == 1
    assert "Python 3.11 or later was not found on the PATH" in done.stderr
    assert not (project / ".venv").exists()


def test_named_python_that_does_not_fit_is_an_error(project, tools):
    put(tools, "python3", f'exec "{REAL_PYTHON}" "$@"')
    done = demo(project, tools, ORTHOTRAIN_PYTHON="no-such-python")
    assert done.returncode == 1
    assert "not found as ORTHOTRAIN_PYTHON=no-such-python" in done.stderr


def test_missing_venv_names_the_package_to_install(project, tools):
    put(tools, "python3", f'case "$*" in *ensurepip*) exit 1;; esac; exec "{REAL_PYTHON}" "$@"')
    done = demo(project, tools)
    assert done.returncode == 1
    assert "venv or ensurepip is missing" in done.stderr
    assert "sudo apt install python3-venv" in done.stderr
    assert not (project / ".venv").exists()


def test_full_disk_is_said_before_anything_is_made(project, tools):
    put(tools, "python3", f'exec "{REAL_PYTHON}" "$@"')
    put(tools, "df", "echo Filesystem; echo '/dev/disk 9000 8500 500 94% /'")
    done = demo(project, tools)
    assert done.returncode == 1
    assert "500 MB free" in done.stderr
    assert "needed" in done.stderr
    assert not (project / ".venv").exists()


@pytest.fixture
def ready(project):
    """An environment whose Python passes for a real one and writes down what it is asked."""
    binaries = project / ".venv" / "bin"
    binaries.mkdir(parents=True)
    put(
        binaries,
        "python",
        f'(printf "%s|" "$@"; echo) >> "{project}/asked"\n'
        'case "$*" in "-m "*) exit 0;; esac\n'
        f'exec "{REAL_PYTHON}" "$@"',
    )
    return project


def asked(project: Path) -> str:
    return (project / "asked").read_text()


def test_second_run_installs_nothing(ready, tools):
    first = demo(ready, tools)
    assert first.returncode == 0, first.stderr
    assert "-m|pip|install|" in asked(ready)
    assert "torch==2.13.0" in asked(ready)
    assert f"|--no-build-isolation|-e|{ready}[lab]|" in asked(ready)
    (ready / "asked").unlink()

    second = demo(ready, tools)
    assert second.returncode == 0, second.stderr
    assert "-m|pip|install|" not in asked(ready)
    assert "-m|orthotrain|train|" in asked(ready)
    assert "Installing" not in second.stdout


@pytest.mark.skipif(Path("/proc/driver/nvidia/version").exists(), reason="this machine has a GPU")
@pytest.mark.parametrize("answers", [True, False])
def test_cpu_build_is_asked_for_where_its_index_answers(ready, tools, answers):
    (tools / "nvidia-smi").unlink()
    put(tools, "uname", "echo Linux")
    put(
        ready / ".venv" / "bin",
        "python",
        f'(printf "%s|" "$@"; echo) >> "{ready}/asked"\n'
        f'case "$*" in "-m "*) exit 0;; "- https:"*) exit {int(not answers)};; esac\n'
        f'exec "{REAL_PYTHON}" "$@"',
    )
    assert demo(ready, tools).returncode == 0
    assert ("|--extra-index-url|https://download.pytorch.org/whl/cpu|" in asked(ready)) is answers


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_changed_requirements_are_installed_again(ready, tools, name):
    demo(ready, tools)
    (ready / "asked").unlink()
    with (ready / name).open("a") as file:
        file.write("\n# changed\n")
    demo(ready, tools)
    assert "-m|pip|install|" in asked(ready)


def test_failed_install_shows_the_log_and_is_tried_again(ready, tools):
    failing = "echo 'the mirror is down'; exit 1"
    put(
        ready / ".venv" / "bin",
        "python",
        f'case "$*" in *"pip install"*) {failing};; "-m "*) exit 0;; esac\n'
        f'exec "{REAL_PYTHON}" "$@"',
    )
    for _ in range(2):
        done = demo(ready, tools)
        assert done.returncode == 1
        assert "the mirror is down" in done.stderr
        assert "installing torch==2.13.0 failed" in done.stderr
    assert not list((ready / ".venv").glob("*.stamp"))


@pytest.mark.parametrize("options", [(), ("--seeds", "0"), ("--run-dir", "my runs/first")])
def test_demo_trains_in_its_folder_and_passes_options_on(ready, tools, options):
    done = demo(ready, tools, *options)
    assert done.returncode == 0, done.stderr
    given = "".join(f"{option}|" for option in options)
    assert f"-m|orthotrain|train|--run-dir|{ready}/runs/demo|{given}\n" in asked(ready)


def test_demo_fails_when_training_fails(ready, tools):
    demo(ready, tools)
    put(
        ready / ".venv" / "bin",
        "python",
        f'case "$*" in "-m orthotrain"*) exit 3;; "-m "*) exit 0;; esac\nexec "{REAL_PYTHON}" "$@"',
    )
    done = demo(ready, tools)
    assert done.returncode == 3
