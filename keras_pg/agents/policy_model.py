"""An agent as it acts: evaluated, asked for actions, exported. Knows nothing of learning."""

import contextlib
import functools
import hashlib
import types

import gymnasium
import keras
import tensorflow as tf

from keras_pg import envs, randomness, saved_model, spaces, video
from keras_pg.hyperparameters import check_count, check_seed
from keras_pg.networks import Critic
from keras_pg.progress import with_progress_bar
from keras_pg.rollouts import check_apart, closing, collector_for, make_vector_env
from keras_pg.rollouts.acting import engine_for
from keras_pg.rollouts.dataset import OnDemandDataset
from keras_pg.rollouts.evaluation import Episodes, play_episodes


class Means(keras.metrics.Metric):
    """Means of several named scalars since the epoch began; NaN while there is nothing to average.

    One variable holds all the sums. Each variable more would be an input and an output of the
    compiled train step.
    """

    def __init__(self, names, name):
        super().__init__(name=name)
        self.names = tuple(names)
        self.sums = self.add_weight(name="sums", shape=(len(self.names),), initializer="zeros")
        self.count = self.add_weight(name="count", shape=(), initializer="zeros")

    def update_state(self, sums, count=1.0):
        """Adds `count` observations, given {name: their sum}."""
        self.sums.assign_add(tf.stack([tf.cast(sums[name], tf.float32) for name in self.names]))
        self.count.assign_add(tf.cast(count, tf.float32))

    def result(self):
        return dict(zip(self.names, tf.unstack(self.sums / self.count)))


class PolicyModel(keras.Model):
    """`evaluate`, `predict`, `act` and `export` of an actor: what an `Agent` is beside learning.

    An agent gives it `actor`, `critic`, `advantage`, `gamma` and `seed`, and makes the networks
    and compiles in `_prepare(env)`.
    """

    def __init__(self, name):
        super().__init__(name=name)
        self.actor = self.critic = None
        # Converting an actor takes most of a second: once for each number of environments.
        self._engine_for = functools.cache(engine_for)
        # Of which policy `evaluate` was last asked, and what it said, for `export` to tell.
        self._evaluation = None
        self._evaluating_collector = None
        # A counter beside the seed, since Keras does not save the state of a SeedGenerator.
        self.sampled_batches = self._counter("sampled_batches")
        self.episode_means = Means(("episode_return", "episode_length"), name="episode_means")

    def _counter(self, name):
        """An integer that is saved with the agent."""
        return self.add_weight(
            name=name, shape=(), dtype="int64", initializer="zeros", trainable=False
        )

    def _collector(self, env, num_steps, whole_episodes=False):
        return collector_for(
            env,
            self.actor,
            num_steps=num_steps,
            gamma=self.gamma,
            engine_for=self._engine_for,
            whole_episodes=whole_episodes,
        )

    def evaluate(
        self,
        env=None,
        episodes=20,
        *,
        num_envs=None,
        vectorization="sync",
        deterministic=True,
        seed=None,
        return_episodes=False,
        verbose="auto",
        callbacks=None,
        **keras_arguments,
    ):
        """Plays whole episodes and returns {"episode_return": mean, "episode_length": mean}.

        Args:
            env: as in `fit`.
            episodes: how many to play, spread evenly over the environments.
            num_envs: copies of an id or factory; default 8, or `episodes` if that is fewer.
            vectorization: "sync" or "async".
            deterministic: act by the mode of the policy, otherwise sample.
            seed: environment i starts from `seed + i`, an integer from 0 to 2⁶²; default derived
                from the agent's seed, and not the one training started from.
            return_episodes: return what each episode was, too: "episode_returns" float32 [E] and
                "episode_lengths" int32 [E], ordered by environment, and their standard deviations
                (of the E episodes, divided by E) "episode_return_std" and "episode_length_std".
            verbose, callbacks: as in `keras.Model.evaluate`.

        Raises:
            ValueError: the environment's spaces are not those of the agent.

        Example:
        >>> import keras_pg
        >>> agent = keras_pg.A2C(seed=0)
        >>> found = agent.evaluate("CartPole-v1", 4, return_episodes=True, verbose=0)
        >>> len(found["episode_returns"]), found["episode_return_std"] > 0
        (4, True)
        """
        if "_use_cached_eval_dataset" in keras_arguments:
            # Keras, evaluating the validation dataset that `fit` has given it.
            return super().evaluate(verbose=verbose, callbacks=callbacks, **keras_arguments)
        if env is None or keras_arguments:
            unknown = "".join(f" It has no argument {name!r}." for name in keras_arguments)
            raise TypeError(
                'evaluate plays episodes in an environment: agent.evaluate("CartPole-v1", '
                f"episodes=20).{unknown}"
            )
        seed = self._evaluation_seed(seed)
        with self._episodes(
            env, episodes, num_envs, vectorization, seed=seed, deterministic=deterministic
        ) as playing:
            result = super().evaluate(
                playing.dataset,
                steps=1,
                verbose=verbose,
                callbacks=with_progress_bar(callbacks, verbose),
                return_dict=True,
            )
        name = type(env).__name__ if isinstance(env, envs.NativeEnv) else None
        conditions = {
            "env": env if isinstance(env, str) else getattr(getattr(env, "spec", None), "id", name),
            "episodes": int(episodes),
            "deterministic": bool(deterministic),
            "seed": int(seed),
        }
        self._evaluation = self._policy_digest(), {**result, **conditions}
        return {**result, **playing.last.described()} if return_episodes else result

    def _evaluation_seed(self, seed):
        """The seed that was given, or else one that training does not start from."""
        return self.seed + 2_000_000 if seed is None else check_seed("seed", seed)

    def _policy_digest(self):
        weights = b"".join(weight.tobytes() for weight in self.actor.get_weights())
        return hashlib.sha256(weights).hexdigest()

    def evaluation(self):
        """What `evaluate` said of the policy as it is now, and under which conditions, as a dict.

        None if it was not asked since the policy last changed; it is not saved with the agent.
        """
        if self._evaluation is None or self._evaluation[0] != self._policy_digest():
            return None
        return dict(self._evaluation[1])

    @contextlib.contextmanager
    def _episodes(
        self,
        env,
        episodes,
        num_envs=None,
        vectorization="sync",
        *,
        seed,
        deterministic=True,
        apart_from=None,
    ):
        """A dataset whose every element is `Episodes` played by the policy of that moment.

        `apart_from` is an environment in training, which must not be the one to play in.

        Yields:
            A namespace of `dataset`, and `last`, what was played last.
        """
        check_count("episodes", episodes)
        if num_envs is None and not isinstance(env, gymnasium.Env | gymnasium.vector.VectorEnv):
            num_envs = min(8, episodes)
        env, ours = make_vector_env(env, num_envs, vectorization)
        with closing(env, ours):
            check_apart(apart_from, env)
            self._prepare(env)
            collector = self._collector(env, num_steps=64)
            if collector.in_graph:
                # Compiled once for calls of `evaluate` that differ in nothing but the policy.
                last = self._evaluating_collector
                collector = last if last is not None and last.is_like(collector) else collector
                self._evaluating_collector = collector
            playing = types.SimpleNamespace(last=None)

            def play():
                playing.last = play_episodes(
                    collector, episodes, seed=seed, deterministic=deterministic
                )
                return playing.last

            specs = tf.TensorSpec((episodes,), tf.float32), tf.TensorSpec((episodes,), tf.int32)
            dataset = OnDemandDataset(play, Episodes(*specs), on_error=env.close)
            playing.dataset = dataset.dataset
            with dataset.surfacing_errors():
                yield playing

    def record(self, env, path, episodes=1, *, deterministic=True, seed=None):
        """Plays episodes and writes a video of them, an animated GIF.

        Args:
            env: an environment id, a `gymnasium.Env` made with `render_mode="rgb_array"`, a factory
                of one, or a `keras_pg.envs.NativeEnv` that has a `render`.
            path: file to write, which ends in .gif.
            episodes: how many to play, one after the other.
            deterministic: act by the mode of the policy, otherwise sample.
            seed: of the first episode; default as in `evaluate`.

        Returns:
            {"episode_return": mean, "episode_length": mean} of the episodes that are seen.

        Raises:
            ValueError: the path is not one of a GIF, the environment draws no pictures, or its
                spaces are not those of the agent.
            TypeError: `env` is none of these.
            ImportError: what the environment draws with is not installed (extra `video`).
            RuntimeError: there would be more than 5,000 pictures.

        Example:
        >>> import os, tempfile, keras_pg
        >>> path = os.path.join(tempfile.mkdtemp(), "catch.gif")
        >>> agent = keras_pg.A2C(seed=0)
        >>> agent.record(keras_pg.envs.Catch(), path)["episode_length"]
        9.0
        >>> os.path.exists(path)
        True
        """
        path = video.check_path(path)
        check_count("episodes", episodes)
        seed = self._evaluation_seed(seed)
        with video.filmed(env, episodes) as camera:
            with self._episodes(
                camera, episodes, seed=seed, deterministic=deterministic
            ) as playing:
                played = next(iter(playing.dataset))
            camera.write(path)
        means = {"episode_return": played.returns, "episode_length": played.lengths}
        return {name: float(tf.reduce_mean(tf.cast(x, tf.float32))) for name, x in means.items()}

    def test_step(self, episodes):
        """Keras's `evaluate` on a batch of `Episodes`."""
        sums = {
            "episode_return": tf.reduce_sum(episodes.returns),
            "episode_length": tf.reduce_sum(episodes.lengths),
        }
        self.episode_means.update_state(sums, tf.size(episodes.returns))
        return self.episode_means.result()

    def compute_loss(self, *arguments, **keyword_arguments):
        """None of x and y: what an agent learns from is a rollout.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(
            f"{type(self).__name__} computes its loss from a `keras_pg.Rollout` in `train_step`, "
            "not from x and y. Layers add to it by regularizers and `add_loss`."
        )

    def train_on_batch(self, *arguments, **keyword_arguments):
        """Nothing to be called: a batch is a rollout, which `fit` collects.

        Raises:
            TypeError: always.
        """
        raise TypeError(
            "A batch of an agent is a rollout by its own policy, which `fit` collects. One "
            f"iteration is {type(self).__name__}.fit(env, epochs=1, steps_per_epoch=1)."
        )

    def test_on_batch(self, *arguments, **keyword_arguments):
        """Nothing to be called: `evaluate` plays episodes.

        Raises:
            TypeError: always.
        """
        raise TypeError("An agent is tested by playing episodes: call evaluate(env, episodes=20).")

    def __call__(self, *arguments, **keyword_arguments):
        self._check_built()
        return super().__call__(*arguments, **keyword_arguments)

    def call(self, observations):
        """The deterministic env-ready actions for a batch of raw observations."""
        return self.described_actions(observations)["action"]

    def predict(self, observations, batch_size=None, verbose="auto"):
        """`keras.Model.predict`: deterministic env-ready actions for a batch of raw observations.

        Raises:
            ValueError: the agent has not been built, or the shape is not [B, *observation shape].
        """
        observations = self._batch(observations, single=False)[0]
        if not len(spaces.without_mask(observations)):  # of which Keras makes no batch
            return self.act(observations)
        # As a dataset, since Keras would give arrays of rank 1 a second axis.
        dataset = tf.data.Dataset.from_tensor_slices(observations).batch(batch_size or 32)
        return super().predict(dataset, verbose=verbose)

    def act(self, observations, deterministic=True):
        """Env-ready actions, for one observation or for a batch.

        Args:
            observations: raw, as the environment gives them; of the shape of the space, or with one
                leading axis more. A dictionary of such arrays where the space has a mask.
            deterministic: the mode, otherwise a sample. Samples continue a stream that starts
                from the agent's seed and is saved with it.

        Returns:
            NumPy array, one action or a batch of them, valid for the action space.

        Raises:
            ValueError: the agent has not been built, the shape fits neither form, or a mask leaves
                no legal action.
        """
        batch, single = self._batch(observations)
        act = self._act_by_mode if deterministic else self._act_by_sample
        actions = act(tf.nest.map_structure(tf.constant, batch)).numpy()
        return actions[0] if single else actions

    @functools.cached_property
    def _act_by_mode(self):
        return self._trace(self.call)

    @functools.cached_property
    def _act_by_sample(self):
        distribution = self.actor.action_distribution

        def sample(observations):
            seed = tf.stack([tf.constant(self.seed, tf.int64), self.sampled_batches.value])
            self.sampled_batches.assign_add(1)
            parameters = self.actor(observations)
            noise = distribution.stateless_noise(
                randomness.bits(seed, (tf.shape(parameters)[0], 2))
            )
            return distribution.to_env(distribution.sample(parameters, noise))

        return self._trace(sample)

    def _trace(self, act):
        """`act` as a graph for batches of any size: one trace, whatever it is called with."""
        batch = spaces.observation_specs(self.actor.observation_space)
        return tf.function(act, autograph=False).get_concrete_function(batch)

    def _check_built(self):
        if self.actor is None:
            raise ValueError("The agent has no networks yet: call `fit`, `build` or `evaluate`.")

    def _batch(self, observations, single=True):
        """(observations as a batch of the space's dtype, whether it was a single one)."""
        self._check_built()
        actor = self.actor
        return spaces.as_batch(observations, actor.observation_space, actor.action_space, single)

    def described_actions(self, observations):
        """{"action": env-ready mode, and what describes it} for a batch of raw observations."""
        distribution = self.actor.action_distribution
        parameters = self.actor(observations)
        action = distribution.to_env(distribution.mode(parameters))
        return {"action": action, **distribution.describe(parameters)}

    def export(self, path, format="saved_model", value=False, labels=(), keep=None):
        """Writes the policy as an artefact that runs without keras_pg, see `keras_pg.saved_model`.

        Args:
            path: base directory; `path/1`, `path/2`, … are its versions.
            format: "saved_model" for TensorFlow Serving, "litert" for devices, "onnx" for ONNX
                runtimes (extra `onnx`).
            value: include the critic, as signature `value`.
            labels: names for this version, such as "stable"; `path/labels.json` holds them.
            keep: remove all but this many of the newest versions, and those that have a label.

        Returns:
            The directory of the new version.
        """
        if self.actor is None:
            raise ValueError("There is no policy to export yet: call `fit` or `build` first.")
        if value and not isinstance(self.critic, Critic):
            raise ValueError(
                f"value=True, but {self.advantage!r} makes an agent without a critic of states."
            )
        return saved_model.export(self, path, format=format, value=value, labels=labels, keep=keep)
