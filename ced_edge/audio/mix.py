"""From several channels to one, and the largest sample: the rules for files, streams and training alike.

**Channels.** The mono sound is the mean of the channels. Channels can cancel each other in the mean, as when a
microphone is wired the wrong way round; then the channel with the most power is used. The rule for n channels: a
channel among silent ones leaves 1 / n^2 of its power in the mean (6 dB less, for stereo). The mean is given up when it
has less than 40 % of that (10 dB less than the channel, for stereo), and used again when it has more than 80 %.

The decision is made for each tenth of a second, from the power of everything up to its end, in which the past fades
with a time constant of 3 s. It depends neither on what comes later nor on the pieces in which the samples arrive, so
that a stream and a file give the same samples.

**Largest sample.** Samples of floats may exceed 1.0: decoders of lossy formats exceed it, and files of floats have room
above it. Samples up to 8.0 (+18 dB) are used as they are. A larger sample, NaN or infinity refuses the whole sound,
because its format or its scale must be wrong.
"""

from __future__ import annotations

import logging
import math

import numpy as np

from ced_edge.arrays import Float32
from ced_edge.errors import InputError

MAX_SAMPLE = 8.0
"""The largest size of a sample, where 1.0 is full scale."""
_BLOCK_S = 0.1
_FADE_S = 3.0
_GIVE_UP, _USE_AGAIN = 0.4, 0.8
_QUIET = 1e-9  # mean power (-90 dBFS) below which nothing is decided: noise of a converter may cancel by chance
_LOUDER = 4.0  # another channel replaces the loudest one when it has so many times its power (6 dB)

log = logging.getLogger(__name__)


def first_bad(block: Float32) -> int | None:
    """The index of the first sample in (n,) or (n, channels) that is NaN, infinite, or larger than MAX_SAMPLE."""
    # NaN is in no range, and min() and max() return it.
    if not block.size or -MAX_SAMPLE <= block.min() <= block.max() <= MAX_SAMPLE:
        return None
    return int((~(np.abs(block) <= MAX_SAMPLE)).reshape(len(block), -1).any(axis=1).argmax())


def check_samples(block: Float32, first: int, rate_hz: int) -> None:
    """Raise InputError on a sample of (n, channels) that is NaN, infinite, or larger than MAX_SAMPLE.

    `first` is the index of the first row, from the start of the sound.
    """
    if (row := first_bad(block)) is None:
        return
    value = next(x for x in block[row].tolist() if not abs(x) <= MAX_SAMPLE)
    what = "NaN" if math.isnan(value) else "infinite" if math.isinf(value) else f"{value:.4g}"
    raise InputError(
        f"the sample at {(first + row) / rate_hz:.3f} s (index {first + row}) is {what}: samples are in [-1, 1]; "
        "is the sound damaged, is its format another one (--pcm-format), or are integers stored as floats "
        "(divide 16-bit ones by 32768)?"
    )


class Mixer:
    """The mono version of one sound, which comes in pieces of any length."""

    def __init__(self, channels: int, rate_hz: int, name: str | None) -> None:
        """`name` is for the notice that the mean was given up. None: give no notice."""
        self._name, self._channels = name, channels
        self._block = max(1, round(_BLOCK_S * rate_hz))
        self._fade = float(np.exp(-self._block / rate_hz / _FADE_S))
        self._held: list[Float32] = []  # the samples of a block that is not complete
        self._held_frames = 0
        self._power = [0.0] * channels  # fading sums of squares
        self._mean_power = self._frames = 0.0
        self._loudest: int | None = None
        """The channel that replaces the mean."""

    def push(self, frames: Float32) -> Float32:
        """(n, channels) -> (m,) mono samples that are decided. The others follow later."""
        if self._channels == 1:
            return frames[:, 0]
        whole = (self._held_frames + len(frames)) // self._block * self._block - self._held_frames
        if whole <= 0:
            self._hold(frames)
            return np.empty(0, np.float32)
        ready = np.concatenate([*self._held, frames[:whole]]) if self._held else frames[:whole]
        self._held, self._held_frames = [], 0
        self._hold(frames[whole:])
        return self._mixed(ready.reshape(-1, self._block, self._channels))

    def finish(self) -> Float32:
        """The mono samples of the last, incomplete block."""
        if not self._held:
            return np.empty(0, np.float32)
        rest = np.concatenate(self._held)
        self._held, self._held_frames = [], 0
        return self._mixed(rest[None])

    def _hold(self, frames: Float32) -> None:
        if len(frames):
            self._held.append(frames.copy())  # a view would keep a long piece in memory
            self._held_frames += len(frames)

    def _mixed(self, blocks: Float32) -> Float32:
        """(blocks, samples, channels) -> (blocks * samples,)."""
        mono = mean(blocks.reshape(-1, self._channels)).reshape(blocks.shape[:2])
        mean_powers = np.einsum("bs,bs->b", mono, mono).tolist()
        powers = np.stack([np.einsum("bs,bs->b", x, x) for x in np.moveaxis(blocks, 2, 0)], 1).tolist()
        for i in range(len(blocks)):
            self._decide(powers[i], mean_powers[i], blocks.shape[1])
            if self._loudest is not None:
                mono[i] = blocks[i, :, self._loudest]
        return mono.ravel()

    def _decide(self, powers: list[float], mean_power: float, frames: int) -> None:
        fade = self._fade
        self._power = [fade * a + b for a, b in zip(self._power, powers, strict=True)]
        self._mean_power = fade * self._mean_power + mean_power
        self._frames = fade * self._frames + frames
        top = max(self._power)
        if top <= _QUIET * self._frames:
            return
        alone = top / self._channels**2  # the mean's power if the other channels were silent
        if self._loudest is None:
            if self._mean_power < _GIVE_UP * alone:
                self._loudest = self._strongest(top)
                self._report(top)
        elif self._mean_power > _USE_AGAIN * alone:
            self._loudest = None
        elif top > _LOUDER * self._power[self._loudest]:
            self._loudest = self._strongest(top)

    def _strongest(self, top: float) -> int:
        """The first channel that is about as strong as the strongest one: rounding must not decide."""
        return next(i for i, power in enumerate(self._power) if power > 0.9 * top)

    def _report(self, top: float) -> None:
        if self._name is not None and self._loudest is not None:
            lost = 100 * (1 - self._mean_power / top)
            log.warning(
                "%s: its channels cancel each other: their mean has lost %.0f %% of the power, so channel %d alone is "
                "used (is a microphone wired the wrong way round?)",
                self._name,
                lost,
                self._loudest + 1,
            )
            self._name = None


def mean(frames: Float32) -> Float32:
    """(n, channels) -> (n,): the mean. The order of the sum does not depend on n, so pieces give the same bits."""
    total = frames[:, 0].copy()
    for channel in frames.T[1:]:
        total += channel
    return total if frames.shape[1] == 1 else total / np.float32(frames.shape[1])


def with_channels(frames: Float32, channels: int) -> Float32:
    """(n, any number of channels) -> (n, channels): as they are, or the mean in every channel."""
    if frames.shape[1] == channels:
        return frames
    return np.repeat(mean(frames)[:, None], channels, axis=1)
