"""`keras-pg`, as a newcomer runs it."""

import json

import pytest

from keras_pg.cli import main

QUICK = ["--total-timesteps", "64", "--num-envs", "2", "--num-steps", "16", "--episodes", "4"]
SMALL = ["--set", "num_minibatches=2", "--set", "update_epochs=1"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A directory in which `train` has run once."""
    directory = tmp_path_factory.mktemp("newcomer")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
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
    assert (trained / "policies/cartpole/1/saved_model.pb").exists()


def test_evaluate_export_and_verify(trained, capsys, monkeypatch):
    monkeypatch.chdir(trained)
    agent = "runs/CartPole-v1/1/agent.keras"
    assert main(["evaluate", agent, "CartPole-v1", "--episodes", "3", "--seed", "1"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["episodes"] == 3 and result["episode_return"] >= 1
    assert main(["export", agent, "policies/lite", "--format", "litert"]) == 0
    assert main(["verify", "policies/lite"]) == 0
    assert main(["verify", "policies/cartpole/1"]) == 0
    assert "verified; 64 golden observations" in capsys.readouterr().out


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


def test_an_export_target_that_is_a_file_is_refused_before_training(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "policy").write_text("mine")
    assert main(["train", "CartPole-v1", "--export", "policy"]) == 2
    assert "it is a file" in capsys.readouterr().err
    assert (tmp_path / "policy").read_text() == "mine" and not (tmp_path / "runs").exists()
