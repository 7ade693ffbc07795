"""PPO's train step against hand calculation, identities, and known answers."""

import gymnasium
import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import keras_pg
from keras_pg.agents.ppo import Batch
from keras_pg.returns import gae
from keras_pg.rollouts.minibatches import Minibatches
from stepping import make_rollout, step, weights

OBSERVATIONS = gymnasium.spaces.Box(-1.0, 1.0, (3,), np.float32)
DISCRETE = gymnasium.spaces.Discrete(3)
CONTINUOUS = gymnasium.spaces.Box(-0.5, 2.0, (2,), np.float32)


def make_agent(action_space=DISCRETE, actor=None, critic=None, optimizer=None, **settings):
    settings = {"seed": 0, "normalize_observations": False, **settings}
    actor, critic = actor or keras_pg.mlp((8,), seed=1), critic or keras_pg.mlp((8,), seed=2)
    agent = keras_pg.PPO(actor, critic, **settings)
    agent.build(OBSERVATIONS, action_space)
    agent.compile(optimizer or keras.optimizers.Adam(1e-2), jit_compile=False)
    rng = np.random.default_rng(1)
    for variable in agent.trainable_variables:  # away from the near-uniform start
        variable.assign_add(0.3 * rng.normal(size=variable.shape))
    return agent


@keras.saving.register_keras_serializable("tests")
class Dropping(keras.Model):
    """An encoder whose training mode differs from its inference mode."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = keras.layers.Dense(8, "tanh")
        self.normalization = keras.layers.BatchNormalization()
        self.dropout = keras.layers.Dropout(0.5)

    def call(self, x, training=False):
        x = self.normalization(self.dense(x), training=training)
        return self.dropout(x, training=training)


@pytest.mark.parametrize(
    "action_space, squash", [(DISCRETE, False), (CONTINUOUS, False), (CONTINUOUS, True)]
)
def test_ratio_is_one_before_the_first_gradient_step(action_space, squash):
    """Pitfall 5, with dropout, batch normalization, squashing and a running normalizer."""
    with pytest.warns(UserWarning, match="batch_normalization.*LayerNormalization"):
        agent = make_agent(
            action_space,
            Dropping(),
            Dropping(),
            squash_actions=squash,
            normalize_observations=True,
            update_epochs=2,
            num_minibatches=1,
        )
    agent.actor.update_normalization(
        tf.random.stateless_normal((50, 3), (1, 2)) * 3 + 1, [True] * 50
    )
    ratios = []

    class Recording(keras_pg.PPO):
        def surrogate_loss(self, batch):
            log_probs = policy.log_prob(self.actor(batch.observations), batch.actions)
            ratios.append(tf.exp(log_probs - batch.old_log_probs).numpy())
            return super().surrogate_loss(batch)

    policy = agent.actor.action_distribution
    agent.__class__ = Recording
    for _ in range(2):  # the second rollout meets a normalizer that has moved, and new weights
        agent.train_step(tf.nest.map_structure(tf.constant, make_rollout(agent)))
    assert len(ratios) == 4
    for first_of_its_update in (ratios[0], ratios[2]):
        assert np.max(np.abs(first_of_its_update - 1.0)) < 1e-5
    assert np.max(np.abs(ratios[1] - 1.0)) > 1e-3


@pytest.mark.parametrize("action_space", [DISCRETE, CONTINUOUS])
def test_one_epoch_one_minibatch_is_the_actor_critic_step(action_space):
    """At r = 1 the clipped surrogate's gradient is the policy gradient E[Â ∇ log π]."""
    agent = make_agent(
        action_space,
        optimizer=keras.optimizers.SGD(0.1),
        update_epochs=1,
        num_minibatches=1,
        entropy_coef=0.01,
        normalize_advantages=False,
    )
    rollout = make_rollout(agent)
    before, variables = weights(agent), agent.trainable_variables
    observations = rollout.observations.reshape(-1, 3)
    next_observations = rollout.next_observations.reshape(-1, 3)
    actions = rollout.actions.reshape((32, -1))
    values = agent.critic(observations)
    psi = gae(
        tf.constant(rollout.rewards),
        tf.reshape(values, (8, 4)),
        tf.reshape(agent.critic(next_observations), (8, 4)),
        rollout.terminated,
        rollout.truncated,
        gamma=0.99,
        gae_lambda=0.95,
    )
    psi = tf.reshape(psi, [-1])
    with tf.GradientTape() as tape:
        parameters = agent.actor(observations)
        if action_space is DISCRETE:
            log_pi = tf.nn.log_softmax(parameters)
            log_probs = tf.gather(log_pi, actions[:, 0], batch_dims=1)
            entropy = -tf.reduce_sum(tf.exp(log_pi) * log_pi, axis=-1)
        else:
            mean, log_std = tf.split(parameters, 2, axis=-1)
            normal = tfp.distributions.Normal(mean, tf.exp(log_std))
            log_probs = tf.reduce_sum(normal.log_prob(actions), axis=-1)
            entropy = tf.reduce_sum(normal.entropy(), axis=-1)
        policy_loss = -tf.reduce_mean(psi * log_probs)
        value_loss = tf.reduce_mean((agent.critic(observations) - (psi + values)) ** 2)
        loss = policy_loss + 0.5 * value_loss - 0.01 * tf.reduce_mean(entropy)
    gradients = tape.gradient(loss, variables)
    step(agent, rollout)
    for old, gradient, variable in zip(before, gradients, variables, strict=True):
        np.testing.assert_allclose(variable.numpy(), old - 0.1 * gradient, atol=1e-6)


def test_an_iteration_is_the_papers_loop():
    """Several epochs of minibatches, far enough for every clip to bite, against a plain loop."""
    settings = {
        "clip_ratio": 0.1,
        "value_clip": 0.2,
        "entropy_coef": 0.02,
        "value_coef": 0.7,
        "gamma": 0.9,
        "gae_lambda": 0.8,
        "update_epochs": 3,
        "num_minibatches": 2,
    }
    agent, reference = (
        make_agent(optimizer=keras.optimizers.SGD(0.5), **settings) for _ in range(2)
    )
    invalid = [(2, 1), (5, 3)]
    rollout = make_rollout(agent, invalid=invalid)
    actor, critic = reference.actor, reference.critic

    observations = rollout.observations.reshape(-1, 3)
    actions, valid = rollout.actions.reshape(-1), rollout.valid.reshape(-1)
    old_log_pi = tf.nn.log_softmax(actor(observations)).numpy()
    values = critic(observations).numpy().reshape(8, 4)
    next_values = critic(rollout.next_observations.reshape(-1, 3)).numpy().reshape(8, 4)
    psi = np.zeros((9, 4))
    for t in reversed(range(8)):
        for n in range(4):
            if not rollout.valid[t, n]:
                continue
            bootstrap = 0.0 if rollout.terminated[t, n] else 0.9 * next_values[t, n]
            delta = rollout.rewards[t, n] + bootstrap - values[t, n]
            ended = rollout.terminated[t, n] or rollout.truncated[t, n]
            psi[t, n] = delta + (0.0 if ended else 0.9 * 0.8 * psi[t + 1, n])
    psi, values = psi[:8].reshape(-1), values.reshape(-1)
    returns = psi + values

    order = Minibatches(32, seed=tf.constant([0, 0], tf.int64), epochs=3, num_minibatches=2)
    clipped_ratios, clipped_values, clip_fractions = 0, 0, []
    for rows in order.split(tf.range(32)).numpy():
        rows = rows[valid[rows]]
        normalized = (psi[rows] - psi[rows].mean()) / (psi[rows].std() + 1e-8)
        losses, clipped_before = [], clipped_ratios
        with tf.GradientTape() as tape:
            for row, advantage in zip(rows, normalized):
                state = observations[row][None]
                log_pi = tf.nn.log_softmax(actor(state))[0]
                ratio = tf.exp(log_pi[actions[row]] - old_log_pi[row, actions[row]])
                near = tf.clip_by_value(ratio, 0.9, 1.1)
                objective = tf.minimum(ratio * advantage, near * advantage)
                value = critic(state)[0]
                near_value = values[row] + tf.clip_by_value(value - values[row], -0.2, 0.2)
                error = tf.maximum((value - returns[row]) ** 2, (near_value - returns[row]) ** 2)
                entropy = -tf.reduce_sum(tf.exp(log_pi) * log_pi)
                losses.append(-objective + 0.7 * error - 0.02 * entropy)
                clipped_ratios += float(ratio) != float(near)
                clipped_values += float(value) != float(near_value)
            loss = tf.add_n(losses) / len(rows)
        clip_fractions.append((clipped_ratios - clipped_before) / len(rows))
        variables = reference.trainable_variables
        for variable, gradient in zip(variables, tape.gradient(loss, variables), strict=True):
            variable.assign_sub(0.5 * gradient)
    assert min(clipped_ratios, clipped_values) > 10  # the test means something

    logs = step(agent, rollout)
    assert logs["clip_fraction"] == pytest.approx(np.mean(clip_fractions))
    for a, b in zip(weights(agent), weights(reference), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_rows_in_which_environments_reset_might_as_well_not_be_there():
    """A NEXT_STEP rollout holds one row more for each episode that ended in it."""
    plain, with_resets = (
        make_agent(
            optimizer=keras.optimizers.SGD(0.1),
            num_minibatches=1,
            update_epochs=3,
            normalize_observations=True,
            normalize_rewards=True,
        )
        for _ in range(2)
    )
    rollout = make_rollout(plain, T=9, N=1)
    ends = np.zeros((9, 1), bool)
    ends[2], ends[6] = True, True
    rollout = rollout._replace(terminated=ends, truncated=np.zeros_like(ends))
    longer = tf.nest.map_structure(lambda x: np.insert(x, [3, 7], x[:1], axis=0), rollout)
    longer.valid[[3, 8]] = False
    longer.terminated[[3, 8]] = False
    first, second = step(plain, rollout), step(with_resets, longer)
    for name in set(first) - {"episode_return", "episode_length"}:
        assert first[name] == pytest.approx(second[name], rel=1e-5, abs=1e-6), name
    for a, b in zip(plain.weights, with_resets.weights, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-5, atol=1e-6)


def compiled_step(agent, rollout):
    """One train step through Keras's own train function."""
    agent.make_train_function()
    rollout = tf.nest.map_structure(tf.constant, rollout)
    logs = agent.train_function(iter(tf.data.Dataset.from_tensors(rollout)))
    return {name: float(value) for name, value in logs.items()}


def test_hyperparameters_that_change_are_not_baked_into_the_compiled_step():
    settings = {"num_minibatches": 2, "update_epochs": 2}
    compiled, eager = (
        make_agent(optimizer=keras.optimizers.SGD(0.5), clip_ratio=0.3, **settings)
        for _ in range(2)
    )
    compiled.compile(keras.optimizers.SGD(0.5), jit_compile=False)
    rollouts = [make_rollout(compiled, seed=seed) for seed in (0, 1)]
    compiled_step(compiled, rollouts[0])
    eager.train_step(tf.nest.map_structure(tf.constant, rollouts[0]))
    middle = weights(eager)
    for changed in (compiled, eager):
        changed.clip_ratio, changed.entropy_coef, changed.value_coef = 0.01, 0.5, 0.0
        changed.optimizer.learning_rate = 0.3
    compiled_step(compiled, rollouts[1])
    unchanged = make_agent(optimizer=keras.optimizers.SGD(0.5), clip_ratio=0.3, **settings)
    for variable, value in zip(unchanged.trainable_variables, middle):
        variable.assign(value)
    for other in (eager, unchanged):
        other.iteration.assign(1)
        other.train_step(tf.nest.map_structure(tf.constant, rollouts[1]))
    for a, b in zip(weights(compiled), weights(eager), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert max(np.abs(a - b).max() for a, b in zip(weights(eager), weights(unchanged))) > 1e-2


def test_schedules_are_not_baked_into_the_compiled_step():
    def scheduled(value, end):
        return keras.optimizers.schedules.PolynomialDecay(value, 8, end)

    settings = {"num_minibatches": 2, "update_epochs": 2}
    compiled, eager, constant = (
        make_agent(
            optimizer=keras.optimizers.SGD(scheduled(0.5, 0.0)),
            clip_ratio=scheduled(0.3, 0.001) if i < 2 else 0.3,
            **settings,
        )
        for i in range(3)
    )
    compiled.compile(keras.optimizers.SGD(scheduled(0.5, 0.0)), jit_compile=False)
    for seed in (0, 1):
        rollout = make_rollout(eager, seed=seed)
        compiled_step(compiled, rollout)
        for other in (eager, constant):
            other.train_step(tf.nest.map_structure(tf.constant, rollout))
    for a, b in zip(weights(compiled), weights(eager), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert max(np.abs(a - b).max() for a, b in zip(weights(eager), weights(constant))) > 1e-3


def test_the_compiled_step_too_starts_from_the_policy_that_collected():
    agent = make_agent(CONTINUOUS, normalize_observations=True, num_minibatches=1, update_epochs=1)
    agent.compile(jit_compile=True)
    for seed in (0, 1):
        logs = compiled_step(agent, make_rollout(agent, seed=seed))
        # k3 of a log-ratio x is x²/2: below this, |ratio - 1| < 1e-5.
        assert 0 <= logs["approx_kl"] < 1e-10 and logs["clip_fraction"] == 0


@pytest.mark.parametrize(
    "action_space, settings",
    [
        (DISCRETE, {"target_kl": 0.02, "update_epochs": 10, "normalize_rewards": True}),
        pytest.param(
            CONTINUOUS,
            {"squash_actions": True, "value_clip": 0.2, "entropy_coef": 0.01},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_eager_graph_and_xla_agree(action_space, settings):
    settings = {"num_minibatches": 4, "update_epochs": 2, **settings}
    agents = [make_agent(action_space, **settings) for _ in range(3)]
    rollout = make_rollout(agents[0], invalid=[(3, 2)])
    tensors = tf.nest.map_structure(tf.constant, rollout)
    eager, graph, xla = agents
    logs = [
        eager.train_step(tensors),
        tf.function(graph.train_step, autograph=False)(tensors),
        tf.function(xla.train_step, autograph=False, jit_compile=True)(tensors),
    ]
    for other, other_logs in ((graph, logs[1]), (xla, logs[2])):
        for a, b in zip(eager.trainable_variables, other.trainable_variables, strict=True):
            # Adam divides by the root of the second moment: rounding of 1e-7 grows to 1e-5.
            np.testing.assert_allclose(a.numpy(), b.numpy(), atol=2e-5)
        assert float(logs[0]["n_updates"]) == float(other_logs["n_updates"])
        for name in ("loss", "approx_kl", "entropy", "explained_variance"):
            assert float(logs[0][name]) == pytest.approx(float(other_logs[name]), abs=1e-5)


def test_garbage_in_invalid_rows_changes_nothing():
    """Pitfall 2: what a NEXT_STEP environment returns while it resets is no transition."""
    rows = [(2, 1), (5, 3)]
    clean, dirty = (
        make_agent(CONTINUOUS, num_minibatches=4, update_epochs=2, value_clip=0.2, entropy_coef=0.1)
        for _ in range(2)
    )
    rollout = make_rollout(clean, invalid=rows)
    polluted = rollout._replace(
        **{
            name: getattr(rollout, name).copy()
            for name in ("actions", "rewards", "next_observations")
        }
    )
    for row in rows:
        polluted.actions[row] = 1e9
        polluted.rewards[row] = 1e9
        polluted.next_observations[row] = 1e9
    first, second = step(clean, rollout), step(dirty, polluted)
    assert first == second
    for a, b in zip(weights(clean), weights(dirty), strict=True):
        np.testing.assert_array_equal(a, b)
    assert int(clean.env_steps) == 8 * 4 - 2


def test_the_step_that_breaks_target_kl_is_not_applied():
    agent = make_agent(
        optimizer=keras.optimizers.SGD(2.0), target_kl=0.01, update_epochs=50, num_minibatches=1
    )
    history = []

    class Recording(keras_pg.PPO):
        def surrogate_loss(self, batch):
            rows = super().surrogate_loss(batch)
            history.append(float(tf.reduce_mean(rows["approx_kl"])))
            return rows

    agent.__class__ = Recording
    before = int(agent.optimizer.iterations)
    logs = agent.train_step(tf.nest.map_structure(tf.constant, make_rollout(agent)))
    applied = int(agent.optimizer.iterations) - before
    assert float(logs["n_updates"]) == applied < 50
    assert history[-1] > 0.015 and all(kl <= 0.015 for kl in history[:-1])
    assert len(history) == applied + 1
    assert float(logs["approx_kl"]) <= 0.015  # the mean of the steps that were taken


def test_normalizer_is_frozen_during_the_update_and_then_moves_once():
    agent = make_agent(normalize_observations=True, num_minibatches=2, update_epochs=3)
    rollout = make_rollout(agent, invalid=[(0, 0)])
    step(agent, rollout)
    rows = rollout.observations.reshape(-1, 3)[1:]
    for network in (agent.actor, agent.critic):
        assert float(network.normalization.count) == 31
        np.testing.assert_allclose(network.normalization.mean.numpy(), rows.mean(0), rtol=1e-6)
        np.testing.assert_allclose(network.normalization.variance(), rows.var(0), rtol=1e-6)


def test_states_and_successors_are_judged_by_the_same_statistics():
    """V of a final observation is what V is of the same observation anywhere else."""
    agent = make_agent(normalize_observations=True, num_minibatches=1, update_epochs=1)
    rollout = make_rollout(agent)
    step(agent, rollout)  # so that there are statistics
    rollout = rollout._replace(
        next_observations=rollout.observations,
        truncated=np.ones_like(rollout.truncated),
        terminated=np.zeros_like(rollout.terminated),
    )
    evaluated = agent.criticize(tf.nest.map_structure(tf.constant, rollout))
    np.testing.assert_array_equal(evaluated.next_values, evaluated.values)


def test_reward_scaling_leaves_the_rollout_raw():
    agent = make_agent(normalize_rewards=True, num_minibatches=1, update_epochs=1)
    rollout = make_rollout(agent)
    expected = rollout.discounted_returns.std()
    scaled = agent.criticize(tf.nest.map_structure(tf.constant, rollout)).rewards
    np.testing.assert_allclose(scaled[-1], rollout.rewards[-1] / expected, rtol=1e-5)
    step(agent, rollout)
    assert float(agent.reward_scaling.variance()) == pytest.approx(expected**2, rel=1e-6)


def test_gradients_reach_only_their_own_network():
    agent = make_agent()
    rollout = make_rollout(agent)
    observations, actions = rollout.observations.reshape(-1, 3), rollout.actions.reshape(-1)
    parameters = agent.actor(observations)
    old = agent.actor.action_distribution.log_prob(parameters, actions)
    values, returns, advantage = (
        tf.zeros(32),
        tf.ones(32),
        tf.random.stateless_normal((32,), (0, 1)),
    )
    with tf.GradientTape(persistent=True) as tape:
        rows = agent.surrogate_loss(
            Batch(
                *(observations, actions, parameters, old, parameters),
                *(values, returns, advantage),
            )
        )
    actor, critic = agent.actor.trainable_variables, agent.critic.trainable_variables
    assert all(g is None for g in tape.gradient(rows["policy_loss"], critic))
    assert all(g is None for g in tape.gradient(rows["value_loss"], actor))
    assert tf.linalg.global_norm(tape.gradient(rows["policy_loss"], actor)) > 1e-3
