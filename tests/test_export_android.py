"""`ced-edge android`: what is checked before the export, and what the build's script is started with."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import Call
from tiny_bundle import write_bundle

from export import android
from export import bundle as bundle_module


@pytest.fixture
def no_export(monkeypatch: pytest.MonkeyPatch) -> None:
    def export_bundle(*_: object) -> None:
        raise AssertionError("exported first")

    monkeypatch.setattr(bundle_module, "export_bundle", export_bundle)


@pytest.mark.usefixtures("no_export")
def test_what_cannot_be_built_is_refused_before_the_export(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, err = call("android", "some/checkpoint", "-o", "app.zip")
    assert (code, "give the APK a name that ends in .apk" in err) == (2, True)
    monkeypatch.setattr(android, "PROGRAMS", {"no-such-program": "its-package"})
    code, _, err = call("android", "some/checkpoint", "-o", "app.apk")
    assert (code, "apt-get install its-package" in err) == (2, True)
    monkeypatch.setattr(android, "SCRIPT", tmp_path / "none.sh")
    code, _, err = call("android", "some/checkpoint", "-o", "app.apk")
    assert (code, "the app's source is missing" in err) == (2, True)


def test_the_environment_does_not_change_the_kind_of_apk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "build.sh"
    script.write_text('#!/bin/sh\nprintf "%s" "$KEYSTORE" > "$2/ced-edge-$3${STORED:+-stored}.apk"\n')
    script.chmod(0o755)
    monkeypatch.setattr(android, "SCRIPT", script)
    monkeypatch.setattr(android, "PROGRAMS", {})
    monkeypatch.setenv("STORED", "1")
    monkeypatch.setenv("KEYSTORE", "mine")
    apk = android.build_apk(write_bundle(tmp_path / "bundle").folder, tmp_path / "app.apk")
    assert apk.path.read_text() == "mine"
