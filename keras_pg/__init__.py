"""Policy-gradient reinforcement learning as Keras 3 models on TensorFlow."""

import keras as _keras

if _keras.backend.backend() != "tensorflow":
    raise ImportError(
        f'keras_pg needs the TensorFlow backend of Keras, found "{_keras.backend.backend()}". Set the '
        'environment variable KERAS_BACKEND to "tensorflow" before Keras is imported.'
    )

from keras_pg._version import __version__
from keras_pg.agents import PPO, Agent
from keras_pg.networks import Actor, Critic, mlp
from keras_pg.rollouts.rollout import Rollout

__all__ = ["PPO", "Actor", "Agent", "Critic", "Rollout", "__version__", "mlp"]
