"""`keras-pg`, as a newcomer runs it."""

import functools
import json
import pathlib
import re

import gymnasium
import keras
import numpy as np
import pytest

import keras_pg
from keras_pg.cli import _assignment, main

QUICK = ["--total-timesteps", "64", "--num-envs", "2", "--num-steps", "16", "--episodes", "4"]
SMALL = ["--set", "num_minibatches=2", "--set", "update_epochs=1"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A directory in which `train` has run once."""
    directory = tmp_path_factory.mktemp("newcomer")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        # As a graph: what XLA compiles is tested elsewhere, and would take most of this.
        patch.setattr(
            keras_pg.PPO,
            "compile",
            functools.partialmethod(keras_pg.PPO.compile, jit_compile=False),
        )
        assert main(["train", "CartPole-v1", *QUICK, *SMALL, "--export", "policies/cartpole"]) == 0
    return directory


def test_train_writes_all_it_says(trained):
    run = trained / "runs/CartPole-v1/1"
    assert (run / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    settings = json.loads((run / "settings.json").read_text())
    assert settings["hyperparameters"]["num_minibatches"] == 2
    assert settings["hyperparameters"]["clip_ratio"] == 0.2
    assert settings["evaluation"]["episodes"] == 4 and settings["seed"] == 0
    assert len((run / "history.csv").read_text().splitlines()) == 3
    version = trained / "policies/cartpole/1"
    assert (version / "saved_model.pb").exists()
    described = json.loads((version / "assets.extra/policy.json").read_text())
    told = described["evaluation"]["episode_return"], described["evaluation"]["episodes"]
    assert told == (settings["evaluation"]["episode_return"], 4)


@pytest.mark.slow
def test_evaluate_export_and_verify(trained, capsys, monkeypatch):
    monkeypatch.chdir(trained)
    agent = "runs/CartPole-v1/1/agent.keras"
    assert main(["evaluate", agent, "CartPole-v1", "--episodes", "3", "--seed", "1"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["episodes"] == 3 and result["episode_return"] >= 1
    lite = ["export", agent, "policies/lite", "--format", "litert", "--keep", "1"]
    assert main([*lite, "--label", "stable"]) == main(lite) == main(lite) == 0
    assert sorted(p.name for p in pathlib.Path("policies/lite").iterdir()) == [
        "1",
        "3",
        "labels.json",
    ]
    assert json.loads(pathlib.Path("policies/lite/labels.json").read_text()) == {"stable": 1}
    assert main(["verify", "policies/lite"]) == 0
    assert main(["verify", "policies/cartpole/1"]) == 0
    said = capsys.readouterr().out
    assert "verified; 64 golden observations" in said
    assert re.search(r"one observation takes \d+ us \(99th percentile \d+ us\)", said)


@pytest.mark.slow
def test_verify_fails_on_a_policy_that_differs(trained, capsys):
    import numpy as np

    assert (
        main(["export", str(trained / "runs/CartPole-v1/1/agent.keras"), str(trained / "p")]) == 0
    )
    golden = trained / "p/1/assets.extra/golden.npz"
    with np.load(golden) as archive:
        content = dict(archive)
    content["output_action"] = 1 - content["output_action"]
    np.savez(golden, **content)
    assert main(["verify", str(trained / "p")]) == 1
    assert "DIFFERS" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["train", "NoSuchEnv-v0"], "NoSuchEnv"),
        (["train", "CartPole-v1", "--set", "clip_ratio=-1"], "clip_ratio"),
        (["train", "CartPole-v1", "--set", "nonsense=1"], "nonsense"),
        (["train", "CartPole-v1", "--set", "gamma"], "NAME=VALUE"),
        (["verify", "nowhere"], "No exported policy in nowhere"),
        (["evaluate", "missing.keras", "CartPole-v1"], "missing.keras"),
    ],
)
def test_errors_are_one_line_and_exit_code_2(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_values_of_set_are_read_as_python_does():
    assert _assignment("gamma=0.98") == ("gamma", 0.98)
    assert _assignment("normalize_observations=False") == ("normalize_observations", False)
    assert _assignment("target_kl=None") == ("target_kl", None)
    assert _assignment("name=agent-1") == ("name", "agent-1")


def test_an_output_directory_in_use_is_left_alone(capsys, tmp_path):
    (tmp_path / "notes").write_text("mine")
    assert main(["train", "CartPole-v1", *QUICK, "--output", str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["notes"]


def test_arguments_that_cannot_be_trained_with_leave_no_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "CartPole-v1", *QUICK, "--set", "num_minibatches=7"]) == 2
    assert main(["train", "CartPole-v1", *QUICK, "--episodes", "0"]) == 2
    assert not list(tmp_path.glob("runs/*/*"))


class Breaking(gymnasium.Env):
    """Fails at some point, in the way of the id it is registered under."""

    observation_space = gymnasium.spaces.Box(-1, 1, (2,))
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, error):
        self.error, self.steps = error, 0

    def reset(self, *, seed=None, options=None):
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.steps += 1
        if self.steps == 40 and self.error is not None:
            raise self.error("the simulator broke")
        reward = np.nan if self.steps == 40 else 1.0
        return np.zeros(2, np.float32), reward, self.steps % 8 == 0, False, {}


@pytest.mark.usefixtures("without_xla")
@pytest.mark.parametrize("error, code", [(None, 2), (ZeroDivisionError, None), (ValueError, None)])
def test_what_was_learnt_before_an_error_is_kept(
    error, code, tmp_path, monkeypatch, request, capsys
):
    monkeypatch.chdir(tmp_path)
    gymnasium.register("Breaking-v0", lambda: Breaking(error))
    request.addfinalizer(lambda: gymnasium.registry.pop("Breaking-v0"))
    arguments = ["train", "Breaking-v0", *QUICK, *SMALL]
    if code is None:  # not an error of ours: with its traceback
        with pytest.raises(error):
            main(arguments)
    else:
        assert main(arguments) == code
    agent = keras.models.load_model("runs/Breaking-v0/1/agent.keras")
    assert int(agent.env_steps) == 32  # it breaks in the first validation
    assert "Agent after 32 steps" in capsys.readouterr().err


def test_an_environment_that_cannot_be_reset_shows_its_traceback(tmp_path, monkeypatch, request):
    class NoMap(Breaking):
        def reset(self, *, seed=None, options=None):
            raise ValueError("no map loaded")

    monkeypatch.chdir(tmp_path)
    gymnasium.register("NoMap-v0", lambda: NoMap(None))
    request.addfinalizer(lambda: gymnasium.registry.pop("NoMap-v0"))
    with pytest.raises(ValueError, match="no map loaded") as caught:
        main(["train", "NoMap-v0", *QUICK, *SMALL])
    assert caught.value.__notes__[-1].startswith("While resetting SerialVectorEnv")


@pytest.mark.usefixtures("without_xla")
def test_an_interrupt_keeps_what_was_learnt(tmp_path, monkeypatch):
    def interrupt(callback, epoch, logs=None):
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(keras.callbacks.CSVLogger, "on_epoch_end", interrupt)
    assert main(["train", "CartPole-v1", *QUICK, *SMALL]) == 130
    agent = keras.models.load_model("runs/CartPole-v1/1/agent.keras")
    assert int(agent.iteration) == 1


def test_an_export_target_that_is_a_file_is_refused_before_training(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "policy").write_text("mine")
    assert main(["train", "CartPole-v1", "--export", "policy"]) == 2
    assert "it is a file" in capsys.readouterr().err
    assert (tmp_path / "policy").read_text() == "mine" and not (tmp_path / "runs").exists()
