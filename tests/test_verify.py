"""Golden observations, replayed against directories and against servers."""

import os
import pathlib
import shutil
import sys
import sysconfig

import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete

import keras_pg
from environments import perturbed_agent
from keras_pg import cli, replay, saved_model
from keras_pg.serving.models import Model, Models, latest
from keras_pg.serving.server import Server
from policies import POLICIES, rows


@pytest.fixture(scope="module")
def small_agent():
    """An agent that exports fast."""
    return perturbed_agent(Discrete(3), Discrete(2), actor=keras_pg.mlp((2,), seed=0))


# ----------------------------------------------------------------------------------- directories


@pytest.mark.parametrize("name", POLICIES)
def test_golden_rows_are_observations_with_the_agents_answers(name, exported):
    agent, directory = exported(name)
    inputs, outputs = replay.read_golden(directory)
    observations = inputs if name.startswith("masked") else inputs["observation"]
    space = agent.actor.observation_space
    assert len(inputs["observation"]) == 64
    assert all(space.contains(rows(observations, i)) for i in range(64))
    assert set(outputs) == {"action", *POLICIES[name][3]}
    np.testing.assert_allclose(outputs["action"], agent.act(observations), rtol=1e-5, atol=1e-6)

    report = replay.replay(replay.runner(directory), directory)
    assert report["equal"] is True and report["rows"] == 64
    assert report["max_difference"].keys() == outputs.keys()
    assert 0.0 < report["latency"]["p50"] <= report["latency"]["p99"] < 1.0


def test_golden_observations_differ_and_lie_in_the_space_wherever_it_lies(tmp_path):
    # An air pressure in pascal.
    pressures = Box(9e4, 1.1e5, (1,))
    agent = perturbed_agent(pressures, Discrete(2), actor=keras_pg.mlp((2,), seed=0))
    golden = np.load(agent.export(tmp_path) / "assets.extra" / "golden.npz")["observation"]
    assert len(np.unique(golden)) == 64
    assert all(pressures.contains(observation) for observation in golden)


@pytest.mark.parametrize("output", ["action", "mean"])
def test_verify_tells_of_an_answer_that_differs(output, exported, tmp_path):
    _, directory = exported("clipped")
    copy = shutil.copytree(directory, tmp_path / "1")
    path = copy / "assets.extra" / "golden.npz"
    golden = dict(np.load(path))
    golden[f"output_{output}"][13, 1] += 0.25
    np.savez(path, **golden)
    report = replay.replay(replay.runner(copy), copy)
    assert report["equal"] is False
    assert report["max_difference"].pop(output) == pytest.approx(0.25, abs=1e-5)
    assert max(report["max_difference"].values()) < 1e-5


def test_verify_tells_of_another_policy(exported, tmp_path):
    # Of the same spaces.
    copy = shutil.copytree(exported("clipped")[1], tmp_path / "1")
    shutil.copy(exported("regularized")[1] / replay.GOLDEN, copy / replay.GOLDEN)
    assert replay.replay(replay.runner(copy), copy)["equal"] is False


def test_an_answer_that_lacks_an_output_or_has_another_shape_differs():
    expected = {"action": np.zeros((3, 2)), "mean": np.zeros((3, 2))}
    for outputs in ({"action": np.zeros((3, 2))}, {**expected, "mean": np.zeros((3, 1))}):
        report = replay.compare(outputs, expected)
        assert report == {"max_difference": {"action": 0.0, "mean": np.inf}, "equal": False}


@pytest.mark.parametrize(
    ("got", "action"),
    [([1_000_001], np.int64([1_000_000])), ([1], np.int8([0])), ([True], np.array([False]))],
)
def test_integers_and_booleans_must_be_the_same_whatever_the_tolerance(got, action):
    same = replay.compare({"action": action.tolist()}, {"action": action}, tolerance=2.0)
    assert same == {"max_difference": {"action": 0.0}, "equal": True}
    differs = replay.compare({"action": got}, {"action": action}, tolerance=2.0)
    assert differs == {"max_difference": {"action": 1.0}, "equal": False}


def test_an_export_whose_integer_action_is_another_is_refused(tmp_path, monkeypatch):
    start = 10**6
    agent = perturbed_agent(Discrete(3), Discrete(2, start=start), actor=keras_pg.mlp((2,), seed=0))
    runner = replay.runner

    def off_by_one(directory):
        run = runner(directory)
        return lambda observations: {**run(observations), "action": np.full(64, start + 2)}

    monkeypatch.setattr(replay, "runner", off_by_one)
    with pytest.raises(RuntimeError, match="differs from the agent"):
        agent.export(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("format", ["saved_model", "litert"])
def test_a_directory_is_run_where_keras_pg_has_not_been_imported(format, exported, monkeypatch):
    _, directory = exported("clipped", format)
    # What this process has imported does not help.
    monkeypatch.setattr(replay, "runner", None)
    report = saved_model.verify(directory)
    assert report.pop("target") == str(directory)
    assert report["equal"] is True and report["rows"] == 64
    assert report["latency"].keys() == {"p50", "p99"}


def test_a_directory_is_run_where_packages_are_the_users_own(exported, tmp_path, monkeypatch):
    # As after `pip install --user`, for a Python that has none but its own.
    own = pathlib.Path(sysconfig.get_path("purelib", "posix_user", {"userbase": str(tmp_path)}))
    own.mkdir(parents=True)
    (own / "packages.pth").write_text(os.path.dirname(os.path.dirname(np.__file__)))
    monkeypatch.setenv("PYTHONUSERBASE", str(tmp_path))
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.setattr(sys, "executable", sys._base_executable)
    assert saved_model.verify(exported("clipped", "litert")[1])["equal"] is True


def test_verify_takes_the_newest_version_of_a_base_directory(tmp_path, small_agent, monkeypatch):
    monkeypatch.setattr(saved_model, "_replay_elsewhere", lambda directory, tolerance: {})
    for _ in range(2):
        small_agent.export(tmp_path)
    # 10 is newer than 2, though it comes before it as text.
    os.rename(tmp_path / "1", tmp_path / "10")
    (tmp_path / "99x").mkdir()
    assert saved_model.verify(tmp_path) == {"target": str(tmp_path / "10")}
    assert saved_model.verify(str(tmp_path / "2")) == {"target": str(tmp_path / "2")}


def test_what_cannot_be_run_is_told_with_its_error(exported, tmp_path):
    copy = shutil.copytree(exported("clipped", "litert")[1], tmp_path / "1")
    (copy / "policy.tflite").write_bytes(b"no flatbuffer")
    with pytest.raises(RuntimeError, match=r"1 cannot be run:(.|\n)*not a valid Flatbuffer"):
        saved_model.verify(copy)


def test_verify_of_a_directory_without_a_policy_says_so(tmp_path):
    for directory in (tmp_path, tmp_path / "absent"):
        with pytest.raises(FileNotFoundError, match="No exported policy"):
            saved_model.verify(directory)


# --------------------------------------------------------------------------------------- servers


@pytest.fixture(scope="module")
def served(tmp_path_factory, exported):
    """A server of one version, and the base directory, which has an older version too."""
    base = tmp_path_factory.mktemp("served") / "policy"
    shutil.copytree(exported("regularized")[1], base / "3")
    shutil.copytree(exported("clipped")[1], base / "4")
    with Server(Models([Model("policy", base, latest())]), port=0, rest_api_port=0) as server:
        yield server, base


def urls(server, name="policy"):
    yield f"http://127.0.0.1:{server.rest_api_port}/v1/models/{name}"
    yield f"grpc://127.0.0.1:{server.port}/{name}"


def test_a_server_is_compared_with_the_version_that_it_serves(served):
    server, base = served
    for url in urls(server):
        for target, golden in ((url, base), (f"{url}/versions/4", base / "4")):
            report = saved_model.verify(target, golden=golden)
            assert report["target"] == target and report["equal"] is True
            assert report["latency"]["p50"] < 1.0
        assert saved_model.verify(url, golden=base / "3")["equal"] is False


def test_the_command_line_tells_of_a_server_and_ends_with_1_on_a_difference(served, capsys):
    server, base = served
    url, _ = urls(server)
    assert cli.main(["verify", url, "--golden", str(base)]) == 0
    assert f"{url}: verified; 64 golden observations" in capsys.readouterr().out
    assert cli.main(["verify", url, "--golden", str(base / "3")]) == 1
    assert "DIFFERS FROM THE AGENT" in capsys.readouterr().out


def test_what_is_not_served_is_told(served, tmp_path):
    server, base = served
    for url in urls(server, "unknown"):
        with pytest.raises(ConnectionError, match="Servable not found for request: Latest"):
            saved_model.verify(url, golden=base)
    for url in urls(server):
        with pytest.raises(ValueError, match="needs golden"):
            saved_model.verify(url)
        with pytest.raises(FileNotFoundError, match="nor a version 4, which is served"):
            saved_model.verify(url, golden=tmp_path)
    for url in ("http://127.0.0.1:1/v1/models/policy", "grpc://127.0.0.1:1/policy"):
        with pytest.raises(ConnectionError):
            saved_model.verify(url, golden=base)
    for url in ("http://127.0.0.1/policy", "ftp://127.0.0.1/policy", "grpc://127.0.0.1"):
        with pytest.raises(ValueError, match="A served policy is"):
            saved_model.verify(url, golden=base)
