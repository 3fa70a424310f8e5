"""Published curves that a run is drawn against.

Source: Coquelin et al., arXiv:2401.08505 v4, read out of the authors' vector figures. Nothing
else of the paper's numbers was available, so nothing else is drawn.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from orthotrain.lab.report.figures import Reference

PUBLISHED_EPOCHS: Final = tuple(range(5, 105, 5))
PUBLISHED_LAG_EPOCHS: Final = 5

#: Mean basis stability over all layers of one dense ImageNet training, by network.
PUBLISHED_STABILITY: Final = {
    "ViT-B/16": (
        *(0.867, 0.755, 0.778, 0.823, 0.855, 0.878, 0.897, 0.912, 0.925, 0.936),
        *(0.946, 0.955, 0.963, 0.971, 0.977, 0.983, 0.987, 0.991, 0.994, 0.996),
    ),
    "ResNet-RS101": (
        *(0.937, 0.889, 0.898, 0.917, 0.929, 0.939, 0.947, 0.954, 0.959, 0.965),
        *(0.969, 0.973, 0.977, 0.981, 0.984, 0.986, 0.989, 0.991, 0.993, 0.995),
    ),
}

#: The same as lines over the fraction of training.
PUBLISHED_CURVES: Final = tuple(
    Reference(
        f"{name}, ImageNet (published)",
        np.array(PUBLISHED_EPOCHS) / PUBLISHED_EPOCHS[-1],
        np.array(values),
    )
    for name, values in PUBLISHED_STABILITY.items()
)
