"""Tables that every page ends with: the settings of each variant, and where the run was made."""

from __future__ import annotations

from collections.abc import Mapping

from orthotrain.lab.report.load import Run, Variant
from orthotrain.lab.report.stats import MISSING
from orthotrain.lab.report.tables import Cell, Table


def settings_table(run: Run) -> Table:
    """One row per setting, one column per variant; different values between seeds are listed."""
    by_variant = [_settings(variant) for variant in run.variants]
    names = dict.fromkeys(name for settings in by_variant for name in settings)
    rows = tuple(
        (Cell(name), *(Cell(settings.get(name, MISSING)) for settings in by_variant))
        for name in names
    )
    return Table(
        "settings",
        "Settings",
        ("Setting", *(variant.title for variant in run.variants)),
        ("setting", *(variant.name for variant in run.variants)),
        rows,
        empty="No finished seed recorded its settings.",
    )


def _settings(variant: Variant) -> dict[str, str]:
    seen: dict[str, dict[str, None]] = {}
    for seed in variant.finished:
        settings = seed.result.get("settings") if seed.result is not None else None
        for name, value in flatten(settings if isinstance(settings, dict) else {}):
            seen.setdefault(name, {})[value] = None
    return {name: " | ".join(values) for name, values in seen.items()}


def flatten(tree: Mapping[str, object], prefix: str = "") -> list[tuple[str, str]]:
    """Nested objects as dotted names with their values as text."""
    flat: list[tuple[str, str]] = []
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat += flatten(value, f"{prefix}{key}.")
        else:
            flat.append((f"{prefix}{key}", "not set" if value is None else str(value)))
    return flat


def environment_table(run: Run) -> Table:
    """Everything ``run.json`` says about where and how the run was made."""
    described = {key: value for key, value in run.info.items() if key not in ("variants", "schema")}
    rows = tuple((Cell(name), Cell(value)) for name, value in flatten(described))
    empty = "run.json describes no environment."
    return Table(
        "environment", "Environment", ("What", "Value"), ("what", "value"), rows, (), empty
    )
