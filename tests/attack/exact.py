"""What kernels should give, in fifty digits, by mpmath: one small matrix, one formula."""

import mpmath
import torch

mpmath.mp.dps = 50


def of(a):
    """A matrix of a tensor's exact values."""
    return mpmath.matrix(a.double().tolist())


def tensor(matrix):
    rows = [[float(matrix[i, j]) for j in range(matrix.cols)] for i in range(matrix.rows)]
    return torch.tensor(rows, dtype=torch.float64)


def singular_values(a):
    wide = a.shape[-2] < a.shape[-1]
    values = mpmath.svd_r(of(a.mT if wide else a), compute_uv=False)
    return torch.tensor([float(x) for x in values], dtype=torch.float64)


def null_below(a):
    """Default ``rtol`` of ``polar_factor`` on CPU."""
    work = torch.finfo(torch.float64).eps
    return max(4 * torch.finfo(a.dtype).eps, work * max(a.shape))


def polar_factor(a):
    """``U V^T``, over the directions that the dtype can tell from none: see ``null_below``."""
    wide = a.shape[-2] < a.shape[-1]
    u, s, vh = mpmath.svd_r(of(a.mT if wide else a))
    least = float(s[0]) * null_below(a)
    for i in range(len(s)):
        if float(s[i]) < least:
            for j in range(u.rows):
                u[j, i] = 0
    q = tensor(u * vh)
    return q.mT if wide else q


def _function(a, function):
    values, vectors = mpmath.eigsy(of(a))
    middle = mpmath.diag([function(value) for value in values])
    return tensor(vectors * middle * vectors.T)


def spd_sqrt(a):
    return _function(a, lambda x: mpmath.sqrt(max(x, 0)))


def spd_inv_sqrt(a):
    return _function(a, lambda x: 1 / mpmath.sqrt(x))


def eigenvalues(a):
    values = mpmath.eigsy(of(a), eigvals_only=True)
    return torch.tensor(sorted(float(x) for x in values), dtype=torch.float64)


def exponential(a):
    return tensor(mpmath.expm(of(a), method="taylor"))


def cayley(a):
    eye, half = mpmath.eye(len(a)), of(a) / 2
    return tensor(mpmath.inverse(eye - half) * (eye + half))


def condition_number(a):
    s = singular_values(a)
    return s[0] / s[-1] if s[-1] > 0 else torch.tensor(torch.inf, dtype=torch.float64)


def effective_rank(s):
    """``exp`` of the entropy of the normalized spectrum."""
    values = [mpmath.mpf(x) for x in s.double().tolist()]
    shares = [x / sum(values) for x in values if x > 0]
    entropy = -sum(p * mpmath.log(p) for p in shares)
    return torch.tensor(float(mpmath.exp(entropy)), dtype=torch.float64)
