"""From the publishers' downloads to the paper's table in miniature, by the commands that the documentation gives."""

from pathlib import Path

import pytest

from commands import Command, documented, in_blocks
from known import TABLE, VARIED
from marigold.miniature.random_base import build_components, save
from publishers import write_own_files, write_publishers
from rehearsal import Rehearsal, find
from runner import VARIABLES, Workplace
from server import publishers_online

ROOT = Path(__file__).parents[2]


def test_every_documented_command_is_in_the_table():
    commands = documented(ROOT)
    assert len(commands) > 50
    for command in commands:
        find(TABLE, command)  # raises LookupError


def test_commands_of_blocks():
    text = "```bash\na  b=[c,d]   # a comment\n\nx 'it is' \\\n    y\n```\nnot this\n```python\nnor this\n```\n"
    assert list(in_blocks(f"{text}```bash\n#!/bin/sh\none  # two\n```", "f")) == [
        Command("a b=[c,d]", "f:2"),
        Command("x 'it is' y", "f:4"),
        Command("#!/bin/sh\none  # two", "f:12"),
    ]


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_from_the_downloads_to_the_table(tmp_path, monkeypatch, capsys):
    write_publishers(tmp_path / "web")
    save(build_components(0, (8, 8, 8), (4, 4, 4, 4)), tmp_path / "base")
    with publishers_online(tmp_path / "web") as online:
        for name, value in {**VARIABLES, **online}.items():
            monkeypatch.setenv(name, value)
        places = {name: Workplace(ROOT, tmp_path / name) for name in ("readme", "raw")}
        write_own_files(*(place.folder for place in places.values()))
        rehearsal = Rehearsal(TABLE, places)
        rehearsal.run([*documented(ROOT), *VARIED])
    with capsys.disabled():
        print(f"\n{len(rehearsal.used)} commands run, {len(rehearsal.errors)} failed")
    if rehearsal.errors:
        raise BaseExceptionGroup("commands failed", rehearsal.errors)
    assert not [known.text for known in TABLE if known not in rehearsal.used], "entries without a command"
