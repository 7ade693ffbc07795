"""A contextual bandit, which the benchmark of the algorithms registers as `Bandit-v0`."""

import gymnasium
import numpy as np


class Bandit(gymnasium.Env):
    """Five arms with five numbers in sight, uniform in [-1, 1]; an arm pays its number.

    Arm 0 pays 0.5 more, which is not in sight. The best arm is worth 0.829 on average, the
    one that shows the largest number 0.767, any arm at random 0.1.
    """

    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (5,))
    action_space = gymnasium.spaces.Discrete(5)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.shown = self.np_random.uniform(-1.0, 1.0, 5).astype(np.float32)
        return self.shown, {}

    def step(self, action):
        return self.shown, float(self.shown[action] + 0.5 * (action == 0)), True, False, {}


gymnasium.register("Bandit-v0", Bandit)
