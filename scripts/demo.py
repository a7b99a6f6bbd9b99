"""A page to try images on: see configs/demo.yaml for every key.

python scripts/demo.py checkpoint=runs/quickstart/final port=7860
"""

from marigold.cli import launch

if __name__ == "__main__":
    launch("demo")
