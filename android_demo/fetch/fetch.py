"""Fetches the files that the Android build needs into .venv/android, once, and checks their SHA-256.

`fetch.py [FOLDER...]` fetches what pinned.txt lists for these folders, or all. `fetch.py --missing` fetches nothing: it
prints the Debian packages that the machine still needs. Only the standard library is used. Maven, npm and apt do the
downloads, so their own settings (mirrors, proxies) hold.
"""

from __future__ import annotations

import hashlib
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape

HERE = Path(__file__).resolve().parent
TARGET = HERE.parents[1] / ".venv" / "android"
POM = """<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>
<groupId>fetch</groupId><artifactId>fetch</artifactId><version>1</version><build><plugins><plugin>
<artifactId>maven-dependency-plugin</artifactId><version>3.6.1</version><configuration>
<artifactItems>{}</artifactItems>
</configuration></plugin></plugins></build></project>"""
ITEM = (
    "<artifactItem><groupId>{}</groupId><artifactId>{}</artifactId><version>{}</version><type>{}</type>"
    "<outputDirectory>{}</outputDirectory></artifactItem>"
)


PROGRAMS = {
    "java": "openjdk-17-jdk-headless",
    "javac": "openjdk-17-jdk-headless",
    "mvn": "maven",
    "npm": "npm",
    "dpkg-deb": "dpkg",
}
"""What the build starts, and the Debian package that has it. Everything else is fetched."""
JDK = 17
"""Oldest version: the Android framework that the tests run on needs it."""


def missing() -> list[str]:
    """Debian packages that this machine still needs."""
    packages = [package for program, package in PROGRAMS.items() if shutil.which(program) is None]
    if "openjdk-17-jdk-headless" not in packages:
        text = subprocess.run(["javac", "-version"], capture_output=True, text=True).stdout
        version = re.search(r"javac (\d+)", text)
        if version is None or int(version[1]) < JDK:
            packages.insert(0, "openjdk-17-jdk-headless")
    return list(dict.fromkeys(packages))


class Pin(NamedTuple):
    """One line of pinned.txt."""

    folder: str
    client: str
    """mvn, npm or apt."""
    name: str
    sha256: str

    @property
    def file(self) -> str:
        """The name under which the client saves it."""
        if self.client == "mvn":
            _, artifact, version, kind = self.name.split(":")
            return f"{artifact}-{version}.{kind}"
        if self.client == "npm":
            return f"{self.name.replace('@', '-')}.tgz"
        return f"{self.name.partition('=')[0]}.deb"


def run(*command: str, cwd: Path | None = None) -> None:
    """Run a client; its output goes to stderr, and its failure ends this program."""
    done = subprocess.run(command, cwd=cwd, stdout=sys.stderr)
    if done.returncode:
        sys.exit(f"fetch.py: `{' '.join(command[:6])}` failed, see above")


def download(client: str, pins: list[Pin], root: Path) -> None:
    """Let one client save each file into its folder of `root`."""
    for pin in pins:
        (root / pin.folder).mkdir(exist_ok=True)
    if client == "mvn":
        pom = root / "pom.xml"  # one for all: Maven takes seconds to start
        pom.write_text(POM.format("".join(ITEM.format(*p.name.split(":"), escape(str(root / p.folder))) for p in pins)))
        run("mvn", "-B", "-q", "-f", str(pom), "dependency:copy")
        return
    for pin in pins:
        folder = root / pin.folder
        if client == "npm":
            run("npm", "pack", "--silent", pin.name, cwd=folder)
            continue
        if subprocess.run(["apt-get", "download", pin.name], cwd=folder, stdout=sys.stderr).returncode:
            run("apt-get", "update")  # a machine that is new has no list of packages yet
            run("apt-get", "download", pin.name, cwd=folder)
        for deb in folder.glob("*_*.deb"):
            deb.rename(folder / f"{deb.name.partition('_')[0]}.deb")


def unpack(path: Path) -> None:
    """Take out of an archive what a class path or the build can use."""
    folder = path.parent
    if path.suffix == ".aar":
        with zipfile.ZipFile(path) as archive:
            (folder / f"{path.stem}.jar").write_bytes(archive.read("classes.jar"))
    elif path.suffix == ".tgz":
        run("tar", "-xzf", str(path), "-C", str(folder), "package/Plugins/Android/onnxruntime.aar", "package/LICENSE")
        with zipfile.ZipFile(folder / "package/Plugins/Android/onnxruntime.aar") as archive:
            archive.extractall(folder)
    elif path.suffix == ".deb":
        run("dpkg-deb", "-x", str(path), str(folder))
    elif path.name.startswith("apktool-lib"):
        with zipfile.ZipFile(path) as archive:
            (folder / "aapt2").write_bytes(archive.read("prebuilt/linux/aapt2_64"))
        (folder / "aapt2").chmod(0o755)


def main() -> None:
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        sys.exit("fetch.py: this build runs on Linux on x86-64 alone: open the folder android_demo in Android Studio")
    packages = missing()
    if sys.argv[1:] == ["--missing"]:
        print(*packages)
        return
    if packages:
        sys.exit(f"fetch.py: the Android build needs more programs: apt-get install {' '.join(packages)}")
    lines = (HERE / "pinned.txt").read_text().splitlines()
    pins = [Pin(*line.split()) for line in lines if line and not line.startswith("#")]
    if unknown := set(sys.argv[1:]) - {p.folder for p in pins}:
        sys.exit(f"fetch.py: pinned.txt has no folder {' '.join(sorted(unknown))}")
    folders = sys.argv[1:] or list(dict.fromkeys(p.folder for p in pins))
    texts = {name: "\n".join(" ".join(p) for p in pins if p.folder == name) for name in folders}
    stamps = {name: TARGET / name / "complete" for name in folders}
    wanted = [p for p in pins if p.folder in texts]
    wanted = [p for p in wanted if not stamps[p.folder].is_file() or stamps[p.folder].read_text() != texts[p.folder]]
    if not wanted:
        return
    print(f"fetch.py: {len(wanted)} files into .venv/android", file=sys.stderr)
    TARGET.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=TARGET) as temporary:
        root = Path(temporary)
        for client in dict.fromkeys(p.client for p in wanted):
            download(client, [p for p in wanted if p.client == client], root)
        for pin in wanted:
            path = root / pin.folder / pin.file
            found = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "no such file"
            if found != pin.sha256:
                sys.exit(f"fetch.py: {pin.name} is not the pinned file: {found}, expected {pin.sha256}")
            unpack(path)
        for name in dict.fromkeys(p.folder for p in wanted):
            shutil.rmtree(TARGET / name, ignore_errors=True)
            (root / name).rename(TARGET / name)
            stamps[name].write_text(texts[name])


if __name__ == "__main__":
    main()
