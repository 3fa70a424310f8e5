"""How far the latent coordinates of a generator are separated from each other: scores, rivals.

Metrics are pure and seeded: a generator as a callable, or codes and factors, in; numbers with
their spread and chance out. The rivals of NOG and OLR are losses.
"""

from typing import TYPE_CHECKING

from orthotrain._names import missing_name
from orthotrain.disentangle._votes import FactorDataset, VoteScore
from orthotrain.disentangle.activeness import activeness
from orthotrain.disentangle.beta_vae_score import beta_vae_score
from orthotrain.disentangle.budget import Budget, FactorBudget
from orthotrain.disentangle.chance import ChanceLevel, chance_level
from orthotrain.disentangle.coverage import (
    DensityCoverage,
    PrecisionRecall,
    density_coverage,
    precision_recall,
)
from orthotrain.disentangle.dci import DciScore, dci
from orthotrain.disentangle.encoder import LatentEncoder, latent_encoder
from orthotrain.disentangle.evaluate import evaluate
from orthotrain.disentangle.evaluation import Evaluation, Score
from orthotrain.disentangle.factor_vae_score import FactorVaeScore, factor_vae_score
from orthotrain.disentangle.features import (
    FeatureSpace,
    classifier_features,
    file_features,
    pixel_features,
    pixel_pca,
    random_features,
    signed_images,
)
from orthotrain.disentangle.fidelity import Fidelity, fidelity, frechet_distance, kernel_distance
from orthotrain.disentangle.hessian_penalty import hessian_penalty
from orthotrain.disentangle.householder import (
    HouseholderProjector,
    householder_directions,
    householder_projection,
    householder_projector,
    reflection_product,
)
from orthotrain.disentangle.intervention import Interventions, interventions
from orthotrain.disentangle.mig import mig
from orthotrain.disentangle.modularity import modularity
from orthotrain.disentangle.mutual_information import mutual_information
from orthotrain.disentangle.orojar import orojar
from orthotrain.disentangle.path_length import PathLength, path_length, slerp
from orthotrain.disentangle.rotation import RotatedGenerator, random_rotation, rotated
from orthotrain.disentangle.sap import sap
from orthotrain.disentangle.sefa import sefa_directions
from orthotrain.disentangle.traversal import traversals
from orthotrain.disentangle.variation_predictability import (
    ClassifierBudget,
    VariationPredictability,
    variation_predictability,
)
from orthotrain.disentangle.vp_loss import vp_loss
from orthotrain.disentangle.vp_network import VariationClassifier

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
