"""Make the embedded base in marigold/miniature/tiny: see configs/pretrain_tiny.yaml.

torchrun --standalone --nproc_per_node 2 scripts/pretrain_tiny.py

Run again after an interruption: finished stages are kept.
"""

from marigold.cli import launch

if __name__ == "__main__":
    launch("pretrain-tiny")
