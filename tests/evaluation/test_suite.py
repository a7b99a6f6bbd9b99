"""The whole suite: rendered rooms in the five benchmarks' formats, one process and two, to the table."""

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
from PIL import Image

from marigold import evaluate, report
from marigold.miniature.rooms.write import RoomsSize, expose, room_views

ROOT = Path(__file__).parents[2]
SIZE = RoomsSize(0, 0, 0, 0, 0, 2, (48, 64), (48, 64), seed=11)
# height, width (ETH3D's: a tenth), and the names of a sample's files, as scripts/prepare.py makes them.
BENCHMARKS = {
    "nyu": (480, 640, "test/a/rgb_{0}.png test/a/depth_{0}.png test/a/filled_{0}.png", "filename_list_test.txt"),
    "scannet": (480, 640, "scene_{0}/color.jpg scene_{0}/depth.png", "filename_list_val_800.txt"),
    "kitti": (375, 1242, "2011_09_26/d/{0}.png 2011_09_26/d/truth/{0}.png 721.5377", "eigen_test.txt"),
    "eth3d": (403, 605, "rgb/yard/{0}.JPG depth/yard/{0}.JPG", "filename_list.txt"),
    "diode": (768, 1024, "indoors/{0}.png indoors/{0}_depth.npy indoors/{0}_depth_mask.npy", "filename_list_all.txt"),
}


def write_benchmark(root: Path, name: str) -> None:
    """Two rooms, enlarged to the benchmark's size, in its files."""
    height, width, pattern, split_list = BENCHMARKS[name]
    lines = [pattern.format(k) for k in range(2)]
    for line, view in zip(lines, room_views("photos", 0, SIZE), strict=True):
        rows, columns = (np.arange(size) * small // size for size, small in ((height, 48), (width, 64)))
        photo = expose(view.colour)[rows][:, columns]
        depth = view.depth[rows][:, columns]
        files = [root / file for file in line.split()[:3] if "." in file and "/" in file]
        for file in files:
            file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo).save(files[0])
        if name == "eth3d":
            files[1].write_bytes(np.where(depth > 0, depth, np.inf).astype("<f4").tobytes())
        elif name == "diode":
            np.save(files[1], depth[..., None])
            np.save(files[2], (depth > 0).astype(np.float32))
        else:
            unit = 256 if name == "kitti" else 1000
            for file in files[1:]:
                Image.fromarray(np.rint(depth * unit).astype(np.uint16)).save(file)
    (root / split_list).write_text("".join(f"{line}\n" for line in lines))


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    root = tmp_path_factory.mktemp("suite")
    for name in BENCHMARKS:
        (root / "data" / name).mkdir(parents=True)
        write_benchmark(root / "data" / name, name)
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
        assert 0 < content["metrics"]["abs_rel"]["mean"] < 1
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
