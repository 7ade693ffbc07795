"""Directories of versions, `base/1`, `base/2`, …, as TensorFlow Serving polls them.

A version appears under its number complete or not at all, and goes in the same way.
"""

import contextlib
import fcntl
import json
import os
import pathlib
import shutil
import tempfile

from keras_pg.files import flush_to_disk, remove, replacing

LABELS = "labels.json"
DESCRIPTION = "assets.extra/policy.json"
_WRITING, _REMOVING = ".writing-", ".removing-"


def check_base(base):
    """`base` as a path.

    Raises:
        NotADirectoryError: something else is in the way.
        PermissionError: nothing may be written there.
    """
    base = pathlib.Path(base)
    for path in [base, *base.parents]:
        if path.exists() and not path.is_dir():
            raise NotADirectoryError(
                f"Cannot write below {path}: it is a file. Give a directory; it need not exist."
            )
    there = next(path for path in [base, *base.absolute().parents] if path.exists())
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(f"Cannot write to {there}: this user may not. Give another one.")
    return base


def paths(base):
    """{version: its directory} under a base directory; empty where there is none."""
    if not base.is_dir():
        return {}
    numbered = ((_number(path), path) for path in base.iterdir() if path.is_dir())
    return {number: path for number, path in numbered if number is not None}


def next_version(base):
    """The path of the version after the highest there is; `base/1` where there is none."""
    # Files count as well: their names are taken.
    taken = [_number(path) or 0 for path in base.iterdir()] if base.is_dir() else []
    return base / str(max([0, *taken]) + 1)


def _number(path):
    """The version that TensorFlow Serving (int64) reads in a name; None if there is none."""
    if not (path.name.isascii() and path.name.isdigit()):
        return None
    number = int(path.name)
    return number if number < 2**63 else None


def publish(directory, base):
    """Renames a directory to the next free version under `base`, and returns the version's path."""
    for path in [*directory.rglob("*"), directory]:
        flush_to_disk(path)
    while True:
        version = next_version(base)
        try:
            os.rename(directory, version)
            break
        except OSError:
            # Somebody else has just taken that number.
            if not version.exists():
                raise
    flush_to_disk(base)
    return version


@contextlib.contextmanager
def being_written(base):
    """A new directory in `base` to make a version in, removed at the end unless it was published.

    Removes what exports have left that were killed. Each export holds a lock on its directory,
    which the system takes away when the process ends, however it ends: a directory without a lock
    is of no export that is running.
    """
    with locked(base):  # No other export removes the directory before it has its lock.
        remove_leftovers(base)
        # Not an integer, so no server takes it for a version; in `base`, so a rename is atomic.
        temporary = pathlib.Path(tempfile.mkdtemp(prefix=_WRITING, dir=base))
        descriptor = os.open(temporary, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        os.close(descriptor)


def remove_leftovers(base):
    """Removes what killed exports left in `base`. Call it in `locked(base)`."""
    for path in base.iterdir():
        if not path.name.startswith((_WRITING, _REMOVING)):
            continue
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except OSError:  # of another user, or gone
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove(path)
        except BlockingIOError:
            pass  # its export is running
        finally:
            os.close(descriptor)


# ----------------------------------------------------------------------------- labels and pruning


def check_labels(names):
    """The labels as a list; raises a `ValueError` for one that cannot stand in a URL as it is."""
    names = [names] if isinstance(names, str) else list(names)
    for name in names:
        if not (isinstance(name, str) and name and name.replace("-", "_").isidentifier()):
            raise ValueError(
                f'A label is a name of letters, digits, "-" and "_", such as "stable", received '
                f"{name!r}."
            )
    return names


def labels(base):
    """{label: version} of a base directory; raises a `ValueError` where its file says no such."""
    path = base / LABELS
    try:
        return {str(k): int(v) for k, v in json.loads(path.read_text()).items()}
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f'{path} should hold labels and their versions, such as {{"stable": 3}}. Mend it or '
            "remove it."
        ) from error


def label(base, version, names):
    """Gives a version names, which the version that had them loses."""
    if not names:
        return
    named = {**labels(base), **{name: int(version.name) for name in names}}
    with replacing(base / LABELS) as temporary:
        temporary.write_text(json.dumps(named, indent=2) + "\n")


def prune(base, keep):
    """Removes all exported policies but those of the `keep` newest versions and the labelled."""
    labelled = set(labels(base).values())
    found = paths(base)
    for version in sorted(found)[:-keep]:
        # Other directories have numbers for names too: the runs of `keras-pg train`, other models.
        if version not in labelled and (found[version] / DESCRIPTION).exists():
            # Renamed first: a server must not find half of a version.
            doomed = pathlib.Path(tempfile.mkdtemp(prefix=_REMOVING, dir=base))
            os.rename(found[version], doomed)
            shutil.rmtree(doomed)


@contextlib.contextmanager
def locked(base):
    """Lets no other exporter publish, label or prune under `base` meanwhile."""
    descriptor = os.open(base, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
