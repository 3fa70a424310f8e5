"""Folders of Transformers with low-rank weights: written, refused by plain loading, read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from orthotrain.errors import CheckpointError, ConfigError, OrthotrainError
from orthotrain.lowrank import follow, load, restore_structure, save, to_dense
from orthotrain.lowrank.pretrained import STATE_FILE, guard_pairs, mark
from orthotrain.lowrank.two_layers import put_pairs_, ranks_of_pairs
from orthotrain.methods.select import unwrap

#: The weights, under the model's own names; plain loading does not look for them.
WEIGHTS_FILE = "orthotrain.safetensors"


def save_pretrained(model: nn.Module, folder: str | Path, *, dense: bool = False) -> None:
    """Write a low-rank model of Transformers so that :func:`from_pretrained` gives it back.

    The weights go to ``orthotrain.safetensors``, rank and form of each layer to ``config.json``: a
    model after ``to_factored`` comes back as such.
    ``SomeModel.from_pretrained(folder)`` then ends with an error: it finds no weights.

    Args:
        model: A model of Transformers: low-rank, after ``to_factored``, or dense.
        folder: Where to; made if it is missing.
        dense: Write the dense weights beside them, for plain ``from_pretrained``: larger, and
            nobody needs this library to load them.

    Raises:
        ConfigError: The model has no configuration, the folder holds weights of another save, or
            ``dense`` is asked of a model after ``to_factored``.
        CheckpointError: A file cannot be written.
    """
    inner: Any = unwrap(model)
    folder = Path(folder)
    if not hasattr(inner, "config") or not hasattr(inner.config, "save_pretrained"):
        raise ConfigError(
            f"save_pretrained needs a model of Transformers, got {type(inner).__name__}; for "
            "others there is orthotrain.save"
        )
    if dense and ranks_of_pairs(inner):
        raise ConfigError(
            "save_pretrained(dense=True) needs a low-rank model, got one after to_factored, whose "
            "layers are two each; save the dense weights before to_factored, or leave dense out"
        )
    if others := sorted(path.name for path in folder.glob("*model*.safetensors")):
        raise ConfigError(
            f"save_pretrained needs a folder without other weights, got {folder} with "
            f"{', '.join(others[:3])}: plain loading would take these; choose another folder"
        )
    folder.mkdir(parents=True, exist_ok=True)
    if dense:
        dense_copy: Any = to_dense(deepcopy(inner))
        dense_copy.save_pretrained(folder)
    else:
        inner.config.save_pretrained(folder)
    if (generation := getattr(inner, "generation_config", None)) is not None:
        generation.save_pretrained(folder)
    save(inner, folder / WEIGHTS_FILE)
    mark(folder, inner, weights=WEIGHTS_FILE, refuse=False)


def from_pretrained(cls: Any, folder: str | Path, **settings: Any) -> Any:
    """The model of a folder that :func:`save_pretrained` or a run with low-rank layers wrote.

    Args:
        cls: A class of Transformers such as ``GPT2LMHeadModel``, or an ``AutoModel...`` one.
        folder: That of ``save_pretrained``, of this module or the model's own, or a
            ``checkpoint-N`` of a ``Trainer``.
        **settings: Changes to the configuration, as for ``AutoConfig.from_pretrained``. With
            ``dtype`` all weights get this one, else each has that of the file.

    Returns:
        The model in evaluation mode, low-rank or of two layers each as it was saved. It follows
        what it loads later.

    Raises:
        ConfigError: ``cls`` is no class of Transformers.
        CheckpointError: No folder, no weights, damaged ones, or those of another architecture.
    """
    from transformers import AutoConfig, GenerationConfig

    folder = Path(folder)
    if not (isinstance(cls, type) and hasattr(cls, "from_pretrained")):
        raise ConfigError(
            "from_pretrained needs a class of Transformers such as GPT2LMHeadModel, got "
            f"{cls!r}; give the class itself first, then the folder"
        )
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"from_pretrained needs a folder with config.json, got {folder} without; give a "
            "folder on this machine that save_pretrained or a Trainer wrote"
        )
    dtype = settings.pop("torch_dtype", None)
    dtype = _dtype(settings.pop("dtype", dtype))
    # What is said of the folder, not of the model. Beside files of an earlier save it decides.
    said = _said_in(folder / "config.json")
    with _damage_named(folder, "config.json"):
        config = AutoConfig.from_pretrained(folder, **settings)
    config.__dict__.pop("orthotrain", None)
    config.__dict__.pop("transformers_weights", None)
    _require_class(cls, config, folder)
    if not [*folder.glob("model*.safetensors"), *folder.glob(WEIGHTS_FILE)]:
        raise CheckpointError(
            f"from_pretrained needs {WEIGHTS_FILE} or model.safetensors in {folder}, which has "
            "neither; give a folder that save_pretrained or a Trainer wrote"
        )
    if said is None:  # dense
        as_asked = {} if dtype is None else {"dtype": dtype}
        with _damage_named(folder, "config.json or the weights"):
            plain: nn.Module = cls.from_pretrained(folder, config=config, **as_asked)
        return follow(plain)
    with _damage_named(folder, "config.json"):
        model: nn.Module = cls.from_config(config) if hasattr(cls, "from_config") else cls(config)
    put_pairs_(model, said["two_layers"])
    guard_pairs(model)
    if said["weights"] == WEIGHTS_FILE:
        load(model, folder / WEIGHTS_FILE)
        _set_dtypes(model, load_file(folder / WEIGHTS_FILE), dtype)
    else:
        _set_dtypes(model, load_marked(model, folder), dtype)
    made: Any = model
    made.config.dtype = made.dtype
    if hasattr(made, "generation_config") and (folder / "generation_config.json").is_file():
        with _damage_named(folder, "generation_config.json"):
            made.generation_config = GenerationConfig.from_pretrained(folder)
    return model.eval()


def own_state(path: Path) -> Mapping[str, Tensor] | None:
    """The model's own state dict that the callback wrote beside a checkpoint; None without one.

    Raises:
        CheckpointError: The file is damaged.
    """
    if not path.is_file():
        return None
    try:
        state: Mapping[str, Tensor] | None = torch.load(
            path, map_location="cpu", weights_only=True
        )["model"]
    except Exception as error:
        raise CheckpointError(
            f"{path} is damaged: {type(error).__name__}: {error}; take an earlier checkpoint"
        ) from error
    return state


def load_marked(model: nn.Module, folder: Path) -> Mapping[str, Tensor]:
    """Shape a model as a folder of Transformers has it, load the weights, and return them.

    Raises:
        CheckpointError: They are damaged, or those of another architecture.
    """
    state = own_state(folder / STATE_FILE)
    if state is None:  # large models are written in several files
        files = sorted(folder.glob("model*.safetensors"))
        with _damage_named(folder, "model.safetensors"):
            state = {name: value for file in files for name, value in load_file(file).items()}
    restore_structure(model, state)
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
    except RuntimeError as error:  # shapes
        raise CheckpointError(
            f"from_pretrained needs a {type(model).__name__} of the sizes in {folder}, got another "
            f"one: {str(error).strip()[:300]}; leave out settings that change sizes (num_labels), "
            "or take the config.json that was saved beside these weights"
        ) from error
    held: Mapping[str, Tensor] = model.state_dict()
    given = {held[name].data_ptr() for name in state if name in held}
    if lost := [*(n for n in missing if held[n].data_ptr() not in given), *unexpected]:
        raise CheckpointError(
            f"from_pretrained needs the weights of a {type(model).__name__}, {folder} lacks or has "
            f"others: {', '.join(lost[:5])}; take the class that was saved"
        )
    return state


@contextmanager
def _damage_named(folder: Path, file: str) -> Iterator[None]:
    """Let whatever goes wrong with a file be an error that says what to try."""
    try:
        yield
    except OrthotrainError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"from_pretrained cannot read {file} of {folder}: {type(error).__name__}: "
            f"{str(error).strip()[:300]}; take the file from another checkpoint of this model, or "
            "save the model again"
        ) from error


def _said_in(path: Path) -> dict[str, Any] | None:
    """The mark of a low-rank folder in its ``config.json``; None in a dense one.

    Raises:
        CheckpointError: The file is damaged.
    """
    with _damage_named(path.parent, path.name):
        said = json.loads(path.read_text(encoding="utf-8")).get("orthotrain")
        if said is None:
            return None
        said = {"two_layers": {}, **said}
        ranks = {*said["ranks"].items(), *said["two_layers"].items()}
        if said["weights"] not in (WEIGHTS_FILE, "model.safetensors") or not all(
            type(rank) is int for _, rank in ranks
        ):
            raise ValueError('the entry "orthotrain" is none that this library wrote')
    return said


def _dtype(asked: Any) -> torch.dtype | None:
    """``torch.bfloat16`` and ``"bfloat16"`` are the same; None and ``"auto"`` ask for nothing."""
    if asked is None or asked == "auto":
        return None
    found = getattr(torch, asked, None) if isinstance(asked, str) else asked
    if not isinstance(found, torch.dtype):
        raise ConfigError(
            f'from_pretrained needs a dtype such as torch.bfloat16, got {asked!r}; or "auto"'
        )
    return found


def _require_class(cls: Any, config: Any, folder: Path) -> None:
    """Refuse a class whose configuration is another; an ``AutoModel...`` knows which it takes."""
    wanted = getattr(cls, "config_class", None)
    mapping = getattr(cls, "_model_mapping", None)
    if wanted is not None:
        fits = isinstance(config, wanted)
    else:
        fits = mapping is None or type(config) in mapping.keys()  # noqa: SIM118  # lazy
    if not fits:
        names = ", ".join(getattr(config, "architectures", None) or [type(config).__name__])
        raise CheckpointError(
            f"from_pretrained needs the weights of a {cls.__name__}, {folder} has those of "
            f"{names}; take the class that was saved"
        )


def _set_dtypes(model: nn.Module, state: Mapping[str, Tensor], dtype: torch.dtype | None) -> None:
    """Let each tensor be as it is in a file, or cast all to one dtype."""
    for name, tensor in model.state_dict(keep_vars=True).items():
        if not tensor.is_floating_point():
            continue
        if dtype is not None:
            tensor.data = tensor.data.to(dtype)
        elif name in state and state[name].dtype != tensor.dtype:
            tensor.data = state[name].to(tensor.device)
