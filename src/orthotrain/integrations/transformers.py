"""Methods in a ``Trainer`` of Transformers: one callback."""

from __future__ import annotations

import hashlib
import json
import sys
import weakref
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from orthotrain.errors import CheckpointError, ConfigError
from orthotrain.extras import missing_package
from orthotrain.integrations._logged import logged
from orthotrain.integrations._pretrained import (
    from_pretrained,
    load_marked,
    own_state,
    save_pretrained,
)
from orthotrain.integrations._resumed import require_checkpoint_of
from orthotrain.lowrank import follow
from orthotrain.lowrank.names import is_factored_name
from orthotrain.lowrank.pretrained import STATE_FILE, has_own_names, shapes_in, write_state
from orthotrain.methods import Method, attach
from orthotrain.methods.handle import Handle
from orthotrain.methods.select import unwrap

try:
    from transformers import TrainerCallback
    from transformers.trainer_callback import CallbackHandler
except ModuleNotFoundError as error:
    raise missing_package(__name__, "transformers", extra="transformers") from error

__all__ = ["OrthotrainCallback", "from_pretrained", "save_pretrained"]

#: The callbacks that were given to a Trainer of a model, one Trainer after the other.
_callbacks: weakref.WeakKeyDictionary[nn.Module, weakref.WeakSet[OrthotrainCallback]] = (
    weakref.WeakKeyDictionary()
)


class OrthotrainCallback(TrainerCallback):  # type: ignore[misc]
    """Makes methods act in a ``transformers.Trainer``: ``callbacks=[OrthotrainCallback(method)]``.

    The model takes the structure of a checkpoint that is resumed, methods are attached at the
    begin of ``train()`` with its number of steps, and detached at its end. Each checkpoint folder
    gets a file ``orthotrain.pt`` with the methods' state, and with the model's own state dict
    where Transformers writes other names into its file. A resumed run goes on bit for bit.

    Sizes and ranks are added to what is logged, as ``orthotrain/...``. A loss is observed at each
    step where the model's output has one. Where it is not seen, as in a compiled model, the
    mean that the ``Trainer`` logs is observed instead.

    Args:
        *methods: What acts, such as ``AdaptiveLowRank()``.
        resume_from: Folder of the checkpoint that ``train`` resumes from, where that is not a
            folder ``checkpoint-N`` in ``output_dir``. Callbacks are not told.

    Attributes:
        handle: That of the latest ``train()``; its summary and records stay after it.
    """

    def __init__(self, *methods: Method, resume_from: str | Path | None = None) -> None:
        if not methods:
            raise ConfigError(
                "OrthotrainCallback needs at least one method, such as AdaptiveLowRank()"
            )
        self._methods = methods
        self._resume_from = resume_from
        self._losses = 0
        self._state: Any = None  # the Trainer's
        self.handle: Handle | None = None

    # --- what the Trainer calls ---------------------------------------------------------------

    def on_init_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Let the model follow the checkpoint it may load, and come before the loggers."""
        model = kwargs["model"]
        if model is not None:  # else made by model_init at each train()
            self._claim(model, state)
            follow(model)
        trainer = _trainer_with(self)
        if trainer is not None:
            # Loggers stand before the callbacks of a user, and write what they are given.
            trainer.callback_handler.callbacks.remove(self)
            trainer.callback_handler.callbacks.insert(0, self)
            # Callbacks are not told before a checkpoint is loaded.
            load = trainer._load_from_checkpoint
            trainer._load_from_checkpoint = partial(_load_own, trainer, load)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Attach; take back the state of the checkpoint that is resumed."""
        model, optimizer = kwargs["model"], kwargs["optimizer"]
        others = self._claim(model, state)
        for each in others:
            if _trainer_with(each) is not None:
                raise ConfigError(
                    "OrthotrainCallback: another Trainer is training this model at the moment, "
                    "with a callback of its own; train one after the other, or give this one a "
                    "copy.deepcopy of the model"
                )
        for earlier in others:
            earlier._end()  # of a run that ended with an exception, which callbacks are not told
        self._end()
        saved = None
        if state.global_step > 0:
            folder = self._folder_of(args, state)
            saved = _read(folder, state)
            if saved["model"] is not None:
                follow(model).load_state_dict(saved["model"])
            elif not _has_form(model, folder):  # made by model_init: it did not follow
                load_marked(unwrap(model), folder)
        self.handle = attach(model, optimizer, *self._methods, total_steps=state.max_steps)
        if saved is not None:
            self.handle.load_state_dict(saved["handle"])

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the state beside the checkpoint that was just written."""
        if self.handle is None or not args.should_save:
            return
        folder = Path(_output_folder(args, state), f"checkpoint-{state.global_step}")
        model = unwrap(kwargs["model"])
        content = {
            "schema": 1,
            "run": _fingerprint(state),
            "handle": self.handle.state_dict(),
            "model": None if has_own_names(folder, model) else model.state_dict(),
        }
        write_state(folder / STATE_FILE, content)

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Add sizes and ranks; observe the mean loss where no step's own was seen."""
        logs: dict[str, float] | None = kwargs.get("logs")
        if self.handle is None or logs is None or "loss" not in logs:
            return
        seen, self._losses = self._losses, self.handle.run.losses_observed
        if self._losses == seen and self.handle.attached:
            self.handle.observe(logs["loss"])
            self._losses = self.handle.run.losses_observed
        values = logged(self.handle)
        logs.update(values)
        state.log_history[-1].update(values)  # the Trainer keeps a copy

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Detach: a best model that was loaded fits the optimizer's state no more."""
        best = state.best_model_checkpoint
        if args.load_best_model_at_end and best is not None:
            own = own_state(Path(best) / STATE_FILE)
            if own is not None:
                kwargs["model"].load_state_dict(own)
        self._end()

    # --- the rest -----------------------------------------------------------------------------

    def _end(self) -> None:
        if self.handle is not None:
            self.handle.detach()
        self._losses = 0

    def _claim(self, model: nn.Module, state: Any) -> list[OrthotrainCallback]:
        """Refuse a second callback in one Trainer; return those of earlier ones.

        Callbacks of one Trainer are given the same state.
        """
        known = _callbacks.setdefault(model, weakref.WeakSet())
        others = [each for each in known if each is not self]
        if any(each._state is state for each in others):
            raise ConfigError(
                "OrthotrainCallback: this model has one already; give all methods to one "
                "callback, OrthotrainCallback(first, second)"
            )
        known.add(self)
        self._state = state
        return others

    def _folder_of(self, args: Any, state: Any) -> Path:
        """The checkpoint folder that is resumed."""
        if self._resume_from is not None:
            return Path(self._resume_from)
        return Path(_output_folder(args, state), f"checkpoint-{state.global_step}")


def _trainer_with(callback: OrthotrainCallback) -> Any:
    """The Trainer that has called us and has this callback; None where there is none."""
    frame = sys._getframe(1)
    while frame is not None:
        owner = frame.f_locals.get("self")
        handler = getattr(owner, "__dict__", {}).get("callback_handler")
        if isinstance(handler, CallbackHandler) and callback in handler.callbacks:
            return owner
        frame = frame.f_back  # type: ignore[assignment]
    return None


def _load_own(trainer: Any, load: Any, folder: str, model: Any = None) -> None:
    """What loads a checkpoint in a Trainer, but not that of another model."""
    require_checkpoint_of(unwrap(trainer.model if model is None else model), Path(folder))
    load(folder, model)


def _output_folder(args: Any, state: Any) -> Path:
    """Where checkpoints are: in a search each trial has a folder of its own."""
    folder = Path(args.output_dir)
    return folder / state.trial_name if state.is_hyper_param_search else folder


def _has_form(model: nn.Module, folder: Path) -> bool:
    """Whether all low-rank weights of a folder have found their place in the model."""
    written = {name for name in shapes_in(folder) or () if is_factored_name(name)}
    return not written or written <= {*unwrap(model).state_dict()}


def _fingerprint(state: Any) -> str:
    """Which run a checkpoint is of: all that its Trainer has logged."""
    known = json.dumps([state.global_step, state.log_history], sort_keys=True, default=str)
    return hashlib.sha256(known.encode()).hexdigest()


def _read(folder: Path, state: Any) -> Mapping[str, Any]:
    """What ``on_save`` wrote into a checkpoint folder of the run that ``state`` is of.

    Raises:
        CheckpointError: It is missing, damaged or of another run.
    """
    path = folder / STATE_FILE
    remedy = (
        "give the folder that train(resume_from_checkpoint=...) gets to "
        "OrthotrainCallback(..., resume_from=...), or start anew without resuming"
    )
    try:
        saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        _ = saved["model"]
    except FileNotFoundError:
        saved = {}
    except Exception as error:
        raise CheckpointError(
            f"{path} is damaged: {type(error).__name__}: {error}; resume from an earlier checkpoint"
        ) from error
    if not {"run", "handle"} <= saved.keys():
        raise CheckpointError(
            f"resuming needs the methods' state in {path}, which is not there: without it they "
            f"would start over; {remedy}"
        )
    if saved["run"] != _fingerprint(state):
        raise CheckpointError(
            f"{path} belongs to another run than the checkpoint that is resumed; {remedy}"
        )
    return saved
