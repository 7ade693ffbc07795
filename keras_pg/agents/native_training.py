"""An agent as it is trained on native environments: Keras's hooks. Knows no algorithm."""

import contextlib

import numpy as np
import tensorflow as tf

from keras_pg.agents.policy_model import PolicyModel

_ENV_STATE = "native_env_"


class NativeTraining(PolicyModel):
    """What `fit` needs where collecting is part of the program that learns.

    An agent gives it `train_step(rollout)`, `logs()`, `iteration` and `group_size`.
    """

    def __init__(self, name):
        super().__init__(name)
        # Of the native environments that this agent was last fitted to: their collector, or where
        # they were when the agent was saved; and the program that trains on them.
        self._native_collector = self._saved_env_state = self._native_program = None
        self._fits_natively = False

    def _going_on(self, collector):
        """The collector of native environments to train with: they are where they were left."""
        last, saved = self._native_collector, self._saved_env_state
        if last is not None and last.is_like(collector):
            return last
        if last is not None:
            saved = last.save()
        if saved is None or not collector.restore(saved):
            collector.reset(
                environment_seed(self.seed, int(self.iteration.numpy())), self.group_size
            )
        return collector

    @contextlib.contextmanager
    def _fitting_natively(self):
        """In it Keras trains by `_native_program`, and not by a function of data given to it."""
        self.train_function, self._fits_natively = None, True
        try:
            yield
        finally:
            self.train_function, self._fits_natively = None, False

    def make_train_function(self, force=False):
        """Keras's; of native environments, collecting is part of the program that learns."""
        if not self._fits_natively:
            return super().make_train_function(force)
        if self._native_program is None or force:
            self._native_program = self._make_native_program()
        program, collector = self._native_program, self._native_collector

        def train_function(iterator):
            collector.check(program().numpy())
            return self.logs()

        self.train_function = train_function

    def _make_native_program(self):
        """() → fault, of `steps_per_execution` iterations or up to one with a fault."""
        collector, names = self._native_collector, self.logs().keys()

        def iteration():
            # The complement of the seed of the shuffling, and of that alone.
            seed = tf.stack([tf.constant(~self.seed, tf.int64), self.iteration.value])
            after, rollout, fault = collector.next_rollout(seed)

            def learn():
                collector.assign(after)
                logs = self.train_step(rollout)
                if logs.keys() != names:
                    # What Keras is told are the means that the agent keeps, read after the program.
                    raise ValueError(
                        f"train_step returned {sorted(logs)}, expected what `logs()` returns, "
                        f"{sorted(names)}: further metrics are named by `tracked`."
                    )
                return fault

            return tf.cond(fault[0] < 0, learn, lambda: fault)

        def execution():
            if self.steps_per_execution == 1:
                return iteration()
            return tf.while_loop(
                lambda i, fault: (i < self.steps_per_execution) & (fault[0] < 0),
                lambda i, fault: (i + 1, iteration()),
                (tf.constant(0), tf.fill([3], -1)),
            )[1]

        if self.run_eagerly:
            return execution
        return tf.function(execution, jit_compile=self.jit_compile, autograph=False)

    def save_own_variables(self, store):
        """As Keras; where native environments are is saved with the counters of the agent."""
        super().save_own_variables(store)
        collector = self._native_collector
        saved = self._saved_env_state if collector is None else collector.save()
        for name, array in (saved or {}).items():
            store[_ENV_STATE + name] = array

    def load_own_variables(self, store):
        """What `save_own_variables` has saved."""
        own = {name: store[name] for name in store.keys() if not name.startswith(_ENV_STATE)}
        super().load_own_variables(own)
        names = [name for name in store.keys() if name.startswith(_ENV_STATE)]
        saved = {name.removeprefix(_ENV_STATE): np.array(store[name]) for name in names}
        # Into the collector that a callback of a running `fit` is restoring, or for the next one.
        collector = self._native_collector
        if not saved or collector is None or not collector.restore(saved):
            self._saved_env_state = saved or None
            if not self._fits_natively:
                self._native_collector = None


def environment_seed(seed, iteration):
    """Training starts from `seed`; resumed at a later iteration, from a seed of its own."""
    if iteration == 0:
        return seed
    return int(np.random.SeedSequence([seed, iteration]).generate_state(1)[0] >> 1)
