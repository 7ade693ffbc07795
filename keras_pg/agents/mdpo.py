"""Mirror descent policy optimization (MDPO), on-policy.

Paper: Tomar et al., 2020, "Mirror Descent Policy Optimization", arXiv:2005.09814.

One iteration is that of `PPO`, but for the objective of its third step, several gradient steps up

    E[ r Â - KL(π ‖ π_k) / η ],    r = π / π_k

(on-policy form of eq. 8), in which the new policy comes first in the KL divergence, and the step
size η may follow a schedule. The maximum for exact Â and a tabular softmax is π_k exp(η Â) / Z.
"""

import keras
import tensorflow as tf

from keras_pg.agents.ppo import PPO
from keras_pg.hyperparameters import Hyperparameter


@keras.saving.register_keras_serializable("keras_pg")
class MDPO(PPO):
    """On-policy mirror descent policy optimization.

    Defaults are the paper's: 10 gradient steps an iteration on the whole rollout, no clipping. The
    authors let the step size fall linearly from 1 to 0 over training, which is
    `keras.optimizers.schedules.PolynomialDecay(1.0, gradient_steps, 0.0)`, and the learning rate
    with it: a step size near 0 under a constant learning rate throws the policy about.

    Args:
        actor, critic, and all settings of `PPO`, whose KL penalty this replaces.
        step_size: η > 0, a number or a schedule over gradient steps.

    Metrics: those of `PPO`.

    Raises:
        ValueError: a hyperparameter is out of range.

    Example:
    >>> import keras_pg
    >>> agent = keras_pg.MDPO(step_size=0.5, seed=0)
    >>> history = agent.fit("CartPole-v1", epochs=1, steps_per_epoch=1, num_steps=64, verbose=0)
    >>> history.history["n_updates"]
    [10.0]

    Reference: Tomar et al., 2020, arXiv:2005.09814, eq. 8 and algorithm 1.
    """

    step_size = Hyperparameter(low_open=True)

    def __init__(
        self,
        actor=None,
        critic=None,
        *,
        step_size=1.0,
        clip_ratio=None,
        num_minibatches=1,
        **settings,
    ):
        for name in ("kl_penalty", "kl_penalty_target"):
            if settings.pop(name, None) is not None:
                raise ValueError(f"MDPO has its KL divergence by step_size; it has no {name}.")
        super().__init__(
            actor, critic, clip_ratio=clip_ratio, num_minibatches=num_minibatches, **settings
        )
        self.step_size = step_size

    def policy_loss(self, batch, parameters, ratio):
        """The negated objective of mirror descent, for each row."""
        kl = self.actor.action_distribution.kl_divergence(
            p=parameters, q=tf.stop_gradient(batch.old_parameters)
        )
        # A schedule may end at 0, at which no step is small enough.
        surrogate = super().policy_loss(batch, parameters, ratio)
        return surrogate + kl / tf.maximum(tf.cast(self.step_size, tf.float32), 1e-6)

    def get_config(self):
        config = super().get_config()
        for name in ("kl_penalty", "kl_penalty_target"):
            config.pop(name)
        return {**config, "step_size": MDPO.step_size.config(self)}
