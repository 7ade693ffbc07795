"""Results that are kept as runs end, so that a benchmark can be interrupted and go on.

Each result is a JSON file of settings and runs. A run that is stored with today's settings is not
run again, unless it ended before the moment that `--redo-before` names: then it is run again, and
replaced as the new one ends. The same command, given again after an interruption, does the rest.
"""

import contextlib
import datetime
import fcntl
import json
import os

from throughput import processor


def add_arguments(parser):
    """Adds the options that every benchmark with stored runs has."""
    parser.add_argument(
        "--redo-before",
        type=moment,
        metavar="WHEN",
        help="run again what ended before this moment, such as 2026-01-31 or 2026-01-31T12:00",
    )
    parser.add_argument("--draw", action="store_true", help="run nothing, draw what is stored")


def moment(text):
    """The time that a text names, on this machine's clock."""
    return datetime.datetime.fromisoformat(text).astimezone()


def load(path, settings):
    """What is stored at a path, emptied where the settings have changed since."""
    if path.exists():
        results = json.loads(path.read_text())
        if results["settings"] == settings:
            return results
    return {"settings": settings, "processor": f"{processor()}, {os.cpu_count()} cores", "runs": []}


def holds(results, redo_before=None, **which):
    """Whether there is a run with these fields; one that ended too early does not count.

    Runs that were stored without their end count as older than any moment.
    """
    return any(
        redo_before is None
        or ("ended" in run and datetime.datetime.fromisoformat(run["ended"]) >= redo_before)
        for run in results["runs"]
        if matches(run, which)
    )


def matches(run, which):
    """Whether a run has these fields, its own or among its script's arguments."""
    fields = run.get("arguments", {}) | run
    return all(fields.get(name) == value for name, value in which.items())


def add(path, settings, run, **which):
    """Adds a run to what is stored, in place of one with the same fields, with when it ended."""
    ended = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    with locked(path.parent):
        results = load(path, settings)
        results["runs"] = [other for other in results["runs"] if not matches(other, which)]
        results["runs"].append({**run, "ended": ended})
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(results) + "\n")
        temporary.replace(path)


@contextlib.contextmanager
def locked(directory):
    """Keeps other processes that add runs waiting."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
