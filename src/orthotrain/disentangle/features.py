"""Named feature spaces in which images are compared: a distance always says in which one.

Inception features are one of many; where its weights are not at hand, these are.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, assert_never

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from orthotrain._checks import WHOLE_DTYPES, require_count, require_number, require_values
from orthotrain._doors import checked
from orthotrain.disentangle.generators import (
    ValueRange,
    measuring,
    module_of,
    place_of,
    require_image_values,
    require_range,
    signed,
)
from orthotrain.disentangle.networks import (
    SmallClassifier,
    accuracy_and_gain,
    seeded_initialization,
    train_epoch,
)
from orthotrain.disentangle.samples import stream
from orthotrain.errors import ConfigError, DataError, NonFiniteError, ShapeError
from orthotrain.linalg import thin_svd

#: What a network in a file expects: [-1, 1], [0, 1] or 0 to 255 as bytes.
InputRange = Literal["signed", "unit", "bytes"]

_HELD_OUT = 0.2
# Below this a fifth is not even two images.
_FEWEST = 10


@checked
@dataclass(frozen=True)
class FeatureSpace:
    """A function from images to feature vectors, with the name that is printed beside a distance.

    Attributes:
        name: For instance ``"random 0"`` or ``"classifier"``.
        function: Images ``(n, c, h, w)`` in [-1, 1] to features ``(n, ...)``, flattened behind the
            first axis: any callable. A module is put into evaluation mode for the call and back.
        accuracy: On held-out images, where the features are those of a classifier trained here.
    """

    name: str
    function: Callable[[Tensor], Tensor]
    accuracy: float | None = None

    def __call__(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        """Features of one batch in float64, without gradient.

        A module gets the images on its device; any other callable gets them as they are.

        Raises:
            ShapeError: The function does not return a row for each image.
            NonFiniteError: A feature is NaN or infinite.
        """
        module = module_of(self.function)
        place = None if module is None else place_of(module)
        with measuring(self.function):
            out = self.function(images if place is None else images.to(place[0]))
        if not isinstance(out, Tensor) or out.ndim < 1 or len(out) != len(images) or not len(out):
            got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise ShapeError(
                f"FeatureSpace {self.name!r} needs features (n, ...) with n = {len(images)} >= 1, "
                f"got {got} for images {tuple(images.shape)}; return one row per image"
            )
        features = out.reshape(len(out), -1).double()
        if not bool(torch.isfinite(features).all()):
            raise NonFiniteError(
                f"FeatureSpace {self.name!r} needs finite features, got NaN or infinity for images "
                f"{tuple(images.shape)}; check what range the network expects"
            )
        return features


def pixel_features() -> FeatureSpace:
    """The pixels themselves, in [-1, 1]."""
    return FeatureSpace("pixels", lambda images: images)


@checked
def random_features(*, seed: int, widths: Sequence[int] = (16, 32, 64)) -> FeatureSpace:
    """Spatial means of the layers of a convolutional network that was never trained.

    Conv3x3 with stride 2 and LeakyReLU for each width, weights from N(0, 1) scaled as He et al.
    (2015) do, all from the seed; ``sum(widths)`` features. Grey and colour images of any size
    work; each number of channels has weights of its own. Use three seeds and report all.

    Args:
        seed: Of the weights; it is part of the name, ``"random SEED"``.
        widths: Channels of each layer.

    Raises:
        ConfigError: ``seed`` is no whole number, or a width is below 1.
    """
    stream("random_features", seed)
    for width in widths:
        require_count("random_features", "every width", width, least=1)
    if not widths:
        raise ConfigError("random_features needs at least one width, got none; (16, 32, 64) is one")

    def function(images: Tensor) -> Tensor:
        random = stream("random_features", seed)
        x, means = images, []
        for width in widths:
            shape = (width, x.shape[1], 3, 3)
            weight = torch.randn(shape, generator=random, dtype=torch.float64)
            weight = weight * math.sqrt(2 / (9 * x.shape[1]))
            x = F.leaky_relu(F.conv2d(x, weight.to(x), stride=2, padding=1), 0.2)
            means.append(x.mean(dim=(2, 3)))
        return torch.cat(means, dim=1)

    return FeatureSpace(f"random {seed}", function)


@checked
def pixel_pca(images: Float[Tensor, "n c h w"], *, components: int = 64) -> FeatureSpace:
    """The leading principal components of pixels.

    Args:
        images: ``(n, c, h, w)`` in [-1, 1], to which the components are fitted: real ones that
            are not scored afterwards. The cost grows with the square of the smaller of ``n`` and
            ``c h w``: a thousand images are enough.
        components: How many; it is part of the name, ``"pca COMPONENTS"``.

    Raises:
        ShapeError: ``images`` is not ``(n, c, h, w)``.
        ConfigError: More components than ``min(n - 1, c h w)``, or images that are not
            floating-point.
        NonFiniteError: ``images`` holds NaN or infinity.
    """
    require_count("pixel_pca", "components", components, least=1)
    _require_image_shape("pixel_pca", images)
    require_image_values("pixel_pca", images, "any")
    most = min(len(images) - 1, images[0].numel())
    if components > most:
        raise ConfigError(
            f"pixel_pca needs at most {most} components for images of shape "
            f"{tuple(images.shape)}, got {components}; give more images or take fewer components"
        )
    flat = images.detach().flatten(1).double()
    mean = flat.mean(dim=0)
    axes = thin_svd(flat - mean)[2][:components]

    def function(x: Tensor) -> Tensor:
        return (x.flatten(1).double() - mean.to(x.device)) @ axes.mT.to(x.device)

    return FeatureSpace(f"pca {components}", function)


@checked
def classifier_features(  # noqa: PLR0913 - the settings of a short training, by name
    images: Float[Tensor, "n c h w"],
    labels: Tensor,
    *,
    seed: int,
    epochs: int = 10,
    width: int = 32,
    batch_size: int = 64,
    lr: float = 1e-3,
) -> FeatureSpace:
    """Penultimate features of a small classifier, trained here on images of the same domain.

    Train it on images that are not scored afterwards. The network is three times Conv3x3 with
    stride 2, batch norm and ReLU, then the mean over the image (``4 * width`` features), then a
    linear layer. A fifth of the images is held out for ``.accuracy``. Where it is low, the features
    are hardly better than random ones.

    Args:
        images: ``(n, c, h, w)`` in [-1, 1].
        labels: ``(n,)`` classes from 0, whole numbers.
        seed: Of the weights, the split and the order.
        epochs: Over the training part.
        width: Channels of the first convolution.
        batch_size: Images per optimizer step, at least 2.
        lr: Of Adam.

    Raises:
        ShapeError: ``images`` is not ``(n, c, h, w)`` with ``n >= 10``, or ``labels`` not ``(n,)``.
        ConfigError: Labels that are no classes, or a setting out of its range.
        NonFiniteError: ``images`` holds NaN or infinity.
    """
    name = "classifier_features"
    _require_image_shape(name, images)
    require_image_values(name, images, "any")
    random = stream(name, seed)
    classes = _classes(name, images, labels)
    require_count(name, "epochs", epochs, least=1)
    require_count(name, "width", width, least=1)
    require_count(name, "batch_size", batch_size, least=2)
    require_number(name, "lr", lr, above=0, most=1e3)
    x, y = images.detach().float(), labels.to(images.device, torch.int64)
    with seeded_initialization(random):
        network = SmallClassifier(x.shape[1], classes, width).to(x.device)
    order = torch.randperm(len(x), generator=random)
    held_out, train = order.tensor_split([round(_HELD_OUT * len(x))])
    optimizer = torch.optim.Adam(network.parameters(), lr=lr)
    for _ in range(epochs):
        mixed = train[torch.randperm(len(train), generator=random)]
        train_epoch(network, optimizer, x, y, mixed, batch_size)
    accuracy, _ = accuracy_and_gain(network, x, y, held_out, batch_size)
    network.requires_grad_(False)
    return FeatureSpace("classifier", network.features, accuracy=accuracy)


@checked
def file_features(
    path: str | Path,
    *,
    name: str,
    input_range: InputRange = "signed",
    size: int | None = None,
    call: Callable[[nn.Module, Tensor], Tensor] | None = None,
    allow_pickle: bool = False,
) -> FeatureSpace:
    """Features of a network in a local file, such as an Inception the user has.

    Args:
        path: A TorchScript file, or with ``allow_pickle`` one that ``torch.save(module, path)``
            wrote.
        name: Of the space, printed beside every distance.
        input_range: What the network expects: ``"signed"`` [-1, 1], ``"unit"`` [0, 1], or
            ``"bytes"`` uint8.
        size: Side that images are resized to (bilinear, antialiased); None leaves them.
        call: From network and images to features, for a network that needs more than
            ``network(images)``, for instance ``lambda net, x: net(x, return_features=True)``.
        allow_pickle: Unpickling runs code of the file: only for files you trust.

    Returns:
        A space on the CPU, whatever device the images are on. Grey images become three equal
        channels.

    Raises:
        DataError: No such file, or no network in it.
        ConfigError: Unknown ``input_range``, a ``size`` below 1, or a pickle without
            ``allow_pickle``.
    """
    if size is not None:
        require_count("file_features", "size", size, least=1)
    network = _network_in(Path(path), allow_pickle)
    network.eval()
    # One by one: a TorchScript module refuses to do it as a whole.
    for parameter in network.parameters():
        parameter.requires_grad_(False)

    def function(images: Tensor) -> Tensor:
        x = images.to("cpu", torch.float32)
        if x.shape[1] == 1:
            x = x.expand(-1, 3, -1, -1)
        if size is not None:
            x = F.interpolate(x, size=(size, size), mode="bilinear", antialias=True)
        x = _as_expected(x, input_range)
        out: Tensor = network(x) if call is None else call(network, x)
        return out

    return FeatureSpace(name, function)


@checked
def signed_images(images: Tensor, *, value_range: ValueRange = "signed") -> Float[Tensor, "*shape"]:
    """Images as every feature space takes them: floating-point in [-1, 1].

    Args:
        images: ``(n, c, h, w)``; uint8 from 0 to 255, or floating-point in ``value_range``.
        value_range: ``"signed"``, ``"unit"`` or ``"any"``; ignored for uint8.

    Raises:
        ShapeError: Not ``(n, c, h, w)``.
        ConfigError: Another dtype, or values out of their range.
        NonFiniteError: NaN or infinity.
    """
    _require_image_shape("signed_images", images)
    require_range("signed_images", value_range)
    if images.dtype == torch.uint8:
        return images.float() / 127.5 - 1
    require_image_values("signed_images", images, value_range)
    return signed(images, value_range)


def _require_image_shape(function: str, images: Tensor) -> None:
    if images.ndim != 4 or 0 in images.shape:
        raise ShapeError(
            f"{function} needs images of shape (n, c, h, w), got {tuple(images.shape)}; a single "
            f"image needs images.unsqueeze(0), grey ones images.unsqueeze(1)"
        )


def _classes(function: str, images: Tensor, labels: Tensor) -> int:
    require_values(function, "labels", labels)
    if labels.ndim != 1 or len(labels) != len(images) or len(images) < _FEWEST:
        raise ShapeError(
            f"{function} needs at least {_FEWEST} images and a label for each, got images "
            f"{tuple(images.shape)} and labels {tuple(labels.shape)}; give one class per image"
        )
    if labels.dtype not in WHOLE_DTYPES or int(labels.min()) < 0 or int(labels.max()) < 1:
        raise ConfigError(
            f"{function} needs whole-number labels from 0 of at least two classes, got some of "
            f"{labels.dtype}; number the classes from 0"
        )
    return int(labels.max()) + 1


def _network_in(path: Path, allow_pickle: bool) -> nn.Module:
    if not path.is_file():
        raise DataError(
            f"file_features: {path} does not exist; need a TorchScript file or, with allow_pickle, "
            f"a saved module; give the path of a local copy"
        )
    try:
        with warnings.catch_warnings():
            # torch deprecates the format, which the networks at hand are still stored in.
            warnings.simplefilter("ignore", DeprecationWarning)
            network: object = torch.jit.load(path, map_location="cpu")  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        if not allow_pickle:
            raise ConfigError(
                f"file_features needs a TorchScript file, and {path} is none; if torch.save wrote "
                f"a module there and you trust it, pass allow_pickle=True"
            ) from error
        try:
            network = torch.load(path, map_location="cpu", weights_only=False)
        except Exception as unreadable:
            raise DataError(
                f"file_features: {path} does not load ({type(unreadable).__name__}: {unreadable}); "
                f"need a TorchScript file or a saved module"
            ) from unreadable
    if not isinstance(network, nn.Module):
        raise DataError(
            f"file_features: {path} holds {type(network).__name__}, no module; need the network, "
            f"not its weights alone: torch.save(module, path)"
        )
    return network


def _as_expected(x: Tensor, input_range: InputRange) -> Tensor:
    match input_range:
        case "signed":
            return x
        case "unit":
            return ((x + 1) / 2).clamp(0, 1)
        case "bytes":
            return ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        case _:
            assert_never(input_range)
