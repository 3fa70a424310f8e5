"""Folders of Transformers with low-rank weights: written, refused by plain loading, read."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from orthotrain.errors import CheckpointError, ConfigError
from orthotrain.lowrank import follow, load, restore_structure, save, to_dense
from orthotrain.lowrank.pretrained import REFUSAL, STATE_FILE, is_refused, mark
from orthotrain.methods.select import unwrap

#: The weights, under the model's own names; plain loading does not look for them.
WEIGHTS_FILE = "orthotrain.safetensors"


def save_pretrained(model: nn.Module, folder: str | Path, *, dense: bool = False) -> None:
    """Write a low-rank model of Transformers so that :func:`from_pretrained` gives it back.

    The weights go to ``orthotrain.safetensors``, the rank of each layer to ``config.json``.
    ``SomeModel.from_pretrained(folder)`` then ends with an error: it finds no weights.

    Args:
        model: A model of Transformers, low-rank or dense.
        folder: Where to; made if it is missing.
        dense: Write the dense weights beside them, for plain ``from_pretrained``: larger, and
            nobody needs this library to load them.

    Raises:
        ConfigError: The model has no configuration or has been through ``to_factored``, or the
            folder holds weights of another save.
        CheckpointError: A file cannot be written.
    """
    inner: Any = unwrap(model)
    folder = Path(folder)
    if not hasattr(inner, "config") or not hasattr(inner.config, "save_pretrained"):
        raise ConfigError(
            f"save_pretrained needs a model of Transformers, got {type(inner).__name__}; for "
            "others there is orthotrain.save"
        )
    if any(map(is_refused, inner.modules())):
        raise ConfigError(REFUSAL)
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
        The model in evaluation mode, low-rank as it was saved. It follows what it loads later.

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
    config = AutoConfig.from_pretrained(folder, **settings)
    _require_class(cls, config, folder)
    # What is said of the folder, not of the model. Beside files of an earlier save it decides.
    said = config.__dict__.pop("orthotrain", None)
    config.__dict__.pop("transformers_weights", None)
    if not [*folder.glob("model*.safetensors"), *folder.glob(WEIGHTS_FILE)]:
        raise CheckpointError(
            f"from_pretrained needs {WEIGHTS_FILE} or model.safetensors in {folder}, which has "
            "neither; give a folder that save_pretrained or a Trainer wrote"
        )
    if said is None:  # dense
        as_asked = {} if dtype is None else {"dtype": dtype}
        plain: nn.Module = cls.from_pretrained(folder, config=config, **as_asked)
        return follow(plain)
    model: nn.Module = cls.from_config(config) if hasattr(cls, "from_config") else cls(config)
    if said["weights"] == WEIGHTS_FILE:
        load(model, folder / WEIGHTS_FILE)
        _set_dtypes(model, load_file(folder / WEIGHTS_FILE), dtype)
    else:
        _set_dtypes(model, load_marked(model, folder), dtype)
    made: Any = model
    made.config.dtype = made.dtype
    if hasattr(made, "generation_config") and (folder / "generation_config.json").is_file():
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
        state = {name: value for file in files for name, value in load_file(file).items()}
    restore_structure(model, state)
    missing, unexpected = model.load_state_dict(state, strict=False)
    tied = set(getattr(model, "all_tied_weights_keys", {}) or ())
    if lost := [*(name for name in missing if name not in tied), *unexpected]:
        raise CheckpointError(
            f"from_pretrained needs the weights of a {type(model).__name__}, {folder} lacks or has "
            f"others: {', '.join(lost[:5])}; take the class that was saved"
        )
    return state


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
