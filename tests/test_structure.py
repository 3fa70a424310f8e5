"""What the project's shape promises: sizes, links, paths, import safety, pins."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import orthotrain
from orthotrain.cli.main import LABORATORY
from processes import run_python

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "orthotrain"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
MAX_LINES = 400

SOURCE_FILES = sorted(SOURCE.rglob("*.py"))
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
SCRIPTS = [ROOT / name for name in ("demo.sh", "test.sh", "check.sh", ".ci/run")]


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def project_files() -> list[Path]:
    """Every text file a commit would hold; run folders, caches and environments left out."""
    folders = ["src", "tests", "docs", "benchmarks", "scripts", ".ci"]
    found = [p for folder in folders for p in (ROOT / folder).rglob("*") if p.is_file()]
    found += [p for p in ROOT.iterdir() if p.is_file()]
    binary = {".pyc", ".png", ".npz", ".log"}
    return [p for p in found if p.suffix not in binary and "__pycache__" not in p.parts]


# --- source -----------------------------------------------------------------------------------


def test_source_files_are_short():
    lines = {relative(path): len(path.read_text().splitlines()) for path in SOURCE_FILES}
    long = {name: count for name, count in lines.items() if count > MAX_LINES}
    assert not long, "split them by idea"


def below_the_command_line():
    """Every line of code outside it that has a node of the syntax tree."""
    for path in SOURCE_FILES:
        if "cli" not in path.relative_to(SOURCE).parts:
            for node in ast.walk(ast.parse(path.read_text())):
                if hasattr(node, "lineno"):
                    yield path, f"{relative(path)}:{node.lineno}", node


def test_code_below_the_command_line_neither_prints_nor_imports_the_package_root():
    # The import rules skip the root's lazy names, so nothing below may reach up through them.
    allowed = {p.stem for p in SOURCE.iterdir()} - {"__init__"} | {"__version__"}
    prints, imports = [], []
    for path, place, node in below_the_command_line():
        match node:
            case ast.Call(func=ast.Name(id="print")):
                prints.append(place)
            case _ if path == SOURCE / "__init__.py":
                pass
            case ast.Import() if "orthotrain" in [alias.name for alias in node.names]:
                imports.append(place)
            case ast.ImportFrom(module="orthotrain"):
                if not {alias.name for alias in node.names} <= allowed:
                    imports.append(place)
    assert not prints, "use logging"
    assert not imports


# --- import circles ---------------------------------------------------------------------------


def module_of(path: Path, source: Path) -> str:
    parts = path.relative_to(source).with_suffix("").parts
    return ".".join([source.name, *(part for part in parts if part != "__init__")])


def imports_of(source: Path) -> dict[str, set[str]]:
    """What each module of a package imports of it.

    Wherever the import stands: at the top, for type checkers only, or inside a function.
    """
    files = {module_of(path, source): path for path in source.rglob("*.py")}
    graph: dict[str, set[str]] = {}
    for module, path in files.items():
        named = []
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                named += [alias.name for alias in node.names]
            if isinstance(node, ast.ImportFrom) and node.module:
                inside = [f"{node.module}.{alias.name}" for alias in node.names]
                named += [name if name in files else node.module for name in inside]
        graph[module] = {name for name in named if name in files}
    return graph


def circles(graph: dict[str, set[str]]) -> set[frozenset[str]]:
    """The sets of modules that reach each other."""

    def reached(start: str) -> set[str]:
        found, todo = set(), [*graph[start]]
        while todo:
            if (module := todo.pop()) not in found:
                found.add(module)
                todo += graph[module]
        return found

    reach = {module: reached(module) for module in graph}
    return {
        frozenset(other for other in reach[module] if module in reach[other])
        for module in graph
        if module in reach[module]
    }


def test_no_modules_import_each_other_in_a_circle():
    assert not circles(imports_of(SOURCE))


def test_circles_are_found_wherever_the_import_stands(tmp_path):
    package = tmp_path / "pack"
    (package / "sub").mkdir(parents=True)
    files = {
        "__init__.py": "from pack import a",
        "a.py": "import pack.b",
        "b.py": "from pack.sub import c",
        "sub/__init__.py": "",
        "sub/c.py": "if TYPE_CHECKING:\n    from pack.a import name",
        "d.py": "def late():\n    from pack.e import name",
        "e.py": "from pack.d import late",
        "f.py": "from pack.a import name",
    }
    for name, text in files.items():
        (package / name).write_text(text)
    assert circles(imports_of(package)) == {
        frozenset({"pack.a", "pack.b", "pack.sub.c"}),
        frozenset({"pack.d", "pack.e"}),
    }


# --- the lazy package root --------------------------------------------------------------------


def test_every_public_name_resolves():
    for name in orthotrain.__all__:
        value = getattr(orthotrain, name)
        assert value is getattr(orthotrain, name)
        assert name in dir(orthotrain)


def told_to_type_checkers(package: Path) -> dict[str, str]:
    """Public name -> where it is, of the block under ``TYPE_CHECKING``."""
    tree = ast.parse((package / "__init__.py").read_text())
    (block,) = (
        node
        for node in tree.body
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
    )
    return {
        (alias.asname or alias.name): statement.module
        for statement in block.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }


def test_lazy_table_says_what_type_checkers_are_told():
    told = told_to_type_checkers(SOURCE)
    submodules = {name for name, home in told.items() if home == "orthotrain"}
    assert submodules == orthotrain._SUBMODULES
    assert {n: home for n, home in told.items() if n not in submodules} == orthotrain._HOME
    assert set(told) | {"__version__"} == set(orthotrain.__all__)


LAZY = ("data", "diagnostics", "layers", "linalg", "lowrank", "methods", "models")


@pytest.mark.parametrize("name", LAZY)
def test_lazy_packages_know_where_each_public_name_is(name):
    package = importlib.import_module(f"orthotrain.{name}")
    told = told_to_type_checkers(SOURCE / name)
    assert told == {n: f"orthotrain.{name}.{home}" for n, home in package._HOME.items()}
    assert {*package.__all__} <= {*dir(package)}
    for public in package.__all__:
        assert getattr(package, public) is getattr(package, public)
    # A module of the same name would take its place once something imports it.
    modules = {path.stem for path in (SOURCE / name).iterdir()}
    assert not modules & set(package._HOME)


# What the library may load before a run needs it; it had 136 modules of its own when all were.
MOST_MODULES = 64


def test_importing_the_two_names_of_the_first_example_stays_light():
    code = (
        "import sys, torch\n"
        "before = set(sys.modules)\n"
        "from orthotrain import attach, AdaptiveLowRank\n"
        "print(*(set(sys.modules) - before))"
    )
    added = run_python(code).split()
    own = [name for name in added if name.split(".")[0] == "orthotrain"]
    assert len(own) <= MOST_MODULES
    heavy = ("torch._dynamo", "torch._inductor", "torch._functorch", "torch.distributed")
    assert not [name for name in added if name.startswith(heavy)]


@pytest.mark.parametrize(
    "code",
    [
        "import orthotrain; dir(orthotrain); orthotrain.__version__",
        "import orthotrain.errors",
        "import orthotrain.lab.report",
        "import orthotrain.cli",
    ],
)
def test_import_does_not_load_torch(code):
    assert run_python(f"{code}\nprint('torch' in sys.modules)").strip() == "False"


def test_the_torch_check_can_fail():
    assert run_python("import torch\nprint('torch' in sys.modules)").strip() == "True"


def test_import_changes_no_random_state():
    code = (
        "import random, numpy, torch\n"
        "def state():\n"
        "    return (random.getstate(), str(numpy.random.get_state()),\n"
        "            torch.get_rng_state().tolist())\n"
        "before = state()\n"
        "import orthotrain\n"
        "for name in orthotrain.__all__: getattr(orthotrain, name)\n"
        "print(state() == before)\n"
    )
    assert run_python(code).strip() == "True"


# --- pages and scripts ------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """The anchors GitHub makes of the headings of a page."""
    headings = re.findall(r"^#+ +(.+?) *$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_relative_links_exist(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    missing = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        if not linked.exists() or (anchor and anchor not in anchors(linked)):
            missing.append(target)
    assert not missing, f"{relative(page)} links to {missing}"


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_named_paths_exist(page):
    pattern = r"(?<![\w/.-])((?:src|tests|docs|benchmarks|scripts|\.ci)/[\w./-]*\w|[\w-]+\.sh)\b"
    named = set(re.findall(pattern, page.read_text()))
    missing = sorted(name for name in named if not (ROOT / name).exists())
    assert not missing, f"{relative(page)} names {missing}"


def test_no_machine_paths():
    # Joined here so that this file does not hold what it looks for.
    roots = "|".join(["work", "farm", "root", "home", "Users", "opt", "tmp/bash_jobs"])
    pattern = re.compile(rf"(?:^|[^\w.)}}$*-])/(?:{roots})/", flags=re.MULTILINE)
    found = {
        relative(path): sorted(set(pattern.findall(path.read_text())))
        for path in project_files()
        if pattern.search(path.read_text())
    }
    assert not found


@pytest.mark.parametrize("path", SCRIPTS, ids=relative)
def test_script_is_executable_strict_and_parses(path):
    assert path.stat().st_mode & 0o111
    assert "\nset -euo pipefail\n" in path.read_text()
    done = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# --- pins -------------------------------------------------------------------------------------


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    requirements = [Requirement(line) for line in lines if line and not line.startswith("#")]
    assert len({canonicalize_name(r.name) for r in requirements}) == len(requirements)
    return {canonicalize_name(r.name): str(r.specifier) for r in requirements}


def declared() -> list[Requirement]:
    project = PYPROJECT["project"]
    named = [
        *PYPROJECT["build-system"]["requires"],
        *project["dependencies"],
        *(name for extra in project["optional-dependencies"].values() for name in extra),
        *(name for group in PYPROJECT["dependency-groups"].values() for name in group),
    ]
    return [Requirement(name) for name in named]


def test_pins_are_exact_and_carry_no_local_label():
    wrong = {name: pin for name, pin in pins().items() if not re.fullmatch(r"==[\w.]+", pin)}
    assert not wrong


def test_every_dependency_is_pinned():
    pinned = pins()
    seen: set[tuple[str, str]] = set()
    todo = [(canonicalize_name(r.name), extra) for r in declared() for extra in ("", *r.extras)]
    while todo:
        name, extra = todo.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        try:
            requires = metadata.requires(name) or ()
        except metadata.PackageNotFoundError:  # of a framework that is not installed here
            continue
        for line in requires:
            needed = Requirement(line)
            if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                todo += [(canonicalize_name(needed.name), e) for e in ("", *needed.extras)]
    # A CUDA build of torch pins its own libraries exactly; they are not ours to name.
    needed_names = {n for n, _ in seen if not n.startswith(("nvidia-", "triton", "cuda-"))}
    assert needed_names <= set(pinned), sorted(needed_names - set(pinned))


def test_the_library_has_four_dependencies():
    names = {Requirement(name).name for name in PYPROJECT["project"]["dependencies"]}
    assert names == {"torch", "numpy", "jaxtyping", "safetensors"}


def test_the_extra_is_what_commands_look_for_and_the_library_may_not_import():
    extras = PYPROJECT["project"]["optional-dependencies"]
    assert set(extras) == {"lab", "transformers", "lightning", "search", "timm"}
    homes = metadata.packages_distributions()
    looked_for = {canonicalize_name(homes[module][0]) for module in LABORATORY}
    assert looked_for == {canonicalize_name(Requirement(name).name) for name in extras["lab"]}
    (contract,) = (
        contract
        for contract in PYPROJECT["tool"]["importlinter"]["contracts"]
        if contract["name"].startswith("the library needs")
    )
    assert set(contract["forbidden_modules"]) == set(LABORATORY)
    packages = {path.stem for path in SOURCE.iterdir()} - {"__pycache__"}
    above = {"__init__", "__main__", "_version", "py", "cli", "lab", "integrations"}
    assert {name.split(".")[1] for name in contract["source_modules"]} == packages - above


def test_pins_satisfy_what_the_project_declares():
    pinned = pins()
    for requirement in declared():
        version = pinned[canonicalize_name(requirement.name)].removeprefix("==")
        assert requirement.specifier.contains(version), str(requirement)


def test_version_is_a_release_number():
    assert re.fullmatch(r"\d+\.\d+\.\d+", importlib.import_module("orthotrain").__version__)
