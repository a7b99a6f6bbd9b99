"""An installed wheel works from any folder: configurations, lists and the tiny base come with it."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SIZE = "hypersim_train: 4, hypersim_val: 1, vkitti_train: 4, vkitti_val: 1, nyu_test: 1"
TRAIN = ("train.steps=5", "train.effective_batch=2", "train.micro_batch=2", "validation.panel=0", "cache.batch=2")


def test_every_package_is_listed():
    """The list in pyproject.toml is complete, so that no folder of modules is missing from the wheel."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "marigold").rglob("*.py")}
    assert set(listed) == found | {"marigold.configs", "marigold.data_split"}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an environment with the wheel and, by path, this environment's other packages."""
    root = tmp_path_factory.mktemp("wheel")
    source = root / "source"
    for name in subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).splitlines():
        if name.startswith(("marigold/", "configs/", "data_split/", "pyproject.toml", "README.md", "LICENSE")):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", root, source], check=True)
    venv.create(root / "environment", with_pip=False)
    library = root / "environment" / Path(sysconfig.get_path("purelib")).relative_to(sys.prefix)
    (library / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")  # a path alone: no editable install
    wheel = next(root.glob("marigold-*.whl"))
    python = root / "environment/bin/python"
    subprocess.run([python, *pip[1:], "install", "--no-deps", "--no-index", wheel], check=True)
    return root / "environment/bin"


@pytest.mark.slow
def test_from_an_empty_folder_rooms_are_rendered_cached_trained_on_evaluated_and_predicted(installed, tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}

    def marigold(*words: str) -> None:
        command = [str(installed / "marigold"), *words]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]

    where = "import marigold, marigold.config as c; print(marigold.__file__, c.installed('configs'))"
    found = subprocess.check_output([installed / "python", "-c", where], cwd=tmp_path, env=environment, text=True)
    assert all(str(installed.parent) in path for path in found.split())
    marigold("prepare", "dataset=rooms", f"prepare.size={{{SIZE}}}")
    places = ("raw=data/rooms/hypersim_raw", "out=data/rooms/hypersim")
    marigold("prepare", "dataset=hypersim", *places, "prepare.official=null")
    marigold("cache-latents", "+exp=quickstart", "device=cpu", *TRAIN)
    (tmp_path / "configs/exp").mkdir(parents=True)
    (tmp_path / "configs/exp/mine.yaml").write_text("# @package _global_\ntrain: {log_every: 1}\n")
    marigold("train", "+exp=[quickstart,mine]", "device=cpu", *TRAIN)  # the user's own YAML is searched first
    run = tmp_path / "runs/quickstart-mine"
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 5 + 1  # and a validation
    marigold("eval", "dataset=rooms", f"checkpoint={run}/final", "device=cpu", "output=eval", "panel.median=0")
    assert len((tmp_path / "eval/per_image.csv").read_text().splitlines()) == 1 + 2
    image = next((tmp_path / "data/rooms/nyu").rglob("rgb_*.png"))
    marigold("infer", f"input={image}", "output=depth", f"checkpoint={run}/final")
    assert list((tmp_path / "depth/depth_npy").glob("*.npy"))
