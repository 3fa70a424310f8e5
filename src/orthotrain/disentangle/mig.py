"""Mutual information gap (MIG): is a factor told by one code dimension, and by no second one?"""

from __future__ import annotations

from jaxtyping import Float, Integer
from torch import Tensor

from orthotrain.disentangle._codes import checked_samples
from orthotrain.disentangle.mutual_information import DEFAULT_BINS, entropy, information_matrix


def mig(
    codes: Float[Tensor, "n d"], factors: Integer[Tensor, "n f"], *, bins: int = DEFAULT_BINS
) -> float:
    """Mutual information gap (MIG), in [0, 1]; 1 where each factor is told by one dimension.

    ``mean_j (I(z_1st; v_j) - I(z_2nd; v_j)) / H(v_j)``, where ``1st`` and ``2nd`` are the two
    dimensions that tell most about factor ``j``. Two dimensions may share a factor's first place;
    that one dimension tells several factors is not punished.

    Args:
        codes: ``(n, d)``; 10,000 samples are usual. With ``d = 1`` the second is 0, as if a
            constant dimension stood beside it.
        factors: ``(n, f)`` integers; their values are names, not numbers. A factor that takes one
            value is left out, with a warning.
        bins: Equal intervals in which a dimension is read.

    Returns:
        The score. **A dimension in ``bins`` bins cannot tell apart more values than that**: for
        factors of 3, 6, 20 and 32 evenly spread values, codes equal to the factors score 1, 1, 1
        and .85 with 20 bins, and 1 with 32. Codes that are all constant score 0.

    Raises:
        ShapeError: Not ``(n, d)`` and ``(n, f)`` with one ``n``, or fewer samples than cells of
            the joint histogram (occupied bins times values).
        ConfigError: ``bins`` below 2, codes not floating-point, factors not integers, or no
            factor that varies.
        NonFiniteError: NaN or infinity in the codes.

    Warns:
        OrthotrainWarning: A factor takes one value.

    Note:
        Not differentiable. Chance is near 0: the estimate's bias is alike in first and second;
        ``chance_level`` measures it. Blind to order, sign, shift and scale of dimensions, not to
        other monotone maps, since bins are of equal width.

    Source:
        Chen et al. (2018), arXiv:1802.04942, equation 6. Bins in place of the encoder's density:
        Locatello et al. (2019), arXiv:1811.12359.

    Example:
        >>> import torch
        >>> factors = torch.cartesian_prod(torch.arange(3), torch.arange(4)).repeat(2, 1)
        >>> codes = factors.double()
        >>> round(mig(codes, factors), 6), mig(codes[:, [0, 0, 1, 1]], factors)
        (1.0, 0.0)
    """
    samples = checked_samples("mig", codes, factors).varying("mig")
    information = information_matrix("mig", samples, bins).sort(dim=0, descending=True).values
    gap = information[0] - information[1] if len(information) > 1 else information[0]
    shares = [float(g) / entropy(v) for g, v in zip(gap, samples.levels.T, strict=True)]
    return sum(shares) / len(shares)
