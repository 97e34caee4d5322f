"""The network as it is exported: the same function as `ced_edge.model`, written so that a runtime has less to do.

Everything that is linear is folded into its neighbour, in float64: BatchNorm's offset into the position embedding,
the LayerNorms' affine parts and the attention's scale into the matrix after them. As a LayerNorm takes no notice of
the mean over channels, all that is written into the residual stream is made free of it, and a LayerNorm becomes a
division by the root mean square: the runtimes' own LayerNorm costs a quarter of the time of an int8 model.
"""

from __future__ import annotations

import copy
import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ced_edge.frontend import hann_window, mel_filters
from ced_edge.model import CED, Block
from ced_edge.spec import FrontendSpec

Float64 = NDArray[np.float64]


class FrontEnd(nn.Module):
    """Waveform (B, samples) -> log-mel (B, frames, n_mels) in dB, as `torch_frontend.LogMel` transposed.

    The DFT is matrix products on decimated frames (in frequency: radix 2 twice, and the odd bins as a complex DFT of a
    quarter of the length, as the input is real): a quarter of the arithmetic of one n_fft x n_fft matrix, and constants
    of 0.26 MB. Bins 0 and n_fft / 2 are left out, as no mel filter hears them.
    """

    window: Tensor
    twiddle: Tensor

    def __init__(self, spec: FrontendSpec) -> None:
        super().__init__()
        N = spec.n_fft
        if N % 8:
            raise ValueError(f"an FFT of {N} samples cannot be halved three times")
        self.spec = spec
        angle = 2 * np.pi / N
        n = np.arange(N // 4)
        self.register_buffer("window", torch.from_numpy(hann_window(N).copy()), persistent=False)
        # exp(-i angle n) for the quarter-length complex sequence of the odd bins.
        self.register_buffer("twiddle", _float32(np.stack([np.cos(angle * n), np.sin(angle * n)])), persistent=False)
        h = np.arange(N // 8)
        # Row: sample, column: bin. Bins 4k, 4k + 2 from real samples; 4k + 1 from complex ones, where bins beyond
        # n_fft / 2 are the mirror of bins 4k + 3.
        fours, twos = np.arange(4, N // 2, 4), np.arange(2, N // 2, 4)
        ones = (4 * np.arange(N // 4) + 1) % N
        self.fours = _constant(_real_dft(n, fours, N))
        self.twos = _constant(_real_dft(n, twos, N))
        self.ones_even = _constant(_complex_dft(h, np.arange(0, N // 4, 2), N // 4))
        self.ones_odd = _constant(_complex_dft(h, np.arange(1, N // 4, 2), N // 4))
        bins = np.concatenate([fours, twos, ones[0::2], ones[1::2]])
        self.filters = _constant(mel_filters(spec).T[np.where(bins > N // 2, N - bins, bins)])

    def forward(self, wave: Tensor) -> Tensor:
        s = self.spec
        x = self.frames(wave) * self.window  # (B, T, N)
        even, odd = _butterfly(x)
        fours, twos = _butterfly(even)
        # X[4k + 1] = sum over n < N/4 of (odd[n] - i odd[n + N/4]) exp(-i angle n) exp(-i 4 angle n k)
        re, im = odd.chunk(2, dim=-1)
        cos, sin = self.twiddle[0], self.twiddle[1]
        turned_re, turned_im = re * cos - im * sin, -(re * sin + im * cos)
        sum_re, difference_re = _butterfly(turned_re)
        sum_im, difference_im = _butterfly(turned_im)
        spectrum = [
            self.fours(fours),
            self.twos(twos),
            self.ones_even(torch.cat([sum_re, sum_im], dim=-1)),
            self.ones_odd(torch.cat([difference_re, difference_im], dim=-1)),
        ]
        power = torch.cat([_power(z) for z in spectrum], dim=-1)  # (B, T, N / 2 - 1)
        db = (10 / math.log(10)) * self.filters(power).clamp(min=s.min_power).log()
        floor = db.amax(dim=(1, 2), keepdim=True) - s.top_db
        return torch.maximum(db, floor)

    def frames(self, wave: Tensor) -> Tensor:
        """(B, samples) -> overlapping frames (B, T, n_fft), centred by reflection: slices of hops side by side."""
        s = self.spec
        B, hop = wave.shape[0], s.hop
        T = wave.shape[1] // hop + 1
        half = s.n_fft // 2
        # Reflection written out: as an op of its own TFLite makes it a gather of every sample.
        x = torch.cat([wave[:, 1 : half + 1].flip(1), wave, wave[:, -half - 1 : -1].flip(1)], dim=1)
        full, rest = divmod(s.n_fft, hop)
        # To whole hops; what is padded here is in no frame.
        x = F.pad(x[:, : (T - 1) * hop + s.n_fft], (0, (hop - rest) % hop))
        hops = x.reshape(B, -1, hop)
        parts = [hops[:, i : i + T] for i in range(full)]
        return torch.cat([*parts, hops[:, full : full + T, :rest]] if rest else parts, dim=-1)


def _butterfly(x: Tensor) -> tuple[Tensor, Tensor]:
    """Sum and difference of the halves of the last axis."""
    low, high = x.chunk(2, dim=-1)
    return low + high, low - high


def _power(z: Tensor) -> Tensor:
    """(..., [re, im]) -> |z|^2 of half the width."""
    re, im = (z * z).chunk(2, dim=-1)
    return re + im


def _real_dft(n: NDArray[np.int64], k: NDArray[np.int64], N: int) -> Float64:
    """(samples, [re, im] of bins) of a DFT of length N on real samples."""
    angle = 2 * np.pi * np.outer(n, k) / N
    return np.concatenate([np.cos(angle), -np.sin(angle)], axis=1)


def _complex_dft(n: NDArray[np.int64], k: NDArray[np.int64], N: int) -> Float64:
    """([re, im] of samples, [re, im] of bins) of a DFT of length N on complex samples."""
    angle = 2 * np.pi * np.outer(n, k) / N
    cos, sin = np.cos(angle), np.sin(angle)
    return np.block([[cos, -sin], [sin, cos]])


def _float32(x: NDArray[np.floating]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(x, np.float32))


def _constant(matrix: NDArray[np.floating]) -> nn.Linear:
    """The product with a constant matrix (in, out)."""
    return _linear(_float32(matrix.T).double(), None)


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A linear layer of given float64 weight (out, in) and bias (out,)."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.weight = nn.Parameter(weight.float(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.float(), requires_grad=False)
    return layer


def _centred(x: Tensor, dim: int) -> Tensor:
    """Without its mean over the channels."""
    return x - x.mean(dim, keepdim=True)


def _folded(layer: nn.Linear, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
    """Weight and bias, float64, of `layer` behind `norm` without its affine part."""
    weight, bias = layer.weight.double(), layer.bias.double()
    return weight * norm.weight.double(), bias + weight @ norm.bias.double()


def _rms_norm(x: Tensor, eps: float) -> Tensor:
    """A LayerNorm without affine part, for input whose mean over channels is zero."""
    return x * torch.rsqrt((x * x).mean(dim=-1, keepdim=True) + eps)


class FoldedBlock(nn.Module):
    """A transformer block on a residual stream without mean, (B, N, C) -> (B, N, C)."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.heads = block.attn.heads
        self.eps1, self.eps2 = block.norm1.eps, block.norm2.eps
        C = block.attn.proj.out_features
        weight, bias = _folded(block.attn.qkv, block.norm1)
        scale = torch.ones(3 * C, dtype=torch.float64)
        scale[:C] = (C // self.heads) ** -0.5
        self.qkv = _linear(weight * scale[:, None], bias * scale)
        self.proj = _linear(_centred(block.attn.proj.weight.double(), 0), _centred(block.attn.proj.bias.double(), 0))
        self.fc1 = _linear(*_folded(block.mlp.fc1, block.norm2))
        self.fc2 = _linear(_centred(block.mlp.fc2.weight.double(), 0), _centred(block.mlp.fc2.bias.double(), 0))

    def forward(self, x: Tensor) -> Tensor:
        B, N, C = x.shape
        H = self.heads
        qkv = self.qkv(_rms_norm(x, self.eps1)).reshape(B, N, 3 * H, C // H).transpose(1, 2)  # (B, 3H, N, D)
        q, k, v = qkv.split(H, dim=1)
        heads = (q @ k.transpose(2, 3)).softmax(dim=-1) @ v  # (B, H, N, D)
        x = x + self.proj(heads.transpose(1, 2).reshape(B, N, C))
        y: Tensor = x + self.fc2(F.gelu(self.fc1(_rms_norm(x, self.eps2))))
        return y


class Tagger(nn.Module):
    """A CED for inference: waveform (B, samples), or log-mel (B, n_mels, T), -> probabilities (B, n_classes)."""

    scale: Tensor
    time_embedding: Tensor
    freq_embedding: Tensor

    @torch.no_grad()
    def __init__(self, model: CED, waveform: bool) -> None:
        super().__init__()
        spec = model.spec
        self.spec, self.waveform = spec, waveform
        self.front_end = FrontEnd(spec.frontend)
        bn = model.init_bn[1]
        assert isinstance(bn, nn.BatchNorm2d)
        assert bn.running_mean is not None
        assert bn.running_var is not None
        scale = bn.weight.double() / torch.sqrt(bn.running_var.double() + bn.eps)  # (n_mels,)
        offset = bn.bias.double() - bn.running_mean.double() * scale
        weight = model.patch_embed.proj.weight.double()[:, 0]  # (C, P, P): mel bins by frames
        P, C = spec.patch, spec.width
        # What the offset adds to a patch depends on its row alone; it may not touch the mel, whose floor is per clip.
        bias = model.patch_embed.proj.bias
        assert bias is not None
        shift = torch.einsum("cpt,fp->fc", weight, offset.reshape(spec.grid_freq, P)) + bias.double()
        freq = model.freq_pos_embed[0, :, :, 0].T + shift  # (F, C)
        # Patches arrive as (frames, mel bins), see `tokens`.
        self.patch = _linear(_centred(weight.transpose(1, 2).reshape(C, P * P), 0), None)
        self.register_buffer("scale", scale.float())
        self.register_buffer("time_embedding", _centred(model.time_pos_embed[0, :, 0].T.double(), 1).float())  # (T', C)
        self.register_buffer("freq_embedding", _centred(freq, 1).float().unsqueeze(1))  # (F, 1, C)
        self.blocks = nn.ModuleList(FoldedBlock(block) for block in model.blocks)  # type: ignore[arg-type]
        self.norm, self.head = copy.deepcopy(model.norm), copy.deepcopy(model.outputlayer)
        self.requires_grad_(False).eval()

    def example(self, window_samples: int, batch: int) -> Tensor:
        """Input of the right shape: quiet noise, or log-mel of about its level."""
        s, generator = self.spec.frontend, torch.Generator().manual_seed(0)
        if self.waveform:
            return 0.05 * torch.randn(batch, window_samples, generator=generator)
        return 10 * torch.randn(batch, s.n_mels, s.frames(window_samples), generator=generator) - 40

    def forward(self, x: Tensor) -> Tensor:
        mel = self.front_end(x) if self.waveform else x.transpose(1, 2)  # (B, T, n_mels)
        tokens = self.tokens(mel)
        for block in self.blocks:
            tokens = block(tokens)
        features = _rms_norm(tokens, self.norm.eps).mean(dim=1)
        probs: Tensor = self.head(features * self.norm.weight + self.norm.bias).sigmoid()
        return probs

    def tokens(self, mel: Tensor) -> Tensor:
        """(B, T, n_mels) -> position-marked tokens (B, N, C), in the order (f t)."""
        B, P, Fr, C = mel.shape[0], self.spec.patch, self.spec.grid_freq, self.spec.width
        T = mel.shape[1] // P
        x = (mel[:, : T * P] * self.scale).reshape(B, T, P, Fr, P)
        x = x.permute(0, 3, 1, 2, 4).reshape(B, Fr * T, P * P)
        x = self.patch(x).reshape(B, Fr, T, C) + self.time_embedding[:T] + self.freq_embedding
        tokens: Tensor = x.reshape(B, Fr * T, C)
        return tokens
