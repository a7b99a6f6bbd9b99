"""The architecture is what the imports say: edges point down, and each third party has one home."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "marigold"
GROUND = {"types", "config", "pictures", "files", "precision", "identity", "provenance"}
FLOORS = {"depth", "data", "model", "evaluation", "training", "visualization", "prediction_files", "point_files"}
# On top of everything is every other module; only these and `config` know Hydra.
VERBS = {path.stem for path in PACKAGE.glob("*.py")} - GROUND - FLOORS - {"__init__"}
# What each floor may import from the package, besides itself.
BELOW = {
    **{module: set() for module in GROUND},
    "provenance": {"files"},
    "depth": GROUND,
    "data": GROUND | {"depth", "prediction_files"},
    "model": GROUND | {"depth"},
    "evaluation": GROUND | {"depth", "visualization", "prediction_files"},
    "training": GROUND | {"depth", "data", "model"},
    "visualization": GROUND,
    "prediction_files": GROUND | {"depth", "visualization"},
    "point_files": GROUND | {"depth", "prediction_files"},
    "miniature": GROUND | FLOORS,
    **{verb: GROUND | FLOORS | VERBS for verb in VERBS},
    "__init__": GROUND | {"depth", "model"},
}
HOMES = {
    "hydra": {"config", *VERBS},
    "omegaconf": {"config", "miniature", *VERBS},
    "accelerate": {"training", "miniature", *VERBS},
    "diffusers": {"model", "training", "miniature", "cache_latents"},  # training names the U-Net's and the VAE's types
    "transformers": {"model", "miniature"},
    "PIL": {"data", "pictures", "model", "miniature"},  # a picture is one of the things that MarigoldDepth takes
    "h5py": {"data", "miniature"},
    "matplotlib": {"visualization"},
    "wandb": {"training"},
    "gradio": {"page", "page_points"},
    "tensorboard": {"training"},
    "OpenEXR": {"pictures"},
    "peft": {"model"},
    "onnx": {"model"},
    "onnxscript": {"model"},
    "requests": {"data"},
    "urllib3": {"data"},
    "argparse": set(),
    "pickle": set(),
}
MODULES = sorted(PACKAGE.rglob("*.py"))


def floor(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> list[str]:
    """Every module that a file imports, also inside functions."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_point_down_and_stay_at_home(path):
    mine = floor(path)
    for name in imports(path):
        first, _, rest = name.partition(".")
        if first == "marigold":
            other = rest.split(".")[0]
            assert other == mine or other in BELOW[mine], f"{path}: {mine} imports {name}"
        if first in HOMES:
            assert mine in HOMES[first], f"{path}: {first} has its home in {HOMES[first] or 'nowhere'}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_the_library_neither_talks_nor_asks_nor_swallows(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            talks = set() if floor(path) in VERBS or path.stem == "pretrain_tiny" else {"print"}
            assert node.func.id not in {*talks, "input", "eval", "exec"}, f"{path}:{node.lineno} {node.func.id}()"
        if isinstance(node, ast.Attribute) and node.attr == "environ":
            # The page's libraries read some settings when they are imported, and nowhere else.
            assert floor(path) in ("cli", "page", "serve"), f"{path}:{node.lineno} os.environ"
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"{path}:{node.lineno} bare except"
            # Cleaning up and raising again swallows nothing.
            passes_on = isinstance(node.body[-1], ast.Raise) and node.body[-1].exc is None
            everything = ast.unparse(node.type) in ("Exception", "BaseException")
            assert passes_on or not everything, f"{path}:{node.lineno} catches everything"


def test_there_is_no_drawer_for_odds_and_ends():
    assert not [path for path in PACKAGE.rglob("*") if path.stem in ("utils", "util", "misc", "helpers", "common")]
