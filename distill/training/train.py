"""Train: a student learns from the store alone. It gets exactly the views that the teachers predicted."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from ced_edge.errors import InputError
from ced_edge.network.ced import CED
from ced_edge.spec import ModelSpec, size
from distill.teaching.store import CLEAN_EPOCH
from distill.teaching.views import ViewRecipe
from distill.training.batches import Batch, TrainingData, batches_per_pass, loader
from distill.training.config import TrainConfig
from distill.training.log import Reporter, TrainLog
from distill.training.loop import Trainer, make_fabric
from distill.training.losses import bce, prior_logits, spread, top_k_kl
from distill.training.optimizers import make_optimizers, warm_ema
from distill.training.patchout import kept_patches


def train(
    run: Path,
    stream: TrainingData,
    config: TrainConfig,
    *,
    init: CED | None = None,
    device: str = "cpu",
    reporter: Reporter | None = None,
) -> Path:
    """Train a student into the folder `run` and return the path of its weights, `model.safetensors`.

    `init` holds the weights to start from; without it they are random. If `run/state.pt` exists, the run continues
    from it exactly as if it had never stopped. Raises InputError when that state is of another recipe, the store of
    another pack, or a window does not fit the model; CedEdgeError on NaN, a full disk, or too little memory: the last
    checkpoint is kept.
    """
    check_store(stream)
    fabric = make_fabric(device, config.precision)
    torch.manual_seed(config.seed)
    model = init or new_student(stream, config)
    check_windows(model.spec, stream.recipe)
    model = model.to(fabric.device)
    averaged = AveragedModel(model, multi_avg_fn=warm_ema(config.ema), use_buffers=True)
    steps = config.steps or total_steps(stream, config)
    recipe, optimizers = make_recipe(stream, config, steps), make_optimizers(model, config)
    trainer = Trainer(run, config, recipe, steps, fabric, model, optimizers, averaged.module, averaged)
    step = trainer.resume()
    if trainer.done(step):
        return trainer.weights
    student, *prepared = fabric.setup(torch.compile(model) if config.compile else model, *optimizers)
    student.train()

    def losses(batch: Batch, step: int) -> dict[str, Tensor]:
        samples = batch.wave.shape[1]
        offset = time_offset(model.spec, samples, step, config.seed) if config.random_offset else 0
        kept = None
        if config.patchout:
            views, rank, world = len(batch.wave), stream.rank, stream.world
            choice = (config.patchout, config.patchout_kind, config.seed, step)
            kept = kept_patches(model.spec, samples, views, *choice, rank, world).to(batch.wave.device)
        logits = student(batch.wave, offset, kept).float()
        parts = {"bce": bce(logits, batch.target), "kl": top_k_kl(logits, batch.target, batch.kept)}
        with torch.no_grad():
            spreads = {"spread": spread(logits.sigmoid()), "teacher_spread": spread(batch.target)}
        return {"loss": config.bce * parts["bce"] + config.kl * parts["kl"], **parts, **spreads}

    log = TrainLog(run, step, steps, reporter) if fabric.is_global_zero else None
    batches = loader(stream, step, config.workers, device=fabric.device.type)
    return trainer.fit(step, losses, prepared, batches, log)


def make_recipe(stream: TrainingData, config: TrainConfig, steps: int) -> dict[str, Any]:
    """Everything that decides the result, for the checkpoint."""
    views, store = stream.recipe.to_dict(), stream.store.to_dict()
    return {"train": config.to_dict(), "views": views, "store": store, "steps": steps, "processes": stream.world}


def check_store(stream: TrainingData) -> None:
    """Raise InputError when the store's predictions are of other clips or views than those of the training data."""
    store = stream.store
    if store.pack != stream.pack.hash:
        raise InputError(
            f"{store.place} is a store of another pack than {stream.pack.location}: give the pack it was made from"
        )
    if not store.clean and store.recipe != stream.recipe:
        raise InputError(f"{store.place} holds predictions of other views than these: leave the views' flags out")


def check_windows(spec: ModelSpec, recipe: ViewRecipe) -> None:
    """Raise InputError when a student of this spec cannot take windows of this length."""
    rate_hz, hop, patch = spec.frontend.rate_hz, spec.frontend.hop, spec.patch
    for _, seconds in recipe.windows:
        if not 1 <= spec.frontend.frames(round(seconds * rate_hz)) // patch <= spec.grid_time:
            raise InputError(
                f"views of {seconds:g} s do not fit the student, which takes {(patch - 1) * hop / rate_hz:g} to "
                f"{spec.max_frames * hop / rate_hz:g} s: choose other --windows"
            )


def new_student(stream: TrainingData, config: TrainConfig) -> CED:
    """A student with initial weights; with `prior_bias`, its head predicts the mean of the stored predictions."""
    model = CED(size(config.size))
    # Every residual branch starts at 0: the blocks pass their input on unchanged at first. From random weights the
    # loss then falls a little faster (benchmarks/cold_start.py).
    for name, weight in model.named_parameters():
        if name.endswith(("attn.proj.weight", "mlp.fc2.weight")):
            nn.init.zeros_(weight)
    if config.prior_bias:
        start_at_prior(model, stream, config.fill)
    return model


def start_at_prior(model: CED, stream: TrainingData, fill: str) -> None:
    """Set the head's bias so that the student predicts the mean of the stored predictions of the first shards."""
    store, shards = stream.store, stream.pack.shards[:16]
    epoch = CLEAN_EPOCH if store.clean else 0
    dense = [store.read(epoch, shard.name, shard.clips).dense(fill)[0].mean(axis=0) for shard in shards]
    head = cast(nn.Linear, model.outputlayer[1])
    head.bias.data.copy_(prior_logits(torch.from_numpy(np.mean(dense, axis=0))))


def total_steps(stream: TrainingData, config: TrainConfig) -> int:
    """Steps in which every stored epoch is used `repeats` times. Raises InputError when the pack is too small."""
    workers = max(1, config.workers)
    per_pass = workers * batches_per_pass(stream.pack, stream.batch, stream.world * workers)
    return per_pass * stream.recipe.epochs * config.repeats


def time_offset(spec: ModelSpec, samples: int, step: int, seed: int) -> int:
    """The place of a step's windows of `samples` samples in the time embedding, in patches.

    It is drawn from (seed, step) alone. Windows are often shorter than the embedding. Always at its start, they would
    leave the rest of it untrained.
    """
    free = spec.grid_time - spec.frontend.frames(samples) // spec.patch
    if free <= 0:
        return 0
    return int(np.random.Philox(key=[seed, step]).random_raw() % (free + 1))
