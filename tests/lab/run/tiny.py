"""A run so small that a test can train it, kill it and train it again."""

from dataclasses import replace

import pytest
import torch

from orthotrain.data.splits import ImageData, Split
from orthotrain.lab.experiments.branches.variants import DENSE
from orthotrain.lab.experiments.classifier.config import ModelConfig, OptimConfig, RecordConfig
from orthotrain.lab.experiments.lowrank.build import build_on
from orthotrain.lab.experiments.lowrank.config import (
    LowRankConfig,
    LowRankRun,
    lowrank_variants,
)
from orthotrain.lab.run.checkpoint import load_checkpoint
from orthotrain.lab.run.loop import train
from orthotrain.lab.run.record import SeedFolder, read_metrics

LOWRANK = LowRankConfig(
    delay_fraction=0.25, every_fraction=0.125, rank="rank_rtol=0.3", only_if_cheaper=False
)
CONFIG = LowRankRun(
    recipe="tiny",
    scale="smoke",
    data=replace(LowRankRun(recipe="tiny").data, batch_size=8),
    model=ModelConfig(patch_size=4, width=12, depth=2, heads=2, mlp_ratio=2.0),
    optim=OptimConfig(epochs=4, lr=1e-2, min_lr=1e-3),
    paper=LOWRANK,
    tuned=LOWRANK,
    record=RecordConfig(
        log_every_steps=1,
        eval_every_epochs=1,
        stability_every_epochs=1,
        checkpoint_every_epochs=1,
    ),
    seeds=(0,),
    device="cpu",
)
# 4 epochs of 4 batches.
TOTAL_STEPS = 16


class CountedTest:
    """The test part; counts how often it is read."""

    def __init__(self, split):
        self.split = split
        self.reads = 0

    def __call__(self):
        self.reads += 1
        return self.split


def split_of(n, seed, channels=1):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 3
    images = torch.randn(n, channels, 8, 8, generator=generator) + labels[:, None, None, None]
    return Split(images, labels)


def tiny_data(channels=1):
    train, validation, test = (split_of(n, i, channels) for i, n in enumerate((34, 12, 15)))
    return ImageData("tiny", train, validation, CountedTest(test), 3)


def variant_of(name, config=CONFIG, *, needed=None):
    found = next(v for v in lowrank_variants(config) if v.name == name)
    return found if needed is None else found.with_trainings([needed])


def trainer_of(name=DENSE, seed=0, *, config=CONFIG, data=None, needed=None):
    return build_on(data or tiny_data(), config, variant_of(name, config, needed=needed), seed)


def build_tiny(config, variant, seed):
    """What jobs are given in place of the real images."""
    return build_on(tiny_data(), config, variant, seed)


def train_here(folder, *, name=DENSE, config=CONFIG, data=None, needed=None, **options):
    return train(
        trainer_of(name, config=config, data=data, needed=needed),
        variant=variant_of(name, config, needed=needed), seed=0, folder=SeedFolder(folder),
        **options,
    )  # fmt: skip


TIMES = {
    "step_ms", "seconds", "step_ms_dense_phase", "step_ms_final", "peak_rss_bytes", "shares",
}  # fmt: skip


def without_times(lines):
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


def flat(value, name=""):
    """Every leaf of a state with its path."""
    if isinstance(value, dict):
        return [leaf for key in value for leaf in flat(value[key], f"{name}.{key}")]
    if isinstance(value, list | tuple):
        return [leaf for i, entry in enumerate(value) for leaf in flat(entry, f"{name}.{i}")]
    return [(name, value)]


def assert_same_bits(one, other):
    one, other = flat(one), flat(other)
    assert [name for name, _ in one] == [name for name, _ in other]
    for (name, a), (_, b) in zip(one, other, strict=True):
        same = torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        assert same, name


def assert_same_training(one, other):
    """Two folders of one training hold the same bits, times apart."""
    assert_same_bits(*(load_checkpoint(place.checkpoint)["training"] for place in (one, other)))
    # No line is doubled and none is lost.
    lines = [without_times(read_metrics(place.metrics)) for place in (one, other)]
    assert lines[0] == lines[1]


class Killed(Exception):
    """Stands for the end of the process."""


class KillAt:
    """Progress callback that ends the training when it has done ``step`` steps."""

    def __init__(self, step, stage="stepped"):
        self.step = step
        self.stage = stage

    def __call__(self, progress):
        if progress.stage == self.stage and progress.step == self.step:
            raise Killed


def assert_goes_on(train_in, folder, *, at, saved=()):
    """Trainings killed at a step each and started again end as one that was left alone.

    ``train_in(folder, **options)`` gives a result. Results, states and lines are equal bit for bit,
    times apart. Returns the result.

    Args:
        train_in: Trains in a folder, or goes on there.
        folder: For all of them.
        at: Steps at which one is killed.
        saved: The steps that these kills left on disk.
    """
    whole = SeedFolder(folder / "whole")
    expected = train_in(whole.path)
    for number, step in enumerate(at):
        killed = SeedFolder(folder / f"killed-{step}")
        with pytest.raises(Killed):
            train_in(killed.path, on_progress=KillAt(step))
        if saved:
            assert load_checkpoint(killed.checkpoint)["training"]["step"] == saved[number]
        assert without_times([train_in(killed.path)]) == without_times([expected]), step
        assert_same_training(killed, whole)
    return expected
