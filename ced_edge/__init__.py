"""ced-edge: distil big AudioSet taggers into a small CED student, and run it on devices."""

__version__ = "0.1.0"
