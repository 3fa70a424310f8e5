"""Every rival on the recipe ``stdlib-gpt``: the same text, network, loop and budget."""

from __future__ import annotations

from dataclasses import fields

from orthotrain.lab.experiments.language.config import LanguageRun, TrainingConfig
from orthotrain.lab.experiments.language.recipes.stdlib_gpt import STDLIB_GPT
from orthotrain.lab.experiments.rivals.config import LanguageRivals
from orthotrain.lab.experiments.rivals.tuning import RivalGrid
from orthotrain.lab.experiments.rivals.variants import rival_variants
from orthotrain.lab.run.config import RunConfig
from orthotrain.lab.run.experiment import Experiment


def _of(config: RunConfig, **others: object) -> LanguageRivals:
    """The same run with rivals."""
    assert isinstance(config, LanguageRun)
    same = {f.name: getattr(config, f.name) for f in fields(LanguageRun)}
    return LanguageRivals(**{**same, "variants": (), **others})


# Three tenths of the steps of stdlib-gpt: a minute and a half per training on a shared core.
_CPU = _of(
    STDLIB_GPT.config["cpu"],
    optim=TrainingConfig(steps=1200),
    rival_rates={"dense": 6e-3},
)

GRID = RivalGrid(
    rates=(1.5e-3, 3e-3, 6e-3, 1.2e-2), seeds=(100,), field="validation_bits", less=True
)

STDLIB_GPT_RIVALS = Experiment(
    name="stdlib-gpt-rivals",
    title="Rivals: byte-level GPT on Python's standard library",
    config={
        "smoke": _of(STDLIB_GPT.config["smoke"], rival_rates={"dense": 6e-3}),
        "cpu": _CPU,
        "full": _of(STDLIB_GPT.config["full"]),
    },
    variants=rival_variants,
    build="orthotrain.lab.experiments.rivals.build:build",
    page="orthotrain.lab.experiments.rivals.page:PAGE",
    search="orthotrain.lab.experiments.rivals.recipes.stdlib_gpt_rivals:GRID",
)
