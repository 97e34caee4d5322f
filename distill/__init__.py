"""From audio and teachers to a trained and evaluated student."""

import os

# torch shares its work among threads hundreds of times per training step. By default a thread that is done spins for
# milliseconds until the others are. If other programs use the cores too, it spins away the time that the others need:
# training on a busy machine was 5 to 20 times slower (docs/results.md). Now it sleeps instead.
# OpenMP reads this when torch is imported, so it must be set before. A user's own setting is kept.
if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"} & os.environ.keys():
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
