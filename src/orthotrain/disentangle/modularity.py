"""Modularity: does a code dimension tell about one factor, and about no other?"""

from __future__ import annotations

from jaxtyping import Float, Integer
from torch import Tensor

from orthotrain.disentangle._codes import checked_samples
from orthotrain.disentangle.mutual_information import DEFAULT_BINS, information_matrix

# Entropies of up to ten nats, summed over up to a thousand cells, are right to 1e-13 or better.
_ZERO_NATS = 1e-12


def modularity(
    codes: Float[Tensor, "n d"], factors: Integer[Tensor, "n f"], *, bins: int = DEFAULT_BINS
) -> float:
    """Modularity, in [0, 1]; 1 where each dimension tells about one factor.

    With ``m = I(z_i; v_j)`` and ``t_i = max_j m_ij``, the mean over dimensions of
    ``1 - (sum_j m_ij^2 - t_i^2) / (t_i^2 (f - 1))``. That several dimensions tell about one
    factor is not punished, nor that a factor is told by none.

    Args:
        codes: ``(n, d)``; 10,000 samples are usual.
        factors: ``(n, f)`` integers, of which at least two vary; their values are names, not
            numbers. A factor that takes one value is left out, with a warning.
        bins: Equal intervals in which a dimension is read.

    Returns:
        The score over the dimensions that tell anything; 0 where none does. The published code
        counts a dimension that tells nothing as 0, so there a constant dimension beside others
        lowers the score; in the paper it is 0 / 0.

    Raises:
        ShapeError: Not ``(n, d)`` and ``(n, f)`` with one ``n``, or fewer samples than cells of
            the joint histogram (occupied bins times values).
        ConfigError: ``bins`` below 2, codes not floating-point, factors not integers, or fewer
            than two factors that vary.
        NonFiniteError: NaN or infinity in the codes.

    Warns:
        OrthotrainWarning: A factor takes one value.

    Note:
        Not differentiable. **Chance is not 0**: a dimension of pure noise has the estimate's
        bias, which grows with the number of a factor's values, and so seems to tell about the
        largest factor; with factors of 3, 6, 32 and 32 values it scores .7. Hold a score against
        ``chance_level``. Blind to order, sign, shift and scale of dimensions.

    Source:
        Ridgeway and Mozer (2018), arXiv:1802.05312, section 3. Bins: Locatello et al. (2019),
        arXiv:1811.12359.

    Example:
        >>> import torch
        >>> factors = torch.cartesian_prod(torch.arange(3), torch.arange(3)).repeat(3, 1)
        >>> both = (3 * factors[:, :1] + factors[:, 1:]).double()
        >>> round(modularity(factors.double(), factors), 6), round(modularity(both, factors), 6)
        (1.0, 0.0)
    """
    samples = checked_samples("modularity", codes, factors).varying("modularity", at_least=2)
    information = information_matrix("modularity", samples, bins)
    told = information[information.amax(dim=1) > _ZERO_NATS]
    if len(told) == 0:
        return 0.0
    squares = (told / told.amax(dim=1, keepdim=True)).square()
    others = (squares.sum(dim=1) - 1) / (squares.shape[1] - 1)
    return float((1 - others).mean())
