"""Pretrain: a masked autoencoder warms a student up on audio alone (arXiv 2111.06377; on spectrograms 2207.06405).

The student's blocks get a quarter of the patches of a window. A small decoder, which is thrown away afterwards, must
reconstruct the rest. No teacher and no label is needed, and a step is cheap because the blocks process few patches.
Published CED students start from such weights (arXiv 2308.11957).
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ced_edge.arrays import Bools, Float32
from ced_edge.network.ced import CED, Block, pick
from ced_edge.spec import ModelSpec, size
from distill.packing.shards import LoadedShard, Pack
from distill.processes import batch_share
from distill.teaching.store import Store
from distill.teaching.views import ViewRecipe
from distill.training.batches import Batch, Batches, TrainingData, loader
from distill.training.config import HEAD_WIDTH, PretrainConfig
from distill.training.log import Reporter, TrainLog
from distill.training.loop import Trainer, make_fabric
from distill.training.optimizers import make_optimizers
from distill.training.patchout import shuffles
from distill.training.train import time_offset

NOTHING_LEARNT = 0.97
"""Loss above which the decoder knows little more than that a normalised patch has mean 0 (which gives 1)."""


class MaskedAutoencoder(nn.Module):
    """A student and its decoder: waveform (B, samples) -> mean squared error on the hidden patches ()."""

    positions: Tensor

    def __init__(self, student: CED, width: int, depth: int) -> None:
        super().__init__()
        spec = student.spec
        self.student = student
        self.embed = nn.Linear(spec.width, width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        decoder = ModelSpec(width=width, heads=width // HEAD_WIDTH, depth=depth)
        self.blocks = nn.ModuleList(Block(decoder) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.out = nn.Linear(width, spec.patch**2)
        half = width // 2
        grid = torch.cat(
            [
                sinusoids(spec.grid_freq, half)[:, None].expand(-1, spec.grid_time, -1),
                sinusoids(spec.grid_time, half)[None].expand(spec.grid_freq, -1, -1),
            ],
            dim=2,
        )
        self.register_buffer("positions", grid.contiguous(), persistent=False)  # (F, T', D)
        for m in (self.embed, self.out, *self.blocks.modules()):
            if isinstance(m, nn.Linear):
                nn.init.xavier_uniform_(m.weight)  # at this width the student's 0.02 would be a slow start
                nn.init.zeros_(m.bias)
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def forward(self, wave: Tensor, order: Tensor, visible: int, time_offset: int = 0) -> Tensor:
        """`order` (B, N): the shuffled patches of each window. The first `visible` are input, the rest targets."""
        mel: Tensor = self.student.front_end(wave)
        wanted = pick(self.targets(mel), order[:, visible:])
        return F.mse_loss(self.reconstruct(mel, order, visible, time_offset).float(), wanted)

    def reconstruct(self, mel: Tensor, order: Tensor, visible: int, time_offset: int = 0) -> Tensor:
        """Log-mel (B, n_mels, T) -> the hidden patches as the decoder has them, (B, N - visible, patch * patch)."""
        tokens = self.student.patches(mel, time_offset).flatten(2).transpose(1, 2)  # (B, N, C), order (f t)
        encoded = self.student.encode(pick(tokens, order[:, :visible]))  # (B, V, C)
        x = self.embed(encoded)
        B, N = order.shape
        # Attention does not mind the order, so the patches stay shuffled and take their positions with them.
        positions = self.positions[:, : N // self.positions.shape[0]].flatten(0, 1)  # (N, D)
        x = torch.cat([x, self.mask_token.to(x.dtype).expand(B, N - visible, -1)], dim=1) + positions[order]
        for block in self.blocks:
            x = block(x)
        return self.out(self.norm(x[:, visible:]))  # type: ignore[no-any-return]

    @torch.no_grad()
    def targets(self, mel: Tensor) -> Tensor:
        """Log-mel (B, n_mels, T) -> patches (B, N, patch * patch), order (f t), each of mean 0 and variance 1.

        Mel bins are brought to one scale first, as the student's `init_bn` does, or the patch's slope over frequency
        would be most of what there is to learn.
        """
        P = self.student.spec.patch
        with torch.autocast(mel.device.type, enabled=False):
            x = F.batch_norm(mel.float(), None, None, training=True, eps=1e-5)
            B, M, T = x.shape
            x = x[:, :, : T // P * P].reshape(B, M // P, P, T // P, P)
            x = x.transpose(2, 3).reshape(B, -1, P * P)  # (B, N, P * P)
            return F.layer_norm(x, (P * P,), eps=1e-6)


def pretrain(
    run: Path, pack: Pack, config: PretrainConfig, device: str = "cpu", reporter: Reporter | None = None
) -> Path:
    """Warm a student up into the folder `run` and return the path of its weights, `model.safetensors`.

    What is saved is a whole student whose head is untrained: something for `--init`. Goes on from `run/state.pt` where
    there is one, exactly as if it had never stopped. Raises InputError when that state is of another recipe or pack,
    and CedEdgeError on NaN, a full disk, or too little memory; the last checkpoint stays.
    """
    fabric = make_fabric(device, config.precision)
    torch.manual_seed(config.seed)
    mae = MaskedAutoencoder(new_student(config), config.decoder_width, config.decoder_depth).to(fabric.device)
    optimizers = make_optimizers(mae, config, betas=(0.9, 0.95))  # the published betas of masked autoencoders
    rank, world = fabric.global_rank, fabric.world_size
    recipe = {"pretrain": config.to_dict(), "pack": pack.hash, "processes": world}
    trainer = Trainer(run, config, recipe, config.steps, fabric, mae, optimizers, mae.student)
    step = trainer.resume()
    if trainer.done(step):
        return trainer.weights
    prepared_mae, *prepared = fabric.setup(mae, *optimizers)
    prepared_mae.train()

    def losses(batch: Batch, step: int) -> dict[str, Tensor]:
        return {"loss": prepared_mae(batch.wave, *_draw(mae.student, batch.wave, config, step, rank, world))}

    log = PretrainLog(run, step, config.steps, reporter) if fabric.is_global_zero else None
    batches = loader(waves(pack, config, rank, world), step, config.workers, WaveBatches, fabric.device.type)
    return trainer.fit(step, losses, prepared, batches, log)


def _draw(
    student: CED, wave: Tensor, config: PretrainConfig, step: int, rank: int, world: int
) -> tuple[Tensor, int, int]:
    """What of a batch (B, samples) is hidden, and where it lies in the time embedding: from (seed, step) alone."""
    n = patches(student.spec, wave.shape[1])
    order = shuffles(config.seed, step, world * len(wave), n)[rank::world].to(wave.device)
    return order, n_visible(n, config.mask), time_offset(student.spec, wave.shape[1], step, config.seed)


def new_student(config: PretrainConfig) -> CED:
    """A student with initial weights, whose head is left out of the learning."""
    model = CED(size(config.size))
    model.outputlayer.requires_grad_(False)
    if config.sinusoids:
        C = model.spec.width
        with torch.no_grad():
            # Halves of the channels, so that no sum of a time and a frequency looks like another one.
            model.time_pos_embed.zero_()[0, : C // 2, 0] = sinusoids(model.spec.grid_time, C // 2).T
            model.freq_pos_embed.zero_()[0, C // 2 :, :, 0] = sinusoids(model.spec.grid_freq, C - C // 2).T
    return model


def sinusoids(n: int, width: int) -> Tensor:
    """Positions 0 to n - 1 as sines and cosines of `width / 2` wavelengths (arXiv 1706.03762): (n, width)."""
    rates = 10_000.0 ** -(torch.arange((width + 1) // 2) / max(1, width // 2))
    angles = torch.arange(n)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)[:, :width]


def patches(spec: ModelSpec, samples: int) -> int:
    """Patches of a window of `samples` samples."""
    return spec.grid_freq * (spec.frontend.frames(samples) // spec.patch)


def n_visible(n: int, mask: float) -> int:
    """How many of n patches are input: at least one, and at least one is hidden."""
    return min(max(round((1.0 - mask) * n), 1), n - 1)


def waves(pack: Pack, config: PretrainConfig, rank: int = 0, world: int = 1) -> TrainingData:
    """Windows of single clips, anew in each pass over the pack: any place, level and sign, nothing masked or mixed.

    Raises InputError when the processes cannot share a batch.
    """
    # No pass takes less than a step, so that many epochs are never used up.
    recipe = ViewRecipe(seed=config.seed, windows=((config.steps, config.seconds),), mask_probability=0.0, mix=(1.0,))
    unread = Store(Path(), recipe, [], 1, pack.hash)
    rate_hz = size(config.size).frontend.rate_hz
    return TrainingData(pack, unread, recipe, batch_share(config.batch, world), rate_hz, rank=rank, world=world)


class WaveBatches(Batches):
    """Batches of views without targets: no teacher is needed."""

    def _targets(self, data: TrainingData, now: LoadedShard, epoch: int) -> tuple[Float32, Bools]:
        nothing = np.zeros((len(now.ids), 0), np.float32)
        return nothing, nothing > 0


class PretrainLog(TrainLog):
    """`log.csv` and `tensorboard/` of a warm-up."""

    fields = ("step", "loss", "grad", "lr", "clips_per_s")

    def describe(self, row: dict[str, float]) -> str:
        return f"loss {row['loss']:.4f} (1 is what guessing gives)"

    def problem(self, row: dict[str, float]) -> str:
        if math.isfinite(row["loss"]) and row["loss"] < NOTHING_LEARNT:
            return ""
        return f"hidden patches are no better than guessed (loss {row['loss']:.3f}): raise --steps or --lr"
