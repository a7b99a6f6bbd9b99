"""Fine-tune a diffusion model into a depth estimator: see configs/train.yaml and configs/exp.

python scripts/train.py +exp=quickstart
accelerate launch --num_processes 2 scripts/train.py +exp=quickstart train.micro_batch=8

The same command again resumes from the newest checkpoint. Exit code 75: stopped by a signal or the time limit, with
everything saved.
"""

from marigold.cli import launch

if __name__ == "__main__":
    launch("train")
