"""Callbacks that Keras lacks."""

import keras


class RaiseOnNonFinite(keras.callbacks.Callback):
    """Ends training with an error when no gradient has been finite for a while.

    A gradient that holds NaN or infinity is never applied; the weights stay as they were. One such
    step may be bad luck. Many in a row mean that training is over, and going on would hide it.

    Args:
        patience: gradient steps in a row that may be skipped. `Agent.fit` adds this callback.

    Raises:
        FloatingPointError: `patience` was reached.
    """

    def __init__(self, patience=10):
        super().__init__()
        self.patience = patience

    def on_train_batch_end(self, batch, logs=None):
        skipped = (logs or {}).get("nonfinite_updates", 0)
        if skipped >= self.patience:
            raise FloatingPointError(
                f"The last {int(skipped)} gradients were NaN or infinite and were not applied. The "
                "weights are as they were before. Likely causes: rewards of enormous size, a "
                "learning rate that is too high, or an encoder that overflows."
            )
