"""Published errors of Autoformer on ETTm2 that a run is shown beside.

Source: Coquelin et al., arXiv:2401.08505, read out of the data of their figure. Split and number
of runs are not stated there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class PublishedErrors:
    """Mean squared errors at one length of the forecast.

    Attributes:
        ahead: Steps that are forecast.
        trainable: Trained numbers of OIALR in percent of the dense network's.
        oialr: Its errors.
        dense: Errors of the dense network beside them.
    """

    ahead: int
    trainable: tuple[float, ...]
    oialr: tuple[float, ...]
    dense: tuple[float, ...]


#: On ETTm2.
PUBLISHED: Final = (
    PublishedErrors(
        192,
        (48.2, 37.2, 22.1, 7.1, 3.2),
        (0.2894, 0.2693, 0.2725, 0.2684, 0.2688),
        (0.2741, 0.2749, 0.2860, 0.3077, 0.3244),
    ),
    PublishedErrors(
        720,
        (47.9, 37.2, 22.1, 7.1, 3.2),
        (0.4208, 0.4201, 0.4229, 0.4295, 0.4259),
        (0.4201, 0.4277, 0.4490, 0.4730, 0.4700),
    ),
)
