"""The flags of every binary, frozen: what users have in their scripts does not change unseen.

After a change that is meant,

    python -m tests.experiments.test_flags

writes the list again; what CHANGELOG.md must say is then in the diff.
"""

import pathlib
import re
import xml.etree.ElementTree as ET

import pytest

from tests.binaries import ROOT, run_binary

FROZEN = ROOT / "tests" / "testdata" / "flags.txt"
BINARIES = sorted(
    path.stem if path.parent.name == "experiments" else path.parent.name
    for path in [*ROOT.glob("experiments/*.py"), *ROOT.glob("experiments/*/__main__.py")]
    if re.search(r"^ +cli\.run_main\(", path.read_text(encoding="utf-8"), re.MULTILINE)
)


def describe(flag):
    """Name, type, choices and default of an `absl.flags` element."""
    choices = "|".join(choice.text for choice in flag.iter("enum_value"))
    words = ("--" + flag.findtext("name"), flag.findtext("type"), choices)
    return " ".join(filter(None, words)) + f" = {flag.findtext('default')!r}"


def flags_of(binary):
    """A line for each flag that this project defines."""
    document = run_binary(f"experiments.{binary}", "--helpxml").stdout
    flags = ET.fromstring(document).iter("flag")
    ours = [flag for flag in flags if re.search(r"\bexperiments[./]", flag.findtext("file"))]
    return sorted(f"{binary} {describe(flag)}" for flag in ours)


def frozen():
    return FROZEN.read_text(encoding="utf-8").splitlines()


@pytest.mark.multiprocess
@pytest.mark.parametrize("binary", BINARIES)
def test_the_flags_of_a_binary_are_those_that_were_frozen(binary):
    expected = [line for line in frozen() if line.split()[0] == binary]
    assert flags_of(binary) == expected, "python -m tests.experiments.test_flags writes the list"


def test_no_flag_of_a_binary_that_is_gone_is_left():
    assert {line.split()[0] for line in frozen()} == set(BINARIES)


if __name__ == "__main__":
    lines = [line for binary in BINARIES for line in flags_of(binary)]
    pathlib.Path(FROZEN).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
