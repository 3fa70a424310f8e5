"""Precision, recall, density and coverage beside one float32 ``torch.cdist``; DCI's forest."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from sklearn.ensemble import RandomForestClassifier
from torch import Tensor

from _measure import interleaved_seconds, ratio, report
from orthotrain.disentangle import dci, density_coverage, precision_recall


def entry_by_entry(real: Tensor, fake: Tensor) -> tuple[float, ...]:
    """The four values from float64 distances that are each taken entry by entry."""
    real, fake = real.double(), fake.double()
    exact = "donot_use_mm_for_euclid_dist"
    apart = torch.cdist(real, fake, compute_mode=exact)
    near, far = (torch.cdist(a, a, compute_mode=exact) for a in (real, fake))
    radii, others = near.kthvalue(4, dim=1).values, far.kthvalue(4, dim=1).values
    wide = near.kthvalue(6, dim=1).values
    inside = apart < wide[:, None]
    return (
        float((apart <= radii[:, None]).any(dim=0).double().mean()),
        float((apart <= others).any(dim=1).double().mean()),
        float(inside.double().sum(dim=0).mean()) / 5,
        float(inside.any(dim=1).double().mean()),
    )


def distances(rounds: int, n: int, d: int) -> None:
    generator = torch.Generator().manual_seed(0)
    real, fake = (torch.randn(n, d, generator=generator) for _ in range(2))
    pr, dc = precision_recall(real, fake), density_coverage(real, fake)
    found = (pr.precision, pr.recall, dc.density, dc.coverage)
    assert found == entry_by_entry(real, fake)
    calls: dict[str, Callable[[], object]] = {
        "torch.cdist, float32, once": lambda: torch.cdist(real, fake),
        "torch.cdist, float64, once": lambda: torch.cdist(real.double(), fake.double()),
        "precision_recall, three": lambda: precision_recall(real, fake),
        "density_coverage, two": lambda: density_coverage(real, fake),
        "entry by entry, three": lambda: entry_by_entry(real, fake),
    }
    seconds = interleaved_seconds(calls, rounds=rounds, warmup=1)
    rows = [
        (name, ratio(seconds, name, "torch.cdist, float32, once"),
         ratio(seconds, name, "entry by entry, three"))
        for name in calls
    ]  # fmt: skip
    report(
        f"Two sets of {n}x{d}; tables of distances are counted; all four values equal those of "
        "float64 distances taken entry by entry",
        ("call", "ratio to one float32 cdist", "ratio to entry by entry"),
        rows,
    )


def forest(rounds: int, n: int) -> None:
    generator = torch.Generator().manual_seed(0)
    factors = torch.randint(0, 4, (n, 3), generator=generator)
    codes = factors.double() + 0.3 * torch.randn(n, 3, generator=generator, dtype=torch.float64)
    codes = torch.cat((codes, torch.randn(n, 3, generator=generator, dtype=torch.float64)), dim=1)
    inputs, levels = codes.numpy(), factors.numpy()
    first = int(2 * n / 3)

    def fitted(**settings: object) -> Callable[[], None]:
        def call() -> None:
            for j in range(levels.shape[1]):
                model = RandomForestClassifier(random_state=0, **settings)
                model.fit(inputs[:first], levels[:first, j])
                model.predict(inputs[first:])

        return call

    calls: dict[str, Callable[[], object]] = {
        "scikit-learn's, all dimensions per split": fitted(max_features=None),
        "scikit-learn's default, their root": fitted(),
        "dci": lambda: dci(codes, factors, model="random_forest"),
    }
    seconds = interleaved_seconds(calls, rounds=rounds, warmup=1)
    rows = [
        (name, ratio(seconds, name, "scikit-learn's, all dimensions per split"),
         ratio(seconds, name, "scikit-learn's default, their root"))
        for name in calls
    ]  # fmt: skip
    report(
        f"DCI with a random forest, {n} samples, 6 dimensions, 3 factors",
        ("call", "ratio, all dimensions", "ratio, default"),
        rows,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--samples", type=int, default=2000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    distances(arguments.rounds, arguments.samples, 512)
    forest(arguments.rounds, 1200)


if __name__ == "__main__":
    main()
