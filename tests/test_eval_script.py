"""scripts/eval.py as users call it: results on disk, and an error that names every wrong setting."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from marigold import evaluate
from marigold.evaluation.report import stamps
from marigold.evaluation.result import Result
from marigold.evaluation.table import collect
from marigold.files import FolderInUse, lock_folder
from marigold.model.recipe import KEY
from marigold.report import read_results
from runs import ROOT, call_script, composed, environment

VIEW = "+dataset.evaluation.protocols.moge.view_size=[20,30]"
THEIRS = """
from marigold.types import Prediction
def grey(image):
    return 0.1 + image.mean(1, keepdim=True)
def near(image):
    return Prediction(grey(image), None, "affine_disparity")
"""


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with five small images in the layout of the rooms' test part, and somebody's model."""
    root = tmp_path_factory.mktemp("workplace")
    rng = np.random.default_rng(0)
    folder = root / "data/rooms/nyu"
    (folder / "test").mkdir(parents=True)
    lines = []
    for k in range(5):
        lines.append(f"test/rgb_{k:04d}.png test/depth_{k:04d}.png test/filled_{k:04d}.png")
        Image.fromarray(rng.integers(0, 255, (24, 32, 3), dtype=np.uint8)).save(folder / f"test/rgb_{k:04d}.png")
        Image.fromarray(rng.integers(800, 9000, (24, 32), dtype=np.uint16)).save(folder / f"test/depth_{k:04d}.png")
    (folder / "test.txt").write_text("\n".join(lines) + "\n")
    (root / "theirs.py").write_text(THEIRS)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(root)
        yield root


@pytest.fixture
def score(workplace, tmp_path):
    """score(*overrides, output=...) -> the result of an evaluation of the rooms; by default in tmp_path itself."""

    def score(*overrides, output="."):
        folder = tmp_path / output
        common = ["dataset=rooms", f"paths.data={workplace}/data", "device=cpu", "panel.worst=0", "panel.median=0"]
        complete = evaluate.run(composed("eval", *common, f"output={folder}", *overrides))
        result = Result.from_json(folder / "results.json")
        assert complete == result.complete
        return result

    return score


GREY = ["predictor=theirs:grey", "space=affine_depth"]


def test_results_say_where_they_come_from(score, tmp_path, capsys):
    result = score(*GREY, "seeds=2", "panel.worst=1", "panel.median=1")
    assert "measured here" in capsys.readouterr().out
    assert (result.facts.split.count, result.count, result.expected, result.seeds) == (5, 5, 5, (0, 1))
    assert (len(result.facts.split.sha256), bool(result.facts.commit)) == (64, True)
    assert result.metrics["abs_rel"].std_over_seeds == 0
    with Image.open(tmp_path / "panel.png") as image:
        assert image.size[0] > 1000


def test_rows_are_the_same_to_the_last_bit_for_every_batch_size(score, checkpoint, tmp_path):
    chosen = ["limit=1", f"checkpoint={checkpoint}", "sampler.ensemble_size=3", "sampler.steps=2"]
    exact = [score(*chosen, f"sampler.batch_size={size}", output=f"exact_{size}") for size in (1, 2, "null")]
    assert len({file.read_bytes() for file in tmp_path.glob("exact_*/per_image.csv")}) == 1
    assert {result.facts.fingerprint for result in exact} == {exact[0].facts.fingerprint}
    assert exact[1].facts.sampler["batch_size"] == 1  # one member at a time
    quick = score(*chosen, "sampler.batch_size=2", "sampler.exact=false", output="quick")
    assert quick.facts.sampler["batch_size"] == 2
    assert quick.metrics["abs_rel"].mean == pytest.approx(exact[0].metrics["abs_rel"].mean, rel=1e-3)


def test_the_folder_of_a_running_evaluation_is_refused_untouched(score, tmp_path):
    with lock_folder(tmp_path / "out"):
        before = sorted((tmp_path / "out").rglob("*"))
        with pytest.raises(FolderInUse):
            score(*GREY, output="out")
        assert sorted((tmp_path / "out").rglob("*")) == before


def test_an_image_that_fails_is_reported_and_a_second_run_tries_it_alone(score, tmp_path, capsys):
    chosen = [f"predictions={tmp_path}/maps", "space=affine_depth", "on_error=report", "panel.median=1"]
    (tmp_path / "maps/test").mkdir(parents=True)
    for k in range(5):
        np.save(tmp_path / f"maps/test/rgb_{k:04d}.npy", np.full((24, 32), np.nan if k == 3 else k, np.float32))
    first = score(*chosen)
    assert (first.count, first.expected, [failure.name for failure in first.failures]) == (4, 5, ["test/rgb_0003.png"])
    assert "test/rgb_0003.png" in capsys.readouterr().err
    assert replace(score(*chosen), date="") == replace(first, date="")
    assert "1/1" in capsys.readouterr().err  # the progress bar


def test_a_limit_that_excludes_no_image_is_no_limit(score):
    whole = score(*GREY, output="whole")
    assert (whole.facts.split.name, whole.facts.limit, whole.expected, stamps(whole)) == ("test", None, 5, ())
    for key, limit in (("limit", 5), ("dataset.reader.limit", 9)):
        assert replace(score(*GREY, f"{key}={limit}", output=key), date="") == replace(whole, date="")


def test_rows_of_another_reader_setting_are_evaluated_again(score, tmp_path):
    for words in (["dataset.reader.max_depth=4.0"], [], [], ["threads=2"]):
        score(*GREY, *words)
    torch.set_num_threads(1)
    rows = [file.read_text() for file in (tmp_path / "rows").iterdir()]
    assert [len(text.splitlines()) for text in rows] == [5, 5, 5]  # the third run added none
    assert len(set(rows)) >= 2


def test_stored_predictions_are_evaluated_from_known_points(workplace, score, tmp_path):
    (tmp_path / "theirs/test").mkdir(parents=True)
    for k in range(5):
        with Image.open(workplace / f"data/rooms/nyu/test/depth_{k:04d}.png") as depth:
            np.save(tmp_path / f"theirs/test/rgb_{k:04d}.npy", 3 + 2 / np.float32(depth))
    metrics = score(f"predictions={tmp_path}/theirs", "space=affine_disparity", "points.count=20", "limit=2").metrics
    assert max(metrics["mae"].mean, metrics["fit.mae"].mean) < 0.01 < metrics["points_alone.mae"].mean


def test_a_checkpoint_is_evaluated_in_its_own_space(score, checkpoint, tmp_path):
    other = shutil.copytree(checkpoint, tmp_path / "disparity")
    index = json.loads((other / "model_index.json").read_text())
    del index[KEY]  # as published folders are
    (other / "model_index.json").write_text(json.dumps({**index, "prediction_type": "disparity"}))
    for folder, protocol in ((checkpoint, "marigold"), (other, "disparity")):
        assert score("limit=1", f"checkpoint={folder}", output=protocol).protocol == protocol
    with pytest.raises(ValueError, match=r"'marigold'.*'affine_disparity'"):
        score(f"checkpoint={other}", "protocol=marigold")


STORED = ["predictions={root}", "space=affine_depth"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["dataset=nyu", *STORED], r"filename_list_test.txt(.|\n)*prepare.py"),
        ([*STORED, "protocol=disparity"], "'disparity'.*'affine_depth'"),
        (STORED, "test/rgb_0000.png"),
        ([*STORED, "protocol=ppd", "protocol.prefit=true"], "prefit.*'ppd'"),
        (["predictions={root}", "seeds=0"], "seeds=0"),
        (["predictions={root}", "metrics=[delta1]"], "abs_rel"),
        (["predictions={root}", "precision=float8"], "precision=float8"),
        ([*STORED, "prediction_unit=0.1"], "prediction_unit=0.1 .*affine_depth"),
        ([], "checkpoint.*predictor.*predictions"),
        ([*STORED, "protocol=moge", VIEW], "'moge'"),
        (["predictor=theirs:near", "points.count=999"], r"points.count=999.*rgb_0000.png"),
        (["predictor=theirs:near", "points.count=9", "protocol.prefit=true"], "protocol.prefit"),
        (["predictor=theirs:near", "~protocol.fit", "protocol=marigold"], "fit"),
    ],
)
def test_a_mistake_is_an_error_that_names_it(workplace, score, tmp_path, arguments, reason):
    with pytest.raises((ValueError, OSError), match=reason):
        score(*(argument.format(root=workplace) for argument in arguments))
    assert not (tmp_path / "results.json").exists()


def test_the_default_protocol_follows_the_space(score):
    assert score("limit=1", "predictor=theirs:grey", "space=affine_log_depth").protocol == "log"
    near = ["limit=1", "predictor=theirs:near"]
    assert score(*near, "protocol=disparity").protocol == "disparity"
    assert score(*near, "protocol.prefit=true").protocol == "marigold+prefit"
    assert score(*near, "protocol=log", "protocol.prefit=true").protocol == "log+prefit"


def test_known_points_make_a_protocol_and_rows_of_their_own_and_resume(score, tmp_path):
    chosen = ["limit=2", "predictor=theirs:near", "metrics=[abs_rel,delta1,mae]"]
    for _ in range(2):
        known = score(*chosen, "points.count=20", "points.pattern=grid", output="known")
    score(*chosen, "protocol=disparity", output="ordinary")
    assert known.protocol == "marigold+20-grid-points-seed0"
    assert known.facts.protocol["points"] == {"count": 20, "seed": 0, "pattern": "grid"}
    stored = [line for path in (tmp_path / "known/rows").iterdir() for line in path.read_text().splitlines()]
    assert len(stored) == 2  # none was evaluated twice
    tables = collect(read_results([str(tmp_path)]), published=True)
    (rows,) = [table.rows for table in tables if table.protocol == known.protocol]
    assert [row.method for row, _ in rows] == [f"theirs:near: {way}" for way in ("residual", "fit", "points_alone")]
    assert f"{known.metrics['fit.mae'].mean:.4f}" in rows[1][0].remarks
    assert rows[1][0].values["rooms"][0] == 100 * known.metrics["fit.abs_rel"].mean


@pytest.mark.slow
def test_two_processes_write_the_same_rows_to_the_last_bit(workplace, score, tmp_path):
    score(*GREY, output="one")
    words = ["dataset=rooms", f"paths.data={workplace}/data", "device=cpu", *GREY, f"output={tmp_path}/two"]
    where = environment(PYTHONPATH=f"{ROOT}:{workplace}")
    done = call_script("eval.py", *words, processes=2, env=where)
    assert done.returncode == 0, done.stderr
    one, two = ((tmp_path / name / "per_image.csv").read_bytes() for name in ("one", "two"))
    assert one == two
    assert len(list((tmp_path / "two/rows").iterdir())) == 2
