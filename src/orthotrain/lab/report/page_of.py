"""The page of a run: the one that it names, or the general one."""

from __future__ import annotations

from orthotrain.errors import ConfigError
from orthotrain.lab.named import named
from orthotrain.lab.report.default import PAGE, WATCHED
from orthotrain.lab.report.load import Run
from orthotrain.lab.report.page import Page
from orthotrain.lab.report.rows import text


def page_of(run: Run) -> tuple[Page, tuple[str, ...]]:
    """The page that ``run.json`` names as ``module:attribute``, and notes about it.

    A run that names none, or one that is not installed here, has the general page. The file of one
    training has one of its own.

    Raises:
        ConfigError: What it names is no page.
    """
    name = text(run.info, "page")
    if not run.info:
        return WATCHED, ()
    if not name:
        return PAGE, ()
    try:
        found = named(name)
    except ConfigError as error:
        return PAGE, (f"The page {name} could not be loaded ({error}); this is the general one.",)
    if not isinstance(found, Page):
        raise ConfigError(
            f"report needs a Page under 'page' in run.json; {name} is a {type(found).__name__}. "
            "Correct the name, or remove it for the general page."
        )
    return found, ()
