"""How far the directions of a latent space are separated from each other: scores and figures."""

from orthotrain.disentangle._votes import FactorDataset, VoteScore
from orthotrain.disentangle.beta_vae_score import beta_vae_score
from orthotrain.disentangle.chance import ChanceLevel, chance_level
from orthotrain.disentangle.dci import DciScore, dci
from orthotrain.disentangle.factor_vae_score import FactorVaeScore, factor_vae_score
from orthotrain.disentangle.mig import mig
from orthotrain.disentangle.modularity import modularity
from orthotrain.disentangle.mutual_information import mutual_information
from orthotrain.disentangle.sap import sap

__all__ = [
    "ChanceLevel",
    "DciScore",
    "FactorDataset",
    "FactorVaeScore",
    "VoteScore",
    "beta_vae_score",
    "chance_level",
    "dci",
    "factor_vae_score",
    "mig",
    "modularity",
    "mutual_information",
    "sap",
]
