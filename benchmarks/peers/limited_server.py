"""What `keras-pg serve` runs, with two limits, of which one has no flag.

python limited_server.py CONFIG GRPC_PORT REST_PORT MAX_MESSAGE_BYTES REQUEST_SECONDS
"""

import signal
import sys

from keras_pg.serving import config
from keras_pg.serving.models import Models
from keras_pg.serving.server import Server


def main():
    """Serves until killed."""
    file, *numbers = sys.argv[1:]
    grpc_port, rest_port, size, seconds = map(int, numbers)
    server = Server(
        Models(config.read_models(file)),
        port=grpc_port,
        rest_api_port=rest_port,
        metrics_path="/metrics",
        max_request_bytes=size,
        request_seconds=seconds,
    )
    with server:
        print("ready", flush=True)
        signal.pause()


if __name__ == "__main__":
    main()
