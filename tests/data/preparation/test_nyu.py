"""NYUv2 from a .mat file written as MATLAB writes them: axes reversed, strings behind references."""

from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from marigold.data.errors import DataError

HEIGHT, WIDTH, COUNT = 6, 8, 5
MAT, SPLITS = "nyu_depth_v2_labeled.mat", "splits.mat"
SCENES = ["kitchen_0001", "kitchen_0001", "bathroom_0002", "office_0003a", "office_0003a"]


def write_raw(root: Path) -> tuple[np.ndarray, np.ndarray]:
    """Returns images (N, H, W, 3) and raw depth (N, H, W); filled depth is one metre more."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (COUNT, HEIGHT, WIDTH, 3), dtype=np.uint8)
    depth = rng.uniform(0.7, 9, (COUNT, HEIGHT, WIDTH)).astype(np.float32)
    depth[:, 0, 0] = 0
    root.mkdir()
    with h5py.File(root / MAT, "w") as file:
        file["images"] = images.transpose(0, 3, 2, 1)
        file["rawDepths"] = depth.transpose(0, 2, 1)
        file["depths"] = (depth + 1).transpose(0, 2, 1)
        for i, scene in enumerate(SCENES):
            file[f"#refs#/{i}"] = np.array([[ord(c)] for c in scene], np.uint16)
        references = [file[f"#refs#/{i}"].ref for i in range(COUNT)]
        file.create_dataset("scenes", data=np.array([references], h5py.ref_dtype), dtype=h5py.ref_dtype)
    savemat(root / SPLITS, {"trainNdxs": np.array([[4], [3], [5]]), "testNdxs": np.array([[1], [2]], np.uint16)})
    return images, depth


def test_from_mat_to_samples(tmp_path, prepare, reader):
    images, depth = write_raw(tmp_path / "raw")
    out = tmp_path / "nyu"
    summary = prepare("nyu", f"raw={tmp_path / 'raw'}", f"out={out}")
    assert [(r.split.name, r.split.count, r.split.official) for r in summary.lists] == [
        ("nyu/train", 3, False),
        ("nyu/test", 2, False),
    ]
    assert (out / "filename_list_train.txt").read_text().splitlines()[0] == (
        "train/bathroom_0002/rgb_0003.png train/bathroom_0002/depth_0003.png train/bathroom_0002/filled_0003.png"
    )
    dataset = reader("nyu", tmp_path, "image_size=[6,8]")
    assert dataset.names == ["test/kitchen_0001/rgb_0001.png", "test/kitchen_0001/rgb_0002.png"]
    for i in range(2):
        assert ((dataset[i].image.numpy() * 255).round().transpose(1, 2, 0) == images[i]).all()
        assert np.abs(dataset[i].depth[0].numpy() - depth[i]).max() <= 0.00051
        assert dataset[i].valid[0].numpy().sum() == HEIGHT * WIDTH - 1
    with Image.open(out / "test/kitchen_0001/filled_0001.png") as filled:
        assert np.abs(np.asarray(filled) / 1000 - depth[0] - 1).max() <= 0.00051


BROKEN = {
    "splits.mat": lambda path: savemat(path, {"trainNdxs": [3, 4, 5], "testNdxs": [1, 3]}),  # an image twice
    "nyu_depth_v2_labeled.mat": lambda path: path.write_bytes(path.read_bytes()[:2000]),
    "nyu_depth_v2_labeled.mat, scenes": lambda path: (path.parent / MAT).unlink(),
    "splits.mat, trainNdxs": lambda path: (path.parent / SPLITS).write_text("not a mat file"),
}


@pytest.mark.parametrize("named", BROKEN)
def test_bad_publisher_files_are_named(tmp_path, prepare, named):
    write_raw(tmp_path / "raw")
    BROKEN[named](tmp_path / "raw" / named)
    with pytest.raises(DataError, match=named):
        prepare("nyu", f"raw={tmp_path / 'raw'}", f"out={tmp_path / 'out'}")
