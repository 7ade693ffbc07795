"""TF-Agents' PPO agent, set as close to Stable-Baselines3's PPO as its API allows."""

import functools

import tensorflow as tf
from tf_agents.agents.ppo import ppo_clip_agent
from tf_agents.networks import (
    actor_distribution_network,
    normal_projection_network,
    value_network,
)
from tf_agents.specs import tensor_spec


def make_agent(env, optimizer, arguments, train_epochs=None):
    """Returns a `PPOClipAgent`.

    A call of its `train` takes one gradient step on transitions with advantages, or, given
    `train_epochs`, computes advantages from trajectories and takes that many whole-batch steps.
    """
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
        num_epochs=train_epochs or 1,
        use_gae=True,
        use_td_lambda_return=True,
        normalize_rewards=False,
        normalize_observations=False,
        compute_value_and_advantage_in_train=train_epochs is not None,
        update_normalizers_in_train=False,
        aggregate_losses_across_replicas=False,
    )
    agent.initialize()
    optimizer.build(actor.trainable_weights + critic.trainable_weights)
    return agent
