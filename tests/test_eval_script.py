"""scripts/eval.py as a person calls it: results on disk, and one line for every mistake."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException
from PIL import Image

from marigold import evaluate
from marigold.evaluation.predictors import run_name
from marigold.evaluation.report import stamps
from marigold.evaluation.result import Result
from marigold.evaluation.table import collect
from marigold.files import FolderInUse, lock_folder
from marigold.model.recipe import KEY
from marigold.report import read_results

ROOT = Path(__file__).parents[1]
VIEW = "+dataset.evaluation.protocols.moge.view_size=[20,30]"
THEIRS = """
from marigold.types import Prediction
def grey(image):
    return 0.1 + image.mean(1, keepdim=True)
def near(image):
    return Prediction(grey(image), None, "affine_disparity")
def far(image):
    return Prediction(grey(image), None, "affine_depth")
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
    return root


def call(folder, *arguments):
    environment = {**os.environ, "MARIGOLD_DATA": "data", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "scripts/eval.py"), "device=cpu", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=280)


def contents(folder):
    return json.loads((folder / "results.json").read_text())


def run(workplace, *overrides):
    """The verb in this process."""
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        common = [f"paths.data={workplace}/data", "device=cpu", f"output={workplace}/never"]
        return evaluate.run(compose("eval", [*common, *overrides]))


GREY = ["dataset=rooms", "predictor=theirs:grey", "space=affine_depth", "panel.worst=0", "panel.median=0"]
FEW = ["dataset=rooms", "limit=2", "panel.worst=0", "panel.median=0"]


@pytest.fixture
def theirs(workplace, monkeypatch):
    monkeypatch.syspath_prepend(workplace)


def test_results_say_where_they_come_from(workplace, theirs, tmp_path, capsys):
    run(workplace, *GREY[:3], "seeds=2", "panel.worst=1", "panel.median=1", f"output={tmp_path}")
    assert "measured here" in capsys.readouterr().out
    content = contents(tmp_path)
    assert (content["split"]["count"], content["count"], content["expected"], content["complete"]) == (5, 5, 5, True)
    assert (len(content["split"]["sha256"]), content["seeds"]) == (64, [0, 1])
    assert content["metrics"]["abs_rel"]["std_over_seeds"] == 0
    assert content["commit"]
    with Image.open(tmp_path / "panel.png") as image:
        assert image.size[0] > 1000


def test_rows_are_the_same_to_the_last_bit_for_every_batch_size(workplace, checkpoint, tmp_path):
    chosen = [*FEW, "limit=1", f"checkpoint={checkpoint}", "sampler.ensemble_size=3", "sampler.steps=2"]
    for batch_size in ("1", "2", "null"):
        run(workplace, *chosen, f"sampler.batch_size={batch_size}", f"output={tmp_path}/exact_{batch_size}")
    assert len({file.read_bytes() for file in tmp_path.glob("exact_*/per_image.csv")}) == 1
    assert len({contents(folder)["fingerprint"] for folder in tmp_path.glob("exact_*")}) == 1
    assert contents(tmp_path / "exact_2")["sampler"]["batch_size"] == 1  # one member at a time
    run(workplace, *chosen, "sampler.batch_size=2", "sampler.exact=false", f"output={tmp_path}/quick")
    quick, exact = (contents(tmp_path / name) for name in ("quick", "exact_2"))
    assert quick["sampler"]["batch_size"] == 2
    assert quick["metrics"]["abs_rel"]["mean"] == pytest.approx(exact["metrics"]["abs_rel"]["mean"], rel=1e-3)


def test_the_folder_of_a_running_evaluation_is_refused_untouched(workplace, theirs, tmp_path):
    with lock_folder(tmp_path / "out"):
        before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
        with pytest.raises(FolderInUse, match=f"^{tmp_path}/out is in use by process {os.getpid()} "):
            run(workplace, *GREY, f"output={tmp_path}/out")
        assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before
    run(workplace, *GREY, f"output={tmp_path}/out")
    assert contents(tmp_path / "out")["complete"]


def test_an_image_that_fails_is_reported_and_a_second_run_tries_it_alone(workplace, tmp_path, capsys):
    chosen = ["dataset=rooms", "predictions=" + str(tmp_path / "maps"), "space=affine_depth", "on_error=report"]
    chosen += [f"output={tmp_path}/out", "panel.worst=0", "panel.median=1"]
    (tmp_path / "maps/test").mkdir(parents=True)
    for k in range(5):
        np.save(tmp_path / f"maps/test/rgb_{k:04d}.npy", np.full((24, 32), np.nan if k == 3 else k, np.float32))
    assert run(workplace, *chosen) is False
    assert "FAILED (seed 0): test/rgb_0003.png" in capsys.readouterr().err
    first = Result.from_json(tmp_path / "out/results.json")
    assert (first.count, first.expected, [failure.name for failure in first.failures]) == (4, 5, ["test/rgb_0003.png"])
    assert run(workplace, *chosen) is False
    bars = capsys.readouterr().err
    assert "1/1" in bars
    assert "5/5" not in bars
    assert replace(Result.from_json(tmp_path / "out/results.json"), date="") == replace(first, date="")


@pytest.mark.slow
def test_a_multirun_of_own_configs_goes_on_after_a_set_that_is_missing_and_fails_at_the_end(workplace, tmp_path):
    own = tmp_path / "configs/protocol"
    own.mkdir(parents=True)
    # On top of the package's, by Hydra's own means.
    text = (ROOT / "configs/protocol/disparity.yaml").read_text()
    (own / "disparity.yaml").write_text(text.replace("benchmark_clip: true", "benchmark_clip: false"))
    for name in ("data", "theirs.py"):
        (tmp_path / name).symlink_to(workplace / name)
    chosen = [*FEW[1:], "predictor=theirs:grey", "space=affine_disparity", "output=many", "-m"]
    # The order is rooms 0, nyu 0, rooms 1, nyu 1.
    done = call(tmp_path, "seed=0,1", "dataset=rooms,nyu", *chosen)
    assert done.returncode == 1, done.stderr
    assert done.stderr.count("filename_list_test.txt") == 2
    end = done.stderr[done.stderr.index("2 job(s) failed") :].splitlines()
    assert [[word for word in line.split() if word[:4] in ("seed", "data")] for line in end[1:]] == [
        ["seed=0", "dataset=nyu"],
        ["seed=1", "dataset=nyu"],
    ]
    found = [contents(folder) for folder in tmp_path.glob("many/rooms-disparity-*")]
    assert sorted(content["seeds"] for content in found) == [[0], [1]]
    assert [content["protocol"]["benchmark_clip"] for content in found] == [False, False]


@pytest.mark.parametrize("limit", ["limit=5", "dataset.reader.limit=9"])
def test_a_limit_that_leaves_nothing_out_is_none(workplace, limit, theirs, tmp_path):
    run(workplace, *GREY, f"output={tmp_path}/whole")
    run(workplace, *GREY, f"output={tmp_path}/limited", limit)
    whole, limited = (Result.from_json(tmp_path / name / "results.json") for name in ("whole", "limited"))
    assert (limited.facts.split.name, limited.facts.limit, limited.expected, stamps(limited)) == ("test", None, 5, ())
    assert replace(limited, date="") == replace(whole, date="")


def test_rows_that_were_read_otherwise_are_evaluated_again(workplace, theirs, tmp_path):
    for words in (["dataset.reader.max_depth=4.0"], [], [], ["threads=2"]):
        run(workplace, *GREY, *words, f"output={tmp_path}")
    torch.set_num_threads(1)
    rows = [file.read_text() for file in (tmp_path / "rows").iterdir()]
    assert [len(text.splitlines()) for text in rows] == [5, 5, 5]  # the third run added none
    assert len(set(rows)) >= 2


@pytest.mark.parametrize(
    ("chosen", "protocol"),
    [
        (["predictor=theirs:grey", "space=affine_depth"], "marigold"),
        (["predictor=theirs:grey", "space=affine_disparity"], "disparity"),
        (["predictor=theirs:grey", "space=affine_sqrt_disparity"], "sqrt_disparity"),
        (["predictor=theirs:grey", "space=affine_log_depth"], "log"),
        (["predictor=theirs:grey", "space=metric_depth"], "marigold"),
        (["predictor=theirs:far"], "marigold"),
        (["predictor=theirs:near", "protocol=disparity"], "disparity"),
        (["predictor=theirs:near", "protocol.prefit=true"], "marigold+prefit"),
        (["predictor=theirs:grey", "space=affine_log_depth", "protocol.prefit=true"], "marigold+prefit"),
        (["predictor=theirs:grey", "space=affine_depth", "protocol=log", "protocol.prefit=true"], "log+prefit"),
    ],
)
def test_the_protocol_is_that_of_the_space_unless_another_one_is_chosen(
    workplace, chosen, protocol, theirs, tmp_path, caplog
):
    caplog.set_level("INFO")
    run(workplace, *FEW, *chosen, f"output={tmp_path}")
    result = Result.from_json(tmp_path / "results.json")
    assert result.protocol == protocol
    said = [record.getMessage() for record in caplog.records if record.name == "marigold.evaluation_set"]
    expected = [] if any(word.startswith("protocol=") for word in chosen) else [protocol.removesuffix("+prefit")]
    assert [line.split()[1].strip(",") for line in said] == expected


POINTS = [*FEW, "predictor=theirs:near", "metrics=[abs_rel,delta1,mae,rmse]"]


def test_known_points_make_a_protocol_and_rows_of_their_own_and_resume(workplace, monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(workplace)
    for _ in range(2):
        run(workplace, *POINTS, f"output={tmp_path}/known", "points.count=20", "points.pattern=grid")
    run(workplace, *POINTS, f"output={tmp_path}/ordinary", "protocol=disparity")
    known = Result.from_json(tmp_path / "known/results.json")
    assert known.protocol == "marigold+20-grid-points-seed0"
    assert known.facts.protocol["points"] == {"count": 20, "seed": 0, "pattern": "grid"}
    assert [f"{method}mae" in known.metrics for method in ("", "fit.", "points_alone.")] == [True] * 3
    stored = [line for path in (tmp_path / "known/rows").iterdir() for line in path.read_text().splitlines()]
    assert len(stored) == 2  # none was evaluated twice
    header = (tmp_path / "known/per_image.csv").read_text().splitlines()[0].split(",")
    assert header[:6] == ["seed", "name", "abs_rel", "delta1", "mae", "rmse"]
    assert header[6:] == [f"{way}.{name}" for way in ("fit", "points_alone") for name in header[2:6]] + ["error"]
    assert "mean points_alone" in capsys.readouterr().out
    tables = collect(read_results([str(tmp_path)]), published=True)
    assert [(table.protocol, len(table.rows)) for table in tables if "points" in table.protocol] == [
        (known.protocol, 3)
    ]
    rows = next(table.rows for table in tables if table.protocol == known.protocol)
    assert [entry.method for entry, _ in rows] == [
        f"theirs:near: {way}" for way in ("residual", "fit", "points_alone")
    ]
    assert f"MAE {known.metrics['fit.mae'].mean:.4f} m" in rows[1][0].remarks
    assert rows[1][0].values["rooms"][0] == 100 * known.metrics["fit.abs_rel"].mean


def test_stored_predictions_are_evaluated_from_known_points(workplace, tmp_path):
    for k in range(5):
        (tmp_path / "theirs/test").mkdir(parents=True, exist_ok=True)
        with Image.open(workplace / f"data/rooms/nyu/test/depth_{k:04d}.png") as depth:
            np.save(tmp_path / f"theirs/test/rgb_{k:04d}.npy", 3 + 2 / np.float32(depth))
    theirs = [f"predictions={tmp_path}/theirs", "space=affine_disparity", "points.count=20", f"output={tmp_path}/out"]
    run(workplace, *FEW, *theirs)
    metrics = Result.from_json(tmp_path / "out/results.json").metrics
    assert max(metrics["mae"].mean, metrics["fit.mae"].mean) < 0.01 < metrics["points_alone.mae"].mean


def test_a_checkpoint_is_evaluated_in_its_own_space(workplace, checkpoint, tmp_path):
    other = shutil.copytree(checkpoint, tmp_path / "disparity")
    index = json.loads((other / "model_index.json").read_text())
    del index[KEY]  # as published folders are
    (other / "model_index.json").write_text(json.dumps({**index, "prediction_type": "disparity"}))
    for folder, protocol in ((checkpoint, "marigold"), (other, "disparity")):
        run(workplace, *FEW, f"checkpoint={folder}", f"output={tmp_path}/{protocol}")
        assert Result.from_json(tmp_path / protocol / "results.json").protocol == protocol
    with pytest.raises(ValueError, match=r"'marigold'.*'affine_disparity'"):
        run(workplace, *FEW, f"checkpoint={other}", "protocol=marigold")


STORED = ["predictions={root}", "space=affine_depth"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["checkpoint=nowhere/at/all"], "nowhere"),
        (["dataset=nyu", *STORED], r"filename_list_test.txt(.|\n)*prepare.py"),
        ([*STORED, "protocol=disparity"], "'disparity'.*'affine_depth'"),
        (STORED, "test/rgb_0000.png"),
        (["predictor=theirs:grey", "space=inverse"], "space=inverse.*affine_disparity"),
        (["predictor=theirs:near"], "'marigold'.*'affine_disparity'"),
        ([*STORED, "protocol=ppd", "protocol.prefit=true"], "prefit.*'ppd'"),
        ([*STORED, "protocol.prefit=3"], "protocol.prefit=3"),
        (["predictions={root}"], "space=None"),
        (["predictions={root}", "sampler.steps=many"], "steps.*many"),
        (["predictions={root}", "seeds=0"], "seeds=0"),
        (["predictions={root}", "sampler.batch_size=0"], "batch_size=0"),
        (["predictions={root}", "metrics=[delta1]"], "abs_rel"),
        (["predictions={root}", "precision=float8"], "precision=float8"),
        (["predictions={root}", "precision=bfloat16"], "precision=bfloat16"),
        ([*STORED, "prediction_unit=0.1"], "prediction_unit=0.1 .*affine_depth"),
        (["predictor=theirs:grey", "precision=float16"], "precision=float16"),
        (["predictor=theirs:grey", "prediction_unit=0.1"], "prediction_unit=0.1"),
        (["checkpoint={root}", "space=affine_depth"], "space=affine_depth"),
        ([], "checkpoint.*predictor.*predictions"),
        ([*STORED, "protocol=moge", VIEW], "'moge'"),
        (["predictor=theirs:near", "points.count=1"], "points.count=1"),
        (["predictor=theirs:near", "points.count=999"], r"points.count=999.*rgb_0000.png"),
        (["predictor=theirs:near", "points.count=9", "points.pattern=x"], "points.pattern=x"),
        (["predictor=theirs:near", "points.count=9", "protocol.prefit=true"], "protocol.prefit"),
    ],
)
def test_a_mistake_is_an_error_that_names_it(workplace, arguments, reason, theirs):
    with pytest.raises((ValueError, OSError), match=reason):
        run(workplace, "dataset=rooms", *(argument.format(root=workplace) for argument in arguments))
    assert not (workplace / "never/results.json").exists()


def test_a_misspelt_key_is_refused_by_name(workplace):
    with pytest.raises(ConfigCompositionException, match=r"sampler\.step"):
        run(workplace, "dataset=rooms", "sampler.step=3")


@pytest.mark.parametrize(
    ("checkpoint", "name"),
    [
        ("runs/seed1/final", "seed1/final"),
        ("runs/seed1/checkpoints/step_000400", "seed1/checkpoints/step_000400"),
        ("models/marigold-depth-v1-1", "marigold-depth-v1-1"),
    ],
)
def test_checkpoints_of_several_runs_are_told_apart(checkpoint, name):
    assert run_name(Path(checkpoint)) == name
