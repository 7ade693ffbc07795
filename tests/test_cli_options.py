"""What can be set from the command line, what it costs, and what help says of it."""

import csv
import json
import pathlib
import sys
import types

import gymnasium
import keras
import numpy as np
import pytest

import keras_pg
import keras_pg_cli
from keras_pg import encoders, hyperparameters, saved_model
from keras_pg.cli import agents, evaluations, main, parser
from keras_pg.cli.environments import Environment

QUICK = ["--algorithm", "a2c", "--total-timesteps", "6.4e1", "--num-envs", "2", "--num-steps", "16"]


def made(env, *arguments):
    """(agent, environment) as `train` makes them."""
    environment = Environment(env, {})
    options = parser().parse_args(["train", env, *arguments])
    return agents.make(options, environment), environment


@pytest.fixture
def train(tmp_path, monkeypatch, without_xla):
    """Trains for a moment and returns (agent, settings)."""
    monkeypatch.chdir(tmp_path)

    def train(env, *arguments):
        assert main(["train", env, *QUICK, *arguments, "--output", "run"]) == 0
        settings = json.loads(pathlib.Path("run/settings.json").read_text())
        return keras.models.load_model("run/agent.keras"), settings

    return train


# ---------------------------------------------------------------------------------- agents


def test_algorithms_go_by_any_case():
    for name in ("ppo", "PPO", "Ppo"):
        assert type(made("CartPole-v1", "--algorithm", name)[0]) is keras_pg.PPO


@pytest.mark.parametrize("name", keras_pg_cli.ALGORITHMS)
def test_a_learning_rate_is_of_the_optimizer_that_the_algorithm_has(name):
    own = getattr(keras_pg, name)(seed=0).default_optimizer()
    for rate in ("2e-3", "linear:2e-3"):
        agent, _ = made("CartPole-v1", "--algorithm", name, "--learning-rate", rate)
        expected = {**own.get_config(), "learning_rate": pytest.approx(2e-3), "name": None}
        assert type(agent.optimizer) is type(own)
        assert {**agent.optimizer.get_config(), "name": None} == expected
    agent, _ = made("CartPole-v1", "--algorithm", name)
    assert {**agent.optimizer.get_config(), "name": None} == {**own.get_config(), "name": None}


def test_a_linear_learning_rate_falls_to_0_with_the_steps():
    optimizer = keras.optimizers.SGD(1e-2)
    # An agent that has been trained before starts from what it has.
    model = types.SimpleNamespace(optimizer=optimizer, env_steps=keras.Variable(50, dtype="int64"))
    decay = agents.LinearDecay(100)
    decay.set_model(model)
    decay.on_train_begin()
    for steps, expected in ((0, 1e-2), (25, 7.5e-3), (100, 0.0), (110, 0.0)):
        model.env_steps.assign(50 + steps)
        decay.on_train_batch_end(0)
        rate = keras.ops.convert_to_numpy(optimizer.learning_rate)
        assert rate == pytest.approx(expected, rel=1e-6)


def test_a_run_with_a_linear_learning_rate_ends_with_almost_0(train):
    agent, settings = train("CartPole-v1", "--learning-rate", "linear:1e-3")
    assert float(keras.ops.convert_to_numpy(agent.optimizer.learning_rate)) == 0.0
    assert settings["optimizer"]["config"]["learning_rate"] == pytest.approx(1e-3)
    assert settings["learning_rate_falls_to_0"]
    assert settings["algorithm"] == "A2C" and settings["total_timesteps"] == 64


@pytest.mark.parametrize("env", ["CartPole-v1", "FrozenLake-v1"])
@pytest.mark.parametrize("algorithm", ["ppo", "reinforce", "grpo"])
def test_units_are_those_of_actor_and_critic(env, algorithm):
    agent, environment = made(env, "--algorithm", algorithm, "--units", "24", "8")
    agent.build(environment.observation_space, gymnasium.spaces.Discrete(2))
    for network in filter(None, (agent.actor, agent.critic)):
        kernels = [w.shape[-1] for w in network.encoder.weights if len(w.shape) == 2]
        assert kernels == [24, 8]


def test_the_default_units_make_the_default_networks():
    weights = []
    for units in ([], ["--units", "64", "64"]):
        agent, environment = made("CartPole-v1", "--seed", "5", *units)
        agent.build(environment.observation_space, gymnasium.spaces.Discrete(2))
        weights.append(agent.actor.get_weights() + agent.critic.get_weights())
    for one, other in zip(*weights, strict=True):
        np.testing.assert_array_equal(one, other)


# ---------------------------------------------------------------------------- environments


def test_arguments_of_the_environment_reach_every_copy(train, capsys):
    _, settings = train("CartPole-v1", "--episodes", "2", "--env-arg", "max_episode_steps=5")
    assert settings["env_arguments"] == {"max_episode_steps": 5}
    assert settings["evaluation"]["episode_length"] == 5.0
    with open("run/history.csv") as file:
        assert {row["episode_length"] for row in csv.DictReader(file)} == {"5.0"}
    capsys.readouterr()
    command = ["evaluate", "run", "CartPole-v1", "--env-arg", "max_episode_steps=4"]
    assert main([*command, "--episodes", "2", "--video", "a.gif"]) == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["episode_length"] for line in told] == [4.0, 4.0]


def test_an_argument_is_of_the_environment_itself_too():
    environment = Environment("FrozenLake-v1", {"map_name": "8x8"})
    assert environment.observation_space.n == 64
    assert environment.copies()().observation_space.n == 64
    assert environment.copies().spec.id == "FrozenLake-v1"
    assert environment.drawn()().render_mode == "rgb_array"
    native = Environment("keras_pg/Gridworld-v0", {"max_episode_steps": 7})
    assert native.copies().max_episode_steps == native.drawn().max_episode_steps == 7
    # Where nothing is asked for, the id says it all.
    for id in ("FrozenLake-v1", "keras_pg/Gridworld-v0"):
        assert Environment(id, {}).copies() == Environment(id, {}).drawn() == id


def test_a_module_of_the_working_directory_may_register_the_environment(
    tmp_path, monkeypatch, request
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    request.addfinalizer(lambda: gymnasium.registry.pop("Corridor-v0"))
    pathlib.Path("my_corridors.py").write_text(
        "import gymnasium\n"
        "def make(length=4):\n"
        "    return gymnasium.make('CartPole-v1', max_episode_steps=length)\n"
        "gymnasium.register('Corridor-v0', make)\n"
    )
    environment = Environment("my_corridors:Corridor-v0", {"length": 3})
    env = environment.copies()()
    env.reset(seed=0)
    assert [env.step(0)[3] for _ in range(3)] == [False, False, True]


# ------------------------------------------------------------------- what evaluations cost


class Played:
    """A model whose episodes have a length, and which notes when it is evaluated."""

    seed = 0

    def __init__(self, length):
        self.length, self.evaluated = length, []
        self.env_steps = keras.Variable(0, dtype="int64")

    def evaluate(self, env, episodes, *, seed, verbose):
        self.evaluated.append(int(self.env_steps.numpy()))
        return {"episode_return": 1.0, "episode_length": self.length}

    def train(self, validation, epochs=20, steps=5_120):
        """The logs of each epoch."""
        validation.set_model(self)
        for epoch in range(epochs):
            self.env_steps.assign_add(steps)
            logs = {"episode_length": self.length}
            validation.on_epoch_end(epoch, logs)
            yield logs


def validation_of(episodes=8, frequency=None):
    return evaluations.Validation("env", episodes, frequency, max_episode_steps=500)


@pytest.mark.parametrize("length, times", [(500.0, 1), (80.0, 5), (10.0, 10), (np.nan, 0)])
def test_validations_play_a_twentieth_and_the_final_evaluation_what_is_left(length, times):
    validation, model = validation_of(), Played(length)
    for logs in model.train(validation):
        steps = int(model.env_steps.numpy())
        assert ("val_episode_return" in logs) == (steps in model.evaluated)
        # Played in 8 copies, by 64 steps, until the longest episode has ended.
        assert validation.steps <= steps / 20
        assert validation.steps >= 8 * len(model.evaluated) * np.nan_to_num(length)
    assert len(model.evaluated) == times
    left, episodes = 10_240 - validation.steps, validation.final_episodes(102_400)
    assert 8 <= episodes <= 100
    assert episodes in (8, 100) or left / 2 < episodes * np.nan_to_num(length, nan=500) <= left


@pytest.mark.parametrize("frequency, expected", [(0, []), (1, [0, 1, 2, 3]), (3, [2])])
def test_validation_is_as_frequent_as_it_is_told(frequency, expected):
    model = Played(500.0)
    logs = list(model.train(validation_of(frequency=frequency), epochs=4, steps=8))
    assert [i for i, epoch in enumerate(logs) if "val_episode_length" in epoch] == expected


def test_what_is_learnt_does_not_depend_on_validation(tmp_path, monkeypatch, without_xla):
    monkeypatch.chdir(tmp_path)
    for frequency in ("0", "1"):
        output = ["--output", f"run{frequency}", "--validation-freq", frequency]
        assert main(["train", "CartPole-v1", *QUICK, "--episodes", "2", *output]) == 0
    without, validated = (keras.models.load_model(f"run{i}/agent.keras") for i in "01")
    for one, other in zip(without.get_weights(), validated.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    with open("run1/history.csv") as file:
        assert all(float(row["val_episode_return"]) >= 1 for row in csv.DictReader(file))


def test_few_steps_of_training_still_end_with_8_episodes():
    assert validation_of().final_episodes(64) == 8


class Endless(gymnasium.Env):
    """No episode ends."""

    observation_space = gymnasium.spaces.Box(-1, 1, (2,))
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        return np.zeros(2, np.float32), {}

    def step(self, action):
        return np.zeros(2, np.float32), 1.0, False, False, {}


def test_without_a_time_limit_an_evaluation_ends_its_episodes(train, request):
    gymnasium.register("Endless-v0", Endless)
    request.addfinalizer(lambda: gymnasium.registry.pop("Endless-v0"))
    _, settings = train("Endless-v0")
    evaluation = {"episodes": 8, "max_episode_steps": 100, "episode_length": 100.0}
    assert settings["evaluation"] == {**evaluation, "episode_return": 100.0}
    assert Environment("Endless-v0", {}).copies() == "Endless-v0"


# ------------------------------------------------------------------------------------ help


def test_what_help_says_without_the_package_is_true_of_it():
    ours = (getattr(keras_pg, name) for name in keras_pg.__all__)
    agents = {a for a in ours if isinstance(a, type) and issubclass(a, keras_pg.Agent)}
    assert {getattr(keras_pg, name) for name in keras_pg_cli.ALGORITHMS} == agents - {
        keras_pg.Agent
    }
    assert set(keras_pg_cli.FORMATS) == set(saved_model.FORMATS)
    assert keras_pg_cli.LARGEST_SEED == hyperparameters.LARGEST_SEED
    said = {"A2C": 5, "GRPO": 1000, "REINFORCE": 1000}
    for name in keras_pg_cli.ALGORITHMS:
        assert getattr(keras_pg, name).default_num_steps == said.get(name, 256)
    assert [layer.units for layer in encoders.mlp().layers] == [64, 64]
    shares = evaluations.SHARE, evaluations.VALIDATION_SHARE, evaluations.time_limit(100_000)
    assert shares == (1 / 10, 1 / 20, 1_000)


@pytest.mark.parametrize("command", ["train", "evaluate", "export", "verify", "serve"])
def test_help_has_a_word_on_every_argument_and_its_default(command):
    (commands,) = parser()._subparsers._group_actions
    help = " ".join(commands.choices[command].format_help().split())
    for action in commands.choices[command]._actions:
        if action.option_strings and action.option_strings[0].endswith("=false"):
            continue
        assert action.help, action
        if action.default not in (None, "==SUPPRESS==") and action.default != []:
            if not isinstance(action.default, bool):
                assert f"(default: {action.default})" in help
    if command == "train":
        assert "A2C, GRPO, MDPO, NPG, PPO, REINFORCE, TRPO" in help


def test_the_version_is_that_of_the_package(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"{keras_pg.__version__}\n"
