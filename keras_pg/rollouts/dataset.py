"""A collector as a `tf.data.Dataset` that `keras.Model.fit` can iterate over."""

import contextlib
import warnings

import tensorflow as tf


class OnDemandDataset:
    """A dataset whose next element is made when it is asked for, never earlier.

    A rollout collected one update early would be off-policy, so nothing may prefetch: tf.data's own
    optimizations are switched off. An exception in `make_element`, SystemExit and KeyboardInterrupt
    too, would reach the caller of `fit` as a TensorFlow error with the traceback as text;
    `surfacing_errors` raises the original.

    Args:
        make_element: () → a nest of NumPy arrays.
        signature: the `tf.TensorSpec`s of an element.
        on_error: () → None, called when `make_element` has raised. What it raises itself becomes a
            note of that.
    """

    def __init__(self, make_element, signature, *, on_error):
        # TensorFlow never lets go of a generator. So this one holds two lists, which are emptied in
        # the end, and neither this object nor, for the life of the process, the environments.
        self._sources, self._errors = sources, errors = [(make_element, on_error)], []

        def generate():
            while sources:
                make_element, on_error = sources[0]
                try:
                    element = make_element()
                except BaseException as error:
                    errors.append(error)
                    try:
                        on_error()
                    except BaseException as second:
                        error.add_note(
                            f"Closing failed too, with {type(second).__name__}: {second}"
                        )
                    if isinstance(error, Exception):
                        raise
                    # Of these TensorFlow makes no error.
                    raise RuntimeError(repr(error)) from None
                yield element

        options = tf.data.Options()
        options.autotune.enabled = False
        options.experimental_optimization.inject_prefetch = False
        self.dataset = tf.data.Dataset.from_generator(
            generate, output_signature=signature
        ).with_options(options)

    def surfacing_errors(self):
        """A context that raises the exception of `make_element` in place of TensorFlow's report.

        No element can be made after it.

        Raises:
            RuntimeError: Keras took an error of the train step for the end of the data, of which
                there is none, and would have ended training with a warning.
        """
        return _Surfacing(self._sources, self._errors)


class _Surfacing:
    """See `OnDemandDataset.surfacing_errors`. No generator, which cannot raise a StopIteration."""

    def __init__(self, sources, errors):
        self._sources, self._errors = sources, errors
        self._warnings = warnings.catch_warnings()

    def __enter__(self):
        self._warnings.__enter__()
        warnings.filterwarnings("error", "Your input ran out of data")

    def __exit__(self, kind, caught, traceback):
        self._warnings.__exit__(kind, caught, traceback)
        self._sources.clear()
        if not isinstance(caught, Exception):
            return
        if self._errors:
            error = self._errors.pop()
            # Without `from`, TensorFlow's report would take the place of the error's own cause.
            cause = error.__cause__ if error.__suppress_context__ else error.__context__
            raise error from cause
        if isinstance(caught, UserWarning) and "ran out of data" in str(caught):
            raise RuntimeError(
                "An operation of the train step failed with OUT_OF_RANGE, which TensorFlow has "
                "logged above. (A damaged file of XLA's persistent cache does that.)"
            ) from None


class RolloutsInGraph:
    """A dataset of nothing, without end, for a train step that collects its rollout itself."""

    def __init__(self):
        self.dataset = tf.data.Dataset.from_tensors(0).repeat()

    def surfacing_errors(self):
        """Nothing to be done: errors come as they are."""
        return contextlib.nullcontext()
