"""`keras-pg serve` under load and under attack, on the loopback interface.

    python benchmarks/serving.py                   # all of it, a quarter of an hour
    python benchmarks/serving.py --only latency fuzz

Needs the extra `test`. The server is a process of its own; the clients are threads of this one, on
the same cores, so that figures at many clients are of both together. Results are written to
`results/serving.json` and, as tables, to `results/serving.md`.
"""

import argparse
import contextlib
import functools
import http.client
import json
import os
import pathlib
import platform
import shutil
import signal
import statistics
import tempfile
import threading
import time

import grpc
import gymnasium
import numpy as np
import tensorflow as tf
from fuzz import fuzz
from processes import free_port, python, resident_mb
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc
from throughput import processor

import keras_pg
from keras_pg import replay, versions
from keras_pg.serving.servable import Servable

HERE = pathlib.Path(__file__).parent
PREDICT = "/v1/models/policy:predict"


@contextlib.contextmanager
def served(base, *flags, ports=None):
    """A `keras-pg serve` process: (its ports for gRPC and REST, the process)."""
    grpc_port, rest_port = ports or (free_port(), free_port())
    addresses = f"--port={grpc_port}", f"--rest_api_port={rest_port}"
    command = "-m", "keras_pg", "serve", base, "--model_name=policy", *addresses, *flags
    with python(*command) as process:
        yield (grpc_port, rest_port), process


# ------------------------------------------------------------------------------------- clients


def rest_client(port, observations):
    """A function that makes one predict request over REST and raises if it fails."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    body = json.dumps({"instances": observations.tolist()})

    def ask():
        connection.request("POST", PREDICT, body)
        response = connection.getresponse()
        answer = json.loads(response.read())
        if response.status != 200:
            raise RuntimeError(answer)
        return answer

    return ask


def grpc_client(port, observations):
    """A function that makes one predict request over gRPC and raises if it fails."""
    # A channel of its own: clients do not share a connection.
    options = [("grpc.use_local_subchannel_pool", 1)]
    stub = prediction_service_pb2_grpc.PredictionServiceStub(
        grpc.insecure_channel(f"127.0.0.1:{port}", options)
    )
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "policy"
    request.inputs["observation"].CopyFrom(tf.make_tensor_proto(observations))
    return lambda: stub.Predict(request, timeout=60)


def load(make_client, clients, seconds):
    """Requests a second, and percentiles of their latency in microseconds."""
    latencies = [[] for _ in range(clients)]
    barrier, stop = threading.Barrier(clients + 1), threading.Event()

    def run(mine):
        ask = make_client()
        ask()
        barrier.wait()
        while not stop.is_set():
            start = time.perf_counter()
            ask()
            mine.append(time.perf_counter() - start)

    threads = [threading.Thread(target=run, args=(mine,)) for mine in latencies]
    for thread in threads:
        thread.start()
    barrier.wait()
    start = time.perf_counter()
    time.sleep(seconds)
    stop.set()
    for thread in threads:
        thread.join()
    elapsed = time.perf_counter() - start
    everything = np.concatenate(latencies)
    return {
        "requests_per_second": len(everything) / elapsed,
        "p50_us": 1e6 * float(np.percentile(everything, 50)),
        "p99_us": 1e6 * float(np.percentile(everything, 99)),
    }


def timed(call, seconds=2.0):
    """Percentiles of what a call takes in this process, in microseconds."""
    for _ in range(50):
        call()
    samples, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        call()
        samples.append(time.perf_counter() - start)
    return {
        "requests_per_second": len(samples) / sum(samples),
        "p50_us": 1e6 * float(np.percentile(samples, 50)),
        "p99_us": 1e6 * float(np.percentile(samples, 99)),
    }


# ---------------------------------------------------------------------------------- measurements


def measure_latency(policies, seconds):
    """In this process, over an echo of each protocol, and from the server."""
    rows = []
    version, lite = policies / "policy" / "1", policies / "lite" / "1"
    for batch in (1, 64):
        observations = np.zeros((batch, 4), np.float32)
        serve, interpreter = replay.runner(version), replay.runner(lite)
        servable = Servable(version)
        inputs = {"observation": observations}
        for name, call in (
            ("signature call, in process", functools.partial(serve, observations)),
            ("session call, in process", functools.partial(servable.predict, "", inputs)),
            ("LiteRT call, in process", functools.partial(interpreter, observations)),
        ):
            rows.append({"what": name, "batch": batch, "clients": 1, **timed(call)})
            print_row(rows[-1])
    rows += measure_echo(seconds)
    batching = HERE.parent / "export" / "config" / "batching.config"
    for name, flags in (
        ("", []),
        (", batching", ["--enable_batching", f"--batching_parameters_file={batching}"]),
    ):
        with served(policies / "policy", *flags) as (ports, _):
            for protocol, make, port in (
                ("gRPC", grpc_client, ports[0]),
                ("REST", rest_client, ports[1]),
            ):
                for batch in (1, 64):
                    observations = np.zeros((batch, 4), np.float32)
                    for clients in (1, 8, 64):
                        figures = load(
                            functools.partial(make, port, observations), clients, seconds
                        )
                        row = {"what": protocol + name, "batch": batch, "clients": clients}
                        rows.append({**row, **figures})
                        print_row(rows[-1])
    return rows


def measure_echo(seconds):
    """The same protocols with nothing behind them, in a process of their own."""
    program = HERE / "peers" / "echo_server.py"
    ports = free_port(), free_port()
    rows = []
    with python(program, *ports):
        observations = np.zeros((1, 4), np.float32)
        for protocol, make, port in (
            ("gRPC", grpc_client, ports[0]),
            ("REST", rest_client, ports[1]),
        ):
            figures = load(functools.partial(make, port, observations), 1, seconds)
            rows.append({"what": f"{protocol} echo", "batch": 1, "clients": 1, **figures})
            print_row(rows[-1])
    return rows


def print_row(row):
    print(
        f"{row['what']:28} batch {row['batch']:2}, {row['clients']:2} clients: "
        f"{row['requests_per_second']:8.0f} requests/s, p50 {row['p50_us']:7.0f} us, "
        f"p99 {row['p99_us']:7.0f} us",
        flush=True,
    )


def measure_memory(policies, requests=200_000):
    """Resident memory of the server, in MB, after each twentieth of so many requests."""
    observations = np.zeros((1, 4), np.float32)
    with served(policies / "policy") as (ports, process):
        done, lock, samples = 0, threading.Lock(), []

        def run(make, port):
            nonlocal done
            ask = make(port, observations)
            while True:
                with lock:
                    if done >= requests:
                        return
                    done += 1
                    if done % (requests // 20) == 0:
                        samples.append(resident_mb(process.pid))
                ask()

        clients = [(grpc_client, ports[0])] * 4 + [(rest_client, ports[1])] * 4
        threads = [threading.Thread(target=run, args=client) for client in clients]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    print(f"memory after each {requests // 20} requests, MB: {samples}")
    return {"requests": requests, "resident_mb": samples}


def measure_faults(policies, seconds):
    """Swaps under load, a corrupt version, and a server that is killed."""
    base = pathlib.Path(tempfile.mkdtemp()) / "policy"
    shutil.copytree(policies / "policy" / "1", base / "1")
    observations = np.full((16, 4), 0.3, np.float32)
    answers, failures, stop = [], [], threading.Event()
    flags = ["--file_system_poll_wait_seconds=0.1", "--max_num_load_retries=0"]
    ports = free_port(), free_port()
    report = {}

    def run(make, port):
        ask = make(port, observations)
        while not stop.is_set():
            try:
                answer = ask()
            except Exception as error:
                failures.append(repr(error))
                continue
            if isinstance(answer, predict_pb2.PredictResponse):
                rows = tf.make_ndarray(answer.outputs["probabilities"]).tolist()
            else:
                rows = [row["probabilities"] for row in answer["predictions"]]
            answers.append(len({json.dumps(row) for row in rows}))

    with served(base, *flags, ports=ports) as (_, process):
        clients = [(grpc_client, ports[0])] * 4 + [(rest_client, ports[1])] * 4
        threads = [threading.Thread(target=run, args=client) for client in clients]
        for thread in threads:
            thread.start()
        for version in (2, 3, 4):
            publish(policies / "policy" / str(1 + version % 2), base, version)
            while state(ports[1], version) != "AVAILABLE":
                time.sleep(0.1)
            time.sleep(seconds)
        (policies / "corrupt").mkdir()
        (policies / "corrupt" / "saved_model.pb").write_bytes(b"\0" * 100)
        publish(policies / "corrupt", base, 5)
        while state(ports[1], 5) != "END":
            time.sleep(0.1)
        report["corrupt version"] = state(ports[1], 5)
        report["version before it"] = state(ports[1], 4)
        stop.set()
        for thread in threads:
            thread.join()
        report["requests during swaps"] = len(answers)
        report["failed requests"] = len(failures)
        # Rows of equal observations: two versions in one answer would give two values.
        report["answers of two versions"] = sum(count > 1 for count in answers)
        process.send_signal(signal.SIGKILL)
    shutil.rmtree(base / "5")
    with served(base, *flags, ports=ports):
        rest_client(ports[1], observations)()
        report["serves again after kill -9"] = True
    shutil.rmtree(base.parent)
    print(report)
    return report


def publish(source, base, version):
    unfinished = base.parent / "unfinished"
    shutil.copytree(source, unfinished)
    os.rename(unfinished, base / str(version))


def state(port, version):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", f"/v1/models/policy/versions/{version}")
    answer = json.loads(connection.getresponse().read())
    return answer.get("model_version_status", [{"state": None}])[0]["state"]


# --------------------------------------------------------------------------------------- results


def table(results):
    """The results as a page."""
    machine = results["machine"]
    lines = [
        "# `keras-pg serve` under load",
        "",
        f"PPO's default network of CartPole, on {machine['processor']}, shared by server and "
        f"clients; TensorFlow {machine['tensorflow']}. Written by `benchmarks/serving.py`.",
        "",
    ]
    if rows := results.get("latency"):
        lines += [
            "| | Batch | Clients | Requests/s | p50, µs | p99, µs |",
            "| --- | --- | --- | --- | --- | --- |",
            *(
                f"| {row['what']} | {row['batch']} | {row['clients']} | "
                f"{row['requests_per_second']:,.0f} | {row['p50_us']:,.0f} | {row['p99_us']:,.0f} |"
                for row in rows
            ),
            "",
        ]

        def p50(what, batch=1, clients=1):
            (row,) = (
                r for r in rows if (r["what"], r["batch"], r["clients"]) == (what, batch, clients)
            )
            return row["p50_us"]

        call = p50("signature call, in process")
        lines += [
            f"One observation over gRPC takes {p50('gRPC') / call:.1f} times a signature call in "
            f"process (bar: 3), a LiteRT call 1/{call / p50('LiteRT call, in process'):.0f} of it "
            "(bar: 1/10).",
            "",
        ]
    if memory := results.get("memory"):
        samples = memory["resident_mb"]
        lines += [
            f"Resident memory over {memory['requests']:,} requests: {samples[0]} MB after the "
            f"first twentieth, {statistics.median(samples):.1f} in the middle, {samples[-1]} at "
            "the end.",
            "",
        ]
    for name, title in (("faults", "Faults"), ("fuzz", "Fuzzed requests")):
        if report := results.get(name):
            lines += [f"{title}:", "", *(f"- {k}: {v}" for k, v in report.items()), ""]
    return "\n".join(lines)


def main():
    """Runs what is asked for, and adds it to the stored results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = ["latency", "memory", "faults", "fuzz"]
    parser.add_argument("--only", nargs="+", choices=parts, default=parts)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--requests", type=int, default=100_000, help="that are fuzzed")
    parser.add_argument("--seed", type=int, default=0, help="of the fuzzed requests")
    options = parser.parse_args()
    path = HERE / "results" / "serving.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    results["machine"] = {
        "processor": f"{processor()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "grpcio": grpc.__version__,
    }
    with tempfile.TemporaryDirectory() as directory:
        policies = pathlib.Path(directory)
        env = gymnasium.make("CartPole-v1")
        for seed in (0, 1):
            agent = keras_pg.PPO(seed=seed)
            agent.build(env.observation_space, env.action_space)
            agent.export(policies / "policy")
        agent.export(policies / "lite", format="litert")
        assert set(versions.paths(policies / "policy")) == {1, 2}
        for part in options.only:
            measure = {
                "latency": lambda: measure_latency(policies, options.seconds),
                "memory": lambda: measure_memory(policies),
                "faults": lambda: measure_faults(policies, options.seconds),
                "fuzz": lambda: fuzz(options.requests, options.seed),
            }[part]
            results[part] = measure()
            for file, text in (
                (path, json.dumps(results, indent=1) + "\n"),
                (path.with_suffix(".md"), table(results)),
            ):
                temporary = file.with_suffix(".tmp")
                temporary.write_text(text)
                temporary.replace(file)


if __name__ == "__main__":
    main()
