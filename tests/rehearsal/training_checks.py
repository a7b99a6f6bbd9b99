"""What rehearsed trainings must leave behind, and those that are more than a command and a check."""

import json
import re
import shlex
from concurrent.futures import ThreadPoolExecutor

from commands import Command
from miniature import depth, depth_png, encoded, photo, write
from rehearsal import Check, type_it
from runner import Result, Workplace
from runs import figures

STEPS = 4
TRAIN = f"train.steps={STEPS} train.log_every=1 train.checkpoint_every=2 train.validate_every={STEPS} train.workers=0"
SHORT = f"{TRAIN} train.decay_steps={STEPS} train.warmup_steps=1 train.effective_batch=8 train.micro_batch=4"
PAIRS = f"{TRAIN} train.effective_batch=2 train.micro_batch=1"
PAPER = f"{PAIRS} data.hypersim.held_out.limit=1 data.vkitti.held_out.limit=1 validation.panel=0"


def run_folder(command: str) -> str:
    """Where a run is documented to lie: run_dir, runs/NAME, or named after its experiments and its recipe."""
    words = dict(word.split("=", 1) for word in shlex.split(command) if "=" in word)
    experiments = words["+exp"].partition("],")[0].strip("[]").split(",")
    name = words.get("name", "-".join([*experiments, *words.get("recipe", "").split()]))
    return words.get("run_dir", f"runs/{name}")


def stepped(place: Workplace, result: Result, steps: int = STEPS) -> None:
    """A loss of every step, in the folder of the run."""
    logged = [line["step"] for line in figures(place.path(run_folder(result.command))) if "loss" in line]
    assert logged == list(range(1, steps + 1)), f"losses of steps {logged}"


def dry_run(place: Workplace, result: Result) -> None:
    stepped(place, result, 1)


def trained(processes: int = 1, validated: set[str] | None = None) -> Check:
    """A whole run of so many processes with two models; validated: on which sets, if that matters."""

    def check(place: Workplace, result: Result) -> None:
        stepped(place, result)
        folder = place.path(run_folder(result.command))
        assert json.loads((folder / "provenance.json").read_text())["processes"] == processes
        assert all((folder / name / "model_index.json").is_file() for name in ("final", "best"))
        found = {key.partition("/")[0] for line in figures(folder) for key in line if "/" in key}
        assert validated in (None, found), f"validated on {found}"

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
    type_it(trained(validated={"mine"}), PAIRS)(place, command)


def two_machines(place: Workplace, command: Command) -> None:
    """Two launchers of one process each, on this machine."""
    text = command.text.replace("--nproc_per_node 8", "--nproc_per_node 1").replace("HOST:29500", "localhost:29511")
    text = f"{text} {PAPER} device=cpu run_dir=runs/machines"
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(place.shell, [text, text]))
    assert [result.code for result in results] == [0, 0], results[0].tail()
    trained(2)(place, results[0])


def slurm(place: Workplace, command: Command) -> None:
    """Without Slurm: bin/srun starts two tasks, and its script runs until it is requeued."""
    short = f"run_dir=runs/slurm device=cpu train.time_limit=1e-6 {PAPER}"
    text = command.text.replace("run_dir=/shared/runs/hypersim_vkitti", short).replace("29500", "29512")
    result = place.shell(text, SLURM_JOB_ID="17")
    assert "requeued 17" in result.output, result.tail()
    assert any(place.path("runs/slurm/checkpoints").glob("step_*")), "no checkpoint to resume from"
