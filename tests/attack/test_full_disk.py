"""A disk that fills up, at any write: a typed error, nothing that was whole is lost."""

import random

import pytest
import torch
from torch import nn

import orthotrain
from attack.counts import Counts, times
from attack.dying import end_of
from attack.runs import FAMILIES, FEW
from attack.test_deaths import finished
from orthotrain.lab.run.checkpoint import load_checkpoint, save_checkpoint

CEILINGS = {"other numbers": 0, "error": 0, "hang": 0, "raw": 0}


def judged(family, path, whole, end):
    """What became of a run on a disk that was full, and that has room again."""
    named = "free some space" in end.text or "ulimit" in end.text
    if not (end.kind == "ended" or (end.kind == "typed" and named)):
        return "raw", (end.kind, end.text)
    return finished(family, path, whole)


def full_at_points(family, folder, counts, *, step):
    whole = end_of(lambda: family.train(folder / "whole"))
    assert whole.kind == "ended", whole.text
    for point in range(1, whole.points + 1, step):
        path = folder / f"point-{point}"
        end = end_of(lambda path=path: family.train(path), full=point)
        counts.add(*judged(family, path, folder / "whole", end))


def full_in_writes(family, folder, counts, *, sizes, seed):
    """Files that may not outgrow a size: the system cuts a write there and refuses the rest."""
    chance = random.Random(seed)
    whole = end_of(lambda: family.train(folder / "whole"))
    assert whole.kind == "ended", whole.text
    largest = max(path.stat().st_size for path in (folder / "whole").rglob("*") if path.is_file())
    for number in range(sizes):
        path = folder / f"size-{number}"
        end = end_of(lambda path=path: family.train(path), limit=chance.randrange(largest))
        counts.add(*judged(family, path, folder / "whole", end))


def test_a_full_disk(tmp_path):
    counts = Counts("full disk at a change to a file, toy", **CEILINGS)
    full_at_points(FEW["toy"], tmp_path, counts, step=30)
    counts.check(least=3)


def test_a_limit_on_the_size_of_files(tmp_path):
    counts = Counts("full disk in the middle of a write, toy", **CEILINGS)
    full_in_writes(FEW["toy"], tmp_path, counts, sizes=(sizes := times(3, 6)), seed=4)
    counts.check(least=sizes)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "step"), [("toy", 1), ("lowrank", 5), ("latent", 3)])
def test_a_full_disk_at_every_change_to_a_file(tmp_path, name, step):
    step = times(5 * step, step)
    counts = Counts(f"full disk at a change to a file, {name}, every {step}", **CEILINGS)
    full_at_points(FEW[name], tmp_path, counts, step=step)
    counts.check(least=times(2, 10))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lowrank", "latent", "language"])
def test_many_limits_on_the_size_of_files(tmp_path, name):
    family = FEW.get(name) or FAMILIES[name].named("dense", "half-50")
    counts = Counts(f"full disk in the middle of a write, {name}", **CEILINGS)
    full_in_writes(family, tmp_path, counts, sizes=times(4, 20), seed=5)
    counts.check(least=times(2, 10))


def test_single_files_on_a_full_disk(tmp_path):
    """What was saved before is there, bit for bit, and nothing lies beside it."""
    model = nn.Linear(40, 40)
    state = {"weight": torch.zeros(40, 40)}
    doors = {
        "model.safetensors": lambda path: orthotrain.save(model, path),
        "checkpoint.pt": lambda path: save_checkpoint(path, state),
    }
    counts = Counts("full disk, one file", raw=0, lost=0, unnoticed=0)
    for name, save in doors.items():
        for kind in ("point", "size"):
            for number in (1, 2, 3):
                folder = tmp_path / f"{name}-{kind}-{number}"
                folder.mkdir()
                path = folder / name
                save(path)
                before = path.read_bytes()
                how = {"full": number} if kind == "point" else {"limit": 1000 * number}
                end = end_of(lambda save=save, path=path: save(path), **how)
                outcome = {"typed": "kept", "ended": "unnoticed"}.get(end.kind, "raw")
                if path.read_bytes() != before or len(list(folder.iterdir())) > 1:
                    outcome = "lost"
                counts.add(outcome, (name, kind, number, end))
                if name == "checkpoint.pt":
                    load_checkpoint(path)
    counts.check(least=12)
