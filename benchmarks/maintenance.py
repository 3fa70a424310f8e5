"""What rank maintenance costs: of a finished run, and of one layer in steps of that layer.

The first table reads a run folder: the seconds of every update (singular values, rank decisions,
factors, optimizer state) against the seconds of the whole training they belong to. The target is
1 % of the CIFAR-10 run with published settings.

The second table measures one linear layer, float32, AdamW, frozen bases, in turn with its own
training step: what an update takes that cuts nothing, one that cuts a tenth of the rank, the switch
from dense to a quarter of the rank, and to full rank. Beside each stands what it took with a full
decomposition and float64 products, as before. The target is 3 % where an update follows every 50
steps at width 3072 with 512 tokens. An update in one step decomposes a core once, a spread one
looks at values first.

The third table makes a ``LowRankLinear`` from scratch, beside ``nn.Linear`` of the same size.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from _measure import interleaved_seconds, ratio, report, train_step, verdict
from orthotrain import AdaptiveLowRank
from orthotrain.layers import LowRankLinear
from orthotrain.linalg import thin_svd
from orthotrain.lowrank.change import cut_trained_site_
from orthotrain.lowrank.history import LayerHistory
from orthotrain.lowrank.look import View, leading
from orthotrain.lowrank.sites import Selection, Site, find_sites

TARGET_PERCENT, TARGET_EACH_50 = 1.0, 3.0
SETTINGS = AdaptiveLowRank.published(
    delay_steps=1, every_steps=1, rank_rtol=0.1, layer_fraction=1.0
)
DEFAULT_RUN = Path("runs/cifar10-minivit-cpu")


def of_run(run: Path) -> list[tuple[object, ...]]:
    """A row for each finished training of a run that made updates."""
    rows: list[tuple[object, ...]] = []
    for path in sorted(run.glob("variants/*/seed-*/result.json")):
        lines = (path.parent / "metrics.jsonl").read_text().splitlines()
        events = [json.loads(line) for line in lines]
        updates = [e["seconds"] for e in events if e.get("event") == "update"]
        if updates:
            whole = json.loads(path.read_text())["seconds"]
            percent = 100 * sum(updates) / whole
            name = f"{path.parent.parent.name}, {path.parent.name}"
            rows.append(
                (name, len(updates), f"{sum(updates):.2f}", f"{whole:.1f}", f"{percent:.2f}",
                 verdict(percent, TARGET_PERCENT))
            )  # fmt: skip
    return rows


class Trained:
    """A linear layer at a rank, or dense, with the state of AdamW after one step."""

    def __init__(self, width: int, tokens: int, rank: int | None) -> None:
        g = torch.Generator().manual_seed(0)
        self.model = nn.Sequential(nn.Linear(width, width, bias=False))
        with torch.no_grad():  # a spectrum that falls as those of trained layers do
            w = torch.randn(width, width, generator=g) / width**0.5
            falls = torch.linspace(1, 0.02, width)
            self.model[0].weight.copy_(w * falls)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)
        self.x = torch.randn(tokens, width, generator=g).requires_grad_()
        self.gradient = torch.randn(tokens, width, generator=g)
        self.site: Site = find_sites(self.model, Selection())[0][0]
        self.step()
        if rank is not None:
            self.cut_to(rank)
            self.step()

    def step(self) -> None:
        """Forward, backward and AdamW's step."""
        train_step(self.model, self.x, self.gradient)()
        self.optimizer.step()

    def cut_to(self, rank: int) -> None:
        """Cut the weight, and the optimizer's state with it."""
        cut_trained_site_(self.site, leading(self.site, rank), self.optimizer)


def before(site: Site, rank: int, state: list[Tensor]) -> None:
    """As it was: one full decomposition, then bases and state turned in float64."""
    p, s, qh = thin_svd(site.matrix)
    p, qh = p[..., :rank], qh[..., :rank, :]
    if site.factored:
        u, _, vh = site.factors
        _ = u.to(p) @ p, qh @ vh.to(qh), torch.diag_embed(s[..., :rank])
    for x, (left, right) in zip(state, ((p, qh.mT), (p.square(), qh.mT.square())), strict=True):
        _ = (left.mT @ x.to(left) @ right).to(x.dtype)


def now(site: Site, rank: int, state: list[Tensor], *, at_once: bool) -> None:
    """A look; then factors of the rank that it tells, bases and state turned in float32.

    A layer that an update does not reach switches to full rank without a look.
    """
    view = View(lambda _: None, at_once=at_once)
    if rank < site.layout.full_rank:
        view.look(0, site, LayerHistory(), SETTINGS, within_reach=True)
    p, s, qh = (t.to(torch.float32) for t in view.cut(0, site, rank)[:3])
    if site.factored:
        u, _, vh = site.factors
        _ = u @ p, qh @ vh, torch.diag_embed(s)
    for x, (left, right) in zip(state, ((p, qh.mT), (p.square(), qh.mT.square())), strict=True):
        _ = left.mT @ x @ right


def kept(site: Site, *, at_once: bool) -> None:
    """A look after which nothing is cut."""
    View(lambda _: None, at_once=at_once).look(0, site, LayerHistory(), SETTINGS, within_reach=True)


def of_layer(width: int, tokens: int, rounds: int, *, full: bool) -> list[tuple[object, ...]]:
    """Rows of one width: what is done, at which rank, in steps of that layer."""
    rows: list[tuple[object, ...]] = []
    quarter = width // 4
    tenth = round(0.9 * quarter)
    cases = [
        ("switch to a quarter", None, quarter, True),
        ("an update, a quarter kept", quarter, quarter, True),
        ("the same, spread", quarter, quarter, False),
        ("an update, a tenth of a quarter cut", quarter, tenth, True),
        ("the same, spread", quarter, tenth, False),
    ]
    if full:
        cases += [
            ("switch to full rank", None, width, True),
            ("an update, full rank kept", width, width, True),
        ]
    for what, rank, to, at_once in cases:
        layer = Trained(width, tokens, rank)
        state = [layer.optimizer.state[layer.site.parameter][k] for k in ("exp_avg", "exp_avg_sq")]
        keeps = rank == to
        seconds = interleaved_seconds(
            {
                "step": layer.step,
                "now": partial(kept, layer.site, at_once=at_once) if keeps
                else partial(now, layer.site, to, state, at_once=at_once),
                "before": lambda site=layer.site, to=to, state=state: before(site, to, state),
            },
            rounds=rounds, warmup=int(width < 3072), clock=time.thread_time,
        )  # fmt: skip
        ours, theirs = ratio(seconds, "now", "step"), ratio(seconds, "before", "step")
        each = 2 * ours.median
        said = "" if rank is None else f"{each:.2f}"
        told = verdict(each, TARGET_EACH_50) if rank == quarter and width == 3072 else ""
        rows.append((f"{width}, {tokens} tokens", what, ours, theirs,
                     ratio(seconds, "now", "before"), said, told))  # fmt: skip
        print(*rows[-1], flush=True)
    return rows


def from_scratch(width: int, rounds: int) -> tuple[object, ...]:
    """A row: a layer of half the numbers that is drawn, beside a plain one."""
    seconds = interleaved_seconds(
        {
            "plain": lambda: nn.Linear(width, width),
            "low-rank": lambda: LowRankLinear(width, width, rank=width // 4),
        },
        rounds=rounds, clock=time.thread_time,
    )  # fmt: skip
    plain = 1e3 * statistics.median(seconds["plain"])
    return f"{width} x {width}", f"{plain:.1f}", ratio(seconds, "low-rank", "plain")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, nargs="?", help=f"run folder (default: {DEFAULT_RUN})")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--widths", type=int, nargs="*", default=(256, 768, 1536, 3072))
    given = parser.parse_args()
    run = given.run or DEFAULT_RUN
    rows = of_run(run)
    if rows:
        report(
            f"Rank maintenance in {run}",
            ("training", "updates", "their seconds", "all seconds", "percent", "target"),
            rows,
        )
    else:
        advice = (
            f"{run} holds no finished training; run `orthotrain train cifar10-minivit "
            f"--scale cpu --run-dir {run}` first, or name another run folder"
        )
        if given.run is not None:
            parser.error(advice)
        # `orthotrain bench` runs every script, also where nothing was trained yet.
        print(f"rank maintenance of a run was not measured: {advice}")
    torch.set_num_threads(1)
    table = [
        row
        for width in given.widths
        for row in of_layer(
            width, 512 if width == 3072 else 1024, given.rounds, full=width < 3072
        )
    ]  # fmt: skip
    if table:
        report(
            "Updates of one layer, in steps of that layer (median, middle half)",
            ("width", "what", "now", "before", "now over before", "% at one each 50", "target"),
            table,
        )
    report(
        "Making a layer from scratch, at a quarter of the rank",
        ("size", "nn.Linear, ms", "LowRankLinear over it"),
        [from_scratch(width, given.rounds) for width in (512, 2048)],
    )


if __name__ == "__main__":
    main()
