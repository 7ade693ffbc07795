"""Games on a small board, whose observations are images with a channel for each kind of thing."""

import gymnasium
import numpy as np
import tensorflow as tf

from keras_pg import randomness
from keras_pg.envs.drawing import tiles
from keras_pg.envs.native_env import NativeEnv
from keras_pg.hyperparameters import check_count, check_range


def _board(row, column, shape):
    """Bool [N, *shape]: True at (row, column) [N], False elsewhere."""
    rows, columns = tf.range(shape[0], dtype=row.dtype), tf.range(shape[1], dtype=column.dtype)
    return tf.equal(row[:, None, None], rows[:, None]) & tf.equal(column[:, None, None], columns)


class Catch(NativeEnv):
    """A ball falls a row a step; the paddle in the last row must be under it. 1 if it is, else -1.

    The ball starts in any column of the first row, the paddle in the middle. Actions are left, stay
    and right; the episode ends when the ball arrives. It can always be caught.

    Args:
        rows, columns: of the board, at least 2 and 1.

    Source: Osband et al., 2020, "Behaviour suite for reinforcement learning", after Mnih et al.,
    2014, "Recurrent models of visual attention".
    """

    action_space = gymnasium.spaces.Discrete(3)

    def __init__(self, rows=10, columns=5):
        self.rows, self.columns = check_count("rows", rows), check_count("columns", columns)
        if rows < max(2, columns // 2 + 1):
            raise ValueError(
                f"A ball that falls {rows - 1} rows cannot be caught {columns // 2} columns away: "
                f"rows must be at least {max(2, columns // 2 + 1)}, received {rows}."
            )
        self.observation_space = gymnasium.spaces.Box(0, 1, (rows, columns, 1), np.uint8)

    def reset(self, seeds):
        column = self.columns * randomness.uniform(seeds, (1,))[:, 0]
        nothing = tf.zeros_like(seeds[:, 0])
        return {
            "row": nothing,
            "column": tf.cast(column, nothing.dtype),
            "paddle": nothing + self.columns // 2,
        }

    def observe(self, state):
        shape = self.rows, self.columns
        ball = _board(state["row"], state["column"], shape)
        paddle = _board(tf.fill(state["row"].shape, self.rows - 1), state["paddle"], shape)
        return tf.cast(ball | paddle, tf.uint8)[..., None]

    def render(self, state):
        kinds = np.zeros((self.rows, self.columns), int)
        kinds[-1, state["paddle"]] = 1
        kinds[state["row"], state["column"]] = 2
        return tiles(kinds, ("#e8e8e8", "#4c78a8", "#f58518"))

    def step(self, state, actions, seeds):
        paddle = tf.clip_by_value(state["paddle"] + actions - 1, 0, self.columns - 1)
        row = state["row"] + 1
        over = tf.equal(row, self.rows - 1)
        caught = tf.equal(paddle, state["column"])
        rewards = tf.where(over, tf.where(caught, 1.0, -1.0), 0.0)
        return {"row": row, "column": state["column"], "paddle": paddle}, rewards, over


class Breakout(NativeEnv):
    """MinAtar's Breakout: a ball flies along diagonals, and each brick that it breaks gives 1.

    Three rows of ten bricks come anew when all are broken and the ball is at the bottom. A paddle
    of one field moves there; a ball that it misses ends the episode. Channels are paddle, ball,
    where the ball was before, and bricks; actions are stay, left and right.

    MinAtar's own never ends for a player who does not miss.

    Args:
        sticky_actions: probability that the previous action is taken in place of the one given.
            In the first step that is to stay; MinAtar's goes on from the last episode.

    Source: Young and Tian, 2019, "MinAtar: an Atari-inspired testbed for thorough and reproducible
    reinforcement learning experiments", arXiv:1903.03176, and the rules of its version 1.0.15 with
    the minimal actions, `MinAtar/Breakout-v1`.
    """

    max_episode_steps = 1000
    observation_space = gymnasium.spaces.Box(0, 1, (10, 10, 4), np.uint8)
    action_space = gymnasium.spaces.Discrete(3)

    def __init__(self, sticky_actions=0.1):
        self.sticky_actions = check_range("sticky_actions", sticky_actions, 0.0, 1.0)

    def reset(self, seeds):
        left = randomness.uniform(seeds, (1,))[:, 0] < 0.5
        zero = tf.zeros_like(left, tf.int32)
        x, y = tf.where(left, 0, 9), zero + 3
        return {
            "x": x,
            "y": y,
            "last_x": x,
            "last_y": y,
            "dx": tf.where(left, 1, -1),
            "dy": zero + 1,
            "paddle": zero + 4,
            "bricks": self._wall() & (zero == 0)[:, None, None],
            "in_brick": zero == 1,
            "action": zero,
        }

    def observe(self, state):
        def board(row, column):
            return _board(row, column, (10, 10))

        paddle = board(tf.fill(state["x"].shape, 9), state["paddle"])
        ball = board(state["y"], state["x"])
        trail = board(state["last_y"], state["last_x"])
        return tf.cast(tf.stack([paddle, ball, trail, state["bricks"]], axis=-1), tf.uint8)

    def render(self, state):
        kinds = np.where(state["bricks"], 1, 0)
        kinds[state["last_y"], state["last_x"]] = 4
        kinds[9, state["paddle"]] = 2
        kinds[state["y"], state["x"]] = 3
        return tiles(kinds, ("#e8e8e8", "#b2796f", "#4c78a8", "#f58518", "#fad4b0"))

    def step(self, state, actions, seeds):
        again = randomness.uniform(seeds, (1,))[:, 0] < self.sticky_actions
        action = tf.where(again, state["action"], tf.cast(actions, tf.int32))
        move = tf.where(action == 2, 1, -tf.cast(action == 1, tf.int32))
        paddle = tf.clip_by_value(state["paddle"] + move, 0, 9)

        x, y, dx, dy = (state[name] for name in ("x", "y", "dx", "dy"))
        to_x, to_y = tf.clip_by_value(x + dx, 0, 9), tf.maximum(y + dy, 0)
        dx = tf.where(tf.equal(to_x, x + dx), dx, -dx)
        at_top = y + dy < 0

        # A ball that has just broken a brick flies through the next one.
        there = _board(to_y, to_x, (10, 10))
        in_brick = tf.reduce_any(state["bricks"] & there, axis=(1, 2)) & ~at_top
        breaks = in_brick & ~state["in_brick"]
        bricks = state["bricks"] & ~(there & breaks[:, None, None])

        at_bottom = tf.equal(to_y, 9)
        cleared = at_bottom & ~tf.reduce_any(bricks, axis=(1, 2))
        bricks |= self._wall() & cleared[:, None, None]
        above, beside = tf.equal(x, paddle), tf.equal(to_x, paddle)
        missed = at_bottom & ~above & ~beside
        # Hit where it comes to, not where it comes from, the ball flies back.
        dx = tf.where(at_bottom & beside & ~above, -dx, dx)
        bounces = at_top | breaks | (at_bottom & ~missed)
        return (
            {
                "x": to_x,
                "y": tf.where(bounces & ~at_top, y, to_y),
                "last_x": x,
                "last_y": y,
                "dx": dx,
                "dy": tf.where(bounces, -dy, dy),
                "paddle": paddle,
                "bricks": bricks,
                "in_brick": in_brick,
                "action": action,
            },
            tf.cast(breaks, tf.float32),
            missed,
        )

    def _wall(self):
        """Bool [10, 1]: the rows that have bricks in the beginning."""
        rows = tf.range(10)[:, None]
        return (rows >= 1) & (rows <= 3) & tf.ones((1, 10), tf.bool)
