"""The library needs what its wheel says and no more: its tests, and two commands, in a bare place.

Everything here is run by the Python of an environment that holds the wheel, its requirements,
pytest and hypothesis.
"""

from __future__ import annotations

import pytest

from alone.environment import ROOT, Environment
from orthotrain.cli import main

SOURCE = ROOT / "src"
LIBRARY = [
    ".".join(path.relative_to(SOURCE).with_suffix("").parts)
    for path in sorted(SOURCE.rglob("*.py"))
    if path.relative_to(SOURCE / "orthotrain").parts[0]
    not in ("__main__.py", "cli", "lab", "integrations")
]
COMPILER = "ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"
PYTEST = (
    *("-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-c", ROOT / "pyproject.toml"),
    *("--rootdir", ROOT, "-o", "pythonpath=tests"),
    # The project's own filters name a category of a package that is not here.
    *("-o", f"filterwarnings=error\n{COMPILER}"),
    # Of these tests it is the imports that count, so a part of them is enough.
    *("-p", "alone.sample"),
)
NEVER_OPTIONAL = ("linalg", "layers", "methods", "lowrank", "diagnostics", "contract", "models")
INSTALLS = 'pip install "orthotrain[lab]"'

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    made = Environment(tmp_path_factory.mktemp("alone"))
    assert sorted(made.install_wheel()) == ["jaxtyping", "numpy", "safetensors", "torch"]
    made.link(["jaxtyping", "numpy", "safetensors", "torch", "pytest", "hypothesis"])
    return made


def test_every_module_of_the_library_can_be_imported(environment):
    code = (
        "import importlib, sys, orthotrain\n"
        f"for name in {LIBRARY!r}: importlib.import_module(name.removesuffix('.__init__'))\n"
        "for name in orthotrain.__all__: getattr(orthotrain, name)\n"
        "print(orthotrain.__file__, 'orthotrain.lab' in sys.modules)\n"
    )
    done = environment.run("-c", code)
    assert done.returncode == 0, done.stderr
    file, laboratory = done.stdout.split()
    assert file.startswith(str(environment.packages))
    assert laboratory == "False"


@pytest.mark.parametrize("module", ["yaml", "sklearn", "PIL", "jsonargparse", "scipy", "rich"])
def test_the_environment_is_bare(environment, module):
    assert f"No module named '{module}'" in environment.run("-c", f"import {module}").stderr


def test_tests_of_the_library_pass(environment):
    done = environment.run(*PYTEST, *(ROOT / "tests" / name for name in NEVER_OPTIONAL))
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout


def test_tests_of_scores_pass_or_meet_the_error_that_names_the_extra(environment):
    done = environment.run(*PYTEST, "-p", "alone.skip_extra", ROOT / "tests" / "disentangle")
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout


def test_inspect_and_compress_need_the_library_alone(environment, tmp_path, capsys):
    quick = ["--scale", "smoke", "--optim.epochs", "1", "--model.width", "8", "--model.depth", "1"]
    run = ["--variants", "dense", "--workers", "1", "--report", "false", "--run-dir", str(tmp_path)]
    assert main(["train", "digits-minivit", *quick, *run]) == 0
    checkpoint = tmp_path / "variants" / "dense" / "seed-0" / "checkpoint.pt"
    small = tmp_path / "small.safetensors"
    done = environment.run(
        "-m", "orthotrain", "compress", checkpoint, "--rank", "rank_rtol=0.5", "-o", small
    )
    assert (done.returncode, done.stderr) == (0, "")
    for path in (checkpoint, small):
        done = environment.run("-m", "orthotrain", "inspect", path)
        assert (done.returncode, done.stderr) == (0, "")
        assert "blocks.0.attention.query" in done.stdout


@pytest.mark.parametrize("command", ["train", "tune", "report .", "bench"])
def test_the_other_commands_say_the_line_that_installs_the_rest(environment, command):
    done = environment.run("-m", "orthotrain", *command.split())
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.rstrip().endswith(INSTALLS)
