"""Playing whole episodes with a policy that does not learn."""

from typing import Any, NamedTuple

import numpy as np

# Half an hour at 60 steps a second.
LONGEST_EPISODE = 108_000


class Episodes(NamedTuple):
    """E finished episodes."""

    returns: Any  # float32 [E] undiscounted sum of raw rewards
    lengths: Any  # int32 [E] steps

    def described(self):
        """Both by name, with their standard deviations, of the E episodes and divided by E."""
        return {
            "episode_returns": self.returns,
            "episode_lengths": self.lengths,
            "episode_return_std": float(np.std(self.returns, dtype=np.float64)),
            "episode_length_std": float(np.std(self.lengths, dtype=np.float64)),
        }


def play_episodes(collector, episodes, *, seed, deterministic=True):
    """Plays a fixed number of episodes in each environment.

    Which environment plays how many is settled beforehand. Taking the first `episodes` to finish
    anywhere would favour short ones.

    Args:
        collector: a collector over N environments; it is reset first.
        episodes: E ≥ 1, spread evenly over the environments.
        seed: environment i starts from `seed + i`.
        deterministic: act by the mode, otherwise sample.

    Returns:
        `Episodes`, ordered by environment.

    Raises:
        RuntimeError: an episode has lasted 108,000 steps.
    """
    n = collector.env.num_envs
    quotas = np.full(n, episodes // n) + (np.arange(n) < episodes % n)
    rng = None if deterministic else np.random.default_rng(seed)
    finished = [[] for _ in range(n)]
    collector.reset(seed)
    while any(len(done) < quota for done, quota in zip(finished, quotas)):
        rollout = collector.collect(rng)
        ends = rollout.valid & (rollout.terminated | rollout.truncated)
        for t, i in np.argwhere(ends):
            finished[i].append((rollout.episode_returns[t, i], rollout.timesteps[t, i] + 1))
        if rollout.timesteps[-1].max() >= LONGEST_EPISODE:
            raise RuntimeError(
                f"Environment {rollout.timesteps[-1].argmax()} has been in one episode for "
                f"{LONGEST_EPISODE:,} steps, and may never end it under this policy. Wrap it in "
                "gymnasium.wrappers.TimeLimit."
            )
    played = [episode for done, quota in zip(finished, quotas) for episode in done[:quota]]
    returns, lengths = zip(*played)
    return Episodes(np.array(returns, np.float32), np.array(lengths, np.int32))
