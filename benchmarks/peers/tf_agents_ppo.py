"""Runs TF-Agents' PPO on the CPU and prints one JSON line of measurements.

TF-Agents has no `fit`: its users write the loop. Here it collects by a `DynamicStepDriver` in one
graph over a natively batched environment, and learns in one of two ways:

- by default in the way that measured fastest, one gradient step of `agent.train` on each shuffled
  minibatch, all of them in one XLA-compiled loop. As in the library's `PPOLearner`, advantages are
  computed once an iteration, from values predicted while collecting;
- with `--own-loop` by `common.function(agent.train)` on the buffer's trajectories, where the agent
  itself runs through `num_epochs`: the way of the library's examples. It knows whole batches only.

Networks: separate, tanh, 64-64.

What could not be matched to the other libraries:

- The clip ratio stays constant (the agent takes a Python float); the learning rate does decay.
- TF-Agents bootstraps nothing at a time limit (`PPOAgent` zeroes every episode's last discount).
- It bootstraps a rollout's end from V(s_{T-1}), not V(s_T) (`compute_advantages` drops V(s_T)).
- Its environments spend one row on each reset. A rollout has as many rows as elsewhere, so slightly
  fewer transitions; "env_steps" counts transitions only, rows of resets are masked in the losses.
- Output layers keep TF-Agents' initialisation; hidden ones are orthogonal like the others'.

Example:
    python tf_agents_ppo.py --total-timesteps 100000 --seed 0
"""

import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import protocol
import tensorflow as tf
from tf_agents.drivers import dynamic_step_driver
from tf_agents.environments import tf_py_environment
from tf_agents.replay_buffers import tf_uniform_replay_buffer
from tf_agents.trajectories import trajectory
from tf_agents.utils import common
from tf_agents_agent import make_agent
from tf_agents_environment import VectorEnvironment


def make_collector(agent, env, num_steps, own_loop):
    """Returns a function that collects what the updater takes, and flags rows that are resets."""
    buffer = tf_uniform_replay_buffer.TFUniformReplayBuffer(
        agent.collect_data_spec, env.batch_size, max_length=num_steps + 1
    )
    # `maximum_iterations` ends the driver, so that shapes are static whatever rows are resets.
    driver = dynamic_step_driver.DynamicStepDriver(
        env, agent.collect_policy, observers=[buffer.add_batch], num_steps=tf.int32.max
    )

    @common.function
    def collect():
        time_step, _ = driver.run(maximum_iterations=num_steps)
        # One row more holds the value to bootstrap from; it is dropped by the agent, or below.
        action_step = agent.collect_policy.action(time_step)
        buffer.add_batch(trajectory.from_transition(time_step, action_step, time_step))
        experience = buffer.gather_all()
        boundaries = experience.is_boundary()[:, :-1]
        if not own_loop:
            experience = tf.nest.map_structure(
                lambda x: tf.reshape(x[:, :-1], [-1, 1, *x.shape[2:]]),
                agent.preprocess_sequence(experience),
            )
        return experience, boundaries

    return collect


def make_updater(agent, arguments, own_loop):
    """Returns a function that takes an iteration's gradient steps on what was collected."""
    if own_loop:
        return common.function(agent.train)

    # Converting the library's code too would make the first call about seven times slower.
    @tf.autograph.experimental.do_not_convert
    def train(transitions, indices):
        agent.train(tf.nest.map_structure(lambda x: tf.gather(x, indices), transitions))

    @tf.function(jit_compile=True)
    def compiled_update(transitions, minibatches):
        for indices in minibatches:
            train(transitions, indices)

    def update(transitions):
        num_rows = arguments.num_envs * arguments.num_steps
        orders = [np.random.permutation(num_rows) for _ in range(arguments.update_epochs)]
        compiled_update(transitions, np.reshape(orders, [-1, arguments.batch_size]))

    return update


def evaluate(act, env):
    """Returns the mean return of one greedy episode in each of the batch's environments."""
    time_step = env.reset()
    running = np.ones(env.batch_size, bool)
    returns = np.zeros(env.batch_size)
    while running.any():
        time_step = env.step(act(time_step).action.numpy())
        returns += running * time_step.reward
        running &= ~time_step.is_last()
    return float(returns.mean())


def main():
    own_loop = "--own-loop" in sys.argv
    if own_loop:
        sys.argv.remove("--own-loop")
    arguments = protocol.parse_arguments(__doc__)
    if own_loop and arguments.batch_size != arguments.num_envs * arguments.num_steps:
        sys.exit("--own-loop takes whole batches: --batch-size must be num_envs * num_steps.")
    if arguments.threads:
        tf.config.threading.set_intra_op_parallelism_threads(arguments.threads)
        tf.config.threading.set_inter_op_parallelism_threads(arguments.threads)
    tf.config.set_visible_devices([], "GPU")
    tf.keras.utils.set_random_seed(arguments.seed)
    env = tf_py_environment.TFPyEnvironment(
        VectorEnvironment(arguments.env, arguments.num_envs, arguments.seed)
    )
    optimizer = tf.keras.optimizers.Adam(arguments.learning_rate, epsilon=1e-5)
    train_epochs = arguments.update_epochs if own_loop else None
    agent = make_agent(env, optimizer, arguments, train_epochs)
    act = common.function(agent.policy.action)
    collect = make_collector(agent, env, arguments.num_steps, own_loop)
    update = make_updater(agent, arguments, own_loop)

    env_steps, evaluated_return = 0, None
    next_evaluation = np.inf
    if arguments.mode == "solve":
        next_evaluation = protocol.EVALUATION_INTERVAL
        evaluation_env = VectorEnvironment(
            arguments.env, protocol.EVALUATION_EPISODES, arguments.seed + 1_000
        )
    stopwatch = protocol.Stopwatch()
    while env_steps < arguments.total_timesteps:
        with stopwatch.measure("collect"):
            experience, boundaries = collect()
            env_steps += np.count_nonzero(~boundaries)
        with stopwatch.measure("update"):
            if not arguments.constant_schedules:
                remaining = max(0.0, 1.0 - env_steps / arguments.total_timesteps)
                optimizer.learning_rate = arguments.learning_rate * remaining
            update(experience)
        stopwatch.end_iteration(env_steps)
        if env_steps >= next_evaluation:
            next_evaluation += protocol.EVALUATION_INTERVAL
            with stopwatch.measure("evaluate"):
                evaluated_return = evaluate(act, evaluation_env)
            if evaluated_return >= protocol.SOLVED_RETURN:
                break
    protocol.print_report(
        library="TF-Agents" if own_loop else "TF-Agents in XLA",
        packages=("tf-agents", "tensorflow", "keras", "gymnasium", "numpy"),
        arguments=arguments,
        stopwatch=stopwatch,
        env_steps=env_steps,
        evaluated_return=evaluated_return,
    )


if __name__ == "__main__":
    main()
