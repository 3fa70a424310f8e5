import copy

import pytest
import torch
from torch.nn import functional as F

from orthotrain.errors import ConfigError, ShapeError
from orthotrain.models.mini_vit import MiniViT

SIZES = {
    "image_size": 8,
    "channels": 2,
    "classes": 5,
    "patch_size": 4,
    "width": 12,
    "depth": 2,
    "heads": 3,
    "mlp_ratio": 2.0,
}


def model_of(**changes):
    generator = torch.Generator().manual_seed(0)
    return MiniViT(**{**SIZES, **changes}, generator=generator)


def images_of(batch=3, **changes):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 2, 8, 8, generator=generator, **changes)


def reference(model, images):
    """The network written out in float64, one head and one image at a time."""
    state = {k: v.double() for k, v in model.state_dict().items()}
    heads, width = SIZES["heads"], SIZES["width"]

    def linear(x, name):
        bias = state.get(f"{name}.bias")
        y = x @ state[f"{name}.weight"].T
        return y if bias is None else y + bias

    def norm(x, name):
        centered = x - x.mean(-1, keepdim=True)
        scaled = centered / (centered.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]

    scores = []
    for image in images.double():
        patches = [image[:, y : y + 4, x : x + 4].reshape(-1) for y in (0, 4) for x in (0, 4)]
        x = linear(torch.stack(patches), "patch_embed") + state["position"][0]
        for i in range(SIZES["depth"]):
            block = f"blocks.{i}"
            y = norm(x, f"{block}.norm1")
            q, k, v = (linear(y, f"{block}.attention.{n}") for n in ("query", "key", "value"))
            mixed = []
            for h in range(heads):
                part = slice(h * width // heads, (h + 1) * width // heads)
                logits = q[:, part] @ k[:, part].T / (width // heads) ** 0.5
                mixed.append(logits.softmax(-1) @ v[:, part])
            x = x + linear(torch.cat(mixed, -1), f"{block}.attention.out")
            hidden = F.gelu(linear(norm(x, f"{block}.norm2"), f"{block}.up"))
            x = x + linear(hidden, f"{block}.down")
        scores.append(linear(norm(x, "norm").mean(0), "head"))
    return torch.stack(scores)


def test_agrees_with_the_network_written_out():
    model = model_of()
    # Norms and biases away from their neutral start, so that leaving one out would show.
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    expected = reference(model, images_of())
    assert torch.allclose(model.double()(images_of().double()), expected, rtol=1e-10, atol=1e-12)


def test_every_parameter_gets_a_gradient():
    model = model_of()
    model(images_of()).square().sum().backward()
    # Keys have no bias, so no parameter is without effect.
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


def test_the_generator_decides_all_weights():
    before = torch.get_rng_state()
    one = model_of()
    torch.set_rng_state(before)
    torch.rand(7)
    other = model_of()
    torch.set_rng_state(before)
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
    different = MiniViT(**SIZES, generator=torch.Generator().manual_seed(3))
    assert not torch.equal(one.head.weight, different.head.weight)


def test_state_dict_and_deepcopy_keep_the_outputs():
    model, images = model_of(), images_of()
    other = MiniViT(**SIZES)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(images), model(images))
    assert torch.equal(copy.deepcopy(model)(images), model(images))


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": 3}, "patch_size=3 does not divide image_size=8"),
        ({"width": 13}, "width=13 is no multiple of heads=3"),
        ({"depth": 0}, "depth=0 must be at least 1"),
        ({"mlp_ratio": 0.0}, "needs mlp_ratio"),
    ],
)
def test_sizes_that_cannot_work_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        model_of(**changes)


@pytest.mark.bad_input
def test_images_of_another_shape_are_refused():
    with pytest.raises(ShapeError, match=r"need \(batch, 2, 8, 8\)"):
        model_of()(torch.zeros(1, 1, 8, 8))
