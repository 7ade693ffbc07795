"""Times one update of keras_pg's TRPO and prints one JSON line.

The update is `TRPO.train_step` compiled by XLA, as `fit` runs it, on a constant rollout. "whole" is
an agent as it is by default, with GAE and a critic, whose values and regression are in the update.
"actor" is one with `advantage="reward_to_go"`, which has no critic.

Example:
    python keras_pg_trpo.py --seed 0
"""

import os

import keras
import numpy as np
import tensorflow as tf
import trpo_protocol as protocol

import keras_pg
from keras_pg.rollouts.rollout import Rollout


def make_rollout(arguments):
    data = protocol.synthetic_rollout(arguments)
    zeros = np.zeros_like(data["rewards"])
    rollout = Rollout(
        observations=data["observations"][:-1],
        actions=data["actions"],
        rewards=data["rewards"],
        terminated=data["terminated"],
        truncated=np.zeros_like(data["terminated"]),
        valid=np.ones_like(data["terminated"]),
        timesteps=zeros.astype(np.int32),
        next_observations=data["observations"][1:],
        episode_returns=zeros,
        discounted_returns=zeros,
    )
    return tf.nest.map_structure(tf.constant, rollout)


def measure(advantage, rollout, arguments):
    agent = keras_pg.TRPO(
        gamma=arguments.gamma,
        advantage=advantage,
        gae_lambda=arguments.gae_lambda,
        max_kl=arguments.max_kl,
        cg_iters=arguments.cg_iters,
        cg_damping=arguments.cg_damping,
        backtrack_ratio=arguments.backtrack_ratio,
        backtrack_iters=arguments.backtrack_iters,
        critic_epochs=arguments.critic_epochs,
        num_minibatches=arguments.num_steps * arguments.num_envs // arguments.batch_size,
        normalize_observations=False,
        seed=arguments.seed,
    )
    agent.compile(keras.optimizers.Adam(arguments.learning_rate, epsilon=arguments.adam_epsilon))
    agent.build(*protocol.make_spaces(arguments))
    train_step = tf.function(agent.train_step, jit_compile=True, autograph=False)
    variables = agent.trainable_variables
    initial = [tf.identity(variable) for variable in variables]

    def update():
        logs = train_step(rollout)
        names = ("line_search_steps", "line_search_success", "kl")
        return {name: float(logs[name]) for name in names}

    def restore():
        agent.reset_metrics()  # The logs are means since then.
        for variable, value in zip(variables, initial, strict=True):
            variable.assign(value)

    return protocol.measure_updates(update, restore, arguments)


def main():
    arguments = protocol.parse_arguments(__doc__)
    if arguments.threads:
        tf.config.threading.set_intra_op_parallelism_threads(arguments.threads)
    rollout = make_rollout(arguments)
    protocol.print_report(
        library="keras_pg",
        packages=("keras_pg", "tensorflow", "keras", "gymnasium", "numpy"),
        arguments=arguments,
        threads=arguments.threads or len(os.sched_getaffinity(0)),
        actor=measure("reward_to_go", rollout, arguments),
        whole=measure("gae", rollout, arguments),
    )


if __name__ == "__main__":
    main()
