"""scripts/prepare.py as it is called: exit codes, one line for an error."""

import pytest


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("dataset=diode", "raw=/nowhere", "out=/nowhere/else"), "/nowhere"),
        (("dataset=kitti", "raw=/nowhere", "out=/nowhere/else", "workers=many"), "workers"),
        (("dataset=nyu", "source=archive_val"), "source"),
        (("dataset=vkitti", "source=archive"), "source"),
        (("dataset=rooms", "out=/nowhere/else", "dry_run=true"), "dry_run"),
        (("check", "dataset=motorcycle"), "lists"),
    ],
)
def test_errors_are_one_line(arguments, words, call):
    code, _, error = call(*arguments)
    assert code == 2
    assert words in error
    assert "Traceback" not in error
