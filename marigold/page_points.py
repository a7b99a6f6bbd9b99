"""The page's section for known distances: click points on the image and type their metres."""

from typing import Any

import gradio as gr
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from marigold.depth.metric import MetricDepth

NONE_YET = [["", "", ""]]
LARGE = 360  # px to which small images are enlarged, so that points can be clicked


class PagePoints:
    """An image to click on, a table of points in pixels of the upright image and metres along the view, a button."""

    def __init__(self) -> None:
        gr.Markdown("### Metres\nClick at least two points whose distance is known, and type their metres.")
        self.image = gr.Image(
            format="jpeg", interactive=False, show_label=False, height=280, buttons=[], elem_id="points"
        )
        self.table = gr.Dataframe(
            NONE_YET,
            headers=["x", "y", "metres"],
            datatype="str",  # numbers would show empty cells as 0
            type="array",
            column_count=3,
            interactive=True,
            elem_id="known",
        )
        self.start = gr.Button("To metres")
        self.answer = gr.Markdown(elem_id="metres")
        self.zoom = gr.State(1)
        self.components = [self.image, self.table, self.answer, self.zoom]
        self.image.select(self.add, [self.table, self.zoom], self.table, api_visibility="private")

    def of(self, image: np.ndarray | None) -> dict[Any, Any]:
        """Reset the section for another image."""
        zoom = 1 if image is None else max(1, LARGE // max(image.shape[:2]))
        shown = None if image is None else image.repeat(zoom, 0).repeat(zoom, 1)
        return {self.image: shown, self.table: NONE_YET, self.answer: "", self.zoom: zoom}

    def add(self, rows: list[list[Any]], zoom: int, event: gr.SelectData) -> list[list[Any]]:
        """Append a row for the clicked pixel."""
        # Pixels' corners, not their centres, are where two sizes agree.
        x, y = ((place + 0.5) / zoom - 0.5 for place in event.index)
        return [*_filled(rows), [f"{x:g}", f"{y:g}", ""]]

    def read(self, rows: list[list[Any]]) -> tuple[Float[Tensor, "N 2"], Float[Tensor, "N"]]:
        """Read points and metres of the rows in use: NaN for empty cells, ValueError for text that is no number."""
        filled = [[float("nan") if _empty(cell) else float(cell) for cell in row] for row in _filled(rows)]
        values = torch.tensor(filled, dtype=torch.float32).reshape(-1, 3)  # as files of points are read
        return values[:, :2], values[:, 2]

    def report(self, found: MetricDepth) -> str:
        """A summary of the fit, as text; points are counted from 0, as in the table and in error messages."""
        low, high = (float(value) for value in found.depth.aminmax())
        text = f"{low:.2f} to {high:.2f} m; expected error {float(found.uncertainty.median()):.2f} m in the median."
        if found.outliers.any():
            text += f" Left out as outliers: points {found.outliers.nonzero().flatten().tolist()}."
        return text


def _empty(cell: Any) -> bool:
    return cell is None or cell == ""


def _filled(rows: list[list[Any]]) -> list[list[Any]]:
    return [row for row in rows if not all(_empty(cell) for cell in row)]
