"""`ced-edge android`: what is checked before the export, and what the build's script is started with."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import Call
from tiny_bundle import write_bundle

from ced_edge.errors import CedEdgeError, InputError
from export import android
from export import bundle as bundle_module
from export.cli import android as command


@pytest.fixture
def no_export(monkeypatch: pytest.MonkeyPatch) -> None:
    def export_bundle(*_: object) -> None:
        raise AssertionError("exported first")

    monkeypatch.setattr(bundle_module, "export_bundle", export_bundle)


def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, fetch: str = "") -> None:
    """Put a shell script and a Python program in the place of the app's own."""
    demo = tmp_path / "demo"
    (demo / "fetch").mkdir(parents=True, exist_ok=True)
    (demo / "fetch/fetch.py").write_text(fetch)
    script = demo / "build_apk.sh"
    script.write_text(f"#!/bin/sh\n{body}\n")
    script.chmod(0o755)
    monkeypatch.setattr(android, "DEMO", demo)


@pytest.mark.usefixtures("no_export")
def test_what_cannot_be_built_is_refused_before_the_export(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, err = call("android", "some/checkpoint", "-o", "app.zip")
    assert (code, "give the APK a name that ends in .apk" in err) == (2, True)
    stand_in(tmp_path, monkeypatch, "exit 9", fetch="print('its-package')")
    code, _, err = call("android", "some/checkpoint", "-o", "app.apk")
    assert (code, "apt-get install its-package" in err) == (2, True)
    stand_in(tmp_path, monkeypatch, "exit 9", fetch="import sys; sys.exit('another kind of machine')")
    code, _, err = call("android", "some/checkpoint", "-o", "app.apk")
    assert (code, "another kind of machine" in err) == (2, True)
    monkeypatch.setattr(android, "DEMO", tmp_path / "none")
    monkeypatch.chdir(tmp_path)
    code, _, err = call("android", "some/checkpoint", "-o", "app.apk")
    assert (code, "in the folder of a clone" in err) == (2, True)


def test_a_clone_in_the_current_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`pip install .` copies the package, and leaves the app's source in the clone."""
    (tmp_path / "android_demo").mkdir()
    (tmp_path / "android_demo/build_apk.sh").touch()
    monkeypatch.setattr(android, "DEMO", tmp_path / "site-packages")
    monkeypatch.chdir(tmp_path)
    assert android.demo_folder() == tmp_path / "android_demo"


def test_the_environment_does_not_change_the_kind_of_apk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, monkeypatch, 'printf "%s" "$KEYSTORE" > "$2/ced-edge-$3${STORED:+-stored}.apk"')
    monkeypatch.setenv("STORED", "1")
    monkeypatch.setenv("KEYSTORE", "mine")
    apk = android.build_apk(write_bundle(tmp_path / "bundle").folder, tmp_path / "app.apk")
    assert apk.path.read_text() == "mine"


def test_the_command_refuses_what_it_cannot_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = write_bundle(tmp_path / "bundle").folder
    with pytest.raises(InputError, match="a name that ends in"):
        android.build_apk(bundle, tmp_path / "app.zip")
    with pytest.raises(InputError, match="no such bundle"):
        android.build_apk(tmp_path / "none", tmp_path / "app.apk")
    both = CliRunner().invoke(command, ["x", "--bundle", str(bundle), "-o", "app.apk"])
    assert isinstance(both.exception, InputError)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="apt-get install openjdk-17-jdk-headless maven npm"):
        android.build_apk(bundle, tmp_path / "app.apk")


def test_the_command_moves_the_apk_and_reports_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = write_bundle(tmp_path / "bundle").folder

    def build(body: str) -> android.Apk:
        stand_in(tmp_path, monkeypatch, body)
        return android.build_apk(bundle, tmp_path / "deep" / "app.apk", "x86_64")

    apk = build('printf apk > "$2/ced-edge-$3.apk"; echo noise')
    assert (apk.path.read_bytes(), apk.bytes, apk.abi) == (b"apk", 3, "x86_64")
    with pytest.raises(CedEdgeError, match="exit code 3"):
        build("exit 3")
