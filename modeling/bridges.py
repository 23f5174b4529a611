"""
Bridges: small modules that carry a tower's features into another space. Tensors in, tensors out.

Unusual: they compute in float32 whatever the towers' dtype, under autocast too, and keep their weights in float32 through
`.half()` and `.to(bfloat16)`: they are tiny, they are what is trained, and half precision is where frozen-tower training
breaks first on GPUs without bfloat16.
"""

import torch
from torch import Tensor, nn
from transformers import initialization as init


class Float32Module(nn.Module):
    """A module whose parameters no cast narrows below float32. Moving between devices works as ever."""

    def _apply(self, fn, recurse: bool = True):
        def without_narrowing(tensor: Tensor) -> Tensor:
            changed = fn(tensor)
            if tensor.is_floating_point() and changed.element_size() < tensor.element_size():
                return tensor.to(changed.device)
            return changed

        return super()._apply(without_narrowing, recurse)

    def init_weights(self) -> None:
        """Xavier for every matrix, zero for every bias; restored weights are left alone."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    init.zeros_(module.bias)


def pixel_shuffle(patches: Tensor, rows: int, columns: int, factor: int) -> Tensor:
    """
    Lay each `factor` x `factor` block of neighbouring patches side by side in one token, row by row:
    (n, rows * columns, d) -> (n, rows * columns / factor**2, d * factor**2). After Idefics 3 (https://huggingface.co/papers/2408.12637).

    Raises ValueError where the blocks do not fit.
    """
    if rows % factor or columns % factor:
        raise ValueError(f"pixel_shuffle={factor} does not divide the {rows} x {columns} patches")
    blocks = patches.unflatten(1, (rows // factor, factor, columns // factor, factor))
    return blocks.transpose(2, 3).flatten(3).flatten(3).flatten(1, 2)


class MLPAdapter(Float32Module):
    """
    Norm and a two-layer perceptron over each block of patches: (n, blocks, vision) -> (n, blocks * tokens, text), float32.

    A block may become several tokens: language models read about one word a token, and a block can hold more to say.
    """

    def __init__(self, vision_dim: int, hidden_dim: int, text_dim: int, tokens: int = 1):
        super().__init__()
        self.tokens = tokens
        self.norm = nn.LayerNorm(vision_dim)
        self.linear_1 = nn.Linear(vision_dim, hidden_dim)
        self.linear_2 = nn.Linear(hidden_dim, text_dim * tokens)

    def forward(self, blocks: Tensor) -> Tensor:
        with torch.autocast(blocks.device.type, enabled=False):
            adapted = self.linear_2(nn.functional.gelu(self.linear_1(self.norm(blocks.float()))))
        return adapted.unflatten(-1, (self.tokens, -1)).flatten(1, 2)


class TokenMLP(Float32Module):
    """Norm and a two-layer perceptron over each token by itself: (n, tokens, width) -> (n, tokens, dim), float32."""

    def __init__(self, width: int, dim: int, dropout: float = 0.0):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.linear_1 = nn.Linear(width, dim)
        self.linear_2 = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Returns the tokens and which of them are there (n, tokens) bool, as given."""
        with torch.autocast(tokens.device.type, enabled=False):
            hidden = nn.functional.gelu(self.linear_1(self.norm(tokens.float())))
            return self.linear_2(self.dropout(hidden)), mask


class PerceiverLayer(nn.Module):
    """Latents look at the tokens and at one another, then each at itself."""

    def __init__(self, dim: int, heads: int, dropout: float):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.attention = nn.MultiheadAttention(dim, heads, dropout, batch_first=True)
        self.mlp_norm = nn.LayerNorm(dim)
        self.linear_1 = nn.Linear(dim, 4 * dim)
        self.linear_2 = nn.Linear(4 * dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, latents: Tensor, tokens: Tensor, absent: Tensor | None) -> Tensor:
        """absent (n, tokens) bool: what must not be looked at."""
        query = self.norm(latents)
        seen = torch.cat([tokens, query], 1)
        if absent is not None:
            absent = nn.functional.pad(absent, (0, latents.shape[1]))
        latents = latents + self.attention(query, seen, seen, key_padding_mask=absent, need_weights=False)[0]
        hidden = nn.functional.gelu(self.linear_1(self.mlp_norm(latents)))
        return latents + self.dropout(self.linear_2(hidden))


class PerceiverResampler(Float32Module):
    """
    As many tokens as there are latents, however many come: (n, tokens, width) -> (n, latents, dim), float32. After Flamingo
    (https://arxiv.org/abs/2204.14198), where latents look at the tokens and at themselves in one attention.

    Unusual: latents start with unit variance, far from one another. Where they start near zero, as other parameters do, the norm
    before the first attention blows up what little they differ by, attention is as good as uniform for all of them, and they get
    the same gradients: they stay one latent.
    """

    def __init__(self, width: int, dim: int, latents: int, layers: int, heads: int, dropout: float = 0.0):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, dim)
        self.latents = nn.Parameter(torch.empty(latents, dim))
        self.layers = nn.ModuleList(PerceiverLayer(dim, heads, dropout) for _ in range(layers))
        self.out_norm = nn.LayerNorm(dim)

    def init_weights(self) -> None:
        super().init_weights()
        init.normal_(self.latents, std=1.0)
        for layer in self.layers:
            init.xavier_uniform_(layer.attention.in_proj_weight)
            init.zeros_(layer.attention.in_proj_bias)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> tuple[Tensor, None]:
        """mask (n, tokens) bool: which tokens are there. Returns the latents, all of which are."""
        with torch.autocast(tokens.device.type, enabled=False):
            tokens = self.linear(self.norm(tokens.float()))
            latents = self.latents.expand(tokens.shape[0], -1, -1)
            for layer in self.layers:
                latents = layer(latents, tokens, None if mask is None else ~mask)
            return self.out_norm(latents), None


class AttentionPooling(Float32Module):
    """
    Weighted means of tokens, side by side: (n, tokens, dim) -> (n, queries * dim), float32. Each of the `queries` weighs the tokens
    by a linear function of them; one token is its own mean.
    """

    def __init__(self, dim: int, queries: int):
        super().__init__()
        self.score = nn.Linear(dim, queries, bias=False)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        with torch.autocast(tokens.device.type, enabled=False):
            scores = self.score(tokens.float())
            if mask is not None:
                scores = scores.masked_fill(~mask.unsqueeze(-1), -torch.inf)
            return (scores.softmax(1).transpose(1, 2) @ tokens.float()).flatten(1)


class ProjectionHead(Float32Module):
    """Norm and a linear map of one vector into a shared space: (n, width) -> (n, dim), float32, not yet at unit length."""

    def __init__(self, width: int, dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, dim, bias=False)

    def forward(self, vectors: Tensor) -> Tensor:
        with torch.autocast(vectors.device.type, enabled=False):
            return self.linear(self.norm(vectors.float()))
