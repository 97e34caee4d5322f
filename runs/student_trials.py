"""Short trials of training recipes at equal CPU time, compared by their agreement with the teachers on held-out clips.

    python runs/student_trials.py --pack pack --store store --held-pack pack-held --held-store store-held --out trials

A machine that other work shares has no stable wall-clock, so the budget is CPU time: of the training process and the
processes that read audio for it, as the kernel counts it. The cost of a step is measured first, from two runs of
different length; the number of steps follows from it, so that each learning rate falls to 0 at the end of its budget.
A trial that is finished is not run again. The table is written after each trial: OUT/trials.csv and OUT/trials.md.

Other windows, mixes, teachers or K need a store of their own, which `ced-edge teach` writes: --other "5 s=store-5s" is
a trial of the baseline on that store.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

PLAIN_ADAM = ["--optimizer", "adamw", "--weight-decay", "0", "--ema", "0"]
TRIALS: dict[str, list[str]] = {
    "baseline": [],
    "balance 0.5": ["--balance", "0.5"],
    "balance 1": ["--balance", "1"],
    "all patches": ["--patchout", "0"],
    "patchout 0.25": ["--patchout", "0.25"],
    "patchout 0.5, structured": ["--patchout-kind", "structured"],
    "level 0.5": ["--gain", "0.5"],
    "level, noise, band, room 0.25 each": ["--gain", "0.25", "--noise", "0.25", "--band", "0.25", "--reverb", "0.25"],
    "KL weight 1": ["--kl", "1"],
    "KL weight 0.05": ["--kl", "0.05"],
    "a third of the learning rate": ["--lr", "3e-4"],
    "twice the learning rate": ["--lr", "2e-3"],
    "batch 64": ["--batch", "64"],
    "no average of weights": ["--ema", "0"],
    "AdamW": ["--optimizer", "adamw", "--lr", "4e-4"],
    "published": [*PLAIN_ADAM, "--kl", "0", "--fill", "smallest", "--patchout", "0", "--no-prior-bias"],
}
"""Name -> what it changes in the baseline. `published` is CED's own loop: plain Adam, BCE alone, and all patches."""
BASELINE = ["--size", "tiny", "--batch", "128", "--lr", "1e-3", "--ema", "0.95", "--patchout", "0.5"]
BASELINE += ["--workers", "1", "--checkpoint-minutes", "1000"]
QUIET_DB = -30.0
"""Level of the views for the figures `quiet_...`; the teachers' predictions stay those of the views at full level."""
SHORT, LONG = 4, 12
"""Steps of the two runs that measure the cost of a step."""
COLUMNS = ("trial", "steps", "views", "cpu_s", "views_per_cpu_s", "kl", "mean_ap", "quiet_kl", "quiet_mean_ap")


def run(*arguments: object) -> tuple[str, float]:
    """Run `ced-edge ARGUMENTS` on one thread: its stdout, and the CPU seconds of it and its children."""
    command = [sys.executable, "-m", "ced_edge", *map(str, arguments)]
    before = os.times()
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, text=True)
    after = os.times()
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}")
    cpu_s = after.children_user + after.children_system - before.children_user - before.children_system
    return done.stdout, cpu_s


def train(args: argparse.Namespace, store: str, out: Path, steps: int, flags: list[str]) -> float:
    """Train into a new folder and return the CPU seconds."""
    shutil.rmtree(out, ignore_errors=True)
    init = ["--init", args.init] if args.init else []
    where = ["--pack", args.pack, "--store", store, "--out", out, "--steps", steps]
    return run("train", *where, *init, *BASELINE, *flags)[1]


def trial(args: argparse.Namespace, name: str, others: dict[str, str]) -> dict[str, object]:
    """One trial: its figures by column."""
    flags, store = TRIALS.get(name, []), others.get(name, args.store)
    folder = args.out / name.replace(" ", "-").replace(",", "")
    costs = [train(args, store, folder, steps, flags) for steps in (SHORT, LONG)]
    step_s = max(costs[1] - costs[0], 1e-3) / (LONG - SHORT)
    steps = max(1, round(args.cpu_seconds / step_s))
    cpu_s = train(args, store, folder, steps, flags) - (costs[0] - SHORT * step_s)  # without the start of the program
    words = [*BASELINE, *flags][::-1]  # the last --batch counts
    views = steps * int(words[words.index("--batch") - 1])
    found: dict[str, object] = {}
    for prefix, level in (("", 0), ("quiet_", QUIET_DB)):
        held = ["--pack", args.held_pack, "--store", args.held_store, "--level", level]
        result = json.loads(run("agreement", folder, *held, "--json")[0])
        found |= {f"{prefix}{key}": round(result[key], 4) for key in ("kl", "mean_ap")}
    figures = {"steps": steps, "views": views, "cpu_s": round(cpu_s), "views_per_cpu_s": round(views / cpu_s, 1)}
    return {"trial": name, **figures, **found}


def write(out: Path, rows: list[dict[str, object]]) -> None:
    """The rows as CSV and as a table of Markdown, the nearest to the teachers first."""
    with (out / "trials.csv").open("w", newline="") as f:
        writer = csv.DictWriter(f, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    table = [COLUMNS, ["---"] * len(COLUMNS)]
    table += [[str(row[c]) for c in COLUMNS] for row in sorted(rows, key=lambda row: float(str(row["kl"])))]
    (out / "trials.md").write_text("".join(f"| {' | '.join(cells)} |\n" for cells in table))


def read(out: Path) -> list[dict[str, object]]:
    """The rows of the trials that are finished."""
    if not (out / "trials.csv").exists():
        return []
    with (out / "trials.csv").open(newline="") as f:
        return list(csv.DictReader(f))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--pack", "--store", "--held-pack", "--held-store"):
        parser.add_argument(name, required=True)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--init", help="weights that every trial starts from")
    parser.add_argument("--cpu-seconds", type=float, default=600.0, help="of training, per trial")
    parser.add_argument("--other", action="append", default=[], metavar="NAME=STORE", help="a trial on another store")
    parser.add_argument("--only", action="append", help="the name of a trial to run; repeat")
    args = parser.parse_args()
    if wrong := [other for other in args.other if "=" not in other]:
        parser.error(f"--other {wrong[0]}: give NAME=STORE")
    others = dict(other.split("=", 1) for other in args.other)
    names = [*TRIALS, *others]
    if unknown := set(args.only or []) - set(names):
        parser.error(f"no trial is named {', '.join(unknown)}: choose from {', '.join(names)}")
    args.out.mkdir(parents=True, exist_ok=True)
    rows = read(args.out)
    for name in args.only or names:
        if name not in {row["trial"] for row in rows}:
            rows.append(trial(args, name, others))
            write(args.out, rows)
            print(rows[-1], flush=True)


if __name__ == "__main__":
    main()
