"""Predict the depth of images: see configs/infer.yaml for every key.

python scripts/infer.py input=photos output=depth checkpoint=DIR
accelerate launch --num_processes 2 scripts/infer.py input=photos output=depth checkpoint=DIR
"""

from marigold.cli import launch

if __name__ == "__main__":
    launch("infer")
