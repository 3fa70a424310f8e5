"""From a configuration to one training by a rival; all but its plan is that of the family."""

from __future__ import annotations

from torch import nn

from orthotrain.data.splits import ImageData
from orthotrain.data.stdlib_text import TextData, load_stdlib
from orthotrain.lab.experiments.branches.plan import Plan, PlanOf, plain
from orthotrain.lab.experiments.branches.variants import BranchedVariant
from orthotrain.lab.experiments.classifier.data import load_data
from orthotrain.lab.experiments.classifier.trainer import ClassifierTrainer
from orthotrain.lab.experiments.language import build as language
from orthotrain.lab.experiments.language.trainer import LanguageTrainer
from orthotrain.lab.experiments.lowrank import build as lowrank
from orthotrain.lab.experiments.rivals.config import LanguageRivals, RivalsRun, ViTRivals
from orthotrain.lab.experiments.rivals.variants import RivalVariant
from orthotrain.lab.named import named
from orthotrain.lab.run.reproducibility import resolve_device, stream_seed


def build(
    config: LanguageRivals | ViTRivals, variant: BranchedVariant, seed: int
) -> LanguageTrainer | ClassifierTrainer:
    """A training at its step 0.

    Raises:
        ConfigError: A setting that a layer, or the length of the run, cannot take.
        DataError: Text or images cannot be read.
        MissingPackageError: The rival needs a package that is not installed.
    """
    if isinstance(config, LanguageRivals):
        return language_on(load_stdlib(config.data.dir), config, variant, seed)
    images = load_data(config.data, device=resolve_device(config.device))
    return vit_on(images, config, variant, seed)


def language_on(
    data: TextData, config: LanguageRivals, variant: BranchedVariant, seed: int
) -> LanguageTrainer:
    """A GPT on this text."""
    return language.build_on(data, config, variant, seed, plan_of(config, variant, seed))


def vit_on(
    data: ImageData, config: ViTRivals, variant: BranchedVariant, seed: int
) -> ClassifierTrainer:
    """A mini vision transformer on these images."""
    return lowrank.build_on(data, config, variant, seed, plan_of(config, variant, seed))


def plan_of(config: RivalsRun, variant: BranchedVariant, seed: int) -> PlanOf:
    """What a variant changes in its training."""
    if not isinstance(variant, RivalVariant):
        return plain
    make = named(variant.make)

    def planned(model: nn.Module, total_steps: int) -> Plan:
        own = stream_seed(seed, "rival")
        plan: Plan = make(model, config.rivals, total_steps=total_steps, seed=own)
        return plan

    return planned
