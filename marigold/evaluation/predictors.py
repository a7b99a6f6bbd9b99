"""Predictors to evaluate: a user's function, or saved prediction files; `marigold.evaluate` adds the checkpoint."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from marigold import provenance
from marigold.evaluation.errors import EvaluationError
from marigold.evaluation.protocol import Protocol
from marigold.evaluation.rows import Predict
from marigold.prediction_files import read_prediction, stored_names
from marigold.types import SPACES, DepthSample, Prediction


@dataclass(frozen=True)
class Predictor:
    """A predictor to evaluate: `identity` is part of results and fingerprint, `at_seed` returns the function.

    `space` is None for a function that gives it with each prediction. `sampler` is None unless it is a diffusion
    model. `stored`: the predictions are of the data set's own images.
    """

    identity: dict[str, object]
    space: str | None
    sampler: dict[str, object] | None
    at_seed: Callable[[int], Predict]
    stored: bool = False

    def require_protocol(self, protocol: Protocol) -> None:
        """Raises EvaluationError if the protocol cannot evaluate this space, or not these stored predictions."""
        if self.space is not None:
            protocol.require_space(self.space)
        if self.stored and protocol.benchmark.view_size is not None:
            raise EvaluationError(
                f"protocol '{protocol.name}' re-projects the images, but stored predictions are of the original "
                "ones; use checkpoint=DIR or predictor=MODULE:FUNCTION"
            )


def of_function(path: str, space: str | None, device: torch.device) -> Predictor:
    """The function `module:function`: (1, 3, H, W) image in [0, 1] -> Prediction, or a (1, 1, H, W) tensor in `space`.

    Raises EvaluationError for an unknown space, a path that cannot be imported and a result that is neither.
    """
    if space is not None:
        require_space(space)
    module_name, _, name = path.partition(":")
    try:
        module = importlib.import_module(module_name)
        function = getattr(module, name)
    except (ImportError, AttributeError) as error:
        raise EvaluationError(f"predictor={path}: cannot be imported: {error}") from error

    def predict(sample: DepthSample) -> Prediction:
        result = function(sample.image[None].to(device))
        if isinstance(result, Prediction):
            return result
        if not isinstance(result, Tensor):
            raise EvaluationError(f"predictor={path} gave a {type(result).__name__}, not a Prediction or a tensor")
        return Prediction(result.reshape(1, 1, *result.shape[-2:]).float(), None, require_space(space))  # type: ignore[arg-type]

    # Part of the identity, so that rows of another version of the module are not reused.
    source = getattr(module, "__file__", None)
    files = provenance.files_identity(Path(source)) if source else "built in"
    return Predictor({"name": path, "files": files}, space, None, lambda seed: predict)


def of_files(folder: Path, space: str | None, unit: float) -> Predictor:
    """Predictions in files below `folder`, one per sample, found by the sample's name: see `stored_names`.

    unit: metres per count of metric pngs, see `read_prediction`. Raises EvaluationError for an unknown space, a
    missing folder and a sample without a file, and PictureError for a file that is not a depth map.
    """
    known = require_space(space)
    if not folder.is_dir():
        raise EvaluationError(f"predictions={folder}: no such folder")

    def predict(sample: DepthSample) -> Prediction:
        # The most specific name first: a folder may have several.
        candidates = [folder / name for name in stored_names(sample.name)]
        found = [path for path in candidates if path.is_file()]
        if not found:
            raise EvaluationError(f"no prediction below {folder}: looked for {', '.join(stored_names(sample.name))}")
        values = read_prediction(found[0], known, unit)
        return Prediction(torch.from_numpy(values)[None, None], None, known)  # type: ignore[arg-type]

    files = provenance.files_identity(folder)
    identity: dict[str, object] = {"name": folder.name, "path": str(folder), "files": files, "unit": unit}
    return Predictor(identity, space, None, lambda seed: predict, stored=True)


def run_name(checkpoint: Path) -> str:
    """A checkpoint's name in tables: its folder's name, after the run's name if it comes from a training run."""
    parts = checkpoint.resolve().parts
    # runs/NAME/final, runs/NAME/checkpoints/step_000100, or any other folder
    depth = 2 if checkpoint.name in ("final", "best") else 3 if parts[-2:-1] == ("checkpoints",) else 1
    return "/".join(parts[-depth:])


def require_space(space: str | None) -> str:
    """Return the space; raises EvaluationError, listing the known ones, for any other value."""
    if space not in SPACES:
        raise EvaluationError(f"space={space}: expected the space of the predictions, one of {', '.join(SPACES)}")
    return space
