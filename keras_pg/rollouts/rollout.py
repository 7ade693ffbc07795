"""The data one policy iteration learns from."""

from typing import Any, NamedTuple


class Rollout(NamedTuple):
    """T consecutive steps of N environments, time-major.

    Everything is raw: observations before normalization, rewards before scaling, actions before
    clipping or squashing to the environment's bounds.
    """

    observations: Any  # [T, N, ...] s_t, in the space's dtype
    actions: Any  # [T, N, ...] the raw sample
    rewards: Any  # float32 [T, N] r_t
    terminated: Any  # bool [T, N] the step ended in a terminal state
    truncated: Any  # bool [T, N] the episode was cut at this step
    valid: Any  # bool [T, N] False where the environment only reset itself
    timesteps: Any  # int32 [T, N] t within the episode
    next_observations: Any  # [T, N, ...] s_{t+1}, before any reset
    episode_returns: Any  # float32 [T, N] rewards of the episode so far, r_t included
    discounted_returns: Any  # float32 [T, N] R_t = γ R_{t-1} + r_t within the episode
