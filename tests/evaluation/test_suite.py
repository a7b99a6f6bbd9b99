"""The whole suite: images in the five benchmarks' formats, one process and two, to the table."""

import json
import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from marigold import evaluate, report
from test_golden import write_set

ROOT = Path(__file__).parents[2]
# Size (ETH3D's: a tenth), nearest and farthest depth, counts per metre, kind of depth file, and the names of a
# sample's files, as scripts/prepare.py makes them.
BENCHMARKS = {
    "nyu": ((480, 640), 0.5, 10.0, 1000, "png", "test/a/rgb_{0}.png test/a/depth_{0}.png test/a/filled_{0}.png"),
    "scannet": ((480, 640), 0.5, 10.0, 1000, "png", "scene_{0}/color.jpg scene_{0}/depth.png"),
    "kitti": ((375, 1242), 2.0, 80.0, 256, "png", "2011_09_26/d/{0}.png 2011_09_26/d/truth/{0}.png 721.5377"),
    "eth3d": ((403, 605), 1.0, 30.0, 1, "raw", "rgb/yard/{0}.JPG depth/yard/{0}.JPG"),
    "diode": ((768, 1024), 0.7, 60.0, 1, "npy", "indoors/{0}.png indoors/{0}_depth.npy indoors/{0}_depth_mask.npy"),
}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """Two images of every benchmark, in its files."""
    root = tmp_path_factory.mktemp("suite")
    for name, (size, low, high, unit, ending, pattern) in BENCHMARKS.items():
        reader = OmegaConf.to_container(OmegaConf.load(ROOT / f"configs/dataset/{name}.yaml"))["reader"]
        split_list = reader["split_list"].rpartition("/")[2]
        lines, folder = [pattern.format(k) for k in range(2)], root / "data" / name
        write_set(folder, np.random.default_rng(0), lines, size, low, high, unit, ending, split_list)
    return root


def run(workplace, dataset, *overrides):
    """The verb in this process."""
    small = ["dataset.reader.image_size=[403,605]"] if dataset == "eth3d" else []
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        common = [f"dataset={dataset}", f"paths.data={workplace}/data", "device=cpu", "panel.median=0", *small]
        evaluate.run(compose("eval", [*common, *overrides]))
    output = next(word for word in overrides if word.startswith("output=")).partition("=")[2]
    return json.loads((Path(output) / "results.json").read_text())


@pytest.mark.slow
def test_five_benchmarks_make_a_table_and_are_the_same_with_two_processes(workplace, checkpoint, tmp_path):
    chosen = [f"checkpoint={checkpoint}", "sampler.steps=1", "panel.worst=0"]
    for dataset in BENCHMARKS:
        content = run(workplace, dataset, *chosen, f"output={tmp_path}/one/{dataset}")
        assert (content["dataset"], content["count"], content["complete"]) == (dataset, 2, True)
        assert 0 < content["metrics"]["abs_rel"]["mean"] < 2
        assert content["split"]["official"] is False
    environment = {**os.environ, "MARIGOLD_DATA": "data", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [*launcher, str(ROOT / "scripts/eval.py"), "-m", "dataset=nyu,kitti", "device=cpu", "panel.median=0"]
    command += [*chosen, f"output={tmp_path}/two"]
    done = subprocess.run(command, cwd=workplace, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    for dataset in ("nyu", "kitti"):
        (two,) = (tmp_path / "two").glob(f"{dataset}-marigold-*")
        assert (tmp_path / "one" / dataset / "per_image.csv").read_bytes() == (two / "per_image.csv").read_bytes()
        assert len(list((two / "rows").iterdir())) == 2
    settings = {"results": [str(tmp_path)], "published": True, "output": str(tmp_path / "tables")}
    report.run(OmegaConf.create(settings))
    table = (tmp_path / "tables.md").read_text()
    assert (table.count("measured here"), "*published*" in table) == (1, True)
    assert all(f"- `{tmp_path}/one/{dataset}`" in table for dataset in ("nyu", "kitti"))  # `two` is newer


@pytest.mark.slow
def test_moge_shows_its_views_of_every_benchmark(workplace, tmp_path, monkeypatch):
    views = {
        "nyu": [480, 640],
        "scannet": [480, 640],
        "kitti": [375, 750],
        "diode": [768, 1024],
        "eth3d": [1365, 2048],
    }
    seen = []
    module = types.ModuleType("red_depth")
    module.__file__ = __file__
    module.red = lambda image: (seen.append(list(image.shape[-2:])), image[:, :1])[1]
    monkeypatch.setitem(sys.modules, "red_depth", module)
    chosen = ["protocol=moge", "predictor=red_depth:red", "space=affine_depth", "panel.worst=1"]
    for dataset, size in views.items():
        content = run(workplace, dataset, *chosen, f"output={tmp_path}/{dataset}")
        assert content["protocol"]["benchmark"]["view_size"] == size
        assert (content["count"], content["complete"]) == (2, True)
        # Two images and one for the panel.
        assert seen == [size] * 3
        seen.clear()
