"""What made a file: the versions of libraries, and the commits of code."""

import os
import pathlib
import platform
import subprocess

import gymnasium
import keras
import tensorflow as tf

from keras_pg._version import __version__


def library_versions() -> dict[str, str]:
    """{name: version} of keras_pg, of what its numbers depend on, and of Python.

    >>> sorted(library_versions())
    ['gymnasium', 'keras', 'keras_pg', 'python', 'tensorflow']
    """
    return {
        "keras_pg": __version__,
        "keras": keras.__version__,
        "tensorflow": tf.__version__,
        "gymnasium": gymnasium.__version__,
        "python": platform.python_version(),
    }


def git_commit(directory: str | os.PathLike = ".") -> str | None:
    """The commit of a directory, with "-dirty" where files differ; None without one."""
    return _git(directory, "describe", "--always", "--dirty", "--exclude=*", "--abbrev=40")


def code_commit() -> str | None:
    """The commit of keras_pg itself where it runs from a clone; None where it is installed."""
    package = pathlib.Path(__file__).parent
    # A virtual environment may lie in a repository of its user's, which does not track it.
    if _git(package, "ls-files", "--error-unmatch", pathlib.Path(__file__).name) is None:
        return None
    return git_commit(package)


def _git(directory, *arguments):
    """What `git` says there; None where it fails, or is not installed."""
    try:
        run = subprocess.run(
            ["git", *arguments], cwd=directory, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return run.stdout.strip() if run.returncode == 0 else None
