"""What the rehearsed commands must leave behind."""

import filecmp
import json
import re
import shutil
import signal
import socket
import urllib.request
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from diffusers import MarigoldDepthPipeline

from commands import Command, recipe
from publishers import DIODE, HYPERSIM, HYPERSIM_DROPPED, IMAGES, NYU_SCENES, NYU_TRAIN, SCANNET
from rehearsal import Act, Check, last_words
from runner import BINARIES, Result, Workplace
from runs import wait_until

FIVE = ("nyu", "kitti", "eth3d", "scannet", "diode")
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


# --- any command ---


def leaves(expected: dict[str, int]) -> Check:
    """So many files, none of them empty, of each glob below the workplace."""

    def check(place: Workplace, _: Result | None) -> None:
        found = {glob: sum(path.stat().st_size > 0 for path in place.folder.glob(glob)) for glob in expected}
        assert found == expected

    return check


def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def made(place: Workplace, command: Command) -> Sequence[Command]:
    return recipe(place.folder, command.text.split()[1], BINARIES)


def made_with_noise(_: Workplace, command: Command) -> Sequence[Command]:
    return [Command("python scripts/train.py +exp=[quickstart,marigold]", command.place)]


def installable(place: Workplace, _: Command) -> None:
    assert all(place.path(name).is_file() for name in ("constraints.txt", "pyproject.toml"))


def only_pytest(place: Workplace, command: Command) -> None:
    (made,) = recipe(place.folder, "test", BINARIES)
    assert made.text.split()[0] == "pytest"


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


def maps(folder: str, beside: str, low: float, high: float) -> Check:
    """A float32 map of each image, not constant and within these bounds, and a png beside it."""

    def check(place: Workplace, result: Result) -> None:
        found = [np.load(path) for path in sorted(place.path(folder).glob("*.npy"))]
        assert [(one.shape, one.dtype) for one in found] == IMAGES * [((120, 160), np.float32)]
        assert all(low <= one.min() < one.max() <= high for one in found)
        leaves({f"{beside}/*.png": IMAGES})(place, result)

    return check


def stands_in_space(place: Workplace, result: Result) -> None:
    """A mesh, a page, points and an EXR file of each image, and a line about the camera."""
    kinds = ("point_cloud/*.ply", "mesh/*.glb", "viewer/*.html", "exr/*.exr")
    leaves({f"space/{kind}": IMAGES for kind in kinds})(place, result)
    assert result.output.count("camera.assumed_fov") == IMAGES


def exported(folder: str) -> Check:
    """A model that diffusers' own pipeline loads."""

    def check(place: Workplace, _: Result | None) -> None:
        assert MarigoldDepthPipeline.from_pretrained(place.path(folder)).default_denoising_steps == 1

    return check


def served(place: Workplace, command: Command) -> None:
    """The page is there, and is gone after Ctrl-C."""
    number = port()
    text = command.text.replace("checkpoint=DIR", "checkpoint=runs/quickstart/final")
    process, log = place.start(f"exec {text} port={number}")
    wait_until(process, log, lambda: f"http://127.0.0.1:{number}" in log.read_text())
    with urllib.request.urlopen(f"http://127.0.0.1:{number}", timeout=60) as answer:
        assert b"gradio" in answer.read()
    process.send_signal(signal.SIGINT)
    assert process.wait(120) == 0, last_words(log.read_text())


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
