import copy

import pytest
import torch
from torch.nn import functional as F

from orthotrain.errors import ConfigError, ShapeError
from orthotrain.models import GPT

SIZES = {"vocabulary": 11, "context": 6, "width": 12, "depth": 2, "heads": 3, "mlp_ratio": 2.0}


def model_of(seed=0, **changes):
    return GPT(**{**SIZES, **changes}, generator=torch.Generator().manual_seed(seed))


def symbols_of(batch=3, tokens=6):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(11, (batch, tokens), generator=generator)


def reference(model, symbols):
    """The network written out in float64, one head and one sequence at a time."""
    state = {k: v.double() for k, v in model.state_dict().items()}
    heads, width = SIZES["heads"], SIZES["width"]

    def norm(x, name):
        centered = x - x.mean(-1, keepdim=True)
        scaled = centered / (centered.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * state[f"{name}.weight"]

    scores = []
    for sequence in symbols:
        tokens = len(sequence)
        later = torch.ones(tokens, tokens).triu(1).bool()
        x = state["embedding.weight"][sequence] + state["position"][:tokens]
        for i in range(SIZES["depth"]):
            block = f"blocks.{i}"
            y = norm(x, f"{block}.norm1")
            q, k, v = (
                y @ state[f"{block}.attention.{n}.weight"].T for n in ("query", "key", "value")
            )
            mixed = []
            for h in range(heads):
                part = slice(h * width // heads, (h + 1) * width // heads)
                logits = q[:, part] @ k[:, part].T / (width // heads) ** 0.5
                mixed.append(logits.masked_fill(later, -torch.inf).softmax(-1) @ v[:, part])
            x = x + torch.cat(mixed, -1) @ state[f"{block}.attention.out.weight"].T
            hidden = F.gelu(norm(x, f"{block}.norm2") @ state[f"{block}.up.weight"].T)
            x = x + hidden @ state[f"{block}.down.weight"].T
        scores.append(norm(x, "norm") @ state["embedding.weight"].T)
    return torch.stack(scores)


def away_from_the_start(model):
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.mark.parametrize("tokens", [6, 4])
def test_agrees_with_the_network_written_out(tokens):
    model, symbols = away_from_the_start(model_of()), symbols_of(tokens=tokens)
    expected = reference(model, symbols)
    assert torch.allclose(model.double()(symbols), expected, rtol=1e-10, atol=1e-12)


def test_a_later_symbol_changes_no_earlier_score():
    model, symbols = away_from_the_start(model_of()), symbols_of()
    before = model(symbols)
    for place in range(6):
        changed = symbols.clone()
        changed[:, place] = (changed[:, place] + 1) % 11
        after = model(changed)
        assert torch.equal(after[:, :place], before[:, :place])
        assert not torch.allclose(after[:, place], before[:, place])


def test_the_reference_size_has_the_known_number_of_parameters():
    model = GPT(context=64, width=128, depth=2, heads=4)
    numbers = sum(p.numel() for p in model.parameters())
    assert numbers == 256 * 128 + 64 * 128 + 2 * 12 * 128**2 + 5 * 128 == 434_816
    assert not [name for name, _ in model.named_parameters() if "bias" in name]


def test_the_head_is_the_embedding_also_in_a_copy():
    for model in (model_of(), copy.deepcopy(model_of())):
        assert model.head.weight is model.embedding.weight


def test_every_parameter_gets_a_gradient():
    model = model_of()
    model(symbols_of()).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


def test_weights_come_from_the_generator_alone():
    one, same, other = model_of(), model_of(), model_of(seed=1)
    for name, weight in one.state_dict().items():
        assert torch.equal(weight, same.state_dict()[name])
        assert "norm" in name or not torch.equal(weight, other.state_dict()[name])


def test_what_ends_a_residual_branch_starts_smaller():
    model = model_of(width=96, depth=8)
    for block in model.blocks:
        assert block.down.weight.std().item() == pytest.approx(0.02 / 4, rel=0.1)
        assert block.up.weight.std().item() == pytest.approx(0.02, rel=0.1)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": 0}, "depth=0 must be at least 1"),
        ({"context": 0}, "context=0 must be at least 1"),
        ({"heads": 5}, "no multiple of heads=5"),
        ({"mlp_ratio": 0.01}, "leaves no hidden unit"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        model_of(**changes)


@pytest.mark.bad_input
@pytest.mark.parametrize("shape", [(2, 7), (6,), (2, 0)])
def test_sequences_of_another_length_are_refused(shape):
    with pytest.raises(ShapeError, match="with 1 to 6 tokens"):
        model_of()(torch.zeros(shape, dtype=torch.int64))
