"""Every kind of layer is known to each door in a process that has loaded nothing else.

Packages load their modules on first use, so a form that nobody has loaded would not be known.
"""

import pytest

from processes import run_python

_MODEL = """
import io, torch, orthotrain
from torch import nn
def model():
    torch.manual_seed(0)
    return nn.ModuleDict({
        "linear": nn.Linear(16, 16), "conv": nn.Conv2d(4, 16, 2), "attention":
        nn.MultiheadAttention(16, 2), "lstm": nn.LSTM(16, 16), "embedding": nn.Embedding(16, 16),
        "transposed": nn.ConvTranspose2d(8, 16, 2),
    })
KINDS = ["embedding", "lstm", "transposed"]
def ranks(m):
    return sorted(n for n, x in m.named_children() if "LowRank" in type(x).__name__)
ALL = sorted(model())
"""
_MADE = """
import tempfile, pathlib
from orthotrain.lowrank import Relative
made = model()
orthotrain.compress(made, rank=Relative(0.3), also=KINDS, only_if_cheaper=False, max_aspect=99)
assert ranks(made) == ALL, ranks(made)
path = pathlib.Path(tempfile.mkdtemp()) / "m.pt"
orthotrain.save(made, path)
torch.save(made.state_dict(), path.with_suffix(".plain"))
print(path)
"""
DOORS = {
    "attach": """
m = model()
method = orthotrain.AdaptiveLowRank(
    delay_steps=0, every_steps=9, rank_rtol=0.3, importance="weight", also=KINDS,
    only_if_cheaper=False, max_aspect=99, dense_last=False,
)
orthotrain.attach(m, torch.optim.SGD(m.parameters(), lr=0.1), method)
""",
    "load": "m = model()\northotrain.load(m, path)",
    "follow": "m = orthotrain.follow(model())\nm.load_state_dict(torch.load(path + '.plain'))",
    "restore_structure": """
m = model()
orthotrain.restore_structure(m, torch.load(path + '.plain'))
""",
}


@pytest.fixture(scope="module")
def path():
    """Of a low-rank model of every kind of layer, made in a process of its own."""
    return run_python(_MODEL + _MADE).strip().removesuffix(".pt")


@pytest.mark.parametrize("door", DOORS)
def test_every_kind_of_layer_is_known_in_a_fresh_process(path, door):
    load = f"path = {path + '.pt'!r}\n" if door == "load" else f"path = {path!r}\n"
    run_python(f"{_MODEL}{load}{DOORS[door]}\nassert ranks(m) == ALL, ranks(m)")
