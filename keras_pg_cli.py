"""`keras-pg`: what its commands are called and take; what they do is in `keras_pg.cli`.

A module beside the package, because importing anything of keras_pg imports TensorFlow: help, the
version and most wrong arguments are answered without it.
"""

import argparse
import ast
import contextlib
import importlib.util
import os
import pathlib
import re
import runpy
import sys
import tempfile
from collections.abc import Iterator, Sequence

ALGORITHMS = ("A2C", "GRPO", "MDPO", "NPG", "PPO", "REINFORCE", "TRPO")
FORMATS = ("saved_model", "litert", "onnx")
LARGEST_SEED = 2**62


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns the process's exit code.

    Args:
        arguments: without the program's name; None for those of this process.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    options = parser().parse_args(arguments)
    options.arguments = arguments
    try:
        import_tensorflow_quietly()
        from keras_pg.cli import run
    except KeyboardInterrupt:
        print(f"keras-pg {options.command}: interrupted", file=sys.stderr)
        return 130
    except ImportError as error:
        print(f"keras-pg {options.command}: {error}", file=sys.stderr)
        return 2
    return run(options)


def parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="keras-pg", description="Train, evaluate, export, verify and serve policies."
    )
    parser.add_argument("--version", action=_PrintVersion, help="print keras_pg's version and exit")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (_add_train, _add_evaluate, _add_export, _add_verify, _add_serve):
        add(commands)
    return parser


def _add_train(commands):
    train = _command(commands, "train", "train an agent on a Gymnasium environment")
    _add_environment(train)
    train.add_argument(
        "--algorithm",
        type=str.upper,
        choices=ALGORITHMS,
        default="PPO",
        metavar="NAME",
        help=f"{', '.join(ALGORITHMS)}, in any case",
    )
    train.add_argument(
        "--set",
        type=assignment,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a hyperparameter of the algorithm, such as gamma=0.98; may be repeated",
    )
    train.add_argument(
        "--learning-rate",
        type=learning_rate,
        metavar="RATE",
        help="of the algorithm's optimizer: a number such as 3e-4, or linear:3e-4, which falls to "
        "0 over the run (default: the algorithm's)",
    )
    train.add_argument(
        "--units",
        type=count,
        nargs="+",
        metavar="N",
        help="width of each hidden layer of actor and critic, for observations that are no images; "
        "as the last argument, or before another flag (default: 64 64)",
    )
    training = train.add_argument_group("how long")
    training.add_argument(
        "--total-timesteps",
        type=count,
        default=100_000,
        metavar="N",
        help="steps to train for, over all environments; 1e5 is a number",
    )
    training.add_argument(
        "--num-envs",
        type=count,
        default=8,
        metavar="N",
        help="copies that are stepped side by side",
    )
    training.add_argument(
        "--num-steps",
        type=count,
        metavar="T",
        help="of each copy in an iteration; of GRPO and REINFORCE, the longest episode (default: "
        "5 of A2C, 1000 of GRPO and REINFORCE, 256 of the others)",
    )
    training.add_argument(
        "--seed", type=seed, default=0, help="of networks, environments, actions and shuffling"
    )
    evaluation = train.add_argument_group(
        "evaluation",
        "By default all evaluations together play a tenth as many steps as training does. Where "
        "the environment has no time limit, their episodes end after a hundredth as many.",
    )
    evaluation.add_argument(
        "--episodes",
        type=count,
        metavar="N",
        help="of the final evaluation (default: as many as the tenth leaves, from 8 to 100)",
    )
    evaluation.add_argument(
        "--validation-freq",
        type=count_or_none,
        metavar="N",
        help="validate after each N epochs; 0 never does (default: after each epoch that leaves "
        "half of the tenth)",
    )
    evaluation.add_argument(
        "--validation-episodes", type=count, default=8, metavar="N", help="of each validation"
    )
    output = train.add_argument_group("what is written")
    output.add_argument(
        "--output", type=pathlib.Path, metavar="DIR", help="(default: the next runs/ENV/N)"
    )
    output.add_argument("--export", type=pathlib.Path, metavar="DIR", help="export the policy too")


def _add_evaluate(commands):
    evaluate = _command(commands, "evaluate", "play episodes with a saved agent")
    _add_agent(evaluate)
    _add_environment(evaluate)
    evaluate.add_argument(
        "--episodes", type=count, default=100, metavar="N", help="how many to play"
    )
    evaluate.add_argument(
        "--seed", type=seed, help="of the environments (default: follows from the agent's)"
    )
    evaluate.add_argument("--stochastic", action="store_true", help="sample the actions")
    evaluate.add_argument(
        "--video", type=pathlib.Path, metavar="FILE.gif", help="record one more episode"
    )


def _add_export(commands):
    export = _command(commands, "export", "export the policy of a saved agent")
    _add_agent(export)
    export.add_argument("directory", type=pathlib.Path, help="base of the versions")
    export.add_argument(
        "--format",
        choices=FORMATS,
        default="saved_model",
        help="for TensorFlow Serving, for devices, or for ONNX runtimes",
    )
    export.add_argument(
        "--label", action="append", default=[], metavar="NAME", help="of the version; repeatable"
    )
    export.add_argument(
        "--keep", type=count, metavar="N", help="remove all but the N newest and labelled versions"
    )


def _add_verify(commands):
    verify = _command(commands, "verify", "replay an exported policy's golden observations")
    verify.add_argument(
        "target",
        metavar="DIR|URL",
        help="a version, the base of versions, http://HOST:8501/v1/models/NAME or "
        "grpc://HOST:8500/NAME",
    )
    verify.add_argument(
        "--golden", type=pathlib.Path, metavar="DIR", help="for a URL: the exported policy"
    )


def _add_serve(commands):
    serve = _command(
        commands,
        "serve",
        "serve exported policies over TensorFlow Serving's REST and gRPC protocols",
        description="A local stand-in for TensorFlow Serving, whose flags these are.",
    )
    serve.add_argument("base", nargs="?", metavar="BASE", help="the same as --model_base_path")
    serve.add_argument("--model_base_path", metavar="DIR", help="base of the versions")
    serve.add_argument("--model_name", help="(default: the base's name)")
    serve.add_argument("--model_config_file", metavar="FILE", help="models, versions and labels")
    serve.add_argument(
        "--model_config_file_poll_wait_seconds",
        type=float,
        metavar="S",
        help="read that file again so often (default: never)",
    )
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on")
    serve.add_argument("--port", type=int, default=8500, help="of gRPC; 0 serves none")
    serve.add_argument("--rest_api_port", type=int, default=8501, help="of REST; 0 serves none")
    serve.add_argument(
        "--file_system_poll_wait_seconds",
        type=float,
        default=1,
        metavar="S",
        help="look for new versions so often",
    )
    serve.add_argument(
        "--max_num_load_retries", type=int, default=5, metavar="N", help="of each version"
    )
    serve.add_argument(
        "--load_retry_interval_micros",
        type=int,
        default=60_000_000,
        metavar="US",
        help="between two of them",
    )
    serve.add_argument(
        "--max_request_bytes",
        type=int,
        default=2**25,  # `keras_pg.serving.server.MAX_REQUEST_BYTES`, which is not imported here
        metavar="BYTES",
        help="of the body of a request; larger ones are refused",
    )
    serve.add_argument("--batching_parameters_file", metavar="FILE", help="for --enable_batching")
    serve.add_argument("--monitoring_config_file", metavar="FILE", help="path of the metrics")
    for flag, default in (
        ("--enable_batching", False),
        ("--enable_model_warmup", True),
        ("--rest_api_enable_cors_support", False),
        # A label of a version that is not loaded yet never stops this server.
        ("--allow_version_labels_for_unavailable_models", True),
    ):
        # Not nargs="?", which would take BASE for the value of a flag before it.
        said = f"(default: {str(default).lower()})"
        serve.add_argument(flag, f"{flag}=true", action="store_true", default=default, help=said)
        serve.add_argument(f"{flag}=false", dest=flag[2:], action="store_false", default=default)


def _command(commands, name, help, description=None):
    description = description or f"{help[0].upper()}{help[1:]}."
    return commands.add_parser(
        name, help=help, description=description, formatter_class=_ShowingDefaults
    )


def _add_environment(command):
    command.add_argument("env", help="environment id, such as CartPole-v1, or module:ID")
    command.add_argument(
        "--env-arg",
        type=assignment,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a keyword argument of the environment, such as max_episode_steps=200; may be "
        "repeated",
    )


def _add_agent(command):
    command.add_argument(
        "agent",
        metavar="RUNDIR|FILE",
        help="directory that `train` has written, or a file that agent.save has",
    )


class _ShowingDefaults(argparse.ArgumentDefaultsHelpFormatter):
    """Says each default that is a value and that the help does not tell itself."""

    def _get_help_string(self, action):
        if action.default is None or action.default is False or action.default == []:
            return action.help
        if "default" in action.help:
            return action.help
        return super()._get_help_string(action)


class _PrintVersion(argparse.Action):
    """Prints the version of the package beside this module, which is not imported for it."""

    def __init__(self, **arguments):
        super().__init__(nargs=0, **arguments)

    def __call__(self, parser, namespace, values, option_string=None):
        (package,) = importlib.util.find_spec("keras_pg").submodule_search_locations
        print(runpy.run_path(os.path.join(package, "_version.py"))["__version__"])
        parser.exit()


# -------------------------------------------------------------------------------------- values


def count(text: str) -> int:
    """A positive integer, also in the form of a float.

    >>> count("100_000"), count("1e5")
    (100000, 100000)
    """
    number = _integer(text)
    if number is None or number < 1:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no positive integer, such as 100000, 100_000 or 1e5."
        )
    return number


def count_or_none(text: str) -> int:
    """The same, or 0."""
    return 0 if _integer(text) == 0 else count(text)


def seed(text: str) -> int:
    """A seed that fits into an int64, with those that are derived from it."""
    number = _integer(text)
    if number is None or not 0 <= number <= LARGEST_SEED:
        raise argparse.ArgumentTypeError(f"{text!r} is no integer from 0 to 2**62.")
    return number


def _integer(text):
    with contextlib.suppress(ValueError):
        return int(text)
    with contextlib.suppress(ValueError):
        if (number := float(text)).is_integer():
            return int(number)
    return None


def learning_rate(text: str) -> tuple[float, bool]:
    """(the rate, whether it falls linearly to 0).

    >>> learning_rate("3e-4"), learning_rate("linear:1e-3")
    ((0.0003, False), (0.001, True))
    """
    number = text.removeprefix("linear:")
    with contextlib.suppress(ValueError):
        if 0 < float(number) < float("inf"):
            return float(number), number != text
    raise argparse.ArgumentTypeError(
        f"{text!r} is no learning rate: give a positive number such as 3e-4, or linear:3e-4."
    )


def assignment(text: str) -> tuple[str, object]:
    """(name, value) from NAME=VALUE; the value is read as Python's, or else as text.

    >>> assignment("gamma=0.98"), assignment("advantage=td")
    (('gamma', 0.98), ('advantage', 'td'))
    """
    name, separator, value = text.partition("=")
    if not (separator and name.isidentifier()):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form NAME=VALUE.")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


# ------------------------------------------------------------------------- what TensorFlow logs

# Lines before TensorFlow reads its own level: what it was built with, and that there is no GPU.
_CHATTER = re.compile(
    r"WARNING: All log messages before absl::InitializeLog\(\)"
    r"|[IW]\d{4} .*\.cc:\d+\]"
    r"|\d{4}-\d\d-\d\d [\d:.]+: [IW] "
    r"|To enable the following instructions: .* rebuild TensorFlow"
    r"|E\d{4} .*failed call to cuInit: .*(UNKNOWN ERROR \(303\)|CUDA_ERROR_NO_DEVICE)"
)


def import_tensorflow_quietly() -> None:
    """Imports TensorFlow, which from then on logs errors only.

    Where TF_CPP_MIN_LOG_LEVEL is set, nothing is changed. Where TensorFlow cannot be imported, it
    is left to keras_pg to say so.
    """
    if "tensorflow" in sys.modules or "TF_CPP_MIN_LOG_LEVEL" in os.environ:
        return
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
    with _without_chatter(), contextlib.suppress(ImportError):
        import tensorflow as tf

        # It looks for GPUs here, and says what it finds.
        tf.config.list_physical_devices()


@contextlib.contextmanager
def _without_chatter() -> Iterator[None]:
    """Takes the lines that match `_CHATTER` out of what is written to stderr, from C++ too."""
    try:
        sys.stderr.flush()
        stderr = os.dup(2)
    except (OSError, AttributeError):  # there is no stderr
        yield
        return
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            held.seek(0)
            for line in held:
                if line.strip() and not _CHATTER.match(line.decode(errors="replace")):
                    os.write(2, line)


if __name__ == "__main__":
    sys.exit(main())
