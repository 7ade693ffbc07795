"""Closing environments without losing the error for which they are closed."""

import contextlib


def close_after(error, env):
    """Closes an environment because of an error; if closing fails too, a note of `error` says so.

    Args:
        error: the exception that is about to be raised.
        env: anything with a `close`.
    """
    try:
        env.close()
    except BaseException as second:
        error.add_note(f"Closing {env} failed too, with {type(second).__name__}: {second}")


def close_all(envs):
    """Closes every one of several environments, then raises the first error of that."""
    errors = []
    for env in envs:
        try:
            env.close()
        except BaseException as error:
            errors.append(error)
    raise_first(errors)


def raise_first(errors):
    """Raises the first of some errors, if there is one, with the others as its notes."""
    if errors:
        for other in errors[1:]:
            errors[0].add_note(f"After it came {type(other).__name__}: {other}")
        raise errors[0]


@contextlib.contextmanager
def closing(env, ours):
    """Closes the environment in the end if it is ours; an error from within is not replaced."""
    try:
        yield
    except BaseException as error:
        if ours:
            close_after(error, env)
        raise
    if ours:
        env.close()
