"""Draw the paper's inference ablations: AbsRel over the ensemble size, or over the denoising steps.

python scripts/sweep.py curve=ensemble dataset=rooms checkpoint=DIR
python scripts/sweep.py -m curve=ensemble,steps dataset=rooms checkpoint=DIR
torchrun --nproc_per_node 2 scripts/sweep.py ... device=cpu

The training ablations are experiments: see configs/exp/ablation_*.yaml.
"""

from marigold.cli import launch

if __name__ == "__main__":
    launch("sweep")
