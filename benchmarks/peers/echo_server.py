"""gRPC and HTTP with nothing behind them: python echo_server.py GRPC_PORT HTTP_PORT.

The same libraries as `keras-pg serve`, answering constants: the floor of the protocols.
"""

import concurrent.futures
import sys
import threading

import grpc
import uvicorn

ANSWER = b'{"predictions": [{"action": 0, "probabilities": [0.5, 0.5]}]}'


def main():
    """Serves until killed."""
    grpc_port, http_port = map(int, sys.argv[1:])
    handler = grpc.unary_unary_rpc_method_handler(lambda request, context: b"")
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(8))
    server.add_generic_rpc_handlers(
        [
            grpc.method_handlers_generic_handler(
                "tensorflow.serving.PredictionService", {"Predict": handler}
            )
        ]
    )
    server.add_insecure_port(f"127.0.0.1:{grpc_port}")
    server.start()

    async def application(scope, receive, send):
        while (await receive()).get("more_body"):
            pass
        headers = [(b"content-length", str(len(ANSWER)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": ANSWER})

    config = uvicorn.Config(
        application, port=http_port, http="httptools", lifespan="off", log_config=None
    )
    http = uvicorn.Server(config)
    thread = threading.Thread(target=http.run)
    thread.start()
    while not http.started:
        thread.join(0.01)
    print("ready", flush=True)
    thread.join()


if __name__ == "__main__":
    main()
