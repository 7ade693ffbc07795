"""Agent: `fit` as Keras's fit, evaluating, acting, saving, and what happens to bad input."""

import gc
import multiprocessing
import warnings
import weakref

import gymnasium
import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_pg
from keras_pg.agents.schedule import schedule
from keras_pg.rollouts.vector_env import VectorEnvCollector


class Target(gymnasium.Env):
    """Reward 1 for repeating the observation's sign; episodes of 5 steps."""

    def __init__(self, discrete=True, faulty_step=None, fault=None):
        self.observation_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.action_space = (
            gymnasium.spaces.Discrete(2)
            if discrete
            else gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
        )
        self.faulty_step, self.fault = faulty_step, fault
        self.steps, self.closed = 0, False

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self._observe(), {}

    def _observe(self):
        self.state = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        return self.state

    def step(self, action):
        self.steps += 1
        self.t += 1
        right = (np.asarray(action).item() > 0) == (self.state[0] > 0)
        observation, reward = self._observe(), float(right)
        if self.steps == self.faulty_step:
            if self.fault == "raise":
                raise KeyError("the simulator broke") from OSError("joint 7")
            if self.fault == "observation":
                observation = np.array([0.0, np.nan], np.float32)
            if self.fault == "reward":
                reward = float("inf")
        return observation, reward, self.t == 5, False, {}

    def close(self):
        self.closed = True


class FaultyTarget(Target):
    """Raises in its 20th step."""

    def __init__(self):
        super().__init__(faulty_step=20, fault="raise")


def small_ppo(**hyperparameters):
    """A PPO that is quick to trace and to run."""
    settings = {"update_epochs": 2, "num_minibatches": 2, "seed": 0, **hyperparameters}
    agent = keras_pg.PPO(keras_pg.mlp((8,), seed=1), keras_pg.mlp((8,), seed=2), **settings)
    agent.compile(jit_compile=False)
    return agent


def small_agent(**hyperparameters):
    """The quickest agent to trace that has a critic, where the algorithm does not matter."""
    networks = keras_pg.mlp((8,), seed=1), keras_pg.mlp((8,), seed=2)
    agent = keras_pg.A2C(*networks, **{"seed": 0, **hyperparameters})
    agent.compile(jit_compile=False)
    return agent


def fit(agent, env=Target, **arguments):
    settings = {"epochs": 2, "steps_per_epoch": 3, "num_envs": 2, "num_steps": 8, "verbose": 0}
    return agent.fit(env, **{**settings, **arguments})


def weights_of(agent):
    return [variable.numpy().copy() for variable in agent.weights]


def assert_same_weights(first, second):
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


class Recorder(keras.callbacks.Callback):
    def __init__(self, stop_at=None):
        super().__init__()
        self.batches, self.epochs, self.stop_at = 0, 0, stop_at

    def on_train_batch_end(self, batch, logs=None):
        self.batches += 1
        if self.batches == self.stop_at:
            self.model.stop_training = True

    def on_epoch_end(self, epoch, logs=None):
        self.epochs += 1


# ---------------------------------------------------------------------------------------- fit


def test_fit_runs_exactly_epochs_times_steps_updates(recwarn):
    agent, recorder = small_ppo(), Recorder()
    history = fit(agent, callbacks=[recorder], epochs=3, steps_per_epoch=4)
    assert recorder.batches == 12 and recorder.epochs == 3
    assert int(agent.iteration) == 12
    assert int(agent.env_steps) == 12 * 2 * 8
    assert int(agent.optimizer.iterations) == 12 * 2 * 2
    assert history.epoch == [0, 1, 2]
    assert not [w for w in recwarn if "ran out of data" in str(w.message)]


def test_stop_training_is_honoured_within_one_iteration():
    agent = small_agent()
    fit(agent, callbacks=[Recorder(stop_at=4)], epochs=5, steps_per_epoch=3)
    assert int(agent.iteration) == 4


@pytest.mark.parametrize("precision", ["mixed_float16", "mixed_bfloat16"])
def test_precision_is_keras_s_and_what_is_scored_is_float32(precision, request):
    request.addfinalizer(lambda: keras.config.set_dtype_policy("float32"))
    keras.config.set_dtype_policy(precision)
    agent = small_ppo()
    fit(agent, lambda: Target(discrete=False))
    observations = np.zeros((3, 2), np.float32)
    assert agent.actor.encoder(observations).dtype == precision.removeprefix("mixed_")
    assert agent.actor(observations).dtype == agent.critic(observations).dtype == tf.float32
    # Keras would divide the gradients by a scale by which the losses were not multiplied.
    assert type(agent.optimizer) is keras.optimizers.Adam
    assert int(agent.optimizer.iterations) == 24


def test_an_agent_can_go_on_with_rollouts_of_another_shape():
    agent = small_agent()
    for num_envs, num_steps in ((4, 16), (1, 6)):
        fit(agent, num_envs=num_envs, num_steps=num_steps, epochs=1)
    assert int(agent.env_steps) == 3 * (4 * 16 + 1 * 6)


def test_initial_epoch_counts_as_done():
    agent = small_agent()
    history = fit(agent, epochs=3, initial_epoch=2, steps_per_epoch=2)
    assert history.epoch == [2] and int(agent.iteration) == 2


def test_collecting_and_updating_alternate_strictly(monkeypatch):
    """A rollout collected one update early would be off-policy."""
    events = []
    agent = small_agent()
    collect = VectorEnvCollector.collect

    def recording_collect(self, rng=None):
        events.append(("collect", agent.iteration.numpy().item()))
        return collect(self, rng)

    class Updates(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            events.append(("update", agent.iteration.numpy().item()))

    monkeypatch.setattr(VectorEnvCollector, "collect", recording_collect)
    fit(agent, callbacks=[Updates()])
    expected = [event for k in range(6) for event in (("collect", k), ("update", k + 1))]
    assert events == expected


def test_stock_callbacks(tmp_path):
    agent = small_agent()
    fit(
        agent,
        epochs=4,
        verbose=1,
        validation_env=Target,
        validation_episodes=4,
        callbacks=[
            keras.callbacks.EarlyStopping("val_episode_return", mode="max", patience=50),
            keras.callbacks.ModelCheckpoint(
                tmp_path / "best.keras", "val_episode_return", mode="max", save_best_only=True
            ),
            keras.callbacks.CSVLogger(tmp_path / "log.csv"),
            keras.callbacks.TensorBoard(tmp_path / "board"),
            keras.callbacks.LearningRateScheduler(lambda epoch, rate: 0.001 / (epoch + 1)),
            keras.callbacks.BackupAndRestore(tmp_path / "backup"),
            keras.callbacks.TerminateOnNaN(),
        ],
    )
    best = keras.models.load_model(tmp_path / "best.keras")
    assert best.predict(np.zeros((3, 2), "float32"), verbose=0).shape == (3,)
    lines = (tmp_path / "log.csv").read_text().splitlines()
    assert len(lines) == 5 and "val_episode_return" in lines[0]
    assert list((tmp_path / "board").rglob("events.out.tfevents*"))
    assert float(agent.optimizer.learning_rate) == pytest.approx(0.001 / 4)
    assert int(agent.iteration) == 12


def test_early_stopping_on_validation_return():
    agent = small_agent()
    never_better = keras.callbacks.EarlyStopping(
        "val_episode_return", mode="max", patience=2, min_delta=100
    )
    history = fit(agent, epochs=9, validation_env=Target, callbacks=[never_better])
    assert len(history.epoch) == 3


def test_logs_have_the_names_every_agent_uses():
    history = fit(small_ppo(), validation_env=Target, validation_episodes=2)
    names = {"loss", "policy_loss", "value_loss", "entropy", "approx_kl", "clip_fraction"}
    names |= {"explained_variance", "episode_return", "episode_length", "env_steps", "n_updates"}
    assert names | {"val_episode_return", "val_episode_length"} <= set(history.history)
    assert history.history["episode_length"] == [5.0, 5.0]
    assert history.history["env_steps"] == [48.0, 96.0]


def test_episode_return_is_nan_before_any_episode_ends():
    history = fit(small_agent(), epochs=1, steps_per_epoch=1, num_steps=4)
    assert np.isnan(history.history["episode_return"][0])


def test_no_retracing_when_hyperparameters_change():
    traces = []

    class Traced(keras_pg.PPO):
        def train_step(self, rollout):
            traces.append(1)
            return super().train_step(rollout)

    class Change(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.model.optimizer.learning_rate = 0.01 / (epoch + 1)
            self.model.clip_ratio = 0.1 / (epoch + 1)
            self.model.entropy_coef = 0.01 * epoch

    networks = keras_pg.mlp((8,)), keras_pg.mlp((8,))
    agent = Traced(*networks, num_minibatches=2, update_epochs=1)
    agent.compile(jit_compile=False)
    fit(agent, epochs=5, callbacks=[Change()])
    assert sum(traces) == 1
    assert float(agent.clip_ratio) == pytest.approx(0.02)

    # Nor when they follow schedules, of gradient steps.
    schedule = keras.optimizers.schedules.PolynomialDecay(0.2, 24, end_learning_rate=0.1)
    agent = Traced(*networks, num_minibatches=2, update_epochs=2, clip_ratio=schedule)
    agent.compile(keras.optimizers.Adam(schedule), jit_compile=False)
    fit(agent, epochs=1)  # 3 iterations of 4 gradient steps
    assert sum(traces) == 2
    assert float(agent.clip_ratio) == pytest.approx(0.15)
    assert float(agent.optimizer.learning_rate) == pytest.approx(0.15)
    with pytest.raises(ValueError, match="clip_ratio follows a schedule"):
        agent.clip_ratio = 0.3


@pytest.mark.parametrize(
    "arguments, expected",
    [
        ((100_000, 256, None, None), (17, 23)),  # 391 iterations, exactly
        ((100_000, 1024, None, None), (14, 7)),  # 98, exactly
        ((1_000, 256, None, None), (4, 1)),
        ((1_000, 256, None, 3), (2, 3)),
        ((None, 256, 6, 7), (6, 7)),
        ((None, 256, 6, None), (6, 10)),
    ],
)
def test_epochs_from_total_timesteps(arguments, expected):
    assert schedule(*arguments) == expected


@pytest.mark.parametrize("total", [1, 999, 12_345, 97 * 256, 1_000_000])
def test_total_timesteps_are_reached_and_hardly_exceeded(total):
    epochs, steps = schedule(total, 256, None, None)
    assert total <= epochs * steps * 256 < 1.02 * total + 256


class Repeating(gymnasium.Env):
    """The same episode again and again: 4 steps from one start state."""

    observation_space = gymnasium.spaces.Box(-9.0, 9.0, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        self.state = np.zeros(2, np.float32)
        return self.state.copy(), {}

    def step(self, action):
        self.state += (1.0, float(action))
        reward = float(action == self.state[0] % 3)
        return self.state.copy(), reward, self.state[0] == 4, False, {}


def test_twice_n_updates_are_n_and_n_where_environments_can_be_put_back(tmp_path):
    whole, half = (small_agent(normalize_rewards=True) for _ in range(2))
    fit(whole, Repeating, epochs=4)
    fit(half, Repeating, epochs=2)
    half.save(tmp_path / "half.keras")
    resumed = keras.models.load_model(tmp_path / "half.keras")
    fit(resumed, Repeating, epochs=4, initial_epoch=2)
    assert int(resumed.iteration) == 12
    assert_same_weights(weights_of(whole), weights_of(resumed))
    for ours, theirs in zip(whole.optimizer.variables, resumed.optimizer.variables, strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy())


def test_processes_learn_what_one_process_learns():
    sync, parallel = small_ppo(), small_ppo()
    fit(sync, Repeating)
    fit(parallel, Repeating, vectorization="async")
    assert_same_weights(weights_of(sync), weights_of(parallel))


def test_envpool_trains():
    envpool = pytest.importorskip("envpool")
    env = envpool.make("CartPole-v1", env_type="gymnasium", num_envs=3, seed=0)
    agent = small_agent()
    with pytest.warns(UserWarning, match="EnvPool seeds are fixed"):
        history = agent.fit(env, num_steps=32, epochs=2, steps_per_epoch=2, verbose=0).history
    # NEXT_STEP: the rows of the resets are no steps.
    assert 4 * 3 * 32 * 0.8 < history["env_steps"][-1] < 4 * 3 * 32
    assert 5 < history["episode_length"][-1] < 200


def test_settings_changed_between_fits_are_traced_anew():
    traces = []

    class Traced(keras_pg.PPO):
        def train_step(self, rollout):
            traces.append(self.gamma)
            return super().train_step(rollout)

    networks = keras_pg.mlp((8,), seed=1), keras_pg.mlp((8,), seed=2)
    agent = Traced(*networks, num_minibatches=2, update_epochs=1, seed=0)
    agent.compile(jit_compile=False)
    for gamma in (0.99, 0.99, 0.5, 0.5):
        agent.gamma = gamma
        agent.clip_ratio = 0.3 - gamma / 10  # in a variable: no reason to trace
        fit(agent)
    assert traces == [0.99, 0.5]


def test_a_schedule_comes_with_the_agent_or_not_at_all():
    schedule = keras.optimizers.schedules.PolynomialDecay(0.2, 24, 0.1)
    agent = small_ppo()
    with pytest.raises(ValueError, match="clip_ratio can be given a schedule only when"):
        agent.clip_ratio = schedule
    assert float(agent.clip_ratio) == np.float32(0.2)


def test_the_actor_is_converted_once(monkeypatch, caplog):
    conversions = []

    def convert(actor, num_envs):
        conversions.append(num_envs)
        raise NotImplementedError("no such operation")

    monkeypatch.setattr("keras_pg.rollouts.acting.LiteRTEngine", convert)
    agent = small_agent()
    for _ in range(2):
        fit(agent, validation_env=Target, validation_episodes=2)
        agent.evaluate(Target, episodes=2, verbose=0)
    assert conversions == [2]
    assert len([r for r in caplog.records if "LiteRT cannot run this actor" in r.message]) == 1


def test_an_argument_that_evaluate_does_not_have():
    with pytest.raises(TypeError, match="'n_episodes'"):
        small_agent().evaluate(Target, n_episodes=3)


def test_total_timesteps_and_epochs_contradict():
    with pytest.raises(ValueError, match="total_timesteps=10 and epochs=2"):
        fit(small_agent(), total_timesteps=10, epochs=2)


def test_fit_without_compile_uses_defaults():
    agent = keras_pg.PPO(num_minibatches=1, update_epochs=1)
    fit(agent, epochs=1, steps_per_epoch=1)
    assert isinstance(agent.optimizer, keras.optimizers.Adam) and agent.jit_compile
    assert agent.optimizer.global_clipnorm == 0.5


def test_two_environments_that_nobody_here_wrote_and_both_action_kinds():
    for env_id in ("Acrobot-v1", "MountainCarContinuous-v0"):
        agent = small_agent()
        fit(agent, env_id, epochs=1)
        assert int(agent.env_steps) == 48


# ----------------------------------------------------------------------------- evaluate and act


def test_environments_are_let_go_of():
    """TensorFlow keeps every generator that it has been given: they must not keep these."""
    made = []

    def make():
        env = Target()
        made.append(weakref.ref(env))
        return env

    agent = small_agent()
    fit(agent, make)
    agent.evaluate(make, episodes=2, verbose=0)
    gc.collect()
    assert len(made) == 4 and [ref() for ref in made] == [None] * 4


def test_evaluate_is_reproducible_and_changes_nothing():
    agent = small_agent()
    fit(agent)
    before = weights_of(agent)
    first = agent.evaluate(Target, episodes=7, verbose=0)
    second = agent.evaluate(Target, episodes=7, verbose=0)
    assert first == second and first["episode_length"] == 5.0
    assert_same_weights(before, weights_of(agent))
    sampled = agent.evaluate(Target, episodes=20, deterministic=False, seed=3, verbose=0)
    assert 0.0 <= sampled["episode_return"] <= 5.0


def test_act_takes_one_observation_or_a_batch():
    agent = small_agent()
    fit(agent)
    batch = np.random.default_rng(0).uniform(-1, 1, (6, 2)).astype("float32")
    actions = agent.act(batch)
    assert actions.shape == (6,)
    assert [agent.act(row) for row in batch] == list(actions)
    np.testing.assert_array_equal(actions, agent.predict(batch, verbose=0))
    assert agent.act(list(batch[0])) == actions[0]


def test_sampled_actions_follow_the_policy():
    agent = small_agent()
    fit(agent)
    rows = np.tile(np.float32([[0.3, -0.2]]), (20_000, 1))
    probability = agent.described_actions(rows[:1])["probabilities"][0, 1].numpy()
    share = agent.act(rows, deterministic=False).mean()
    assert abs(share - probability) < 3 * np.sqrt(probability * (1 - probability) / 20_000)


def test_discrete_observations_reach_predict_with_their_own_shape():
    agent = small_agent()
    agent.build(gymnasium.spaces.Discrete(4), gymnasium.spaces.Discrete(3))
    assert agent.predict(np.arange(4), verbose=0).shape == (4,)
    assert agent.act(2).shape == ()


@pytest.mark.parametrize("shape", [(3,), (5, 3), (2, 2, 2), ()])
def test_wrong_observation_shapes_are_named(shape):
    agent = small_agent()
    agent.build(Target().observation_space, Target().action_space)
    for method in (agent.predict, agent.act):
        with pytest.raises(ValueError, match=r"Expected observations of shape \(batch, 2\)"):
            method(np.zeros(shape, "float32"))


def test_predict_wants_a_batch():
    agent = small_agent()
    agent.build(Target().observation_space, Target().action_space)
    with pytest.raises(ValueError, match=r"received \(2,\)"):
        agent.predict(np.zeros(2, "float32"))


def test_acting_before_there_are_networks():
    with pytest.raises(ValueError, match="no networks yet"):
        small_agent().act(np.zeros(2))
    with pytest.raises(ValueError, match="no networks yet"):
        keras_pg.PPO()(np.zeros((1, 4), np.float32))
    with pytest.raises(ValueError, match="no policy to export yet"):
        small_agent().export("nowhere")


# ------------------------------------------------------------------------------------ bad input


def test_other_spaces_than_those_built_for():
    agent = small_agent()
    fit(agent, epochs=1)
    with pytest.raises(
        ValueError, match=r"agent:.*Discrete\(2\)(.|\n)*environment:.*Discrete\(3\)"
    ):
        fit(agent, "Acrobot-v1")
    with pytest.raises(ValueError, match="spaces differ"):
        agent.evaluate("Acrobot-v1", verbose=0)


def test_networks_made_for_other_spaces():
    ours, theirs = Target().observation_space, gymnasium.spaces.Discrete(4)
    action_space = Target().action_space
    for networks in (
        {"actor": keras_pg.Actor(theirs, action_space)},
        {"actor": keras_pg.Actor(ours, gymnasium.spaces.Discrete(5))},
        {"critic": keras_pg.Critic(theirs)},
    ):
        with pytest.raises(ValueError, match="spaces differ"):
            fit(keras_pg.PPO(num_minibatches=2, **networks))


def test_rollouts_that_cannot_be_split():
    with pytest.raises(ValueError, match=r"num_steps=8 · num_envs=2 = 16 .* num_minibatches=3"):
        fit(small_ppo(num_minibatches=3))


def test_several_steps_an_execution_are_refused():
    agent = small_agent()
    agent.compile(jit_compile=False, steps_per_execution=2)
    with pytest.raises(ValueError, match="steps_per_execution=2"):
        fit(agent)


@pytest.mark.parametrize(
    "hyperparameters",
    [
        {"gamma": 1.01},
        {"gamma": -0.1},
        {"gae_lambda": 2},
        {"clip_ratio": 0.0},
        {"clip_ratio": -0.2},
        {"entropy_coef": -1.0},
        {"value_coef": -0.5},
        {"value_clip": -1.0},
        {"value_clip": 0.0},
        {"target_kl": -0.01},
        {"target_kl": 0},
        {"clip_ratio": float("inf")},
        {"entropy_coef": True},
        {"gamma": keras.optimizers.schedules.PolynomialDecay(0.9, 10, 0.0)},
        {"update_epochs": 0},
        {"update_epochs": 1.5},
        {"num_minibatches": -4},
        {"seed": -1},
        {"gamma": "high"},
        {"normalize_observations": "False"},
        {"squash_actions": 1},
        {"normalize_advantages": None},
        {"gamma": float("nan")},
    ],
)
def test_hyperparameters_out_of_range_are_named(hyperparameters):
    (name, value), *_ = hyperparameters.items()
    with pytest.raises(ValueError, match=f"{name}.*{value}"):
        keras_pg.PPO(**hyperparameters)


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_steps": -1},
        {"num_steps": 0},
        {"num_envs": 0},
        {"epochs": 0},
        {"steps_per_epoch": -2},
        {"steps_per_epoch": 0},
        {"total_timesteps": 0, "epochs": None},
    ],
)
def test_sizes_out_of_range_are_named(arguments):
    (name, value), *_ = arguments.items()
    with pytest.raises(ValueError, match=f"{name}.*{value}"):
        fit(small_ppo(), **arguments)


@pytest.mark.parametrize("fault, field", [("observation", "observation"), ("reward", "reward")])
def test_a_rollout_that_is_not_finite_is_not_learnt_from(fault, field):
    agent = small_agent()
    fit(agent)
    before = weights_of(agent)
    faulty = [lambda: Target(), lambda: Target(faulty_step=3, fault=fault)]
    env = gymnasium.vector.SyncVectorEnv(faulty)
    with pytest.raises(FloatingPointError, match=rf"{field} that .* environment 1 at step 2 "):
        fit(agent, env, num_envs=None)
    assert_same_weights(before, weights_of(agent))


def test_an_environment_that_raises(tmp_path):
    made = []

    def make():
        made.append(Target(faulty_step=30 if made else None, fault="raise"))
        return made[-1]

    agent = small_agent()
    with pytest.raises(KeyError, match="the simulator broke") as caught:
        fit(agent, make)
    assert "step" in [entry.name for entry in caught.traceback]
    assert repr(caught.value.__cause__) == "OSError('joint 7')"
    action, stepping = caught.value.__notes__
    assert action.startswith("Environment 1 raised it when given the action ")
    assert stepping == "While stepping SerialVectorEnv(num_envs=2), step 29 of each."
    assert all(env.closed for env in made)
    assert int(agent.iteration) == 3  # what was learnt before is kept
    agent.save(tmp_path / "agent.keras")
    fit(agent)
    assert int(agent.iteration) == 9
    assert int(keras.models.load_model(tmp_path / "agent.keras").iteration) == 3


def test_hyperparameters_are_checked_when_they_are_set_while_training():
    agent = small_ppo()
    for name, value in (("clip_ratio", 0.0), ("clip_ratio", -1), ("entropy_coef", float("nan"))):
        before = float(getattr(agent, name))
        with pytest.raises(ValueError, match=f"{name}.*{value}"):
            setattr(agent, name, value)
        assert float(getattr(agent, name)) == before
    agent.clip_ratio = np.float32(0.3)
    assert float(agent.clip_ratio) == np.float32(0.3)


def test_environments_of_the_user_stay_open_unless_they_raise():
    env, validation_env = Target(), Target()
    agent = small_ppo()
    fit(agent, env, num_envs=None, validation_env=validation_env, validation_episodes=1)
    for wrong in ({"num_steps": 7}, {"total_timesteps": 10}, {"validation_env": "Acrobot-v1"}):
        with pytest.raises(ValueError):
            fit(agent, env, num_envs=None, **wrong)
    with pytest.raises(FloatingPointError):
        faulty = Target(faulty_step=3, fault="reward")
        fit(agent, faulty, num_envs=None, validation_env=validation_env)
    assert faulty.closed
    assert not env.closed and not validation_env.closed


@pytest.mark.parametrize("vectorized", [False, True])
def test_the_environment_in_training_is_not_the_one_to_evaluate_on(vectorized):
    env = gymnasium.vector.SyncVectorEnv([Target]) if vectorized else Target()
    with pytest.raises(ValueError, match="same object"):
        fit(small_agent(), env, num_envs=None, validation_env=env)
    fit(small_agent(), Target, validation_env=Target)  # a factory makes two


def test_an_operation_out_of_range_is_not_taken_for_the_end_of_the_data():
    """Keras ends training at an OutOfRangeError with a warning; a damaged XLA cache raises one."""

    class Damaged(keras_pg.PPO):
        def train_step(self, rollout):
            if self.iteration == 1:
                raise tf.errors.OutOfRangeError(None, None, "Read less bytes than requested")
            return super().train_step(rollout)

    agent = Damaged(num_minibatches=1, update_epochs=1, seed=0)
    agent.compile(run_eagerly=True)
    with pytest.raises(RuntimeError, match="failed with OUT_OF_RANGE"):
        fit(agent, steps_per_epoch=3)
    assert agent.iteration == 1


def test_an_environment_that_raises_in_a_process_of_its_own():
    agent = small_agent()
    with pytest.raises(KeyError, match="the simulator broke"):
        fit(agent, FaultyTarget, vectorization="async")
    assert not multiprocessing.active_children()
    iteration = int(agent.iteration)
    fit(agent)
    assert int(agent.iteration) > iteration


def test_unsupported_spaces_are_named_before_anything_is_made():
    class Named(Target):
        def __init__(self):
            super().__init__()
            self.observation_space = gymnasium.spaces.Dict(x=gymnasium.spaces.Discrete(2))

    agent = small_agent()
    with pytest.raises(ValueError, match="Dict"):
        fit(agent, Named)
    assert agent.actor is None
    fit(agent)


def test_gradients_that_are_not_finite_are_not_applied():
    class Huge(Target):
        def step(self, action):
            observation, _, terminated, truncated, info = super().step(action)
            return observation, 1e30, terminated, truncated, info

    agent = small_ppo(num_minibatches=1, update_epochs=4)
    stopped = small_ppo(num_minibatches=1, update_epochs=4)
    history = fit(stopped, Huge, epochs=5, callbacks=[keras.callbacks.TerminateOnNaN()]).history
    assert np.isnan(history["loss"]).all() and int(stopped.iteration) == 1
    agent.build(Target().observation_space, Target().action_space)
    before = [variable.numpy() for variable in agent.trainable_variables]
    with pytest.raises(FloatingPointError, match="The last 12 gradients"):
        fit(agent, Huge, epochs=5)
    assert_same_weights(before, [variable.numpy() for variable in agent.trainable_variables])
    assert int(agent.optimizer.iterations) == 0


# ------------------------------------------------------------------------------ saving, resuming


def test_save_and_load_make_the_same_next_update(tmp_path):
    agent = small_ppo(normalize_rewards=True)
    agent.compile(
        keras.optimizers.Adam(1e-3, global_clipnorm=0.5),
        keras.optimizers.RMSprop(1e-2, momentum=0.9),
        jit_compile=False,
    )
    fit(agent)
    agent.act(np.zeros((3, 2), "float32"), deterministic=False)
    agent.clip_ratio = 0.3
    agent.save(tmp_path / "agent.keras")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # Keras only warns of slots it cannot restore
        loaded = keras.models.load_model(tmp_path / "agent.keras")
    for ours, theirs in (
        (agent.variables, loaded.variables),
        (agent.optimizer.variables, loaded.optimizer.variables),
        (agent.critic_optimizer.variables, loaded.critic_optimizer.variables),
    ):
        assert_same_weights([v.numpy() for v in ours], [v.numpy() for v in theirs])
    assert int(loaded.optimizer.iterations) == 24 == int(loaded.critic_optimizer.iterations)
    assert float(loaded.clip_ratio) == pytest.approx(0.3)
    assert not loaded.jit_compile
    rows = np.random.default_rng(0).uniform(-1, 1, (50, 2))
    np.testing.assert_array_equal(agent.act(rows, False), loaded.act(rows, False))
    fit(agent)
    fit(loaded)
    assert_same_weights(weights_of(agent), weights_of(loaded))


def test_schedules_survive_saving(tmp_path):
    schedule = keras.optimizers.schedules.PolynomialDecay(0.2, 24, end_learning_rate=0.1)
    agent = small_ppo(clip_ratio=schedule, target_kl=10.0, value_clip=0.5)
    agent.compile(keras.optimizers.SGD(schedule), jit_compile=False)
    fit(agent, epochs=1)
    agent.save(tmp_path / "agent.keras")
    loaded = keras.models.load_model(tmp_path / "agent.keras")
    assert float(loaded.clip_ratio) == pytest.approx(0.15)
    assert loaded.target_kl == 10.0 and loaded.value_clip == 0.5
    assert float(loaded.optimizer.learning_rate) == pytest.approx(0.15)


def test_an_agent_without_networks_can_be_saved(tmp_path):
    agent = keras_pg.PPO(actor=keras_pg.mlp((8,)), gamma=0.9, seed=3)
    agent.save(tmp_path / "agent.keras")
    loaded = keras.models.load_model(tmp_path / "agent.keras")
    assert loaded.gamma == 0.9 and loaded.seed == 3
    loaded.build(Target().observation_space, Target().action_space)
    assert loaded.actor.encoder.layers[0].units == 8


def test_weights_that_would_not_be_saved_are_not_dropped_in_silence(tmp_path):
    encoder = keras_pg.mlp((8,))
    encoder.build((None, 2))
    ours = keras_pg.Actor(Target().observation_space, Target().action_space)
    for actor in (encoder, ours):
        agent = keras_pg.PPO(actor=actor, num_minibatches=2)
        with pytest.raises(ValueError, match="would not be saved"):
            agent.save(tmp_path / "agent.keras")
        agent.build(Target().observation_space, Target().action_space)
        agent.save(tmp_path / "agent.keras")
        loaded = keras.models.load_model(tmp_path / "agent.keras")
        assert_same_weights(weights_of(agent.actor), weights_of(loaded.actor))


def test_an_encoder_shared_by_actor_and_critic(tmp_path):
    encoder = keras_pg.mlp((8,))
    agent = keras_pg.PPO(encoder, encoder, num_minibatches=2, update_epochs=1, seed=0)
    agent.compile(jit_compile=False)
    fit(agent, epochs=1)
    assert agent.actor.encoder is agent.critic.encoder
    agent.save(tmp_path / "agent.keras")
    loaded = keras.models.load_model(tmp_path / "agent.keras")
    assert loaded.actor.encoder is loaded.critic.encoder
    fit(agent, epochs=1)
    fit(loaded, epochs=1)
    assert_same_weights(weights_of(agent), weights_of(loaded))


def test_seed_none_follows_keras_global_seed():
    keras.utils.set_random_seed(7)
    first = keras_pg.PPO().seed
    keras.utils.set_random_seed(7)
    assert keras_pg.PPO().seed == first
    assert keras_pg.PPO().seed != first


def test_callbacks_and_verbosity_do_not_touch_the_random_streams():
    quiet, loud = small_agent(), small_agent()
    fit(quiet)
    fit(loud, verbose=2, validation_env=Target, callbacks=[Recorder()])
    trained = [v.numpy() for v in quiet.trainable_variables]
    assert_same_weights(trained, [v.numpy() for v in loud.trainable_variables])


def test_agents_are_keras_models_with_tfp_distributions():
    agent = small_agent()
    agent.build(Target().observation_space, Target(discrete=False).action_space)
    assert isinstance(agent, keras.Model) and isinstance(agent.actor, keras.Model)
    distribution = agent.actor.distribution(tf.zeros((5, 2)))
    assert distribution.sample(seed=1).shape == (5, 1)
    assert agent.critic(tf.zeros((5, 2))).shape == (5,)
