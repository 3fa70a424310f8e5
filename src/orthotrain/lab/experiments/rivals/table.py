"""The table of rivals; a new one is a row here and a file that makes its plan.

This module does not import torch, so a command line can be parsed before torch is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Final

from orthotrain.extras import missing_package

#: Percent of the dense network's numbers that rivals of a chosen size store.
HALF: Final = 50
_HERE: Final = "orthotrain.lab.experiments.rivals"


@dataclass(frozen=True)
class Rival:
    """One method.

    Attributes:
        name: Of its variant.
        title: What a report calls it.
        note: What is done here.
        source: Where it comes from.
        lacks: What its user does without.
        make: A function ``(model, settings, total_steps=, seed=) -> Plan``; empty where the
            network alone differs.
        package: What has to be installed for it, also the name of the extra.
    """

    name: str
    title: str
    note: str
    source: str
    lacks: str
    make: str = ""
    package: str = ""


RIVALS: Final = (
    Rival(
        "dense", "dense", "the same network without any method", "",
        "nothing is smaller: weights, gradients and optimizer state are those of the full network",
    ),
    Rival(
        f"narrow-{HALF}", f"narrow, {HALF} %",
        f"a dense network from scratch, narrowed to {HALF} % of the numbers", "",
        "the size is chosen before training, and each size is a training of its own; a dense "
        "model that exists is of no use",
    ),
    Rival(
        "fixed-rank", f"fixed rank, {HALF} %",
        f"two factors from the first step on, {HALF} % of the numbers, every layer with the same "
        "share; they begin as the truncated decomposition of the dense initial weight",
        "Khodak et al. (2021), arXiv:2105.01029, for the beginning",
        "ranks are set by hand and never change; no dense phase to learn from",
        f"{_HERE}.two_factors:fixed_rank",
    ),
    Rival(
        "pufferfish-like", f"Pufferfish-like, {HALF} %",
        f"dense first, then two factors of the weights' decomposition, {HALF} % of the numbers, "
        "every layer with the same share",
        "Wang, Agarwal and Papailiopoulos (2021), arXiv:2103.03936",
        "switch and ranks are set by hand; the cut sees weights alone, not the loss",
        f"{_HERE}.two_factors:pufferfish_like",
    ),
    Rival(
        "cuttlefish-like", "Cuttlefish-like",
        "dense until the stable ranks stop changing, then two factors; the rank of a layer is its "
        "stable rank, scaled so that the initial weight would have full rank",
        "Wang et al. (2023), arXiv:2305.02538",
        "the size follows from the weights and cannot be chosen; ranks are fixed after the switch",
        f"{_HERE}.stable_rank:cuttlefish_like",
    ),
    Rival(
        "galore-like", "GaLore-like",
        "dense weights; AdamW on gradients projected to a low rank, projections renewed on the way",
        "Zhao et al. (2024), arXiv:2403.03507",
        "the model is not smaller and computes as much; only optimizer state is",
        f"{_HERE}.projected_gradient:galore_like",
    ),
    Rival(
        "relora-like", "ReLoRA-like",
        "dense first, then frozen weights with low-rank updates that are merged and begin anew, "
        "with fresh moments and a new warm-up",
        "Lialin et al. (2023), arXiv:2307.05695",
        "the model is not smaller; the rate has to fall and rise at each restart",
        f"{_HERE}.low_rank_updates:relora_like",
    ),
    Rival(
        "lora-peft", "LoRA (PEFT)",
        "dense first, then frozen weights with one low-rank update each, by the layers of PEFT",
        "Hu et al. (2021), arXiv:2106.09685",
        "made for fine-tuning: one update of low rank; the model is not smaller",
        f"{_HERE}.peft_adapters:lora_peft",
        "peft",
    ),
    Rival(
        "oialr-paper", "OIALR, published settings",
        "settings of the authors' CIFAR-10 mini ViT, times scaled to the length of this run",
        "Coquelin et al. (2024), arXiv:2401.08505",
        "the size cannot be chosen and is counted with frozen bases; ranks by weights alone",
        f"{_HERE}.ours:published",
    ),
    Rival(
        "default", "AdaptiveLowRank()",
        "the default: half of the numbers, cut at half of the run by what the loss feels, both "
        "factors trained on",
        "ours, after Coquelin et al. (2024), arXiv:2401.08505",
        "training needs the dense network's memory until the switch",
        f"{_HERE}.ours:default",
    ),
)  # fmt: skip


def installed() -> tuple[Rival, ...]:
    """The rows whose packages are there."""
    return tuple(row for row in RIVALS if not row.package or find_spec(row.package))


def left_out(row: Rival) -> str:
    """Why a rival that needs a package is left out, and the line that installs it."""
    return str(missing_package(f"the rival {row.name}", row.package, extra=row.package))
