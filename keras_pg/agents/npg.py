"""Natural policy gradient (NPG).

Papers: Kakade, 2001, "A natural policy gradient"; Rajeswaran et al., 2017, arXiv:1703.02660
(the normalized step, algorithm 1).

One iteration, as `NPG.train_step` carries it out on a rollout of T steps of N environments:

    1. Evaluate the critic on the rollout, and the policy that collected.
    2. Estimate Ψ; the critic's targets R are λ-returns.
    3. Solve F x = g by conjugate gradient, with g = E[Ψ ∇ log π] and the Fisher matrix
       F = E[∇log π ∇log πᵀ], of which only products with vectors are ever formed.
    4. Move the actor by √(2ε / xᵀFx) x, at which the quadratic model of the KL is ε.
    5. Regress the critic on R, in minibatches.
    6. Merge the rollout into the running statistics.
"""

import keras
import tensorflow as tf

from keras_pg import losses, spaces, trust_region
from keras_pg.agents.agent import Agent
from keras_pg.hyperparameters import Hyperparameter, check_count, check_flag, check_range
from keras_pg.keras_models import layer_losses
from keras_pg.returns import normalize
from keras_pg.rollouts.minibatches import Minibatches, flatten_time


@keras.saving.register_keras_serializable("keras_pg")
class NPG(Agent):
    """Natural policy gradient with the normalized step.

    The actor has no optimizer: the one given to `compile`, by default Adam at 1e-3, is the
    critic's.

    Args:
        actor: None for two tanh layers of 64 (of images, for convolutions: see `Actor`), any Keras
            model as the encoder, or an `Actor`.
        critic: the same for V(s), or a `Critic`; an `ActionCritic` where Ψ needs Q(s, a).
        gamma, advantage, gae_lambda, discount_weighting: see `Agent`.
        max_kl: ε, in nats, a number or a schedule: the mean over states of KL(π_old ‖ π), summed
            over action dimensions, that a step may cost by the quadratic model, damping included.
        cg_iters: iterations of conjugate gradient.
        cg_damping: c; F + c I is solved with, and takes the place of F in the step's length.
        fisher: "exact", the expectation over actions in closed form, or "empirical", the mean over
            the actions of the rollout.
        critic_epochs: passes of the critic over a rollout.
        num_minibatches: parts of each pass; it must divide num_steps · num_envs.
        normalize_advantages: standardize Ψ over the rollout.
        normalize_observations, normalize_rewards, squash_actions, seed: see `Agent`.

    Metrics, each a mean over the epoch: `policy_loss`, the surrogate's -E[r Ψ] after the step;
    `value_loss`; `entropy` of the new policy; `kl`, the exact KL(π_old ‖ π) of the step;
    `explained_variance` of the critic before the update.

    Raises:
        ValueError: a hyperparameter is out of range.

    Example:
    >>> import keras_pg
    >>> agent = keras_pg.NPG(seed=0)
    >>> history = agent.fit("CartPole-v1", epochs=1, steps_per_epoch=1, num_steps=64, verbose=0)
    >>> history.history["kl"][0] < 0.02
    True

    Reference: Kakade, 2001; Rajeswaran et al., 2017, arXiv:1703.02660, eq. 5.
    """

    max_kl = Hyperparameter(low_open=True)
    default_num_steps = 256
    tracked = ("policy_loss", "value_loss", "entropy", "kl", "explained_variance")

    def __init__(
        self,
        actor=None,
        critic=None,
        *,
        gamma=0.99,
        advantage="gae",
        gae_lambda=0.95,
        discount_weighting=False,
        max_kl=0.01,
        cg_iters=10,
        cg_damping=0.1,
        fisher="exact",
        critic_epochs=10,
        num_minibatches=16,
        normalize_advantages=True,
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
        if fisher not in ("exact", "empirical"):
            raise ValueError(f'fisher must be "exact" or "empirical", received {fisher!r}.')
        self._nonfinite = self.add_weight(
            name="nonfinite_gradients",
            shape=(),
            dtype="int64",
            initializer="zeros",
            trainable=False,
        )
        self.max_kl = max_kl
        self.cg_iters = check_count("cg_iters", cg_iters)
        self.cg_damping = check_range("cg_damping", cg_damping, 0.0)
        self.fisher = fisher
        self.critic_epochs = check_count("critic_epochs", critic_epochs)
        self.num_minibatches = check_count("num_minibatches", num_minibatches)
        self.normalize_advantages = check_flag("normalize_advantages", normalize_advantages)

    def default_optimizer(self):
        return keras.optimizers.Adam(1e-3)

    def compile(self, optimizer=None, **arguments):
        """As in `Agent`, but `optimizer` is the critic's, and there is no other.

        Raises:
            ValueError: `critic_optimizer` was given.
        """
        if arguments.get("critic_optimizer") is not None:
            raise ValueError("The actor has no optimizer: give the critic's as `optimizer`.")
        super().compile(optimizer, **arguments)

    @property
    def gradient_steps(self):
        """The iterations: schedules are functions of the number of natural gradient steps."""
        return self.iteration

    def build(self, observation_space, action_space):
        """As in `Agent`.

        Raises:
            ValueError: a layer of the actor has a loss of its own, which no step would descend.
        """
        built = self.actor is not None
        super().build(observation_space, action_space)
        if built:
            return
        specs = spaces.observation_specs(self.actor.observation_space, (1,))
        self.actor(tf.nest.map_structure(lambda spec: tf.zeros(spec.shape, spec.dtype), specs))
        of_layers = layer_losses(self.actor)
        if of_layers:
            raise ValueError(
                f"{of_layers[0][0]} has a loss of its own, by a regularizer or add_loss. "
                f"{type(self).__name__} descends no loss with its actor: its step is the natural "
                "gradient of the objective. Leave the loss out, or use an agent that takes "
                "gradient steps, such as keras_pg.PPO."
            )

    def optimized_variables(self):
        """The critic's own: what it shares with the actor moves with the actor only."""
        return self._actor_and_critic_variables()[1]

    def train_step(self, rollout):
        """One policy iteration; the numbers are those of the module's pseudocode."""
        # 1. The policy that collected, and the critic.
        steps = flatten_time(rollout)
        weights = losses.mean_weights(steps.valid)
        policy = self.actor.action_distribution
        old_parameters = self.actor(steps.observations)
        old_log_probs = policy.log_prob(old_parameters, steps.actions)
        evaluated = self.criticize(rollout)

        # 2. Advantages and value targets.
        advantage = tf.reshape(self.psi(evaluated), [-1])
        if self.normalize_advantages:
            advantage = normalize(advantage, steps.valid)
        returns = tf.reshape(evaluated.targets(), [-1])

        # 3. The natural gradient x, F x = g.
        variables = self.actor.trainable_variables
        with tf.GradientTape() as tape:
            log_probs = policy.log_prob(self.actor(steps.observations), steps.actions)
            objective = losses.weighted_mean(log_probs * advantage, weights)
        gradient = tape.gradient(objective, variables, unconnected_gradients="zero")
        gradient = [tf.convert_to_tensor(g) for g in gradient]  # embeddings have sparse ones

        def fisher_product(vector):
            return self.fisher_product(steps.observations, steps.actions, weights, vector)

        direction = trust_region.conjugate_gradient(fisher_product, gradient, self.cg_iters)

        # 4. The step.
        step = trust_region.natural_step(fisher_product, direction, self.max_kl)

        def surrogate_and_kl():
            parameters = self.actor(steps.observations)
            ratio, _ = losses.probability_ratio(
                policy.log_prob(parameters, steps.actions), old_log_probs
            )
            kl = policy.kl_divergence(p=old_parameters, q=parameters)
            return (
                losses.weighted_mean(ratio * advantage, weights),
                losses.weighted_mean(kl, weights),
            )

        metrics = self.move(variables, step, surrogate_and_kl)
        entropy = policy.entropy(self.actor(steps.observations))
        metrics["entropy"] = losses.weighted_mean(entropy, weights)

        # 5. The critic.
        metrics["value_loss"] = self.fit_critic(
            (steps.observations, steps.actions, returns), steps.valid
        )

        self.count_nonfinite(tf.math.is_finite(trust_region.dot(gradient, gradient)))

        # 6. Running statistics, frozen until here.
        self.learn_statistics(rollout, evaluated)
        values = tf.reshape(evaluated.predictions, [-1])
        metrics["explained_variance"] = losses.explained_variance(values, returns, steps.valid)
        return self.log(rollout, metrics)

    def fisher_product(self, observations, actions, weights, vector):
        """(F + c I) v, F averaged over the rows by `weights` [B]."""
        policy = self.actor.action_distribution
        variables = [v.value for v in self.actor.trainable_variables]
        if self.fisher == "exact":
            return trust_region.fisher_vector_product(
                lambda: self.actor(observations),
                variables,
                lambda parameters, tangents: (
                    weights[:, None] * policy.fisher_product(parameters, tangents)
                ),
                vector,
                self.cg_damping,
            )
        return trust_region.fisher_vector_product(
            lambda: policy.log_prob(self.actor(observations), actions),
            variables,
            lambda log_probs, tangents: weights * tangents,
            vector,
            self.cg_damping,
        )

    def count_nonfinite(self, finite):
        """Counts the iterations in a row whose gradient was NaN or infinite."""
        count = tf.where(finite, tf.zeros_like(self._nonfinite.value), self._nonfinite + 1)
        self._nonfinite.assign(count)
        # Beside the critic's steps, which may fail too, or may not.
        critics = self.nonfinite_updates.value if self.optimized_variables() else count
        self.nonfinite_updates.assign(tf.maximum(critics, count))

    def move(self, variables, step, surrogate_and_kl):
        """Adds the step to the actor's variables; returns metrics."""
        finite = tf.math.is_finite(trust_region.dot(step, step))
        for variable, delta in zip(variables, step, strict=True):
            variable.assign_add(tf.where(finite, delta, tf.zeros_like(delta)))
        surrogate, kl = surrogate_and_kl()
        return {"policy_loss": -surrogate, "kl": kl}

    def fit_critic(self, batch, valid):
        """Minibatch regression of the critic; returns the mean squared error of its steps."""
        variables = self.optimized_variables()
        if not variables:
            return tf.constant(0.0)
        minibatches = Minibatches(
            valid.shape[0],
            seed=self.iteration_seed(),
            epochs=self.critic_epochs,
            num_minibatches=self.num_minibatches,
        )
        weights = losses.mean_weights(minibatches.split(valid))

        def gradient_step(i, total):
            observations, actions, returns, w = minibatches(i, batch, split=(weights,))
            with tf.GradientTape() as tape:
                errors = losses.squared_error(self.predictions(observations, actions), returns)
                error = losses.weighted_mean(errors, w)
                loss = self.with_layer_losses(error, self.critic)
            gradients = tape.gradient(loss, variables)
            self.apply_if_finite(gradients, variables, unless=tf.constant(False))
            return i + 1, total + error

        _, total = tf.while_loop(
            lambda i, _: i < minibatches.count, gradient_step, (tf.constant(0), tf.constant(0.0))
        )
        return total / minibatches.count

    def get_config(self):
        return {
            **super().get_config(),
            "max_kl": NPG.max_kl.config(self),
            "cg_iters": self.cg_iters,
            "cg_damping": self.cg_damping,
            "fisher": self.fisher,
            "critic_epochs": self.critic_epochs,
            "num_minibatches": self.num_minibatches,
            "normalize_advantages": self.normalize_advantages,
        }
