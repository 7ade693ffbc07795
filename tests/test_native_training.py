"""Collecting from native environments, and training on them in one program."""

import gymnasium
import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_pg
from keras_pg import envs, randomness
from keras_pg.envs.native_env import Copies
from keras_pg.rollouts import collector_for
from keras_pg.rollouts.acting import CompiledEngine
from keras_pg.rollouts.native_env import NativeEnvCollector


class Countdown(envs.NativeEnv):
    """Counts down from 2 to 5, and pays the action's number; cut after 4 steps.

    Noise in the observation is drawn anew in each step.
    """

    observation_space = gymnasium.spaces.Box(-10.0, 10.0, (2,))
    action_space = gymnasium.spaces.Discrete(3)
    max_episode_steps = 4

    def reset(self, seeds):
        left = 2 + tf.cast(4 * randomness.uniform(seeds, (1,)), tf.int32)[:, 0]
        return {"left": left, "noise": randomness.uniform(seeds, (1,))}

    def observe(self, state):
        return tf.stack([tf.cast(state["left"], tf.float32), state["noise"][:, 0]], axis=-1)

    def step(self, state, actions, seeds):
        left = state["left"] - 1
        state = {"left": left, "noise": randomness.uniform(seeds, (1,))}
        return state, tf.cast(actions, tf.float32), left <= 0


def agent_of(kind=keras_pg.A2C, **settings):
    agent = kind(seed=0, **settings)
    agent.compile(jit_compile=False)
    return agent


def collectors(env, num_envs, num_steps, whole_episodes=False):
    """The collector of native environments, and that of their copies as Gymnasium's."""
    agent = keras_pg.A2C(seed=0)
    agent.build(env.observation_space, env.action_space)
    vector_env = envs.to_gymnasium(env, num_envs)
    settings = {"num_steps": num_steps, "gamma": 0.9, "whole_episodes": whole_episodes}
    native = collector_for(Copies(env, num_envs), agent.actor, **settings)
    gymnasiums = collector_for(vector_env, agent.actor, engine_for=CompiledEngine, **settings)
    assert isinstance(native, NativeEnvCollector)
    return native, gymnasiums


@pytest.mark.parametrize(
    "env", [Countdown(), envs.CartPole(), envs.Pendulum()], ids=lambda env: type(env).__name__
)
def test_rollouts_are_those_of_gymnasiums_loop(env):
    native, gymnasiums = collectors(env, num_envs=3, num_steps=40)
    for collector in (native, gymnasiums):
        collector.reset(7)
    rngs = [np.random.default_rng(1) for _ in range(2)]
    ended = 0
    for _ in range(2):
        ours, theirs = native.collect(rngs[0]), gymnasiums.collect(rngs[1])
        for name, x, y in zip(ours._fields, ours, theirs, strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4, err_msg=name)
        ended += (ours.terminated | ours.truncated).sum()
    assert (ended > 3) == (not isinstance(env, envs.Pendulum))


@pytest.mark.parametrize("num_steps", [3, 7])
def test_rollouts_of_whole_episodes_are_those_of_gymnasiums_loop(num_steps):
    native, gymnasiums = collectors(Countdown(), 4, num_steps, whole_episodes=True)
    for collector in (native, gymnasiums):
        collector.reset(7)
    state = native.env_state
    native.assign(state._replace(calls=state.calls - 1))  # it begins anew by itself
    ours = native.collect(np.random.default_rng(1))
    theirs = gymnasiums.collect(np.random.default_rng(1))
    for name, x, y in zip(ours._fields, ours, theirs, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, err_msg=name)
    assert (ours.valid.sum(axis=0) <= 4).all() and ours.valid[0].all()


def test_each_rollout_of_whole_episodes_begins_anew_and_groups_begin_alike():
    native, _ = collectors(envs.CartPole(), 6, 8, whole_episodes=True)
    native.reset(3, group_size=3)
    first, second = native.collect().observations[0], native.collect().observations[0]
    for starts in (first, second):
        np.testing.assert_array_equal(starts[:3], np.tile(starts[:1], (3, 1)))
        np.testing.assert_array_equal(starts[3:], np.tile(starts[3:4], (3, 1)))
        assert (starts[0] != starts[3]).all()
    assert (first != second).all()


def test_groups_begin_alike_in_gymnasiums_loop_too():
    agent = agent_of(keras_pg.GRPO, group_size=3)
    env = envs.to_gymnasium(envs.CartPole(), 6)
    agent.fit(env, num_steps=8, epochs=1, steps_per_epoch=1, verbose=0)
    _, collector = collectors(envs.CartPole(), 6, 8, whole_episodes=True)
    collector.reset(3, group_size=3)
    starts = collector.collect().observations[0]
    np.testing.assert_array_equal(starts[:3], np.tile(starts[:1], (3, 1)))
    assert (starts[0] != starts[3]).all()


AGENTS = {
    "PPO": {"num_minibatches": 4, "update_epochs": 2},
    "A2C": {},
    "A2C of Q": {"advantage": "advantage"},
    "REINFORCE": {},
    "NPG": {"num_minibatches": 4},
    "TRPO": {"num_minibatches": 4},
    "MDPO": {"update_epochs": 3},
    "GRPO": {"group_size": 4},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", AGENTS)
def test_every_agent_learns_on_them_in_one_program(name):
    agent = getattr(keras_pg, name.split()[0])(seed=0, **AGENTS[name])
    env = envs.Pendulum() if name == "TRPO" else envs.CartPole()
    history = agent.fit(
        env, num_envs=8, num_steps=16, epochs=2, steps_per_epoch=1, verbose=0
    ).history
    assert agent.jit_compile
    assert int(agent.iteration) == 2
    assert 0 < int(agent.env_steps) <= 256
    before = history["env_steps"][0]
    assert int(agent.env_steps) > before > 0
    losses = [value for key, value in history.items() if "loss" in key]
    assert losses and np.isfinite(losses).all()


def weights_of(agent):
    return [variable.numpy() for variable in agent.variables]


@pytest.mark.parametrize(
    ("whole_episodes", "jit_compile"),
    [
        (False, False),
        pytest.param(True, False, marks=pytest.mark.slow),
        pytest.param(False, True, marks=pytest.mark.slow),
        pytest.param(True, True, marks=pytest.mark.slow),
    ],
)
def test_twice_n_updates_are_n_and_n_with_nothing_put_back_by_hand(
    tmp_path, whole_episodes, jit_compile
):
    def made():
        kind = keras_pg.REINFORCE if whole_episodes else keras_pg.A2C
        agent = kind(seed=3, normalize_rewards=True)
        agent.compile(jit_compile=jit_compile)
        return agent

    def fit(agent, epochs):
        env = envs.CartPole()
        agent.fit(env, num_envs=4, num_steps=24, epochs=epochs, steps_per_epoch=2, verbose=0)

    whole, half = made(), made()
    fit(whole, 4)
    fit(half, 2)
    half.save(tmp_path / "half.keras")
    resumed = keras.models.load_model(tmp_path / "half.keras")
    # Saved before it goes on, it still knows where its environments were.
    resumed.save(tmp_path / "again.keras")
    again = keras.models.load_model(tmp_path / "again.keras")
    assert again._saved_env_state.keys() == half._native_collector.save().keys()
    for agent in (half, again) if jit_compile else (again,):
        fit(agent, 2)
        for ours, theirs in zip(weights_of(agent), weights_of(whole), strict=True):
            np.testing.assert_array_equal(ours, theirs)
        ours, theirs = (a._native_collector.save() for a in (agent, whole))
        assert all((ours[name] == theirs[name]).all() for name in ours)
        assert int(ours["5"]) == 4 * 2 * (24 + whole_episodes) or whole_episodes


def test_environments_go_on_only_if_they_are_as_many_of_the_same_kind():
    agent = agent_of()

    def calls_after_fit(env, num_envs):
        agent.fit(env, num_envs=num_envs, num_steps=5, epochs=1, steps_per_epoch=1, verbose=0)
        return int(agent._native_collector.env_state.calls)

    class Longer(envs.CartPole):
        max_episode_steps = 1000

    assert calls_after_fit(envs.CartPole(), 2) == 5
    assert calls_after_fit(envs.CartPole(), 2) == 10
    assert calls_after_fit(envs.CartPole(), 3) == 5
    assert calls_after_fit(Longer(), 3) == 5
    assert calls_after_fit(Longer(), 3) == 10


class Batches(keras.callbacks.Callback):
    """Counts the batches that Keras sees."""

    count = 0

    def on_train_batch_end(self, batch, logs=None):
        self.count += 1


@pytest.mark.parametrize("jit_compile", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_steps_per_execution_changes_no_number(jit_compile):
    agents = []
    for steps_per_execution in (1, 3):
        agent = keras_pg.PPO(num_minibatches=2, update_epochs=2, seed=0)
        agent.compile(steps_per_execution=steps_per_execution, jit_compile=jit_compile)
        batches = Batches()
        history = agent.fit(
            envs.CartPole(),
            num_envs=4,
            num_steps=8,
            epochs=2,
            steps_per_epoch=6,
            callbacks=[batches],
            verbose=0,
        )
        assert batches.count == 12 / steps_per_execution
        agents.append((agent, history.history))
    (one, ones), (three, threes) = agents
    assert int(one.iteration) == int(three.iteration) == 12
    for name in ones:
        np.testing.assert_allclose(ones[name], threes[name], rtol=1e-4, atol=1e-6, err_msg=name)
    for x, y in zip(weights_of(one), weights_of(three), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-5)


def test_steps_per_execution_must_divide_an_epoch():
    agent = keras_pg.A2C(seed=0)
    agent.compile(steps_per_execution=4)
    with pytest.raises(ValueError, match="steps_per_epoch=6 is no multiple of steps_per_exec"):
        agent.fit(envs.CartPole(), epochs=1, steps_per_epoch=6)


@pytest.mark.parametrize(
    "mode",
    [{"jit_compile": True}, pytest.param({"run_eagerly": True}, marks=pytest.mark.slow)],
    ids=str,
)
def test_compiled_or_not_an_agent_learns_the_same(mode):
    agents = []
    for arguments in ({"jit_compile": False}, mode):
        agent = keras_pg.A2C(seed=0)
        agent.compile(**arguments)
        agent.fit(Countdown(), num_envs=3, num_steps=6, epochs=1, steps_per_epoch=3, verbose=0)
        agents.append(agent)
    for x, y in zip(*map(weights_of, agents), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


class Broken(Countdown):
    """As soon as copy 1 has 1 step left it gives NaN."""

    where = "rewards"

    def step(self, state, actions, seeds):
        state, rewards, terminated = super().step(state, actions, seeds)
        nan = (state["left"] == 1) & (tf.range(state["left"].shape[0]) == 1)
        if self.where == "rewards":
            return state, tf.where(nan, float("nan"), rewards), terminated
        noise = tf.where(nan[:, None], float("inf"), state["noise"])
        return {**state, "noise": noise}, rewards, terminated


@pytest.mark.parametrize("where", ["rewards", "observations"])
@pytest.mark.parametrize(
    "settings",
    [
        {"jit_compile": False},
        {"jit_compile": False, "steps_per_execution": 2},
        pytest.param({"steps_per_execution": 2}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_what_is_not_finite_is_an_error_and_nothing_is_learnt_from_it(where, settings):
    env = Broken()
    env.where = where
    agent = keras_pg.A2C(seed=0)
    agent.compile(**settings)
    agent.build(env.observation_space, env.action_space)
    before = weights_of(agent)
    message = rf"Copy 1 of Broken gave an? {where[:-1]} that is not finite, at step \d of a rollout"
    with pytest.raises(FloatingPointError, match=message):
        agent.fit(env, num_envs=3, num_steps=8, epochs=1, steps_per_epoch=2, verbose=0)
    for x, y in zip(before, weights_of(agent), strict=True):
        np.testing.assert_array_equal(x, y)
    assert int(agent._native_collector.env_state.calls) == 0
    with pytest.raises(FloatingPointError, match="environment 1 at step"):
        agent.evaluate(env, episodes=3, verbose=0)


class Masked(Countdown):
    """Legal is only what the countdown says; nothing at 1, unless `forgiving`."""

    observation_space = gymnasium.spaces.Dict(
        observation=Countdown.observation_space, action_mask=gymnasium.spaces.MultiBinary(3)
    )
    forgiving = True

    def observe(self, state):
        legal = tf.equal(tf.range(3), state["left"][:, None] % 3)
        if not self.forgiving:
            legal &= state["left"][:, None] != 1
        return {"observation": super().observe(state), "action_mask": tf.cast(legal, tf.int8)}


def test_masks_are_obeyed_and_one_without_a_legal_action_is_an_error():
    agent, env = agent_of(), Masked()
    native, gymnasiums = collectors(env, 3, 12)
    for collector in (native, gymnasiums):
        collector.reset(0)
        rollout = collector.collect(np.random.default_rng(0))
        legal = rollout.observations["observation"][..., 0].astype(int) % 3
        np.testing.assert_array_equal(rollout.actions, legal)
    agent.fit(env, num_envs=3, num_steps=8, epochs=1, steps_per_epoch=1, verbose=0)
    env.forgiving = False
    with pytest.raises(ValueError, match=r"Copy \d of Masked has no legal action, at step"):
        agent.fit(env, num_envs=3, num_steps=9, epochs=1, steps_per_epoch=1, verbose=0)


def test_evaluating_plays_the_episodes_that_gymnasiums_loop_plays():
    agent = agent_of()
    env = Countdown()
    agent.build(env.observation_space, env.action_space)
    for deterministic in (True, False):
        settings = {"episodes": 9, "seed": 5, "deterministic": deterministic, "verbose": 0}
        ours = agent.evaluate(env, num_envs=4, **settings)
        assert ours == agent.evaluate(envs.to_gymnasium(env, 4), **settings)
    assert agent.evaluation()["episodes"] == 9


def test_ids_are_the_native_environments():
    agent = agent_of()
    agent.fit(
        "keras_pg/Acrobot-v1",
        num_envs=3,
        num_steps=4,
        epochs=1,
        steps_per_epoch=1,
        validation_env="keras_pg/Acrobot-v1",
        validation_episodes=2,
        verbose=0,
    )
    assert isinstance(agent._native_collector.env.env, envs.Acrobot)
    with pytest.raises(gymnasium.error.NameNotFound, match="no native environment 'keras_pg/X'"):
        agent.fit("keras_pg/X")
    with pytest.raises(ValueError, match="vectorization='async'"):
        agent.fit(envs.Acrobot(), vectorization="async")


def test_the_statistics_of_gradients_are_had_of_them_too():
    agent = agent_of()
    found = keras_pg.diagnostics.gradient_statistics(
        agent, envs.CartPole(), rollouts=3, num_envs=2, num_steps=8
    )
    assert found.variance > 0


def test_training_stops_when_a_callback_says_so():
    agent = agent_of()

    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            self.model.stop_training = batch == 2

    agent.fit(Countdown(), num_steps=4, epochs=3, steps_per_epoch=9, callbacks=[Stop()], verbose=0)
    assert int(agent.iteration) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"observe": lambda self, state: state["noise"]},
            r"observe returns observations of shape \(8, 1\) and dtype float32, expected \(8, 2\)",
        ),
        (
            {"observe": lambda self, state: tf.zeros((8, 2), tf.float64)},
            "observations of shape .* dtype float64, expected .* float32",
        ),
        (
            {"step": lambda self, s, a, k: (s, tf.zeros((8, 1)), tf.zeros(8, tf.bool))},
            r"step returns rewards of shape \(8, 1\)",
        ),
        (
            {"step": lambda self, s, a, k: (s, tf.zeros(8), tf.zeros(8))},
            "step returns terminated of shape .* float32, expected .* bool",
        ),
        ({"max_episode_steps": 0}, "max_episode_steps must be"),
    ],
)
def test_what_is_not_of_the_spaces_is_refused_at_the_door(change, message):
    env = type("Wrong", (Countdown,), change)()
    with pytest.raises(ValueError, match=message):
        keras_pg.A2C().fit(env, num_envs=8)
    with pytest.raises(ValueError, match=message):
        envs.to_gymnasium(env, 8)


def test_a_program_is_traced_once_and_again_for_other_constants():
    agent, traces = agent_of(), []
    learn = agent.train_step
    agent.train_step = lambda rollout: traces.append(agent.gamma) or learn(rollout)

    def fit(env):
        agent.fit(env, num_envs=2, num_steps=3, epochs=2, steps_per_epoch=2, verbose=0)

    fit(Countdown())
    fit(Countdown())
    assert traces == [0.99]
    agent.gamma = 0.5
    fit(Countdown())
    assert traces == [0.99, 0.5]


def test_what_a_train_step_returns_beside_the_agents_metrics_is_not_lost_without_a_word():
    class More(keras_pg.A2C):
        def train_step(self, rollout):
            return {**super().train_step(rollout), "mean_reward": tf.reduce_mean(rollout.rewards)}

    agent = More(seed=0)
    with pytest.raises(ValueError, match=r"'mean_reward'.* named by `tracked`"):
        agent.fit(envs.Catch(), num_envs=2, num_steps=4, verbose=0)
    assert int(agent.iteration) == 0


def test_what_keras_is_given_after_such_a_fit_is_what_it_trains_on():
    agent = agent_of()
    agent.fit(Countdown(), num_envs=2, num_steps=4, epochs=1, steps_per_epoch=1, verbose=0)
    calls = int(agent._native_collector.env_state.calls)
    _, gymnasiums = collectors(Countdown(), 3, 5)
    gymnasiums.reset(0)
    rollout = tf.nest.map_structure(tf.constant, gymnasiums.collect(np.random.default_rng(0)))
    data = tf.data.Dataset.from_tensors(rollout)
    keras.Model.fit(agent, data, epochs=1, verbose=0)
    assert int(agent.env_steps) == 8 + 15
    assert int(agent._native_collector.env_state.calls) == calls


def test_settings_of_an_environment_that_change_are_traced_again():
    agent, env = agent_of(), Countdown()

    def longest():
        agent.fit(env, num_envs=4, num_steps=16, epochs=1, steps_per_epoch=1, verbose=0)
        agent.evaluate(env, episodes=8, verbose=0)
        collectors = agent._native_collector, agent._evaluating_collector
        return [int(c.collect().timesteps.max()) + 1 for c in collectors]

    assert longest() == [4, 4]
    first = agent._native_collector
    env.max_episode_steps = 2
    assert longest() == [2, 2]
    assert agent._native_collector is not first
    second = agent._native_collector
    assert longest() == [2, 2] and agent._native_collector is second


def test_what_is_within_a_stack_is_looked_at_too():
    agent = keras_pg.A2C(seed=0)
    agent.build(envs.FrameStack(Countdown(), 2).observation_space, Countdown.action_space)

    def collector(env):
        return collector_for(Copies(env, 2), agent.actor, num_steps=3, gamma=0.9)

    class Other(Countdown):
        pass

    one = collector(envs.FrameStack(Countdown(), 2))
    assert one.is_like(collector(envs.FrameStack(Countdown(), 2)))
    assert one.restore(collector(envs.FrameStack(Countdown(), 2)).save())
    other = collector(envs.FrameStack(Other(), 2))
    assert not one.is_like(other) and not one.restore(other.save())
    stack = envs.FrameStack(Countdown(), 2)
    before = collector(stack)
    stack.env.rate = 2
    assert not before.is_like(collector(stack))


def test_what_backup_and_restore_brings_back_includes_the_environments(tmp_path):
    class Crash(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    def fit(agent, *callbacks):
        agent.fit(
            envs.CartPole(),
            num_envs=3,
            num_steps=16,
            epochs=4,
            steps_per_epoch=2,
            callbacks=list(callbacks),
            verbose=0,
        )

    def backup():
        return keras.callbacks.BackupAndRestore(tmp_path / "backup")

    whole, broken, resumed = agent_of(), agent_of(), agent_of()
    fit(whole)
    with pytest.raises(KeyboardInterrupt):
        fit(broken, backup(), Crash())
    fit(resumed, backup())
    for ours, theirs in zip(weights_of(resumed), weights_of(whole), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    ours, theirs = (a._native_collector.save() for a in (resumed, whole))
    assert all((ours[name] == theirs[name]).all() for name in ours)
