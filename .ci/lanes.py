#!/usr/bin/env python3
"""Runs lanes of CI and keeps what their last full passes gave.

    python3 .ci/lanes.py list               # each lane: is its result still good, and of what
    python3 .ci/lanes.py run NAME [NAME …]  # runs lanes and records those that pass
    python3 .ci/lanes.py stale --minutes=75 # runs those that a change has made stale

A lane is a script `.ci/lanes/NAME` with its own environment. Lines of its head say on which
paths it depends: `# paths: PATH …`. It prints the versions that matter as `lane-version: NAME==V`,
and its test runner's closing lines give the counts. Its result in `.ci/lanes/results.json` is stale
once one of its paths, or the script, differs from the commit in its entry.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
LANES = ROOT / ".ci" / "lanes"
RESULTS = LANES / "results.json"
MINUTES_A_LANE = 15
_COUNT = re.compile(r"\b(\d+) (passed|failed|skipped|errors?)\b")


def lanes() -> list[str]:
    """Names of the scripts."""
    return sorted(path.name for path in LANES.iterdir() if not path.suffix and path.is_file())


def paths(name: str) -> list[str]:
    """What a lane depends on: its script, and the paths in its head."""
    lines = (LANES / name).read_text(encoding="utf-8").splitlines()
    heads = [line.removeprefix("# paths:") for line in lines if line.startswith("# paths:")]
    found = [path for head in heads for path in head.split()]
    if not found:
        raise ValueError(f".ci/lanes/{name} has no line '# paths: …', expected what it depends on")
    return [f".ci/lanes/{name}", *found]


def results() -> dict[str, dict]:
    """Entries of the last full passes, by lane."""
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}


def why_stale(name: str) -> str | None:
    """Why a lane must run, or None."""
    entry = results().get(name)
    if entry is None:
        return "it has never passed"
    commit = entry["commit"]
    changed = _git("diff", "--name-only", commit, "--", *paths(name))
    if changed.returncode:
        return f"commit {commit[:12]} is not known here"
    names = changed.stdout.split()
    return f"{', '.join(names[:3])} changed since {commit[:12]}" if names else None


def run(name: str) -> bool:
    """Runs a lane, at most so many minutes, and records it if it passes."""
    begin = time.monotonic()
    print(f"--- lane {name}", flush=True)
    process = subprocess.Popen(
        ["bash", str(LANES / name)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    timeout = subprocess.Popen(
        ["sh", "-c", f"sleep {60 * MINUTES_A_LANE}; kill -TERM -{process.pid}"],
        start_new_session=True,
    )
    output = []
    for line in process.stdout:
        print(line, end="", flush=True)
        output.append(line)
    code = process.wait()
    os.killpg(timeout.pid, signal.SIGKILL)
    timeout.wait()
    minutes = (time.monotonic() - begin) / 60
    counts: dict[str, int] = {}
    for number, kind in _COUNT.findall("".join(output)):
        counts[kind] = counts.get(kind, 0) + int(number)
    print(f"--- lane {name}: exit status {code}, {minutes:.1f} min, {counts}", flush=True)
    if code:
        return False
    versions = [x.split(":", 1)[1].strip() for x in output if x.startswith("lane-version:")]
    entry = {
        "commit": _git("rev-parse", "HEAD").stdout.strip(),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "minutes": round(minutes, 1),
        "counts": counts,
        "versions": versions,
    }
    if _git("status", "--porcelain", "--", *paths(name)).stdout.strip():
        print(f"--- lane {name}: not recorded, its paths have changes that are not committed")
        return True
    everything = results() | {name: entry}
    text = json.dumps(dict(sorted(everything.items())), indent=1) + "\n"
    RESULTS.write_text(text, encoding="utf-8")
    return True


def run_stale(minutes: float) -> int:
    """Runs stale lanes while there is time; the exit status says whether all are good then."""
    begin, bad = time.monotonic(), []
    for name in lanes():
        reason = why_stale(name)
        if reason is None:
            print(f"--- lane {name}: its last pass is still good", flush=True)
            continue
        left = minutes - (time.monotonic() - begin) / 60
        needed = results().get(name, {}).get("minutes", MINUTES_A_LANE)
        if needed > left:
            bad.append(f"{name} ({reason}; {left:.0f} minutes are left)")
        elif not run(name):
            bad.append(f"{name} (failed)")
    if bad:
        print(f"lanes that are stale or failed: {'; '.join(bad)}", file=sys.stderr)
    return 1 if bad else 0


def _git(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def main() -> int:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("list")
    verbs.add_parser("run").add_argument("names", nargs="+", choices=lanes())
    verbs.add_parser("stale").add_argument("--minutes", type=float, default=75.0)
    arguments = parser.parse_args()
    if arguments.verb == "list":
        for name in lanes():
            print(f"{name}: {why_stale(name) or 'good'}")
            if entry := results().get(name):
                print(f"  {entry['date']}, {entry['commit'][:12]}: {' '.join(entry['versions'])}")
        return 0
    if arguments.verb == "run":
        return 0 if all([run(name) for name in arguments.names]) else 1
    return run_stale(arguments.minutes)


if __name__ == "__main__":
    sys.exit(main())
