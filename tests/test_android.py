"""What of the Android app can be checked in Python; `make android-test` runs the app itself."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tiny_bundle import write_bundle

from ced_edge.files import read_toml, sha256_file
from export import android

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "android_demo"


def script(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(Path(path).stem, DEMO / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


GRADLE_WRAPPER_SHA256 = "2db75c40782f5e8ba1fc278a5574bab070adccb2d21ca5a6e5ed840888448046"
check_apk, pack, fetch = script("tools/check_apk.py"), script("tools/pack.py"), script("fetch/fetch.py")


def test_the_golden_vectors_are_fresh() -> None:
    golden = script("golden/golden.py")
    assert golden.PATH.read_text() == golden.text(), "run android_demo/golden/golden.py"


def test_parts_of_the_app_know_only_the_core() -> None:
    main = DEMO / "app/src/main/kotlin/org/cededge/demo"
    found = 0
    for file in main.rglob("*.kt"):
        imported = re.findall(r"^import org\.cededge\.demo\.(\w+)", file.read_text(), re.M)
        found += len(imported)
        if file.parent != main:
            assert set(imported) <= {"core", "R", file.parent.name}, file
    assert found > 30
    for file in (DEMO / "core/src/main").rglob("*.kt"):
        assert not re.findall(
            r"^import (?:android|ai\.onnxruntime|org\.cededge\.demo\.(?!core))", file.read_text(), re.M
        ), file


def test_no_runtime_that_sends_telemetry() -> None:
    """From 1.29 on ONNX Runtime reports to its maker."""
    pinned = (DEMO / "fetch/pinned.txt").read_text()
    versions = re.findall(r"onnxruntime:onnxruntime:1\.(\d+)\.", pinned)
    assert versions
    assert max(map(int, versions)) <= 28
    assert "com.github.asus4.onnxruntime@0.4.8" in pinned  # holds 1.26.0
    (gradle,) = re.findall(r'^onnxruntime = "1\.(\d+)\.', (DEMO / "gradle/libs.versions.toml").read_text(), re.M)
    assert int(gradle) <= 28


def test_every_string_is_shown_somewhere() -> None:
    names = re.findall(r'<(?:string|plurals) name="(\w+)"', (DEMO / "app/src/main/res/values/strings.xml").read_text())
    sources = "".join(f.read_text() for f in (DEMO / "app/src/main").rglob("*") if f.suffix in (".kt", ".xml"))
    unused = [n for n in names if not re.search(rf"R\.(string|plurals)\.{n}\b|@string/{n}\b", sources)]
    assert unused == []
    literal = re.findall(r'android:(?:text|contentDescription|hint)="(?!@)[^"]+"', sources)
    assert literal == [], "text for people belongs in strings.xml"


def elf(alignment: int) -> bytes:
    """A 64-bit ELF file with one loaded segment."""
    head = bytearray(64)
    head[:5] = b"\x7fELF\x02"
    struct.pack_into("<Q", head, 32, 64)
    struct.pack_into("<HH", head, 54, 56, 1)
    segment = bytearray(56)
    struct.pack_into("<I", segment, 0, 1)
    struct.pack_into("<Q", segment, 48, alignment)
    return bytes(head + segment)


@pytest.mark.parametrize("name", ["a.so", "lib/arm64-v8a/longer_by_some_letters.so"])
def test_stored_libraries_lie_at_multiples_of_16_kb(tmp_path: Path, name: str) -> None:
    path = tmp_path / "app.apk"
    with zipfile.ZipFile(path, "w") as out:
        pack.add(out, "first.txt", b"some text", True)
        pack.add(out, name, elf(16_384), True)
    assert check_apk.shared_library_faults(path, unpacked_at_installation=False) == []
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert archive.read(name) == elf(16_384)


def test_faults_of_libraries_are_found(tmp_path: Path) -> None:
    path = tmp_path / "app.apk"
    with zipfile.ZipFile(path, "w") as out:
        out.writestr("lib/unaligned.so", elf(16_384), zipfile.ZIP_STORED)
        out.writestr("lib/small_pages.so", elf(4_096), zipfile.ZIP_DEFLATED)
    faults = check_apk.shared_library_faults(path, unpacked_at_installation=False)
    assert [f.partition(":")[0] for f in faults] == ["lib/unaligned.so", "lib/small_pages.so", "lib/small_pages.so"]
    assert "no multiple of 16 KB" in faults[0]
    assert "multiples of 4096" in faults[1]
    assert "extractNativeLibs" in faults[2]
    assert len(check_apk.shared_library_faults(path, unpacked_at_installation=True)) == 2


def test_telemetry_and_changed_files_are_found(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    path = tmp_path / "app.apk"

    def faults(extra: bytes, labels: bytes | None = None) -> list[str]:
        with zipfile.ZipFile(path, "w") as out:
            out.writestr("classes.dex", extra)
            for file in pack.app_files(bundle.folder):
                changed = labels if file.name == "labels.txt" and labels else file.read_bytes()
                out.writestr(f"assets/bundle/{file.name}", changed)
        found: list[str] = check_apk.content_faults(path)
        return found

    assert faults(b"harmless") == []
    assert faults(b"x Lai/onnxruntime/telemetry/HttpClient; x") == ["classes.dex: telemetry (onnxruntime/telemetry)"]
    assert faults(b"", labels=b"Cat\n") == ["assets/bundle/labels.txt: another hash than in bundle.json"]


def test_a_file_with_another_hash_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = hashlib.sha256(b"other").hexdigest()
    (tmp_path / "pinned.txt").write_text(f"tools npm thing@1 {'0' * 64}\nfine npm thing@1 {good}\n")
    monkeypatch.setattr(fetch, "HERE", tmp_path)
    monkeypatch.setattr(fetch, "TARGET", tmp_path / "out")
    monkeypatch.setattr(fetch, "missing", list)
    monkeypatch.setattr(sys, "argv", ["fetch.py"])
    fetched = []

    def download(_client: str, pins: list[Any], root: Path) -> None:
        for pin in pins:
            fetched.append(pin.folder)
            (root / pin.folder).mkdir()
            (root / pin.folder / pin.file).write_bytes(b"other")

    monkeypatch.setattr(fetch, "download", download)
    monkeypatch.setattr(fetch, "unpack", lambda _path: None)
    with pytest.raises(SystemExit, match="thing@1 is not the pinned file"):
        fetch.main()
    assert list((tmp_path / "out").iterdir()) == []
    for _ in range(2):
        monkeypatch.setattr(sys, "argv", ["fetch.py", "fine"])
        fetch.main()
    assert fetched == ["tools", "fine", "fine"]  # the last call found everything complete
    monkeypatch.setattr(sys, "argv", ["fetch.py", "fine", "lost"])
    with pytest.raises(SystemExit, match="no folder lost"):
        fetch.main()


@pytest.mark.parametrize("javac", ["echo javac 11.0.2", "exit 1"])
def test_an_old_jdk_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, javac: str) -> None:
    for program in fetch.PROGRAMS:
        stand_in = tmp_path / program
        stand_in.write_text(f"#!/bin/sh\n{javac if program == 'javac' else ''}\n")
        stand_in.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert fetch.missing() == ["openjdk-17-jdk-headless"]
    (tmp_path / "javac").write_text("#!/bin/sh\necho javac 21.0.1\n")
    assert fetch.missing() == []


def test_another_machine_gets_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch.platform, "machine", lambda: "arm64")
    with pytest.raises(SystemExit, match="open the folder android_demo in Android Studio"):
        fetch.main()


def test_both_builds_are_of_one_app() -> None:
    """Gradle's files and the script name the same versions. Gradle itself cannot be run here."""
    catalogue = read_toml(DEMO / "gradle/libs.versions.toml")["versions"]
    pinned = (DEMO / "fetch/pinned.txt").read_text()
    names = {
        "kotlin": "kotlin-compiler-embeddable",
        "robolectric": "org.robolectric:robolectric",
        "junit": "junit:junit",
    }
    for key, name in (names | {"onnxruntime": "com.microsoft.onnxruntime:onnxruntime"}).items():
        assert f"{name}:{catalogue[key]}:jar" in pinned, key
    gradle = (DEMO / "app/build.gradle.kts").read_text()
    script_ = (DEMO / "tools/compile.sh").read_text()
    for key, option in {
        "minSdk": "--min-sdk-version",
        "targetSdk": "--target-sdk-version",
        "versionCode": "--version-code",
        "versionName": "--version-name",
    }.items():
        (value,) = re.findall(rf'{key} = "?([\d.]+)"?', gradle)
        assert f"{option} {value} " in script_, key
    assert "compileSdk = 35" in gradle
    assert "android-all-15-robolectric" in script_  # Android 15 is API 35
    assert all(f'"{abi}"' in gradle for abi in android.ABIS)
    wrapper = DEMO / "gradle/wrapper"
    properties = (wrapper / "gradle-wrapper.properties").read_text()
    assert "gradle-8.11.1-bin.zip" in properties
    assert re.search(r"^distributionSha256Sum=[0-9a-f]{64}$", properties, re.M)
    # The checksum that gradle.org publishes for this version's wrapper.
    assert sha256_file(wrapper / "gradle-wrapper.jar") == GRADLE_WRAPPER_SHA256


@pytest.mark.slow
def test_the_arm64_library_of_the_apk_predicts_as_x86_does() -> None:
    apk = ROOT / ".venv/android/apk/ced-edge-arm64-v8a.apk"
    if not apk.is_file() or not (ROOT / ".venv/android/test/answers/0.probs").is_file():
        pytest.skip("no APK, or no predictions: run make android-test")
    done = subprocess.run([DEMO / "tools/arm.sh", apk], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed, 0 failed" in done.stdout
