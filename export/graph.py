"""The network in the form that is exported: the same function as `ced_edge.network.ced`, with less work at run time.

Linear parts are folded into their neighbours, in float64: BatchNorm's offset into the position embedding, the affine
parts of the LayerNorms and the attention's scale into the matrix after them. A LayerNorm ignores the mean over the
channels. So that mean is removed from everything that is added to the residual stream, and each LayerNorm becomes a
division by the root mean square. The runtimes' own LayerNorm takes a quarter of the time of an int8 model.
"""

from __future__ import annotations

import copy
import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ced_edge.arrays import Float64
from ced_edge.frontend import hann_window, mel_filters
from ced_edge.network.ced import CED, Block
from ced_edge.spec import FrontendSpec


class FrontEnd(nn.Module):
    """Waveform (B, samples) -> log-mel (B, frames, n_mels) in dB: `ced_edge.network.frontend.LogMel`, transposed.

    The DFT is five matrix products after three steps of decimation in frequency, the step of an FFT. They take a
    quarter of the arithmetic of one n_fft x n_fft matrix, and their constants 0.23 MB. Frames are gathered in eighths,
    so that no later step has to cut them. Bins 0 and n_fft / 2 are left out, as every mel filter is 0 there.
    """

    window: Tensor

    def __init__(self, spec: FrontendSpec) -> None:
        super().__init__()
        N = spec.n_fft
        if N % 8:
            raise ValueError(f"an FFT of {N} samples cannot be halved three times")
        self.spec = spec
        self.register_buffer("window", torch.from_numpy(hann_window(N).copy()), persistent=False)
        k = np.arange(N)
        # Bins 8k, 8k + 4, 4k + 2, 8k + 1, 8k + 5. The last two run up to n_fft: of a real signal, a bin beyond
        # n_fft / 2 has the power of its mirror image, so they stand for bins 8k + 7 and 8k + 3.
        bins = [k[8 : N // 2 : 8], k[4 : N // 2 : 8], k[2 : N // 2 : 4], k[1::8], k[5::8]]
        parts = [_dft(N // 8, bins[0], N), _dft(N // 8, bins[1], N), _dft(N // 4, bins[2], N)]
        parts += [_complex_dft(N // 8, b, N) for b in bins[3:]]
        self.re = nn.ModuleList(_constant(re) for re, _ in parts)
        self.im = nn.ModuleList(_constant(im) for _, im in parts)
        order = np.concatenate(bins)
        self.filters = _constant(mel_filters(spec).T[np.where(order > N // 2, N - order, order)])

    def forward(self, wave: Tensor) -> Tensor:
        s = self.spec
        spectrum = [(re(x), im(x)) for x, re, im in zip(self.decimated(wave), self.re, self.im, strict=True)]
        power = torch.cat([re * re + im * im for re, im in spectrum], dim=-1)  # (B, T, N / 2 - 1)
        db = (10 / math.log(10)) * self.filters(power).clamp(min=s.min_power).log()
        floor = db.amax(dim=(1, 2), keepdim=True) - s.top_db
        return torch.maximum(db, floor)

    def decimated(self, wave: Tensor) -> list[Tensor]:
        """Five signals (B, T, samples) whose DFTs are the bins 8k, 8k + 4, 4k + 2, 8k + 1 and 8k + 5 of the frames.

        The factor exp(-2 pi i n k / N) at n + N / 2 is that at n, times -1 for odd k. So even bins need only the sums
        of the two halves of a frame, and odd bins only their differences. For bins 4k + 1 the factor turns by -i after
        a quarter of a frame, for 8k + 1 by exp(-i pi / 4) after an eighth, and for 8k + 5 by minus that. Complex
        samples are stored as [re, -im].
        """
        x = self.eighths(wave)
        sums, differences = [x[i] + x[i + 4] for i in range(4)], [x[i] - x[i + 4] for i in range(4)]
        low, high = sums[0] + sums[2], sums[1] + sums[3]
        twos = torch.cat([sums[0] - sums[2], sums[1] - sums[3]], dim=-1)
        re, im = differences[0], differences[2]
        turned_re = math.sqrt(0.5) * (differences[1] - differences[3])
        turned_im = math.sqrt(0.5) * (differences[1] + differences[3])
        ones = torch.cat([re + turned_re, im + turned_im], dim=-1)
        fives = torch.cat([re - turned_re, im - turned_im], dim=-1)
        return [low + high, low - high, twos, ones, fives]

    def eighths(self, wave: Tensor) -> list[Tensor]:
        """(B, samples) -> the eighths of all frames, each (B, T, n_fft / 8): padded by reflection, and windowed."""
        s = self.spec
        B, hop = wave.shape[0], s.hop
        T = wave.shape[1] // hop + 1
        half, eighth = s.n_fft // 2, s.n_fft // 8
        # Reflection is written as slices: litert-torch turns torch's own into a gather of single samples.
        x = torch.cat([wave[:, 1 : half + 1].flip(1), wave, wave[:, -half - 1 : -1].flip(1)], dim=1)
        # Pad to whole hops. No frame reaches into this padding.
        x = F.pad(x[:, : (T - 1) * hop + s.n_fft], (0, -s.n_fft % hop))
        hops = x.reshape(B, -1, hop)
        parts = []
        for start in range(0, s.n_fft, eighth):
            pieces, at, stop = [], start, start + eighth
            while at < stop:
                first, offset = divmod(at, hop)
                n = min(stop - at, hop - offset)
                pieces.append(hops[:, first : first + T, offset : offset + n])
                at += n
            parts.append(torch.cat(pieces, dim=-1) * self.window[start:stop])
        return parts


def _dft(samples: int, bins: NDArray[np.int64], N: int) -> tuple[Float64, Float64]:
    """Real and imaginary part, each (samples, bins), of exp(-2 pi i n k / N)."""
    angle = 2 * np.pi * np.outer(np.arange(samples), bins) / N
    return np.cos(angle), -np.sin(angle)


def _complex_dft(samples: int, bins: NDArray[np.int64], N: int) -> tuple[Float64, Float64]:
    """`_dft` for complex samples, which are given as [re, -im]: each (2 samples, bins)."""
    cos, sin = _dft(samples, bins, N)
    return np.concatenate([cos, sin]), np.concatenate([sin, -cos])


def _float32(x: NDArray[np.floating]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(x, np.float32))


def _constant(matrix: NDArray[np.floating]) -> nn.Linear:
    """A layer that multiplies with a constant matrix (in, out)."""
    return _linear(_float32(matrix.T).double(), None)


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A float32 layer with a float64 weight (out, in) and bias (out,)."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.weight = nn.Parameter(weight.float(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.float(), requires_grad=False)
    return layer


def _centred(x: Tensor, dim: int) -> Tensor:
    """`x` minus its mean over the channels, which are its axis `dim`."""
    return x - x.mean(dim, keepdim=True)


def _folded(layer: nn.Linear, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
    """Weight and bias, in float64, of one layer that does the work of `norm`'s affine part and then `layer`."""
    weight, bias = layer.weight.double(), layer.bias.double()
    return weight * norm.weight.double(), bias + weight @ norm.bias.double()


def _rms_norm(x: Tensor, eps: float) -> Tensor:
    """LayerNorm without its affine part, for input with a mean of zero over the channels."""
    return x * torch.rsqrt((x * x).mean(dim=-1, keepdim=True) + eps)


class FoldedBlock(nn.Module):
    """A transformer block on a residual stream (B, N, C) with a mean of zero over the channels.

    Queries, keys and values are scaled to the same size in every head, so that one int8 range fits all of them. The
    factors cancel out: those of queries and keys in their product, those of values in `proj`.
    """

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.heads = block.attn.heads
        self.eps1, self.eps2 = block.norm1.eps, block.norm2.eps
        C = block.attn.proj.out_features
        weight, bias = _folded(block.attn.qkv, block.norm1)
        proj = _centred(block.attn.proj.weight.double(), 0)
        # The channels of a normed token have a mean square of 1. So this is the RMS of what each row computes, as far
        # as channels are independent; (heads,) each for queries, keys and values.
        q, k, v = (weight.square().sum(1) + bias.square()).reshape(3, self.heads, -1).mean(2).sqrt().clamp(min=1e-9)
        scale = (C // self.heads) ** -0.5
        size = (scale * q * k).sqrt()
        to_v = size.mean() / v
        # The factors of q and k multiply to the attention's scale, which is so folded in too.
        per_head = torch.stack([size / q, size / k, to_v])
        per_row = per_head.repeat_interleave(C // self.heads, dim=1).flatten()
        self.qkv = _linear(weight * per_row[:, None], bias * per_row)
        self.proj = _linear(proj / per_row[2 * C :], _centred(block.attn.proj.bias.double(), 0))
        self.fc1 = _linear(*_folded(block.mlp.fc1, block.norm2))
        self.fc2 = _linear(_centred(block.mlp.fc2.weight.double(), 0), _centred(block.mlp.fc2.bias.double(), 0))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.proj(self.attend(self.qkv(_rms_norm(x, self.eps1))))
        y: Tensor = x + self.fc2(F.gelu(self.fc1(_rms_norm(x, self.eps2))))
        return y

    def attend(self, qkv: Tensor) -> Tensor:
        """Attention: queries, keys and values (B, N, 3C) -> (B, N, C)."""
        B, N, width = qkv.shape
        q, k, v = qkv.reshape(B, N, 3 * self.heads, -1).transpose(1, 2).chunk(3, dim=1)  # (B, H, N, D)
        heads = (q @ k.transpose(2, 3)).softmax(dim=-1) @ v
        y: Tensor = heads.transpose(1, 2).reshape(B, N, width // 3)
        return y


class CentredBlock(FoldedBlock):
    """A `FoldedBlock` for a batch of one, written for TFLite: int8 attention loses less, and nothing is copied.

    The mean of the values over the tokens is subtracted before the product and added after it. The attention weights
    of a token add up to 1, so this changes nothing in exact arithmetic. In int8, weights near 1 / N are rounded by up
    to a half. Without the mean in the values, that error is multiplied by numbers around 0.
    """

    def attend(self, qkv: Tensor) -> Tensor:
        _, N, width = qkv.shape
        q, k, v = qkv.reshape(N, 3 * self.heads, -1).transpose(0, 1).chunk(3)  # (H, N, D)
        mean = v.mean(dim=1, keepdim=True)
        heads = (q @ k.transpose(1, 2)).softmax(dim=-1) @ (v - mean) + mean
        y: Tensor = heads.transpose(0, 1).reshape(1, N, width // 3)
        return y


class ExportModel(nn.Module):
    """A CED for inference: waveform (B, samples) or log-mel (B, n_mels, T) -> probabilities (B, n_classes)."""

    scale: Tensor
    time_embedding: Tensor
    freq_embedding: Tensor

    @torch.no_grad()
    def __init__(self, model: CED, waveform: bool, block: type[FoldedBlock] = FoldedBlock) -> None:
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
        # BatchNorm's offset is a constant per mel bin. So what it adds to a patch depends only on the patch's row, and
        # it goes into the frequency embedding. The scale stays: the floor below a clip's maximum comes before it.
        bias = model.patch_embed.proj.bias
        assert bias is not None
        shift = torch.einsum("cpt,fp->fc", weight, offset.reshape(spec.grid_freq, P)) + bias.double()
        freq = model.freq_pos_embed[0, :, :, 0].T + shift  # (F, C)
        # Patches arrive as (frames, mel bins), see `tokens`.
        self.patch = _linear(_centred(weight.transpose(1, 2).reshape(C, P * P), 0), None)
        self.register_buffer("scale", scale.float())
        self.register_buffer("time_embedding", _centred(model.time_pos_embed[0, :, 0].T.double(), 1).float())  # (T', C)
        self.register_buffer("freq_embedding", _centred(freq, 1).float().unsqueeze(1))  # (F, 1, C)
        self.blocks = nn.ModuleList(block(b) for b in model.blocks)  # type: ignore[arg-type]  # torch types them Module
        self.norm, self.head = copy.deepcopy(model.norm), copy.deepcopy(model.outputlayer)
        self.requires_grad_(False).eval()

    def example(self, window_samples: int, batch: int) -> Tensor:
        """Input of the right shape for the converters: quiet noise, or log-mel of about its level."""
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
        """Log-mel (B, T, n_mels) -> tokens with positions (B, N, C), in the order (f t)."""
        B, P, Fr, C = mel.shape[0], self.spec.patch, self.spec.grid_freq, self.spec.width
        T = mel.shape[1] // P
        x = (mel[:, : T * P] * self.scale).reshape(B, T, P, Fr, P)
        x = x.permute(0, 3, 1, 2, 4).reshape(B, Fr * T, P * P)
        x = self.patch(x).reshape(B, Fr, T, C) + self.time_embedding[:T] + self.freq_embedding
        tokens: Tensor = x.reshape(B, Fr * T, C)
        return tokens
