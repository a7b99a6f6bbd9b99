"""scripts/prepare.py as people call it: the bare word `check`, exit codes, one line for an error."""

import numpy as np
import pytest
from PIL import Image


def test_prepare_then_check(tmp_path, call):
    raw, out = tmp_path / "val", tmp_path / "diode"
    (raw / "indoors").mkdir(parents=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)).save(raw / "indoors/x.png")
    np.save(raw / "indoors/x_depth.npy", np.linspace(1, 2, 96, dtype=np.float32).reshape(8, 12))
    np.save(raw / "indoors/x_depth_mask.npy", np.ones((8, 12)))
    code, text, error = call("dataset=diode", f"raw={raw}", f"out={out}")
    assert code == 0, error
    assert "filename_list_all.txt: 1 kept; dropped: none" in text
    assert "NOT the official split" in text

    report = tmp_path / "report.txt"
    checking = ("check", "dataset=diode", f"paths.data={tmp_path}", f"report={report}")
    code, text, error = call(*checking, "dataset.reader.image_size=[8,12]")
    assert code == 0, error
    assert "all is well" in text
    code, text, _ = call(*checking)
    assert code == 1
    assert "photo of 8 x 12, expected 768 x 1024" in text
    assert "indoors/x.png" in report.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("dataset=diode", "raw=/nowhere", "out=/nowhere/else"), "error: /nowhere: no such folder"),
        (("dataset=kitti", "raw=/nowhere", "out=/nowhere/else", "workers=many"), "workers"),
        (
            ("dataset=nyu", "source=archive_val"),
            "source: no 'archive_val' of this data set; it has: publisher, archive",
        ),
        (("dataset=vkitti", "source=archive"), "source: no 'archive' of this data set; it has: publisher"),
        (("dataset=rooms", "out=/nowhere/else", "dry_run=true"), "dry_run: the preparation of this data set has none"),
        (("check", "dataset=motorcycle"), "this data set has no lists to check"),
    ],
)
def test_errors_are_one_line(arguments, message, call):
    code, _, error = call(*arguments)
    assert code == 2
    assert message in error
    assert "Traceback" not in error
