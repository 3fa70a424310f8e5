"""Published numbers of decorrelated batch norm and covariance pooling, printed beside a run.

Sources: the posters of Song, Sebe and Wang at ICCV 2021 and ICLR 2022, and the condition curves
of arXiv:2207.02119, read out of the authors' figure to about 10 %. The result tables of the paper
were not available, so no accuracy of NOG, OLR or orthogonal weights is printed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class PublishedRow:
    """One line of a published table.

    Attributes:
        name: The method as published.
        cells: Its numbers as printed, one per column; empty where there is none.
        twin: Treatments of the variant of ours that is the same method; ``None`` for no such.
    """

    name: str
    cells: tuple[str, ...]
    twin: frozenset[str] | None = None


def _twin(*treatments: str) -> frozenset[str]:
    return frozenset(treatments)


# The name of the variant without a spectral layer, which has no treatments at all.
BASELINE_TWIN: Final = _twin("baseline")

WHITENING_HEAD: Final = (
    "ResNet-18, CIFAR-10: validation error (%)",
    "ResNet-18, CIFAR-100: validation error (%)",
    "ResNet-50, CIFAR-100: validation error (%)",
    "64x64 root on a K40 (ms)",
)
WHITENING: Final = (
    PublishedRow("power iteration", ("4.59 ± 0.09", "21.39 ± 0.23", "19.94 ± 0.44", "3.49")),
    PublishedRow("SVD-Taylor", ("4.50 ± 0.08", "21.14 ± 0.20", "19.81 ± 0.24", "3.41")),
    PublishedRow("SVD-Pade", ("4.65 ± 0.11", "21.41 ± 0.15", "20.25 ± 0.23", "3.39")),
    PublishedRow(
        "Newton-Schulz", ("4.57 ± 0.15", "21.24 ± 0.20", "19.39 ± 0.30", "2.96"), _twin("ns")
    ),
    PublishedRow("MPA-Lya", ("4.39 ± 0.09", "21.11 ± 0.12", "19.55 ± 0.20", "2.52")),
    PublishedRow("MTP-Lya", ("4.49 ± 0.13", "21.42 ± 0.21", "20.55 ± 0.37", "2.36")),
)

POOLING_HEAD: Final = ("ImageNet top-1 error (%)", "ImageNet, hybrid (%)")
POOLING: Final = (
    PublishedRow("no covariance pooling", ("23.85", ""), BASELINE_TWIN),
    PublishedRow("iSQRT (Newton-Schulz)", ("22.81", ""), _twin("ns")),
    PublishedRow("Pade", ("22.67", "22.60")),
    PublishedRow("Taylor", ("22.91", "22.77")),
    PublishedRow("Newton", ("22.86", "22.72")),
    PublishedRow("truncation", ("22.85", "22.74")),
    PublishedRow("top-N", ("22.91", "22.76")),
    PublishedRow("MPN-COV", ("22.93", "22.79")),
)

FINE_HEAD: Final = (
    "Birds: best accuracy (%)",
    "Dogs: best accuracy (%)",
    "Cars: best accuracy (%)",
)
FINE: Final = (
    PublishedRow("iSQRT", ("86.45", "83.45", "91.56")),
    PublishedRow("Pade", ("87.29", "84.34", "92.99")),
)

PUBLISHED_STEPS: Final = (1_000, 20_000, 60_000, 130_000)


@dataclass(frozen=True)
class PublishedCondition:
    """Condition number of the whitened covariance over one training.

    Attributes:
        name: The method as published.
        twin: Treatments of the variant of ours that is the same method.
        values: One at each of ``PUBLISHED_STEPS``, to about 10 %.
    """

    name: str
    twin: frozenset[str]
    values: tuple[float, ...]


PUBLISHED_CONDITIONS: Final = (
    PublishedCondition("SVD", _twin(), (5e5, 5e10, 4e10, 1e10)),
    PublishedCondition("NS", _twin("ns"), (4e5, 5.2e4, 1.3e4, 8.4e3)),
    PublishedCondition("BN", BASELINE_TWIN, (1e6, 4.6e3, 1.2e3, 7.8e2)),
    PublishedCondition("NOG", _twin("nog"), (3e6, 1e7, 5.9e5, 2.2e5)),
    PublishedCondition("NOG + SN", _twin("nog", "sn"), (2.3e6, 8.6e6, 8.7e5, 3.0e5)),
    PublishedCondition("NOG + OL", _twin("nog", "ol"), (2.5e3, 2.4e3, 1.6e3, 1.5e3)),
    PublishedCondition("NOG + OW", _twin("nog", "ow"), (4.8e2, 5.2e2, 5.3e2, 5.3e2)),
    PublishedCondition("OLR", _twin("olr"), (1.5e5, 3.3e4, 1.0e4, 3.9e3)),
    PublishedCondition("NOG + OLR", _twin("nog", "olr"), (3.0e6, 1.5e7, 7.7e5, 2.8e5)),
    PublishedCondition("OW + OLR", _twin("ow", "olr"), (7.4e2, 7.7e2, 7.8e2, 7.8e2)),
    PublishedCondition("NOG + OW + OLR", _twin("nog", "ow", "olr"), (5.1e2, 5.3e2, 5.3e2, 5.3e2)),
)

WHITENING_NOTE: Final = (
    "Published: validation error, mean and deviation of 5 trainings of 350 epochs with batch 128, "
    "and the time of one root of a 64x64 matrix forward and backward. They are of methods to take "
    "the root. No accuracy with NOG, OLR or orthogonal weights was available, so none is printed. "
    "The condition numbers are read out of a figure to about 10 %; in which sense and precision "
    "they were computed is not known. This run has its own number of images, width and steps (see "
    "Settings): compare the order, not the heights."
)
POOLING_NOTE: Final = (
    "Published: ResNet-50 on ImageNet, 60 epochs, batch 256, top-1 error with covariance pooling "
    "alone and in the hybrid of two gradients. Fine-grained: the best accuracy on birds, dogs and "
    "cars. None of them is of NOG, OLR or orthogonal weights. This run has other data, another "
    "width and fewer steps: its column shows how far apart the same methods are here, not the "
    "same number again."
)
