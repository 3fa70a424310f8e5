"""What ``save_pretrained`` writes of a low-rank model of Transformers is not taken for a dense one.

Plain ``from_pretrained`` gives random values to weights that it does not find under their dense
names, and prints a table. So ``config.json`` of such a folder names a file that does not exist, and
plain loading ends with that name. So it is where two layers stand for one. Transformers is not
imported here: its models are known by the name of their class.
"""

from __future__ import annotations

import copy
import io
import json
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import safe_open
from torch import Tensor, nn

from orthotrain.errors import ConfigError
from orthotrain.files import write_atomically
from orthotrain.layers._factors import LowRankModule, is_factored
from orthotrain.lowrank.names import is_factored_name
from orthotrain.lowrank.two_layers import is_pair, ranks_of_pairs
from orthotrain.methods.select import clean_name

#: The model's own state dict where Transformers writes other names. A callback adds its own state.
STATE_FILE: Final = "orthotrain.pt"
#: Never exists: what plain loading of a low-rank folder asks for.
REFUSED: Final = "needs_orthotrain.safetensors"

#: A field of ``str.format``, which has no dots: what a pickle holds after ``to_factored``.
_IN_A_PICKLE: Final = (
    "{save_pretrained of a model after to_factored that was pickled would be read as random "
    "weights; import orthotrain and call its follow(model) before, or use torch save}"
)

_PRETRAINED: Final = ("transformers.modeling_utils", "PreTrainedModel")


def guard(model: nn.Module) -> None:
    """Make ``save_pretrained`` of every model of Transformers in a model write what it is."""
    for module in model.modules():
        if not _is_guarded(module) and _is_pretrained(module):
            module.__dict__["save_pretrained"] = SavePretrained(module)


def guard_pairs(model: nn.Module) -> None:
    """The same for models around two layers that stand for one, and for no others."""
    for module in model.modules():
        if _is_pretrained(module) and any(map(is_pair, module.modules())):
            guard(module)


def unguard(module: nn.Module) -> None:
    """Give a model its own ``save_pretrained`` back."""
    if _is_guarded(module):
        del module.__dict__["save_pretrained"]


class SavePretrained:
    """The model's own ``save_pretrained``, and a mark in ``config.json`` if weights are low-rank.

    Where Transformers writes other names than the model has, ``orthotrain.pt`` with the model's
    own state dict is written beside. A copy of the model gets one of its own.

    A pickle of a model after ``to_factored`` needs nothing but Python. There it is the ``format``
    of a text, which ends with a ``KeyError`` that has the text.
    """

    def __init__(self, model: Any) -> None:
        self.model = model

    def __deepcopy__(self, memo: dict[int, Any]) -> SavePretrained:
        return type(self)(copy.deepcopy(self.model, memo))

    def __reduce__(self) -> tuple[Any, ...]:
        if any(map(is_pair, self.model.modules())) and not _has_factors(self.model):
            return getattr, (_IN_A_PICKLE, "format")
        return type(self), (self.model,)

    def __call__(self, save_directory: Any, *args: Any, **settings: Any) -> None:
        """Save; arguments are those of the method.

        Raises:
            ConfigError: A low-rank model is to be pushed in the same call, before it is marked.
        """
        pairs = any(map(is_pair, self.model.modules()))
        if settings.get("push_to_hub") and (pairs or _has_factors(self.model)):
            raise ConfigError(
                "save_pretrained(push_to_hub=True) of a low-rank model would push it before its "
                "config.json says what it is; use model.push_to_hub(name), or call "
                "orthotrain.to_dense(model) before it"
            )
        if len(args) < 2 and settings.get("state_dict") is None:
            settings["state_dict"] = _with_ties_named_once(self.model)
        type(self.model).save_pretrained(self.model, save_directory, *args, **settings)
        is_main = args[0] if args else settings.get("is_main_process", True)
        folder = Path(save_directory)
        if is_main and (pairs or any(map(is_factored_name, shapes_in(folder) or ()))):
            mark(folder, self.model, weights="model.safetensors", refuse=True)
            if not has_own_names(folder, self.model):
                write_state(folder / STATE_FILE, {"model": self.model.state_dict()})


def _with_ties_named_once(model: nn.Module) -> dict[str, Tensor] | None:
    """A state dict without the further names of tied factors; None where there are none.

    Transformers asks for all of them in the class of the model, which knows the dense names.
    """
    state: dict[str, Tensor] = model.state_dict()
    pairs = tuple(f"{name}." for name in ranks_of_pairs(model))
    first: dict[int, str] = {}
    kept = {
        name: tensor
        for name, tensor in state.items()
        if first.setdefault(tensor.data_ptr(), name) == name
        or not (name.startswith(pairs) or is_factored_name(name))
    }
    return kept if len(kept) < len(state) else None


def write_state(path: Path, content: dict[str, Any]) -> None:
    """Write tensors and plain numbers, as a whole."""
    file = io.BytesIO()
    torch.save(content, file)
    write_atomically(path, file.getvalue())


def mark(folder: Path, model: nn.Module, *, weights: str, refuse: bool) -> None:
    """Write the rank of each low-rank weight, and of each that is two layers, into the config.

    Args:
        folder: Where it is.
        model: What was saved there.
        weights: File of the weights.
        refuse: Let plain loading end with an error.
    """
    path = folder / "config.json"
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    config["orthotrain"] = {
        "weights": weights,
        "ranks": {
            f"{clean_name(name)}.{weight}": module.rank_of(weight)
            for name, module in model.named_modules()
            if isinstance(module, LowRankModule)
            for weight in module.weights_of(module)
            if is_factored(module, weight)
        },
        "two_layers": {clean_name(name): k for name, k in ranks_of_pairs(model).items()},
    }
    if refuse:
        config["transformers_weights"] = REFUSED
    write_atomically(path, (json.dumps(config, indent=2, sort_keys=True) + "\n").encode())


def has_own_names(folder: Path, model: nn.Module) -> bool:
    """Whether Transformers has written the model under its own names, so that it loads again.

    Some architectures are renamed on disk. Tied weights are written once.
    """
    written = shapes_in(folder)
    if written is None:
        return True  # no file of weights whose names could differ
    tensors: dict[str, Tensor] = model.state_dict()
    places = {tensor.data_ptr() for name, tensor in tensors.items() if name in written}
    return all(
        name in written or (tensor.numel() > 0 and tensor.data_ptr() in places)
        for name, tensor in tensors.items()
    )


def shapes_in(folder: Path) -> dict[str, tuple[int, ...]] | None:
    """Shapes by name of all tensors in the safetensors files of a folder; None without files."""
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        return None
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        with safe_open(file, framework="pt") as content:
            shapes |= {name: tuple(content.get_slice(name).get_shape()) for name in content.keys()}  # noqa: SIM118
    return shapes


def _is_guarded(module: nn.Module) -> bool:
    # What came out of a pickle is none, so it is replaced.
    return isinstance(module.__dict__.get("save_pretrained"), SavePretrained)


def _is_pretrained(module: nn.Module) -> bool:
    return any((cls.__module__, cls.__name__) == _PRETRAINED for cls in type(module).__mro__)


def _has_factors(model: nn.Module) -> bool:
    return any(
        is_factored(module, weight)
        for module in model.modules()
        if isinstance(module, LowRankModule)
        for weight in module.weights_of(module)
    )
