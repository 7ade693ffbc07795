"""Small tasks that are about one difficulty each, with answers that are known."""

import gymnasium
import numpy as np
import tensorflow as tf

from keras_pg import randomness
from keras_pg.envs.drawing import tiles
from keras_pg.envs.native_env import NativeEnv
from keras_pg.hyperparameters import check_count, check_range


class ContextualBandit(NativeEnv):
    """Arms with a number each in sight, uniform in [-1, 1]; an arm pays its number. One step.

    Arm 0 pays 0.5 more, which is not in sight. Of five arms the best is worth 0.829 in the mean,
    the one that shows the largest number 0.767, and any at random 0.1.

    Args:
        arms: how many.
    """

    max_episode_steps = None

    def __init__(self, arms=5):
        self.arms = check_count("arms", arms)
        self.observation_space = gymnasium.spaces.Box(-1.0, 1.0, (arms,))
        self.action_space = gymnasium.spaces.Discrete(arms)

    def reset(self, seeds):
        return 2.0 * randomness.uniform(seeds, (self.arms,)) - 1.0

    def observe(self, state):
        return state

    def step(self, state, actions, seeds):
        rewards = tf.gather(state, actions, batch_dims=1) + tf.where(actions == 0, 0.5, 0.0)
        return state, rewards, tf.ones_like(actions, tf.bool)


class Gridworld(NativeEnv):
    """A square of fields, from one corner to the opposite one; -0.1 a step, and 1 for arriving.

    A move up, right, down or left slips with some probability: its direction is then random. What
    would leave the square stays where it is. `model` is all there is to know: with it, the exact
    policy gradient is a linear solve away.

    Args:
        size: fields along an edge, at least 2.
        slip: the probability, in [0, 1].
    """

    max_episode_steps = 200
    action_space = gymnasium.spaces.Discrete(4)

    def __init__(self, size=4, slip=0.1):
        self.size = check_count("size", size)
        if size < 2:
            raise ValueError(f"size must be at least 2, received {size}.")
        self.slip = check_range("slip", slip, 0.0, 1.0)
        self.observation_space = gymnasium.spaces.Discrete(size * size)

    def reset(self, seeds):
        return tf.zeros_like(seeds[:, 0])

    def observe(self, state):
        return state

    def step(self, state, actions, seeds):
        slips, direction = tf.unstack(randomness.uniform(seeds, (2,)), axis=-1)
        direction = tf.cast(4.0 * direction, actions.dtype)
        state = tf.gather_nd(
            tf.constant(self._following()),
            tf.stack([state, tf.where(slips < self.slip, direction, actions)], axis=-1),
        )
        arrived = tf.equal(state, self.size**2 - 1)
        return state, tf.where(arrived, 0.9, -0.1), arrived

    def render(self, state):
        kinds = np.zeros(self.size**2, int)
        kinds[-1] = 1
        kinds[state] = 2
        return tiles(kinds.reshape(self.size, self.size), ("#e8e8e8", "#54a24b", "#f58518"))

    def _following(self):
        """The field that each direction leads to, [S, 4]."""
        row, column = np.divmod(np.arange(self.size**2), self.size)
        moves = [(-1, 0), (0, 1), (1, 0), (0, -1)]
        last = self.size - 1
        following = [
            np.clip(row + down, 0, last) * self.size + np.clip(column + right, 0, last)
            for down, right in moves
        ]
        return np.stack(following, axis=-1)

    def model(self):
        """(P [S, 4, S] of the next field, expected rewards [S, 4]) as float64 arrays.

        The last field is terminal. `max_episode_steps` is no part of it.
        """
        to = np.eye(self.size**2)[self._following()]
        transitions = (1 - self.slip) * to + self.slip * to.mean(axis=1, keepdims=True)
        return transitions, transitions[:, :, -1] - 0.1


class TMaze(NativeEnv):
    """A corridor that ends in a T: which way to turn there is said in its first field only.

    Actions are up, right, down, left. At the junction, up or down ends the episode, with 4 on the
    side that was shown and -0.1 on the other. Moves into a wall cost 0.1, others nothing. The
    observation is what Bakker's is: 011 or 110 in the first field, which shows the side; 101 in the
    corridor, 010 at the junction. Without memory, no policy is worth more than 1.95.

    Args:
        length: fields from the first to the junction, at least 1.

    Source: Bakker, 2001, "Reinforcement learning with long short-term memory", section 4.
    """

    max_episode_steps = 200
    observation_space = gymnasium.spaces.Box(0.0, 1.0, (3,))
    action_space = gymnasium.spaces.Discrete(4)

    def __init__(self, length=10):
        self.length = check_count("length", length)

    def reset(self, seeds):
        up = randomness.uniform(seeds, (1,))[:, 0] < 0.5
        return {"place": tf.zeros_like(seeds[:, 0]), "up": up}

    def observe(self, state):
        place, up = state["place"][:, None], state["up"][:, None]
        shown = tf.where(up, [[0.0, 1.0, 1.0]], [[1.0, 1.0, 0.0]])
        elsewhere = tf.where(place == self.length, [[0.0, 1.0, 0.0]], [[1.0, 0.0, 1.0]])
        return tf.where(place == 0, shown, elsewhere)

    def render(self, state):
        # Walls, the corridor, the side that is right, and who walks there.
        kinds = np.zeros((3, self.length + 1), int)
        kinds[1] = kinds[:, -1] = 1
        kinds[0 if state["up"] else 2, -1] = 2
        kinds[1, state["place"]] = 3
        return tiles(kinds, ("#555555", "#e8e8e8", "#54a24b", "#f58518"))

    def step(self, state, actions, seeds):
        place, up = state["place"], state["up"]
        turns = tf.equal(actions % 2, 0)
        over = (place == self.length) & turns
        right = over & tf.equal(actions == 0, up)
        moved = tf.where(actions == 1, place + 1, tf.where(actions == 3, place - 1, place))
        moved = tf.clip_by_value(moved, 0, self.length)
        bumped = ~over & tf.equal(moved, place)
        rewards = tf.where(right, 4.0, tf.where(over | bumped, -0.1, 0.0))
        return {"place": moved, "up": up}, rewards, over
