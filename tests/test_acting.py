import functools
import logging
import resource
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete

import keras_pg
from environments import perturb, perturbed_agent
from keras_pg.rollouts.acting import CompiledEngine, LiteRTEngine, engine_for

N = 5
OBSERVATIONS = Box(-np.inf, np.inf, (3,))
ACTIONS = Box(np.float32([-1.0, 0.5]), np.float32([1.0, 2.0]))


def deep_encoder():
    """More than ten variables, some of them states of random generators."""
    layers = []
    for dense in keras_pg.mlp((7, 6, 5, 4), seed=0).layers:
        normalization = keras.layers.BatchNormalization(trainable=False)
        layers += [dense, normalization, keras.layers.Dropout(0.5, seed=0)]
    return keras.Sequential(layers)


# name: observation space, action space, options of the agent.
POLICIES = {
    "categorical": (OBSERVATIONS, Discrete(4, start=2), {}),
    "categorical, not normalized": (
        OBSERVATIONS,
        Discrete(4),
        {"normalize_observations": False},
    ),
    "gaussian": (OBSERVATIONS, ACTIONS, {}),
    "gaussian, not normalized": (OBSERVATIONS, ACTIONS, {"normalize_observations": False}),
    "squashed": (OBSERVATIONS, ACTIONS, {"squash_actions": True}),
    "state-dependent noise": (
        OBSERVATIONS,
        ACTIONS,
        {"actor": lambda: keras_pg.Actor(OBSERVATIONS, ACTIONS, state_dependent_noise=4, seed=0)},
    ),
    "float64 observations": (Box(-np.inf, np.inf, (3,), np.float64), ACTIONS, {}),
    "float64 actions": (OBSERVATIONS, Box(-0.1, 0.1, (2,), np.float64), {}),
    "uint8 observations": (Box(0, 255, (3,), np.uint8), ACTIONS, {}),
    "discrete observations": (Discrete(6, start=3), Discrete(4), {}),
    "discrete observations beyond int32": (Discrete(6, start=2**40), Discrete(4), {}),
    "int32 actions": (OBSERVATIONS, Discrete(4, dtype=np.int32), {}),
    "multicategorical": (OBSERVATIONS, MultiDiscrete([2, 3], start=[4, -1]), {}),
    "masked": (
        Dict(observation=OBSERVATIONS, action_mask=MultiBinary(4)),
        Discrete(4, start=2),
        {},
    ),
    "masked multicategorical": (
        Dict(observation=Discrete(6, start=3), action_mask=Box(0, 1, (5,), bool)),
        MultiDiscrete([2, 3], start=[4, -1]),
        {},
    ),
    "bernoulli": (OBSERVATIONS, MultiBinary(3), {}),
    "deep, dropout, batch normalization": (
        OBSERVATIONS,
        ACTIONS,
        {"actor": deep_encoder},
    ),
}


@functools.cache
def agent_of(name):
    """The agent of a policy, for tests that leave it as it is."""
    return new_agent_of(name)


def new_agent_of(name):
    observation_space, action_space, options = POLICIES[name]
    # An encoder belongs to one actor, so it is made anew for each.
    made = {key: value() if callable(value) else value for key, value in options.items()}
    return perturbed_agent(observation_space, action_space, **made)


def inputs(agent, rows=N, seed=0):
    """Observations of the space and noise."""
    space = agent.actor.observation_space
    space.seed(seed)
    observations = [space.sample() for _ in range(rows)]
    for masked in observations if isinstance(space, Dict) else []:
        masked["action_mask"][[0, -1]] = 1
    observations = tf.nest.map_structure(lambda *rows: np.stack(rows), *observations)
    noise = agent.actor.action_distribution.draw_noise(np.random.default_rng(seed), (rows,))
    return observations, noise


def expected_actions(agent, observations, noise):
    """Raw and env-ready actions, from the actor's parameters in NumPy."""
    parameters = agent.actor(observations).numpy()
    space = agent.actor.action_space
    if isinstance(space, Discrete):
        raw = np.argmax(parameters + noise, axis=-1)
        return raw, raw + space.start
    if isinstance(space, MultiDiscrete):
        first, second = np.split(parameters + noise, [space.nvec[0]], axis=-1)
        raw = np.stack([first.argmax(axis=-1), second.argmax(axis=-1)], axis=-1)
        return raw, raw + space.start
    if isinstance(space, MultiBinary):
        raw = (parameters + noise > 0).astype(np.int64)
        return raw, raw
    a = space.shape[0]
    mean, log_std, shares = np.split(parameters, [a, 2 * a], axis=-1)
    if shares.size:
        noise = np.sum((shares * noise).reshape(len(noise), -1, a), axis=1)
    raw = mean + np.exp(log_std) * noise
    if agent.squash_actions:
        return raw, space.low + (space.high - space.low) * (np.tanh(raw) + 1) / 2
    actions = (space.low + space.high) / 2 + (space.high - space.low) / 2 * raw
    return raw, np.clip(actions, space.low, space.high)


def assert_close(actions, expected):
    for array, wanted in zip(actions, expected):
        assert array.shape == wanted.shape
        np.testing.assert_allclose(array, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", POLICIES)
def test_litert_gives_the_actions_of_the_actor_in_tensorflow(name):
    agent = agent_of(name)
    engine = LiteRTEngine(agent.actor, N)
    engine.load_weights()
    for seed in range(3):
        observations, noise = inputs(agent, seed=seed)
        assert_close(engine(observations, noise), expected_actions(agent, observations, noise))
    # Zero noise gives the mode.
    _, env_actions = engine(observations, np.zeros_like(noise))
    np.testing.assert_allclose(env_actions, agent.act(observations), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["categorical", "squashed", "float64 observations"])
def test_the_compiled_engine_gives_the_actions_of_the_actor(name):
    agent = agent_of(name)
    engine = CompiledEngine(agent.actor, N)
    engine.load_weights()
    observations, noise = inputs(agent)
    assert_close(engine(observations, noise), expected_actions(agent, observations, noise))
    _, env_actions = engine(observations, np.zeros_like(noise))
    np.testing.assert_allclose(env_actions, agent.act(observations), rtol=1e-5, atol=1e-5)


def test_gumbel_noise_makes_categorical_actions_as_frequent_as_they_are_probable():
    agent = agent_of("categorical")
    observations, noise = inputs(agent, rows=10_000)
    observations[:] = observations[0]
    engine = LiteRTEngine(agent.actor, 10_000)
    engine.load_weights()
    actions, _ = engine(observations, noise)
    probabilities = tf.nn.softmax(agent.actor(observations[:1]))[0].numpy()
    frequencies = np.bincount(actions, minlength=4) / 10_000
    three_sigma = 3 * np.sqrt(probabilities * (1 - probabilities) / 10_000)
    assert (np.abs(frequencies - probabilities) < three_sigma).all()


def test_litert_acts_by_the_weights_that_were_loaded_last():
    agent = new_agent_of("gaussian")
    observations, noise = inputs(agent)
    engine = LiteRTEngine(agent.actor, N)
    engine.load_weights()
    before = expected_actions(agent, observations, noise)
    # Weights and observation statistics.
    perturb(agent, seed=1)
    after = expected_actions(agent, observations, noise)
    assert np.abs(after[0] - before[0]).min() > 1e-3
    assert_close(engine(observations, noise), before)
    engine.load_weights()
    assert_close(engine(observations, noise), after)


def test_litert_results_are_not_overwritten_by_the_next_call():
    agent = agent_of("gaussian")
    observations, noise = inputs(agent)
    engine = LiteRTEngine(agent.actor, N)
    engine.load_weights()
    first = engine(observations, noise)
    kept = [np.copy(array) for array in first]
    engine(observations, noise + 1)
    for array, then in zip(first, kept):
        np.testing.assert_array_equal(array, then)


# --------------------------------------------------------------------------------- which engine?


class ThroughPython(keras.layers.Layer):
    """Doubles its input, in NumPy."""

    def call(self, x):
        doubled = tf.numpy_function(lambda array: 2 * array, [x], tf.float32)
        return tf.ensure_shape(doubled, x.shape)


def test_actors_are_run_by_litert_without_a_word(caplog):
    agent = agent_of("gaussian")
    assert isinstance(engine_for(agent.actor, N), LiteRTEngine)
    assert not caplog.records


def test_an_actor_that_litert_cannot_convert_is_run_by_tensorflow_and_the_log_says_why(caplog):
    encoder = keras.Sequential([ThroughPython(), *keras_pg.mlp((8,), seed=0).layers])
    agent = perturbed_agent(OBSERVATIONS, ACTIONS, actor=encoder)
    engine = engine_for(agent.actor, N)
    assert isinstance(engine, CompiledEngine)
    (record,) = caplog.records
    assert record.name == "keras_pg" and record.levelno == logging.WARNING
    assert "LiteRT" in record.getMessage() and "PyFunc" in record.getMessage()

    observations, noise = inputs(agent)
    assert_close(engine(observations, noise), expected_actions(agent, observations, noise))
    perturb(agent, seed=1)
    engine.load_weights()
    assert_close(engine(observations, noise), expected_actions(agent, observations, noise))


# -------------------------------------------------------------------------------------- Agent.act


def test_act_is_traced_once_and_does_not_leak(monkeypatch):
    calls = []
    call = keras_pg.Actor.call
    monkeypatch.setattr(
        keras_pg.Actor, "call", lambda self, *args, **kwargs: calls.append(1) or call(self, *args)
    )
    agent = new_agent_of("gaussian")
    rng = np.random.default_rng(0)
    # One observation, batches of several sizes, and what is not an array.
    several = [rng.normal(size=(b, 3)) for b in (1, 2, 7)] + [rng.normal(size=3), [0.1, 0.2, 0.3]]

    def act(times):
        for i in range(times):
            agent.act(several[i % len(several)])

    act(500)
    before = resident_bytes()
    act(2000)
    assert len(calls) == 1
    # At this rate less than 10 MB in 20,000 calls.
    assert resident_bytes() - before < 1e6


def resident_bytes():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()


@pytest.mark.parametrize("name", POLICIES)
def test_act_gives_actions_of_the_space_for_one_observation_and_for_many(name):
    agent = agent_of(name)
    observations, _ = inputs(agent, rows=7)
    space = agent.actor.action_space
    for deterministic in (True, False):
        actions = agent.act(observations, deterministic=deterministic)
        assert len(actions) == 7 and all(space.contains(action) for action in actions)
    for i, action in enumerate(agent.act(observations)):
        single = agent.act(tf.nest.map_structure(lambda array, i=i: array[i], observations))
        assert space.contains(single)
        np.testing.assert_allclose(single, action, rtol=1e-5, atol=1e-6)


def test_sampled_actions_follow_a_stream_that_starts_from_the_seed():
    observation = np.zeros(3, np.float32)
    streams = []
    for seed in (0, 0, 1):
        agent = perturbed_agent(OBSERVATIONS, Box(-np.inf, np.inf, (2,)), seed=seed)
        streams.append([agent.act(observation, deterministic=False) for _ in range(3)])
    assert len(np.unique(streams[0], axis=0)) == 3
    np.testing.assert_array_equal(streams[0], streams[1])
    assert not np.isclose(streams[0], streams[2]).any()


@pytest.mark.slow
def test_litert_needs_no_standard_error(tmp_path):
    # A daemon may have closed it. In a process of its own, since this one's output is pytest's.
    script = tmp_path / "daemon.py"
    script.write_text(
        "import os, keras_pg, gymnasium\n"
        "from keras_pg.rollouts.acting import LiteRTEngine\n"
        "agent = keras_pg.PPO(seed=0)\n"
        "agent.build(gymnasium.spaces.Box(-1, 1, (3,)), gymnasium.spaces.Discrete(2))\n"
        "os.close(2)\n"
        "LiteRTEngine(agent.actor, 4)\n"
        "print('made')\n"
    )
    run = subprocess.run([sys.executable, script], stdout=subprocess.PIPE, text=True)
    assert run.stdout.endswith("made\n") and run.returncode == 0
