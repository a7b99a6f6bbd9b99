"""A copy of the repository as a user has it, and commands typed there."""

import multiprocessing
import os
import runpy
import shlex
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path

HERE = Path(__file__).parent
BINARIES = Path(sys.executable).parent
TIMEOUT = 300  # seconds per command
# One thread, no hub, no display; the publishers' addresses lead to this machine, see redirect/sitecustomize.py.
VARIABLES = {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "MPLBACKEND": "Agg",
    "PATH": f"{HERE / 'bin'}:{BINARIES}:{os.environ['PATH']}",
    "PYTHONPATH": str(HERE / "redirect"),
}
# Seconds of imports, which a server does once; scripts are forked from it. It has computed nothing, so no thread runs.
IMPORTS = """accelerate.utils torch.nn.parallel torch.utils.data torch._dynamo diffusers.models.unets.unet_2d_condition
diffusers.models.autoencoders.autoencoder_kl diffusers.schedulers.scheduling_ddim diffusers.utils.torch_utils
transformers.models.clip.modeling_clip transformers.models.clip.tokenization_clip hydra omegaconf h5py scipy.io
matplotlib.pyplot matplotlib.backends.backend_agg requests jaxtyping kornia_rs PIL.Image tqdm safetensors.torch"""
FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(IMPORTS.split())
EXITS = threading.Lock()


@dataclass(frozen=True)
class Result:
    """A finished command; output: stdout and stderr together."""

    command: str
    code: int | None
    output: str

    def tail(self) -> str:
        """The output from its error on, or its last lines, for the message of a failed check."""
        lines = self.output.strip().splitlines()
        start = next((n for n, line in enumerate(lines) if line.lstrip().startswith("error:")), len(lines) - 4)
        return "\n".join(lines[max(start, 0) :][:7])


class Workplace:
    """The repository's tracked files in `folder`, as a git checkout.

    The first command of each script is a process of its own, later ones are forked. Call it with VARIABLES set.
    """

    def __init__(self, repository: Path, folder: Path) -> None:
        folder.mkdir()
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("MARIGOLD_", "PYTEST_"))}
        self.folder = folder
        self.environment = {**inherited, "PYTHONPATH": f"{folder}:{VARIABLES['PYTHONPATH']}"}
        self._started: set[str] = set()
        copied = self.shell(
            f"(cd '{repository}' && git ls-files -z | xargs -0 cp --parents -t '{folder}') && git init -q"
            " && git add -A && git -c user.name=rehearsal -c user.email=rehearsal commit -qm copy"
        )
        assert copied.code == 0, copied.output

    def path(self, name: str) -> Path:
        return self.folder / name

    def run(self, command: str) -> Result:
        """Type one command and wait for it."""
        words = shlex.split(command)
        if words[0] != "python" or set(command) & set(";&|<>$`\n"):
            return self.shell(command)
        if words[1] in self._started:
            return self._forked(command, words[1:])
        self._started.add(words[1])
        return self.shell(command)

    def shell(self, command: str, **variables: str) -> Result:
        """As a process of its own, by bash; `timeout` ends its whole process group."""
        done = subprocess.run(
            ["timeout", "--signal=KILL", str(TIMEOUT), "bash", "-c", command],
            cwd=self.folder,
            env={**self.environment, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        return Result(command, done.returncode, done.stdout)

    def _forked(self, command: str, words: list[str]) -> Result:
        with tempfile.NamedTemporaryFile("r", errors="replace") as log:
            arguments = (str(self.folder), self.environment, log.name, words)
            process = FORK.Process(target=run_script, args=arguments)
            # start() collects the exit codes of other threads' processes too, and each can be read only once.
            with EXITS:
                process.start()
            wait([process.sentinel], TIMEOUT)
            with EXITS:
                process.join(0)
                process.kill()
                process.join()
            return Result(command, process.exitcode, log.read())


def run_script(folder: str, environment: dict[str, str], log: str, words: list[str]) -> None:
    """`python SCRIPT ...` in `folder` with its output in the file `log`; ends with an exit code or a traceback."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    file = os.open(log, os.O_WRONLY)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.argv = [os.path.join(folder, words[0]), *words[1:]]
    sys.path[:0] = [os.path.dirname(sys.argv[0]), *environment["PYTHONPATH"].split(":")]
    runpy.run_path(sys.argv[0], run_name="__main__")
