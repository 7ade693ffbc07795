"""What is written is whole, or it is not there, and the error says which file it is."""

import contextlib
import errno
import os
import pathlib
import resource
import subprocess
import sys

import keras
import pytest

import keras_pg
from keras_pg import envs, versions
from keras_pg.callbacks import LearningCurve
from keras_pg.files import replacing

ROOT = pathlib.Path(__file__).parents[1]


@contextlib.contextmanager
def no_space():
    """Files cannot grow: every write fails as on a full disk, but for the number of the error."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture(scope="module")
def agent():
    agent, env = keras_pg.A2C(seed=0), envs.Catch()
    agent.build(env.observation_space, env.action_space)
    return agent


WRITERS = {
    "agent.keras": lambda agent, path: agent.save(path),
    "catch.gif": lambda agent, path: agent.record(envs.Catch(), path),
    "curve.png": lambda agent, path: LearningCurve(path).on_epoch_end(
        0, {"env_steps": 1.0, "episode_return": 2.0}
    ),
}


@pytest.mark.parametrize("before", [None, "what was there"])
@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_names_the_file_and_leaves_what_was_there(name, before, agent, tmp_path):
    path = tmp_path / name
    if before is not None:
        path.write_text(before)
    with no_space(), pytest.raises(OSError, match=rf"{name} could not be written: File too lar"):
        WRITERS[name](agent, path)
    assert [file.name for file in tmp_path.iterdir()] == ([] if before is None else [name])
    assert before is None or path.read_text() == before
    WRITERS[name](agent, path)
    assert [file.name for file in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("format", ["saved_model", "litert"])
def test_an_export_on_a_full_disk_names_the_base_and_leaves_no_version(format, agent, tmp_path):
    base = tmp_path / "policies"
    with no_space(), pytest.raises(OSError, match=r"policies could not be written: File too lar"):
        agent.export(base, format=format)
    assert not list(tmp_path.iterdir())


def test_no_space_left_is_said_in_these_words(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"notes could not be written: No space left on") as caught:
        with replacing(tmp_path / "notes") as temporary:
            temporary.write_text("half")
    assert caught.value.errno == errno.ENOSPC and not list(tmp_path.iterdir())


def test_a_symbolic_link_stays_one(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "latest").symlink_to("there/notes")
    with replacing(tmp_path / "latest") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "latest").is_symlink()
    assert (tmp_path / "there" / "notes").read_text() == "new"


def test_a_directory_takes_the_place_of_another(agent, tmp_path):
    agent.save(tmp_path / "agent", zipped=False)
    (tmp_path / "agent" / "old").touch()
    agent.save(tmp_path / "agent", zipped=False)
    assert "old" not in os.listdir(tmp_path / "agent")
    loaded = keras.models.load_model(tmp_path / "agent")
    assert loaded.actor.count_params() == agent.actor.count_params()


def test_what_keras_refuses_or_asks_for_is_left_to_keras(agent, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"\.keras.*filepath=policy\."):
        agent.save("policy")
    with pytest.raises(FileNotFoundError, match=r"nowhere/agent\.keras"):
        agent.save(tmp_path / "nowhere" / "agent.keras")
    path = tmp_path / "agent.keras"
    path.write_text("mine")
    monkeypatch.setattr("builtins.input", lambda question: "n" if str(path) in question else "y")
    agent.save(path, overwrite=False)
    assert path.read_text() == "mine"


# ------------------------------------------------------------------------- killed exports


def test_what_killed_exports_left_is_removed_and_what_running_ones_write_is_not(agent, tmp_path):
    for left in (".writing-killed", ".removing-killed"):
        (tmp_path / left).mkdir()
        (tmp_path / left / "saved_model.pb").write_text("half")
    (tmp_path / ".writing-labels.json").write_text("{")
    (tmp_path / ".mine").mkdir()
    with versions.being_written(tmp_path) as running:
        (running / "saved_model.pb").write_text("half")
        agent.export(tmp_path)
        assert sorted(os.listdir(tmp_path)) == sorted([".mine", running.name, "1"])
        assert (running / "saved_model.pb").exists()
    assert sorted(os.listdir(tmp_path)) == [".mine", "1"]


@pytest.mark.slow
def test_the_lock_of_an_export_goes_with_its_process(tmp_path):
    program = (
        "import pathlib, sys\n"
        "from keras_pg import versions\n"
        "with versions.being_written(pathlib.Path(sys.argv[1])) as directory:\n"
        "    print(directory.name, flush=True)\n"
        "    sys.stdin.read()\n"
    )
    export = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with export:
        name = export.stdout.readline().strip()
        with versions.locked(tmp_path):
            versions.remove_leftovers(tmp_path)
        assert os.listdir(tmp_path) == [name]
        export.kill()
        export.wait()
        assert os.listdir(tmp_path) == [name]
        with versions.locked(tmp_path):
            versions.remove_leftovers(tmp_path)
        assert not os.listdir(tmp_path)
