"""A small GPT: the network of the recipe on text."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from orthotrain._doors import checked
from orthotrain.errors import ConfigError, ShapeError
from orthotrain.models.transformer import Block, check_sizes

# Standard deviation of all weights, as in Radford et al. (2019).
INITIAL_STD = 0.02


@checked
class GPT(nn.Module):
    """Decoder-only transformer over a small alphabet, such as the 256 bytes.

    Pre-norm, learned positions, no biases; the head is the embedding, transposed.

    Args:
        vocabulary: Number of symbols.
        context: Longest sequence.
        width: Token width; a multiple of ``heads``.
        depth: Number of blocks.
        heads: Attention heads.
        mlp_ratio: Hidden width of the MLP over ``width``.
        generator: Source of the initial weights; None takes torch's global state.

    Raises:
        ConfigError: A size below one, or a width that is no multiple of ``heads``.

    Source:
        Radford et al. (2019), Language Models are Unsupervised Multitask Learners; here q, k and v
        are layers of their own, and there are no biases.
    """

    def __init__(  # noqa: PLR0913 - the sizes of a network, all by name
        self,
        *,
        vocabulary: int = 256,
        context: int,
        width: int,
        depth: int,
        heads: int,
        mlp_ratio: float = 4.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        sizes = {"vocabulary": vocabulary, "context": context, "width": width, "depth": depth}
        check_sizes("GPT", heads=heads, mlp_ratio=mlp_ratio, sizes=sizes)
        self.context = context
        self.embedding = nn.Embedding(vocabulary, width)
        self.position = nn.Parameter(torch.empty(context, width))
        self.blocks = nn.ModuleList(
            Block(width, heads=heads, mlp_ratio=mlp_ratio, causal=True, bias=False)
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width, bias=False)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.embedding.weight
        self.reset_parameters(generator=generator)

    def reset_parameters(self, *, generator: torch.Generator | None = None) -> None:
        """Draw all weights anew, normal; what ends a residual branch is smaller with the depth."""
        nn.init.normal_(self.embedding.weight, std=INITIAL_STD, generator=generator)
        nn.init.normal_(self.position, std=INITIAL_STD, generator=generator)
        for block in self.blocks:
            for name, layer in block.named_modules():
                if isinstance(layer, nn.Linear):
                    ends = name in ("attention.out", "down")
                    std = INITIAL_STD / math.sqrt(2 * len(self.blocks)) if ends else INITIAL_STD
                    nn.init.normal_(layer.weight, std=std, generator=generator)
        for module in self.modules():
            if isinstance(module, nn.LayerNorm):
                module.reset_parameters()

    @checked
    def forward(
        self, symbols: Int64[Tensor, "batch tokens"]
    ) -> Float[Tensor, "batch tokens vocabulary"]:
        """Scores of the next symbol ``(batch, tokens, vocabulary)`` behind each symbol.

        Raises:
            ShapeError: No sequence, or longer ones than ``context``.
        """
        if symbols.ndim != 2 or not 1 <= symbols.shape[1] <= self.context:
            raise ShapeError(
                f"GPT: got symbols {tuple(symbols.shape)}, need (batch, tokens) with 1 to "
                f"{self.context} tokens"
            )
        if symbols.device != self.position.device:
            raise ConfigError(
                f"GPT: got symbols on {symbols.device}, need them on {self.position.device}, where "
                f"the model is; move them with .to"
            )
        x = self.embedding(symbols) + self.position[: symbols.shape[1]]
        for block in self.blocks:
            x = block(x)
        scores: Tensor = self.head(self.norm(x))
        return scores
