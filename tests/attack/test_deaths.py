"""A run that is killed, at any moment and again and again, ends as one that was left alone."""

import multiprocessing
import os
import random
import signal

import pytest

from attack.counts import Counts, times
from attack.dying import end_of
from attack.runs import FAMILIES, FEW
from orthotrain.lab.experiments.catalog import find_recipe, recipe_names

CEILINGS = {"other numbers": 0, "error": 0, "hang": 0}


def test_every_recipe_is_of_a_family_that_is_attacked():
    builds = {find_recipe(name).build for name in recipe_names()}
    assert builds == {family.recipes for family in FAMILIES.values()} - {""}


def finished(family, path, whole):
    """Whether what was killed goes on to the same end, as a class of outcomes."""
    end = end_of(lambda: family.train(path))
    if end.kind != "ended":
        return ("hang" if end.kind == "hang" else "error"), end.text
    try:
        family.assert_same(path, whole)
    except AssertionError as error:
        return "other numbers", str(error)
    return "goes on", ""


def killed_again_and_again(family, folder, counts, *, kills, seed):
    """Kills at random moments of one run, most of them of a run that goes on."""
    chance = random.Random(seed)
    whole = end_of(lambda: family.train(folder / "whole"))
    assert whole.kind == "ended", whole.text
    done = number = 0
    while done < kills:
        number += 1
        path, here = folder / str(number), 0
        while done < kills:
            moment = chance.uniform(0, 0.6 * whole.seconds)
            end = end_of(lambda path=path: family.train(path), seconds=moment)
            if end.kind != "killed":
                break
            here, done = here + 1, done + 1
        assert end.kind in ("killed", "ended"), end.text
        outcome, text = finished(family, path, folder / "whole")
        for _ in range(here):
            counts.add(outcome, f"run {number} with seed {seed}: {text}")


def killed_at_points(family, folder, counts, *, step, first=1):
    """One run for every so many changes to files, killed right before that change."""
    whole = end_of(lambda: family.train(folder / "whole"))
    assert whole.kind == "ended", whole.text
    for point in range(first, whole.points + 1, step):
        path = folder / f"point-{point}"
        end = end_of(lambda path=path: family.train(path), point=point)
        assert end.kind == "killed", end
        counts.add(*finished(family, path, folder / "whole"))


def killed_in_writes(family, folder, counts, *, sizes, seed):
    """Killed where a file outgrows a size, which is in the middle of a write."""
    chance = random.Random(seed)
    whole = end_of(lambda: family.train(folder / "whole"))
    largest = max(path.stat().st_size for path in (folder / "whole").rglob("*") if path.is_file())
    for number in range(sizes):
        path = folder / f"size-{number}"
        end = end_of(lambda path=path: family.train(path), room=chance.randrange(largest))
        assert end.kind == "killed", (end, whole)
        counts.add(*finished(family, path, folder / "whole"))


def test_random_kills(tmp_path):
    counts = Counts("random kills, toy", **CEILINGS)
    killed_again_and_again(FEW["toy"], tmp_path, counts, kills=3, seed=1)
    counts.check(least=3)


@pytest.mark.parametrize(
    ("name", "family", "step", "least"),
    [("toy", FEW["toy"], 30, 3), ("lowrank", FAMILIES["lowrank"].named("dense"), 16, 1)],
    ids=["toy", "lowrank"],
)
def test_deaths_before_a_change_to_a_file(tmp_path, name, family, step, least):
    """A few, far apart; the slow run has more of them."""
    counts = Counts(f"deaths before a change to a file, {name}, sample", **CEILINGS)
    killed_at_points(family, tmp_path, counts, step=step, first=step)
    counts.check(least=least)


def test_deaths_in_the_middle_of_a_write(tmp_path):
    counts = Counts("deaths in the middle of a write, toy", **CEILINGS)
    killed_in_writes(FEW["toy"], tmp_path, counts, sizes=(sizes := times(3, 6)), seed=2)
    counts.check(least=sizes)


# At full numbers as many as take two minutes.
KILLS = {
    "toy": 18, "lowrank": 10, "language": 8, "latent": 10, "images": 4, "whitening": 3,
    "pooling": 3, "forecasting": 4, "rivals": 4, "settling": 4,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_many_random_kills_of_every_variant(tmp_path, name):
    counts, kills = Counts(f"random kills, all variants of {name}", **CEILINGS), KILLS[name]
    kills, family = times(6 if name == "toy" else 2, kills), FAMILIES[name]
    if name in ("language", "forecasting"):  # slow variants; each resumes in its own tests
        family = times(family.named("dense", "half-50"), family)
    if name == "rivals":
        family = times(family.named("galore-like", "relora-like"), family)
    killed_again_and_again(family, tmp_path, counts, kills=kills, seed=3)
    counts.check(least=kills)


class KillAWorker:
    """Kills one of two worker processes when so many messages have come."""

    def __init__(self, after):
        self.left = after

    def __call__(self, progress):
        self.left -= 1
        if self.left == 0:
            os.kill(multiprocessing.active_children()[-1].pid, signal.SIGKILL)


@pytest.mark.slow
def test_workers_killed_at_random(tmp_path):
    """One line, no waiting for the dead one; what is left goes on."""
    counts, chance, family = Counts("kills of a worker", **CEILINGS), random.Random(16), FEW["toy"]
    whole = end_of(lambda: family.train(tmp_path / "whole"))
    assert whole.kind == "ended", whole.text
    for number in range(runs := times(2, 4)):
        path, kill = tmp_path / str(number), KillAWorker(chance.randrange(1, 16))
        end = end_of(lambda path=path, kill=kill: family.train(path, workers=2, on_progress=kill))
        named = end.kind == "ended" or (end.kind == "typed" and "did not finish" in end.text)
        outcome, text = finished(family, path, tmp_path / "whole")
        counts.add(outcome if named else end.kind.replace("raw", "error"), (end, text))
    counts.check(least=runs)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "step", "least"), [("toy", 1, 100), ("lowrank", 7, 8), ("latent", 5, 7)]
)
def test_deaths_before_every_change_to_a_file(tmp_path, name, step, least):
    step, least = times((5 * step, least // 5), (step, least))
    counts = Counts(f"deaths before a change to a file, {name}, every {step}", **CEILINGS)
    killed_at_points(FEW[name], tmp_path, counts, step=step)
    counts.check(least=least)
