"""A local server with TensorFlow Serving's REST and gRPC protocols, for development and tests.

Production is TensorFlow Serving itself; what differs is listed in `docs/serving.md`.
"""

import asyncio
import concurrent.futures
import functools
import logging
import socket
import threading
import time

import grpc
import uvicorn
from tensorflow_serving.apis import model_service_pb2_grpc, prediction_service_pb2_grpc

from keras_pg.serving import ports
from keras_pg.serving.http_protocol import impatient_protocol
from keras_pg.serving.metrics import Metrics
from keras_pg.serving.rest import Application
from keras_pg.serving.services import ModelService, PredictionService, RefuseWhatIsNoMessage

GRACE = 30  # seconds
MAX_REQUEST_BYTES = 32 * 2**20
MAX_CONNECTION_AGE = 300  # seconds
_log = logging.getLogger(__name__)


class Server:
    """Serves models over REST and gRPC; a context manager that stops at its end.

    Args:
        models: `Models`.
        host: address to listen on.
        port: of gRPC; 0 takes a free one, None serves no gRPC.
        rest_api_port: of REST; 0 takes a free one, None serves no REST.
        poll_seconds: how often base paths are looked at; once, if not positive.
        before_poll: called before each look, such as to read a configuration file anew.
        metrics_path: path of REST with Prometheus metrics; None has none.
        num_threads: requests that are answered at once, for each of REST and gRPC.
        max_connections: connections, or calls under way, beyond which REST answers 503 and gRPC
            RESOURCE_EXHAUSTED.
        max_request_bytes: largest body, compressed or not, or message.
        request_seconds: how long a client may take to send an HTTP request, or to take an answer.
        cors: let pages of other origins call the REST API.

    Attributes:
        port, rest_api_port: where it listens.

    Raises:
        ValueError: both ports are one.
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
        max_request_bytes=MAX_REQUEST_BYTES,
        request_seconds=30.0,
        cors=False,
    ):
        if port is not None and port == rest_api_port != 0:
            raise ValueError(
                f"--port and --rest_api_port are both {port}: gRPC and REST need a port each."
            )
        self.models = models
        self.host = host
        self.port = port
        self.rest_api_port = rest_api_port
        self._poll_seconds = poll_seconds
        self._before_poll = before_poll
        self._num_threads = num_threads
        self._max_connections = max_connections
        self._max_request_bytes = max_request_bytes
        self._request_seconds = request_seconds
        self._metrics = Metrics(models)
        self._application = {"metrics_path": metrics_path, "cors": cors}
        self._stopping = threading.Event()
        self._threads = []

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *exception):
        self.stop()

    def start(self):
        """Takes the ports, waits until every model has a version, then answers on both.

        Raises:
            RuntimeError: versions cannot be loaded, after all attempts.
            OSError: a port is taken; before anything is loaded.
        """
        with (
            ports.held(self.host, self.port, "--port") as self.port,
            ports.held(self.host, self.rest_api_port, "--rest_api_port") as self.rest_api_port,
        ):
            self._load()
            self._answer()

    def _load(self):
        """Waits until every model has a version."""
        self._poll()
        while missing := self.models.unavailable():
            if failed := self.models.given_up():
                raise RuntimeError(
                    f"Failed to start server. Error: UNKNOWN: {len(failed)} servable(s) did not "
                    f"become available: {failed}"
                )
            _log.warning("Waiting for models: %s", missing)
            time.sleep(max(self._poll_seconds, 0.01))
            self._poll()

    def _answer(self):
        """Starts the threads, and returns when both ports answer."""
        started = concurrent.futures.Future()
        self._threads = [threading.Thread(target=asyncio.run, args=(self._serve(started),))]
        if self._poll_seconds > 0:
            self._threads.append(threading.Thread(target=self._poll_until_stopped))
        for thread in self._threads:
            thread.daemon = True
            thread.start()
        try:
            self._stop_serving = started.result()
        except BaseException:
            self._stopping.set()
            raise

    def stop(self):
        """Takes no more requests, and ends when those under way are answered.

        Those that take longer than `GRACE` seconds are cut off.
        """
        if not self._stopping.is_set():
            self._stopping.set()
            self._stop_serving()
        for thread in self._threads:
            thread.join()

    async def _serve(self, started):
        """Answers on both ports until the function is called that it gives to `started`."""
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        # A call has a thread from its first byte on: one that never sends the rest must not keep
        # others waiting. How many are answered at once `PredictionService` limits.
        with (
            concurrent.futures.ThreadPoolExecutor(self._max_connections, "grpc") as grpc_pool,
            concurrent.futures.ThreadPoolExecutor(self._num_threads, "rest") as rest_pool,
            concurrent.futures.ThreadPoolExecutor(1, "rest-large") as large_pool,
        ):
            try:
                grpc_server = None if self.port is None else self._start_grpc(grpc_pool, large_pool)
                rest = (
                    None
                    if self.rest_api_port is None
                    else await self._start_rest(rest_pool, large_pool)
                )
            except BaseException as error:
                started.set_exception(error)
                return
            started.set_result(functools.partial(loop.call_soon_threadsafe, stop.set))
            await stop.wait()
            if rest is not None:
                rest[0].should_exit = True
            if grpc_server is not None:
                await asyncio.to_thread(grpc_server.stop(GRACE).wait)
            if rest is not None:
                await rest[1]

    def _start_grpc(self, pool, large_pool):
        server = grpc.server(
            pool,
            interceptors=[RefuseWhatIsNoMessage()],
            maximum_concurrent_rpcs=self._max_connections,
            options=[
                ("grpc.max_receive_message_length", self._max_request_bytes),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),
                # Ends calls that never send their message; other clients connect anew unawares.
                ("grpc.max_connection_age_ms", 1000 * MAX_CONNECTION_AGE),
                ("grpc.max_connection_age_grace_ms", 1000 * GRACE),
            ],
        )
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
            PredictionService(self.models, self._metrics, self._num_threads, large_pool), server
        )
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(ModelService(self.models), server)
        try:
            server.add_insecure_port(f"{self.host}:{self.port}")
        except RuntimeError as error:
            raise ports.cannot_listen(self.host, self.port, "--port", error) from None
        server.start()
        return server

    async def _start_rest(self, pool, large_pool):
        try:
            listener = socket.create_server((self.host, self.rest_api_port))
        except OSError as error:
            port, flag = self.rest_api_port, "--rest_api_port"
            raise ports.cannot_listen(self.host, port, flag, error) from None
        # asyncio does it for sockets of its own making only; without it answers wait 40 ms.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        application = Application(
            self.models,
            self._metrics,
            pool,
            large_pool,
            max_body_bytes=self._max_request_bytes,
            **self._application,
        )
        server = uvicorn.Server(
            uvicorn.Config(
                application,
                http=impatient_protocol(self._request_seconds),
                ws="none",
                lifespan="off",
                interface="asgi3",
                access_log=False,
                log_config=None,
                server_header=False,
                backlog=self._max_connections,
                limit_concurrency=self._max_connections,
                timeout_graceful_shutdown=GRACE,
            )
        )
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started:
            await asyncio.sleep(0.01)
        return server, serving

    def _poll_until_stopped(self):
        while not self._stopping.wait(self._poll_seconds):
            self._poll()

    def _poll(self):
        # Whatever fails: the versions that are loaded are to go on serving.
        for step in (self._before_poll, self.models.poll):
            try:
                if step is not None:
                    step()
            except Exception as error:
                _log.error("Looking for new versions: %s", error)
