"""How far the latent coordinates of a generator are separated from each other.

Every score is a pure function with a seed. It takes a generator as a callable, or codes and
factors, and returns a number with its spread and its chance level.

- ``codes``: mutual information, MIG, modularity, SAP and DCI of codes with known factors
- ``votes``: FactorVAE and beta-VAE score of an encoder on a grid of factors
- ``interventions``: activeness, traversals, and the factors that a coordinate moves
- ``variation_predictability``, ``path_length``: VP and PPL of a generator
- ``images``, ``features``: Frechet and kernel distance, precision, recall, density, coverage, and
  the feature spaces in which they are measured
- ``directions``, ``generators``: SeFa, the Householder projector, generators along directions
- ``rival_losses``: the Hessian penalty, OroJaR and the VP loss
- ``networks``: the small networks that are trained here, among them the latent encoder
- ``samples``: the chance level of a score of codes
- ``evaluate``: all scores by one call
"""

from typing import TYPE_CHECKING

from orthotrain._names import missing_name
from orthotrain.disentangle.codes import DciScore, dci, mig, modularity, mutual_information, sap
from orthotrain.disentangle.directions import (
    HouseholderProjector,
    householder_directions,
    householder_projection,
    householder_projector,
    reflection_product,
    sefa_directions,
)
from orthotrain.disentangle.evaluate import evaluate
from orthotrain.disentangle.evaluation import Budget, Evaluation, FactorBudget, Score
from orthotrain.disentangle.features import (
    FeatureSpace,
    classifier_features,
    file_features,
    pixel_features,
    pixel_pca,
    random_features,
    signed_images,
)
from orthotrain.disentangle.generators import RotatedGenerator, random_rotation, rotated
from orthotrain.disentangle.images import (
    DensityCoverage,
    Fidelity,
    PrecisionRecall,
    density_coverage,
    fidelity,
    frechet_distance,
    kernel_distance,
    precision_recall,
)
from orthotrain.disentangle.interventions import (
    Interventions,
    activeness,
    interventions,
    traversals,
)
from orthotrain.disentangle.networks import LatentEncoder, VariationClassifier, latent_encoder
from orthotrain.disentangle.path_length import PathLength, path_length, slerp
from orthotrain.disentangle.rival_losses import hessian_penalty, orojar, vp_loss
from orthotrain.disentangle.samples import ChanceLevel, chance_level
from orthotrain.disentangle.variation_predictability import (
    ClassifierBudget,
    VariationPredictability,
    variation_predictability,
)
from orthotrain.disentangle.votes import (
    FactorDataset,
    FactorVaeScore,
    VoteScore,
    beta_vae_score,
    factor_vae_score,
)

__all__ = [
    "Budget",
    "ChanceLevel",
    "ClassifierBudget",
    "DciScore",
    "DensityCoverage",
    "Evaluation",
    "FactorBudget",
    "FactorDataset",
    "FactorVaeScore",
    "FeatureSpace",
    "Fidelity",
    "HouseholderProjector",
    "Interventions",
    "LatentEncoder",
    "PathLength",
    "PrecisionRecall",
    "RotatedGenerator",
    "Score",
    "VariationClassifier",
    "VariationPredictability",
    "VoteScore",
    "activeness",
    "beta_vae_score",
    "chance_level",
    "classifier_features",
    "dci",
    "density_coverage",
    "evaluate",
    "factor_vae_score",
    "fidelity",
    "file_features",
    "frechet_distance",
    "hessian_penalty",
    "householder_directions",
    "householder_projection",
    "householder_projector",
    "interventions",
    "kernel_distance",
    "latent_encoder",
    "mig",
    "modularity",
    "mutual_information",
    "orojar",
    "path_length",
    "pixel_features",
    "pixel_pca",
    "precision_recall",
    "random_features",
    "random_rotation",
    "reflection_product",
    "rotated",
    "sap",
    "sefa_directions",
    "signed_images",
    "slerp",
    "traversals",
    "variation_predictability",
    "vp_loss",
]

if not TYPE_CHECKING:  # type checkers know that the name is missing
    __getattr__ = missing_name(__name__)
