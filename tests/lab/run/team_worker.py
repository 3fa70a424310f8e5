"""One of two processes that train together; started by ``test_team.py``.

``python team_worker.py RANK FOLDER`` trains every scenario in ``FOLDER`` and writes what happened
to this process to ``FOLDER/rank<RANK>.pt``.
"""

import os
import shutil
import signal
import sys
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from lab.experiments.language import tiny as language
from lab.run import tiny
from lab.run.tiny import CountedTest, split_of
from lab.run.toy import ToyTrainer, ToyVariant
from orthotrain.cli.train import require_one_folder
from orthotrain.data.splits import ImageData, Split
from orthotrain.errors import OrthotrainError
from orthotrain.lab.experiments.catalog import recipe_config
from orthotrain.lab.experiments.language.build import build_on as build_language
from orthotrain.lab.experiments.language.variants import language_variants
from orthotrain.lab.experiments.lowrank.build import build_on as build_lowrank
from orthotrain.lab.experiments.lowrank.config import lowrank_variants
from orthotrain.lab.experiments.spectral.build import build_on as build_spectral
from orthotrain.lab.experiments.spectral.config import spectral_variants
from orthotrain.lab.run.jobs import Run, run_all
from orthotrain.lab.run.loop import take_part, train
from orthotrain.lab.run.record import RunFolder, SeedFolder
from orthotrain.lab.run.stop import Stopped
from orthotrain.lab.run.team import ALONE, Team, _lost_others

WORLD = 2
# Those that take longer, which are trained where the name of the folder says so.
SLOW, LONG = "team-slow", ("more", "language", "whitening treatments", "pooling treatments")


@contextmanager
def float64():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def images(channels=1, side=8):
    def part(n, seed):
        found = split_of(n, seed, channels)
        large = torch.nn.functional.interpolate(found.images.double(), size=side)
        return Split(large, found.labels)

    train_part, validation, test = (part(n, i) for i, n in enumerate((34, 12, 15)))
    return ImageData("tiny", train_part, validation, CountedTest(test), 3)


def double_lowrank(config, variant, seed):
    with float64():
        return build_lowrank(images(), config, variant, seed)


def double_language(config, variant, seed):
    with float64():
        return build_language(language.tiny_text(), config, variant, seed)


def double_spectral(config, variant, seed):
    side = 32 if config.spectral.layer == "pooling" else 8
    with float64():
        return build_spectral(images(3, side), config, variant, seed)


# 34 images in batches of 9: parts of five and of four, and a rest that is dropped.
LOWRANK = replace(
    tiny.CONFIG, data=replace(tiny.CONFIG.data, batch_size=9, crop_padding=1, flip=True)
)
LANGUAGE = replace(
    language.CONFIG,
    optim=replace(language.CONFIG.optim, steps=20),
    data=replace(language.CONFIG.data, batch_size=5),
)
_DBN, _GCP = recipe_config("cifar10-dbn", "smoke"), recipe_config("texture-gcp", "smoke")
_SMALL = {"stem_channels": 6, "width": 2}
SPECTRAL = replace(
    _DBN, model=replace(_DBN.model, **_SMALL), data=replace(_DBN.data, batch_size=9),
    optim=replace(_DBN.optim, epochs=2, lr=0.01),
)  # fmt: skip
POOLING = replace(
    _GCP, model=replace(_GCP.model, **_SMALL), data=replace(_GCP.data, batch_size=9),
    optim=replace(_GCP.optim, epochs=2),
)  # fmt: skip
# What is built by which function, with which settings; names of variants in the order of need.
SCENARIOS = {
    "lowrank": (
        "lab.run.team_worker:double_lowrank", LOWRANK, lowrank_variants, ("dense", "half-50"),
    ),
    "more": (
        "lab.run.team_worker:double_lowrank", LOWRANK, lowrank_variants,
        ("dense", "oialr-paper", "branch-50", "narrow-50-teacher", "frozen-50"),
    ),
    "language": (
        "lab.run.team_worker:double_language", LANGUAGE, language_variants,
        ("dense", "branch-50-20", "half-50"),
    ),
    "spectral": (
        "lab.run.team_worker:double_spectral", SPECTRAL, spectral_variants, ("bn", "nog-olr"),
    ),
    "pooling": ("lab.run.team_worker:double_spectral", POOLING, spectral_variants, ("nog-ow",)),
    "whitening treatments": (
        "lab.run.team_worker:double_spectral", SPECTRAL, spectral_variants,
        # Not ow-olr: OLR would decide by the sign of what is zero but for rounding.
        ("zca", "ns", "ol", "sn", "ow", "zca-fixed"),
    ),
    "pooling treatments": (
        "lab.run.team_worker:double_spectral", POOLING, spectral_variants,
        ("avg", "gcp", "ns", "nog-ol", "olr", "sn", "gcp-fixed"),
    ),
}  # fmt: skip


def run_scenario(name, path, *, team=ALONE):
    build, config, variants, names = SCENARIOS[name]
    config = replace(config, variants=names, seeds=(0,), device="cpu")
    folder = RunFolder(path)
    if team.main:
        folder.open(config)
    team.wait()
    chosen = [variant for variant in variants(config) if variant.name in names]
    run_all(Run(build, config, folder, team=team), chosen)


class Died(ToyTrainer):
    """A team can run it; a process of it ends in the middle."""

    def __init__(self, death):
        super().__init__(1.0, 0.1)
        self.death, self.rank = death, 0

    def join(self, team):
        self.rank = team.rank

    def step(self):
        if self.steps == 3 and self.rank == 1:
            self.death()
        return super().step()


PLAIN = ToyVariant("plain", "plain", "")


def train_together(team, trainer, path, *, on_progress=lambda progress: None):
    """One training of a team; the error that ended it, where one did."""
    given = {"trainer": trainer, "variant": PLAIN, "seed": 0, "folder": SeedFolder(path)}
    try:
        if team.main:
            train(**given, team=team, on_progress=on_progress)
        else:
            take_part(**given, team=team)
    except (OrthotrainError, Stopped) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def lowrank_trainer():
    variant = next(v for v in lowrank_variants(LOWRANK) if v.name == "half-50")
    return double_lowrank(LOWRANK, variant, 0)


def after_a_kill(team, folder):
    """As a kill of all leaves it: the checkpoint before the last, and lines that came after."""
    whole, again = folder / "whole", folder / "again"
    train_together(team, lowrank_trainer(), whole)
    if team.main:
        shutil.copytree(whole, again)
        os.replace(again / "checkpoint.previous.pt", again / "checkpoint.pt")
        (again / "result.json").unlink()
    team.wait()
    return train_together(team, lowrank_trainer(), again)


def stopped(team, folder):
    """A signal that comes to the other process alone; then the training goes on."""

    class Asked(type(lowrank_trainer())):
        def step(self):
            if self.steps == 5 and self.team.rank == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().step()

    trainer = lowrank_trainer()
    trainer.__class__ = Asked
    told = train_together(team, trainer, folder / "stopped")
    steps = trainer.steps
    again = train_together(team, lowrank_trainer(), folder / "stopped")
    return [told, steps, again]


def refused(team, folder):
    small = replace(LOWRANK, data=replace(LOWRANK.data, batch_size=1))
    trainer = double_lowrank(small, next(iter(lowrank_variants(small))), 0)
    return [
        train_together(team, ToyTrainer(1.0, 0.1), folder / "refused"),
        train_together(team, trainer, folder / "small"),
        of_another_machine(team, folder),
    ]


def of_another_machine(team, folder):
    """The first process sees a run folder that the other one does not."""
    own = RunFolder(folder / f"of {team.rank}")
    own.path.mkdir()
    if team.main:
        own.run.write_text("{}")
    try:
        require_one_folder(own, team)
    except OrthotrainError as error:
        return f"{type(error).__name__}: {error}"
    return ""


def main(rank, folder):
    path = Path(folder)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD,
        timeout=timedelta(seconds=60),
    )  # fmt: skip
    team = Team(rank, WORLD)
    for name in SCENARIOS:
        if (name in LONG) == (path.name == SLOW):
            run_scenario(name, path / name, team=team)
    if path.name == SLOW:
        torch.save({}, f"{folder}/rank{rank}.pt")
        return
    results = {
        "after a kill": after_a_kill(team, path),
        "stopped": stopped(team, path),
        "refused": refused(team, path),
    }

    def die():
        torch.save(results, f"{folder}/rank{rank}.pt")
        os._exit(0)

    try:
        train_together(team, Died(die), path / "died")
    except RuntimeError as error:
        results["died"] = [str(error), _lost_others(error)]
    torch.save(results, f"{folder}/rank{rank}.pt")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
