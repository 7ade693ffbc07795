"""A2C and REINFORCE: known gradients, and the identities that tie them to each other and to PPO."""

import gymnasium
import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_pg
from environments import Clockwork
from keras_pg.advantages import (
    GAE,
    ActionAdvantage,
    NStep,
    ReturnMinusBaseline,
    TDResidual,
    get,
)
from stepping import (
    ACTION_SPACES,
    CONTINUOUS,
    OBSERVATIONS,
    built,
    make_rollout,
    step,
    weights,
)
from tabular import TabularEnv, chain, exact_gradient

every_space = pytest.mark.parametrize("space", ACTION_SPACES.values(), ids=ACTION_SPACES)
CRITICS = ["gae", "td", "reward_to_go", "advantage"]


@every_space
@pytest.mark.parametrize("advantage", CRITICS)
def test_one_epoch_of_ppo_in_one_minibatch_is_the_step_of_a2c(space, advantage):
    """Every ratio is 1, and so the gradient of the surrogate is the policy gradient."""
    settings = {"advantage": advantage, "gae_lambda": 0.9, "entropy_coef": 0.01}
    a2c = built(keras_pg.A2C, space, normalize_advantages=True, **settings)
    ppo = built(keras_pg.PPO, space, update_epochs=1, num_minibatches=1, **settings)
    rollout = make_rollout(a2c, invalid=[(2, 1)])
    step(a2c, rollout, eagerly=True), step(ppo, rollout, eagerly=True)
    for one, other in zip(weights(a2c), weights(ppo), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-6)


@every_space
def test_the_step_is_that_of_the_objective_row_by_row(space):
    agent = built(keras_pg.A2C, space, entropy_coef=0.02, value_coef=0.7, learning_rate=1.0)
    rollout = make_rollout(agent, invalid=[(0, 0), (5, 2)])
    values, next_values = (
        tf.reshape(agent.critic(x.reshape(-1, 3)), (8, 4)).numpy()
        for x in (rollout.observations, rollout.next_observations)
    )
    psi = np.zeros((8, 4))
    for n in range(4):
        for t in reversed(range(8)):
            if not rollout.valid[t, n]:
                continue
            done = rollout.terminated[t, n] or rollout.truncated[t, n]
            target = rollout.rewards[t, n]
            target += 0.99 * next_values[t, n] * (not rollout.terminated[t, n])
            later = 0.0 if done or t == 7 or not rollout.valid[t + 1, n] else psi[t + 1, n]
            psi[t, n] = target - values[t, n] + 0.99 * later
    policy, variables = agent.actor.action_distribution, agent.trainable_variables
    with tf.GradientTape() as tape:
        loss, rows = 0.0, 0
        for t, n in np.ndindex(8, 4):
            if rollout.valid[t, n]:
                observation = rollout.observations[t, n][None]
                parameters = agent.actor(observation)
                log_prob = policy.log_prob(parameters, rollout.actions[t, n][None])[0]
                error = agent.critic(observation)[0] - (psi[t, n] + values[t, n])
                loss += 0.7 * error**2 - log_prob * psi[t, n]
                loss -= 0.02 * policy.entropy(parameters)[0]
                rows += 1
        loss /= rows
    expected = [v.numpy() - g.numpy() for v, g in zip(variables, tape.gradient(loss, variables))]
    logs = step(agent, rollout, eagerly=True)
    np.testing.assert_allclose(logs["loss"], float(loss), rtol=1e-5)
    for found, wanted in zip(weights(agent), expected, strict=True):
        np.testing.assert_allclose(found, wanted, atol=5e-6)


def test_a_baseline_of_zero_is_no_baseline():
    agents = [
        built(keras_pg.REINFORCE, advantage=advantage)
        for advantage in ("reward_to_go", ReturnMinusBaseline(lambda s: tf.zeros(s.shape[0])))
    ]
    rollout = make_rollout(agents[0])
    for agent in agents:
        step(agent, rollout, eagerly=True)
    for one, other in zip(*map(weights, agents), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_running_mean_is_that_of_the_returns_before_this_rollout():
    agent = built(keras_pg.REINFORCE, advantage=ReturnMinusBaseline("mean"), gamma=0.9)
    plain = built(keras_pg.REINFORCE, advantage="reward_to_go", gamma=0.9)
    first, second = make_rollout(agent, seed=1, invalid=[(1, 1)]), make_rollout(agent, seed=2)
    returns = plain.advantage(plain.criticize(first)).numpy()[first.valid]
    step(agent, first, eagerly=True)
    np.testing.assert_allclose(
        agent.advantage(agent.criticize(second)),
        plain.advantage(plain.criticize(second)) - returns.mean(),
        rtol=1e-5,
        atol=1e-6,
    )


@every_space
def test_a_critic_of_actions_is_regressed_on_its_targets(space):
    agent = built(keras_pg.A2C, space, advantage="advantage", gae_lambda=0.0, learning_rate=0.05)
    rollout = make_rollout(agent, T=16)
    train_step = tf.function(agent.train_step, autograph=False)
    losses = [float(train_step(rollout)["value_loss"]) for _ in range(60)]
    assert losses[-1] < 0.7 * losses[0]


def test_the_expectation_of_a_critic_of_discrete_actions_is_the_sum_over_actions():
    agent = built(keras_pg.A2C, gymnasium.spaces.Discrete(3, start=5), advantage="q")
    observations = np.random.default_rng(0).normal(size=(7, 3)).astype("float32")
    probabilities = tf.nn.softmax(agent.actor(observations)).numpy()
    expected = sum(
        probabilities[:, i] * agent.critic(observations, np.full(7, 5 + i)) for i in range(3)
    )
    found = agent.critic.expectation(observations, agent.actor, seed=[0, 0])
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_expectation_of_a_critic_of_continuous_actions_is_a_mean_over_the_policy():
    critic = keras_pg.ActionCritic(
        OBSERVATIONS, CONTINUOUS, normalize_observations=False, action_samples=4000, seed=3
    )
    agent = built(
        lambda actor, **settings: keras_pg.A2C(actor, critic, **settings), CONTINUOUS, advantage="q"
    )
    observations = np.random.default_rng(0).normal(size=(2, 3)).astype("float32")
    policy, parameters = agent.actor.action_distribution, agent.actor(observations)
    rng = np.random.default_rng(1)
    samples = np.array(
        [
            critic(
                observations, policy.to_env(policy.sample(parameters, policy.draw_noise(rng, (2,))))
            )
            for _ in range(300)
        ]
    )
    error = np.sqrt(samples.var(0) * (1 / 300 + 1 / 4000))
    found = critic.expectation(observations, agent.actor, seed=[0, 1]).numpy()
    assert np.all(np.abs(found - samples.mean(0)) < 3 * error)


@pytest.mark.parametrize("discount_weighting", [False, True])
def test_discount_weighting_multiplies_by_the_discount_of_the_time_in_the_episode(
    discount_weighting,
):
    agent = built(keras_pg.A2C, gamma=0.9, discount_weighting=discount_weighting)
    rollout = make_rollout(agent)
    timesteps = np.random.default_rng(3).integers(0, 20, (8, 4)).astype(np.int32)
    evaluated = agent.criticize(rollout._replace(timesteps=timesteps))
    factor = 0.9**timesteps if discount_weighting else 1.0
    np.testing.assert_allclose(
        agent.psi(evaluated), factor * GAE(1.0)(evaluated).numpy(), rtol=1e-5
    )


@pytest.mark.parametrize("critic", ["gae", "advantage"])
def test_every_estimator_is_the_same_eagerly_and_under_xla(critic):
    """Estimators of a critic of states, then those of a critic of actions."""
    agent = built(keras_pg.A2C, CONTINUOUS, advantage=critic)
    rollout = tf.nest.map_structure(tf.constant, make_rollout(agent, invalid=[(2, 1)]))
    estimators = {
        "gae": [*map(get, ("gae", "td", "reward_to_go", "total_return", "return_minus_baseline"))],
        "advantage": [ActionAdvantage(), get("q"), 0.5 * ActionAdvantage() + get("reward_to_go")],
    }[critic]
    if critic == "gae":
        estimators += [NStep(3), ReturnMinusBaseline("mean"), 0.5 * GAE(0.9) + TDResidual()]

    def estimate():
        evaluated = agent.criticize(rollout)
        return [estimator(evaluated) for estimator in estimators]

    compiled = tf.function(estimate, autograph=False, jit_compile=True)()
    for one, other in zip(estimate(), compiled, strict=True):
        assert np.std(one) > 0
        # A few roundings of the largest number in a sum of float32, whatever the result.
        np.testing.assert_allclose(one, other, atol=1e-6 * np.abs(one).max())


@pytest.mark.parametrize("advantage", ["advantage", "mean"])
def test_a_train_step_is_the_same_eagerly_and_under_xla(advantage):
    settings = {"advantage": ReturnMinusBaseline("mean") if advantage == "mean" else advantage}
    agents = [built(keras_pg.A2C, CONTINUOUS, **settings) for _ in range(2)]
    rollout = tf.nest.map_structure(tf.constant, make_rollout(agents[0]))
    agents[0].train_step(rollout)
    tf.function(agents[1].train_step, autograph=False, jit_compile=True)(rollout)
    for one, other in zip(*map(weights, agents), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-6)


@pytest.mark.parametrize(
    "advantage",
    [
        "reward_to_go",
        "q",
        NStep(4),
        ReturnMinusBaseline("mean"),
        0.5 * GAE(0.9) + ActionAdvantage(),
    ],
)
def test_a_saved_agent_makes_the_same_next_update(advantage, tmp_path):
    agent = built(keras_pg.A2C, CONTINUOUS, advantage=advantage)
    rollout = make_rollout(agent)
    step(agent, rollout, eagerly=True)
    agent.save(tmp_path / "agent.keras")
    loaded = keras.models.load_model(tmp_path / "agent.keras")
    step(agent, rollout, eagerly=True), step(loaded, rollout, eagerly=True)
    for one, other in zip(agent.weights, loaded.weights, strict=True):
        np.testing.assert_array_equal(one, other, err_msg=one.path)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"advantage": "gea"}, "advantage must be one of .*'gea'"),
        ({"advantage": "reward_to_go", "critic": "mlp"}, "needs no critic"),
        ({"gae_lambda": 1.5}, "gae_lambda .*1.5"),
        ({"discount_weighting": 1}, "discount_weighting .*1"),
        ({"entropy_coef": -1.0}, "entropy_coef .*-1"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    if arguments.get("critic"):
        arguments = {**arguments, "critic": keras_pg.mlp()}
    with pytest.raises(ValueError, match=message):
        keras_pg.A2C(**arguments)


# ------------------------------------------------------------------------------- whole episodes


def test_a_rollout_of_whole_episodes_holds_the_first_of_each_environment():
    agent = keras_pg.REINFORCE(seed=0)
    seen = []
    agent.log = lambda rollout, values: seen.append(rollout) or {"loss": tf.constant(0.0)}
    envs = [lambda k=k: Clockwork((k,)) for k in (3, 8, 12)]
    agent.compile(run_eagerly=True)
    for mode in gymnasium.vector.AutoresetMode:
        env = gymnasium.vector.SyncVectorEnv(envs, autoreset_mode=mode)
        agent.fit(env, epochs=1, steps_per_epoch=1, num_steps=10, verbose=0)
    for rollout in seen:
        np.testing.assert_array_equal(rollout.valid.numpy().sum(0), [3, 8, 10])
        ended = (rollout.terminated | rollout.truncated) & rollout.valid
        np.testing.assert_array_equal(np.argmax(ended, axis=0), [2, 7, 9])
        assert bool(rollout.truncated[9, 2]) and not bool(rollout.terminated[9, 2])


def test_environments_rest_when_their_episode_is_over():
    """As many steps are simulated as are learnt from and counted."""
    steps = [0]

    class Counted(Clockwork):
        def step(self, action):
            steps[0] += 1
            return super().step(action)

    lengths = iter((3, 8, 12))
    agent = keras_pg.REINFORCE(keras_pg.mlp((8,)), keras_pg.mlp((8,)), seed=0)
    agent.compile(jit_compile=False)
    how = {"num_envs": 3, "num_steps": 10, "epochs": 1, "steps_per_epoch": 2, "verbose": 0}
    agent.fit(lambda: Counted((next(lengths),)), **how)
    assert steps[0] == int(agent.env_steps) == 2 * (3 + 8 + 10)


def test_reinforce_on_rollouts_of_any_length_is_a2c():
    agents = [
        built(keras_pg.REINFORCE, whole_episodes=False),
        built(keras_pg.A2C, advantage="return_minus_baseline"),
    ]
    rollout = make_rollout(agents[0], invalid=[3])
    for agent in agents:
        step(agent, rollout, eagerly=True)
    for one, other in zip(*map(weights, agents), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_returns_know_nothing_of_the_critic_of_another_term():
    agent = built(keras_pg.A2C, advantage=GAE() + get("reward_to_go"))
    evaluated = agent.criticize(make_rollout(agent))
    without = evaluated._replace(
        values=tf.zeros_like(evaluated.values), next_values=tf.zeros_like(evaluated.values)
    )
    assert np.abs(evaluated.next_values).max() > 0.1
    expected = get("gae")(evaluated) + get("reward_to_go")(without)
    np.testing.assert_allclose(agent.psi(evaluated), expected, rtol=1e-6)


def test_training_on_whole_episodes_stops_with_the_one_that_reaches_total_timesteps():
    agent = keras_pg.REINFORCE(seed=0)
    agent.compile(jit_compile=False)
    for total in (500, 1000):
        agent.fit("CartPole-v1", total_timesteps=500, num_steps=500, num_envs=2, verbose=0)
        assert total <= int(agent.env_steps) < total + 2 * 500


def test_resumed_reinforce_is_one_that_never_stopped(tmp_path):
    """Each rollout starts from seeds of its own, so nothing of the environments is lost."""

    def fit(agent, n):
        agent.fit("CartPole-v1", epochs=1, steps_per_epoch=n, num_steps=60, num_envs=2, verbose=0)

    whole, first = (
        keras_pg.REINFORCE(keras_pg.mlp((8,), seed=1), keras_pg.mlp((8,), seed=2), seed=3)
        for _ in range(2)
    )
    for agent in (whole, first):
        agent.compile(jit_compile=False)
    fit(whole, 4), fit(first, 2)
    first.save(tmp_path / "agent.keras")
    second = keras.models.load_model(tmp_path / "agent.keras")
    fit(second, 2)
    for one, other in zip(whole.weights, second.weights, strict=True):
        if "means" not in one.path:
            np.testing.assert_array_equal(one, other, err_msg=one.path)


class LongOrShort(gymnasium.Env):
    """Action 0 ends with reward 1; action 1 goes on for ten steps to a reward of 1.5."""

    observation_space = gymnasium.spaces.Discrete(2)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = None
        return 0, {}

    def step(self, action):
        if self.left is None:
            self.left = 9 * int(action)
            return 1, 1.0 - int(action), action == 0, False, {}
        self.left -= 1
        return 1, 1.5 * (self.left == 0), self.left == 0, False, {}


def test_long_episodes_count_as_much_as_short_ones():
    """With one environment, a mean over steps would learn the short episode, which is worse."""
    agent = keras_pg.REINFORCE(
        keras.Sequential([keras.layers.Identity()]), advantage="reward_to_go", gamma=1.0, seed=0
    )
    env = LongOrShort()
    agent.build(env.observation_space, env.action_space)
    kernel, bias, gradients = agent.actor.head.kernel, agent.actor.head.bias, []
    agent.compile(keras.optimizers.SGD(1.0), run_eagerly=True)

    def from_the_start(*_, **__):
        gradients.append(float(kernel[0, 1] - kernel[0, 0]))
        kernel.assign(tf.zeros_like(kernel)), bias.assign(tf.zeros_like(bias))

    restart = keras.callbacks.LambdaCallback(
        on_train_begin=from_the_start, on_train_batch_end=from_the_start
    )
    agent.fit(env, epochs=1, steps_per_epoch=100, num_steps=12, callbacks=[restart], verbose=0)
    gradients = gradients[1:]
    # π (1 - π) (1.5 - 1), twice, since the two logits move apart.
    error = np.std(gradients) / np.sqrt(len(gradients))
    assert abs(np.mean(gradients) - 0.25) < 3 * error and error < 0.15


def test_a_running_mean_belongs_to_one_agent():
    shared = ReturnMinusBaseline("mean")
    one, other = (built(keras_pg.A2C, advantage=0.5 * shared + 0.5 * shared) for _ in range(2))
    step(one, make_rollout(one), eagerly=True)
    assert [float(a.advantage_layers[0].count) for a in (one, other)] == [32.0, 0.0]
    assert len(one.advantage_layers) == 1


@keras.saving.register_keras_serializable("tests")
def first_number(observations):
    return observations[:, 0]


@pytest.mark.parametrize("baseline", [first_number, "model"])
def test_a_baseline_of_a_function_or_a_model_is_saved(baseline, tmp_path):
    if baseline == "model":
        layers = [keras.layers.Dense(1), keras.layers.Reshape(())]
        baseline = keras.Sequential([keras.Input((3,)), *layers])
    agent = built(keras_pg.A2C, advantage=ReturnMinusBaseline(baseline))
    rollout = make_rollout(agent)
    agent.save(tmp_path / "agent.keras")
    loaded = keras.models.load_model(tmp_path / "agent.keras")
    evaluated = agent.criticize(rollout)
    np.testing.assert_array_equal(agent.advantage(evaluated), loaded.advantage(evaluated))


def test_an_advantage_is_settled_when_the_agent_is_made():
    with pytest.raises(AttributeError, match="advantage"):
        keras_pg.A2C().advantage = "td"


def test_an_estimator_that_is_not_finite_is_not_taken_for_nothing_to_learn():
    for algorithm in (keras_pg.A2C, keras_pg.NPG):
        agent = built(
            algorithm,
            advantage=ReturnMinusBaseline(lambda s: tf.fill(s.shape[:1], np.float32("nan"))),
            normalize_advantages=True,
        )
        for k in (1, 2):
            logs = step(agent, make_rollout(agent), eagerly=True)
            assert logs["nonfinite_updates"] == k


def test_a_state_has_one_value_though_actions_are_sampled():
    agent = built(keras_pg.A2C, CONTINUOUS, advantage="advantage")
    rollout = make_rollout(agent)
    evaluated = agent.criticize(rollout)
    goes_on = ~(rollout.terminated | rollout.truncated)[:-1]
    np.testing.assert_array_equal(
        evaluated.next_values.numpy()[:-1][goes_on], evaluated.values.numpy()[1:][goes_on]
    )


def test_reinforce_follows_the_exact_gradient_on_an_environment():
    """The step of the whole path, environment and all, against the closed form."""
    mdp = chain()
    agent = keras_pg.REINFORCE(
        keras.Sequential([keras.layers.Identity()]),
        advantage="reward_to_go",
        gamma=mdp.gamma,
        discount_weighting=True,
        seed=0,
    )
    env = gymnasium.vector.SyncVectorEnv([lambda: TabularEnv(mdp)] * 400)
    agent.build(env.single_observation_space, env.single_action_space)
    agent.compile(keras.optimizers.SGD(1.0), jit_compile=False)
    kernel, bias = agent.actor.head.kernel, agent.actor.head.bias
    kernel.assign(np.random.default_rng(0).normal(0.0, 0.7, kernel.shape))
    bias.assign(tf.zeros_like(bias))
    logits, start = kernel.numpy().astype(float), kernel.numpy()
    exact, estimates = exact_gradient(mdp, logits), []
    for _ in range(10):
        agent.fit(env, epochs=1, steps_per_epoch=1, num_steps=mdp.steps, verbose=0)
        estimates.append(kernel.numpy() - start)
        kernel.assign(start), bias.assign(tf.zeros_like(bias))
    mean, error = np.mean(estimates, 0), np.std(estimates, 0, ddof=1) / np.sqrt(10)
    assert np.linalg.norm(mean - exact) < 3 * np.linalg.norm(error)
    assert np.linalg.norm(exact) > 10 * np.linalg.norm(error)
