"""Where the demo model and the engines lie unless a setting says otherwise."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "models" / "demo"
DEMO_WEIGHTS = DEMO / "yolov8n-demo.pt"
ENGINES_DIR = ROOT / "engines"
