"""The Python blocks of the pages run as they stand, one page in one namespace."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from documentation import PAGES, ROOT, files_of, python_blocks
from lab.run.tiny import assert_goes_on, assert_same_bits
from orthotrain.cli.parser import parse_run
from orthotrain.lab.experiments.catalog import find_recipe, recipe_config
from orthotrain.lab.named import named
from orthotrain.lab.run.checkpoint import load_checkpoint
from orthotrain.lab.run.loop import train
from orthotrain.lab.run.record import RunFolder, SeedFolder
from orthotrain.lab.run.restore import read_network

WITH_CODE = [page for page in PAGES if python_blocks(page).strip()]


def test_the_pages_that_promise_code_have_it():
    promised = (
        *("low_rank", "roots", "whitening", "pooling", "nog", "olr", "orthogonal_weights"),
        *("compress", "sizes", "teacher", "loops", "conditioning", "rank_rule", "sharding"),
        "fine_tuning",
        *("write_a_method", "write_an_experiment"),
    )
    pages = {"README.md", *(f"{name}.md" for name in promised)}
    assert pages <= {page.name for page in WITH_CODE}


def test_the_table_of_loops_names_tests_that_are_there():
    text = (ROOT / "docs" / "loops.md").read_text()
    table = text.split("## What is tested in which loop")[1].split("\n## ")[0]
    entries = re.compile(r"^(\d+)\. `([^`]+)`$", re.MULTILINE)
    named, everywhere = dict(entries.findall(table)), dict(entries.findall(text))
    assert [*everywhere] == [str(i + 1) for i in range(len(everywhere))]
    factored = text.split("## After `to_factored`")[1].split("\n## ")[0]
    assert {*everywhere} == {*named, *re.findall(r"\((\d+)\)", factored)}
    for entry in everywhere.values():
        path, test = entry.split("::")
        assert f"def {test}(" in (ROOT / path).read_text(), entry
    head, _, *rows = [line.strip("|").split("|") for line in table.splitlines() if "|" in line]
    assert len(rows) == 5
    cells = [cell.strip() for row in rows for cell in row[1:]]
    assert len(cells) == 5 * (len(head) - 1)
    assert {*cells} == named.keys()


def write_files(page: Path, folder: Path, monkeypatch) -> None:
    """Write the files of a page into a folder, and go there."""
    for name, text in files_of(page).items():
        (folder / name).write_text(text)
        monkeypatch.delitem(sys.modules, Path(name).stem, raising=False)
        monkeypatch.chdir(folder)
        monkeypatch.syspath_prepend(folder)


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.name)
def test_page_runs(page, tmp_path, monkeypatch):
    write_files(page, tmp_path, monkeypatch)
    with torch.random.fork_rng(devices=[]):
        # The page stands alone: the future imports of this file are not its own.
        code = compile(python_blocks(page), str(page), "exec", dont_inherit=True)
        exec(code, {"__name__": "page"})


def test_the_experiment_of_two_files_goes_on_bit_for_bit(tmp_path, monkeypatch):
    page = ROOT / "docs" / "write_an_experiment.md"
    write_files(page, tmp_path, monkeypatch)
    assert sorted(files_of(page)) == ["mlp_build.py", "mlp_digits.py"]
    experiment = find_recipe("mlp_digits:EXPERIMENT")
    config = experiment.at("smoke")
    config = replace(config, record=replace(config.record, checkpoint_every_epochs=1))
    variant = experiment.variants(config)[1]

    def train_in(folder, **options):
        trainer = named(experiment.build)(config, variant, 0)
        return train(trainer, variant=variant, seed=0, folder=SeedFolder(folder), **options)

    whole = assert_goes_on(train_in, tmp_path, at=[40])
    assert whole["switch_step"] is not None
    path = SeedFolder(tmp_path / "whole").checkpoint
    weights = load_checkpoint(path)["training"]["model"]
    assert_same_bits(dict(read_network(path).state_dict()), dict(weights))


def test_the_command_goes_on_with_an_experiment_of_a_users_own(tmp_path, monkeypatch):
    write_files(ROOT / "docs" / "write_an_experiment.md", tmp_path, monkeypatch)
    name = "mlp_digits:EXPERIMENT"
    given = parse_run("train", [name, "--scale", "smoke", "--model.width", "32"]).config
    assert given == replace(recipe_config(name, "smoke"), model=replace(given.model, width=32))
    RunFolder(tmp_path / "run").open(given)
    resumed = parse_run("train", ["--resume", "--run-dir", str(tmp_path / "run")])
    assert resumed.config == given


def test_blocks_are_found_between_fences(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("a\n```text\nno\n```\n```python\nx = 1\n```\nno\n```python\ny = 2\n```\n")
    assert re.split(r"\n+", python_blocks(page).strip()) == ["x = 1", "y = 2"]
