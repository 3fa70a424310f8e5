"""The search for settings of a recipe: its parts one after the other, then what to take."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orthotrain.errors import ConfigError, WorkerError
from orthotrain.lab.run.experiment import Experiment
from orthotrain.lab.run.jobs import STALE_SECONDS, Run, run_all, threads_of
from orthotrain.lab.run.progress import OnProgress, ignore
from orthotrain.lab.run.space import Part
from orthotrain.lab.run.stop import termination_raises
from orthotrain.lab.run.storage import load_optuna
from orthotrain.lab.run.trials import Searched, Trials, try_settings
from orthotrain.lab.run.workers import workers_that_report

_logger = logging.getLogger("orthotrain")
# Of fewer finished trials no importance is told.
_FEWEST = 4


@dataclass(frozen=True)
class SearchOptions:
    """What a command wants of a search.

    Attributes:
        trials: Settings to try for each part.
        at_most: Largest value that the chosen setting may have, by objective.
        workers: Trials at a time.
        stale_seconds: A trial of another command without a sign of life for so long is dead.
    """

    trials: int
    at_most: Mapping[str, float]
    workers: int = 1
    stale_seconds: float = STALE_SECONDS


def run_search(
    run: Run,
    experiment: Experiment,
    parts: Sequence[Part],
    options: SearchOptions,
    *,
    name: str,
    on_progress: OnProgress = ignore,
) -> list[dict[str, Any]]:
    """Search the settings of each part; trials that are done are not done again.

    Args:
        run: Settings and folder, opened and locked. Without a storage it is this command's alone,
            and its journal lies in the folder.
        experiment: The recipe.
        parts: What to search.
        options: How much.
        name: Of the search; the same for all commands that share it.
        on_progress: Told of every training.

    Returns:
        Per part what tune.json says; a part without a setting to take is told and left out.

    Raises:
        MissingPackageError: Optuna is not installed.
        ConfigError: The storage holds another study, or no trial ended within the budget.
        WorkerError: A worker process was killed; the same command goes on with its trial.
    """
    told, without = [], []
    journal = run.storage or str(run.folder.path / "search.journal")
    load_optuna("tune")
    for part in parts:
        searched = Searched(run, experiment, part, name, options.trials, journal, options.at_most)
        trials = Trials(searched, stale_seconds=options.stale_seconds)
        if run.storage is None:  # Nobody else is here: what runs was left by a command that died.
            for trial in trials.running():
                trials.free(trial)
        run_all(run, searched.needed(), workers=options.workers, on_progress=on_progress)
        with termination_raises():
            _try(searched, options, on_progress=on_progress)
        try:
            told.append(outcome(searched, trials.study))
        except ConfigError as error:
            without.append(str(error))
    if not told:
        raise ConfigError("; ".join(without))
    for one in without:
        _logger.warning("%s", one)
    return told


def _try(searched: Searched, options: SearchOptions, *, on_progress: OnProgress) -> None:
    threads = searched.run.config.threads
    if options.workers == 1:
        with threads_of(threads):
            try_settings(searched, options.stale_seconds, on_progress=on_progress)
        return
    with workers_that_report(options.workers, threads=threads, on_progress=on_progress) as submit:
        work = [
            submit(try_settings, searched, options.stale_seconds) for _ in range(options.workers)
        ]
        for future in work:
            try:
                future.result()
            except WorkerError as error:
                raise WorkerError(
                    f"tune: a worker process did not finish: {error}; the same command goes on, "
                    "from the last checkpoint of the trial"
                ) from error


def outcome(searched: Searched, study: Any) -> dict[str, Any]:
    """All trials of a part, its front, the importance of each setting, and what to take."""
    part = searched.part
    ended = [one for one in study.get_trials(deepcopy=False) if one.state.name != "FAIL"]
    trials = [
        {
            "trial": one.user_attrs.get("origin", one.number),
            "state": one.state.name.lower(),
            "settings": one.user_attrs.get("settings", {}),
            "at_edge": [k for k, v in one.params.items() if part.space[k].at_edge(v)],
            "values": dict(zip(_names(part), one.values, strict=True)) if _done(one) else {},
            "why": one.user_attrs.get("why", ""),
        }
        for one in ended
    ]
    over = {
        one.user_attrs["origin"] for one in ended if max(one.constraints.values(), default=0.0) > 0
    }
    done = [one for one in trials if one["values"] and one["trial"] not in over]
    if not done:
        why = next((f" ({one['why']})" for one in trials if one["why"]), "")
        raise ConfigError(
            f"tune: no trial of {part.variant} ended"
            + (f" within {dict(searched.at_most)}" if searched.at_most else "")
            + f"{why}; give more --trials, or a larger --at-most with another --run-dir"
        )
    best = {one.user_attrs["origin"] for one in study.best_trials}
    front = [one for one in done if one["trial"] in best]
    yardstick = _yardstick(searched)
    chosen = choose(part, front, beside=yardstick)
    return {
        **searched.described(),
        "objectives": {aim.name: "less" if aim.less else "more" for aim in part.aims},
        "trials": trials,
        "front": [one["trial"] for one in front],
        "importance": _importance(study, part),
        "beside": yardstick,
        "chosen": chosen,
    }


def _names(part: Part) -> list[str]:
    return [aim.name for aim in part.aims]


def _done(trial: Any) -> bool:
    return bool(trial.state.name == "COMPLETE")


def _yardstick(searched: Searched) -> float | None:
    """The loss of the variant beside, with the seeds of the search."""
    part, run = searched.part, searched.run
    if not part.beside:
        return None
    results = run.folder.results(part.beside, run.config.seeds)
    return statistics.fmean(map(part.aims[0].read, results))


def choose(
    part: Part, front: Sequence[dict[str, Any]], *, beside: float | None = None
) -> dict[str, Any]:
    """One trial of the front: the best loss, or the least of the second objective close to it.

    Args:
        part: What was aimed at.
        front: Its trials, at least one.
        beside: The loss that the chosen one may lie ``part.within`` above; the best one's if None.
    """
    first, *others = part.aims
    sign = 1.0 if first.less else -1.0

    def loss(one: Mapping[str, Any]) -> float:
        return sign * float(one["values"][first.name])

    best = min(front, key=lambda one: (loss(one), one["trial"]))
    if not others:
        return best
    second = others[0]
    reach = (loss(best) if beside is None else sign * beside) + part.within
    close = [one for one in front if loss(one) <= reach]
    turn = 1.0 if second.less else -1.0
    return min(close or [best], key=lambda one: (turn * one["values"][second.name], loss(one)))


def _importance(study: Any, part: Part) -> dict[str, dict[str, float]]:
    """Of each setting for each objective, by functional analysis of variance; sums to one."""
    optuna = load_optuna("tune")
    done = [one for one in study.get_trials(deepcopy=False) if _done(one)]
    found: dict[str, dict[str, float]] = {}
    for place, name in enumerate(_names(part)):
        if len(done) < _FEWEST or len({one.values[place] for one in done}) < 2:
            continue
        found[name] = optuna.importance.get_param_importances(
            study,
            evaluator=optuna.importance.FanovaImportanceEvaluator(seed=0),
            target=lambda one, place=place: one.values[place],
        )
    return found
