"""What the rehearsed commands must leave behind."""

import filecmp
import json
import re
import shutil
import signal
import socket
import subprocess
import urllib.request
from collections.abc import Sequence

import numpy as np
from diffusers import MarigoldDepthPipeline

from commands import Command, recipe
from publishers import DIODE, HYPERSIM, HYPERSIM_DROPPED, IMAGES, NYU_SCENES, NYU_TRAIN, SCANNET
from rehearsal import Act, Check
from runner import BINARIES, Result, Workplace

FIVE = ("nyu", "kitti", "eth3d", "scannet", "diode")
# Lines of the lists that a preparation writes, by data set, and by source where that makes a difference.
LISTS = {
    "hypersim": {
        "filename_list_train.txt": 4,  # of five, the filter drops one
        "filename_list_val.txt": sum(frame[0] == "val" for frame in HYPERSIM),
        "filename_list_test.txt": sum(frame[0] == "test" for frame in HYPERSIM),
    },
    "vkitti": {"filename_list_train.txt": 20148},
    "nyu": {
        "filename_list_train.txt": len(NYU_TRAIN),
        "filename_list_test.txt": len(NYU_SCENES) - len(NYU_TRAIN),
    },
    "kitti": {"eigen_test.txt": 697},
    "kitti archive_val": {"eigen_val_800.txt": 800},
    "eth3d": {"filename_list.txt": 13},
    "eth3d archive": {"filename_list.txt": 2},
    "scannet": {"filename_list_val_800.txt": len(SCANNET)},
    "diode": {"filename_list_all.txt": len(DIODE)},
}


def datasets(command: str) -> list[str]:
    return re.findall(r"dataset=(\S+)", command)[-1].split(",")


# --- any command ---


def leaves(*globs: str, count: int | None = None) -> Check:
    """Files of each glob below the workplace, none of them empty: so many, or at least one."""

    def check(place: Workplace, _: Result) -> None:
        for glob in globs:
            sizes = [path.stat().st_size for path in place.folder.glob(glob)]
            assert sizes if count is None else len(sizes) == count, f"{glob}: {len(sizes)} files"
            assert all(sizes), f"{glob}: an empty file"

    return check


def skipped(_: Workplace, __: Command) -> None:
    """Of what installs the environment, which is here, or runs these tests."""


def made(place: Workplace, command: Command) -> Sequence[Command]:
    """The recipe of `make TARGET` without the installation, line by line."""
    return recipe(place.folder, command.text.split()[1], BINARIES)


# --- data ---


def downloaded(place: Workplace, result: Result) -> Sequence[Command]:
    """Every file is the publisher's to the last byte; goes on with the next steps that are printed."""
    names = datasets(result.command)
    assert len(re.findall(r"([\d,]+) of \1 files are there and checked", result.output)) == len(names), result.tail()
    for name in names:
        for source in (place.folder.parent / "web").rglob("*.*"):
            path = place.path(f"downloads/{name}/{source.name}")
            assert not path.is_file() or filecmp.cmp(path, source, shallow=False), f"{path} is not what was served"
    following = re.findall(r"^next: (.+)$", result.output, re.MULTILINE)
    assert len(following) == len(names), result.tail()
    return [Command(text, f"printed by {result.command}") for text in following]


def unpacked(archives: int) -> Act:
    """The command as it stands; its folder then holds the folders of so many archives."""

    def act(place: Workplace, command: Command) -> None:
        result = place.shell(command.text)
        assert result.code == 0, result.tail()
        folder = place.path("downloads") / ("eth3d" if "eth3d" in command.text else "diode")
        assert len([path for path in folder.iterdir() if path.is_dir()]) == archives

    return act


def prepared(place: Workplace, result: Result) -> None:
    """The lists of the data sets in the command."""
    source = "".join(re.findall(r"source=(\w+)", result.command))
    for name in datasets(result.command):
        expected = LISTS.get(f"{name} {source}", LISTS[name])
        lists = {file: place.path(f"data/{name}/{file}").read_text() for file in expected}
        assert {file: len(text.splitlines()) for file, text in lists.items()} == expected
        assert HYPERSIM_DROPPED not in lists.get("filename_list_train.txt", "")


def checked(_: Workplace, result: Result) -> None:
    assert result.output.count("all is well") == result.output.count("samples checked") > 0, result.tail()


def base_copied(place: Workplace, _: Command) -> None:
    """In place of a download from the hub."""
    folder = place.path("checkpoints/stable-diffusion-2")
    shutil.copytree(place.folder.parent / "base", folder)
    (folder / "README.md").write_text("---\nlicense: openrail++\n---\n")


# --- evaluation ---


def evaluated(names: Sequence[str], count: int, folder: str = "runs/eval", protocol: str = "marigold") -> Check:
    """Complete results of so many images of each set."""

    def check(place: Workplace, _: Result) -> None:
        results = [json.loads(path.read_text()) for path in place.path(folder).rglob("results.json")]
        for name in names:
            key = (name, count, protocol)
            found = [one for one in results if (one["dataset"], one["count"], one["protocol"]["name"]) == key]
            assert found, f"{folder}: no results of {key}"
            assert all(one["complete"] and 0 < one["metrics"]["abs_rel"]["mean"] < 10 for one in found)

    return check


def maps(folder: str, beside: str, low: float, high: float) -> Check:
    """A float32 map of each image, not constant and within these bounds, and a png beside it."""

    def check(place: Workplace, result: Result) -> None:
        found = [np.load(path) for path in place.path(folder).glob("*.npy")]
        assert [(one.shape, one.dtype) for one in found] == IMAGES * [((120, 160), np.float32)]
        assert all(low <= one.min() < one.max() <= high for one in found)
        leaves(f"{beside}/*.png", count=IMAGES)(place, result)

    return check


def exported(folder: str) -> Check:
    """A model that diffusers' own pipeline loads."""

    def check(place: Workplace, _: Result) -> None:
        assert MarigoldDepthPipeline.from_pretrained(place.path(folder)).default_denoising_steps == 1

    return check


def served(place: Workplace, command: Command) -> None:
    """The page answers, and ends after Ctrl-C."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    text = command.text.replace("checkpoint=DIR", "checkpoint=runs/quickstart/final")
    words = ["bash", "-c", f"exec {text} port={port}"]
    with subprocess.Popen(
        words, cwd=place.folder, env=place.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            printed = next((line for line in process.stdout or () if f"http://127.0.0.1:{port}" in line), None)
            assert printed, f"the page ended with {process.wait()}"
            with urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=60) as answer:
                assert b"gradio" in answer.read()
            process.send_signal(signal.SIGINT)
            assert process.wait(120) == 0
        finally:
            process.kill()


def tabled(output: str, methods: Sequence[str], sets: Sequence[str]) -> Check:
    """A row for each method, with values of each set, and files of each kind."""

    def check(place: Workplace, result: Result) -> None:
        text = place.path(f"{output}.md").read_text()
        for method in methods:
            values = [len(re.findall(r"\d+\.\d", line)) for line in text.splitlines() if method in line]
            assert max(values, default=0) >= 2 * len(sets), f"{output}.md: no row of {method}, or not all sets"
        leaves(*(f"{output}.{kind}" for kind in ("tex", "csv", "html")))(place, result)

    return check
