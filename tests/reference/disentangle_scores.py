"""Slow float64 twins of the scores with true factors: one sample, one cell, one vote a loop.

Written from the papers' formulas and the docstrings' settings, and from nothing in the package.
Arrays are numpy; ``codes`` is ``(n, d)`` and ``factors`` ``(n, f)``.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


# --- mutual information -----------------------------------------------------------------------


def bin_of(value: float, low: float, high: float, bins: int) -> int:
    """The last of ``bins`` equal intervals whose lower end does not exceed ``value``."""
    if high == low:
        return 0
    return max(b for b in range(bins) if low + (high - low) * (b / bins) <= value)


def information(code: Floats, factor: Integers, bins: int) -> float:
    """``sum p(b, v) log(p(b, v) / (p(b) p(v)))`` over the cells that occur."""
    n = len(code)
    index = [bin_of(x, code.min(), code.max(), bins) for x in code]
    joint = Counter(zip(index, factor.tolist(), strict=True))
    of_bin, of_value = Counter(index), Counter(factor.tolist())
    return math.fsum(
        count / n * math.log(count * n / (of_bin[b] * of_value[v]))
        for (b, v), count in joint.items()
    )


def information_table(codes: Floats, factors: Integers, bins: int = 20) -> Floats:
    return np.array([[information(c, f, bins) for f in factors.T] for c in codes.T])


def entropy(factor: Integers) -> float:
    n = len(factor)
    return -math.fsum(c / n * math.log(c / n) for c in Counter(factor.tolist()).values())


def mig(codes: Floats, factors: Integers, bins: int = 20) -> float:
    """Chen et al. (2018), equation 6."""
    table = information_table(codes, factors, bins)
    gaps = []
    for j, factor in enumerate(factors.T):
        first, second = sorted([*table[:, j], 0.0], reverse=True)[:2]
        gaps.append((first - second) / entropy(factor))
    return math.fsum(gaps) / len(gaps)


def modularity(codes: Floats, factors: Integers, bins: int = 20) -> float:
    """Ridgeway and Mozer (2018), section 3: deviation from a template with one entry."""
    scores = []
    for row in information_table(codes, factors, bins):
        best = int(np.argmax(row))
        if row[best] < 1e-10:
            continue
        template = [row[best] if j == best else 0.0 for j in range(len(row))]
        off = math.fsum((m - t) ** 2 for m, t in zip(row, template, strict=True))
        scores.append(1 - off / (row[best] ** 2 * (len(row) - 1)))
    return math.fsum(scores) / len(scores) if scores else 0.0


# --- SAP --------------------------------------------------------------------------------------


def line_r_squared(x: Floats, y: Floats) -> float:
    """``1 - residual / total`` of the least squares line."""
    if np.ptp(x) == 0:
        return 0.0
    slope, intercept = np.linalg.lstsq(np.stack([x, np.ones_like(x)], axis=1), y, rcond=None)[0]
    residual = math.fsum((y - slope * x - intercept) ** 2)
    return 1 - residual / math.fsum((y - y.mean()) ** 2)


def lead(table: Floats, blind: Sequence[float]) -> float:
    """Mean of first minus second of each column; a lone row competes with ``blind``."""
    columns = [
        sorted([*column, *([guess] if len(column) == 1 else [])], reverse=True)
        for column, guess in zip(table.T, blind, strict=True)
    ]
    return math.fsum(c[0] - c[1] for c in columns) / len(columns)


def sap_continuous(codes: Floats, factors: Integers) -> float:
    """Kumar et al. (2018), section 3, regression."""
    table = [[line_r_squared(c, f.astype(float)) for f in factors.T] for c in codes.T]
    return lead(np.array(table), [0.0] * factors.shape[1])


def squared_hinge_line(x: Floats, sign: Floats, weight: Floats) -> Floats:
    """Minimizer ``(w, b)`` of ``(w^2 + b^2) / 2 + sum weight max(0, 1 - sign (w x + b))^2``."""
    inputs = np.stack([x, np.ones_like(x)], axis=1)
    w = np.zeros(2)

    def objective(w: Floats) -> float:
        return float(w @ w / 2 + weight @ np.maximum(0, 1 - sign * (inputs @ w)) ** 2)

    for _ in range(100):
        slack = 1 - sign * (inputs @ w)
        on = slack > 0
        gradient = w - 2 * inputs[on].T @ (weight * sign * slack)[on]
        hessian = np.eye(2) + 2 * (inputs[on].T * weight[on]) @ inputs[on]
        step = np.linalg.solve(hessian, gradient)
        size = 1.0
        while objective(w - size * step) > objective(w) and size > 1e-12:
            size /= 2
        w = w - size * step
        if abs(step).max() < 1e-14:
            break
    return w


def svm_accuracy(
    x: Floats, y: Integers, x_test: Floats, y_test: Integers, penalty: float = 0.01
) -> float:
    """Balanced accuracy of squared-hinge machines, one against the rest, on one feature.

    With two values there is one machine and each class has its balanced weight; with more, that
    of a value counts where it is the one, and the rest count 1, as in liblinear.
    """
    values = sorted(set(y.tolist()))
    balanced = {v: len(y) / (len(values) * np.sum(y == v)) for v in values}
    if len(values) == 2:
        each = np.array([penalty * balanced[v] for v in y.tolist()])
        w, b = squared_hinge_line(x, np.where(y == values[1], 1.0, -1.0), each)
        guess = [values[int(w * value + b > 0)] for value in x_test]
    else:
        machines = []
        for v in values:
            each = np.where(y == v, penalty * balanced[v], penalty)
            machines.append(squared_hinge_line(x, np.where(y == v, 1.0, -1.0), each))
        guess = [values[int(np.argmax([w * value + b for w, b in machines]))] for value in x_test]
    shares = []
    for v in values:
        of_value = [g == v for g, truth in zip(guess, y_test.tolist(), strict=True) if truth == v]
        shares.append(sum(of_value) / len(of_value))
    return math.fsum(shares) / len(shares)


def sap_discrete(codes: Floats, factors: Integers, train: Integers, test: Integers) -> float:
    """The published code's classifier, on standardized codes, with the paper's accuracy."""
    guess = [1 / len(set(f.tolist())) for f in factors.T]
    table = np.zeros((codes.shape[1], factors.shape[1]))
    for i, code in enumerate(codes.T):
        for j, factor in enumerate(factors.T):
            if np.ptp(code) == 0:
                table[i, j] = guess[j]
                continue
            x = (code - code.mean()) / code.std()
            table[i, j] = svm_accuracy(x[train], factor[train], x[test], factor[test])
    return lead(table, guess)


# --- DCI --------------------------------------------------------------------------------------


def disentanglement(importance: Floats) -> float:
    """Eastwood and Williams (2018): one minus entropy to the base f, weighted by use."""
    total = math.fsum(importance.flatten())
    score = 0.0
    for row in importance:
        used = math.fsum(row)
        if used == 0:
            continue
        shares = [r / used for r in row if r > 0]
        entropy_of_row = -math.fsum(p * math.log(p, importance.shape[1]) for p in shares)
        score += used / total * (1 - entropy_of_row)
    return score


def completeness(importance: Floats) -> float:
    """The same of the other side, to the base d."""
    return disentanglement(importance.T)


# --- votes ------------------------------------------------------------------------------------


def shared_column(first: Integers, second: Integers) -> int:
    """The one column in which every pair of rows has one value."""
    (column,) = [j for j in range(first.shape[1]) if (first[:, j] == second[:, j]).all()]
    return column


def factor_vae_votes(
    votes: Sequence[tuple[Integers, Floats]], everywhere: Floats, min_std: float = 0.0
) -> list[tuple[int, int]]:
    """Kim and Mnih (2018), section 4: (dimension, factor) of each (factors, codes) of a batch."""
    std = everywhere.std(axis=0, ddof=1)
    cast = []
    for factors, codes in votes:
        fixed = shared_column(factors, np.broadcast_to(factors[0], factors.shape))
        ratios = {
            i: (codes[:, i] / std[i]).var(ddof=1) for i in range(len(std)) if std[i] > min_std
        }
        cast.append((min(ratios, key=lambda i: ratios[i]), fixed))
    return cast


def majority_accuracy(train: Sequence[tuple[int, int]], test: Sequence[tuple[int, int]]) -> float:
    """Each dimension names the factor it had most votes for, the first of equals."""
    counts = Counter(train)
    factors = sorted({factor for _, factor in train})
    named = {
        dimension: max(factors, key=lambda factor: counts[dimension, factor])
        for dimension in {dimension for dimension, _ in train}
    }
    return sum(named.get(dimension) == factor for dimension, factor in test) / len(test)


def mean_difference(first: Floats, second: Floats) -> Floats:
    """Higgins et al. (2017), section 3: the mean over pairs of ``|z - z'|``."""
    total = np.zeros(first.shape[1])
    for a, b in zip(first, second, strict=True):
        total += abs(a - b)
    return total / len(first)


def logistic_accuracy(x: Floats, y: Integers, x_test: Floats, y_test: Integers) -> float:
    """Multinomial logistic regression, ``sum loss + |w|^2 / 2`` by Newton, on standard features."""
    mean, std = x.mean(axis=0), x.std(axis=0)
    inputs, tests = (
        np.concatenate([(a - mean) / std, np.ones((len(a), 1))], axis=1) for a in (x, x_test)
    )
    values = sorted(set(y.tolist()))
    k, d = len(values), inputs.shape[1]
    target = np.array([[float(value == v) for v in values] for value in y.tolist()])
    # The intercepts are not penalized; a trace of it fixes their common shift.
    penalty = np.tile([*[1.0] * (d - 1), 1e-9], k)
    w = np.zeros(k * d)

    def shares(a: Floats) -> Floats:
        logits = a @ w.reshape(k, d).T
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        return odds / odds.sum(axis=1, keepdims=True)

    for _ in range(50):
        p = shares(inputs)
        gradient = ((p - target).T @ inputs).flatten() + penalty * w
        hessian = np.diag(penalty)
        for row, share in zip(inputs, p, strict=True):
            curvature = np.diag(share) - np.outer(share, share)
            hessian = hessian + np.kron(curvature, np.outer(row, row))
        step = np.linalg.solve(hessian, gradient)
        w = w - step
        if abs(step).max() < 1e-10:
            break
    guess = [values[int(i)] for i in shares(tests).argmax(axis=1)]
    return sum(g == t for g, t in zip(guess, y_test.tolist(), strict=True)) / len(y_test)
