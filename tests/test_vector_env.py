import traceback

import envpool
import gymnasium
import keras
import numpy as np
import pytest
import tensorflow as tf
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorWrapper

import keras_pg
from environments import Clockwork, DiscreteClockwork, Faulty, Recording, perturbed_agent
from keras_pg import advantages, distributions
from keras_pg.rollouts import collector_for, make_vector_env
from keras_pg.rollouts.processes import ProcessVectorEnv
from keras_pg.rollouts.rollout import Rollout
from keras_pg.rollouts.serial_env import SerialVectorEnv
from keras_pg.rollouts.vector_env import VectorEnvCollector

GAMMA = 0.9
# Gymnasium's three, and how keras_pg steps the environments that it makes itself.
MODES = [*AutoresetMode, "own"]
# The episode lengths of three environments, and how many of their episodes are compared.
LENGTHS = [(3, 1, 4), (7, 2), (1,)]
EPISODES = [7, 5, 8]


def policy(observation):
    """An action of Discrete(3) that depends on the observation and nothing else."""
    return int(np.sum(observation)) % 3


def vectorized(factories, mode):
    """A vector environment of these, in one of `MODES`."""
    if mode == "own":
        return SerialVectorEnv(factories)
    return SyncVectorEnv(factories, autoreset_mode=mode)


class PolicyEngine:
    """Acts by `policy`, whatever the noise."""

    def load_weights(self):
        pass

    def __call__(self, observations, noise):
        actions = np.array([policy(observation) for observation in observations])
        return actions, actions


class NeutralEngine(PolicyEngine):
    """Acts by 0 in a Box, whatever it sees."""

    def __call__(self, observations, noise):
        return np.zeros_like(noise), np.zeros_like(noise)


class NanEngine(PolicyEngine):
    """Acts by 0, but answers an observation that is not finite with NaN, as a network does."""

    def __call__(self, observations, noise):
        finite = np.isfinite(observations).all(-1, keepdims=True)
        actions = np.where(finite, np.zeros_like(noise), np.float32(np.nan))
        return actions, actions


def collector_of(env, num_steps, engine=None):
    distribution = distributions.for_action_space(env.single_action_space)
    return VectorEnvCollector(
        env, engine or PolicyEngine(), distribution, num_steps=num_steps, gamma=GAMMA
    )


def clockworks(kind=Clockwork, **options):
    # The default argument binds the lengths of each factory.
    return [lambda lengths=lengths: kind(lengths, **options) for lengths in LENGTHS]


def joined(rollouts):
    """Consecutive rollouts as one."""
    return Rollout(*(np.concatenate(field) for field in zip(*rollouts)))


def transitions(rollout, i):
    """The fields of environment i where something happened."""
    return Rollout(*(field[rollout.valid[:, i], i] for field in rollout))


def played(env, episodes, seed):
    """What a rollout should say of whole episodes, by the plain loop over one environment."""
    rows = []
    for k in range(episodes):
        observation, _ = env.reset(seed=seed if k == 0 else None)
        ended, t, total, discounted = False, 0, 0.0, 0.0
        while not ended:
            action = policy(observation)
            successor, reward, terminated, truncated, _ = env.step(action)
            total, discounted = total + reward, GAMMA * discounted + reward
            row = (np.copy(observation), action, reward, terminated, truncated, True, t)
            rows.append((*row, np.copy(successor), total, discounted))
            observation, t, ended = successor, t + 1, terminated or truncated
    return Rollout(*map(np.array, zip(*rows)))


def assert_same_transitions(rollout, expected):
    for name, values, wanted in zip(Rollout._fields, rollout, expected):
        np.testing.assert_allclose(values[: len(wanted)], wanted, rtol=1e-6, err_msg=name)


# ------------------------------------------------------------------------------- the transitions


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", [Clockwork, DiscreteClockwork])
def test_transitions_are_those_of_a_plain_loop_in_every_autoreset_mode(kind, mode):
    collector = collector_of(vectorized(clockworks(kind), mode), num_steps=30)
    collector.reset(seed=5)
    rollout = collector.collect()
    for i, (lengths, episodes) in enumerate(zip(LENGTHS, EPISODES)):
        expected = played(kind(lengths), episodes, seed=5 + i)
        assert expected.terminated.any() and expected.truncated.any()
        assert_same_transitions(transitions(rollout, i), expected)


@pytest.mark.parametrize("mode", MODES)
def test_episodes_that_span_rollouts_keep_their_counters(mode):
    collector = collector_of(vectorized(clockworks(), mode), num_steps=5)
    collector.reset(seed=5)
    rollout = joined([collector.collect() for _ in range(6)])
    for i, (lengths, episodes) in enumerate(zip(LENGTHS, EPISODES)):
        expected = played(Clockwork(lengths), episodes, seed=5 + i)
        assert_same_transitions(transitions(rollout, i), expected)


@pytest.mark.parametrize("mode", MODES)
def test_advantages_of_complete_episodes_are_those_of_each_episode_alone(mode):
    def value(observations):
        return np.sin(observations.astype(np.float32).sum(-1))

    def gae(episodes):
        return advantages.gae(
            episodes.rewards.astype(np.float32),
            value(episodes.observations),
            value(episodes.next_observations),
            episodes.terminated,
            episodes.truncated,
            gamma=GAMMA,
            gae_lambda=0.8,
            valid=episodes.valid,
        ).numpy()

    collector = collector_of(vectorized(clockworks(), mode), num_steps=30)
    collector.reset(seed=5)
    rollout = collector.collect()
    for i, (lengths, episodes) in enumerate(zip(LENGTHS, EPISODES)):
        whole = played(Clockwork(lengths), episodes, seed=5 + i)
        starts = np.flatnonzero(whole.timesteps == 0)
        alone = [
            gae(Rollout(*(field[rows][:, None] for field in whole)))[:, 0]
            for rows in np.split(np.arange(len(whole.rewards)), starts[1:])
        ]
        expected = np.concatenate(alone)
        found = gae(rollout)[rollout.valid[:, i], i][: len(expected)]
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_loss_and_the_step_are_the_same_in_every_autoreset_mode():
    """Of the same whole episodes: what each mode collects after them is left out."""
    results = []
    for mode in MODES:
        env = vectorized(clockworks(), mode)
        agent = perturbed_agent(
            env.single_observation_space,
            env.single_action_space,
            actor=keras_pg.mlp((8,), seed=1),
            critic=keras_pg.mlp((8,), seed=2),
            update_epochs=2,
            num_minibatches=1,
        )
        agent.compile(keras.optimizers.SGD(1e-3), run_eagerly=True)
        collector = collector_of(env, num_steps=30)
        collector.reset(seed=5)
        rollout = collector.collect()
        ends = (rollout.terminated | rollout.truncated) & rollout.valid
        within = np.cumsum(ends, axis=0) - ends < EPISODES
        rollout = rollout._replace(valid=rollout.valid & within)
        logs = agent.train_step(tf.nest.map_structure(tf.constant, rollout))
        results.append([float(logs["loss"]), *agent.get_weights()])
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            np.testing.assert_allclose(two, one, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_the_successor_at_the_end_of_an_episode_is_its_final_observation(mode):
    collector = collector_of(vectorized(clockworks(), mode), num_steps=30)
    collector.reset(seed=0)
    rollout = collector.collect()
    ended = rollout.terminated | rollout.truncated
    # Of the same episode, and one step further than the last.
    same_episode = rollout.next_observations[ended][:, 1] == rollout.observations[ended][:, 1]
    assert ended.sum() > 20 and same_episode.all()
    np.testing.assert_array_equal(
        rollout.next_observations[ended][:, 2], rollout.timesteps[ended] + 1
    )


# Not in SAME_STEP, where Gymnasium itself loses the final observation of such an environment.
@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED, "own"])
def test_environments_that_reuse_their_observation_array_are_collected_as_any_other(mode):
    factories = clockworks(reuse_array=True)
    collector = collector_of(vectorized(factories[:1], mode), num_steps=20)
    collector.reset(seed=5)
    expected = played(Clockwork(LENGTHS[0]), episodes=5, seed=5)
    assert_same_transitions(transitions(collector.collect(), 0), expected)


@pytest.mark.parametrize("id", ["CartPole-v1", "Pendulum-v1", "FrozenLake-v1"])
def test_environments_made_here_step_as_in_gymnasiums_sync_vector_env(id):
    own, _ = make_vector_env(id, 3)
    gymnasiums = gymnasium.make_vec(
        id, 3, "sync", vector_kwargs={"autoreset_mode": AutoresetMode.DISABLED}
    )
    own.action_space.seed(0)
    np.testing.assert_array_equal(own.reset(seed=4)[0], gymnasiums.reset(seed=4)[0])
    episodes = 0
    for _ in range(300):
        actions = own.action_space.sample()
        # Own arrays are overwritten by what comes next.
        step = [np.copy(x) for x in own.step(actions)[:4]]
        for found, expected in zip(step, gymnasiums.step(actions)):
            np.testing.assert_array_equal(found, expected)
            assert found.dtype == expected.dtype
        ended = step[2] | step[3]
        if ended.any():
            episodes += ended.sum()
            np.testing.assert_array_equal(
                own.reset(options={"reset_mask": ended})[0],
                gymnasiums.reset(options={"reset_mask": ended.copy()})[0],
            )
    assert episodes > 2
    own.close(), gymnasiums.close()


def test_rows_are_invalid_exactly_where_the_environment_only_reset_itself():
    env = SyncVectorEnv(clockworks(), autoreset_mode=AutoresetMode.NEXT_STEP)
    collector = collector_of(env, num_steps=5)
    collector.reset(seed=0)
    rollout = joined([collector.collect() for _ in range(6)])
    ended = rollout.terminated | rollout.truncated
    assert rollout.valid[0].all()
    np.testing.assert_array_equal(rollout.valid[1:], ~ended[:-1])
    assert not ended[~rollout.valid].any() and (rollout.rewards[~rollout.valid] == 0).all()


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.DISABLED, "own"])
def test_every_row_is_valid_where_resetting_takes_no_step(mode):
    collector = collector_of(vectorized(clockworks(), mode), num_steps=30)
    collector.reset(seed=0)
    assert collector.collect().valid.all()


@pytest.mark.parametrize("mode", MODES)
def test_environment_steps_are_counted_without_the_resets(mode):
    env = vectorized(clockworks(), mode)
    agent = perturbed_agent(env.single_observation_space, env.single_action_space)
    collector = collector_of(env, num_steps=30)
    collector.reset(seed=0)
    rollout = collector.collect()
    logs = agent.log(rollout, dict.fromkeys(agent.tracked, 0.0))
    stepped = sum(env.steps for env in env.envs)
    assert int(logs["env_steps"]) == rollout.valid.sum() == stepped


def test_rollouts_have_the_shapes_and_dtypes_of_their_signature():
    collector = collector_of(SyncVectorEnv(clockworks(DiscreteClockwork)), num_steps=4)
    collector.reset(seed=0)
    for field, spec in zip(collector.collect(), collector.signature):
        assert field.shape == tuple(spec.shape) and field.dtype == spec.dtype.as_numpy_dtype


def test_rollouts_do_not_change_once_they_are_collected():
    collector = collector_of(make_vector_env(lambda: Clockwork((4,)), 2)[0], num_steps=5)
    collector.reset(seed=0)
    rollout = collector.collect()
    before = Rollout(*map(np.copy, rollout))
    collector.collect()
    for now, then in zip(rollout, before):
        np.testing.assert_array_equal(now, then)


# -------------------------------------------------------------------------- seeds and autoreset


def test_environment_i_is_seeded_with_seed_plus_i():
    collector = collector_of(make_vector_env(Clockwork, 4)[0], num_steps=1)
    collector.reset(seed=40)
    np.testing.assert_array_equal(collector.collect().observations[0, :, 0], [40, 41, 42, 43])


def test_first_observations_differ_between_environments_and_recur_with_the_seed():
    collector = collector_of(make_vector_env("CartPole-v1", 4)[0], num_steps=1)
    firsts = []
    for seed in (0, 0, 100):
        collector.reset(seed)
        firsts.append(collector.collect().observations[0])
    assert len(np.unique(firsts[0], axis=0)) == 4
    np.testing.assert_array_equal(firsts[0], firsts[1])
    assert not np.isin(firsts[2], firsts[0]).any()


class Silent(VectorWrapper):
    """A vector environment that does not say when it resets itself."""

    @property
    def metadata(self):
        return {}


def test_missing_autoreset_metadata_warns_and_is_taken_for_next_step():
    env = SyncVectorEnv(clockworks(), autoreset_mode=AutoresetMode.NEXT_STEP)
    with pytest.warns(UserWarning, match="autoreset_mode.*NEXT_STEP"):
        collector = collector_of(Silent(env), num_steps=30)
    collector.reset(seed=5)
    expected = played(Clockwork(LENGTHS[0]), EPISODES[0], seed=5)
    assert_same_transitions(transitions(collector.collect(), 0), expected)


# -------------------------------------------------------------------- other people's environments


def assert_continuous(rollout):
    """A NEXT_STEP rollout of CartPole in which each row goes on where the one before ended."""
    ended = rollout.terminated | rollout.truncated
    assert ended.any()
    # NEXT_STEP: the row after an end only leads from the final to the first observation.
    np.testing.assert_array_equal(rollout.valid[1:], ~ended[:-1])
    np.testing.assert_array_equal(rollout.next_observations[:-1], rollout.observations[1:])
    after = np.where(rollout.valid, rollout.timesteps + 1, 0)
    np.testing.assert_array_equal(rollout.timesteps[1:], after[:-1])
    # CartPole gives 1 a step.
    np.testing.assert_array_equal(rollout.rewards, rollout.valid)
    np.testing.assert_array_equal(
        rollout.episode_returns[rollout.valid], rollout.timesteps[rollout.valid] + 1
    )


@pytest.mark.filterwarnings("ignore:EnvPool seeds are fixed")
def test_envpool_gives_valid_rollouts():
    env = envpool.make("CartPole-v1", env_type="gymnasium", num_envs=4, seed=3)
    collector = collector_of(env, num_steps=40)
    collector.reset(seed=0)
    assert_continuous(joined([collector.collect() for _ in range(3)]))


def test_gymnasiums_own_vector_implementations_give_valid_rollouts():
    env = gymnasium.make_vec("CartPole-v1", 4, vectorization_mode="vector_entry_point")
    collector = collector_of(env, num_steps=40)
    collector.reset(seed=0)
    assert_continuous(joined([collector.collect() for _ in range(3)]))


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_async_environments_give_the_rollouts_of_sync_ones(mode):
    factories = [lambda: gymnasium.make("CartPole-v1")] * 2
    rollouts = []
    for kind in (SyncVectorEnv, AsyncVectorEnv):
        env = kind(factories, autoreset_mode=mode)
        agent = perturbed_agent(env.single_observation_space, env.single_action_space)
        collector = collector_for(env, agent.actor, num_steps=40, gamma=GAMMA)
        collector.reset(seed=7)
        rng = np.random.default_rng(0)
        rollouts.append(joined([collector.collect(rng), collector.collect(rng)]))
        env.close()
    assert (rollouts[0].terminated & rollouts[0].valid).any()
    for sync, async_ in zip(*rollouts):
        np.testing.assert_array_equal(sync, async_)


# ---------------------------------------------------------------------------------------- actions


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rollouts_hold_the_raw_sample_and_environments_get_the_clipped_one(dtype):
    space = Box(-0.1, 0.1, (2,), dtype)
    env, _ = make_vector_env(Recording(space))
    agent = perturbed_agent(env.single_observation_space, space)
    collector = collector_for(env, agent.actor, num_steps=50, gamma=GAMMA)
    collector.reset(seed=0)
    raw = collector.collect(np.random.default_rng(0)).actions[:, 0]
    received = env.envs[0].received
    assert 0.1 < (np.abs(raw) > 1.0).mean() < 0.9  # beyond the bounds, which are at ±1
    assert len(received) == 50
    assert all(action.dtype == dtype and space.contains(action) for action in received)
    np.testing.assert_allclose(received, 0.1 * np.clip(raw, -1.0, 1.0), rtol=1e-6)


def test_rollouts_hold_squashed_actions_before_squashing():
    space = Box(np.float32([-1, 2]), np.float32([1, 6]))
    env, _ = make_vector_env(Recording(space))
    agent = perturbed_agent(env.single_observation_space, space, squash_actions=True)
    collector = collector_for(env, agent.actor, num_steps=50, gamma=GAMMA)
    collector.reset(seed=0)
    raw = collector.collect(np.random.default_rng(0)).actions[:, 0]
    received = env.envs[0].received
    assert (np.abs(raw) > 1).any() and all(space.contains(action) for action in received)
    np.testing.assert_allclose(received, [0, 4] + [1, 2] * np.tanh(raw), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.int64, np.int32])
def test_discrete_actions_count_from_zero_in_rollouts_and_from_the_start_in_environments(dtype):
    space = Discrete(3, start=5, dtype=dtype)
    env, _ = make_vector_env(Recording(space))
    agent = perturbed_agent(env.single_observation_space, space)
    collector = collector_for(env, agent.actor, num_steps=50, gamma=GAMMA)
    collector.reset(seed=0)
    raw = collector.collect(np.random.default_rng(0)).actions[:, 0]
    received = env.envs[0].received
    assert set(raw) == {0, 1, 2}
    assert all(space.contains(action) for action in received)
    np.testing.assert_array_equal(received, raw + 5)


@pytest.mark.parametrize("vectorization", ["sync", "async"])
@pytest.mark.parametrize("space", [MultiDiscrete([2, 3], start=[5, -1]), MultiBinary(4)], ids=str)
def test_actions_of_several_components_reach_the_environment_as_members_of_its_space(
    space, vectorization
):
    class Counting(Recording):
        """The reward tells what was received; an action outside the space is an error."""

        def step(self, action):
            assert self.action_space.contains(action)
            observation, _, *rest = super().step(action)
            return observation, float(np.dot(action, 10.0 ** np.arange(len(action)))), *rest

    env, _ = make_vector_env(lambda: Counting(space), 2, vectorization)
    agent = perturbed_agent(env.single_observation_space, space)
    collector = collector_for(env, agent.actor, num_steps=50, gamma=GAMMA)
    collector.reset(seed=0)
    rollout = collector.collect(np.random.default_rng(0))
    env.close()
    raw = np.asarray(rollout.actions)
    assert raw.shape == (50, 2, *space.shape) and np.all(raw.min(axis=(0, 1)) == 0)
    start = getattr(space, "start", np.zeros(space.shape))
    expected = (raw + start) @ 10.0 ** np.arange(space.shape[0])
    np.testing.assert_array_equal(rollout.rewards[rollout.valid], expected[rollout.valid])


# ----------------------------------------------------------------------------------------- errors


def faulty_collector(fault, at, engine=None):
    """Collects 4 steps from three environments, of which number 1 goes wrong."""
    env = SyncVectorEnv([Faulty, lambda: Faulty(fault, at), Faulty])
    collector = collector_of(env, 4, engine or NeutralEngine())
    collector.reset(seed=0)
    return collector


def test_a_reward_that_is_nan_raises_naming_field_environment_and_step():
    collector = faulty_collector("reward", at=6)
    collector.collect()
    with pytest.raises(FloatingPointError, match=r"reward.*nan.*environment 1 at step 6"):
        collector.collect()


def test_an_infinite_observation_raises_naming_field_environment_step_and_index():
    collector = faulty_collector("observation", at=2)
    pattern = r"observation.*inf.*index \(2,\).*environment 1 at step 2"
    with pytest.raises(FloatingPointError, match=pattern):
        collector.collect()


@pytest.mark.parametrize("at", [-1, 3])
def test_an_infinite_observation_that_is_first_or_last_raises(at):
    collector = faulty_collector("observation", at=at)
    with pytest.raises(FloatingPointError, match=r"observation.*inf.*environment 1"):
        collector.collect()


@pytest.mark.parametrize("at", [-1, 1])
def test_an_environment_that_chokes_on_its_own_nan_is_told_of_the_nan(at):
    # Its `step` refuses the NaN action that the policy answers with.
    collector = faulty_collector("observation", at, NanEngine())
    with pytest.raises(FloatingPointError, match=r"observation.*environment 1"):
        collector.collect()


@pytest.mark.parametrize(
    "observe, warns",
    [
        (lambda t: 1.7e9 + t, True),  # seconds since 1970
        (lambda t: 1.7e9 + 1e6 * t, False),
        (lambda t: 1.7e9, False),
        (lambda t: 1e300 * t, False),
    ],
)
def test_observations_that_float32_cannot_tell_apart_are_warned_of_once(observe, warns, recwarn):
    class Clock(gymnasium.Env):
        observation_space = Box(-np.inf, np.inf, (2,), np.float64)
        action_space = Box(-1, 1, (1,))

        def reset(self, *, seed=None, options=None):
            self.t = 0
            return np.array([0.0, observe(0)]), {}

        def step(self, action):
            self.t += 1
            return np.array([self.t, observe(self.t)]), 0.0, False, False, {}

    collector = collector_of(SerialVectorEnv([Clock]), num_steps=8, engine=NeutralEngine())
    collector.reset(seed=0)
    for _ in range(2):
        collector.collect()
    said = [str(w.message) for w in recwarn if "float32" in str(w.message)]
    assert len(said) == warns
    assert all("dimension 1 went from 1700000000.0 to" in message for message in said)


def test_environments_are_closed_when_a_later_one_cannot_be_made():
    made, closed = [], []

    def make():
        if len(made) == 2:
            raise RuntimeError("no licence")
        made.append(Clockwork((3,)))
        made[-1].close = lambda env=made[-1]: closed.append(env)
        return made[-1]

    with pytest.raises(RuntimeError, match="no licence"):
        make_vector_env(make, 3)
    assert closed == made


def test_an_error_in_the_environment_is_raised_as_it_is_with_its_traceback():
    collector = faulty_collector("error", at=2)
    with pytest.raises(ZeroDivisionError) as caught:
        collector.collect()
    frames = traceback.extract_tb(caught.value.__traceback__)
    assert frames[-1].name == "step" and frames[-1].filename.endswith("environments.py")


# ------------------------------------------------------------------------ what is an environment?


def test_an_id_or_a_factory_is_copied_and_ours_to_close():
    for env in ("CartPole-v1", Clockwork, lambda: Clockwork((2,))):
        made, ours = make_vector_env(env)
        assert isinstance(made, SyncVectorEnv) and made.num_envs == 8 and ours
        assert len(set(map(id, made.envs))) == 8
        assert make_vector_env(env, 3)[0].num_envs == 3


def test_a_vector_environment_is_taken_as_it_is_and_not_ours_to_close():
    env = SyncVectorEnv([Clockwork] * 2)
    assert make_vector_env(env) == (env, False)
    assert make_vector_env(env, 2) == (env, False)


def test_a_single_environment_is_used_itself_and_not_ours_to_close():
    env = Clockwork((2,))
    for num_envs in (None, 1):
        made, ours = make_vector_env(env, num_envs)
        assert made.num_envs == 1 and made.envs[0] is env and not ours
    collector = collector_of(made, num_steps=4)
    collector.reset(seed=9)
    assert_same_transitions(transitions(collector.collect(), 0), played(Clockwork((2,)), 2, seed=9))


def test_async_environments_run_in_processes_of_their_own():
    env, ours = make_vector_env(Clockwork, 2, "async")
    assert isinstance(env, ProcessVectorEnv) and env.num_envs == 2 and ours
    env.close()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("CartPole-v1", 2, "asynch"), ValueError, "vectorization.*'asynch'"),
        ((SyncVectorEnv([Clockwork] * 2), 3), ValueError, "num_envs=3.* has 2"),
        ((Clockwork(), 3), ValueError, "num_envs=3.*factory"),
        ((Clockwork(), 1, "async"), ValueError, "'async'.*factory"),
        (("CartPole-v1", 0), ValueError, "num_envs.*0"),
        (("CartPole-v1", -1), ValueError, "num_envs.*-1"),
        (("CartPole-v1", 1.5), ValueError, "num_envs must be a positive integer, received 1.5"),
        (("CartPole-v1", "8"), ValueError, "num_envs must be a positive integer, received '8'"),
        ((42,), TypeError, "42"),
        ((None,), TypeError, "None"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        make_vector_env(*arguments)
