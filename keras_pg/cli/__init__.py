"""What the commands of `keras-pg` do, one module a command; `keras_pg_cli` has their flags."""

import argparse
import importlib
import sys

import gymnasium

from keras_pg.rollouts.vector_env import WHILE_RESETTING, WHILE_STEPPING
from keras_pg_cli import main, parser

__all__ = ["main", "parser", "run"]


def run(options: argparse.Namespace) -> int:
    """Runs the command of parsed options and returns the process's exit code."""
    try:
        command = importlib.import_module(f"keras_pg.cli.{options.command}")
        return command.run(options)
    except KeyboardInterrupt:
        print(f"keras-pg {options.command}: interrupted", file=sys.stderr)
        return 130
    except (
        ValueError,
        TypeError,
        OSError,
        ImportError,
        FloatingPointError,
        RuntimeError,
        gymnasium.error.Error,
    ) as error:
        notes = getattr(error, "__notes__", ())
        if any(note.startswith((WHILE_STEPPING, WHILE_RESETTING)) for note in notes):
            raise  # a fault of the environment: its author needs the traceback
        # Of an `OSError` whose text is a sentence of ours, without the number before it.
        sentence = getattr(error, "filename", None) is None and getattr(error, "strerror", None)
        print(f"keras-pg {options.command}: {sentence or error}", file=sys.stderr)
        return 2
