"""Every rival on the recipe ``stdlib-gpt``: the same text, network, loop and budget."""

from __future__ import annotations

from dataclasses import replace

from orthotrain.lab.experiments.language.config import LanguageRun
from orthotrain.lab.experiments.language.recipes.stdlib_gpt import STDLIB_GPT
from orthotrain.lab.experiments.rivals.config import LanguageRivals
from orthotrain.lab.experiments.rivals.variants import rival_search, rival_variants
from orthotrain.lab.run.experiment import Experiment
from orthotrain.lab.run.space import Aim

# Three tenths of the steps of stdlib-gpt, a minute per training on one core, and as many steps of
# warm-up: with fewer of them what a rate reaches depends on the seed more than on the rival.
_BASE = STDLIB_GPT.config["cpu"]
assert isinstance(_BASE, LanguageRun)
_CPU = LanguageRivals.of(_BASE, optim=replace(_BASE.optim, steps=1200, warmup_fraction=1 / 6))

SEARCH = rival_search((0.25, 0.5, 1.0, 2.0, 4.0), Aim("validation_bits"))

STDLIB_GPT_RIVALS = Experiment(
    name="stdlib-gpt-rivals",
    title="Rivals: byte-level GPT on Python's standard library",
    config={
        "smoke": LanguageRivals.of(STDLIB_GPT.config["smoke"]),
        "cpu": _CPU,
        "full": LanguageRivals.of(STDLIB_GPT.config["full"]),
    },
    variants=rival_variants,
    build="orthotrain.lab.experiments.rivals.build:build",
    page="orthotrain.lab.experiments.rivals.page:PAGE",
    search="orthotrain.lab.experiments.rivals.recipes.stdlib_gpt_rivals:SEARCH",
)
