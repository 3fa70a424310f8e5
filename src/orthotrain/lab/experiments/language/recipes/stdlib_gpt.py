"""A byte-level GPT on the sources of Python's standard library: real text, nothing to download."""

from __future__ import annotations

from dataclasses import replace

from orthotrain.lab.experiments.language.config import (
    GPTConfig,
    LanguageRecord,
    LanguageRun,
    TextConfig,
    TrainingConfig,
)
from orthotrain.lab.experiments.language.tuning import gpt_search
from orthotrain.lab.experiments.language.variants import language_variants
from orthotrain.lab.experiments.search import found_settings
from orthotrain.lab.run.experiment import Experiment

# The dense network's rate, and that of the networks that learn best at another one.
_FOUND = found_settings("language", "stdlib_gpt_tuned.json")

# Sized for about three minutes per dense training on one core.
_CPU = LanguageRun(
    data=TextConfig(batch_size=12),
    model=GPTConfig(context=64, width=128, depth=2, heads=4),
    optim=TrainingConfig(steps=4000, lr=_FOUND["lr"]),
    own=_FOUND["own"],
    record=LanguageRecord(),
    seeds=(0, 1, 2),
    device="cpu",
)

SEARCH = gpt_search(lr=(5e-4, 2e-2), seeds=(100,))

STDLIB_GPT = Experiment(
    name="stdlib-gpt",
    title="Byte-level GPT on Python's standard library",
    config={
        # Long enough for a few steps of the shortest branch, short enough for a test.
        "smoke": replace(
            _CPU,
            data=TextConfig(batch_size=4),
            model=GPTConfig(context=16, width=48, depth=2, heads=2),
            optim=replace(_CPU.optim, steps=240),
            record=LanguageRecord(
                log_every_steps=10,
                eval_every_steps=24,
                checkpoint_every_steps=60,
                eval_windows=64,
                final_windows=128,
            ),
            seeds=(0,),
        ),
        # About six minutes on two cores, all together.
        "demo": replace(
            _CPU,
            optim=replace(_CPU.optim, steps=2400),
            record=LanguageRecord(eval_every_steps=60),
            seeds=(0,),
            variants=(
                *("dense", "branch-75-5", "branch-50-20", "branch-30-37"),
                *("narrow-75", "narrow-50", "narrow-50-short", "narrow-30", "oialr-paper"),
            ),
        ),
        "cpu": _CPU,
        "full": replace(
            _CPU,
            data=TextConfig(batch_size=64),
            model=GPTConfig(context=256, width=512, depth=8, heads=8),
            optim=TrainingConfig(steps=5000, lr=1e-3),
            own={},
            device="auto",
            precision="bfloat16",
        ),
    },
    variants=language_variants,
    build="orthotrain.lab.experiments.language.build:build",
    page="orthotrain.lab.experiments.language.page:PAGE",
    search="orthotrain.lab.experiments.language.recipes.stdlib_gpt:SEARCH",
)
