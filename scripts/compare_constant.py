"""Compare an evaluation's AbsRel with the AbsRel of constant predictions on the same images.

python scripts/compare_constant.py dataset=rooms results=runs/quickstart/eval
"""

from marigold.cli import launch

if __name__ == "__main__":
    launch("compare-constant")
