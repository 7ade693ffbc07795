"""A collector as a `tf.data.Dataset` that `keras.Model.fit` can iterate over."""

import contextlib

import tensorflow as tf


class OnDemandDataset:
    """A dataset whose next element is made when it is asked for, never earlier.

    A rollout collected one update early would be off-policy, so nothing may prefetch: tf.data's own
    optimizations are switched off. An exception in `make_element` would reach the caller of `fit`
    as a TensorFlow error with the traceback as text; `surfacing_errors` raises the original.

    Args:
        make_element: () → a nest of NumPy arrays.
        signature: the `tf.TensorSpec`s of an element.
        on_error: () → None, called when `make_element` has raised.
    """

    def __init__(self, make_element, signature, *, on_error):
        self._error = None

        def generate():
            while True:
                try:
                    yield make_element()
                except Exception as error:
                    self._error = error
                    on_error()
                    raise

        options = tf.data.Options()
        options.autotune.enabled = False
        options.experimental_optimization.inject_prefetch = False
        self.dataset = tf.data.Dataset.from_generator(
            generate, output_signature=signature
        ).with_options(options)

    @contextlib.contextmanager
    def surfacing_errors(self):
        """Raises the exception of `make_element` itself in place of TensorFlow's report of it."""
        try:
            yield
        except Exception:
            if self._error is None:
                raise
            error, self._error = self._error, None
            raise error from None
