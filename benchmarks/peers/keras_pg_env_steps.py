"""Steps native CartPoles with random actions and no policy; prints one JSON line.

    python keras_pg_env_steps.py --num-envs 1024

It is the ceiling of what training on them could reach: one compiled loop, resets included.
"""

import time

import native_protocol
import tensorflow as tf

import keras_pg
from keras_pg import randomness
from keras_pg.envs.native_env import seeds_of_call, step_and_reset


def main():
    arguments = native_protocol.parse_arguments(__doc__)
    env, n = keras_pg.envs.CartPole(), arguments.num_envs
    steps = max(1000, arguments.total_timesteps // n)
    seeds = tf.range(n, dtype=tf.int64)

    @tf.function(jit_compile=True, autograph=False)
    def run(call):
        def body(i, state, timesteps, total):
            now = seeds_of_call(seeds, call + tf.cast(i, tf.int64))
            actions = tf.cast(randomness.uniform(now, (1,))[:, 0] < 0.5, tf.int64)
            state, timesteps, step = step_and_reset(env, state, timesteps, actions, now)
            # Of all that a step gives, or XLA would leave out what nobody asks for.
            seen = tf.reduce_sum(step.rewards) + 1e-9 * tf.reduce_sum(step.final_observations)
            return i + 1, state, timesteps, total + seen

        first = tf.constant(0), env.reset(seeds_of_call(seeds, call)), tf.zeros(n, tf.int32), 0.0
        return tf.while_loop(lambda i, *_: i < steps, body, first)[-1]

    start = time.perf_counter()
    run(tf.constant(0, tf.int64)).numpy()
    compiled = time.perf_counter()
    total = run(tf.constant(steps, tf.int64)).numpy()
    done = time.perf_counter()
    native_protocol.print_report(
        "keras_pg",
        ("keras_pg", "tensorflow", "numpy"),
        arguments,
        env_steps=steps * n,
        compile_seconds=(compiled - start) - (done - compiled),
        run_seconds=done - compiled,
        training_return=float(total),
    )


if __name__ == "__main__":
    main()
