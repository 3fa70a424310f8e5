"""``orthotrain inspect`` and ``orthotrain compress`` on files of any program."""

from __future__ import annotations

import errno
import json
import os
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import orthotrain
from cli.calls import fails, without
from orthotrain.cli import main
from orthotrain.cli.main import LABORATORY
from orthotrain.lowrank.no_form import KINDS


def network() -> nn.Module:
    return nn.Sequential(
        nn.Linear(40, 48), nn.ReLU(), nn.Linear(48, 40, bias=False), nn.GRU(40, 20)
    )


def steep(seed: int = 0) -> dict[str, torch.Tensor]:
    """A state dict whose weights have falling singular values."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, tensor in network().state_dict().items():
        value = torch.randn(tensor.shape, generator=generator)
        if value.ndim == 2:
            u, s, vh = torch.linalg.svd(value, full_matrices=False)
            value = u * 1.5 ** -torch.arange(len(s)) @ vh
        state[name] = value.contiguous()
    return state


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": steep(), "ema": steep(1), "epoch": 3}, path)
    return path


def test_inspect_prints_what_could_be_saved_and_writes_it(capsys, tmp_path, checkpoint):
    numbers, picture = tmp_path / "numbers.json", tmp_path / "picture.png"
    assert (
        main(["inspect", str(checkpoint), "--json", str(numbers), "--picture", str(picture)]) == 0
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{checkpoint}: torch zip, entry state_dict, not read: ema"
    headings = ["90 % energy", "99 % energy", "99.9 % energy", "pays up to"]
    assert [h for h in headings if h in lines[1]] == headings
    content = json.loads(numbers.read_text())
    weights = {weight["name"]: weight for weight in content["weights"]}
    assert {name: bool(weight["stays"]) for name, weight in weights.items()} == {
        "0": False, "2": False, "3.weight_ih_l0": True, "3.weight_hh_l0": True,
    }  # fmt: skip
    assert sum(line.endswith("  stays") for line in lines) == 2
    (row,) = (line for line in lines if line.startswith("0 "))
    for at in weights["0"]["at"]:
        assert f"{at['rank']}: {at['stored']:,}" in row
    assert row.split()[-1] == "21" == str(weights["0"]["break_even_rank"])
    assert [budget["share"] for budget in content["budgets"]] == [0.75, 0.5, 0.25]
    text = "\n".join(lines)
    assert f"{content['budgets'][0]['stored']:,}" in text
    assert "25 %    out of reach" in text
    assert "weight of a GRU, cut on request: also gru" in text
    assert "3.weight_ih_l0, 3.weight_hh_l0" in text
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert main(["inspect", str(checkpoint), "--also", "gru", "--key", "ema"]) == 0
    also = capsys.readouterr().out
    assert "entry ema" in also
    assert "out of reach" not in also


def test_compress_writes_what_its_model_loads(capsys, tmp_path, checkpoint):
    small = tmp_path / "small.safetensors"
    line = [
        "compress",
        str(checkpoint),
        "--stored-budget",
        ".5",
        "--also",
        "gru",
        "--out",
        str(small),
    ]
    assert main(line) == 0
    output = capsys.readouterr().out
    total = sum(tensor.numel() for tensor in steep().values())
    loaded = orthotrain.load(network(), small)
    stored = sum(parameter.numel() for parameter in loaded.parameters())
    assert stored <= total / 2
    assert f"{stored:,} numbers stored, {100 * stored / total:.1f} % of {total:,}" in output
    dense = tmp_path / "dense.safetensors"
    assert main([*line[:-1], str(dense), "--dense"]) == 0
    assert f"as two factors they would hold {stored:,} numbers" in capsys.readouterr().out
    network().load_state_dict(load_file(dense))
    assert main(["inspect", str(small)]) == 0
    assert "low-rank" in capsys.readouterr().out
    only = tmp_path / "only.safetensors"
    assert (
        main(["compress", str(small), "--rank", "energy=.9", "--only", "2", "--out", str(only)])
        == 0
    )
    assert "0.pair stays as it is: not named by only" in capsys.readouterr().out


def test_the_kinds_on_request_are_those_of_the_library():
    # The name main of the package is the function.
    assert sys.modules["orthotrain.cli.main"]._KINDS == KINDS


def test_a_foreign_file_needs_the_library_alone(tmp_path, checkpoint):
    small = tmp_path / "small.safetensors"
    done = without(LABORATORY, "compress", checkpoint, "--stored-budget", ".7", "--out", small)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.bad_input
def test_a_picture_without_matplotlib_is_refused_before_anything_is_read(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    error = fails(capsys, "inspect", "nowhere.pt", "--picture", "picture.png")
    assert "matplotlib is needed and not installed" in error
    assert 'pip install "orthotrain[lab]"' in error


@pytest.mark.bad_input
def test_a_picture_of_another_format_is_refused_before_anything_is_read(capsys):
    error = fails(capsys, "inspect", "nowhere.pt", "--picture", "some/p.jpg")
    assert "--picture some/p.jpg: a PNG is written; name it p.png" in error


def test_budgets_of_a_low_rank_file_are_shares_of_its_dense_form(capsys, tmp_path, checkpoint):
    out, numbers = tmp_path / "small.safetensors", tmp_path / "numbers.json"
    assert main(["compress", str(checkpoint), "--stored-budget", ".8", "--out", str(out)]) == 0
    dense = sum(tensor.numel() for tensor in steep().values())
    capsys.readouterr()
    assert main(["inspect", str(out), "--json", str(numbers)]) == 0
    said = f"what a budget would leave, as a share of the {dense:,} numbers of the dense form"
    assert said in capsys.readouterr().out
    content = json.loads(numbers.read_text())
    assert content["dense"] == dense > content["stored"]
    assert main(["inspect", str(checkpoint)]) == 0
    assert "dense form" not in capsys.readouterr().out


@pytest.mark.bad_input
def test_nothing_is_written_over_what_is_read(capsys, tmp_path, checkpoint):
    assert "is the file that is read" in fails(capsys, "inspect", checkpoint, "--json", checkpoint)
    folder = tmp_path / "folder"
    folder.mkdir()
    save_file(steep(), folder / "model.safetensors")
    content = (folder / "model.safetensors").read_bytes()
    error = fails(
        capsys, "compress", folder, "--stored-budget", ".8", "--out", folder / "model.safetensors"
    )
    assert "is the file that is read" in error
    error = fails(capsys, "inspect", folder, "--json", folder / "model.safetensors")
    assert "is the file that is read" in error
    assert (folder / "model.safetensors").read_bytes() == content


@pytest.mark.bad_input
def test_mistakes_about_a_file_are_one_line_and_leave_nothing_behind(capsys, tmp_path, checkpoint):
    out = tmp_path / "out.safetensors"

    def compress(*words):
        error = fails(capsys, "compress", checkpoint, *words, "--out", out)
        assert not out.exists()
        return error

    assert "Raise stored_budget to" in (reach := compress("--stored-budget", ".1"))
    assert "3.weight_ih_l0, 2,400 (weight of a GRU" in reach
    assert "'1' matches no layer" in compress("--stored-budget", ".8", "--skip", "1")
    assert "key='emma' is no entry" in compress("--stored-budget", ".8", "--key", "emma")
    broken = steep()
    broken["2.weight"][0, 0] = float("inf")
    torch.save(broken, checkpoint)
    assert "1 infinite of 1920 in 2.weight" in compress("--stored-budget", ".8")
    assert main(["inspect", str(checkpoint)]) == 0
    assert "holds NaN or infinity (1,920 numbers): 2.weight" in capsys.readouterr().out


@pytest.mark.bad_input
def test_a_full_disk_is_told_and_an_earlier_file_stays(capsys, tmp_path, checkpoint, monkeypatch):
    out = tmp_path / "out.safetensors"
    out.write_bytes(b"earlier")

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    error = fails(capsys, "compress", checkpoint, "--stored-budget", ".8", "--out", out)
    assert "free some space, or choose another disk" in error
    assert out.read_bytes() == b"earlier"
    assert "free some space" in fails(capsys, "inspect", checkpoint, "--json", tmp_path / "j")


def test_progress_is_shown_for_large_files_alone(capsys, tmp_path, checkpoint, monkeypatch):
    assert main(["inspect", str(checkpoint)]) == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("orthotrain.cli.progress._LONG", 1000)
    assert main(["inspect", str(checkpoint)]) == 0
    assert capsys.readouterr().err == "".join(
        f"{i} of 4 layers; next {name}\n"
        for i, name in enumerate(("0", "2", "3.weight_ih_l0", "3.weight_hh_l0"))
    )
