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
from orthotrain.lab.report.rows import Row, number, read_metrics, read_text, text

SCHEMA: Final = 1


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

    def of_kind(self, kind: str) -> Sequence[Row]:
        """The lines of one kind; none where the training wrote none."""
        return self.rows.get(kind, ())


@dataclass(frozen=True)
class Variant:
    """All seeds of one way to train.

    Attributes:
        name: Name of its folder.
        title: What the page calls it.
        note: One sentence about it, may be empty.
        seeds: Its trainings, ordered by seed, finished or not.
        planned: How many seeds run.json asks for, at least those found.
        treatments: What is done to the network, such as ``("root", "nog")``; may be empty.
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
    def last_step(self) -> int:
        """The last step with a record in any seed; 0 where there is none."""
        return max((seed.last_step for seed in self.seeds), default=0)


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
    def baseline_name(self) -> str:
        """Name of the variant that the others are compared with, as ``run.json`` has it."""
        return text(self.info, "baseline")

    @property
    def baseline(self) -> Variant | None:
        """That variant; ``None`` where the run has none of that name."""
        return self.variant(self.baseline_name)

    def variant(self, name: str) -> Variant | None:
        """The variant of this name, finished or not."""
        return next((v for v in self.variants if v.name == name), None)

    def finished(self, name: str) -> Variant | None:
        """The variant of this name, where it has a finished seed."""
        found = self.variant(name)
        return found if found is not None and found.finished else None


def load_run(path: Path, *, slug: str | None = None) -> Run:
    """Read one run folder, or the file of one training.

    Args:
        path: The folder that ``orthotrain train`` wrote: ``run.json`` beside ``variants/``. Or a
            file of lines that ``orthotrain.diagnostics.JsonlWriter`` wrote.
        slug: A name that is unique in the report. Defaults to the folder's name.

    Returns:
        The run with everything that could be read, and notes on the rest.

    Raises:
        DataError: ``path`` or its ``run.json`` does not exist, or a record is broken elsewhere
            than in its last line.
        ConfigError: ``run.json`` is no run description of this schema.
    """
    if path.is_file():
        return _run_of_file(path, slug or path.stem)
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


def _run_of_file(path: Path, slug: str) -> Run:
    """One training, without a result; the general page shows what was recorded."""
    rows, notes = read_metrics(path)
    if not rows.keys() - {"run"}:  # the first line of a file, which is no record
        raise DataError(
            f"report needs lines in {path}; it has none yet. Train on until something is recorded."
        )
    seed = SeedRun(0, rows, None)
    return Run(path, slug, {}, None, (Variant(path.stem, path.stem, "", (seed,), 1),), tuple(notes))


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
    return info


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
    rows: dict[str, list[Row]] = {}
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
    notes: list[str] = []
    if (run.path / "tune.json").exists():
        return notes  # the trials of a search lie in a folder of their own
    if not run.variants:
        notes.append("run.json lists no variant and none is on disk: there is nothing to compare.")
    elif run.baseline_name and run.baseline is None:
        notes.append(
            f"There is no variant '{run.baseline_name}', the baseline named in run.json, so "
            "nothing is compared with it."
        )
    elif run.baseline is not None and not run.baseline.finished:
        notes.append(
            f"The baseline, {run.baseline.title}, has no finished seed, so nothing is compared "
            "with it."
        )
    return notes
