"""Ports: taken before the models are loaded, so that one that cannot be had is told at once."""

import contextlib
import socket


@contextlib.contextmanager
def held(host, port, flag):
    """Holds a port within, and gives its number, which 0 leaves to the system.

    Nobody is answered there yet, and connections are refused. Who listens on it within needs
    `SO_REUSEADDR`, as `socket.create_server` and grpcio have it.

    Args:
        host: address.
        port: number, or None, which holds nothing.
        flag: of the command line, by which it was given.

    Raises:
        OSError: the port, or the address, cannot be had.
    """
    if port is None:
        yield None
        return
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            holder.bind((host, port))
        except (OSError, OverflowError) as error:
            raise cannot_listen(host, port, flag, error) from None
        yield holder.getsockname()[1]


def cannot_listen(host, port, flag, error):
    """The `OSError` of a port that cannot be had."""
    reason = str(error).rstrip(".")
    return OSError(
        f"Cannot listen on {host}:{port}, which is {flag}: {reason}. Give {flag} another port, or "
        "0 to do without it; --host is the address."
    )
