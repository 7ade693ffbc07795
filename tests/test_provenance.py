"""Which code made a file is known where it runs from a clone, and not guessed elsewhere."""

import pathlib
import shutil
import subprocess

import pytest

from keras_pg import provenance


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository with one commit, in which nothing of the user's configuration counts."""
    for name in ("GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM"):
        monkeypatch.setenv(name, "/dev/null")
    shutil.copy(provenance.__file__, tmp_path)
    identity = ["-c", "user.name=me", "-c", "user.email=me@here"]
    for command in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "one"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    return tmp_path


def head(repository):
    command = ["git", "rev-parse", "HEAD"]
    return subprocess.run(command, cwd=repository, capture_output=True, text=True).stdout.strip()


def test_the_commit_is_that_of_the_directory_that_is_asked_for(repository, tmp_path_factory):
    assert provenance.git_commit(repository) == head(repository)
    (repository / "provenance.py").write_text("other")
    assert provenance.git_commit(repository) == head(repository) + "-dirty"
    assert provenance.git_commit(repository / "nowhere") is None
    assert provenance.git_commit(tmp_path_factory.mktemp("none")) is None


def test_an_installed_package_has_no_commit_wherever_it_lies(repository, monkeypatch):
    monkeypatch.setattr(provenance, "__file__", str(repository / "provenance.py"))
    assert provenance.code_commit() == head(repository)
    # In a virtual environment within a repository of its user's.
    installed = pathlib.Path(repository / ".venv" / "keras_pg" / "provenance.py")
    installed.parent.mkdir(parents=True)
    installed.touch()
    monkeypatch.setattr(provenance, "__file__", str(installed))
    assert provenance.code_commit() is None


def test_without_git_there_is_no_commit(repository, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert provenance.git_commit(repository) is None
