"""A run of rivals so small that a test can train it, kill it and train it again."""

from dataclasses import fields, replace

from lab.experiments.language.tiny import tiny_text
from lab.run import tiny
from orthotrain.lab.experiments.catalog import recipe_config
from orthotrain.lab.experiments.language.config import (
    GPTConfig,
    LanguageRecord,
    TrainingConfig,
)
from orthotrain.lab.experiments.rivals.build import language_on, vit_on
from orthotrain.lab.experiments.rivals.config import RivalSettings, ViTRivals
from orthotrain.lab.experiments.rivals.table import RIVALS
from orthotrain.lab.experiments.rivals.variants import variant_of
from orthotrain.lab.run.config import RunConfig
from orthotrain.lab.run.loop import train
from orthotrain.lab.run.record import SeedFolder

STEPS = 24
SETTINGS = RivalSettings(refreshes=6, restarts=2, looks=6, settled=0.9, rewarm_fraction=0.1)
CONFIG = replace(
    recipe_config("stdlib-gpt-rivals", "smoke"),
    model=GPTConfig(context=16, width=32, depth=1, heads=2),
    optim=TrainingConfig(steps=STEPS, lr=3e-3),
    rivals=SETTINGS,
    record=LanguageRecord(
        log_every_steps=1, eval_every_steps=12, checkpoint_every_steps=5, eval_windows=8,
        final_windows=16,
    ),
)  # fmt: skip
VIT = ViTRivals(
    **{f.name: getattr(tiny.CONFIG, f.name) for f in fields(RunConfig)},
    data=tiny.CONFIG.data,
    model=tiny.CONFIG.model,
    optim=replace(tiny.CONFIG.optim, lr=1e-2),
    record=tiny.CONFIG.record,
    rivals=SETTINGS,
)
NAMES = tuple(row.name for row in RIVALS)
OURS = tuple(row.name for row in RIVALS if not row.package)


def variant(name):
    return variant_of(next(row for row in RIVALS if row.name == name))


def trainer_of(name, seed=0, *, config=CONFIG):
    return language_on(tiny_text(), config, variant(name), seed)


def build_tiny(config, variant, seed):
    """What jobs are given in place of the real text."""
    return language_on(tiny_text(), config, variant, seed)


def vit_of(name, seed=0, *, config=VIT):
    return vit_on(tiny.tiny_data(), config, variant(name), seed)


def train_here(folder, *, name, make=trainer_of, **options):
    return train(make(name), variant=variant(name), seed=0, folder=SeedFolder(folder), **options)
