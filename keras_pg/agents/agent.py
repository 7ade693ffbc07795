"""What every agent is: a Keras model that is fitted to an environment. Knows no algorithm."""

import contextlib
import json
import pathlib
import random
import warnings

import keras
import numpy as np
import tensorflow as tf

from keras_pg import advantages, losses, spaces
from keras_pg.agents.native_training import NativeTraining, environment_seed
from keras_pg.agents.policy_model import Means
from keras_pg.agents.schedule import default_timesteps, schedule
from keras_pg.callbacks import RaiseOnNonFinite, StopAfterTimesteps
from keras_pg.encoders import has_slow_gradient
from keras_pg.files import replacing
from keras_pg.hyperparameters import (
    Hyperparameter,
    check_arguments,
    check_count,
    check_flag,
    check_range,
    check_seed,
    checks_arguments,
)
from keras_pg.keras_models import check_network, independent, layer_losses, name_variables
from keras_pg.monitoring import CallbackList
from keras_pg.networks import ActionCritic, Actor, Critic
from keras_pg.normalization import RewardScaling
from keras_pg.progress import as_list
from keras_pg.rollouts import check_apart, closing, make_vector_env
from keras_pg.rollouts.dataset import OnDemandDataset, RolloutsInGraph
from keras_pg.rollouts.minibatches import flatten_time, in_parts
from keras_pg.rollouts.rollout import state_values

_SPACES = "spaces"


class Agent(NativeTraining):
    """Base class of the agents: `fit`, `evaluate`, `predict`, `act`, `save` and `export`.

    A subclass is an algorithm. Its `train_step(rollout)` turns one `Rollout` into one policy
    iteration; everything around it is Keras.

    Args:
        actor: None for a default network made from the environment's spaces, any Keras model to
            be used as its encoder, or an `Actor`.
        critic: the same for the value function, or a `Critic` (an `ActionCritic` where `advantage`
            needs one of actions).
        gamma: discount factor γ in [0, 1].
        advantage: Ψ_t, by name or as an object, see `keras_pg.advantages`. It decides whether
            there is a critic, and of what.
        gae_lambda: λ of the critic's targets, the λ-returns, and of Ψ_t where that is "gae".
        discount_weighting: multiply Ψ_t by γ^t, t counted from the start of the episode. That is
            the gradient of the discounted return; without it, as usually practised, late steps
            count as much as early ones.
        normalize_observations: normalize Box observations, but not images, by running statistics,
            in the networks.
        normalize_rewards: divide rewards by the running deviation of the return, in training only.
        squash_actions: squash Gaussian actions by tanh into the bounds instead of clipping them.
            (An `Actor` or `Critic` that is passed in normalizes and squashes as it was made to.)
        seed: seeds the initial weights of the default networks, environments, action noise and
            shuffling; None draws one from Python's generator, which `keras.utils.set_random_seed`
            seeds. An integer from 0 to 2⁶². Encoders that are passed in have the weights they were
            made with.
    """

    # Rollouts are of one whole episode in each environment, of at most `num_steps` steps.
    whole_episodes = False
    # Each so many environments in a row start their episodes alike.
    group_size = 1
    # Gradient steps split a rollout into this many parts; it must divide num_steps · num_envs.
    num_minibatches = 1
    default_num_steps = 128
    tracked = ()

    def __init__(
        self,
        actor,
        critic,
        *,
        gamma,
        advantage,
        gae_lambda,
        discount_weighting,
        normalize_observations,
        normalize_rewards,
        squash_actions,
        seed,
        name=None,
        more_tracked=(),
        **unknown,
    ):
        check_arguments(type(self), unknown)
        check_network(type(self), "actor", actor)
        check_network(type(self), "critic", critic)
        super().__init__(name)
        self.tracked = (*type(self).tracked, *more_tracked)
        self.gamma = check_range("gamma", gamma, 0.0, 1.0)
        # With statistics of its own, even where one object is given to several agents.
        self._advantage = advantages.get(advantage).fresh()
        # Where Keras finds them, to be saved with the agent.
        self.advantage_layers = list(self._advantage.layers)
        self.check_estimator(self.advantage)
        self.gae_lambda = check_range("gae_lambda", gae_lambda, 0.0, 1.0)
        self.discount_weighting = check_flag("discount_weighting", discount_weighting)
        if self.advantage.critic is None and critic is not None:
            raise ValueError(
                f"advantage={advantage!r} needs no critic, so the one passed in would not be used. "
                "Leave it out, or choose another advantage."
            )
        self.normalize_observations = check_flag("normalize_observations", normalize_observations)
        self.normalize_rewards = check_flag("normalize_rewards", normalize_rewards)
        self.squash_actions = check_flag("squash_actions", squash_actions)
        self.seed = random.randrange(2**31) if seed is None else check_seed("seed", seed)
        # Wrapped, because Keras would track and save encoders that become parts of the networks.
        self._given_networks = lambda: (actor, critic)
        self.critic_optimizer = None
        self._traced_with = None
        self.reward_scaling = RewardScaling() if normalize_rewards else None
        self.iteration = self._counter("iteration")
        self.env_steps = self._counter("env_steps")
        self.nonfinite_updates = self._counter("nonfinite_updates")
        self.update_means = Means(self.tracked, name="update_means")

    @property
    def advantage(self):
        """Ψ_t, a `keras_pg.advantages.Advantage`. Settled when the agent is made."""
        return self._advantage

    # ------------------------------------------------------------------ building and compiling

    def build(self, observation_space, action_space):
        """Makes the networks for these spaces; `fit` does it from its environment.

        Raises:
            ValueError: a space is not supported, or differs from the one the agent was built for.
        """
        if self.actor is not None:
            built = self.actor.observation_space, self.actor.action_space
            return spaces.check_same_spaces(built, (observation_space, action_space))
        actor, critic = self._given_networks()
        if isinstance(actor, Actor):
            built = actor.observation_space, actor.action_space
            spaces.check_same_spaces(built, (observation_space, action_space))
        else:
            actor = Actor(
                observation_space,
                action_space,
                encoder=actor,
                normalize_observations=self.normalize_observations,
                squash=self.squash_actions,
                seed=self.seed,
                name="actor",
            )
        kind = {None: None, "state": Critic, "action": ActionCritic}[self.advantage.critic]
        if isinstance(critic, Critic | ActionCritic):
            if not isinstance(critic, kind):
                raise ValueError(f"{self.advantage!r} needs {kind.__name__}, received {critic!r}.")
            built = critic.observation_space, getattr(critic, "action_space", action_space)
            spaces.check_same_spaces(built, (observation_space, action_space))
        elif kind is not None:
            critic = kind(
                observation_space,
                **({"action_space": action_space} if kind is ActionCritic else {}),
                encoder=critic,
                normalize_observations=self.normalize_observations,
                seed=self.seed + 1,
                name="critic",
            )
        self.actor, self.critic = actor, critic
        name_variables(*filter(None, (actor, critic)))
        if self.compiled:
            self._build_optimizers()

    def build_from_config(self, config):
        """Nothing: the networks in the configuration have built the agent."""

    def get_build_config(self):
        return None

    def _actor_and_critic_variables(self):
        actor_variables = self.actor.trainable_variables
        shared = {id(variable) for variable in actor_variables}
        critic_variables = [] if self.critic is None else self.critic.trainable_variables
        return actor_variables, [v for v in critic_variables if id(v) not in shared]

    def optimized_variables(self):
        """What the optimizers move: the actor's variables, then the critic's own."""
        actor_variables, critic_variables = self._actor_and_critic_variables()
        return [*actor_variables, *critic_variables]

    def _build_optimizers(self):
        if self.critic_optimizer is None:
            self.optimizer.build(self.optimized_variables())
        else:
            actor_variables, critic_variables = self._actor_and_critic_variables()
            self.optimizer.build(actor_variables)
            self.critic_optimizer.build(critic_variables)

    def default_optimizer(self):
        """The optimizer of an agent that is fitted without `compile`."""
        return keras.optimizers.Adam(3e-4, global_clipnorm=0.5)

    @checks_arguments
    def compile(
        self,
        optimizer=None,
        critic_optimizer=None,
        *,
        run_eagerly=False,
        jit_compile=None,
        steps_per_execution=1,
    ):
        """Sets the optimizers and how `train_step` is run. Optional: `fit` compiles with defaults.

        Args:
            optimizer: a Keras optimizer for actor and critic together; default
                `default_optimizer()`.
            critic_optimizer: a Keras optimizer for the critic's own variables; `optimizer` is
                then the actor's alone.
            run_eagerly: run `train_step` in Python, to debug it.
            jit_compile: compile `train_step` by XLA; default True unless `run_eagerly`.
            steps_per_execution: iterations that one call of the compiled program runs; callbacks
                see the last of them. Must be 1 for Gymnasium environments.
        """
        optimizer = self.default_optimizer() if optimizer is None else optimizer
        super().compile(
            optimizer=optimizer,
            run_eagerly=run_eagerly,
            jit_compile=not run_eagerly if jit_compile is None else jit_compile,
            steps_per_execution=steps_per_execution,
            # Gradients are not those of a scaled loss, whatever Keras's precision policy.
            auto_scale_loss=False,
        )
        self.critic_optimizer = (
            None if critic_optimizer is None else keras.optimizers.get(critic_optimizer)
        )
        self._native_program = None
        if self.actor is not None:
            self._build_optimizers()

    def get_compile_config(self):
        if not self.compiled:
            return None
        serialize = keras.saving.serialize_keras_object
        return {
            "optimizer": serialize(self.optimizer),
            "critic_optimizer": self.critic_optimizer and serialize(self.critic_optimizer),
            "run_eagerly": self.run_eagerly,
            "jit_compile": self.jit_compile,
            "steps_per_execution": self.steps_per_execution,
        }

    def compile_from_config(self, config):
        self.compile(**keras.saving.deserialize_keras_object(config))

    def get_config(self):
        actor, critic = self._given_networks()
        if self.actor is not None:
            actor, critic = self.actor, self.critic
        # Objects, not their configurations: so Keras sees what actor and critic share.
        return {
            "actor": actor,
            "critic": critic,
            "gamma": self.gamma,
            "advantage": self.advantage,
            "gae_lambda": self.gae_lambda,
            "discount_weighting": self.discount_weighting,
            "normalize_observations": self.normalize_observations,
            "normalize_rewards": self.normalize_rewards,
            "squash_actions": self.squash_actions,
            "seed": self.seed,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config):
        """An agent with networks of its own, given `get_config()` or what Keras has saved of it.

        As of any Keras model the weights are new; counters and optimizers start anew, too.
        """
        agent = cls(**independent(config))
        actor, _ = agent._given_networks()
        if isinstance(actor, Actor):
            agent.build(actor.observation_space, actor.action_space)
        return agent

    def save_own_variables(self, store):
        """As Keras; the spaces are saved with the weights, from which networks can be made."""
        super().save_own_variables(store)
        if self.actor is not None:
            pair = [spaces.to_config(self.actor.observation_space)]
            pair.append(spaces.to_config(self.actor.action_space))
            store[_SPACES] = np.frombuffer(json.dumps(pair).encode(), np.uint8)

    def load_own_variables(self, store):
        """As Keras; an agent without networks is built for the spaces that were saved."""
        if self.actor is None and _SPACES in store.keys():
            pair = json.loads(bytes(np.array(store[_SPACES])))
            self.build(*map(spaces.from_config, pair))
        super().load_own_variables({k: store[k] for k in store.keys() if k != _SPACES})

    def load_weights(self, filepath, *arguments, **keyword_arguments):
        """`keras.Model.load_weights`; networks are made first, if there are none yet."""
        # Keras asks for it before it reads the file, in which the spaces are.
        self.built = True
        try:
            super().load_weights(filepath, *arguments, **keyword_arguments)
        finally:
            self.built = self.actor is not None

    def save(self, filepath, overwrite=True, zipped=None):
        """`keras.Model.save`; a file that is on this machine is written whole or not at all.

        Raises:
            ValueError: networks with weights were passed in, and the agent has not been built yet.
            OSError: the file could not be written; the error names it. What was there before is
                still there.
        """
        if self.actor is None and any(n is not None and n.weights for n in self._given_networks()):
            raise ValueError(
                "The weights of the networks you passed in would not be saved, since the agent has "
                "not been built with them yet: call `fit`, or `build` with the spaces."
            )
        path = pathlib.Path(filepath)
        known = zipped is False or path.suffix in (".keras", ".h5", ".hdf5")
        if not (known and path.parent.is_dir()) or (path.exists() and not overwrite):
            # Not on this machine, or Keras has something to say or to ask.
            return super().save(filepath, overwrite, zipped)
        with replacing(path) as temporary:
            return super().save(temporary, overwrite, zipped)

    # ------------------------------------------------------------------------------- training

    @checks_arguments
    def fit(
        self,
        env,
        *,
        total_timesteps=None,
        num_envs=None,
        num_steps=None,
        vectorization="sync",
        epochs=None,
        steps_per_epoch=None,
        initial_epoch=0,
        callbacks=None,
        verbose="auto",
        validation_env=None,
        validation_episodes=10,
        validation_freq=1,
    ):
        """Trains on an environment and returns Keras's `History`.

        One step is one policy iteration: collect a rollout of `num_steps` steps in each of
        `num_envs` environments, then learn from it. One epoch is `steps_per_epoch` of them.

        Args:
            env: an environment id, a `gymnasium.Env`, a factory, a `gymnasium.vector.VectorEnv`, or
                a `keras_pg.envs.NativeEnv`. Gymnasium's are stepped in a thread of TensorFlow's,
                not in the main one; of native ones collecting is part of the compiled train step.
            total_timesteps: environment steps to train for, rounded up to whole epochs. Unless
                `steps_per_epoch` is given, 10 to 30 epochs, the number that rounds least. Agents
                that play whole episodes stop after the iteration that reaches it; their epochs have
                5 iterations by default, and the number of epochs shown is only a bound.
            num_envs: copies of an id, factory or native environment to step side by side; default
                8.
            num_steps: T, steps of each environment in a rollout.
            vectorization: "sync" or "async" (one process an environment, forked from this one, so
                environments that compute with TensorFlow do not work there).
            epochs, steps_per_epoch, initial_epoch, callbacks, verbose, validation_freq: as in
                `keras.Model.fit`. (epochs - initial_epoch) · steps_per_epoch iterations run.
            validation_env: environment to evaluate on after each epoch; logs `val_episode_return`
                and `val_episode_length`.
            validation_episodes: episodes of each such evaluation.

        Raises:
            ValueError: arguments contradict each other, or the spaces are not those of the agent.
            FloatingPointError: an observation or reward was NaN or infinite (nothing was learnt
                from that rollout), or gradients were, many times in a row.

        An exception from the environment is raised as it is, after that environment was closed; the
        agent keeps what it had learnt. (Of an environment in another process it comes with that
        process's traceback as its cause.) An environment whose process dies, or whose answers
        contradict its spaces, is an error that names it, see `keras_pg.testing.check_env`. Other
        errors leave an environment object open. Gymnasium's environments start anew in each call,
        from seeds that follow from `seed` and the number of iterations done so far: their own
        state, and that of their random generators, is what is not restored of a training run.
        Native ones go on where the last `fit` left them, also in an agent that was saved and
        loaded, if they are as many and of the same class: training N iterations twice is training
        2 N, bit for bit.
        """
        check_apart(env, validation_env)
        num_steps = check_count(
            "num_steps", self.default_num_steps if num_steps is None else num_steps
        )
        env, ours = make_vector_env(env, num_envs, vectorization)
        with contextlib.ExitStack() as cleanup:
            cleanup.enter_context(closing(env, ours))
            batch_size = num_steps * env.num_envs
            self.check_groups(env.num_envs)
            if batch_size % self.num_minibatches:
                raise ValueError(
                    f"num_steps={num_steps} · num_envs={env.num_envs} = {batch_size} steps cannot "
                    f"be split into num_minibatches={self.num_minibatches} equal parts."
                )
            stop = []
            if self.whole_episodes and epochs is None:
                # How many iterations that is only the episodes can tell: at most one for each step.
                total_timesteps = default_timesteps(total_timesteps)
                if initial_epoch:
                    raise ValueError(
                        f"initial_epoch={initial_epoch} with total_timesteps: epochs of whole "
                        "episodes have no fixed number of steps. Give epochs in its place."
                    )
                stop = [StopAfterTimesteps(total_timesteps)]
                batch_size = env.num_envs
                if steps_per_epoch is None:
                    steps_per_epoch = 5 * self.steps_per_execution
            epochs, steps_per_epoch = schedule(
                total_timesteps, batch_size, epochs, steps_per_epoch, self.steps_per_execution
            )
            self._prepare(env)
            networks = filter(None, (self.actor, self.critic))
            if self.jit_compile and any(map(has_slow_gradient, networks)):
                warnings.warn(
                    "XLA takes ten times as long for the gradient of Keras's own convolutions: "
                    "make the encoder of keras_pg.Conv2D, without dilation or groups, or compile "
                    "the agent with jit_compile=False beside its optimizer.",
                    stacklevel=3,
                )
            collector = self._collector(env, num_steps, self.whole_episodes)
            if collector.in_graph:
                rollouts = RolloutsInGraph()
                collector = self._native_collector = self._going_on(collector)
                cleanup.enter_context(self._fitting_natively())
            else:
                if self.steps_per_execution > 1:
                    raise ValueError(
                        f"steps_per_execution={self.steps_per_execution}: with a Gymnasium "
                        "environment it must be 1, or rollouts would be collected while the policy "
                        "changes."
                    )
                rollouts = OnDemandDataset(
                    self._collect_with(collector), collector.signature, on_error=env.close
                )
            traced_with = collector.signature, self._constants(), collector.in_graph and collector
            if traced_with != self._traced_with:
                # Keras would relax the shapes to cover both; a train step needs to know its own.
                self.train_function = self._native_program = None
                self._traced_with = traced_with
            cleanup.enter_context(rollouts.surfacing_errors())
            validation = {}
            if validation_env is not None:
                playing = cleanup.enter_context(
                    self._episodes(
                        validation_env,
                        validation_episodes,
                        seed=self.seed + 1_000_000,
                        apart_from=env,
                    )
                )
                validation = {"validation_data": playing.dataset, "validation_steps": 1}
            return super().fit(
                rollouts.dataset,
                shuffle=False,
                epochs=epochs,
                steps_per_epoch=steps_per_epoch,
                initial_epoch=initial_epoch,
                callbacks=CallbackList(
                    [RaiseOnNonFinite(), *stop, *as_list(callbacks)],
                    validates=bool(validation),
                    verbose=verbose,
                    epochs=epochs,
                    steps=steps_per_epoch,
                    model=self,
                ),
                verbose=verbose,
                validation_freq=validation_freq,
                **validation,
            )

    def check_estimator(self, advantage):
        """Raises `ValueError` if it compares groups of episodes, which this agent does not play."""
        if advantage.grouped and self.group_size == 1:
            raise ValueError(
                f"{advantage!r} compares episodes that began alike, which {type(self).__name__} "
                "does not play: use GRPO, or choose another advantage."
            )

    def check_groups(self, num_envs):
        """Raises `ValueError` if so many environments cannot be split into groups."""
        if num_envs % self.group_size:
            raise ValueError(f"num_envs={num_envs} is no multiple of group_size={self.group_size}.")

    def _prepare(self, env):
        """Builds and compiles, where that has not been done."""
        self.build(env.single_observation_space, env.single_action_space)
        if not self.compiled:
            self.compile()

    def _constants(self):
        """The settings that a trace of the train step holds as constants."""
        return {
            name: value
            for name, value in self.get_config().items()
            if name not in ("actor", "critic", "advantage", "reference")
            and not isinstance(getattr(type(self), name, None), Hyperparameter)
        }

    def _collect_with(self, collector):
        """A function of no arguments that collects the next rollout.

        Noise and first states follow from the agent's seed and the number of iterations done, so a
        resumed agent goes on as one that was never saved.
        """
        iteration = None

        def collect():
            nonlocal iteration
            first = iteration is None
            if first:
                # Here and not earlier: a callback may have restored weights since `fit` began.
                iteration = int(self.iteration.numpy())
            if first or self.whole_episodes:
                collector.reset(environment_seed(self.seed, iteration), self.group_size)
            rng = np.random.default_rng([self.seed, iteration])
            iteration += 1
            return collector.collect(rng)

        return collect

    def criticize(self, rollout):
        """The rollout with the critic's values of its states, and rewards scaled if they are to be.

        Returns:
            `keras_pg.advantages.Evaluated`, every field [T, N].
        """
        rewards = rollout.rewards
        if self.reward_scaling is not None:
            rewards = self.reward_scaling(rewards, rollout.discounted_returns, rollout.valid)
        values = next_values = tf.zeros_like(rewards)
        action_values = None
        if self.advantage.critic is not None:
            values, next_values = state_values(rollout, self._state_value)
            if self.advantage.critic == "action":
                rows = flatten_time(rollout)
                action_values = self.predictions(rows.observations, rows.actions)
                action_values = tf.reshape(action_values, rewards.shape)
        return advantages.Evaluated(
            rollout.observations,
            rewards,
            values,
            next_values,
            action_values,
            rollout.terminated,
            rollout.truncated,
            rollout.valid,
            rollout.timesteps,
            self.gamma,
            self.gae_lambda,
            self.group_size,
        )

    def _state_value(self, observations, k):
        """V(s) [B] by the critic; one of actions draws its samples from the k-th of its seeds."""
        if self.advantage.critic == "state":
            return in_parts(self.critic, observations)
        # Not the seed of the shuffling: a row's place must not depend on its samples.
        seed = tf.bitwise.invert(self.iteration_seed()) - tf.stack([tf.cast(k, tf.int64), 0])
        return self.critic.expectation(observations, self.actor, seed=seed)

    @property
    def gradient_steps(self):
        """What schedules of hyperparameters are functions of."""
        return self.optimizer.iterations

    def iteration_seed(self):
        """An integer seed [2] for this iteration's shuffling; its complement is for sampling."""
        return tf.stack([tf.cast(self.seed, tf.int64), self.iteration.value])

    def predictions(self, observations, actions):
        """The critic's V(s) or Q(s, a), [B], for raw actions; zeros without a critic."""
        if self.advantage.critic is None:
            return tf.zeros(tf.shape(actions)[:1])
        if self.advantage.critic == "state":
            return self.critic(observations)
        return self.critic(observations, self.actor.action_distribution.to_env(actions))

    def psi(self, evaluated):
        """Ψ_t [T, N] of an `Evaluated` rollout."""
        if self.discount_weighting:
            return self.advantage.discounted(evaluated)
        return self.advantage(evaluated)

    def step_weights(self, valid):
        """The weight [T·N] of each step [T, N] in the policy gradient: all alike, of sum 1."""
        return losses.mean_weights(tf.reshape(valid, [-1]))

    def learn_statistics(self, rollout, evaluated):
        """Merges the rollout into every running statistic. They are frozen until then."""
        rows = flatten_time(rollout)
        for network in (self.actor, self.critic):
            if network is not None:
                network.update_normalization(rows.observations, rows.valid)
        if self.reward_scaling is not None:
            self.reward_scaling.update(rows.discounted_returns, rows.valid)
        self.advantage.learn(evaluated)

    def with_layer_losses(self, loss, *networks):
        """The loss a gradient step descends: with what layers of these networks add to it.

        As in `keras.Model.fit` that is their regularizers, and what they gave `add_loss` when they
        were last called, which must have been for this loss. What networks share counts once.
        """
        return tf.add_n([loss, *(added for _, added in layer_losses(*networks))])

    def apply_if_finite(self, gradients, variables, unless):
        """Applies a gradient step, but not one that holds NaN or infinity.

        Args:
            gradients: one for each of `variables`, the actor's before the critic's.
            variables: the trainable variables of actor and critic.
            unless: bool scalar; do nothing where it is True.

        Returns:
            bool scalar, whether the step was taken. `nonfinite_updates` counts the steps in a row
            that were not, for want of a finite gradient.
        """
        # As one vector: a norm of each tensor would be three kernels each to compile and to start.
        flat = tf.concat([tf.reshape(g, [-1]) for g in gradients if g is not None], axis=0)
        finite = tf.math.is_finite(tf.norm(flat))
        wanted = tf.logical_not(unless)
        taken = tf.logical_and(finite, wanted)

        def apply():
            if self.critic_optimizer is None:
                self.optimizer.apply(gradients, variables)
            else:
                n = len(self.actor.trainable_variables)
                self.optimizer.apply(gradients[:n], variables[:n])
                self.critic_optimizer.apply(gradients[n:], variables[n:])
            return tf.constant(True)

        tf.cond(taken, apply, lambda: tf.constant(False))
        skipped = tf.where(
            finite, tf.zeros_like(self.nonfinite_updates), self.nonfinite_updates + 1
        )
        self.nonfinite_updates.assign(tf.where(wanted, skipped, self.nonfinite_updates))
        return taken

    def log(self, rollout, values):
        """Updates the metrics at the end of a train step and returns the logs.

        Args:
            rollout: the `Rollout` that was learnt from.
            values: scalars by name, one for each name in `tracked`.
        """
        ended = tf.logical_and(rollout.valid, tf.logical_or(rollout.terminated, rollout.truncated))
        ended = tf.cast(ended, tf.float32)
        lengths = tf.cast(rollout.timesteps + 1, tf.float32)
        self.episode_means.update_state(
            {
                "episode_return": tf.reduce_sum(rollout.episode_returns * ended),
                "episode_length": tf.reduce_sum(lengths * ended),
            },
            tf.reduce_sum(ended),
        )
        self.update_means.update_state(values)
        self.env_steps.assign_add(tf.reduce_sum(tf.cast(rollout.valid, tf.int64)))
        # Nothing else ties this to the data: the graph executor would count the iteration before
        # its rollout is collected.
        with tf.control_dependencies([rollout.rewards]):
            self.iteration.assign_add(1)
        return self.logs()

    def logs(self):
        """The metrics of the epoch so far, scalars by name."""
        return {
            **self.episode_means.result(),
            **self.update_means.result(),
            "env_steps": tf.convert_to_tensor(self.env_steps),
            "nonfinite_updates": tf.convert_to_tensor(self.nonfinite_updates),
        }
