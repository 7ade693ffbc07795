"""`keras-pg`, as a newcomer runs it."""

import csv
import functools
import json
import os
import pathlib
import re

import gymnasium
import keras
import numpy as np
import pytest

import keras_pg
from keras_pg import video
from keras_pg.cli import main
from keras_pg.cli.run_directory import HistoryFile

QUICK = ["--total-timesteps", "64", "--num-envs", "2", "--num-steps", "16", "--episodes", "4"]
SMALL = ["--set", "num_minibatches=2", "--set", "update_epochs=1"]
VALIDATED = ["--validation-freq", "1", "--validation-episodes", "2"]


def settings_of(run):
    return json.loads((pathlib.Path(run) / "settings.json").read_text())


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
    settings = settings_of(run)
    assert settings["status"] == "completed"
    assert settings["command"][:3] == ["keras-pg", "train", "CartPole-v1"]
    assert settings["optimizer"]["config"]["global_clipnorm"] == 0.5
    assert settings["versions"].keys() >= {"keras_pg", "keras", "tensorflow", "gymnasium"}
    assert settings["git_commit"].keys() == {"keras_pg", "working_directory"}
    assert settings["env_steps"] == 64
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
    # A directory of a run is as good as the file in it.
    agent = "runs/CartPole-v1/1"
    told = []
    for named in (agent, f"{agent}/agent.keras"):
        assert main(["evaluate", named, "CartPole-v1", "--episodes", "3", "--seed", "1"]) == 0
        told.append(json.loads(capsys.readouterr().out.splitlines()[-1]))
    assert told[0] == told[1]
    assert told[0]["episodes"] == 3 and told[0]["episode_return"] >= 1
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
        (["train", "cartpol-v1"], "'cartpol-v1' is registered. The nearest are CartPole-v1"),
        (["train", "CartPole-v7"], "The nearest are CartPole-v1"),
        (["train", "keras_pg/Catsch-v0"], "The nearest are keras_pg/Catch-v0"),
        (["train", "Zzzzzzz-v0"], "'Zzzzzzz-v0' is registered. Where a package registers an env"),
        (["train", "NoSuchEnv-v0"], "write module:ID, such as ale_py:ALE/Pong-v5"),
        (["train", "nosuchmodule:Env-v0"], "nosuchmodule"),
        (["evaluate", "a.keras", "CartPol-v1"], "The nearest are CartPole-v1"),
        (["train", "CartPole-v1", "--set", "clip_ratio=-1"], "clip_ratio must be a number in"),
        (["train", "CartPole-v1", "--set", "gama=1"], "did you mean 'gamma'? It has advantage, "),
        (["train", "CartPole-v1", "--set", "qqqq=1"], "qqqq: PPO has no such hyperparameter. It"),
        (["train", "CartPole-v1", "--set", "seed=1"], "there is a flag for it, --seed"),
        (
            ["train", "CartPole-v1", "--algorithm", "npg", "--set", "clip_ratio=1"],
            "NPG has no such",
        ),
        (["train", "CartPole-v1", "--env-arg", "colour=1"], "colour"),
        (["train", "keras_pg/Catch-v0", "--env-arg", "colour=1"], "Catch"),
        (["train", "keras_pg/Catch-v0", "--units", "8"], "--units is for observations that are no"),
        (["verify", "nowhere"], "No exported policy in nowhere"),
        (["evaluate", "missing.keras", "CartPole-v1"], "missing.keras"),
        (["evaluate", ".", "CartPole-v1"], "There is no agent.keras in ."),
        (["export", "missing.keras", "base", "--label", "a b"], "A label is a name of letters"),
    ],
)
def test_errors_are_one_line_and_exit_code_2_and_leave_nothing(
    arguments, message, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error and len(error.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "flag, value, message",
    [
        ("--total-timesteps", "1.5", "'1.5' is no positive integer, such as 100000, 100_000 or 1"),
        ("--num-envs", "0", "'0' is no positive integer"),
        ("--units", "sixty", "'sixty' is no positive integer"),
        ("--validation-freq", "-1", "'-1' is no positive integer"),
        ("--episodes", "inf", "'inf' is no positive integer"),
        ("--seed", "-1", "'-1' is no integer from 0 to 2**62"),
        ("--seed", str(2**70), "is no integer from 0 to 2**62"),
        ("--learning-rate", "0", "'0' is no learning rate: give a positive number such as"),
        ("--learning-rate", "cosine:1", "'cosine:1' is no learning rate"),
        ("--set", "gamma", "'gamma' is not of the form NAME=VALUE"),
        ("--env-arg", "=3", "'=3' is not of the form NAME=VALUE"),
        ("--algorithm", "dqn", "invalid choice: 'DQN' (choose from"),
    ],
)
def test_a_value_that_is_none_is_told_what_it_should_be(flag, value, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["train", "CartPole-v1", f"{flag}={value}"])
    said = capsys.readouterr().err
    assert f"argument {flag}: " in said and message in said


def test_an_output_directory_in_use_is_left_alone(capsys, tmp_path):
    (tmp_path / "notes").write_text("mine")
    assert main(["train", "CartPole-v1", *QUICK, "--output", str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["notes"]


def test_arguments_that_cannot_be_trained_with_leave_no_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "CartPole-v1", *QUICK, "--set", "num_minibatches=7"]) == 2
    assert main(["train", "CartPole-v1", "--algorithm", "grpo", *QUICK]) == 2  # no group of 8
    output = ["--output", "mine/new"]
    assert main(["train", "CartPole-v1", *QUICK, "--set", "num_minibatches=7", *output]) == 2
    assert not list(tmp_path.glob("runs/*/*")) and not list(tmp_path.glob("mine/*"))


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
    arguments = ["train", "Breaking-v0", *QUICK, *SMALL, *VALIDATED]
    if code is None:  # not an error of ours: with its traceback
        with pytest.raises(error):
            main(arguments)
    else:
        assert main(arguments) == code
    agent = keras.models.load_model("runs/Breaking-v0/1/agent.keras")
    assert int(agent.env_steps) == 32  # it breaks in the first validation
    assert "Agent after 32 steps" in capsys.readouterr().err
    settings = settings_of("runs/Breaking-v0/1")
    assert settings["status"].startswith("FloatingPointError" if error is None else error.__name__)
    assert settings["env_steps"] == 32 and "evaluation" not in settings


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
    monkeypatch.setattr(HistoryFile, "on_epoch_end", interrupt)
    assert main(["train", "CartPole-v1", *QUICK, *SMALL]) == 130
    agent = keras.models.load_model("runs/CartPole-v1/1/agent.keras")
    assert int(agent.iteration) == 1
    assert settings_of("runs/CartPole-v1/1")["status"] == "KeyboardInterrupt"


@pytest.mark.usefixtures("without_xla")
def test_an_interrupt_of_the_final_evaluation_keeps_the_agent_and_says_so(tmp_path, monkeypatch):
    def interrupt(agent, env, **arguments):
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(keras_pg.Agent, "evaluate", interrupt)
    assert main(["train", "CartPole-v1", *QUICK, *SMALL, "--output", "run"]) == 130
    settings = settings_of("run")
    assert settings["status"] == "KeyboardInterrupt" and settings["env_steps"] == 64
    assert int(keras.models.load_model("run/agent.keras").iteration) == 2


@pytest.mark.usefixtures("without_xla")
def test_the_settings_are_there_before_the_first_rollout(tmp_path, monkeypatch, request):
    seen = []

    class Looking(Breaking):
        def step(self, action):
            if not seen:
                seen.append(settings_of("run"))
            return super().step(action)

    monkeypatch.chdir(tmp_path)
    gymnasium.register("Looking-v0", lambda: Looking(None))
    request.addfinalizer(lambda: gymnasium.registry.pop("Looking-v0"))
    main(["train", "Looking-v0", *QUICK, *SMALL, "--output", "run", "--seed", "3"])
    (known,) = seen
    assert known["status"] == "running" and known["seed"] == 3
    assert known.keys() >= {"command", "hyperparameters", "optimizer", "versions", "git_commit"}
    assert not known.keys() & {"evaluation", "training_seconds", "env_steps"}


@pytest.mark.usefixtures("without_xla")
def test_a_full_disk_ends_a_run_with_the_name_of_the_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    class Full(csv.DictWriter):
        def writerows(self, rows):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(csv, "DictWriter", Full)
    assert main(["train", "CartPole-v1", *QUICK, *SMALL, "--output", "run"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == "keras-pg train: run/history.csv could not be written: No space left on device."
    # What there was space for is kept.
    assert sorted(p.name for p in pathlib.Path("run").iterdir()) == ["agent.keras", "settings.json"]
    assert "history.csv could not be written" in settings_of("run")["status"]


def test_an_export_target_that_is_a_file_is_refused_before_training(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "policy").write_text("mine")
    assert main(["train", "CartPole-v1", "--export", "policy"]) == 2
    assert "it is a file" in capsys.readouterr().err
    assert (tmp_path / "policy").read_text() == "mine" and not (tmp_path / "runs").exists()


def test_an_export_target_that_may_not_be_written_to_is_refused_before_training(
    capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) != str(tmp_path))
    assert main(["train", "CartPole-v1", "--export", "policies/cartpole"]) == 2
    assert f"Cannot write to {tmp_path}: this user may not." in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_export_target_that_holds_another_format_is_refused_before_training(
    capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    pathlib.Path("lite/1").mkdir(parents=True)
    pathlib.Path("lite/1/policy.tflite").touch()
    assert main(["train", "CartPole-v1", "--export", "lite"]) == 2
    assert "1 has format 'litert'" in capsys.readouterr().err
    assert not pathlib.Path("runs").exists()


@pytest.fixture
def saved(tmp_path):
    """The path of an agent for CartPole."""
    agent, env = keras_pg.A2C(seed=0), gymnasium.make("CartPole-v1")
    agent.build(env.observation_space, env.action_space)
    agent.save(tmp_path / "agent.keras")
    return str(tmp_path / "agent.keras")


def test_an_evaluation_is_printed_though_the_video_fails(saved, capsys, monkeypatch, tmp_path):
    def fail(camera, path):
        raise OSError(28, "catch.gif could not be written: No space left on device.")

    monkeypatch.setattr(video._Camera, "write", fail)
    command = ["evaluate", saved, "CartPole-v1", "--episodes", "2"]
    assert main([*command, "--video", str(tmp_path / "catch.gif")]) == 2
    said = capsys.readouterr()
    assert json.loads(said.out)["episodes"] == 2
    assert "catch.gif could not be written" in said.err


def test_the_wrong_environment_of_an_agent_is_said(saved, capsys):
    assert main(["evaluate", saved, "Acrobot-v1"]) == 2
    assert "spaces differ from those the agent was built for" in capsys.readouterr().err
