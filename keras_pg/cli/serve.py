"""`keras-pg serve`."""

import argparse
import signal
import threading

from keras_pg.extras import installation


def run(options: argparse.Namespace) -> int:
    """Serves until it is told to stop."""
    try:
        from keras_pg.serving import command
    except ImportError as error:
        raise ImportError(
            f"`keras-pg serve` needs {error.name}: {installation('serve')}."
        ) from error
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with command.make_server(options) as server:
            for line in command.addresses(server):
                print(line, flush=True)
            threading.Event().wait()
    except KeyboardInterrupt:
        return 0
