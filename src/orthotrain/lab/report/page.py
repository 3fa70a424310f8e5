"""What a page shows, declared once per experiment."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from orthotrain.lab.report.claims import Claim
from orthotrain.lab.report.figures import FigureOf, Looks
from orthotrain.lab.report.load import Run, Variant
from orthotrain.lab.report.style import looks
from orthotrain.lab.report.tables import TableOf


@dataclass(frozen=True)
class Card:
    """Tables in one box of the page.

    Attributes:
        title: Its heading.
        tables: What it holds; a table without rows is left out.
        note: What the reader needs to know about them.
    """

    title: str
    tables: Sequence[TableOf]
    note: str = ""


@dataclass(frozen=True)
class Page:
    """The page of an experiment. Everything but the results may be left out.

    A sequence may also be a function of the run that gives one.

    Attributes:
        results: Tables, each in a box: the first above the claims, the others below them.
        closing: Columns of these tables that end the output of ``orthotrain train``: short titles
            by key, in the order of the lines.
        claims: Questions that the page answers first.
        lead: The figures above the first table: what a reader should see first.
        figures: Its other figures, in order.
        cards: Further boxes of tables, after the figures.
        details: Tables behind tabs at the end; settings and environment follow by themselves.
        missing: What a run lacks beyond its own notes, one sentence each.
        derived: Variants that claims may name beside those of the run.
        look: How each variant is drawn.
        files: Further files beside the page, by name; the page links to them.
    """

    results: Sequence[TableOf]
    closing: Mapping[str, str] = field(default_factory=dict)
    claims: Sequence[Claim] | Callable[[Run], Sequence[Claim]] = ()
    lead: Sequence[FigureOf] = ()
    figures: Sequence[FigureOf] | Callable[[Run], Sequence[FigureOf]] = ()
    cards: Sequence[Card] | Callable[[Run], Sequence[Card]] = ()
    details: Sequence[TableOf] = ()
    missing: Callable[[Run], Sequence[str]] = lambda run: ()
    derived: Callable[[Run], Sequence[Variant]] = lambda run: ()
    look: Looks = looks
    files: Callable[[Run], Mapping[str, bytes]] = lambda run: {}
