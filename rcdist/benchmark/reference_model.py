"""A plain PyTorch port of the public MatMul-free language model: what a step costs without any of our work."""

# Shapes: B batch, T time, D model width, V vocabulary.

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rcdist.config import ModelConfig


class ReferenceLinear(nn.Module):
    """Normalise, round tokens and weight, multiply: all of it for every projection, as the public code does."""

    def __init__(self, inputs: int, outputs: int, config: ModelConfig) -> None:
        super().__init__()
        self.norm = nn.Parameter(torch.ones(inputs))
        self.weight = nn.Parameter(torch.randn(outputs, inputs) * inputs**-0.5)
        self.eps, self.is_rounded = config.norm_eps, config.rounding == "nearest"

    def forward(self, x: Tensor) -> Tensor:
        """Return Q8(RMSNorm(x)) Q158(W)^T with straight-through gradients."""
        weight: Tensor = self.weight
        x = F.rms_norm(x, x.shape[-1:], self.norm, self.eps)
        if self.is_rounded:
            scale = 127.0 / x.abs().amax(-1, keepdim=True).clamp_(min=1e-5)
            x = x + ((x * scale).round().clamp(-128, 127) / scale - x).detach()
            beta = weight.abs().mean().clamp_(min=1e-5)
            weight = weight + ((weight / beta).round().clamp(-1, 1) * beta - weight).detach()
        return F.linear(x, weight)


def scan_log_depth(f: Tensor, c: Tensor, starts: Tensor | None) -> Tensor:
    """Return every state of h[t] = f[t] h[t-1] + (1 - f[t]) c[t] in log2 T vectorised steps (Hillis and Steele)."""
    value = (1 - f) * c
    decay = f if starts is None else f.masked_fill(starts.unsqueeze(-1), 0)
    distance = 1
    while distance < f.shape[1]:
        value = torch.cat([value[:, :distance], value[:, distance:] + decay[:, distance:] * value[:, :-distance]], 1)
        decay = torch.cat([decay[:, :distance], decay[:, distance:] * decay[:, :-distance]], 1)
        distance *= 2
    return value


class ReferenceBlock(nn.Module):
    """One MLGRU and one GLU on the residual stream."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, eps = config.width, config.norm_eps
        self.mixer_norm, self.glu_norm = nn.RMSNorm(width, eps), nn.RMSNorm(width, eps)
        self.f, self.c, self.g, self.o = (ReferenceLinear(width, width, config) for _ in "fcgo")
        self.g_norm = nn.RMSNorm(width, eps)
        self.gate_up = ReferenceLinear(width, 2 * config.glu_width, config)
        self.down = ReferenceLinear(config.glu_width, width, config)

    def forward(self, x: Tensor, gamma: Tensor, starts: Tensor | None) -> Tensor:
        """Return the new residual stream."""
        z = self.mixer_norm(x)
        f = gamma + (1 - gamma) * self.f(z).float().sigmoid()
        h = scan_log_depth(f, F.silu(self.c(z)).float(), starts).to(x.dtype)
        x = x + self.o(self.g_norm(self.g(z)) * F.silu(h))
        gate, up = self.gate_up(self.glu_norm(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


class ReferenceModel(nn.Module):
    """Predict the next token (Zhu et al. 2024, arXiv:2406.02528), with nothing fused, frozen or kept."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.bounds = nn.Parameter(torch.zeros(config.num_layers, config.width))
        self.blocks = nn.ModuleList(ReferenceBlock(config) for _ in range(config.num_layers))
        self.norm = nn.RMSNorm(config.width, config.norm_eps)
        self.head = ReferenceLinear(config.width, config.vocab_size, config)

    def forward(self, tokens: Tensor, targets: Tensor, starts: Tensor | None = None) -> Tensor:
        """Return the mean loss in nats."""
        x = self.embedding(tokens)
        sums = self.bounds.float().softmax(0).cumsum(0)
        for block, gamma in zip(self.blocks, (sums - sums[:1]).unbind(0), strict=True):
            x = block(x, gamma, starts)
        logits = self.head(self.norm(x))
        return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())
