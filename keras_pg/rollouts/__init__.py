"""Collecting rollouts: the data, the acting engines, and the collectors."""

from keras_pg.envs.native_env import Copies
from keras_pg.rollouts.acting import engine_for
from keras_pg.rollouts.closing import closing
from keras_pg.rollouts.making import make_vector_env
from keras_pg.rollouts.native_env import NativeEnvCollector
from keras_pg.rollouts.separate import check_apart
from keras_pg.rollouts.vector_env import VectorEnvCollector


def collector_for(env, actor, *, num_steps, gamma, engine_for=engine_for, whole_episodes=False):
    """The collector of T = `num_steps` steps for an environment: the one place to look at its type.

    Args:
        env: a `gymnasium.vector.VectorEnv`, or `Copies` of a native environment.
        actor: the policy that acts.
        num_steps: T.
        gamma: discount of `Rollout.discounted_returns`.
        engine_for: (actor, num_envs) → an acting engine. A native environment needs none.
        whole_episodes: see `VectorEnvCollector`.
    """
    if isinstance(env, Copies):
        return NativeEnvCollector(
            env, actor, num_steps=num_steps, gamma=gamma, whole_episodes=whole_episodes
        )
    return VectorEnvCollector(
        env,
        engine_for(actor, env.num_envs),
        actor.action_distribution,
        num_steps=num_steps,
        gamma=gamma,
        whole_episodes=whole_episodes,
    )


__all__ = ["check_apart", "closing", "collector_for", "make_vector_env"]
