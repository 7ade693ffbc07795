"""Runs TF-Agents' PPO on the CPU and prints one JSON line of measurements.

The throughput benchmark's peer. TF-Agents has no `fit`, so this file is the loop its users write,
in the variant that measured fastest: a `DynamicStepDriver` inside one graph over a natively batched
environment, and `agent.train` on shuffled minibatches in one XLA-compiled loop. As in the library's
`PPOLearner`, advantages are computed once an iteration, from values predicted while collecting.

What could not be matched to the other libraries:

- The clip ratio stays constant (the agent takes a Python float); the learning rate does decay.
- TF-Agents bootstraps nothing at a time limit (`PPOAgent` zeroes every episode's last discount).
- Its environments spend one row on each reset. A rollout has as many rows as elsewhere, so slightly
  fewer transitions; "env_steps" counts transitions only, rows of resets are masked in the losses.
- Output layers keep TF-Agents' initialisation; hidden ones are orthogonal like the others'.

Example:
    python tf_agents_ppo.py --total-timesteps 100000 --seed 0
"""

import functools
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import protocol
import tensorflow as tf
from tf_agents_environment import VectorEnvironment
from tf_agents.agents.ppo import ppo_clip_agent
from tf_agents.drivers import dynamic_step_driver
from tf_agents.environments import tf_py_environment
from tf_agents.networks import (
    actor_distribution_network,
    normal_projection_network,
    value_network,
)
from tf_agents.replay_buffers import tf_uniform_replay_buffer
from tf_agents.specs import tensor_spec
from tf_agents.trajectories import trajectory
from tf_agents.utils import common


def make_agent(env, optimizer, arguments):
    """Returns a `PPOClipAgent` that takes one gradient step a call of `train`."""
    time_step_spec = tensor_spec.from_spec(env.time_step_spec())
    action_spec = tensor_spec.from_spec(env.action_spec())
    observation_spec = time_step_spec.observation
    hidden_layers = dict(fc_layer_params=(64, 64), activation_fn=tf.tanh)
    actor = actor_distribution_network.ActorDistributionNetwork(
        observation_spec,
        action_spec,
        kernel_initializer=tf.keras.initializers.Orthogonal(2**0.5),
        # A free mean and a free log standard deviation starting at 0, as in Stable-Baselines3.
        continuous_projection_net=functools.partial(
            normal_projection_network.NormalProjectionNetwork,
            mean_transform=None,
            std_transform=tf.exp,
        ),
        **hidden_layers,
    )
    critic = value_network.ValueNetwork(
        observation_spec,
        kernel_initializer=tf.keras.initializers.Orthogonal(2**0.5),
        **hidden_layers,
    )
    agent = ppo_clip_agent.PPOClipAgent(
        time_step_spec,
        action_spec,
        optimizer,
        actor,
        critic,
        importance_ratio_clipping=arguments.clip_ratio,
        lambda_value=arguments.gae_lambda,
        discount_factor=arguments.gamma,
        entropy_regularization=arguments.entropy_coef,
        value_pred_loss_coef=arguments.value_coef,
        gradient_clipping=arguments.max_grad_norm,
        num_epochs=1,
        use_gae=True,
        use_td_lambda_return=True,
        normalize_rewards=False,
        normalize_observations=False,
        compute_value_and_advantage_in_train=False,
        update_normalizers_in_train=False,
        aggregate_losses_across_replicas=False,
    )
    agent.initialize()
    optimizer.build(actor.trainable_weights + critic.trainable_weights)
    return agent


def make_collector(agent, env, num_steps):
    """Returns a function that collects experience [N, T + 1, ...].

    Its last row holds the observation (and value) to bootstrap from; no other row is used twice.
    """
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
        action_step = agent.collect_policy.action(time_step)
        buffer.add_batch(trajectory.from_transition(time_step, action_step, time_step))
        return buffer.gather_all()

    return collect


def make_updater(agent, jit_compile):
    """Returns a function that takes one gradient step for each row of minibatch indices."""

    @tf.function(jit_compile=jit_compile)
    def update(experience, minibatches):
        experience = agent.preprocess_sequence(experience)
        transitions = tf.nest.map_structure(
            lambda x: tf.reshape(x[:, :-1], [-1, 1, *x.shape[2:]]), experience
        )
        for indices in minibatches:
            agent.train(tf.nest.map_structure(lambda x: tf.gather(x, indices), transitions))

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
    return returns.mean()


def main():
    arguments = protocol.parse_arguments(__doc__)
    if arguments.threads:
        tf.config.threading.set_intra_op_parallelism_threads(arguments.threads)
        tf.config.threading.set_inter_op_parallelism_threads(arguments.threads)
    tf.keras.utils.set_random_seed(arguments.seed)
    env = tf_py_environment.TFPyEnvironment(
        VectorEnvironment(arguments.env, arguments.num_envs, arguments.seed)
    )
    evaluation_env = VectorEnvironment(
        arguments.env, protocol.EVALUATION_EPISODES, arguments.seed + 1_000
    )
    optimizer = OPT
    agent = make_agent(env, optimizer, arguments)
    act = common.function(agent.policy.action)
    collect = make_collector(agent, env, arguments.num_steps)
    update = make_updater(agent, JIT)

    num_rows = arguments.num_envs * arguments.num_steps
    env_steps, evaluated_return = 0, None
    next_evaluation = protocol.EVALUATION_INTERVAL
    stopwatch = protocol.Stopwatch()
    while env_steps < arguments.total_timesteps:
        with stopwatch.measure("collect"):
            experience = collect()
            env_steps += np.count_nonzero(~experience.is_boundary()[:, :-1])
        with stopwatch.measure("update"):
            if not arguments.constant_schedules:
                remaining = max(0.0, 1.0 - env_steps / arguments.total_timesteps)
                optimizer.learning_rate = arguments.learning_rate * remaining
            orders = [np.random.permutation(num_rows) for _ in range(arguments.update_epochs)]
            update(experience, np.reshape(orders, [-1, arguments.batch_size]))
        stopwatch.end_iteration(env_steps)
        if arguments.mode == "solve" and env_steps >= next_evaluation:
            next_evaluation += protocol.EVALUATION_INTERVAL
            with stopwatch.measure("evaluate"):
                evaluated_return = evaluate(act, evaluation_env)
            if evaluated_return >= protocol.SOLVED_RETURN:
                break
    protocol.print_report(
        library="TF-Agents",
        packages=("tf-agents", "tensorflow", "keras", "gymnasium", "numpy"),
        arguments=arguments,
        stopwatch=stopwatch,
        env_steps=env_steps,
        evaluated_return=evaluated_return,
    )


if __name__ == "__main__":
    main()
