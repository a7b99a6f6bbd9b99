"""Put results of scripts/eval.py into paper-style tables: Markdown, LaTeX, csv, one HTML page with the panels, bars.

python scripts/table.py results=[runs/eval] output=runs/table
"""

from marigold.cli import launch

if __name__ == "__main__":
    launch("table")
