"""Split the audio of the student into train.csv and held.csv: whole sources are held out.

    python runs/student_split.py AUDIO OUT

AUDIO holds the folders `debian` (runs/pool_debian.py), `synth` (runs/pool_synth.py) and `shared`, with other manifests.
What is missing is left out, and so are rows of a `split` other than `train`. One source of eleven is held out, as a
hash of its name decides. Clips of one source are alike, so a student that knows a source would look better than it is
on others. ESC-10 and synthesised sounds are never held out.
"""

from __future__ import annotations

import csv
import hashlib
import sys
from pathlib import Path

MANIFESTS = {
    "shared/pool.csv": "source",
    "shared/pool2.csv": "source",
    "debian/pool.csv": "package",
    "synth/pool.csv": "",
    "shared/esc10.csv": "",
}
"""Manifest -> the column that names the source; empty where nothing is held out."""
PARTS, HELD = 11, 3


def held_out(source: str) -> bool:
    """Whether all clips of this source are kept from training."""
    digest = hashlib.blake2b(source.encode(), digest_size=4).hexdigest()
    return bool(source) and int(digest, 16) % PARTS == HELD


def rows(audio: Path) -> list[tuple[str, str]]:
    """(file name relative to `audio`, source or an empty text) of every clip to train on."""
    found = []
    for name, column in MANIFESTS.items():
        manifest = audio / name
        if not manifest.is_file():
            continue
        folder = Path(name).parent
        with manifest.open(newline="") as f:
            for row in csv.DictReader(f):
                if row.get("split", "train") == "train":
                    found.append((str(folder / row["filename"]), f"{folder}:{row[column]}" if column else ""))
    return found


def main() -> None:
    if len(sys.argv) != 3:
        raise SystemExit("give two folders: python runs/student_split.py AUDIO OUT")
    audio, out = map(Path, sys.argv[1:])
    found = rows(audio)
    if not found:
        raise SystemExit(f"{audio} holds none of {', '.join(MANIFESTS)}: build a pool with runs/pool_debian.py")
    out.mkdir(parents=True, exist_ok=True)
    for name, held in (("train", False), ("held", True)):
        chosen = [(file, source) for file, source in found if held_out(source) == held]
        with (out / f"{name}.csv").open("w", newline="") as f:
            writer = csv.writer(f)
            writer.writerow(["filename", "source"])
            writer.writerows(chosen)
        print(f"{out / name}.csv: {len(chosen)} clips")


if __name__ == "__main__":
    main()
