"""The training config: every problem in one message, unknown keys are errors, flags over TOML over defaults."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from ced_edge.errors import InputError
from ced_edge.files import read_toml
from distill.options import config_options, parse_windows, read_config, view_recipe
from distill.teachers.spec import parse_teachers
from distill.teaching.views import ViewRecipe
from distill.training.config import PretrainConfig, TrainConfig

REPOSITORY = Path(__file__).resolve().parents[1]
NAN, INFINITE = float("nan"), float("inf")


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_all_problems_are_reported_at_once_with_their_flags() -> None:
    with pytest.raises(InputError) as e:
        TrainConfig(
            size="huge", steps=-1, batch=0, lr=NAN, warmup=1.0, ema=1.5, clip=0.0, bce=0.0, kl=0.0, fill="half",
            optimizer="sgd", precision="fp8", workers=-2, weight_decay=-0.1, checkpoint_minutes=INFINITE, seed=-1,
        )  # fmt: skip
    message = str(e.value)
    flags = (
        "--size", "--steps", "--batch", "--lr", "--warmup", "--ema", "--clip", "--bce", "--kl", "--fill",
        "--optimizer", "--precision", "--workers", "--weight-decay", "--checkpoint-minutes", "--seed",
    )  # fmt: skip
    assert [flag for flag in flags if flag not in message] == []
    assert "\n" not in message
    assert "--size must be one of tiny, mini, small, base, not 'huge'" in message
    assert e.value.exit_code == 2


@pytest.mark.parametrize("name", ["lr", "weight_decay", "warmup", "clip", "ema", "bce", "kl", "checkpoint_minutes"])
@pytest.mark.parametrize("value", [NAN, INFINITE, -1.0])
def test_numbers_must_be_numbers(name: str, value: float) -> None:
    with pytest.raises(InputError, match="--" + name.replace("_", "-")):
        TrainConfig(**{name: value})


def test_the_seed_fits_the_generators() -> None:
    TrainConfig(seed=2**63 - 1)
    with pytest.raises(InputError, match="--seed"):
        TrainConfig(seed=2**63)


@pytest.mark.parametrize("kind", [TrainConfig, PretrainConfig])
def test_every_field_has_a_help_text_a_plain_default_and_its_problems(kind: type) -> None:
    for field in dataclasses.fields(kind):
        assert field.metadata["help"].endswith((".", ";"))
        assert type(field.default) in (int, float, str, bool)
        if type(field.default) is not bool:
            with pytest.raises(InputError, match=f"--{field.name.replace('_', '-')} must be "):
                kind(**{field.name: "nonsense" if isinstance(field.default, str) else -1})


def test_dict_and_back() -> None:
    config = TrainConfig(steps=5, lr=1e-3, prior_bias=False)
    assert TrainConfig.from_dict(config.to_dict()) == config


def test_unknown_keys_and_wrong_types_are_reported_at_once() -> None:
    fields: dict[str, Any] = {"sizes": "tiny", "steps": "many", "lr": True, "compile": 1, "batch": 2.0, "warmup": 0}
    with pytest.raises(InputError) as e:
        TrainConfig.from_dict(fields, "my.toml")
    message = str(e.value)
    assert message.startswith("my.toml: unknown key sizes; there are size, batch")
    for problem in (
        "steps must be of type int, not 'many'",
        "lr must be of type float",
        "compile must be of type bool",
        "batch must be of type int",
    ):
        assert problem in message
    assert "warmup" not in message.partition("log_every")[2]  # a whole number will do


def test_toml(tmp_path: Path) -> None:
    file = write(tmp_path / "a.toml", 'size = "mini"\nlr = 1\nprior_bias = false\n')
    config = TrainConfig.read(file)
    assert (config.size, config.lr, config.prior_bias, config.batch) == ("mini", 1, False, TrainConfig().batch)
    assert TrainConfig.read(file, batch=7, size="base") == dataclasses.replace(config, batch=7)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr = 1e-3\nlearning_rate = 2\n", "unknown key learning_rate"),
        ("lr = = 1", "not readable TOML"),
        ("batch = -1", "--batch must be at least 1"),
        ("[train]\nbatch = 3", "unknown key train"),
    ],
)
def test_bad_toml(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        TrainConfig.read(write(tmp_path / "a.toml", text))


def test_toml_that_is_no_text_or_not_there(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"a\.toml is not readable TOML"):
        read_toml(tmp_path / "a.toml")
    with pytest.raises(InputError, match="no such file"):
        read_toml(tmp_path / "b.toml")
    with pytest.raises(InputError, match="not readable"):
        read_toml(tmp_path)


def parsed(arguments: list[str], **defaults: Any) -> TrainConfig:
    """The config that a command with the training flags is called with."""
    found: list[TrainConfig] = []

    @click.command()
    @config_options(TrainConfig)
    def command(config: Path | None, **flags: Any) -> None:
        found.append(read_config(TrainConfig, config, flags, **defaults))

    result = CliRunner().invoke(command, arguments, catch_exceptions=False, standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return found[0]


def test_flags_go_before_toml_and_toml_before_defaults(tmp_path: Path) -> None:
    file = str(write(tmp_path / "a.toml", "lr = 1e-4\nsteps = 10\ncompile = true\nbatch = 16\n"))
    config = parsed(["--config", file, "--steps", "20", "--no-compile"], batch=8, kl=0.5)
    assert (config.lr, config.steps, config.compile, config.batch, config.kl) == (1e-4, 20, False, 16, 0.5)
    assert parsed([], kl=0.5) == TrainConfig(kl=0.5)
    assert parsed([]) == TrainConfig()


def test_every_field_has_a_flag() -> None:
    for field in dataclasses.fields(TrainConfig):
        name = "--" + field.name.replace("_", "-")
        if isinstance(field.default, bool):
            assert getattr(parsed([name]), field.name) is True
            assert getattr(parsed(["--no-" + name[2:]]), field.name) is False
        else:
            assert getattr(parsed([name, str(field.default)]), field.name) == field.default


def test_bad_flags() -> None:
    with pytest.raises(InputError, match="--lr must be above 0"):
        parsed(["--lr", "0"])
    with pytest.raises(click.UsageError, match="not a valid integer"):
        parsed(["--steps", "many"])


def test_windows() -> None:
    assert parse_windows("20x2,4x5") == ((20, 2.0), (4, 5.0))
    assert parse_windows("1x0.5") == ((1, 0.5),)
    for text in ("", "2", "2x", "x2", "2x3x4", "ax2", "2*3"):
        with pytest.raises(InputError, match="EPOCHSxSECONDS"):
            parse_windows(text)


def test_view_flags_go_before_toml(tmp_path: Path) -> None:
    file = write(tmp_path / "v.toml", "seed = 3\nwindows = [[2, 1.5]]\nmix = [1.0]\n")
    assert view_recipe(None, None, None, "1x10") == ViewRecipe()
    assert view_recipe(None, file, None, "1x10") == ViewRecipe(seed=3, windows=((2, 1.5),), mix=(1.0,))
    assert view_recipe("4x2", file, 5, "1x10") == ViewRecipe(seed=5, windows=((4, 2.0),), mix=(1.0,))
    with pytest.raises(InputError, match="unknown key pitch"):
        view_recipe(None, write(tmp_path / "w.toml", "pitch = 1"), None, "1x10")


def test_shipped_configs_are_read() -> None:
    """Every TOML file of the repository is a training config, a view recipe or a list of teachers."""
    paths = sorted((REPOSITORY / "runs").glob("*.toml"))
    assert {"ced_tiny.toml", "ced_mini.toml", "ced_base.toml"} <= {path.name for path in paths}
    for path in paths:
        keys = set(read_toml(path))
        if keys == {"teachers"}:
            parse_teachers([], path)
        elif keys <= {f.name for f in dataclasses.fields(ViewRecipe)}:
            view_recipe(None, path, None, "1x10")
        else:
            TrainConfig.read(path)
