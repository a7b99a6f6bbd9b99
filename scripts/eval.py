"""Evaluate a checkpoint, a function or stored predictions on a data set: see configs/eval.yaml for every key.

python scripts/eval.py dataset=nyu checkpoint=DIR
python scripts/eval.py -m dataset=nyu,kitti,eth3d,scannet,diode checkpoint=DIR
accelerate launch --num_processes 2 scripts/eval.py dataset=nyu checkpoint=DIR
"""

from marigold.cli import launch

if __name__ == "__main__":
    launch("eval")
