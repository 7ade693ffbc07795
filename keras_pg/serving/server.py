"""A local server with TensorFlow Serving's REST and gRPC protocols, for development and tests.

Production is TensorFlow Serving itself; what differs is listed in `docs/serving.md`.
"""

import asyncio
import concurrent.futures
import contextlib
import logging
import socket
import threading

import grpc
import uvicorn
from tensorflow_serving.apis import model_service_pb2_grpc, prediction_service_pb2_grpc
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from keras_pg.serving.metrics import Metrics
from keras_pg.serving.rest import Application
from keras_pg.serving.services import ModelService, PredictionService, RefuseWhatIsNoMessage

_log = logging.getLogger(__name__)


class Server:
    """Serves models over REST and gRPC; a context manager that stops at its end.

    Args:
        models: `Models`.
        host: address to listen on.
        port: of gRPC; 0 takes a free one, None serves no gRPC.
        rest_api_port: of REST; 0 takes a free one, None serves no REST.
        poll_seconds: how often base paths are looked at.
        before_poll: called before each look, such as to read a configuration file anew.
        metrics_path: path of REST with Prometheus metrics; None has none.
        num_threads: requests that are answered at once, for each of REST and gRPC.
        max_connections: connections, or calls under way, beyond which REST answers 503 and gRPC
            RESOURCE_EXHAUSTED.
        max_message_bytes: largest body or message.
        request_seconds: how long a client may take to send an HTTP request.
        cors: let pages of other origins call the REST API.

    Attributes:
        port, rest_api_port: where it listens.
    """

    def __init__(
        self,
        models,
        *,
        host="127.0.0.1",
        port=8500,
        rest_api_port=8501,
        poll_seconds=1.0,
        before_poll=None,
        metrics_path=None,
        num_threads=8,
        max_connections=1000,
        max_message_bytes=64 * 2**20,
        request_seconds=30.0,
        cors=False,
    ):
        self.models = models
        self._poll_seconds = poll_seconds
        self._before_poll = before_poll
        self._stopping = threading.Event()
        self._threads = []
        metrics = Metrics()
        self._grpc = self._rest = None
        if port is not None:
            self._grpc = grpc.server(
                concurrent.futures.ThreadPoolExecutor(num_threads, "grpc"),
                interceptors=[RefuseWhatIsNoMessage()],
                maximum_concurrent_rpcs=max_connections,
                options=[
                    ("grpc.max_receive_message_length", max_message_bytes),
                    ("grpc.max_send_message_length", -1),
                    ("grpc.so_reuseport", 0),
                ],
            )
            prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
                PredictionService(models, metrics), self._grpc
            )
            model_service_pb2_grpc.add_ModelServiceServicer_to_server(
                ModelService(models), self._grpc
            )
            try:
                self.port = self._grpc.add_insecure_port(f"{host}:{port}")
            except RuntimeError as error:
                raise OSError(f"Cannot listen on {host}:{port}: {error}") from None
        if rest_api_port is not None:
            self._executor = concurrent.futures.ThreadPoolExecutor(num_threads, "rest")
            self._socket = socket.create_server((host, rest_api_port), backlog=max_connections)
            # asyncio does it for sockets of its own making only; without it answers wait 40 ms.
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.rest_api_port = self._socket.getsockname()[1]
            application = Application(
                models,
                metrics,
                self._executor,
                max_body_bytes=max_message_bytes,
                metrics_path=metrics_path,
                cors=cors,
            )
            self._rest = uvicorn.Server(
                uvicorn.Config(
                    application,
                    http=_protocol(request_seconds),
                    ws="none",
                    lifespan="off",
                    interface="asgi3",
                    access_log=False,
                    log_config=None,
                    server_header=False,
                    limit_concurrency=max_connections,
                    timeout_graceful_shutdown=30,
                )
            )

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *exception):
        self.stop()

    def start(self):
        """Waits until every model has a version, then answers; returns when both ports do.

        Raises:
            RuntimeError: versions cannot be loaded, after all attempts.
        """
        self._poll()
        while missing := self.models.unavailable():
            if failed := self.models.given_up():
                raise RuntimeError(
                    f"Failed to start server. Error: UNKNOWN: {len(failed)} servable(s) did not "
                    f"become available: {failed}"
                )
            _log.warning("Waiting for models: %s", missing)
            self._stopping.wait(self._poll_seconds)
            self._poll()
        self._start(self._poll_until_stopped)
        if self._grpc is not None:
            self._grpc.start()
        if self._rest is not None:
            self._start(self._serve_rest)
            while not self._rest.started and self._threads[-1].is_alive():
                self._stopping.wait(0.01)

    def stop(self, grace=30.0):
        """Takes no more requests, and ends when those under way are answered.

        Args:
            grace: seconds after which they are cut off.
        """
        self._stopping.set()
        if self._grpc is not None:
            self._grpc.stop(grace).wait()
        if self._rest is not None:
            self._rest.should_exit = True
        for thread in self._threads:
            thread.join()
        if self._rest is not None:
            self._executor.shutdown()
            self._socket.close()

    def _start(self, target):
        thread = threading.Thread(target=target, daemon=True)
        thread.start()
        self._threads.append(thread)

    def _serve_rest(self):
        self._rest.run(sockets=[self._socket])

    def _poll_until_stopped(self):
        while not self._stopping.wait(self._poll_seconds):
            self._poll()

    def _poll(self):
        try:
            if self._before_poll is not None:
                self._before_poll()
            self.models.poll()
        except Exception:  # the versions that are loaded are to go on serving
            _log.exception("Looking for new versions failed")


def _protocol(seconds):
    """Uvicorn's HTTP protocol, that closes a connection whose request takes longer to come."""

    class Protocol(HttpToolsProtocol):
        def connection_made(self, transport):
            super().connection_made(transport)
            self._expect_request()

        def on_message_begin(self):
            super().on_message_begin()
            self._expect_request()

        def on_message_complete(self):
            self._late.cancel()
            super().on_message_complete()

        def connection_lost(self, error):
            self._late.cancel()
            super().connection_lost(error)

        def _expect_request(self):
            with contextlib.suppress(AttributeError):
                self._late.cancel()
            self._late = asyncio.get_running_loop().call_later(seconds, self.transport.close)

    return Protocol
