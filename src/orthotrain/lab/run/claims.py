"""Which training is whose, where commands on several machines divide the trainings of a run.

A claim is a trial of a study in a storage of Optuna that is running: the first one that runs for a
training has it. Who has it gives signs of life. Where none came for a while the claim is ended, and
the training is free for others, who go on from its checkpoint.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from orthotrain.errors import ConfigError
from orthotrain.lab.run.record import RunFolder, differences, finite
from orthotrain.lab.run.storage import Signs, load_optuna, opened, telling

Name = tuple[str, int]

# The first command writes the description of the run at once after it made the study.
_PATIENCE_SECONDS: Final = 30.0


class Claims:
    """The claims of one worker on trainings of a run.

    Args:
        storage: A file, which becomes a journal of Optuna, or the URL of one of its storages, such
            as ``"sqlite:///run.db"``.
        folder: The run folder, which all workers share. Its name is that of the study.
        settings: Those of the run, plain values; the same for all workers.
        stale_seconds: A claim without a sign of life for so long is ended.

    Raises:
        MissingPackageError: Optuna is not installed.
        ConfigError: The storage cannot be opened; it holds a run of this name with other settings;
            or the folder is another one than that of the other workers.
    """

    def __init__(
        self,
        storage: str,
        folder: RunFolder,
        *,
        settings: Mapping[str, Any],
        stale_seconds: float,
    ) -> None:
        self._optuna = load_optuna()
        self._where = storage
        self._own: dict[Name, int] = {}
        with telling(storage):
            self._storage = opened(storage)
            self._signs = Signs(self._storage, where=storage, stale_seconds=stale_seconds)
            self._study = self._study_of(folder.path.resolve(), dict(settings))

    @property
    def seconds_between_signs(self) -> float:
        """Time between two signs of life of a claim."""
        return self._signs.seconds_between

    def take(self, names: Sequence[Name]) -> Name | None:
        """Claim the first of these trainings that nobody has; None where all are taken."""
        with telling(self._where):
            taken = {_name_of(trial) for trial in self._living()}
            for name in names:
                if name not in taken and self._take(name):
                    return name
        return None

    @contextmanager
    def held(self, name: Name) -> Iterator[dict[str, Any]]:
        """Give signs of life of a claim inside; end it after, as complete or, on an error, not.

        Where others have ended it, because this process stood still for too long, the process ends
        at once: another one trains in the folder now.

        Yields:
            For numbers of the result, which the storage shows.
        """
        trial = self._own.pop(name)
        found: dict[str, Any] = {}
        complete = False
        try:
            with self._signs.given(trial, f"{name[0]} with seed {name[1]}"):
                yield found
            complete = True
        finally:
            with telling(self._where):
                self._end(trial, complete=complete, found=found)

    def _running(self) -> list[Any]:
        states = self._optuna.trial.TrialState
        trials: list[Any] = self._storage.get_all_trials(
            self._study, deepcopy=False, states=(states.RUNNING,)
        )
        return trials

    def _living(self) -> list[Any]:
        """Claims that run and gave a sign of life lately; the others are ended."""
        living = []
        for trial in self._running():
            if self._signs.alive(trial):
                living.append(trial)
            else:
                self._end(trial._trial_id)
        return living

    def _take(self, name: Name) -> bool:
        """Begin a claim; whether it is the first that runs for this training."""
        trial = self._optuna.trial
        variant, seed = name
        mine = self._storage.create_new_trial(
            self._study,
            template_trial=trial.create_trial(
                state=trial.TrialState.RUNNING, user_attrs={"variant": variant, "seed": seed}
            ),
        )
        # All workers see claims in the same order.
        claims = [trial for trial in self._running() if _name_of(trial) == name]
        if min(claims, key=lambda trial: trial.number)._trial_id == mine:
            self._own[name] = mine
            return True
        self._end(mine)
        return False

    def _end(
        self, trial: int, *, complete: bool = False, found: Mapping[str, Any] | None = None
    ) -> None:
        states = self._optuna.trial.TrialState
        found = found or {}
        losses = [found[name] for name in ("validation_loss", "validation_bits") if name in found]
        # Where another worker was faster, there is nothing left to say.
        with suppress(self._optuna.exceptions.UpdateFinishedTrialError):
            for key, value in found.items():
                self._storage.set_trial_user_attr(trial, key, finite(value))
            self._storage.set_trial_state_values(
                trial, states.COMPLETE if complete else states.FAIL, losses or None
            )

    def _study_of(self, folder: Path, settings: dict[str, Any]) -> int:
        """The study of this run, made by the first worker, who marks the folder it trains in."""
        try:
            study = self._storage.create_new_study(
                [self._optuna.study.StudyDirection.MINIMIZE], folder.name
            )
        except self._optuna.exceptions.DuplicatedStudyError:
            study = self._storage.get_study_id_from_name(folder.name)
        else:
            mark = f".storage-{secrets.token_hex(8)}"
            (folder / mark).touch()
            self._storage.set_study_user_attr(study, "run", {"settings": settings, "mark": mark})
        run = self._described(study)
        if changed := differences(run["settings"], settings):
            raise ConfigError(
                f"--storage: {self._where} holds a run {folder.name} with other settings "
                f"({'; '.join(changed[:4])}); choose another file for this run, or another name "
                "for its folder with --run-dir"
            )
        if not (folder / run["mark"]).exists():
            raise ConfigError(
                f"--storage: the run {folder.name} in {self._where} trains in another folder than "
                f"{folder}; all workers need the same one, on storage that their machines share. "
                "For a new run choose another file, or another name with --run-dir"
            )
        return int(study)

    def _described(self, study: int) -> dict[str, Any]:
        began = time.monotonic()
        while time.monotonic() - began < _PATIENCE_SECONDS:
            run: dict[str, Any] | None = self._storage.get_study_user_attrs(study).get("run")
            if run is not None:
                return run
            time.sleep(0.1)
        raise ConfigError(
            f"--storage: {self._where} holds a study of this name that orthotrain train did not "
            "make, or that a killed command left unfinished; choose another file"
        )


def _name_of(trial: Any) -> Name:
    return trial.user_attrs.get("variant", ""), trial.user_attrs.get("seed", -1)
