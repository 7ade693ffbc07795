"""Files that are written whole or not at all."""

import contextlib
import os
import pathlib
import shutil
from collections.abc import Iterator


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Gives a path to write to, which takes the place of `path` when the block ends without error.

    The file, or directory, is written beside `path` under a hidden name with the same suffix. After
    an error it is removed, and what was at `path` before is still there.

    Args:
        path: what is to be written. Its directory must exist.

    Raises:
        OSError: it could not be written, for want of space or for another reason. The error names
            `path`, and has the number and the class of the operating system's.

    Example:
    >>> import os, tempfile
    >>> path = os.path.join(tempfile.mkdtemp(), "notes.txt")
    >>> with replacing(path) as temporary:
    ...     _ = temporary.write_text("all of it")
    >>> os.listdir(os.path.dirname(path))
    ['notes.txt']
    """
    # Where a symbolic link points to, so that it stays one.
    target = pathlib.Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.stem}.{os.getpid()}{target.suffix}")
    try:
        yield temporary
        flush_to_disk(temporary)
        if target.is_dir() and temporary.is_dir():
            shutil.rmtree(target)  # which no directory with files can replace in one step
        os.replace(temporary, target)
    except OSError as error:
        raise not_written(path, error) from error
    finally:
        remove(temporary)


def not_written(path: str | os.PathLike, error: OSError) -> OSError:
    """The same error, with a sentence that names `path`."""
    reason = error.strerror or (os.strerror(error.errno) if error.errno else str(error))
    sentence = f"{path} could not be written: {reason}."
    if error.errno:  # of which Python makes a `PermissionError`, a `FileNotFoundError`, …
        return OSError(error.errno, sentence)
    kind = type(error) if type(error).__module__ == "builtins" else OSError
    return kind(sentence)


def flush_to_disk(path: str | os.PathLike) -> None:
    """Returns when a file, or the list of names in a directory, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: pathlib.Path) -> None:
    """Removes a file, or a directory with all that is in it, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
