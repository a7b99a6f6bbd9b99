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
from marigold.depth.mapping import MAPPINGS
from marigold.evaluation.predictors import run_name
from marigold.evaluation.protocol import PROTOCOL_OF
from marigold.evaluation.report import stamps
from marigold.evaluation.result import Result
from marigold.evaluation.table import collect
from marigold.files import FolderInUse
from marigold.model.pipeline import MarigoldDepth
from marigold.model.recipe import KEY, Switches
from marigold.model.settings import DepthSettings
from marigold.report import read_results

ROOT = Path(__file__).parents[1]
VIEW = "+dataset.evaluation.protocols.moge.view_size=[20,30]"
THEIRS = """
from marigold.types import Prediction
from marigold.model.recipe import KEY
def grey(image):
    return 0.1 + image.mean(1, keepdim=True)
def near(image):
    return Prediction(grey(image), None, "affine_disparity")
def far(image):
    return Prediction(grey(image), None, "affine_depth")
"""
WAITING = """
import time
def predict(image):
    print("predicting", flush=True)
    time.sleep(200)
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


def call(workplace, *arguments, launcher=()):
    environment = {**os.environ, "MARIGOLD_DATA": "data", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [*(launcher or (sys.executable,)), str(ROOT / "scripts/eval.py"), "device=cpu", *arguments]
    return subprocess.run(command, cwd=workplace, env=environment, capture_output=True, text=True, timeout=240)


@pytest.mark.slow
def test_one_and_two_processes_write_the_same_rows_and_results_say_where_they_come_from(workplace):
    theirs = ("dataset=rooms", "predictor=theirs:grey", "space=affine_depth", "seeds=2")
    done = call(workplace, *theirs, "output=one", "panel.worst=1", "panel.median=1")
    assert done.returncode == 0, done.stderr
    assert "measured here" in done.stdout
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=29651")
    done = call(workplace, *theirs, "output=two", "panel.worst=0", "panel.median=0", launcher=torchrun)
    assert done.returncode == 0, done.stderr
    assert (workplace / "one/per_image.csv").read_bytes() == (workplace / "two/per_image.csv").read_bytes()
    assert len(list((workplace / "two/rows").iterdir())) == 2
    content = json.loads((workplace / "one/results.json").read_text())
    assert content["protocol"]["name"] == "marigold"
    assert (content["split"]["count"], content["count"], content["expected"], content["complete"]) == (5, 5, 5, True)
    assert len(content["split"]["sha256"]) == 64
    assert content["seeds"] == [0, 1]
    assert content["metrics"]["abs_rel"]["std_over_seeds"] == 0
    assert content["commit"]
    with Image.open(workplace / "one/panel.png") as picture:
        assert picture.size[0] > 1000


def test_rows_are_the_same_to_the_last_bit_for_every_batch_size(workplace, checkpoint):
    chosen = ["dataset=rooms", f"checkpoint={checkpoint}", "sampler.ensemble_size=5", "limit=2", "panel.worst=0"]
    for batch_size in ("1", "3", "5", "null"):
        folder = workplace / f"batches_{batch_size}"
        run(workplace, *chosen, "panel.median=0", f"sampler.batch_size={batch_size}", f"output={folder}")
    rows = {file.read_bytes() for file in workplace.glob("batches_*/per_image.csv")}
    assert len(rows) == 1
    assert len({json.loads(file.read_text())["fingerprint"] for file in workplace.glob("batches_*/results.json")}) == 1
    assert len(list(workplace.glob("batches_*/rows/*"))) == 4  # each was evaluated by itself, none was kept


def run(workplace, *overrides):
    """The verb in this process."""
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        common = [f"paths.data={workplace}/data", "device=cpu", f"output={workplace}/never"]
        return evaluate.run(compose("eval", [*common, *overrides]))


def files(folder):
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*")}


def test_the_folder_of_a_running_evaluation_is_refused_untouched(workplace, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(workplace)
    chosen = ["dataset=rooms", "predictor=theirs:grey", "space=affine_depth", "panel.worst=0", "panel.median=0"]
    chosen += ["protocol=marigold"]  # nothing is said of it
    (workplace / "waiting.py").write_text(WAITING)
    command = [sys.executable, str(ROOT / "scripts/eval.py"), "device=cpu", *chosen, f"output={tmp_path}/out"]
    command[command.index("predictor=theirs:grey")] = "predictor=waiting:predict"
    environment = {**os.environ, "MARIGOLD_DATA": "data", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    first = subprocess.Popen(
        command, cwd=workplace, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        assert first.stdout.readline() == b"predicting\n"
        before = files(tmp_path / "out")
        with pytest.raises(FolderInUse, match=rf"^{tmp_path}/out is in use by process {first.pid} on [^\n]*$"):
            run(workplace, *chosen, f"output={tmp_path}/out")
        assert files(tmp_path / "out") == before
    finally:
        first.kill()
        first.wait()
        first.stdout.close()
    run(workplace, *chosen, f"output={tmp_path}/out")
    assert json.loads((tmp_path / "out/results.json").read_text())["complete"]


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


def test_a_multirun_goes_on_after_a_set_that_is_missing_and_fails_at_the_end(workplace):
    chosen = ("predictor=theirs:grey", "space=affine_depth", "panel.worst=0", "panel.median=0")
    # The order is rooms 0, nyu 0, rooms 1, nyu 1.
    done = call(workplace, "seed=0,1", "dataset=rooms,nyu", "limit=2", *chosen, "output=many", "-m")
    assert done.returncode == 1, done.stderr
    assert done.stderr.count("filename_list_test.txt: no such split list") == 2
    end = done.stderr[done.stderr.index("error: 2 job(s) failed") :].splitlines()
    assert [[word for word in line.split() if word[:4] in ("seed", "data")] for line in end[1:]] == [
        ["seed=0", "dataset=nyu"],
        ["seed=1", "dataset=nyu"],
    ]
    found = [json.loads(path.read_text()) for path in workplace.glob("many/rooms-marigold-*/results.json")]
    assert sorted(content["seeds"] for content in found) == [[0], [1]]


@pytest.mark.parametrize("limit", ["limit=5", "limit=9", "dataset.reader.limit=5"])
def test_a_limit_that_leaves_nothing_out_is_none(workplace, limit, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(workplace)
    chosen = ["dataset=rooms", "predictor=theirs:grey", "space=affine_depth", "panel.worst=0", "panel.median=0"]
    run(workplace, *chosen, f"output={tmp_path}/whole")
    run(workplace, *chosen, f"output={tmp_path}/limited", limit)
    whole, limited = (Result.from_json(tmp_path / name / "results.json") for name in ("whole", "limited"))
    assert (limited.facts.split.name, limited.facts.limit, limited.expected) == ("test", None, 5)
    assert stamps(limited) == ()
    assert replace(limited, date="") == replace(whole, date="")


def test_rows_that_were_read_otherwise_are_evaluated_again(workplace, monkeypatch):
    chosen = ["dataset=rooms", "predictor=theirs:grey", "space=affine_depth", "panel.worst=0", "panel.median=0"]
    monkeypatch.syspath_prepend(workplace)
    for depth in (10.0, 4.0, 4.0):
        run(workplace, *chosen, f"dataset.reader.max_depth={depth}", f"output={workplace}/otherwise")
    files = list((workplace / "otherwise/rows").iterdir())
    assert sorted(len(file.read_text().splitlines()) for file in files) == [5, 5]
    assert files[0].read_text() != files[1].read_text()
    run(workplace, *chosen, "dataset.reader.max_depth=4.0", "threads=2", f"output={workplace}/otherwise")
    assert len(list((workplace / "otherwise/rows").iterdir())) == 3
    torch.set_num_threads(1)


@pytest.mark.parametrize("exact", [True, False])
def test_exact_shows_the_networks_one_member_at_a_time(workplace, checkpoint, exact, monkeypatch):
    seen = []
    whole = MarigoldDepth._denoise

    def denoise(self, condition, start, steps):
        seen.append(len(start))
        return whole(self, condition, start, steps)

    monkeypatch.setattr(MarigoldDepth, "_denoise", denoise)
    chosen = ["dataset=rooms", f"checkpoint={checkpoint}", "sampler.ensemble_size=5", "limit=1", "panel.worst=0"]
    chosen += ["panel.median=0", "sampler.batch_size=3", f"sampler.exact={exact}", f"output={workplace}/exact_{exact}"]
    run(workplace, *chosen)
    assert seen == ([1] * 5 if exact else [3, 2])
    sampler = json.loads((workplace / f"exact_{exact}/results.json").read_text())["sampler"]
    assert sampler["batch_size"] == (1 if exact else 3)


FEW = ["dataset=rooms", "limit=2", "panel.worst=0", "panel.median=0"]


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
    workplace, chosen, protocol, monkeypatch, tmp_path, caplog
):
    monkeypatch.syspath_prepend(workplace)
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


@pytest.mark.parametrize("mapping", MAPPINGS)
def test_a_checkpoint_of_every_mapping_has_a_protocol_and_the_common_yardstick(
    workplace, checkpoint, mapping, tmp_path
):
    model = MarigoldDepth.from_pretrained(checkpoint)
    folder = MarigoldDepth(model.backbone, DepthSettings(Switches(mapping))).save_pretrained(tmp_path / "model")
    chosen = [*FEW, f"checkpoint={folder}", "sampler.steps=1"]
    run(workplace, *chosen, f"output={tmp_path}/own")
    assert Result.from_json(tmp_path / "own/results.json").protocol == PROTOCOL_OF[MAPPINGS[mapping].space]
    run(workplace, *chosen, f"output={tmp_path}/common", "protocol.prefit=true")
    assert Result.from_json(tmp_path / "common/results.json").protocol == "marigold+prefit"


def test_a_protocol_of_the_users_own_configs_is_that_of_its_space_too(workplace, tmp_path):
    own = tmp_path / "configs/protocol"
    own.mkdir(parents=True)
    # On top of the package's, by Hydra's own means.
    text = (ROOT / "configs/protocol/disparity.yaml").read_text()
    (own / "disparity.yaml").write_text(text.replace("benchmark_clip: true", "benchmark_clip: false"))
    for name in ("data", "theirs.py"):
        (tmp_path / name).symlink_to(workplace / name)
    done = call(tmp_path, *FEW, "predictor=theirs:grey", "space=affine_disparity", "output=out")
    assert done.returncode == 0, done.stderr
    assert "protocol disparity, that of predictions in affine_disparity" in done.stdout
    assert Result.from_json(tmp_path / "out/results.json").facts.protocol["benchmark_clip"] is False


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("dataset=rooms", "checkpoint=nowhere/at/all"), "nowhere"),
        (("dataset=nyu", "predictions={root}", "space=affine_depth"), r"filename_list_test.txt(.|\n)*prepare.py"),
        (
            ("dataset=rooms", "predictions={root}", "space=affine_depth", "protocol=disparity"),
            "'disparity'.*'affine_depth'",
        ),
        (("dataset=rooms", "predictions={root}", "space=affine_depth"), "test/rgb_0000.png: no prediction below"),
        (("dataset=rooms", "predictor=theirs:grey", "space=inverse"), "space=inverse.*affine_disparity"),
        (("dataset=rooms", "predictor=theirs:near"), "'marigold'.*'affine_disparity'"),
        (
            ("dataset=rooms", "predictions={root}", "space=affine_depth", "protocol=ppd", "protocol.prefit=true"),
            "prefit.*'ppd'",
        ),
        (("dataset=rooms", "predictions={root}", "space=affine_depth", "protocol.prefit=3"), "protocol.prefit=3"),
        (("dataset=rooms", "predictions={root}"), "space=None"),
        (("dataset=rooms", "predictions={root}", "sampler.steps=many"), "steps.*many"),
        (("dataset=rooms", "predictions={root}", "seeds=0"), "seeds=0"),
        (("dataset=rooms", "predictions={root}", "sampler.batch_size=0"), "batch_size=0"),
        (("dataset=rooms", "predictions={root}", "metrics=[delta1]"), "need abs_rel"),
        (("dataset=rooms", "predictions={root}", "precision=float8"), "precision=float8"),
        (
            ("dataset=rooms", "predictions={root}", "precision=bfloat16"),
            "precision=bfloat16 does nothing for .*predict",
        ),
        (
            ("dataset=rooms", "predictions={root}", "space=affine_depth", "prediction_unit=0.1"),
            "prediction_unit=0.1 does nothing for affine_depth predictions",
        ),
        (
            ("dataset=rooms", "predictor=theirs:grey", "precision=float16"),
            "precision=float16 does nothing for a predi",
        ),
        (("dataset=rooms", "predictor=theirs:grey", "prediction_unit=0.1"), "prediction_unit=0.1 does nothing"),
        (("dataset=rooms", "checkpoint={root}", "space=affine_depth"), "space=affine_depth does nothing for a check"),
        (("dataset=rooms",), "exactly one.*checkpoint"),
        (("dataset=rooms", "predictor=theirs:near", "points.count=1"), "points.count=1"),
        (("dataset=rooms", "predictor=theirs:near", "points.count=999"), r"points.count=999.*rgb_0000.png"),
        (("dataset=rooms", "predictor=theirs:near", "points.count=9", "points.pattern=x"), "points.pattern=x"),
        (("dataset=rooms", "predictor=theirs:near", "points.count=9", "protocol.prefit=true"), "protocol.prefit"),
        (
            ("dataset=rooms", "predictions={root}", "space=affine_depth", "protocol=moge", VIEW),
            "'moge' shows a re-projected",
        ),
    ],
)
def test_a_mistake_is_an_error_that_says_what_is_wrong(workplace, arguments, reason, monkeypatch):
    monkeypatch.syspath_prepend(workplace)
    with pytest.raises((ValueError, OSError), match=reason):
        run(workplace, *(argument.format(root=workplace) for argument in arguments))
    assert not (workplace / "never/results.json").exists()


def test_a_misspelt_key_is_refused_by_name(workplace):
    with pytest.raises(ConfigCompositionException, match=r"sampler\.step"):
        run(workplace, "dataset=rooms", "sampler.step=3")


def test_the_command_line_gets_one_line_and_exit_code_1(workplace):
    done = call(workplace, "dataset=rooms", "predictions=nowhere", "space=affine_depth", "output=never")
    assert done.returncode == 1
    assert done.stderr.strip() == "error: predictions=nowhere: no such folder"


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
