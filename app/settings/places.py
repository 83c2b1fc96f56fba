"""Default paths of the demo model and the engines."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "models" / "demo"
DEMO_WEIGHTS = DEMO / "yolov8n-demo.pt"
ENGINES_DIR = ROOT / "engines"
