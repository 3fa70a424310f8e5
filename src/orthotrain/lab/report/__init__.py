"""Reports of run folders: one self-contained page, its figures as PNG, its tables as CSV.

Reads files only and never imports torch, so a report can be made where no model can be. It knows
no experiment: ``run.json`` names the page of its own, ``"page": "package.module:PAGE"``, and a
run that names none has the general page of ``default``.

A page is one declaration, ``PAGE = Page(...)``, in a module without torch::

    ACCURACY = accuracy("test")                                   # measures: what is measured
    LOSS = Panel("Training loss", "step", field("loss"))
    PAGE = Page(
        results=(ByVariant("results", "Results", (ACCURACY,), seeds=True),),   # tables
        closing={"test_accuracy_percent": "test %"},               # the end of `orthotrain train`
        claims=(Claim("Is it more accurate?", (("ours", "dense"),), (ACCURACY,)),),
        lead=(),                                                  # figures above the tables
        figures=(
            Curves("curves", "Training", "How to read it.", (LOSS,)),  # a Panel each
            Values("values", "At the end", "How to read it.", (ACCURACY,)),
        ),
        details=(BySeed(raw("test_accuracy")),),                  # tables behind tabs
    )

Everything that depends on the run may be a function of it: measures of a table, claims, figures,
cards, panels of ``Curves``, maps of ``HeatMaps``.

=============  ===================================================================================
``load``       ``Run`` (``variants``, ``baseline``, ``variant(name)``, ``finished(name)``),
               ``Variant`` (``finished``, ``seeds``, ``treatments``), ``SeedRun`` (``final(key)`` of
               the result, ``of_kind(kind)`` of the records)
``rows``       ``field(key, scale=, **where)`` reads one number of a line of ``metrics.jsonl``
``stats``      ``Measure`` (key, title, read, unit, digits, better, logarithmic, aside), ``Spread``,
               ``paired_by_seed``, ``rank_correlation``; the one rule is ``Paired.verdict``
``measures``   ready measures: ``result``, ``accuracy``, ``error``, ``raw``, ``group``,
               ``end_values`` with ``typical``, ``mean``, ``median``
``claims``     ``Claim(question, pairs, measures, beside=, decide=)``; ``each`` pairs all
               variants with one
``tables``     ``ByVariant``, ``BySeed``, ``Compared`` (every comparison), ``Own`` (a function),
               ``Difference`` (a column)
``figures``    ``Curves`` of ``Panel`` and ``Values``; in ``heatmaps`` ``HeatMaps`` of ``HeatMap``;
               in ``scatter`` ``Scatter`` of ``Group`` and ``Over``: rivals in one picture.
               A figure of another kind is any object with ``plot(run, look) -> style.Plot``
``page``       ``Page`` and ``Card``; ``Page.derived`` gives further variants that claims may name,
               ``Page.files`` further files beside the page
=============  ===================================================================================
"""

from typing import TYPE_CHECKING

from orthotrain._names import lazy_names

if TYPE_CHECKING:
    from orthotrain.lab.report.closing import closing_table
    from orthotrain.lab.report.page import Page
    from orthotrain.lab.report.write import write_report

__all__ = ["Page", "closing_table", "write_report"]
_HOME = {"Page": "page", "closing_table": "closing", "write_report": "write"}

if not TYPE_CHECKING:  # a closing table needs no template, a page no figure
    __getattr__ = lazy_names(__name__, _HOME)
