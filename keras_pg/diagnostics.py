"""How good an agent's gradient estimate is."""

import functools
from typing import NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from keras_pg import advantages, losses
from keras_pg.hyperparameters import check_count, check_seed
from keras_pg.rollouts import closing, collector_for, make_vector_env
from keras_pg.rollouts.minibatches import flatten_time


class GradientStatistics(NamedTuple):
    """Statistics of the policy-gradient estimate of one rollout, over independent rollouts."""

    mean: np.ndarray  # float64 [D], over the actor's trainable variables, flattened and joined
    variance: float  # the trace of the covariance, Σ_d Var[g_d]
    signal_to_noise: float  # ‖E[g]‖² / variance, its bias by the number of rollouts taken off
    rollouts: int
    variance_interval: tuple[float, float]  # 95% confidence, see `variance_interval`


def variance_interval(estimates: np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """A confidence interval of the total variance of independent estimates, by the jackknife.

        q_i = ‖g_i - ḡ‖²,   v = Σ_k q_k / (n - 1)
        v_{-i} = (Σ_k q_k - q_i n / (n - 1)) / (n - 2), the variance without estimate i
        s² = (n - 1) / n · Σ_i (log v_{-i} - mean_k log v_{-k})²
        v exp(± t s), t the quantile (1 + confidence) / 2 of Student's t, n - 1 degrees of freedom

    No bound is below 0. Nothing is assumed of the distribution of g, but a few estimates of one
    with heavy tails are covered less often than `confidence` says.

    Args:
        estimates: float [n, D], at least 2.
        confidence: between 0 and 1.

    Returns:
        The lower and upper bound: (0, inf) where nothing is known, as of 2 estimates.

    Raises:
        ValueError: `estimates` is no [n, D] with n of at least 2, or `confidence` is not between
            0 and 1.

    Example:
    >>> import numpy as np
    >>> estimates = np.random.default_rng(0).normal(size=(100, 3))  # of variance 3 in all
    >>> low, high = variance_interval(estimates)
    >>> bool(low < 3.0 < high)
    True

    Reference: Miller, 1968, "Jackknifing variances", Annals of Mathematical Statistics 39.
    """
    estimates = np.asarray(estimates, np.float64)
    if estimates.ndim != 2 or len(estimates) < 2:
        raise ValueError(
            "estimates must be [n, D] with n of at least 2, received an array of shape "
            f"{list(estimates.shape)}."
        )
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, received {confidence!r}.")
    n = len(estimates)
    squares = ((estimates - estimates.mean(axis=0)) ** 2).sum(axis=1)
    if squares.sum() == 0:
        return 0.0, 0.0
    without = squares.sum() - squares * n / (n - 1)
    # One estimate alone may be what varies, but for rounding.
    if n == 2 or without.min() <= 1e-12 * squares.sum():
        return 0.0, float("inf")
    logs = np.log(without)  # less log(n - 2), which is the same for all
    error = np.sqrt((n - 1) / n * ((logs - logs.mean()) ** 2).sum())
    width = _student_quantile((1 + confidence) / 2, n - 1) * error
    variance = squares.sum() / (n - 1)
    return float(variance * np.exp(-width)), float(variance * np.exp(width))


@functools.cache
def _student_quantile(probability, degrees_of_freedom):
    student = tfp.distributions.StudentT(np.float64(degrees_of_freedom), np.float64(0), 1.0)
    return float(student.quantile(np.float64(probability)))


def gradient_statistics(
    agent, env, *, advantage=None, rollouts=32, num_envs=None, num_steps=None, seed=0
):
    """Mean, variance and signal-to-noise ratio of an agent's policy-gradient estimate.

        g = Σ_t w_t Ψ_t ∇ log π(a_t|s_t)

    over the steps of a rollout, at the weights that the agent has; w is the agent's `step_weights`:
    1 / M for M steps, or for `REINFORCE` on N whole episodes 1 / N; for `GRPO` those of its
    `normalization`. Ψ is not standardized, as some agents do before they take their steps. Each
    rollout starts new episodes. The agent learns nothing. Of n estimates with mean ḡ and total
    variance v, the squared norm of the expected gradient is estimated by ‖ḡ‖² - v / n, and not
    below 0.

    Args:
        agent: an agent that has been built, or is built here from the environment's spaces.
        env: an id, a factory or a vector environment, as in `fit`.
        advantage: Ψ in place of the agent's own, by name or as an object. It must find its critic:
            an agent with a critic of actions has V(s) as well. What it learns by itself, such as
            a running mean, it learns first, from as many rollouts.
        rollouts: how many, at least 2.
        num_envs, num_steps: of a rollout; defaults as in `fit`.
        seed: of environments and actions.

    Returns:
        `GradientStatistics`.

    Raises:
        ValueError: the estimator needs a critic, or groups of episodes, that the agent has not; or
            the seed is no integer from 0 to 2⁶².

    Example:
    >>> import keras_pg
    >>> agent = keras_pg.A2C(seed=0)
    >>> found = gradient_statistics(agent, "CartPole-v1", rollouts=4, num_envs=2, num_steps=32)
    >>> low, high = found.variance_interval
    >>> low < found.variance < high, found.mean.ndim
    (True, 1)

    Reference: Greensmith et al., 2004, "Variance reduction techniques for gradient estimates in
    reinforcement learning", JMLR 5, section 3.
    """
    if check_count("rollouts", rollouts) < 2:
        raise ValueError(f"A variance needs at least 2 rollouts, received rollouts={rollouts}.")
    seed = check_seed("seed", seed)
    estimator = agent.advantage if advantage is None else advantages.get(advantage).fresh()
    agent.check_estimator(estimator)
    if estimator.critic not in (None, agent.advantage.critic, "state") or (
        estimator.critic == "state" and agent.advantage.critic is None
    ):
        raise ValueError(
            f"{estimator!r} needs a critic ({estimator.critic}) that {agent!r} has not: its own "
            f"advantage is {agent.advantage!r}."
        )
    env, ours = make_vector_env(env, num_envs)
    with closing(env, ours):
        agent.check_groups(env.num_envs)
        agent.build(env.single_observation_space, env.single_action_space)
        collector = collector_for(
            env,
            agent.actor,
            num_steps=num_steps or agent.default_num_steps,
            gamma=agent.gamma,
            whole_episodes=agent.whole_episodes,
        )

        @tf.function(autograph=False)
        def gradient(rollout):
            steps, evaluated = flatten_time(rollout), agent.criticize(rollout)
            psi = estimator.discounted if agent.discount_weighting else estimator
            psi = tf.reshape(psi(evaluated), [-1])
            variables = agent.actor.trainable_variables
            with tf.GradientTape() as tape:
                log_probs = agent.actor.action_distribution.log_prob(
                    agent.actor(steps.observations), steps.actions
                )
                weights = agent.step_weights(rollout.valid)
                objective = losses.weighted_mean(log_probs * psi, weights)
            gradients = tape.gradient(objective, variables, unconnected_gradients="zero")
            return tf.concat([tf.reshape(tf.convert_to_tensor(g), [-1]) for g in gradients], 0)

        def collect(k):
            # Seeds of environments must not overlap from one rollout to the next.
            collector.reset(seed + k * env.num_envs, agent.group_size)
            rollout = collector.collect(np.random.default_rng([seed, k]))
            return tf.nest.map_structure(tf.constant, rollout)

        if advantage is not None and estimator.layers:
            for k in range(rollouts, 2 * rollouts):
                estimator.learn(agent.criticize(collect(k)))
        estimates = [gradient(collect(k)) for k in range(rollouts)]
    estimates = np.array(estimates, np.float64)
    mean, variance = estimates.mean(axis=0), float(estimates.var(axis=0, ddof=1).sum())
    signal = max(float(mean @ mean) - variance / rollouts, 0.0)
    ratio = signal / variance if variance > 0 else float("inf")
    return GradientStatistics(mean, variance, ratio, rollouts, variance_interval(estimates))
