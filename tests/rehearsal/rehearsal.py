"""Runs commands that are known, stage by stage, two at a time, and keeps what came of each."""

import re
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import SubprocessError

from commands import Command
from runner import Result, Workplace

STAGES = ("get", "raw", "unpack", "prepare", "check", "train", "train more", "evaluate", "evaluate more", "table")
Act = Callable[[Workplace, Command], Sequence[Command] | None]
Check = Callable[[Workplace, Result], Sequence[Command] | None]


@dataclass(frozen=True)
class Known:
    """What is done for a command, and when.

    text: the command's, `python scripts/` left out, * for anything. act: does it and asserts what it leaves behind;
    returns commands to go on with, such as one that was printed. why: the reason that something else is done in its
    place, if so. where: which workplace.
    """

    stage: str
    text: str
    act: Act
    why: str = ""
    where: str = "readme"

    def fits(self, command: Command) -> bool:
        pattern = ".*".join(map(re.escape, self.text.split("*")))
        return re.fullmatch(pattern, command.text.removeprefix("python scripts/"), re.DOTALL) is not None


def instead(stage: str, text: str, act: Act, why: str) -> Known:
    """A command that cannot be run here, and what is done in its place."""
    return Known(stage, text, act, why)


def typed(stage: str, text: str, check: Check, shorten: str = "", code: int = 0, where: str = "readme") -> Known:
    """A command that is typed as it stands, with the overrides `shorten` behind it."""
    return Known(stage, text, type_it(check, shorten, code), where=where)


def type_it(check: Check, shorten: str = "", code: int = 0) -> Act:
    def act(place: Workplace, command: Command) -> Sequence[Command] | None:
        result = place.run(f"{command.text} {shorten}".strip())
        assert result.code == code, f"exit code {result.code}, expected {code}: {last_words(result.output)}"
        return check(place, result)

    return act


@dataclass(frozen=True)
class Outcome:
    """problem: why it failed, or ""."""

    command: Command
    known: Known | None
    seconds: float
    problem: str


def find(table: Sequence[Known], command: Command) -> Known | None:
    """The first entry for this command."""
    return next((known for known in table if known.fits(command)), None)


def last_words(output: str) -> str:
    """What a person would look at: from the error on, or the last lines."""
    lines = [line.rpartition("\r")[2] for line in output.strip().splitlines()]
    start = next((number for number, line in enumerate(lines) if line.lstrip().startswith("error:")), len(lines) - 4)
    return "\n    ".join(lines[max(start, 0) :][:7])


@dataclass
class Rehearsal:
    """places: by name. outcomes: of all that was done so far. seconds: of each stage, wall time."""

    table: Sequence[Known]
    places: Mapping[str, Workplace]
    outcomes: list[Outcome] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def run(self, commands: Iterable[Command]) -> None:
        """Everything of one stage before the next; a failure stops nothing."""
        known = [(command, find(self.table, command)) for command in commands]
        self.outcomes += [Outcome(command, None, 0, "not in the table") for command, entry in known if entry is None]
        for stage in STAGES:
            start = time.perf_counter()
            with ThreadPoolExecutor(2) as pool:
                list(pool.map(self._do, [command for command, entry in known if entry and entry.stage == stage]))
            self.seconds[stage] = time.perf_counter() - start

    def _do(self, command: Command) -> None:
        known = find(self.table, command)
        start, problem, more = time.perf_counter(), "", None
        try:
            assert known is not None, "not in the table"
            more = known.act(self.places[known.where], command)
        except (AssertionError, OSError, ValueError, LookupError, SubprocessError) as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            told = isinstance(error, AssertionError) and str(error)
            problem = (
                told or f"{type(error).__name__} {error} at {Path(last.filename).name}:{last.lineno}: {last.line}"
            )
        self.outcomes.append(Outcome(command, known, time.perf_counter() - start, problem))
        for following in more or ():
            self._do(following)

    def tally(self) -> str:
        """For people: the failures with their reasons, what was stood in for and why, and the counts."""
        failed = [outcome for outcome in self.outcomes if outcome.problem]
        stood_in = [o for o in self.outcomes if o.known and o.known.why]
        used = {id(outcome.known) for outcome in self.outcomes}
        lines = []
        for problem in dict.fromkeys(outcome.problem for outcome in failed):
            alike = [f"{o.command.place}: {o.command.text}" for o in failed if o.problem == problem]
            lines.append("\n".join(f"FAILED {text}" for text in alike) + f"\n    {problem}")
        lines += [f"stood in for {o.command.place}: {o.command.text}\n    {o.known.why}" for o in stood_in if o.known]
        lines += [f"no command for {known.text}" for known in self.table if id(known) not in used]
        slow = sorted(self.outcomes, key=lambda outcome: -outcome.seconds)[:10]
        lines += [f"{outcome.seconds:5.0f} s {outcome.command.text[:100]!r}" for outcome in slow]
        run = len(self.outcomes) - len(stood_in)
        lines += [f"{seconds:5.0f} s {stage}" for stage, seconds in self.seconds.items()]
        lines.append(f"{run} run, {len(stood_in)} stood in for, {len(failed)} failed")
        return "\n".join(lines)
