"""`keras-pg serve`: from its flags, which are TensorFlow Serving's, to a server."""

import gc
import pathlib
import time

from keras_pg.hyperparameters import check_count
from keras_pg.serving import config
from keras_pg.serving.batching import BatchingParameters
from keras_pg.serving.models import Model, Models, newest_and_labelled
from keras_pg.serving.server import Server


def make_server(options):
    """The `Server` of parsed flags, not yet started.

    Raises:
        ValueError: neither or both of a base path and a configuration file, a file that is none,
            or a version in the place of a base path.
        OSError: a file cannot be read, or a port is taken.
    """
    check_count("--max_request_bytes", options.max_request_bytes)
    read_models = _model_source(options)
    batching = None
    if options.enable_batching:
        file = options.batching_parameters_file
        batching = BatchingParameters() if file is None else config.read_batching(file)
    elif options.batching_parameters_file is not None:
        raise ValueError("--batching_parameters_file needs --enable_batching.")
    models = Models(
        read_models(),
        max_num_load_retries=options.max_num_load_retries,
        load_retry_interval=options.load_retry_interval_micros / 1e6,
        warm_up=options.enable_model_warmup,
        batching=batching,
    )
    # Bodies become many objects for a short time. That makes Python look for garbage, among all
    # that has been imported too, which takes most of their time: this leaves it out.
    gc.freeze()
    monitoring = options.monitoring_config_file
    return Server(
        models,
        host=options.host,
        port=options.port or None,
        rest_api_port=options.rest_api_port or None,
        poll_seconds=options.file_system_poll_wait_seconds,
        before_poll=_reload(models, read_models, options.model_config_file_poll_wait_seconds),
        metrics_path=None if monitoring is None else config.read_monitoring(monitoring),
        # A request that waits for its batch keeps a thread.
        num_threads=8 if batching is None else 64,
        cors=options.rest_api_enable_cors_support,
        max_request_bytes=options.max_request_bytes,
    )


def _model_source(options):
    """A function that gives the `Model`s the flags ask for, reading a configuration file anew."""
    bases = [base for base in (options.base, options.model_base_path) if base is not None]
    if len(bases) + (options.model_config_file is not None) != 1:
        raise ValueError("Give one of BASE, --model_base_path and --model_config_file.")
    if options.model_config_file is not None:
        return lambda: config.read_models(options.model_config_file)
    base = pathlib.Path(bases[0]).resolve()
    name = options.model_name or base.name
    return lambda: [Model(name, base, newest_and_labelled)]


def _reload(models, read_models, seconds):
    """What configures the models anew so many seconds after the last time; None if not at all."""
    if not seconds:
        return None
    last = time.monotonic()

    def reload():
        nonlocal last
        if time.monotonic() - last >= seconds:
            last = time.monotonic()
            models.configure(read_models())

    return reload


def addresses(server):
    """Lines that tell where the models are served."""
    for name in server.models.names():
        if server.rest_api_port is not None:
            yield f"REST  http://{server.host}:{server.rest_api_port}/v1/models/{name}"
        if server.port is not None:
            yield f"gRPC  {server.host}:{server.port}, model {name}"
