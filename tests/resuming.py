"""One training run, for this process and for others that must end with the same bits.

As a program, `python resuming.py TASKS PATH` prints what the functions in TASKS return.
"""

import hashlib
import os
import signal
import sys

import keras
import tensorflow as tf

import keras_pg

# As in conftest.py: the graph optimizer rounds elsewhere.
tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})


def digest(agent):
    state = [*agent.variables, *agent.optimizer.variables, *agent.critic_optimizer.variables]
    return hashlib.sha256(b"".join(v.numpy().tobytes() for v in state)).hexdigest()


def make(jit_compile=True):
    networks = keras_pg.mlp((16,), seed=6), keras_pg.mlp((16,), seed=7)
    settings = {"num_minibatches": 4, "update_epochs": 2, "target_kl": 0.05, "seed": 5}
    agent = keras_pg.PPO(*networks, normalize_rewards=True, **settings)
    optimizers = keras.optimizers.Adam(1e-3), keras.optimizers.Adam(3e-3)
    agent.compile(*optimizers, jit_compile=jit_compile)
    return agent


def fit(agent, epochs=1, **arguments):
    shape = {"num_envs": 2, "num_steps": 32, "steps_per_epoch": 2}
    agent.fit("Pendulum-v1", epochs=epochs, verbose=0, **shape, **arguments)


def train(path):
    """The digests after two updates, when it saves to `path`, and after two more."""
    agent = make()
    fit(agent)
    halfway = digest(agent)
    agent.save(path)
    fit(agent)
    return halfway, digest(agent)


def resume(path):
    """The digests of the agent in `path` and of it after two more updates."""
    agent = keras.models.load_model(path)
    loaded = digest(agent)
    fit(agent)
    return loaded, digest(agent)


class Kill(keras.callbacks.Callback):
    """Counts batches, and ends the process with one of them, which no `finally` survives."""

    def __init__(self, at=None):
        super().__init__()
        self.at, self.batches = at, 0

    def on_train_batch_end(self, batch, logs=None):
        self.batches += 1
        if self.batches == self.at:
            os.kill(os.getpid(), signal.SIGKILL)


def fit_with_backup(path, at=None):
    """Batches, iterations and digest of four epochs that are backed up, resumed where they were."""
    agent, kill = make(jit_compile=False), Kill(at)
    fit(agent, 4, callbacks=[keras.callbacks.BackupAndRestore(path), kill])
    return kill.batches, int(agent.iteration), digest(agent)


def die(path):
    fit_with_backup(path, at=6)  # epoch 3 has ended and is not backed up


if __name__ == "__main__":
    for task in sys.argv[1].split(","):
        print(*globals()[task](sys.argv[2]))
