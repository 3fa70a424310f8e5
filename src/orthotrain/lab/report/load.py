"""Run folders in, plain Python out: what a report is made of, and what is missing from it.

A folder that is no run, or a record broken in the middle, is a typed error. Everything a killed
or unfinished run leaves behind (a half last line, a seed without a result) is read as far as it
goes and becomes a note that the page prints.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from orthotrain.errors import ConfigError, DataError
from orthotrain.lab.report.rows import NEEDED, Row, number, read_metrics, read_text, text

SCHEMA: Final = 1
LOW_RANK: Final = "lowrank"
SPECTRAL: Final = "spectral"
LATENT: Final = "latent"
FAMILIES: Final = (LOW_RANK, SPECTRAL, LATENT)
BASELINE: Final = "dense"
RIVAL: Final = "narrow"
# Below three seeds a spread says almost nothing (oialr.md reports three everywhere).
MIN_SEEDS: Final = 3


@dataclass(frozen=True)
class SeedRun:
    """One training of one variant.

    Attributes:
        seed: Its random seed.
        rows: The lines of ``metrics.jsonl`` by kind, ordered by step.
        result: ``result.json``, or ``None`` where the training did not reach its end.
    """

    seed: int
    rows: Mapping[str, Sequence[Row]]
    result: Row | None

    @property
    def last_step(self) -> int:
        """The last optimizer step with a record; 0 where there is none."""
        return max(
            (int(number(row, "step")) for rows in self.rows.values() for row in rows), default=0
        )

    def final(self, key: str) -> float:
        """A number of the result; NaN where it, or the whole result, is missing."""
        return math.nan if self.result is None else number(self.result, key)


@dataclass(frozen=True)
class Variant:
    """One column of the comparison: all seeds of one way to train.

    Attributes:
        name: Name of its folder.
        title: What the page calls it.
        note: One sentence about it, may be empty.
        seeds: Its trainings, ordered by seed, finished or not.
        planned: How many seeds run.json asks for, at least those found.
        treatments: What a spectral run does to the layer, such as ``("root", "nog")``.
    """

    name: str
    title: str
    note: str
    seeds: tuple[SeedRun, ...]
    planned: int
    treatments: tuple[str, ...] = ()

    @property
    def finished(self) -> tuple[SeedRun, ...]:
        """The seeds that have a result."""
        return tuple(seed for seed in self.seeds if seed.result is not None)

    @property
    def factored(self) -> bool:
        """Whether any layer of any seed ever left its dense form."""
        return any(
            row.get("form", "dense") != "dense" for seed in self.seeds for row in seed.rows["rank"]
        )


@dataclass(frozen=True)
class Run:
    """One run folder.

    Attributes:
        path: The folder.
        slug: A short name, unique in its report and safe in file names.
        info: ``run.json``.
        config: ``config.yaml`` as text, ``None`` where there is none.
        variants: In the order of ``run.json``, then those found only on disk.
        notes: What is missing or was left out, one sentence each.
    """

    path: Path
    slug: str
    info: Row
    config: str | None
    variants: tuple[Variant, ...]
    notes: tuple[str, ...]

    @property
    def family(self) -> str:
        """Which kind of experiment it is, one of ``FAMILIES``."""
        return _family(self.info)

    @property
    def baseline_name(self) -> str:
        """Name of the variant without any treatment."""
        return BASELINE if self.family == LOW_RANK else text(self.info, "baseline")

    @property
    def baseline(self) -> Variant | None:
        """The dense network, or the one without a spectral layer, that others are held against."""
        return next((v for v in self.variants if v.name == self.baseline_name), None)

    @property
    def rival(self) -> Variant | None:
        """The narrower dense network of the same stored size."""
        return next((v for v in self.variants if v.name.startswith(RIVAL)), None)

    @property
    def low_rank(self) -> tuple[Variant, ...]:
        """The variants with layers in low-rank form."""
        return tuple(v for v in self.variants if v.factored)

    @property
    def dense_size(self) -> float:
        """Stored numbers of the dense network, 100 % in every figure; NaN where unknown.

        The baseline's own count where it finished. Otherwise the largest count that any variant
        recorded for the dense form of its network: a narrow network's is smaller.
        """
        baseline = self.baseline
        finished = baseline.finished if baseline is not None else ()
        known = [seed.final("stored") for seed in finished] or [
            count
            for variant in self.variants
            for seed in variant.seeds
            for count in (seed.final("dense"), *(number(r, "dense") for r in seed.rows["size"]))
        ]
        return max((value for value in known if math.isfinite(value)), default=math.nan)


def load_run(path: Path, *, slug: str | None = None) -> Run:
    """Read one run folder.

    Args:
        path: The folder that ``orthotrain train`` wrote: ``run.json`` beside ``variants/``.
        slug: A name that is unique in the report. Defaults to the folder's name.

    Returns:
        The run with everything that could be read, and notes on the rest.

    Raises:
        DataError: ``path`` or its ``run.json`` does not exist, or a record is broken elsewhere
            than in its last line.
        ConfigError: ``run.json`` is no run description of this schema.
    """
    info = _read_info(path)
    notes: list[str] = []
    declared = _declared_variants(path, info)
    folder = path / "variants"
    on_disk = sorted(p.name for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []
    unlisted = [name for name in on_disk if name not in declared]
    notes += [
        f"The folder holds a variant '{name}' that run.json does not list; it is shown last."
        for name in unlisted
    ]
    variants = tuple(
        _read_variant(folder / name, declared.get(name, {}), _declared_seeds(info), notes)
        for name in [*declared, *unlisted]
    )
    config_path = path / "config.yaml"
    config = read_text(config_path) if config_path.is_file() else None
    if config is None:
        notes.append("There is no config.yaml, so the resolved configuration is not shown.")
    run = Run(path, slug or path.resolve().name, info, config, variants, ())
    notes += _missing(run)
    return Run(path, run.slug, info, config, variants, tuple(notes))


def _read_info(path: Path) -> Row:
    advice = "Give the folder that 'orthotrain train' printed, the one that holds run.json."
    if not path.is_dir():
        raise DataError(f"report needs a run folder; got {path}, which is no folder. {advice}")
    file = path / "run.json"
    if not file.is_file():
        raise DataError(f"report needs run.json in {path}; there is none. {advice}")
    info = _read_object(file)
    if info.get("schema") != SCHEMA:
        raise ConfigError(
            f"report reads run folders of schema {SCHEMA}; {file} says {info.get('schema')!r}. "
            "Use the version of orthotrain that wrote it, or train again."
        )
    family = _family(info)
    if family not in FAMILIES:
        raise ConfigError(
            f"report knows runs of the families {', '.join(FAMILIES)}; {file} says {family!r}. "
            "Use the version of orthotrain that wrote it."
        )
    return info


def _family(info: Row) -> str:
    """The folder of the page that the run names, such as ``...experiments.lowrank.page:PAGE``."""
    page = text(info, "page", "").partition(":")[0].split(".")
    return page[-2] if len(page) > 1 else text(info, "family", LOW_RANK)


def _read_object(file: Path) -> Row:
    try:
        value = json.loads(read_text(file))
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"report needs a JSON object in {file}; line {error.lineno} is broken ({error.msg}). "
            "Restore the file from the run, or remove it to report without it."
        ) from error
    if not isinstance(value, dict):
        raise ConfigError(f"report needs a JSON object in {file}; got a {type(value).__name__}.")
    return value


def _declared_variants(path: Path, info: Row) -> dict[str, Row]:
    listed = info.get("variants", [])
    well_formed = isinstance(listed, list) and all(
        isinstance(item, dict) and isinstance(item.get("name"), str) for item in listed
    )
    if not isinstance(listed, list) or not well_formed:
        raise ConfigError(
            f"report needs 'variants' in {path / 'run.json'} to be a list of objects with a "
            f"'name'; got {listed!r}. Restore run.json from the run."
        )
    return {item["name"]: item for item in listed}


def _declared_seeds(info: Row) -> list[int]:
    seeds = info.get("seeds", [])
    return [seed for seed in seeds if isinstance(seed, int)] if isinstance(seeds, list) else []


def _read_variant(
    folder: Path, described: Row, declared_seeds: Sequence[int], notes: list[str]
) -> Variant:
    name = folder.name
    title = text(described, "title", name)
    found: dict[int, Path] = {}
    for child in folder.glob("seed-*"):
        number_part = child.name.removeprefix("seed-")
        if child.is_dir() and number_part.lstrip("-").isdigit():
            found[int(number_part)] = child
    seeds = []
    planned = sorted({*found, *declared_seeds})
    for seed in planned:
        if seed in found:
            seeds.append(_read_seed(found[seed], title, seed, notes))
        elif found:
            notes.append(f"{title}: seed {seed} has no folder; it was never started.")
    if not found:
        notes.append(f"{title}: no results at all; it was never started.")
    treatments = described.get("treatments")
    listed = tuple(map(str, treatments)) if isinstance(treatments, list) else ()
    return Variant(name, title, text(described, "note"), tuple(seeds), len(planned), listed)


def _read_seed(folder: Path, title: str, seed: int, notes: list[str]) -> SeedRun:
    metrics = folder / "metrics.jsonl"
    rows: dict[str, list[Row]] = {kind: [] for kind in NEEDED}
    if metrics.is_file():
        rows, said = read_metrics(metrics)
        notes += [f"{title}, seed {seed}: {sentence}" for sentence in said]
    else:
        notes.append(f"{title}, seed {seed}: there is no metrics.jsonl, so no curve shows it.")
    result = folder / "result.json"
    run = SeedRun(seed, rows, _read_object(result) if result.is_file() else None)
    if run.result is None:
        notes.append(
            f"{title}, seed {seed}: no result.json; the training stopped or is still going "
            f"(last record at step {run.last_step}). Its curves are drawn, its end is not counted."
        )
    return run


def _missing(run: Run) -> list[str]:
    """What the whole run lacks, one sentence each."""
    notes = []
    if not run.variants:
        notes.append("run.json lists no variant and none is on disk: there is nothing to compare.")
    notes += _missing_of_low_rank(run) if run.family == LOW_RANK else []
    for variant in run.variants:
        count = len(variant.finished)
        if 0 < count < MIN_SEEDS:
            notes.append(
                f"{variant.title}: {count} finished seed{'s' if count > 1 else ''}, fewer than "
                f"{MIN_SEEDS}; read its spread as a hint only."
            )
        # A generator has no accuracy.
        classified = variant.finished if run.family != LATENT else ()
        untested = [str(s.seed) for s in classified if math.isnan(s.final("test_accuracy"))]
        if untested:
            notes.append(f"{variant.title}: no test accuracy for seed {', '.join(untested)}.")
    return notes


def _missing_of_low_rank(run: Run) -> list[str]:
    notes = []
    if run.baseline is None:
        notes.append(
            f"There is no variant '{BASELINE}', so nothing is compared with a dense network; "
            "sizes are percentages of the largest dense count recorded."
        )
    elif not run.baseline.finished:
        notes.append("The dense variant has no finished seed, so nothing is compared with it.")
    if run.rival is None and run.low_rank:
        notes.append("There is no narrow dense network of the same stored size to compare with.")
    return notes
