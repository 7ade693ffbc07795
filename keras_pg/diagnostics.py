"""How good an agent's gradient estimate is."""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

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
    >>> found.variance > 0, found.mean.ndim
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
    return GradientStatistics(mean, variance, ratio, rollouts)
