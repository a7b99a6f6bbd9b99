"""Published zero-shot results, as data: AbsRel and delta1 in percent, each with its protocol.

Each row is listed under its paper. Nothing here was measured by this project; the reports mark every row
of it as *published*.
"""

from dataclasses import dataclass

DATASETS = ("nyu", "kitti", "eth3d", "scannet", "diode")
PUBLISHED_MARK = "*published*"


@dataclass(frozen=True)
class Entry:
    """One row of a paper-style table, published or measured: data set -> (AbsRel, delta1) in percent.

    `source` is the mark of the row. `notes` are the reasons why a measured row cannot be compared: some images only,
    failures, another list. `official`: data sets whose whole official list was measured. `beside`: how measured rows
    differ from a published one, or errors in metres.
    """

    method: str
    setting: str
    protocol: str
    source: str
    values: dict[str, tuple[float, float]]
    notes: tuple[str, ...] = ()
    official: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()

    @property
    def remarks(self) -> str:
        """The last column."""
        return "; ".join(self.notes + self.beside)


def _row(method: str, setting: str, protocol: str, *values: tuple[float, float]) -> Entry:
    return Entry(method, setting, protocol, PUBLISHED_MARK, dict(zip(DATASETS, values, strict=True)))


PUBLISHED = (
    # Ke et al., CVPR 2024 (arXiv 2312.02145), table 1
    _row("DiverseDepth", "", "marigold", (11.7, 87.5), (19.0, 70.4), (22.8, 69.4), (10.9, 88.2), (37.6, 63.1)),
    _row("MiDaS", "", "disparity", (11.1, 88.5), (23.6, 63.0), (18.4, 75.2), (12.1, 84.6), (33.2, 71.5)),
    _row("LeReS", "", "marigold", (9.0, 91.6), (14.9, 78.4), (17.1, 77.7), (9.1, 91.7), (27.1, 76.6)),
    _row("Omnidata", "", "disparity", (7.4, 94.5), (14.9, 83.5), (16.6, 77.8), (7.5, 93.6), (33.9, 74.2)),
    _row("HDN", "", "marigold", (6.9, 94.8), (11.5, 86.7), (12.1, 83.3), (8.0, 93.9), (24.6, 78.0)),
    _row("DPT", "", "disparity", (9.8, 90.3), (10.0, 90.1), (7.8, 94.6), (8.2, 93.4), (18.2, 75.8)),
    _row("Marigold v1.0", "50 x 1", "marigold", (6.0, 95.9), (10.5, 90.4), (7.1, 95.1), (6.9, 94.5), (31.0, 77.2)),
    _row("Marigold v1.0", "50 x 10", "marigold", (5.5, 96.4), (9.9, 91.6), (6.5, 96.0), (6.4, 95.1), (30.8, 77.3)),
    # Martin Garcia et al., WACV 2025 (arXiv 2409.11355)
    _row(
        "Marigold v1.0, trailing", "1 x 1", "marigold",
        (5.7, 96.2), (10.8, 89.6), (6.9, 95.5), (6.6, 95.2), (31.1, 76.8),
    ),
    _row("Marigold + E2E-FT", "1 x 1", "marigold", (5.2, 96.6), (9.6, 91.9), (6.2, 95.9), (5.8, 96.2), (30.2, 77.9)),
    _row("SD2 + E2E-FT", "1 x 1", "marigold", (5.4, 96.5), (9.6, 92.1), (6.4, 95.9), (5.8, 96.5), (30.3, 77.6)),
    # FE2E (arXiv 2509.04338), table 2
    _row(
        "Marigold v1.1 (as reported by FE2E)", "unstated", "marigold",
        (5.8, 96.1), (11.0, 88.8), (7.0, 95.5), (6.6, 95.3), (30.4, 77.3),
    ),
    # Lotus (arXiv 2409.18124v5), table 1
    _row("Lotus-D", "1 x 1", "disparity", (5.1, 97.2), (8.1, 93.1), (6.1, 97.0), (5.5, 96.5), (22.8, 73.8)),
    _row("Lotus-G", "1 x 1", "disparity", (5.4, 96.8), (8.5, 92.2), (5.9, 97.0), (5.9, 95.7), (22.9, 72.9)),
    _row(
        "GenPercept (as evaluated by Lotus)", "1 x 1", "marigold",
        (5.6, 96.0), (13.0, 84.2), (7.0, 95.6), (6.2, 96.1), (35.7, 75.6),
    ),
    # DepthMaster (arXiv 2501.02576): table 1; tables 3 and 4 for the first stage without feature alignment
    _row("DepthMaster", "1 x 1", "sqrt_disparity", (5.0, 97.2), (8.2, 93.7), (5.3, 97.4), (5.5, 96.7), (21.5, 77.6)),
    _row(
        "DepthMaster, latent loss only", "1 x 1", "sqrt_disparity",
        (5.1, 97.3), (8.7, 93.1), (5.5, 97.2), (5.8, 96.4), (21.8, 77.2),
    ),
    # Marigold V2 (arXiv 2609.08084), table 1
    _row("DepthMaster", "1 x 1", "ppd", (4.8, 97.0), (9.1, 91.1), (5.4, 97.4), (5.8, 95.6), (8.0, 94.3)),
    _row("Marigold V2", "1 x 1", "ppd", (3.6, 98.0), (5.4, 97.4), (2.8, 99.2), (3.7, 97.9), (5.2, 97.1)),
)  # fmt: skip
