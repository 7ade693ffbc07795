"""Policy-gradient reinforcement learning as Keras 3 models on TensorFlow."""

import os as _os
import sys as _sys

if _sys.argv[:1] == ["-m"] and "keras_pg" in _sys.orig_argv:
    # `python -m keras_pg` is a command too, and this file is imported before its `__main__`.
    from keras_pg_cli import import_tensorflow_quietly as _import_tensorflow_quietly

    _import_tensorflow_quietly()

_backend = _os.environ.get("KERAS_BACKEND") or "tensorflow"
if _backend == "tensorflow":
    # Only now: with another backend, importing Keras may fail for want of that backend's packages.
    try:
        import keras as _keras
    except ImportError as error:
        raise ImportError(
            f"keras_pg could not import Keras: {error}. If keras.json names another backend than "
            '"tensorflow", change it there or set the environment variable KERAS_BACKEND.'
        ) from error
    _backend = _keras.backend.backend()
if _backend != "tensorflow":
    raise ImportError(
        f'keras_pg needs the TensorFlow backend of Keras, found "{_backend}". Set the environment '
        'variable KERAS_BACKEND to "tensorflow", or leave it out, before Keras is imported.'
    )

from keras_pg import advantages, callbacks, diagnostics, envs, testing, wrappers
from keras_pg._version import __version__
from keras_pg.agents import A2C, GRPO, MDPO, NPG, PPO, REINFORCE, TRPO, Agent
from keras_pg.encoders import Conv2D, cnn, mlp
from keras_pg.networks import ActionCritic, Actor, Critic
from keras_pg.rollouts.rollout import Rollout

__all__ = [
    "A2C",
    "GRPO",
    "MDPO",
    "NPG",
    "PPO",
    "REINFORCE",
    "TRPO",
    "ActionCritic",
    "Actor",
    "Agent",
    "Conv2D",
    "Critic",
    "Rollout",
    "__version__",
    "advantages",
    "callbacks",
    "cnn",
    "diagnostics",
    "envs",
    "mlp",
    "testing",
    "wrappers",
]
