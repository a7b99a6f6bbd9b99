"""Prepare a data set, or check one: see configs/prepare.yaml for every key.

python scripts/prepare.py dataset=hypersim workers=8 [raw=DIR] [out=DIR] [dry_run=true]
python scripts/prepare.py -m dataset=nyu,kitti,eth3d,scannet,diode source=archive
python scripts/prepare.py check dataset=hypersim

Exit code: 0 all is well, 1 `check` found offenders, 2 an error that stopped the run; of several sets the highest.
"""

from marigold.cli import launch

if __name__ == "__main__":
    launch("prepare")
