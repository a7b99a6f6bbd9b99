"""The console command `marigold VERB key=value ...`; `python scripts/VERB.py ...` is the same.

A verb is a module with `run(config)`, which returns False if it is incomplete and raises ValueError or OSError with
a message for the user. Any other exception, and a ValueError that a library raised, is a defect of this package
and keeps its traceback.
"""

import importlib
import os
import sys
import tempfile
import traceback
from pathlib import Path
from typing import NamedTuple, NoReturn

import hydra
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import RunMode
from omegaconf import DictConfig

from marigold.config import PACKAGE, ConfigError, installed


class Verb(NamedTuple):
    """The module that runs, its file in configs/, and the exit codes of an incomplete run and of an error."""

    module: str
    config: str
    incomplete: int = 1
    error: int = 1


STOPPED = 75  # EX_TEMPFAIL: run the same command again
VERBS = {
    "train": Verb("marigold.train", "train", incomplete=STOPPED),
    "eval": Verb("marigold.evaluate", "eval"),
    "infer": Verb("marigold.infer", "infer"),
    "export": Verb("marigold.export", "export"),
    "demo": Verb("marigold.serve", "demo"),
    "prepare": Verb("marigold.prepare", "prepare", error=2),
    "download": Verb("marigold.download", "download", error=2),
    "cache-latents": Verb("marigold.cache_latents", "train"),
    "sweep": Verb("marigold.sweep", "sweep"),
    "table": Verb("marigold.report", "table"),
    "compare-constant": Verb("marigold.compare_constant", "compare_constant"),
    "pretrain-tiny": Verb("marigold.miniature.pretrain_tiny", "pretrain_tiny"),
}


class OwnConfigs(SearchPathPlugin):
    """`./configs` beside the user is searched before the configurations that come with the package."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Hydra calls this before it composes."""
        if (own := own_configs()) is not None:
            search_path.prepend("own configs", f"file://{own}", anchor="main")


Plugins.instance().register(OwnConfigs)


def own_configs() -> Path | None:
    """`./configs`, unless it is the package's own or there is none."""
    own = Path("configs").resolve()
    return own if own.is_dir() and own != installed("configs") else None


def main() -> NoReturn:
    """`marigold VERB ...`."""
    verb = sys.argv[1] if len(sys.argv) > 1 else ""
    if verb not in VERBS:
        usage = f"usage: marigold {{{','.join(VERBS)}}} key=value ...\nEvery key of a verb: marigold VERB --help"
        if verb not in ("", "-h", "--help"):
            sys.exit(usage)
        print(usage)
        sys.exit()
    sys.argv[:2] = [f"marigold {verb}"]
    launch(verb)


def launch(name: str) -> NoReturn:
    """Run a verb with the command line's overrides, or with -m all its jobs, and exit with its code.

    With -m a job that fails does not keep the next ones from running; the worst code counts.
    """
    verb = VERBS[name]
    words = ["action=check" if name == "prepare" and word == "check" else word for word in sys.argv[1:]]
    codes: dict[str, int] = {}  # of each job, by its overrides

    def job(config: DictConfig) -> None:
        codes[" ".join(HydraConfig.get().overrides.task)] = run_job(verb, config)

    try:
        refuse_null(words)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(verb.error)
    sys.path.insert(0, "")  # the user's own losses, readers and predictors are imported from the working folder
    if (own := own_configs()) is not None:  # it may be another project's
        print(f"{own} is searched before this package's configurations", file=sys.stderr)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            sys.argv[1:] = hydra_words(words, scratch)
            hydra.main(version_base="1.3", config_path=str(installed("configs")), config_name=verb.config)(job)()
    finally:  # also after a defect, which keeps its traceback
        failed = [overrides for overrides, code in codes.items() if code]
        if failed and len(codes) > 1:
            print(f"error: {len(failed)} job(s) failed:", *failed, sep="\n  ", file=sys.stderr)
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
    sys.exit(max(codes.values(), default=0))


def run_job(verb: Verb, config: DictConfig) -> int:
    """One job's exit code; an error that the user can fix becomes one message on stderr."""
    try:
        code = verb.incomplete if importlib.import_module(verb.module).run(config) is False else 0
    except (ValueError, OSError) as error:
        if not written_for_users(error):
            raise
        print(f"error: {error}", file=sys.stderr)
        code = verb.error
    # Stopping a run stops the jobs after it; and with several processes, others may still be at the job that failed.
    stopped, together = code == STOPPED, int(os.environ.get("WORLD_SIZE", "1")) > 1
    if code and (stopped or together) and HydraConfig.get().mode == RunMode.MULTIRUN:
        sys.exit(code)
    return code


def written_for_users(error: Exception) -> bool:
    """Whether an error's message was written for the user: ours, or the system's about a file."""
    if isinstance(error, OSError) or type(error).__module__.startswith("marigold."):
        return True
    raised_in = traceback.extract_tb(error.__traceback__)[-1].filename
    return Path(raised_in).is_relative_to(PACKAGE)


def hydra_words(words: list[str], scratch: str) -> list[str]:
    """The command line as Hydra takes it, with `-m` in front."""
    several = {"-m", "--multirun"} & set(words)
    words = [word for word in words if word not in ("-m", "--multirun")]
    if several and not any(word.startswith("hydra.sweep.dir=") for word in words):
        words = [f"hydra.sweep.dir={scratch}", *words]  # nobody needs what Hydra leaves there
    return ["-m", *words] if several else words


def refuse_null(words: list[str]) -> None:
    """Raise ConfigError for GROUP=null, which Hydra answers by a traceback."""
    for word in words:
        key, equals, value = word.lstrip("+~").partition("=")
        if equals and key and value in ("null", "") and (group := installed("configs") / key).is_dir():
            known = ", ".join(sorted(file.stem for file in group.glob("*.yaml")))
            raise ConfigError(f"{word}: {key} is chosen by name; known are {known}")
