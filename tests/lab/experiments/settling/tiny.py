"""A control of settling that a test can train."""

from lab.run.tiny import CONFIG as LOWRANK
from lab.run.tiny import tiny_data
from orthotrain.lab.experiments.settling.build import build_on
from orthotrain.lab.experiments.settling.config import SettlingRun

CONFIG = SettlingRun(
    recipe="tiny", scale="smoke", data=LOWRANK.data, model=LOWRANK.model, optim=LOWRANK.optim,
    record=LOWRANK.record, seeds=(0,), device="cpu",
)  # fmt: skip


def build_tiny(config, variant, seed):
    """What jobs are given in place of the real images."""
    return build_on(tiny_data(), config, variant, seed)
