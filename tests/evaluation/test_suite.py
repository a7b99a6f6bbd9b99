"""The whole suite as one command: rendered rooms in the five benchmarks' formats and sizes, one process and two."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from marigold.miniature.rooms.write import RoomsSize, expose, room_views

ROOT = Path(__file__).parents[2]
SIZE = RoomsSize(0, 0, 0, 0, 0, 2, (48, 64), (48, 64), seed=11)
# height, width, and the names of a sample's files: what scripts/prepare.py makes of the publishers' downloads.
BENCHMARKS = {
    "nyu": (480, 640, "test/a/rgb_{0}.png test/a/depth_{0}.png test/a/filled_{0}.png", "filename_list_test.txt"),
    "scannet": (480, 640, "scene_{0}/color.jpg scene_{0}/depth.png", "filename_list_val_800.txt"),
    "kitti": (375, 1242, "2011_09_26/d/{0}.png 2011_09_26/d/truth/{0}.png 721.5377", "eigen_test.txt"),
    "eth3d": (4032, 6048, "rgb/yard/{0}.JPG depth/yard/{0}.JPG", "filename_list.txt"),
    "diode": (
        768,
        1024,
        "indoors/scene/{0}.png indoors/scene/{0}_depth.npy indoors/scene/{0}_depth_mask.npy",
        "filename_list_all.txt",
    ),
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


def test_one_command_evaluates_five_benchmarks_the_same_with_one_process_and_two(workplace, checkpoint):
    launchers = {
        "one": (sys.executable,),
        "two": (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"),
    }
    environment = {**os.environ, "MARIGOLD_DATA": "data", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    chosen = [
        f"dataset={','.join(BENCHMARKS)}",
        f"checkpoint={checkpoint}",
        "device=cpu",
        "panel.worst=0",
        "panel.median=0",
    ]
    for name, launcher in launchers.items():
        command = [*launcher, str(ROOT / "scripts/eval.py"), "-m", *chosen, f"output={name}"]
        done = subprocess.run(command, cwd=workplace, env=environment, capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, done.stderr[-3000:]
    for dataset in BENCHMARKS:
        one, two = (next((workplace / name).glob(f"{dataset}-marigold-*")) for name in launchers)
        assert (one / "per_image.csv").read_bytes() == (two / "per_image.csv").read_bytes(), dataset
        assert len(list((two / "rows").iterdir())) == 2
        content = json.loads((one / "results.json").read_text())
        assert (content["dataset"], content["count"], content["complete"]) == (dataset, 2, True)
        assert 0 < content["metrics"]["abs_rel"]["mean"] < 1
        assert content["split"]["official"] is False
    command = [sys.executable, str(ROOT / "scripts/table.py"), "results=[one,two]", f"output={workplace}/tables"]
    done = subprocess.run(command, cwd=workplace, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    table = (workplace / "tables.md").read_text()
    assert "measured here" in table
    assert "published" in table
    assert all(f"- `one/{dataset}-marigold-" in table for dataset in BENCHMARKS)  # `two` is newer


def test_one_command_evaluates_the_views_of_moge(workplace):
    views = {"nyu": [480, 640], "scannet": [480, 640], "kitti": [375, 750], "diode": [768, 1024]}
    views["eth3d"] = [1365, 2048]
    chosen = [f"dataset={','.join(BENCHMARKS)}", "protocol=moge", "predictor=red_depth:red", "space=affine_depth"]
    chosen += ["device=cpu", "output=moge", "panel.worst=1", "panel.median=0"]
    # A model that says which size the image has that it sees.
    (workplace / "red_depth.py").write_text(
        "def red(image):\n"
        "    with open('sizes.txt', 'a') as file:\n"
        "        print(*image.shape[-2:], file=file)\n"
        "    return image[:, :1]\n"
    )
    command = [sys.executable, str(ROOT / "scripts/eval.py"), "-m", *chosen]
    environment = {**os.environ, "MARIGOLD_DATA": "data", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=workplace, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    for dataset, size in views.items():
        (path,) = workplace.glob(f"moge/{dataset}-moge-*/results.json")
        content = json.loads(path.read_text())
        assert content["protocol"]["benchmark"]["view_size"] == size
        assert (content["count"], content["complete"]) == (2, True)
    # Two images and one for the panel, of each set.
    seen = [[int(side) for side in line.split()] for line in (workplace / "sizes.txt").read_text().splitlines()]
    assert sorted(seen) == sorted(3 * list(views.values()))
