"""One small run of every family of experiments: all of its variants, from all to all."""

import warnings
from dataclasses import dataclass, replace

from lab.experiments.forecasting import tiny as forecasting
from lab.experiments.language import tiny as language
from lab.experiments.latent import tiny as latent
from lab.experiments.rivals import tiny as rivals
from lab.experiments.settling import tiny as settling
from lab.experiments.spectral.test_config import POOLING, WHITENING
from lab.run import tiny as lowrank
from lab.run import toy
from lab.run.tiny import assert_same_training, tiny_data, without_times
from orthotrain.disentangle import Evaluation
from orthotrain.lab.experiments.catalog import find_recipe
from orthotrain.lab.experiments.forecasting.variants import forecast_variants
from orthotrain.lab.experiments.language.config import LanguageRecord, TrainingConfig
from orthotrain.lab.experiments.language.variants import language_variants
from orthotrain.lab.experiments.latent import images
from orthotrain.lab.experiments.latent.config import latent_variants
from orthotrain.lab.experiments.lowrank.config import lowrank_variants
from orthotrain.lab.experiments.rivals.variants import rival_variants
from orthotrain.lab.experiments.settling.config import settling_variants
from orthotrain.lab.experiments.spectral.build import build_on
from orthotrain.lab.experiments.spectral.config import spectral_variants
from orthotrain.lab.run.jobs import Run, run_all
from orthotrain.lab.run.record import RunFolder


def build_spectral(config, variant, seed):
    return build_on(tiny_data(channels=3), config, variant, seed)


def build_latent_images(config, variant, seed):
    """With one number that depends on every weight, in place of minutes of scores."""

    def score(model, real, *, sprites, budget, seed, directions=None):
        total = sum(float(p.double().abs().sum()) for p in model.parameters())
        return {"vp": total}, Evaluation((), (), (), {"real": len(real)})

    images.image_scores = score  # in a process that ends with this run
    return images.build(config, variant, seed)


@dataclass(frozen=True)
class Family:
    """A run to attack.

    Attributes:
        build: As of an experiment.
        config: Of its run.
        variants: A function of it.
        recipes: The build that recipes of this family name.
    """

    build: str
    config: object
    variants: object
    recipes: str = ""

    def named(self, *names):
        """The run of some variants; of all where none is named."""
        variants = self.variants(self.config)
        assert {*names} <= {one.name for one in variants}
        chosen = tuple(one for one in variants if not names or one.name in names)
        return replace(self, variants=lambda _: chosen)

    def train(self, path, **options):
        """Train all of it, or go on; with the options of ``run_all``."""
        folder = RunFolder(path)
        with folder.locked(), warnings.catch_warnings():
            # A kill between two renames leaves the last checkpoint but one, which is said.
            warnings.simplefilter("ignore")
            folder.open(self.config)
            run_all(Run(self.build, self.config, folder), self.variants(self.config), **options)

    def assert_same(self, path, other):
        """Whether two finished runs agree bit for bit: results, states, lines; times apart."""
        one, other = RunFolder(path), RunFolder(other)
        seeds = self.config.seeds
        for variant in self.variants(self.config):
            results = [
                without_times(folder.results(variant.name, seeds)) for folder in (one, other)
            ]
            assert len(results[0]) == len(seeds)
            assert results[0] == results[1], variant.name
            for seed in seeds:
                assert_same_training(*(folder.seed(variant.name, seed) for folder in (one, other)))


_LANGUAGE = replace(
    language.CONFIG,
    seeds=(0,),
    optim=TrainingConfig(steps=24),
    record=LanguageRecord(
        log_every_steps=1, eval_every_steps=12, checkpoint_every_steps=5, eval_windows=8,
        final_windows=16,
    ),
)  # fmt: skip
_LOWRANK = "orthotrain.lab.experiments.lowrank.build:build"
_GPT = "orthotrain.lab.experiments.language.build:build"
_LINEAR = "orthotrain.lab.experiments.latent.linear:build"
_IMAGES = "orthotrain.lab.experiments.latent.images:build"
_SPECTRAL = "orthotrain.lab.experiments.spectral.build:build"
_AUTOFORMER = "orthotrain.lab.experiments.forecasting.build:build"
_SERIES = "lab.experiments.forecasting.tiny:build_tiny"
_RIVALS = "orthotrain.lab.experiments.rivals.build:build"
_RIVALS_TEXT = "lab.experiments.rivals.tiny:build_tiny"
_TEXT = "lab.experiments.language.tiny:build_tiny"
_WALKS = "lab.experiments.settling.tiny:build_tiny"
_SETTLING = "orthotrain.lab.experiments.settling.build:build"
_HERE = "attack.runs:build_spectral"
FAMILIES = {
    "toy": Family("lab.run.toy:build", toy.TOY.at("smoke"), toy.variants),
    "lowrank": Family("lab.run.tiny:build_tiny", lowrank.CONFIG, lowrank_variants, _LOWRANK),
    "language": Family(_TEXT, _LANGUAGE, language_variants, _GPT),
    "forecasting": Family(_SERIES, forecasting.CONFIG, forecast_variants, _AUTOFORMER),
    "rivals": Family(_RIVALS_TEXT, rivals.CONFIG, rival_variants, _RIVALS),
    "settling": Family(_WALKS, settling.CONFIG, settling_variants, _SETTLING),
    "latent": Family(_LINEAR, latent.LINEAR, find_recipe("latent-linear").variants, _LINEAR),
    "images": Family("attack.runs:build_latent_images", latent.EIGEN, latent_variants, _IMAGES),
    "whitening": Family(_HERE, WHITENING, spectral_variants, _SPECTRAL),
    "pooling": Family(_HERE, POOLING, spectral_variants, _SPECTRAL),
}
#: A few variants of each, for the default run.
FEW = {
    "toy": FAMILIES["toy"],
    "lowrank": FAMILIES["lowrank"].named("dense", "branch-50"),
    "latent": FAMILIES["latent"].named("nog-olr"),
}
