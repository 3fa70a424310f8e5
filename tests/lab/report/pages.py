"""A page as a browser gets it, and the tables of a run as their readers get them."""

import csv
import io
from html.parser import HTMLParser

from orthotrain.lab.report import write_report
from orthotrain.lab.report.claims import answer
from orthotrain.lab.report.load import load_run
from orthotrain.lab.report.page_of import page_of as declared
from orthotrain.lab.report.style import LIGHT
from orthotrain.lab.report.tables import given

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Collects tags with their attributes and visible text; fails on a wrong nesting."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.words = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("script", "style"):
            self.words.append(data)

    def text(self):
        return " ".join(" ".join(self.words).split())

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def undrawn(monkeypatch):
    """Pages without drawing, for tests of what is written around the figures."""
    monkeypatch.setattr("orthotrain.lab.report.write.to_png", lambda figure: b"png")
    monkeypatch.setattr("orthotrain.lab.report.write.THEMES", (LIGHT,))


def page_of(*folders, out=None):
    return Page(write_report(list(folders), out).read_text())


def notes_of(folder):
    """What the page of a run says is missing."""
    run = load_run(folder)
    return " ".join([*run.notes, *declared(run)[0].missing(run)])


def plots_of(run):
    """Every figure of a run, by name."""
    page, _ = declared(run)
    plots = [figure.plot(run, page.look) for figure in (*page.lead, *given(page.figures, run))]
    return {plot.name: plot for plot in plots}


def tables_of(run):
    """Every declared table of a run, by name."""
    page, _ = declared(run)
    cards = [table for card in given(page.cards, run) for table in card.tables]
    tables = [one.table(run) for one in (*page.results, *cards, *page.details)]
    return {table.name: table for table in tables}


def read(table):
    """The lines of a table's CSV file."""
    return list(csv.DictReader(io.StringIO(table.csv())))


def answers_of(run):
    """What the page of a run answers, by question."""
    page, _ = declared(run)
    derived = page.derived(run)
    answers = [answer(run, claim, derived=derived) for claim in given(page.claims, run)]
    return {found.claim.question: found for found in answers}
