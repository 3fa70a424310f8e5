"""How much an evaluation draws and trains."""

from __future__ import annotations

from dataclasses import dataclass, field

from orthotrain.disentangle.dci import DciModel
from orthotrain.disentangle.variation_predictability import ClassifierBudget


@dataclass(frozen=True)
class FactorBudget:
    """Of the scores that need true factors; the defaults are the published ones.

    Attributes:
        samples: Images that are encoded for MIG, SAP, modularity and DCI.
        train_votes: Of FactorVAE and beta-VAE score.
        evaluation_votes: Of both.
        chance_repeats: Permutations from which the chance of the first four is measured, at least
            2; DCI trains its classifiers for each.
        dci_model: See ``dci``.
    """

    samples: int = 10_000
    train_votes: int = 10_000
    evaluation_votes: int = 5_000
    chance_repeats: int = 3
    dci_model: DciModel = "gradient_boosting"


@dataclass(frozen=True)
class Budget:
    """How much each score draws; the defaults are what their papers take, or enough.

    Attributes:
        latents: For activeness, at least 2.
        classifier: Of VP.
        interventions: Latents for each coordinate that is moved, at least 2.
        paths: Of PPL.
        images: Generated ones for fidelity, and as many real ones twice; fewer where there are
            fewer. All pairs are compared, in every space and split.
        splits: Of the real images for fidelity.
        pca_images: Real images to which pixel PCA is fitted, at most a fifth; they are not scored.
        factors: Of the scores that need true factors.
    """

    latents: int = 300
    classifier: ClassifierBudget = field(default_factory=ClassifierBudget)
    interventions: int = 300
    paths: int = 2000
    images: int = 2000
    splits: int = 5
    pca_images: int = 1000
    factors: FactorBudget = field(default_factory=FactorBudget)
