"""Find, read, check and write checkpoints.

Three forms are read: files of this program (safetensors, with the spec, labels hash and recipe inside), the published
CED checkpoints (.pt or .safetensors), and those of Hugging Face (keys `encoder.*`). The source is a file, a folder, or
a name on the Hugging Face hub. Nothing in a file is trusted: see `weights.py` and `load_model`. Weights that a training
program has wrapped (`module.`, `_orig_mod.`, Lightning's `state_dict`) are unwrapped there too.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from ced_edge import __version__
from ced_edge.errors import InputError, first_line
from ced_edge.files import atomic_path, read_json
from ced_edge.labels import labels_hash
from ced_edge.network.ced import CED
from ced_edge.network.weights import is_safetensors, read_weights, unreadable, wrong_classes
from ced_edge.spec import N_CLASSES, SIZES, ModelSpec

log = logging.getLogger(__name__)

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin", "latest.safetensors")
"""Names of weight files in a folder. The first one that exists is read."""

ANCHORS = ("patch_embed.proj.weight", "encoder.patch_embed.proj.weight")
"""The name that every CED has among its weights, published and on the hub. It shows which prefix wrappers added."""
_HUB_TIMEOUT_S = 10.0


@dataclasses.dataclass(frozen=True)
class CheckpointFiles:
    """The files of a checkpoint on this machine."""

    weights: Path
    config: Path | None = None
    """The Hugging Face config.json beside the weights."""


def save_model(path: Path, model: CED, metadata: Mapping[str, Any]) -> None:
    """Write `model` as a safetensors file, atomically, with its spec, labels hash, version and git revision inside.

    Values of `metadata` (such as the recipe) become JSON, except strings. Raises CedEdgeError on a full disk.
    """
    own = {
        "format": "ced-edge",
        "spec": model.spec.to_dict(),
        "labels_hash": labels_hash(),
        "version": __version__,
        "git_revision": git_revision(),
    }
    text = {k: v if isinstance(v, str) else json.dumps(v, sort_keys=True) for k, v in {**metadata, **own}.items()}
    tensors = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    with atomic_path(path) as p:
        # Not safetensors' save_file: it hides the OSError of a full disk.
        p.write_bytes(_sorted_metadata(save(tensors, text)))


def _sorted_metadata(data: bytes) -> bytes:
    """Sort the metadata: the library writes it in random order, but equal models shall have equal bytes."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors must start at a multiple of 8 bytes
    return len(text).to_bytes(8, "little") + text + data[end:]


def read_metadata(source: str | Path) -> dict[str, Any]:
    """The metadata of a safetensors checkpoint, with JSON objects and lists decoded. Empty for other files."""
    path = find_checkpoint(source).weights
    try:
        if not is_safetensors(path):
            return {}
        with safe_open(path, "pt") as f:
            text: dict[str, str] = f.metadata() or {}
        return {k: json.loads(v) if v[:1] in ("{", "[") else v for k, v in text.items()}
    except Exception as e:
        raise unreadable(path, e) from e


def load_model(source: str | Path, spec: ModelSpec | None = None, heads: int | None = None) -> CED:
    """Load a CED in eval mode, on the CPU, in float32.

    `source`: a .pt or .safetensors file, a run folder, a Hugging Face folder, or a hub name (mispeech/ced-tiny).
    Without `spec`, the spec comes from the metadata in the file, else from the shapes of the weights. The number of
    heads has no effect on the shapes. It is the first of these that exists: `heads`; that of the published size with
    this width; `num_heads` in config.json; one per 64 channels; 3. The last two are guesses, and logged as a warning.

    A time embedding of another length is cut or stretched, with a warning. Raises InputError when anything else does
    not fit (with the key and both shapes), and when the file is no CED checkpoint.
    """
    found = find_checkpoint(source)
    tensors, note = read_weights(found.weights, *ANCHORS)
    if note:
        log.info("%s", note)
    state = normalise_keys(tensors, found.weights)
    metadata = read_metadata(found.weights)
    if metadata.get("labels_hash", labels_hash()) != labels_hash():
        raise InputError(f"{found.weights} was made for another list of classes than the {N_CLASSES} of this program")
    written = _written_spec(metadata, found.weights)
    spec = spec or written or infer_spec(state, found, heads)
    if written and (written.heads, written.frontend) != (spec.heads, spec.frontend):
        # The weights would load, because the shapes are equal, and give wrong predictions.
        raise InputError(
            f"{found.weights} is a {written.name} with {written.heads} heads; requested is a {spec.name} with "
            f"{spec.heads} heads{' and another front end' * (written.frontend != spec.frontend)}"
        )
    _check_classes(state, spec, found.weights)
    _fit_time_embedding(state, spec, found.weights)
    with torch.device("meta"):  # shapes without memory: a hostile spec must not allocate more than its file holds
        shapes = CED(spec).state_dict()
    _check(state, shapes, found.weights)
    model = CED(spec)
    model.load_state_dict(state, strict=True)
    return model.eval()


def _written_spec(metadata: Mapping[str, Any], path: Path) -> ModelSpec | None:
    try:
        return ModelSpec.from_dict(metadata["spec"]) if "spec" in metadata else None
    except InputError as e:
        raise InputError(f"{path}: {e}") from e


def find_checkpoint(source: str | Path) -> CheckpointFiles:
    """The files of `source`. A name on the hub is downloaded, or read from the hub's cache. Raises InputError."""
    path = Path(source).expanduser()
    if path.is_file():
        config = path.with_name("config.json")
        return CheckpointFiles(path, config if config.is_file() else None)
    if path.is_dir():
        for name in WEIGHT_FILES:
            if (path / name).is_file():
                return find_checkpoint(path / name)
        raise InputError(f"no checkpoint in the folder {path}: it holds none of {', '.join(WEIGHT_FILES)}")
    # A name on the hub looks like a relative path. A mistake in a path must not start a download.
    is_hub_name = re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", str(source)) is not None
    if not is_hub_name or path.suffix in (".pt", ".pth", ".ckpt", ".bin", ".safetensors") or path.parent.is_dir():
        raise InputError(f"no such checkpoint: {source}")
    return _download(str(source))


def _download(name: str) -> CheckpointFiles:
    try:
        import huggingface_hub as hub
        from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError
    except ImportError as e:
        raise InputError(f"no such file: {name} (to fetch it from the hub: pip install huggingface_hub)") from e

    found: dict[str, Path] = {}
    offline: Exception | None = None
    try:
        # One quick request first: without a network, `hf_hub_download` would retry for half a minute.
        hub.get_hf_file_metadata(hub.hf_hub_url(name, "config.json"), timeout=_HUB_TIMEOUT_S)
    except (EntryNotFoundError, HfHubHTTPError):
        pass  # the hub can be reached
    except Exception as e:  # the errors of its HTTP client, which depend on the version
        offline = e
    for file in ("config.json", "model.safetensors", "pytorch_model.bin"):
        if file == "pytorch_model.bin" and "model.safetensors" in found:
            break
        try:
            found[file] = Path(hub.hf_hub_download(name, file, local_files_only=offline is not None))
        except LocalEntryNotFoundError as e:  # no network, and this file is not in the cache; others may be
            offline = offline or e
        except EntryNotFoundError:  # the repository has no such file
            continue
        except Exception as e:  # errors of the hub, of its HTTP client, or of the disk
            raise InputError(
                f"no file or folder {name}, and the Hugging Face hub did not give it: {first_line(e)}"
            ) from e
    weights = found.get("model.safetensors", found.get("pytorch_model.bin"))
    if weights is None and offline is not None:
        reason = first_line(offline)
        raise InputError(f"no file or folder {name}, and the Hugging Face hub is out of reach: {reason}") from offline
    if weights is None:
        raise InputError(f"{name} on the Hugging Face hub has neither model.safetensors nor pytorch_model.bin")
    return CheckpointFiles(weights, found.get("config.json"))


def normalise_keys(state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Keys of published or Hugging Face checkpoints -> keys of this program, without buffers of the front end.

    Raises InputError when it is no CED checkpoint.
    """
    keys = {}
    for key, tensor in state.items():
        key = key.removeprefix("encoder.")
        if not key.startswith("front_end."):
            keys[re.sub(r"^init_bn\.(?!1\.)", "init_bn.1.", key)] = tensor
    if "patch_embed.proj.weight" not in keys or "time_pos_embed" not in keys:
        some = ", ".join(list(state)[:3]) or "nothing"
        raise InputError(f"{path} is no CED checkpoint: it has no patch_embed.proj.weight, but {some} ...")
    return keys


def infer_spec(state: Mapping[str, Tensor], found: CheckpointFiles, heads: int | None = None) -> ModelSpec:
    """The spec that fits the shapes. For the heads see `load_model`. Raises InputError when no spec fits."""
    patch, embedding = state["patch_embed.proj.weight"], state["time_pos_embed"]
    hidden = state.get("blocks.0.mlp.fc1.weight", torch.empty(0))
    if (patch.ndim, embedding.ndim, hidden.ndim) != (4, 4, 2) or not len(patch) or hidden.shape[0] % len(patch):
        raise InputError(f"{found.weights} is no CED checkpoint: its blocks or its time embedding have odd shapes")
    default, width, grid_time = SIZES["tiny"], len(patch), embedding.shape[3]
    try:
        return ModelSpec(
            width=width,
            heads=heads or _heads(width, found),
            # Counted: a single key "blocks.999999999.x" must not make a billion blocks.
            depth=len({m[1] for m in (re.match(r"blocks\.(\d+)\.", k) for k in state) if m}),
            mlp_ratio=hidden.shape[0] // width,
            # 63 columns are published as 1012 frames; the rest of 4 frames, less than a patch, is never used.
            max_frames=default.max_frames if grid_time == default.grid_time else grid_time * default.patch,
        )
    except InputError as e:
        raise InputError(f"{found.weights}: {e}") from e


def _heads(width: int, found: CheckpointFiles) -> int:
    for published in SIZES.values():
        if published.width == width:
            return published.heads
    config = read_json(found.config) if found.config else {}
    if isinstance(config, dict) and isinstance(config.get("num_heads"), int):
        return int(config["num_heads"])
    guess = width // 64 if width % 64 == 0 else SIZES["tiny"].heads
    if width % guess:
        raise InputError(
            f"{found.weights}: the number of heads for width {width} is unknown: write num_heads into config.json"
        )
    log.warning("%s: width %d is no published size; assuming %d heads", found.weights, width, guess)
    return guess


def _fit_time_embedding(state: dict[str, Tensor], spec: ModelSpec, path: Path) -> None:
    embedding = state["time_pos_embed"]  # (1, C, 1, T')
    if embedding.ndim != 4 or embedding.shape[:3] != (1, spec.width, 1) or embedding.shape[3] in (0, spec.grid_time):
        return  # fits, or `_check` reports it
    have, want = embedding.shape[3], spec.grid_time
    if have > want:
        state["time_pos_embed"] = embedding[..., :want].clone()
        how = "cut to"
    else:
        state["time_pos_embed"] = F.interpolate(embedding.float(), size=(1, want), mode="bilinear", align_corners=False)
        how = "stretched to"
    log.warning("%s: the time embedding has %d columns, %s the %d of this model", path, have, how, want)


def _check_classes(state: Mapping[str, Tensor], spec: ModelSpec, path: Path) -> None:
    head = state.get("outputlayer.1.weight")
    if head is not None and head.ndim == 2 and len(head) != spec.n_classes == N_CLASSES:
        raise InputError(f"{path}: {wrong_classes(len(head))}")


def _check(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: Path) -> None:
    if missing := sorted(expected.keys() - state.keys()):
        raise InputError(f"{path}: no {missing[0]}" + (f" nor {len(missing) - 1} more keys" if missing[1:] else ""))
    if unknown := sorted(state.keys() - expected.keys()):
        raise InputError(f"{path}: unknown key {unknown[0]}" + (f" and {len(unknown) - 1} more" if unknown[1:] else ""))
    for key, tensor in state.items():
        have, want = tuple(tensor.shape), tuple(expected[key].shape)
        if have != want:
            raise InputError(f"{path}: {key} has the shape {have}, this model's is {want}")
        if not torch.isfinite(tensor.float()).all():
            raise InputError(f"{path}: {key} holds NaN or infinity: the checkpoint is broken")


@functools.lru_cache(maxsize=1)
def git_revision() -> str:
    """The commit of this program, with `+` if files were changed. `unknown` outside its own repository."""
    root = Path(__file__).resolve().parents[2]

    def git(*args: str) -> str:
        return subprocess.run(["git", "-C", root, *args], capture_output=True, text=True, check=True).stdout.strip()

    try:
        # The program may be installed inside another repository, whose commit would be wrong.
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root:
            return "unknown"
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
