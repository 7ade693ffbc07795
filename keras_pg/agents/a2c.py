"""Advantage actor-critic (A2C), with any Ψ_t.

Papers: Sutton et al., 2000, "Policy gradient methods for reinforcement learning with function
approximation"; Mnih et al., 2016, arXiv:1602.01783 (A3C, of which A2C is the synchronous form).

One iteration, as `A2C.train_step` carries it out on a rollout of T steps of N environments:

    1. Evaluate the critic on the rollout: V(s), V(s'), or Q(s, a).
    2. Estimate Ψ; the critic's targets R are λ-returns.
    3. Take one gradient step up

           E[ Ψ log π(a|s) ] - c_v E[(V - R)²] + c_e E[H(π)]

    4. Merge the rollout into the running statistics.
"""

import keras
import tensorflow as tf

from keras_pg import losses
from keras_pg.agents.agent import Agent
from keras_pg.hyperparameters import Hyperparameter, check_flag
from keras_pg.returns import normalize
from keras_pg.rollouts.minibatches import flatten_time


@keras.saving.register_keras_serializable("keras_pg")
class A2C(Agent):
    """Advantage actor-critic: one gradient step a rollout.

    Defaults are A3C's: 5 steps an iteration, λ = 1, RMSprop at 7e-4 with gradients clipped to a
    global norm of 0.5.

    Args:
        actor: None for two tanh layers of 64 (of images, for convolutions: see `Actor`), any Keras
            model as the encoder, or an `Actor`.
        critic: the same for V(s), or a `Critic`; an `ActionCritic` where Ψ needs Q(s, a).
        gamma, advantage, gae_lambda, discount_weighting: see `Agent`.
        entropy_coef: c_e, a number or a schedule.
        value_coef: c_v, a number or a schedule.
        normalize_advantages: standardize Ψ over the rollout.
        normalize_observations, normalize_rewards, squash_actions, seed: see `Agent`.

    Metrics, each a mean over the epoch: `loss` and its parts `policy_loss`, `value_loss` and
    `entropy`; `explained_variance` of the critic before the update.

    Raises:
        ValueError: a hyperparameter is out of range.

    Example:
    >>> import keras_pg
    >>> agent = keras_pg.A2C(advantage="td", seed=0)
    >>> history = agent.fit("CartPole-v1", epochs=1, steps_per_epoch=2, verbose=0)
    >>> int(agent.env_steps)
    80

    Reference: Mnih et al., 2016, arXiv:1602.01783, algorithm S3.
    """

    entropy_coef = Hyperparameter()
    value_coef = Hyperparameter()
    default_num_steps = 5
    tracked = ("loss", "policy_loss", "value_loss", "entropy", "explained_variance")

    def __init__(
        self,
        actor=None,
        critic=None,
        *,
        gamma=0.99,
        advantage="gae",
        gae_lambda=1.0,
        discount_weighting=False,
        entropy_coef=0.0,
        value_coef=0.5,
        normalize_advantages=False,
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
            **unknown,
        )
        self.entropy_coef = entropy_coef
        self.value_coef = value_coef
        self.normalize_advantages = check_flag("normalize_advantages", normalize_advantages)

    def default_optimizer(self):
        return keras.optimizers.RMSprop(7e-4, rho=0.99, epsilon=1e-5, global_clipnorm=0.5)

    def train_step(self, rollout):
        """One policy iteration; the numbers are those of the module's pseudocode."""
        # 1. The critic before the update.
        steps = flatten_time(rollout)
        evaluated = self.criticize(rollout)

        # 2. Advantages and value targets.
        advantage = tf.reshape(self.psi(evaluated), [-1])
        if self.normalize_advantages:
            advantage = normalize(advantage, steps.valid)
        returns = tf.reshape(evaluated.targets(), [-1])

        # 3. One gradient step.
        weights = self.step_weights(rollout.valid)
        variables = self.optimized_variables()
        with tf.GradientTape() as tape:
            rows = self.surrogate_loss(steps.observations, steps.actions, returns, advantage)
            loss = losses.weighted_mean(rows["loss"], weights)
            loss = self.with_layer_losses(loss, self.actor, self.critic)
        gradients = tape.gradient(loss, variables)
        taken = self.apply_if_finite(gradients, variables, unless=tf.constant(False))
        metrics = {name: losses.masked_mean(x, steps.valid) for name, x in rows.items()}
        metrics["loss"] = tf.where(taken, loss, float("nan"))

        # 4. Running statistics, frozen until here.
        self.learn_statistics(rollout, evaluated)
        values = tf.reshape(evaluated.predictions, [-1])
        metrics["explained_variance"] = losses.explained_variance(values, returns, steps.valid)
        return self.log(rollout, metrics)

    def surrogate_loss(self, observations, actions, returns, advantage):
        """The negated objective and its parts, for each row."""
        policy = self.actor.action_distribution
        parameters = self.actor(observations)
        policy_loss = losses.policy_gradient(policy.log_prob(parameters, actions), advantage)
        value_loss = losses.squared_error(self.predictions(observations, actions), returns)
        if self.critic is None:
            value_loss = tf.zeros_like(policy_loss)
        entropy = policy.entropy(parameters)
        return {
            "loss": policy_loss + self.value_coef * value_loss - self.entropy_coef * entropy,
            "policy_loss": policy_loss,
            "value_loss": value_loss,
            "entropy": entropy,
        }

    def get_config(self):
        return {
            **super().get_config(),
            "entropy_coef": A2C.entropy_coef.config(self),
            "value_coef": A2C.value_coef.config(self),
            "normalize_advantages": self.normalize_advantages,
        }
