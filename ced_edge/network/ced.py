"""CED: a small vision transformer over log-mel patches (arXiv 2308.11957)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ced_edge.network.frontend import LogMel
from ced_edge.spec import ModelSpec
from ced_edge.windows import chunks


class Attention(nn.Module):
    """Multi-head self-attention, (B, N, C) -> (B, N, C)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        B, N, C = x.shape
        qkv = self.qkv(x).view(B, N, 3, self.heads, C // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, H, N, D)
        if self.training and x.device.type == "cpu":
            # On the CPU, the backward pass of the fused kernel is slow. Written out, tiny trains 1.3 times as fast
            # (benchmarks/distill_speed.py), and at 248 tokens the scores fit in memory.
            x = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(dim=-1) @ v
        else:
            x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(B, N, C))  # type: ignore[no-any-return]


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))  # type: ignore[no-any-return]


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(spec.width, eps=1e-6)
        self.attn = Attention(spec.width, spec.heads)
        self.norm2 = nn.LayerNorm(spec.width, eps=1e-6)
        self.mlp = Mlp(spec.width, spec.mlp_ratio * spec.width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        x = x + self.mlp(self.norm2(x))
        return x


class PatchEmbed(nn.Module):
    """Square patches without overlap: (B, 1, n_mels, T) -> (B, C, F, T // patch). The rest of the frames is dropped."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.proj = nn.Conv2d(1, spec.width, kernel_size=spec.patch, stride=spec.patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)  # type: ignore[no-any-return]


class CED(nn.Module):
    """Waveform (B, samples) at 16 kHz in [-1, 1] -> logits (B, n_classes).

    The modules have the names of the published checkpoints, so that those load without renaming.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        C = spec.width
        self.front_end = LogMel(spec.frontend)
        # The published layout keeps the BatchNorm at index 1 of a Sequential, behind a reshape.
        self.init_bn = nn.Sequential(nn.Identity(), nn.BatchNorm2d(spec.frontend.n_mels, eps=1e-5))
        self.patch_embed = PatchEmbed(spec)
        self.time_pos_embed = nn.Parameter(torch.zeros(1, C, 1, spec.grid_time))
        self.freq_pos_embed = nn.Parameter(torch.zeros(1, C, spec.grid_freq, 1))
        self.blocks = nn.ModuleList(Block(spec) for _ in range(spec.depth))
        self.norm = nn.LayerNorm(C, eps=1e-6)
        self.outputlayer = nn.Sequential(nn.LayerNorm(C, eps=1e-5), nn.Linear(C, spec.n_classes))
        self._init_weights()

    def _init_weights(self) -> None:
        for m in self.modules():
            if isinstance(m, nn.Linear):
                nn.init.trunc_normal_(m.weight, std=0.02)
                nn.init.zeros_(m.bias)
        nn.init.trunc_normal_(self.time_pos_embed, std=0.02)
        nn.init.trunc_normal_(self.freq_pos_embed, std=0.02)

    def patches(self, mel: Tensor, time_offset: int = 0) -> Tensor:
        """Log-mel (B, n_mels, T) -> patch tokens with position embeddings (B, C, F, T // patch).

        The position in time of the first patch is `time_offset`. In training, short windows get random offsets, so
        that all positions are trained, and longer windows work later. Raises ValueError when the input is too long.
        """
        x = mel.unsqueeze(2)  # (B, n_mels, 1, T): BatchNorm2d over the mel bins
        x = self.init_bn(x).transpose(1, 2)  # (B, 1, n_mels, T)
        tokens: Tensor = self.patch_embed(x)  # (B, C, F, T')
        t = tokens.shape[3]
        if time_offset + t > self.spec.grid_time:
            raise ValueError(
                f"{t} patches at offset {time_offset} do not fit the {self.spec.grid_time} positions of the time "
                f"embedding: cut the input into chunks of at most {self.spec.max_frames} frames"
            )
        return tokens + self.time_pos_embed[:, :, :, time_offset : time_offset + t] + self.freq_pos_embed

    def encode(self, tokens: Tensor) -> Tensor:
        """Tokens (B, N, C) -> features (B, N, C) after the final norm."""
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)  # type: ignore[no-any-return]

    def forward_mel(self, mel: Tensor, time_offset: int = 0, kept: Tensor | None = None) -> Tensor:
        """Log-mel (B, n_mels, T) in dB, T from one patch to `max_frames` -> logits (B, n_classes).

        `kept` (B, V) are the patches that the blocks get, numbers below N; None: all of them.
        """
        x = self.patches(mel, time_offset).flatten(2).transpose(1, 2)  # (B, N, C), order (f t)
        if kept is not None:
            x = pick(x, kept)
        return self.outputlayer(self.encode(x).mean(dim=1))  # type: ignore[no-any-return]

    def forward(self, wave: Tensor, time_offset: int = 0, kept: Tensor | None = None) -> Tensor:
        mel: Tensor = self.front_end(wave)
        return self.forward_mel(mel, time_offset, kept)


def pick(x: Tensor, index: Tensor) -> Tensor:
    """Rows (B, V) of each of (B, N, C) -> (B, V, C)."""
    return x.gather(1, index[:, :, None].expand(-1, -1, x.shape[2]))


def predict(model: CED, wave: Tensor) -> Tensor:
    """Waveform (B, samples) of at least 1 sample -> probabilities (B, n_classes) float32.

    Long input is cut into chunks without overlap. The result is the mean of their probabilities, weighted by the
    samples in each. A chunk shorter than one patch is padded with zeros. The model should be in eval mode.
    """
    samples = wave.shape[1]
    if samples == 0:
        raise ValueError("no samples")
    total = wave.new_zeros(wave.shape[0], model.spec.n_classes, dtype=torch.float32)
    for start, stop in chunks(samples, model.spec.max_samples):
        pad = max(0, model.spec.min_samples - (stop - start))
        logits: Tensor = model(F.pad(wave[:, start:stop], (0, pad)))
        total = total + (stop - start) / samples * torch.sigmoid(logits.float())
    return total


def n_parameters(model: nn.Module) -> int:
    """The number of all parameters, trained or not."""
    return sum(p.numel() for p in model.parameters())
