"""Strangers beside a good client, a row a kind: the program is the package beside this file. `--help` says more."""

import runpy
from pathlib import Path

if __name__ == "__main__":
    runpy.run_path(str(Path(__file__).with_suffix("")), run_name="__main__")
