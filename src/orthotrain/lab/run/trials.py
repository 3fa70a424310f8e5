"""The search for settings of one variant: a study of Optuna, and the trials that are trained here.

Each trial trains the variant with the seeds of the search, in a folder of its own. A trial whose
process died is ended, and one with the same settings goes on from its checkpoint.
"""

from __future__ import annotations

import json
import random
import statistics
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any, Final

from orthotrain.errors import ConfigError, NonFiniteError
from orthotrain.lab.run.config import Variant
from orthotrain.lab.run.experiment import Experiment
from orthotrain.lab.run.jobs import Run
from orthotrain.lab.run.progress import OnProgress, Progress
from orthotrain.lab.run.record import differences, plain, read_json
from orthotrain.lab.run.space import COMPUTE, STORED, Number, OneOf, Part, own_config, with_settings
from orthotrain.lab.run.stop import pause
from orthotrain.lab.run.storage import Signs, load_optuna, opened, telling, without_password

SCHEMA: Final = 2
# Settings spread over the bounds before the sampler decides; also trials before one is pruned.
_SPREAD: Final = 8
# Percent of a training before it may be pruned.
_UNPRUNED: Final = 30


@dataclass(frozen=True)
class Searched:
    """One variant to search settings for.

    Attributes:
        run: Settings and folder of the search.
        experiment: The recipe.
        part: What is varied and aimed at.
        name: Of the search; that of the study begins so.
        trials: Settings to try.
        at_most: Budgets: the largest value that the chosen setting may have, by objective.
        journal: File or URL of the storage.
        seed: Of the sampler.
    """

    run: Run
    experiment: Experiment
    part: Part
    name: str
    trials: int
    journal: str
    at_most: Mapping[str, float]
    seed: int = 0

    def variant(self, settings: Mapping[str, Any], name: str) -> tuple[Run, Variant]:
        """A run with these settings, and the variant under another name."""
        config = with_settings(own_config(self.run.config, self.part.variant), settings)
        found = self.experiment.variant(config, self.part.variant)
        return replace(self.run, config=config), replace(found, name=name)

    @property
    def wanted(self) -> int:
        """Trials of this part."""
        return self.trials * self.part.times

    def needed(self) -> list[Variant]:
        """What the variant is built from or compared with, what is needed first in front."""
        found: dict[str, Variant] = {}

        def add(name: str) -> None:
            one = self.experiment.variant(self.run.config, name)
            needs = one.needs or ()
            for other in (needs,) if isinstance(needs, str) else needs:
                add(other)
            found[name] = one

        add(self.part.variant)
        del found[self.part.variant]
        if self.part.beside:
            add(self.part.beside)
        return list(found.values())

    def listed(self) -> list[dict[str, Any]]:
        """Every setting in a drawn order, where all are lists; else nothing."""
        lists = {k: one.values for k, one in self.part.space.items() if isinstance(one, OneOf)}
        if len(lists) < len(self.part.space):
            return []
        every = [dict(zip(lists, values, strict=True)) for values in product(*lists.values())]
        return random.Random(self.seed).sample(every, len(every))

    def spread(self) -> list[dict[str, Any]]:
        """The first settings: a Sobol sequence over the bounds, where random ones would cluster."""
        from scipy.stats.qmc import Sobol

        shares = Sobol(len(self.part.space), rng=self.seed).random(_SPREAD)
        named = self.part.space.items()
        return [
            {name: one.at(share) for (name, one), share in zip(named, row, strict=True)}
            for row in shares.tolist()
        ]

    def described(self) -> dict[str, Any]:
        """What must be the same for all commands that share the study, as plain values."""
        space = {name: {"kind": type(one).__name__, **asdict(one)} for name, one in
                 self.part.space.items()}  # fmt: skip
        told = {
            "schema": SCHEMA,
            "variant": self.part.variant,
            "space": space,
            "aims": [asdict(aim) for aim in self.part.aims],
            "at_most": dict(self.at_most),
            "sampler_seed": self.seed,
            "settings": plain(self.run.config),
        }
        described: dict[str, Any] = json.loads(json.dumps(told))
        return described


class Trials:
    """The trials of a variant.

    Raises:
        MissingPackageError: Optuna is not installed.
        ConfigError: The storage cannot be used, or holds another study of this name.
    """

    def __init__(self, searched: Searched, *, stale_seconds: float) -> None:
        self._optuna = load_optuna("tune")
        self._states = self._optuna.trial.TrialState
        self._searched = searched
        with telling(searched.journal):
            self._storage = opened(searched.journal, what="tune")
            self._signs = Signs(self._storage, where=searched.journal, stale_seconds=stale_seconds)
            self.study = self._opened()

    def _opened(self) -> Any:
        searched = self._searched
        name = f"{searched.name}: {searched.part.variant}"
        study = self._optuna.create_study(
            storage=self._storage,
            study_name=name,
            directions=["minimize" if aim.less else "maximize" for aim in searched.part.aims],
            pruner=self._optuna.pruners.MedianPruner(_SPREAD, _UNPRUNED),
            load_if_exists=True,
        )
        where = without_password(searched.journal)
        mine, there = searched.described(), study.user_attrs.get("search")
        if there is None:
            if study.get_trials(deepcopy=False):
                raise ConfigError(
                    f"--storage: {where} holds a study {name!r} that orthotrain tune "
                    "did not make; choose another file, or another name with --run-dir"
                )
            study.set_user_attr("search", mine)
        elif changed := differences(there, mine):
            raise ConfigError(
                f"--storage: {where} holds a study {name!r} of another search or "
                f"version ({'; '.join(changed[:4])}); choose another file, or another name with "
                "--run-dir"
            )
        return study

    def running(self) -> list[Any]:
        """Trials that run, here or elsewhere."""
        found: list[Any] = self.study.get_trials(deepcopy=False, states=(self._states.RUNNING,))
        return found

    def take(self) -> Any | None:
        """A trial to train; None where there are as many as are wanted."""
        for trial in self.running():
            if not self._signs.alive(trial):
                self.free(trial)
        kept = self._kept()
        waits = any(one.state == self._states.WAITING for one in kept)
        listed = self._searched.listed()
        fixed = listed or self._searched.spread()
        left = [one for one in fixed if one not in [trial.params for trial in kept]]
        if not waits and (len(kept) >= self._searched.wanted or (listed and not left)):
            return None
        if left and not waits:
            self.study.enqueue_trial(left[0])
        # A sampler for each trial: a search that goes on draws what it would have drawn.
        self.study.sampler = self._optuna.samplers.TPESampler(
            seed=self._searched.seed + len(kept), n_startup_trials=_SPREAD
        )
        trial = self.study.ask(
            {name: self._distribution(one) for name, one in self._searched.part.space.items()}
        )
        # Of two workers that saw one place, or one setting, left the second one goes without.
        kept = self._kept()
        place = [one.number for one in kept].index(trial.number)
        if place >= self._searched.wanted:
            self.study.tell(trial, state=self._states.FAIL)
            return None
        # Where nothing fixed was left, the sampler may come back to a setting.
        if (left or listed) and trial.params in [one.params for one in kept[:place]]:
            self.study.tell(trial, state=self._states.FAIL)
            return self.take()
        if "origin" not in trial.user_attrs:
            trial.set_user_attr("origin", trial.number)
        return trial

    def _kept(self) -> list[Any]:
        """All trials but those that died, in their order."""
        trials = self.study.get_trials(deepcopy=False)
        return [trial for trial in trials if trial.state != self._states.FAIL]

    def _distribution(self, one: Number | OneOf) -> Any:
        kinds = self._optuna.distributions
        if isinstance(one, OneOf):
            return kinds.CategoricalDistribution(one.values)
        if one.whole:
            return kinds.IntDistribution(int(one.low), int(one.high), log=one.log)
        return kinds.FloatDistribution(float(one.low), float(one.high), log=one.log)

    def free(self, trial: Any) -> None:
        """End a trial that runs, and leave one with the same settings for whoever comes next."""
        known = self._storage.get_trial(trial._trial_id)
        # Of several that see a dead one the first does it.
        with suppress(self._optuna.exceptions.UpdateFinishedTrialError):
            self._storage.set_trial_state_values(trial._trial_id, self._states.FAIL)
            self.study.add_trial(
                self._optuna.trial.create_trial(
                    state=self._states.WAITING,
                    params=known.params,
                    distributions=known.distributions,
                    intermediate_values=known.intermediate_values,
                    user_attrs={"origin": known.user_attrs.get("origin", known.number)},
                    # One that had just been taken has its settings here alone.
                    system_attrs={
                        "fixed_params": {
                            **known.system_attrs.get("fixed_params", {}),
                            **known.params,
                        }
                    },
                )
            )

    def train(self, trial: Any, *, on_progress: OnProgress) -> None:
        """Train a trial, or go on with it, and say what it reached."""
        try:
            with self._signs.given(trial._trial_id, f"trial {trial.number}"):
                values = self._values(trial, on_progress)
        except BaseException:
            self.free(trial)
            raise
        if values is None:
            self.study.tell(trial, state=self._states.PRUNED)
        else:
            self.study.tell(trial, values)

    def _values(self, trial: Any, on_progress: OnProgress) -> list[float] | None:
        """What each objective reached; None where the trial was given up."""
        searched, part = self._searched, self._searched.part
        settings = part.settings(own_config(searched.run.config, part.variant), trial.params)
        trial.set_user_attr("settings", settings)
        run, variant = searched.variant(
            settings, f"{part.variant}-trial-{trial.user_attrs['origin']:04d}"
        )
        results = []
        for seed in run.config.seeds:
            if not run.result((variant.name, seed)).exists():
                try:
                    run.train_one(variant, seed, on_progress=self._judged(trial, on_progress))
                except self._optuna.TrialPruned:
                    return None
                except (NonFiniteError, ConfigError) as error:  # also: no rank meets the budget
                    trial.set_user_attr("why", str(error))
                    return None
            results.append(read_json(run.result((variant.name, seed))))
        known = {aim.name: aim for aim in (STORED, COMPUTE, *part.aims)}
        for name, most in searched.at_most.items():
            value = statistics.fmean(map(known[name].read, results))
            trial.set_constraint(name, value - most)
        return [statistics.fmean(map(aim.read, results)) for aim in part.aims]

    def _judged(self, trial: Any, on_progress: OnProgress) -> OnProgress:
        """Progress that gives a trial up where it is worse than half of the others were."""
        searched, aims = self._searched, self._searched.part.aims
        reported = {*self._storage.get_trial(trial._trial_id).intermediate_values}

        def tell(progress: Progress) -> None:
            on_progress(progress)
            # Optuna prunes by one objective, and a budget is known at the end only.
            if progress.stage != "evaluated" or len(aims) > 1 or searched.at_most:
                return
            value = progress.looked.get(aims[0].looked)
            if value is None or progress.seed != searched.run.config.seeds[0]:
                return
            place = round(100 * progress.step / progress.total_steps)
            if place not in reported:  # by a command that died
                trial.report(value, place)
            if trial.should_prune():
                raise self._optuna.TrialPruned

        return tell


def try_settings(searched: Searched, stale_seconds: float, *, on_progress: OnProgress) -> None:
    """Train trials until there are as many as are wanted and none of them runs any more."""
    trials = Trials(searched, stale_seconds=stale_seconds)
    while True:
        if (trial := trials.take()) is not None:
            trials.train(trial, on_progress=on_progress)
        elif trials.running():
            pause(stale_seconds / 8)
        else:
            return
