"""What rehearsed trainings must leave behind, and those that are more than a command and a check."""

import json
import re
import signal
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from omegaconf import OmegaConf

from checks import port
from commands import Command
from miniature import depth, depth_png, encoded, photo, write
from rehearsal import Act, Check, last_words, type_it
from runner import Result, Workplace
from runs import figures, losses, wait_until, weights

STEPS = 4
TRAIN = f"train.steps={STEPS} train.log_every=1 train.checkpoint_every=2 train.validate_every={STEPS} train.workers=0"
SHORT = f"{TRAIN} train.decay_steps={STEPS} train.warmup_steps=1 train.effective_batch=8 train.micro_batch=4"
VALIDATION = "data.hypersim.held_out.limit=1 data.vkitti.held_out.limit=1"
PAPER = f"{TRAIN} train.effective_batch=2 train.micro_batch=1 {VALIDATION} validation.panel=0"


def stepped(run: str, count: int = STEPS) -> Check:
    """A loss of every step in runs/RUN."""

    def check(place: Workplace, _: Result | None) -> None:
        steps = [line["step"] for line in figures(place.path(f"runs/{run}")) if "loss" in line]
        assert steps == list(range(1, count + 1)), f"losses of steps {steps}"

    return check


def trained(run: str, processes: int = 1, **config: object) -> Check:
    """A whole run in runs/RUN: a loss of every step, so many processes, these settings, two models."""

    def check(place: Workplace, _: Result | None) -> None:
        folder = place.path(f"runs/{run}")
        stepped(run)(place, None)
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
    stepped("taught")(place, None)
    assert "- teacher: that of the photos" in place.path("runs/taught/final/README.md").read_text()


def as_others(run: str, other: str, processes: int) -> Check:
    """The same losses as those of another run, to rounding."""

    def check(place: Workplace, result: Result | None) -> None:
        trained(run, processes)(place, result)
        ours, theirs = losses(place.path(f"runs/{run}")), losses(place.path(f"runs/{other}"))
        assert np.allclose(ours, theirs, rtol=1e-3), f"losses {ours}, those of {other} {theirs}"

    return check


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
    wait_until(process, log, lambda: any(path.stat().st_size for path in folder.glob(until)))
    process.send_signal(signal.Signals[f"SIG{name[1:]}"])
    code = process.wait(120)
    assert code == (75 if name == "-TERM" else -signal.SIGKILL), f"exit code {code}: {last_words(log.read_text())}"
    assert not (folder / "final").exists()
    type_it(lambda *_: None)(place, Command(typed_text.removeprefix("exec "), command.place))
    whole = place.path("runs/hypersim_vkitti")
    assert weights(folder) == weights(whole), "the resumed run ended with other weights"
    assert figures(folder) == figures(whole), "the resumed run logged other figures"


def cached(place: Workplace, result: Result) -> Sequence[Command]:
    for name in ("hypersim", "vkitti"):
        for store in ("image", "depth"):
            assert len(list(place.path(f"data/latents/{name}/{store}").glob("shard_*.h5"))) == 1
    text = re.sub(r"cache_latents\.py (\S+).*", r"train.py \1", result.command)
    return [Command(text, "README, configs/exp: then train with the same +exp")]


def rooms_cached(place: Workplace, _: Result) -> None:
    assert all(any(place.path(f"data/rooms/latents/{name}").glob("*/shard_*.h5")) for name in ("hypersim", "vkitti"))


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
