"""Proximal policy optimization (PPO): the clipped surrogate, the KL penalty, or both.

Paper: Schulman et al., 2017, "Proximal Policy Optimization Algorithms", arXiv:1707.06347.

One iteration, as `PPO.train_step` carries it out on a rollout of T steps of N environments:

    1. Evaluate the policy that collected, log π_old(a|s), and V(s), V(s') on the whole batch.
    2. Estimate advantages Â, by GAE or any other Ψ; the value targets R are λ-returns.
    3. For K epochs, in minibatches drawn without replacement, ascend

           E[ min(r Â, clip(r, 1-ε, 1+ε) Â) ] - c_v E[(V - R)²] + c_e E[H(π)],    r = π / π_old

       (eq. 7 and 9), and stop once the policy has moved too far: k3 > 1.5 · target_kl. A penalty of
       β KL(π_old ‖ π) may be taken off, beside the clipping or in its place (eq. 8).
    4. Adapt β: halve it where KL(π_old ‖ π) < d / 1.5, double it where KL > 1.5 d (section 4).
    5. Merge the rollout into the running statistics of observations and rewards.
"""

from typing import Any, NamedTuple

import keras
import tensorflow as tf

from keras_pg import losses, spaces
from keras_pg.agents.agent import Agent
from keras_pg.agents.reference import ESTIMATORS, frozen_actor, kl_to_reference
from keras_pg.hyperparameters import Hyperparameter, check_count, check_flag, check_range
from keras_pg.returns import normalize
from keras_pg.rollouts.minibatches import Minibatches, flatten_time, in_parts


class Batch(NamedTuple):
    """Rows of a rollout with what the policy and the critic that collected it say of them."""

    observations: Any  # [B, ...]
    actions: Any  # [B, ...] raw
    old_parameters: Any  # float [B, P] of the distribution π_old(·|s)
    old_log_probs: Any  # float [B] log π_old(a|s)
    reference_parameters: Any  # float [B, P] of π_ref(·|s), zeros without one
    old_values: Any  # float [B] V(s), or Q(s, a)
    returns: Any  # float [B] the value targets R
    advantages: Any  # float [B] Â


@keras.saving.register_keras_serializable("keras_pg")
class PPO(Agent):
    """Proximal policy optimization with the clipped surrogate.

    Defaults are the paper's for continuous control (table 3: 2048 steps an iteration, 10 epochs,
    minibatches of 64, Adam at 3e-4), with the 2048 steps spread over 8 environments and with
    gradients clipped to a global norm of 0.5.

    Args:
        actor: None for two tanh layers of 64 (of images, for convolutions: see `Actor`), any Keras
            model as the encoder, or an `Actor`.
        critic: the same for V(s), or a `Critic`; an `ActionCritic` where Ψ needs Q(s, a).
        gamma, advantage, gae_lambda, discount_weighting: see `Agent`.
        clip_ratio: ε, a number or a schedule over gradient steps; None for no clipping.
        kl_penalty: β, a number or a schedule, of a penalty on KL(π_old ‖ π); None for no penalty.
        kl_penalty_target: d, in nats; β, a number above 0, is then adapted after each iteration.
        reference: a policy π_ref to stay near: an agent, an `Actor`, or the path of a saved agent.
            A copy of it is made, which does not learn.
        kl_coef: of KL(π ‖ π_ref), a number or a schedule.
        kl_estimator: "exact", or an estimate from the actions of the rollout, "k1", "k2" or "k3".
        kl_in: "loss": in the gradient, where "exact" has that of KL(π ‖ π_ref). Before the first
            gradient step on a rollout "k2" has it too, in the mean, "k3" that of KL(π_ref ‖ π), and
            "k1" none; after it the actions are no longer the policy's own, and the estimates are
            not weighted for that. Or "reward": taken off each reward, where "k1" gives
            the gradient of KL(π ‖ π_ref), later states included. (The others lack the derivative
            of the estimate itself there, and hardly pull once the policy is near.)
        value_clip: keep V within this distance of its old value; None for no bound.
        entropy_coef: c_e, a number or a schedule.
        value_coef: c_v, a number or a schedule.
        update_epochs: K, passes over a rollout.
        num_minibatches: parts of each pass; it must divide num_steps · num_envs.
        normalize_advantages: standardize Â in each minibatch (of two rows or more).
        target_kl: stop an iteration before the gradient step at which the k3 estimate of
            KL(π_old ‖ π) exceeds 1.5 · target_kl; None for never.
        normalize_observations, normalize_rewards, squash_actions, seed: see `Agent`.

    Metrics, each a mean over the epoch: `loss` and its parts `policy_loss`, `value_loss` and
    `entropy`;
    `approx_kl` (k3), `clip_fraction`, `explained_variance` of the values before the update,
    `n_updates` gradient steps applied. With a reference `kl_reference`, the exact KL(π ‖ π_ref).

    Raises:
        ValueError: a hyperparameter is out of range.

    Example:
    >>> import keras_pg
    >>> agent = keras_pg.PPO(seed=0)
    >>> history = agent.fit("CartPole-v1", epochs=1, steps_per_epoch=1, num_steps=64, verbose=0)
    >>> agent.act([0.0, 0.1, 0.0, -0.1]).item() in (0, 1)
    True

    Reference: Schulman et al., 2017, arXiv:1707.06347.
    """

    clip_ratio = Hyperparameter(low_open=True, optional=True)
    kl_penalty = Hyperparameter(optional=True)
    kl_coef = Hyperparameter(optional=True)
    entropy_coef = Hyperparameter()
    value_coef = Hyperparameter()
    default_num_steps = 256
    clip_ratio_high = None
    row_metrics = ("loss", "policy_loss", "value_loss", "entropy", "approx_kl", "clip_fraction")
    tracked = (*row_metrics, "explained_variance", "n_updates")

    def __init__(
        self,
        actor=None,
        critic=None,
        *,
        gamma=0.99,
        advantage="gae",
        gae_lambda=0.95,
        discount_weighting=False,
        clip_ratio=0.2,
        kl_penalty=None,
        kl_penalty_target=None,
        reference=None,
        kl_coef=None,
        kl_estimator="k3",
        kl_in="loss",
        value_clip=None,
        entropy_coef=0.0,
        value_coef=0.5,
        update_epochs=10,
        num_minibatches=32,
        normalize_advantages=True,
        target_kl=None,
        normalize_observations=True,
        normalize_rewards=False,
        squash_actions=False,
        seed=None,
        name=None,
        **unknown,
    ):
        super().__init__(
            actor,
            critic,
            gamma=gamma,
            advantage=advantage,
            gae_lambda=gae_lambda,
            discount_weighting=discount_weighting,
            normalize_observations=normalize_observations,
            normalize_rewards=normalize_rewards,
            squash_actions=squash_actions,
            seed=seed,
            name=name,
            more_tracked=() if reference is None else ("kl_reference",),
            **unknown,
        )
        self.reference = None if reference is None else frozen_actor(reference)
        self.kl_coef = kl_coef
        if kl_estimator not in ("exact", *ESTIMATORS) or kl_in not in ("loss", "reward"):
            raise ValueError(
                'kl_estimator must be "exact", "k1", "k2" or "k3", and kl_in "loss" or "reward", '
                f"received {kl_estimator!r} and {kl_in!r}."
            )
        if (reference is None) != (kl_coef is None):
            raise ValueError(
                f"reference={reference!r} and kl_coef={kl_coef!r}: one needs the other."
            )
        if reference is not None and (kl_estimator, kl_in) == ("k1", "loss"):
            raise ValueError(
                '"k1" in the loss has a gradient of zero in the mean: use kl_in="reward".'
            )
        self.kl_estimator, self.kl_in = kl_estimator, kl_in
        self.clip_ratio = clip_ratio
        self.kl_penalty = kl_penalty
        self.kl_penalty_target = kl_penalty_target
        if kl_penalty_target is not None:
            check_range("kl_penalty_target", kl_penalty_target, 0.0, low_open=True)
            if kl_penalty is None:
                raise ValueError("kl_penalty_target is for a kl_penalty to begin with: give both.")
            check_range("kl_penalty, where it is adapted,", kl_penalty, 0.0, low_open=True)
        self.entropy_coef = entropy_coef
        self.value_coef = value_coef
        self.update_epochs = check_count("update_epochs", update_epochs)
        self.num_minibatches = check_count("num_minibatches", num_minibatches)
        self.normalize_advantages = check_flag("normalize_advantages", normalize_advantages)
        self.value_clip = value_clip
        if value_clip is not None:
            self.value_clip = check_range("value_clip", value_clip, 0.0, low_open=True)
        self.target_kl = target_kl
        if target_kl is not None:
            self.target_kl = check_range("target_kl", target_kl, 0.0, low_open=True)

    def build(self, observation_space, action_space):
        """As in `Agent`, for spaces that are the reference's too."""
        if self.reference is not None:
            built = self.reference.observation_space, self.reference.action_space
            spaces.check_same_spaces(built, (observation_space, action_space))
        super().build(observation_space, action_space)
        policies = [self.actor, self.reference or self.actor]
        ours, its = [type(policy.action_distribution).__name__ for policy in policies]
        if ours != its:
            raise ValueError(
                f"The reference's actions are {its}, the agent's {ours}: squash_actions must be "
                "the same for both."
            )

    def train_step(self, rollout):
        """One policy iteration; the numbers are those of the module's pseudocode."""
        # 1. The policy that collected, and its values. Computed here and not while collecting, by
        # the function that the loss uses, so that r = 1 holds exactly before the first step.
        steps = flatten_time(rollout)
        old_policy = self.old_policy(steps)
        rollout = self.penalize_rewards(rollout, steps, *old_policy)
        evaluated = self.criticize(rollout)

        # 2. Advantages and value targets.
        advantage = tf.reshape(self.psi(evaluated), [-1])
        values = tf.reshape(evaluated.predictions, [-1])
        returns = tf.reshape(evaluated.targets(), [-1])

        # 3. K epochs of minibatch gradient steps. What depends on a minibatch and not on the
        # weights is computed for all of them ahead: nothing then waits for it in the loop.
        minibatches = Minibatches(
            advantage.shape[0],
            seed=self.iteration_seed(),
            epochs=self.update_epochs,
            num_minibatches=self.num_minibatches,
        )
        psi, valid = minibatches.split(advantage), minibatches.split(steps.valid)
        if self.normalize_advantages and psi.shape[-1] > 1:
            psi = normalize(psi, valid)
        weights = losses.mean_weights(valid)
        batch = (steps.observations, steps.actions, *old_policy, values, returns)
        metrics = self._ascend(
            minibatches.count, lambda i: minibatches(i, batch, split=(psi, weights, weights))
        )

        # 4. The penalty's coefficient.
        if self.kl_penalty_target is not None:
            self._adapt_penalty(steps, old_policy[0], learnt=metrics["n_updates"] > 0)

        # 5. Running statistics, frozen until here.
        self.learn_statistics(rollout, evaluated)
        metrics["explained_variance"] = losses.explained_variance(values, returns, steps.valid)
        return self.log(rollout, metrics)

    def old_policy(self, steps):
        """(parameters of π_old, log π_old(a|s), parameters of π_ref) for each row."""
        parameters = in_parts(self.actor, steps.observations)
        log_probs = self.actor.action_distribution.log_prob(parameters, steps.actions)
        if self.reference is None:
            return parameters, log_probs, tf.zeros_like(parameters)
        return parameters, log_probs, in_parts(self.reference, steps.observations)

    def penalize_rewards(self, rollout, steps, parameters, log_probs, reference_parameters):
        """The rollout with the KL to the reference taken off its rewards, if that is wanted."""
        if self.reference is None or self.kl_in != "reward":
            return rollout
        kl = kl_to_reference(
            self.actor.action_distribution,
            self.kl_estimator,
            parameters,
            log_probs,
            reference_parameters,
            steps.actions,
        )
        penalty = self.kl_coef * tf.reshape(kl, rollout.rewards.shape)
        return rollout._replace(rewards=rollout.rewards - penalty)

    def _ascend(self, count, minibatch):
        """Up to `count` gradient steps; returns the means of their metrics.

        A minibatch is the fields of a `Batch`, the weights of its rows in the loss, and those in
        what is said of the policy, which is a mean over rows whatever the loss is.
        """
        variables = self.optimized_variables()
        of_loss = [name for name in self.row_metrics if name.endswith("_loss")]
        of_policy = [name for name in self.row_metrics if name not in ("loss", *of_loss)]
        if self.reference is not None:
            of_policy.append("kl_reference")
        names = ["loss", *of_loss, *of_policy]

        def gradient_step(i, stop, n_updates, sums):
            *fields, weights, counted = minibatch(i)
            with tf.GradientTape() as tape:
                rows = self.surrogate_loss(Batch(*fields))
                loss = losses.weighted_mean(rows["loss"], weights)
                loss = self.with_layer_losses(loss, self.actor, self.critic)
            gradients = tape.gradient(loss, variables)
            means = [
                losses.weighted_mean(tf.stack([rows[name] for name in of_loss]), weights),
                losses.weighted_mean(tf.stack([rows[name] for name in of_policy]), counted),
            ]
            means = tf.concat([loss[None], *means], axis=0)
            if self.target_kl is not None:
                stop = means[names.index("approx_kl")] > 1.5 * self.target_kl
            taken = self.apply_if_finite(gradients, variables, unless=stop)
            # A step that is not taken must not make NaN of the means of those that are.
            sums += tf.where(taken, means, tf.zeros_like(means))
            return i + 1, stop, n_updates + tf.cast(taken, tf.float32), sums

        _, _, n_updates, sums = tf.while_loop(
            lambda i, stop, *_: tf.logical_and(i < count, tf.logical_not(stop)),
            gradient_step,
            (tf.constant(0), tf.constant(False), tf.constant(0.0), tf.zeros(len(names))),
        )
        means = sums / n_updates  # NaN if no step could be taken, as Keras's callbacks expect
        return {**dict(zip(names, tf.unstack(means))), "n_updates": n_updates}

    def surrogate_loss(self, batch):
        """The negated objective of eq. 9 and its metrics, for each row of a minibatch."""
        policy = self.actor.action_distribution
        parameters = self.actor(batch.observations)
        log_probs = policy.log_prob(parameters, batch.actions)
        ratio, log_ratio = losses.probability_ratio(log_probs, batch.old_log_probs)
        policy_loss = self.policy_loss(batch, parameters, ratio)
        values = self.predictions(batch.observations, batch.actions)
        if self.critic is None:
            value_loss = tf.zeros_like(ratio)
        elif self.value_clip is None:
            value_loss = losses.squared_error(values, batch.returns)
        else:
            value_loss = losses.clipped_squared_error(
                values, batch.old_values, batch.returns, self.value_clip
            )
        entropy = policy.entropy(parameters)
        clip = float("inf") if self.clip_ratio is None else self.clip_ratio
        high = clip if self.clip_ratio_high is None else self.clip_ratio_high
        rows = {
            "loss": policy_loss + self.value_coef * value_loss - self.entropy_coef * entropy,
            "policy_loss": policy_loss,
            "value_loss": value_loss,
            "entropy": entropy,
            "approx_kl": losses.kl_k3(log_ratio),
            "clip_fraction": tf.cast((ratio < 1.0 - clip) | (ratio > 1.0 + high), tf.float32),
        }
        if self.reference is not None:
            rows["kl_reference"] = policy.kl_divergence(
                p=parameters, q=tf.stop_gradient(batch.reference_parameters)
            )
            if self.kl_in == "loss":
                rows["loss"] += self.kl_coef * kl_to_reference(
                    policy,
                    self.kl_estimator,
                    parameters,
                    log_probs,
                    batch.reference_parameters,
                    batch.actions,
                )
        return rows

    def policy_loss(self, batch, parameters, ratio):
        """The negated surrogate of eq. 7, or of eq. 8, or both in one, for each row."""
        if self.clip_ratio is None:
            loss = losses.surrogate(ratio, batch.advantages)
        else:
            loss = losses.clipped_surrogate(
                ratio, batch.advantages, self.clip_ratio, self.clip_ratio_high
            )
        if self.kl_penalty is not None:
            kl = self.actor.action_distribution.kl_divergence(
                p=tf.stop_gradient(batch.old_parameters), q=parameters
            )
            loss += self.kl_penalty * kl
        return loss

    def _adapt_penalty(self, steps, old_parameters, learnt):
        """Moves β by a factor of 2 towards the penalty whose KL is the target, in [1e-6, 1e6]."""
        kl = self.actor.action_distribution.kl_divergence(
            p=old_parameters, q=in_parts(self.actor, steps.observations)
        )
        kl = losses.masked_mean(kl, steps.valid)
        factor = tf.where(kl > 1.5 * self.kl_penalty_target, 2.0, 1.0)
        factor = tf.where(kl < self.kl_penalty_target / 1.5, 0.5, factor)
        adapted = tf.clip_by_value(self.kl_penalty * factor, 1e-6, 1e6)
        self.kl_penalty.assign(tf.where(learnt, adapted, self.kl_penalty))

    def get_config(self):
        return {
            **super().get_config(),
            "clip_ratio": PPO.clip_ratio.config(self),
            "kl_penalty": PPO.kl_penalty.config(self),
            "kl_penalty_target": self.kl_penalty_target,
            "reference": self.reference,
            "kl_coef": PPO.kl_coef.config(self),
            "kl_estimator": self.kl_estimator,
            "kl_in": self.kl_in,
            "value_clip": self.value_clip,
            "entropy_coef": PPO.entropy_coef.config(self),
            "value_coef": PPO.value_coef.config(self),
            "update_epochs": self.update_epochs,
            "num_minibatches": self.num_minibatches,
            "normalize_advantages": self.normalize_advantages,
            "target_kl": self.target_kl,
        }
