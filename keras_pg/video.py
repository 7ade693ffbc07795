"""Videos of policies, as animated GIFs, which every browser and README shows."""

import contextlib
import math
import pathlib

import gymnasium
import numpy as np

from keras_pg import envs
from keras_pg.extras import installation
from keras_pg.files import replacing
from keras_pg.rollouts.closing import closing

# Of more pictures a second than this GIFs become large, and viewers slow them down.
_MOST_PICTURES_A_SECOND = 25
_LAST_PICTURE_SECONDS = 1
# Of 600 x 400 pixels, these take 1.2 GB until they are written.
_MOST_PICTURES = 5_000


def check_path(path):
    """The path, if it is one of a GIF.

    Raises:
        ValueError: it is not.
    """
    path = pathlib.Path(path)
    if path.suffix.lower() != ".gif":
        raise ValueError(
            f"A video is an animated GIF, such as {path.stem or 'policy'}.gif, received {path}. "
            "For other formats give `evaluate` an environment in gymnasium.wrappers.RecordVideo."
        )
    return path


@contextlib.contextmanager
def filmed(env, episodes):
    """The environment, made if need be, as one that keeps pictures of its first `episodes`.

    Args:
        env: an id, a factory, a `gymnasium.Env` or a `keras_pg.envs.NativeEnv`.
        episodes: how many.

    Raises:
        TypeError: it is none of these.
        ValueError: it was made to draw something else than pictures, or nothing.
        ImportError: what it draws with is not installed.
    """
    ours = not isinstance(env, gymnasium.Env)
    if isinstance(env, envs.NativeEnv):
        limit, env = env.max_episode_steps, envs.NativeSingleEnv(env, render_mode="rgb_array")
        env = env if limit is None else gymnasium.wrappers.TimeLimit(env, limit)
    elif isinstance(env, str):
        env = gymnasium.make(env, render_mode="rgb_array", disable_env_checker=True)
    elif ours and callable(env):
        env = env()
    if not isinstance(env, gymnasium.Env):
        raise TypeError(
            "A video is of one environment: an id, a gymnasium.Env, a factory of one, or a "
            f"keras_pg.envs.NativeEnv, received {env!r}."
        )
    with closing(env, ours):
        try:
            if env.render_mode != "rgb_array":
                raise ValueError(
                    f'{env} must be made with render_mode="rgb_array" for a video, has '
                    f"render_mode={env.render_mode!r}."
                )
            yield _Camera(env, episodes)
        except gymnasium.error.DependencyNotInstalled as error:
            raise ImportError(f"{error} Or: {installation('video')}.") from error


class _Camera(gymnasium.Wrapper):
    """Takes a picture of each state of the first episodes, or of every n-th of them."""

    def __init__(self, env, episodes):
        super().__init__(env)
        from PIL import Image  # late, as all that draws

        self._image = Image
        self._left, self._steps, self.pictures = episodes, 0, []
        fps = env.metadata.get("render_fps") or 30
        self._every = math.ceil(fps / _MOST_PICTURES_A_SECOND)
        self._seconds = self._every / fps

    def reset(self, **arguments):
        start = self.env.reset(**arguments)
        self._steps = 0
        self._take()
        return start

    def step(self, action):
        taken = self.env.step(action)
        ended = taken[2] or taken[3]
        self._steps += 1
        if ended or self._steps % self._every == 0:
            self._take()
        self._left -= ended
        return taken

    def _take(self):
        if self._left <= 0:
            return
        if len(self.pictures) == _MOST_PICTURES:
            raise RuntimeError(
                f"The video has {_MOST_PICTURES:,} pictures and the episodes go on. Record fewer, "
                "or give the environment a gymnasium.wrappers.TimeLimit."
            )
        picture = np.asarray(self.env.render())
        # A byte a pixel from here on: a thousand pictures are a usual episode.
        self.pictures.append(self._image.fromarray(picture).quantize(dither=0))

    def write(self, path):
        """Writes the pictures to a file; an `OSError` names it if that fails."""
        path.parent.mkdir(parents=True, exist_ok=True)
        # In units of 10 ms, as GIF has them.
        durations = [max(20, 10 * round(100 * self._seconds))] * len(self.pictures)
        durations[-1] = 1000 * _LAST_PICTURE_SECONDS
        with replacing(path) as temporary:
            self.pictures[0].save(
                temporary,
                format="GIF",
                save_all=True,
                append_images=self.pictures[1:],
                duration=durations,
                loop=0,
            )
