"""Runs keras_pg's PPO and prints one JSON line of measurements, as the peers do.

Collecting is timed by wrapping the collector; updating is the rest of each of Keras's batches, so
Keras's own loop and the dataset between the two count as updating.

With `--make-vec` the environment is what `gymnasium.make_vec` makes of the id: the vectorised
implementation that Gymnasium has of CartPole-v1, not single environments one after the other. With
`--envpool` it is EnvPool's, which steps its copies in threads of its own.

Example:
    python keras_pg_ppo.py --total-timesteps 100000 --seed 0
"""

import contextlib
import math
import sys

import gymnasium
import keras
import protocol
import tensorflow as tf

import keras_pg
from keras_pg.rollouts.vector_env import VectorEnvCollector


class Timing(keras.callbacks.Callback):
    """Times each batch and, in it, collecting; stops once the task is solved."""

    def __init__(self, stopwatch):
        super().__init__()
        self.stopwatch, self.evaluated_return = stopwatch, None
        collect = VectorEnvCollector.collect

        def timed_collect(collector, rng=None):
            phase = "evaluate" if rng is None else "collect"
            with stopwatch.measure(phase):
                return collect(collector, rng)

        VectorEnvCollector.collect = timed_collect

    def on_train_batch_begin(self, batch, logs=None):
        self.batch = contextlib.ExitStack()
        self.batch.enter_context(self.stopwatch.measure("update"))

    def on_train_batch_end(self, batch, logs=None):
        self.batch.close()
        self.stopwatch.end_iteration(int(logs["env_steps"]))

    def on_epoch_end(self, epoch, logs=None):
        self.evaluated_return = logs.get("val_episode_return")
        if self.evaluated_return is not None and self.evaluated_return >= protocol.SOLVED_RETURN:
            self.model.stop_training = True


def main():
    maker = None
    for flag in ("--make-vec", "--envpool"):
        if flag in sys.argv:
            sys.argv.remove(flag)
            maker = flag
    arguments = protocol.parse_arguments(__doc__)
    if arguments.threads:
        tf.config.threading.set_intra_op_parallelism_threads(arguments.threads)
    batch_size = arguments.num_envs * arguments.num_steps
    num_minibatches = batch_size // arguments.batch_size
    iterations = math.ceil(arguments.total_timesteps / batch_size)
    gradient_steps = iterations * arguments.update_epochs * num_minibatches

    def schedule(value):
        if arguments.constant_schedules:
            return value
        return keras.optimizers.schedules.PolynomialDecay(value, gradient_steps, 0.0)

    agent = keras_pg.PPO(
        gamma=arguments.gamma,
        gae_lambda=arguments.gae_lambda,
        clip_ratio=schedule(arguments.clip_ratio),
        entropy_coef=arguments.entropy_coef,
        value_coef=arguments.value_coef,
        update_epochs=arguments.update_epochs,
        num_minibatches=num_minibatches,
        normalize_observations=False,
        seed=arguments.seed,
    )
    optimizer = keras.optimizers.Adam(
        schedule(arguments.learning_rate), epsilon=1e-5, global_clipnorm=arguments.max_grad_norm
    )
    agent.compile(optimizer)
    solve = arguments.mode == "solve"
    steps_per_epoch = math.ceil(protocol.EVALUATION_INTERVAL / batch_size) if solve else iterations
    timing = Timing(protocol.Stopwatch())
    env = arguments.env
    if maker == "--make-vec":
        env = gymnasium.make_vec(env, arguments.num_envs)
    elif maker == "--envpool":
        import envpool

        env = envpool.make(
            env, env_type="gymnasium", num_envs=arguments.num_envs, seed=arguments.seed
        )
    agent.fit(
        env,
        num_envs=arguments.num_envs,
        num_steps=arguments.num_steps,
        epochs=math.ceil(iterations / steps_per_epoch),
        steps_per_epoch=steps_per_epoch,
        validation_env=arguments.env if solve else None,
        validation_episodes=protocol.EVALUATION_EPISODES,
        callbacks=[timing],
        verbose=0,
    )
    protocol.print_report(
        library="keras_pg",
        packages=("keras_pg", "tensorflow", "keras", "ai-edge-litert", "gymnasium", "numpy"),
        arguments=arguments,
        stopwatch=timing.stopwatch,
        env_steps=int(agent.env_steps.numpy()),
        evaluated_return=timing.evaluated_return,
    )


if __name__ == "__main__":
    main()
