"""Pictures of native environments, as NumPy arrays. Nothing here is compiled."""

import functools

import gymnasium
import numpy as np

TILE = 32  # pixels along an edge


def tiles(kinds, colours):
    """A board as a picture: a tile for each field, with a line between them.

    Args:
        kinds: integers [rows, columns].
        colours: what each kind is drawn in, as "#rrggbb".

    Returns:
        uint8 [32 rows, 32 columns, 3].
    """
    palette = np.array([list(bytes.fromhex(colour[1:])) for colour in colours], np.uint8)
    picture = palette[kinds].repeat(TILE, axis=0).repeat(TILE, axis=1)
    picture[::TILE] = picture[:, ::TILE] = 255
    return picture


def gymnasiums_picture(name, state):
    """What Gymnasium draws of its environment `name` in this state, uint8 [H, W, 3].

    Raises:
        gymnasium.error.DependencyNotInstalled: what it draws with is not installed.
    """
    env = _original(name)
    env.state = np.asarray(state, np.float64)
    return env.render()


@functools.cache
def _original(name):
    env = gymnasium.make(name, render_mode="rgb_array").unwrapped
    env.reset()
    return env
