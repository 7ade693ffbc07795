"""Runs keras_pg's PPO on one of its own environments; prints one JSON line of measurements.

    python keras_pg_native.py --num-envs 4 --num-steps 128

Training is `agent.fit`, with some 20 executions of several iterations. What the first takes longer
than the others is counted as compiling.
"""

import math
import statistics
import time

import keras
import native_protocol

import keras_pg

EXECUTIONS = native_protocol.CURVE_POINTS
# Without sticky actions, which gymnax's Breakout has not.
ENVIRONMENTS = {
    "CartPole": keras_pg.envs.CartPole(),
    "Breakout": keras_pg.envs.Breakout(sticky_actions=0.0),
}


class Clock(keras.callbacks.Callback):
    """When each execution ended."""

    def __init__(self):
        super().__init__()
        self.ends = [time.perf_counter()]

    def on_train_batch_end(self, batch, logs=None):
        self.ends.append(time.perf_counter())


class Adam(keras.optimizers.Adam):
    """Adam whose ε is that of optax and PyTorch, added after the second moment's correction."""

    def update_step(self, gradient, variable, learning_rate):
        epsilon, step = self.epsilon, keras.ops.cast(self.iterations + 1, "float32")
        self.epsilon = epsilon * (1.0 - self.beta_2**step) ** 0.5
        super().update_step(gradient, variable, learning_rate)
        self.epsilon = epsilon


def network(activation, seed):
    return keras.Sequential([keras.layers.Flatten(), keras_pg.mlp((64, 64), activation, seed)])


def main():
    arguments = native_protocol.parse_arguments(__doc__, envs=ENVIRONMENTS)
    iterations = arguments.total_timesteps // (arguments.num_envs * arguments.num_steps)
    steps_per_execution = max(1, round(iterations / EXECUTIONS))
    executions = iterations // steps_per_execution
    iterations = executions * steps_per_execution
    settings = native_protocol.SETTINGS[arguments.env]
    num_minibatches, updates = settings["num_minibatches"], 4 * settings["num_minibatches"]
    agent = keras_pg.PPO(
        network(settings["activation"], 2 * arguments.seed),
        network(settings["activation"], 2 * arguments.seed + 1),
        gamma=0.99,
        gae_lambda=0.95,
        clip_ratio=0.2,
        value_clip=0.2,
        entropy_coef=0.01,
        # keras_pg's value loss is a squared error, purejaxrl's half of one.
        value_coef=0.25,
        update_epochs=4,
        num_minibatches=num_minibatches,
        normalize_observations=False,
        seed=arguments.seed,
    )
    schedule = keras.optimizers.schedules.PolynomialDecay(
        settings["learning_rate"], updates * iterations, 0.0
    )
    agent.compile(
        Adam(schedule, epsilon=1e-5, global_clipnorm=0.5),
        steps_per_execution=steps_per_execution,
    )
    clock = Clock()
    history = agent.fit(
        ENVIRONMENTS[arguments.env],
        num_envs=arguments.num_envs,
        num_steps=arguments.num_steps,
        epochs=executions,
        steps_per_epoch=steps_per_execution,
        callbacks=[clock],
        verbose=0,
    ).history
    first, last = clock.ends[1], clock.ends[-1]
    # Of about the last 10 iterations, as the peers'.
    returns = history["episode_return"][-math.ceil(10 / steps_per_execution) :]
    execution = (last - first) / (executions - 1)
    native_protocol.print_report(
        "keras_pg",
        ("keras_pg", "tensorflow", "keras", "numpy"),
        arguments,
        env_steps=int(agent.env_steps.numpy()),
        compile_seconds=first - clock.ends[0] - execution,
        run_seconds=execution * executions,
        training_return=statistics.fmean(x for x in returns if not math.isnan(x)),
        curve=[
            [int(steps), value]
            for steps, value in zip(history["env_steps"], history["episode_return"])
            if not math.isnan(value)
        ],
    )


if __name__ == "__main__":
    main()
