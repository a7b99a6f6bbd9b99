"""Compare an evaluation's AbsRel with the best constant prediction on the same images.

python scripts/compare_constant.py dataset=rooms results=runs/quickstart/eval
"""

import json
from pathlib import Path

import hydra
import torch
from omegaconf import DictConfig

from eval import make_protocol
from marigold.config import build, errors_for_people
from marigold.evaluation.constant import constant_abs_rel


@hydra.main(version_base="1.3", config_path="../configs", config_name="compare_constant")
def main(config: DictConfig) -> None:
    with errors_for_people():
        print(compare(config))


def compare(config: DictConfig) -> str:
    """Two lines for a person: the figures with their ratio, and where the picture is."""
    folder = Path(config.results)
    results = json.loads((folder / "results.json").read_text())
    dataset, protocol = build(config.dataset.reader, "dataset.reader"), make_protocol(config)
    if results["split"]["sha256"] != dataset.split.sha256:
        raise ValueError(f"{folder}/results.json was made on another split than dataset {dataset.name}")
    scores = []
    for sample in dataset:
        valid = sample.valid & protocol.mask(sample.depth[None])[0]
        scores.append(constant_abs_rel(sample.depth, valid))
    constant = torch.tensor(scores, dtype=torch.float64).mean().item()
    ours = results["metrics"]["abs_rel"]["mean"]
    return (
        f"AbsRel {ours:.4f}; best constant prediction, chosen per image with the ground truth: {constant:.4f}; "
        f"ratio {ours / constant:.3f}\npicture: {folder / 'panel.png'}"
    )


if __name__ == "__main__":
    main()
