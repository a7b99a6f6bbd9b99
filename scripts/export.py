"""Write a checkpoint in another program's form: see configs/export.yaml for every key.

python scripts/export.py checkpoint=runs/NAME/final output=DIR format=diffusers
"""

from marigold.cli import launch

if __name__ == "__main__":
    launch("export")
