"""What the rehearsed commands must leave behind."""

import filecmp
import json
import re
import shutil
import signal
import socket
import time
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
from diffusers import MarigoldDepthPipeline
from omegaconf import OmegaConf

from commands import Command, recipe
from miniature import depth, depth_png, encoded, photo, write
from publishers import DIODE, HYPERSIM, HYPERSIM_DROPPED, NYU_SCENES, NYU_TRAIN, SCANNET
from rehearsal import Act, Check, last_words, type_it
from runner import BINARIES, Result, Workplace
from runs import figures, losses, weights

FIVE = ("nyu", "kitti", "eth3d", "scannet", "diode")
STEPS = 4
TRAIN = f"train.steps={STEPS} train.log_every=1 train.checkpoint_every=2 train.validate_every={STEPS} train.workers=0"
SHORT = f"{TRAIN} train.decay_steps={STEPS} train.warmup_steps=1 train.effective_batch=8 train.micro_batch=4"
VALIDATION = "data.hypersim.held_out.limit=1 data.vkitti.held_out.limit=1"
PAPER = f"{TRAIN} train.effective_batch=2 train.micro_batch=1 {VALIDATION} validation.panel=0"
# What the archives hold, by the list that they are named in.
ARCHIVED = {
    "nyu/filename_list_train.txt": len(NYU_TRAIN),
    "nyu/filename_list_test.txt": len(NYU_SCENES) - len(NYU_TRAIN),
    "kitti/eigen_test.txt": 697,
    "kitti/eigen_val_800.txt": 800,
    "eth3d/filename_list.txt": 2,
    "scannet/filename_list_val_800.txt": len(SCANNET),
    "diode/filename_list_all.txt": len(DIODE),
}
LISTED = {key: count for key, count in ARCHIVED.items() if key != "kitti/eigen_val_800.txt"}
LISTED |= {"eth3d/filename_list.txt": 13, "vkitti/filename_list_train.txt": 20148}
LISTED |= {f"hypersim/filename_list_{split}.txt": sum(f[0] == split for f in HYPERSIM) for split in ("val", "test")}
LISTED["hypersim/filename_list_train.txt"] = 4  # of five, the filter drops one
# Samples of each list that `prepare.py check` reads, four of each where that is a shortening.
CHECKED = {"nyu": [4, 2], "kitti": [4, 4], "eth3d": [2], "scannet": [4], "diode": [4]}
CHECKED |= {"hypersim": [4, 2, 1], "vkitti": [4, 4]}


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


# --- data ---


def downloaded(files: int) -> Check:
    """All files came, whole ones are the publisher's to the last byte; goes on with the step that is printed."""

    def check(place: Workplace, result: Result) -> Sequence[Command]:
        assert f"{files:,} of {files:,} files are there and checked" in result.output, last_words(result.output)
        name = re.findall(r"dataset=(\w+)", result.command)[0]
        came_whole(place, name)
        text = re.search(r"^next: (.+)$", result.output, re.MULTILINE)
        assert text, "no next step is printed"
        return [Command(text[1], f"printed by {result.command}")]

    return check


def came_whole(place: Workplace, name: str) -> None:
    for source in (place.folder.parent / "web").rglob("*.*"):
        path = place.path(f"downloads/{name}/{source.name}")
        assert not path.is_file() or filecmp.cmp(path, source, shallow=False), f"{path} is not what was served"


def archives_downloaded(place: Workplace, result: Result) -> None:
    for name in FIVE:
        came_whole(place, name)
        assert len(list(place.path(f"downloads/{name}").glob("*.tar"))) == 1
        assert f"next: python scripts/prepare.py dataset={name} source=archive\n" in result.output


def archives_prepared(place: Workplace, result: Result) -> None:
    for name in FIVE:
        prepared(ARCHIVED)(place, replace(result, command=f"dataset={name}"))
        assert all(path.is_symlink() for path in place.path(f"data/{name}").glob("*.tar"))


def unpacked(archives: int) -> Act:
    """The command as it stands; its folder then holds more than the archives."""

    def act(place: Workplace, command: Command) -> None:
        result = place.shell(command.text)
        assert result.code == 0, last_words(result.output)
        folder = place.path("downloads") / ("eth3d" if "eth3d" in command.text else "diode")
        assert len([path for path in folder.iterdir() if path.is_dir()]) == archives

    return act


def prepared(expected: dict[str, int]) -> Check:
    """The lists of the data set in the command, with so many lines."""

    def check(place: Workplace, result: Result) -> None:
        name = re.findall(r"dataset=(\w+)", result.command)[-1]
        found = {}
        for key, count in expected.items():
            if key.startswith(f"{name}/") and (key != "kitti/eigen_val_800.txt" or len(expected) == 1):
                path = place.path(f"data/{key}")
                found[key] = (len(lines(path)) if path.is_file() else "no file", count)
        wrong = {key: pair for key, pair in found.items() if pair[0] != pair[1]}
        assert found, f"no list of {name}"
        assert not wrong, f"lines found and expected: {wrong}"
        if name == "hypersim":
            assert HYPERSIM_DROPPED not in place.path("data/hypersim/filename_list_train.txt").read_text()

    return check


def checked(place: Workplace, result: Result) -> None:
    name = re.findall(r"dataset=(\w+)", result.command)[-1]
    counts = [int(count) for count in re.findall(r"(\d+) samples checked", result.output)]
    assert counts == CHECKED[name], f"{counts} samples: {last_words(result.output)}"
    assert result.output.count("all is well") == len(counts), last_words(result.output)


def moved(place: Workplace, _: Result) -> None:
    """MARIGOLD_DATA moves the folder that is written."""
    assert len(lines(place.path("elsewhere/nyu/filename_list_test.txt"))) == ARCHIVED["nyu/filename_list_test.txt"]
    assert place.path("elsewhere/nyu/nyu_labeled_extracted.tar").is_symlink()


def rooms_rendered(place: Workplace, _: Result) -> None:
    frames = json.loads(place.path("data/rooms/rooms.json").read_text())["frames"]
    assert frames == {"hypersim/train": 12, "hypersim/val": 4, "vkitti/train": 12, "vkitti/val": 2, "nyu/test": 4}


def rooms_prepared(place: Workplace, _: Result) -> None:
    for split, count in (("train", 12), ("val", 4)):
        listed = lines(place.path(f"data/rooms/hypersim/filename_list_{split}.txt"))
        assert 8 * count // 12 <= len(listed) <= count
        assert all((place.path(f"data/rooms/hypersim/{split}") / name).is_file() for name in " ".join(listed).split())


def base_copied(place: Workplace, _: Command) -> None:
    folder = place.path("checkpoints/stable-diffusion-2")
    shutil.copytree(place.folder.parent / "base", folder)
    (folder / "README.md").write_text("---\nlicense: openrail++\n---\n")


# --- training ---


def trained(run: str, processes: int = 1, **config: object) -> Check:
    """A whole run in runs/RUN: a loss of every step, so many processes, these settings, two models."""

    def check(place: Workplace, _: Result | None) -> None:
        folder = place.path(f"runs/{run}")
        steps = [line["step"] for line in figures(folder) if "loss" in line]
        assert steps == list(range(1, STEPS + 1)), f"losses of steps {steps}"
        provenance = json.loads((folder / "provenance.json").read_text())
        assert provenance["processes"] == processes, f"{provenance['processes']} processes"
        saved = OmegaConf.load(folder / "config.yaml")
        found = {key: OmegaConf.select(saved, key) for key in config}
        differing = {key: value for key, value in found.items() if value != config[key]}
        assert not differing, f"{folder}/config.yaml: {differing}"
        for name in ("final", "best"):
            channels = json.loads((folder / name / "unet/config.json").read_text())["in_channels"]
            assert channels == (4 if saved.recipe.get("noise") == "none" or saved.recipe.inherit else 8)

    return check


def taught(place: Workplace, _: Result | None) -> None:
    """A run on a teacher's labels, which is validated on nothing."""
    assert [line["step"] for line in figures(place.path("runs/taught")) if "loss" in line] == list(range(1, STEPS + 1))
    assert "- teacher: that of the photos" in place.path("runs/taught/final/README.md").read_text()


def exported(folder: str) -> Check:
    """A model that diffusers' own pipeline loads."""

    def check(place: Workplace, _: Result | None) -> None:
        assert MarigoldDepthPipeline.from_pretrained(place.path(folder)).default_denoising_steps == 1

    return check


def is_there(name: str) -> Check:
    """A file that is not empty."""

    def check(place: Workplace, _: Result | None) -> None:
        assert place.path(name).stat().st_size > 0

    return check


def as_others(run: str, other: str, processes: int) -> Check:
    """The same losses as those of another run, to rounding."""

    def check(place: Workplace, result: Result | None) -> None:
        trained(run, processes)(place, result)
        ours, theirs = losses(place.path(f"runs/{run}")), losses(place.path(f"runs/{other}"))
        assert np.allclose(ours, theirs, rtol=1e-3), f"losses {ours}, those of {other} {theirs}"

    return check


def dry_run(place: Workplace, command: Command) -> None:
    """One step, and a checkpoint that was read back."""
    type_it(lambda *_: None, "model=tiny data.hypersim.transform.size=[96,128]")(place, command)
    assert [line["step"] for line in figures(place.path("runs/hypersim_vkitti-dry_run")) if "loss" in line] == [1]


def refused_untouched(run: str, shorten: str) -> Act:
    """A run that differs from what its folder holds is refused, offered a name, and changes no file there."""

    def act(place: Workplace, command: Command) -> None:
        files = [path for path in place.path(f"runs/{run}").rglob("*") if path.is_file() and path.name != ".lock"]
        before = {path: path.read_bytes() for path in files if path.suffix != ".safetensors"}
        result = place.run(f"{command.text} {shorten}")
        assert (result.code, "name=" in result.output) == (1, True), last_words(result.output)
        changed = [path.name for path, content in before.items() if path.read_bytes() != content]
        assert not changed, f"{changed} are others now"

    return act


def validated_on(run: str, *sets: str) -> Check:
    def check(place: Workplace, result: Result) -> None:
        trained(run)(place, result)
        found = {key.partition("/")[0] for line in figures(place.path(f"runs/{run}")) for key in line if "/" in key}
        assert found == set(sets), f"validated on {found}"

    return check


def own_set(place: Workplace, command: Command) -> None:
    """The documented YAML, in a file of the user's, and a few pairs."""
    text = re.search(r"```yaml\n(.+?)```", place.path("docs/training.md").read_text(), re.DOTALL)
    assert text, "docs/training.md shows no YAML"
    write(place.path("configs/data/mine.yaml"), text[1])
    for part, numbers in (("train", range(4)), ("val", range(4, 6))):
        for number in numbers:
            write(place.path(f"data/mine/{number}.png"), encoded(photo(number, (480, 640))))
            write(place.path(f"data/mine/{number}_depth.png"), depth_png(depth(number, (480, 640), 1, 9), 1000))
        write(place.path(f"data/mine/{part}.txt"), "".join(f"{n}.png {n}_depth.png\n" for n in numbers))
    type_it(validated_on("mine", "mine"), f"{TRAIN} train.effective_batch=2 train.micro_batch=1")(place, command)
    card = place.path("runs/mine/best/README.md").read_text()
    assert "CC BY 4.0" in card
    assert "CC BY-NC-SA" not in card
    assert "license: openrail++" in card


def headline_trained(place: Workplace, result: Result) -> Sequence[Command]:
    trained("hypersim_vkitti")(place, result)
    text = re.sub(r" train\.\S+=.*", "", result.command)
    return [Command(f"kill -{name} {text}", "README: kill it whenever you like") for name in ("TERM", "KILL")]


def killed(place: Workplace, command: Command) -> None:
    """Stopped after the first step or killed after the first checkpoint, and run again: the same bytes."""
    _, name, text = command.text.split(maxsplit=2)
    folder = place.path(f"runs/{name.lower().strip('-')}")
    typed_text = f"exec {text} {PAPER} run_dir={folder}"
    process, log = place.start(typed_text)
    until = "checkpoints/step_*/training_state/manifest.json" if name == "-KILL" else "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not any(path.stat().st_size for path in folder.glob(until)):
        assert process.poll() is None, f"ended before it was stopped: {last_words(log.read_text())}"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.Signals[f"SIG{name[1:]}"])
    code = process.wait(120)
    assert code == (75 if name == "-TERM" else -signal.SIGKILL), f"exit code {code}: {last_words(log.read_text())}"
    assert not (folder / "final").exists()
    type_it(lambda *_: None)(place, Command(typed_text.removeprefix("exec "), command.place))
    whole = place.path("runs/hypersim_vkitti")
    assert weights(folder) == weights(whole), "the resumed run ended with other weights"
    assert figures(folder) == figures(whole), "the resumed run logged other figures"


def served(place: Workplace, command: Command) -> None:
    """The page is there, and is gone after Ctrl-C."""
    number = port()
    text = command.text.replace("checkpoint=DIR", "checkpoint=runs/quickstart/final")
    process, log = place.start(f"exec {text} port={number}")
    deadline = time.monotonic() + 300
    while f"http://127.0.0.1:{number}" not in log.read_text():
        assert process.poll() is None, f"ended before it was stopped: {last_words(log.read_text())}"
        assert time.monotonic() < deadline, "no address was printed"
        time.sleep(0.1)
    with urllib.request.urlopen(f"http://127.0.0.1:{number}", timeout=60) as answer:
        assert b"gradio" in answer.read()
    process.send_signal(signal.SIGINT)
    assert process.wait(120) == 0, last_words(log.read_text())


def cached(place: Workplace, result: Result) -> Sequence[Command]:
    for name in ("hypersim", "vkitti"):
        for store in ("image", "depth"):
            assert len(list(place.path(f"data/latents/{name}/{store}").glob("shard_*.h5"))) == 1
    text = re.sub(r"cache_latents\.py (\S+).*", r"train.py \1", result.command)
    return [Command(text, "README, configs/exp: then train with the same +exp")]


def rooms_cached(place: Workplace, _: Result) -> None:
    assert all(any(place.path(f"data/rooms/latents/{name}").glob("*/shard_*.h5")) for name in ("hypersim", "vkitti"))


def made(place: Workplace, command: Command) -> Sequence[Command]:
    return recipe(place.folder, command.text.split()[1], BINARIES)


def made_with_noise(_: Workplace, command: Command) -> Sequence[Command]:
    return [Command("python scripts/train.py +exp=[quickstart,marigold]", command.place)]


def installable(place: Workplace, _: Command) -> None:
    assert all(place.path(name).is_file() for name in ("constraints.txt", "pyproject.toml"))


def only_pytest(place: Workplace, command: Command) -> None:
    (made,) = recipe(place.folder, "test", BINARIES)
    assert made.text.split()[0] == "pytest"


def two_processes(text: str, then: Check) -> Act:
    """The two are started by hand: the launchers are rehearsed elsewhere, and these can be forked."""

    def act(place: Workplace, command: Command) -> None:
        world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port())}
        with ThreadPoolExecutor(2) as pool:
            ranks = [{**world, "RANK": rank, "LOCAL_RANK": rank} for rank in "01"]
            first, _ = done = list(pool.map(lambda rank: place.run(text, **rank), ranks))
        assert [result.code for result in done] == [0, 0], last_words(first.output)
        then(place, first)

    return act


def two_machines(place: Workplace, command: Command) -> None:
    text = command.text.replace("--nproc_per_node 8", "--nproc_per_node 1").replace(
        "HOST:29500", f"localhost:{port()}"
    )
    text = f"{text} {PAPER} device=cpu run_dir=runs/machines"
    machines = [place.start(text) for _ in range(2)]
    codes = [process.wait(240) for process, _ in machines]
    assert codes == [0, 0], f"exit codes {codes}: {last_words(machines[0][1].read_text())}"
    as_others("machines", "hypersim_vkitti", 2)(place, None)


def slurm(place: Workplace, command: Command) -> None:
    short = f"run_dir=runs/slurm device=cpu train.time_limit=1e-6 {PAPER}"
    text = command.text.replace("run_dir=/shared/runs/hypersim_vkitti", short).replace("29500", str(port()))
    result = place.shell(text, SLURM_JOB_ID="17")
    assert "requeued 17" in result.output, last_words(result.output)
    assert any(place.path("runs/slurm/checkpoints").glob("step_*")), "no checkpoint to go on from"


def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


# --- evaluation ---


def results_below(folder: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(folder.rglob("results.json"))]


def evaluated(datasets: Sequence[str], count: int, folder: str = "runs/eval", protocol: str = "marigold") -> Check:
    """Complete results with so many rows of each set."""

    def check(place: Workplace, _: Result) -> None:
        found = [c for c in results_below(place.path(folder)) if c["protocol"]["name"] == protocol]
        for dataset in datasets:
            matching = [c for c in found if c["dataset"] == dataset and c["count"] == count]
            assert matching, f"{folder}: no results of {count} images of {dataset}"
            for content in matching:
                assert content["complete"], f"{dataset}: not complete"
                assert 0 < content["metrics"]["abs_rel"]["mean"] < 10, content["metrics"]["abs_rel"]

    return check


def refused(message: str) -> Check:
    def check(_: Workplace, result: Result) -> None:
        assert message in result.output, last_words(result.output)
        assert "Traceback" not in result.output

    return check


def as_alone(place: Workplace, _: Result) -> None:
    """The rows of one process, to the last bit."""
    (alone,) = place.path("runs/eval").glob("nyu-marigold-*")
    assert lines(place.path("runs/eval_accelerate/per_image.csv")) == lines(alone / "per_image.csv")


def compared(_: Workplace, result: Result) -> None:
    assert len(re.findall(r": \d\.\d{4}, ratio \d\.\d{3}", result.output)) == 2, last_words(result.output)


def swept(curve: str, points: int) -> Check:
    def check(place: Workplace, _: Result) -> None:
        (folder,) = place.path("runs/sweep").glob(f"rooms-marigold-{curve}-*")
        assert len(lines(folder / "points.csv")) == 1 + points
        assert (folder / "curve.png").stat().st_size > 1000

    return check


def predicted(place: Workplace, command: Command) -> None:
    """Predictions of the images by a checkpoint that is here."""
    text = command.text.replace("prs-eth/marigold-depth-v1-1", "runs/quickstart/final")
    result = place.run(text)
    assert result.code == 0, last_words(result.output)
    maps = [np.load(path) for path in sorted(place.path("depth/depth_npy").glob("*.npy"))]
    assert [(m.shape, m.dtype, bool(np.ptp(m) > 0)) for m in maps] == 3 * [((120, 160), np.float32, True)]
    assert all(m.min() >= 0 and m.max() <= 1 for m in maps)
    assert len(list(place.path("depth/depth_colour").glob("*.png"))) == 3


def stands_in_space(place: Workplace, result: Result) -> None:
    """A mesh, a page, points and an EXR file of each image, and a line about the camera."""
    kinds = ("point_cloud/*.ply", "mesh/*.glb", "viewer/*.html", "exr/*.exr")
    assert [len(list(place.path("space").glob(kind))) for kind in kinds] == 4 * [3]
    assert result.output.count("camera.assumed_fov") == 3


def in_metres(place: Workplace, command: Command) -> None:
    """Metres of each image from three known points, which the maps meet."""
    folder = place.path("points")
    folder.mkdir()
    for image in place.path("photos").glob("*.*"):
        rows = "x,y,metres\n10,10,1.5\n80,60,2.5\n150,110,4.0\n"
        (folder / f"{image.stem}.csv").write_text(rows)
    result = place.run(command.text.replace("checkpoint=DIR", "checkpoint=runs/quickstart/final"))
    assert result.code == 0, last_words(result.output)
    maps = [np.load(path) for path in sorted(place.path("metres/depth_metres").glob("*.npy"))]
    assert [(m.shape, bool(m.min() > 0)) for m in maps] == 3 * [((120, 160), True)]
    assert len(list(place.path("metres/depth_metres_png").glob("*.png"))) == 3


def tabled(output: str, methods: Sequence[str], sets: Sequence[str]) -> Check:
    """A row for each method, with figures of each set, and files of each kind."""

    def check(place: Workplace, _: Result) -> None:
        text = place.path(f"{output}.md").read_text()
        for method in methods:
            rows = [line for line in text.splitlines() if method in line]
            assert rows, f"{output}.md has no row of {method}"
            assert max(len(re.findall(r"\d+\.\d", row)) for row in rows) >= 2 * len(sets), f"not all sets: {rows}"
        assert all(place.path(output).with_suffix(kind).is_file() for kind in (".tex", ".csv", ".html"))

    return check
