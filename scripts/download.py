"""Download a data set from its publisher, or a benchmark's published evaluation archive: see configs/download.yaml.

python scripts/download.py dataset=nyu [source=archive] [out=DIR] [dry_run=true]
python scripts/download.py -m dataset=nyu,kitti,eth3d,scannet,diode source=archive
python scripts/download.py dataset=hypersim scenes=[ai_001_001,ai_001_002]

The same command again resumes where it stopped. Exit code: 0 all files are there and checked, 1 something could not
be downloaded (it is named), 2 an error that stopped it; of several sets the highest.
"""

from marigold.cli import launch

if __name__ == "__main__":
    launch("download")
