"""Runs the package loadtest/hostile: attacks on a server while a good client uses it. See `--help`."""

import runpy
from pathlib import Path

if __name__ == "__main__":
    runpy.run_path(str(Path(__file__).with_suffix("")), run_name="__main__")
