"""How many iterations `fit` runs, and in how many epochs."""

import math

from keras_pg.hyperparameters import check_count


def default_timesteps(total_timesteps):
    """The number of environment steps to train for, given or not.

    Raises:
        ValueError: it is no positive integer.
    """
    return check_count("total_timesteps", 100_000 if total_timesteps is None else total_timesteps)


def schedule(total_timesteps, batch_size, epochs, steps_per_epoch, steps_per_execution=1):
    """(epochs, steps_per_epoch) from whichever of the three the user has given.

    Args:
        total_timesteps, epochs, steps_per_epoch: as of `Agent.fit`; None where they are not given.
        batch_size: environment steps of one iteration.
        steps_per_execution: what `steps_per_epoch` must be a multiple of.

    Raises:
        ValueError: they contradict each other, or are no positive integers.
    """
    if steps_per_epoch is not None:
        check_count("steps_per_epoch", steps_per_epoch)
        if steps_per_epoch % steps_per_execution:
            raise ValueError(
                f"steps_per_epoch={steps_per_epoch} is no multiple of "
                f"steps_per_execution={steps_per_execution}."
            )
    if epochs is not None:
        if total_timesteps is not None:
            raise ValueError(
                f"total_timesteps={total_timesteps} and epochs={epochs} say the same thing twice: "
                "give one of them."
            )
        if steps_per_epoch is None:
            steps_per_epoch = math.ceil(10 / steps_per_execution) * steps_per_execution
        return check_count("epochs", epochs), steps_per_epoch
    executions = math.ceil(default_timesteps(total_timesteps) / batch_size / steps_per_execution)
    if steps_per_epoch is not None:
        return math.ceil(executions * steps_per_execution / steps_per_epoch), steps_per_epoch
    if executions < 10:
        return executions, steps_per_execution
    # Of 10 to 30 epochs, the number that overshoots least and is nearest to 20.
    candidates = [(n * math.ceil(executions / n), abs(n - 20), n) for n in range(10, 31)]
    epochs = min(candidates)[2]
    return epochs, math.ceil(executions / epochs) * steps_per_execution
