"""`keras-pg train | evaluate | export | verify | serve`: the whole path from the command line."""

import argparse
import ast
import contextlib
import json
import pathlib
import platform
import signal
import sys
import threading
import time

import gymnasium
import keras
import tensorflow as tf

import keras_pg
from keras_pg import saved_model, versions, video
from keras_pg.callbacks import LearningCurve
from keras_pg.hyperparameters import check_count
from keras_pg.rollouts.vector_env import WHILE_RESETTING, WHILE_STEPPING

AGENTS = (
    *(keras_pg.A2C, keras_pg.GRPO, keras_pg.MDPO, keras_pg.NPG),
    *(keras_pg.PPO, keras_pg.REINFORCE, keras_pg.TRPO),
)
ALGORITHMS = {agent.__name__.lower(): agent for agent in AGENTS}


def main(arguments=None):
    """Runs a command and returns the process's exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _parser().parse_args(arguments)
    options.arguments = arguments
    try:
        return options.run(options)
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
        print(f"keras-pg {options.command}: {error}", file=sys.stderr)
        return 2


def _parser():
    parser = argparse.ArgumentParser(
        prog="keras-pg", description="Train, evaluate, export and verify policies."
    )
    parser.add_argument("--version", action="version", version=keras_pg.__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    train = commands.add_parser("train", help="train an agent on a Gymnasium environment")
    train.add_argument("env", help="environment id, such as CartPole-v1")
    train.add_argument("--algorithm", choices=sorted(ALGORITHMS), default="ppo")
    train.add_argument("--total-timesteps", type=int, default=100_000, metavar="N")
    train.add_argument("--num-envs", type=int, default=8, metavar="N")
    train.add_argument("--num-steps", type=int, metavar="T", help="default: the algorithm's")
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--episodes", type=int, default=100, help="of the final evaluation")
    train.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a hyperparameter of the algorithm, such as gamma=0.98; may be repeated",
    )
    train.add_argument(
        "--output", type=pathlib.Path, metavar="DIR", help="default: the next runs/ENV/N"
    )
    train.add_argument("--export", type=pathlib.Path, metavar="DIR", help="export the policy too")
    train.set_defaults(run=_train)

    evaluate = commands.add_parser("evaluate", help="play episodes with a saved agent")
    evaluate.add_argument("agent", help="file written by agent.save or `train`")
    evaluate.add_argument("env", help="environment id")
    evaluate.add_argument("--episodes", type=int, default=100)
    evaluate.add_argument("--seed", type=int)
    evaluate.add_argument("--stochastic", action="store_true", help="sample the actions")
    evaluate.add_argument(
        "--video", type=pathlib.Path, metavar="FILE.gif", help="record one more episode"
    )
    evaluate.set_defaults(run=_evaluate)

    export = commands.add_parser("export", help="export the policy of a saved agent")
    export.add_argument("agent", help="file written by agent.save or `train`")
    export.add_argument("directory", type=pathlib.Path, help="base of the versions")
    export.add_argument("--format", choices=saved_model.FORMATS, default="saved_model")
    export.add_argument(
        "--label", action="append", default=[], metavar="NAME", help="of the version; repeatable"
    )
    export.add_argument(
        "--keep", type=int, metavar="N", help="remove all but the N newest and labelled versions"
    )
    export.set_defaults(run=_export)

    verify = commands.add_parser("verify", help="replay an exported policy's golden observations")
    verify.add_argument(
        "target",
        metavar="DIR|URL",
        help="a version, the base of versions, http://HOST:8501/v1/models/NAME or "
        "grpc://HOST:8500/NAME",
    )
    verify.add_argument(
        "--golden", type=pathlib.Path, metavar="DIR", help="for a URL: the exported policy"
    )
    verify.set_defaults(run=_verify)

    serve = commands.add_parser(
        "serve",
        help="serve exported policies over TensorFlow Serving's REST and gRPC protocols",
        description="A local stand-in for TensorFlow Serving, whose flags these are.",
    )
    serve.add_argument("base", nargs="?", metavar="BASE", help="the same as --model_base_path")
    serve.add_argument("--model_base_path", metavar="DIR", help="base of the versions")
    serve.add_argument("--model_name", help="default: the base's name")
    serve.add_argument("--model_config_file", metavar="FILE", help="models, versions and labels")
    serve.add_argument("--model_config_file_poll_wait_seconds", type=float, metavar="S")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on")
    serve.add_argument("--port", type=int, default=8500, help="of gRPC; 0 serves none")
    serve.add_argument("--rest_api_port", type=int, default=8501, help="of REST; 0 serves none")
    serve.add_argument("--file_system_poll_wait_seconds", type=float, default=1, metavar="S")
    serve.add_argument("--max_num_load_retries", type=int, default=5, metavar="N")
    serve.add_argument("--load_retry_interval_micros", type=int, default=60_000_000, metavar="US")
    # 32 MiB, `keras_pg.serving.server.MAX_REQUEST_BYTES`, which is not imported for other commands.
    serve.add_argument("--max_request_bytes", type=int, default=2**25, metavar="BYTES")
    serve.add_argument("--batching_parameters_file", metavar="FILE")
    serve.add_argument("--monitoring_config_file", metavar="FILE")
    for flag, default in (
        ("--enable_batching", False),
        ("--enable_model_warmup", True),
        ("--rest_api_enable_cors_support", False),
        # A label of a version that is not loaded yet never stops this server.
        ("--allow_version_labels_for_unavailable_models", True),
    ):
        # Not nargs="?", which would take BASE for the value of a flag before it.
        serve.add_argument(flag, f"{flag}=true", action="store_true", default=default)
        serve.add_argument(f"{flag}=false", dest=flag[2:], action="store_false", default=default)
    serve.set_defaults(run=_serve)
    return parser


def _train(options):
    if options.export is not None:
        versions.check_base(options.export)
    # Before any time is spent: a name that does not exist should not take a minute to say so.
    gymnasium.make(options.env, disable_env_checker=True).close()
    check_count("episodes", options.episodes)
    hyperparameters = dict(_assignment(text) for text in options.set)
    algorithm = ALGORITHMS[options.algorithm]
    agent = algorithm(seed=options.seed, **hyperparameters)
    output = _make_output(options)

    start = time.perf_counter()
    try:
        agent.fit(
            options.env,
            total_timesteps=options.total_timesteps,
            num_envs=options.num_envs,
            num_steps=options.num_steps,
            validation_env=options.env,
            callbacks=[
                keras.callbacks.CSVLogger(str(output / "history.csv")),
                LearningCurve(
                    output / "learning_curve.png", title=f"{options.env}, {algorithm.__name__}"
                ),
            ],
        )
    finally:
        seconds = time.perf_counter() - start
        # Whatever ended training, an interrupt included: what was learnt until then is kept.
        if agent.actor is not None:
            agent.save(str(output / "agent.keras"))
            steps = int(agent.env_steps.numpy())
            print(f"Agent after {steps} steps: {output / 'agent.keras'}", file=sys.stderr)
        else:
            with contextlib.suppress(OSError):
                output.rmdir()  # nothing was begun
    result = agent.evaluate(options.env, episodes=options.episodes, verbose=0)
    config = keras.saving.serialize_keras_object(agent)["config"]
    networks = ("actor", "critic", "reference")
    settings = {
        "command": ["keras-pg", *options.arguments],
        "env": options.env,
        "algorithm": algorithm.__name__,
        "hyperparameters": {k: v for k, v in config.items() if k not in networks},
        "total_timesteps": options.total_timesteps,
        "num_envs": options.num_envs,
        "num_steps": options.num_steps or algorithm.default_num_steps,
        "seed": options.seed,
        "training_seconds": round(seconds, 1),
        "evaluation": {"episodes": options.episodes, **result},
        "versions": {
            "keras_pg": keras_pg.__version__,
            "tensorflow": tf.__version__,
            "keras": keras.__version__,
            "gymnasium": gymnasium.__version__,
            "python": platform.python_version(),
        },
    }
    (output / "settings.json").write_text(json.dumps(settings, indent=2) + "\n")
    print(
        f"{options.env}: mean return {result['episode_return']:.1f} over {options.episodes} "
        f"episodes, after {int(agent.env_steps.numpy())} steps in {seconds:.0f} s."
    )
    print(f"Learning curve, history, settings and agent: {output}/")
    if options.export is None:
        return 0
    version = agent.export(options.export)
    print(f"Policy for TensorFlow Serving: {version}/")
    return _print_report(saved_model.verify(version))


def _make_output(options):
    """The directory of a new run: `--output`, which must be new or empty, or the next number."""
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
        if any(options.output.iterdir()):
            raise FileExistsError(
                f"{options.output} holds files already. Give --output a new directory."
            )
        return options.output
    while True:
        with contextlib.suppress(FileExistsError):  # another run has just taken that number
            output = versions.next_version(pathlib.Path("runs") / options.env)
            output.mkdir(parents=True)
            return output


def _assignment(text):
    """("gamma", 0.98) from "gamma=0.98"; the value is read as Python's, or else as text."""
    name, separator, value = text.partition("=")
    if not separator:
        raise ValueError(f"--set takes NAME=VALUE, received {text!r}.")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def _evaluate(options):
    if options.video is not None:
        video.check_path(options.video)
    agent = keras.models.load_model(options.agent)
    how = {"deterministic": not options.stochastic, "seed": options.seed}
    result = agent.evaluate(options.env, episodes=options.episodes, verbose=0, **how)
    report = {"env": options.env, "episodes": options.episodes, **result}
    if options.video is not None:
        agent.record(options.env, options.video, **how)
        report["video"] = str(options.video)
    print(json.dumps(report))
    return 0


def _export(options):
    agent = keras.models.load_model(options.agent)
    print(
        agent.export(
            options.directory, format=options.format, labels=options.label, keep=options.keep
        )
    )
    return 0


def _verify(options):
    return _print_report(saved_model.verify(options.target, golden=options.golden))


def _serve(options):
    try:
        from keras_pg.serving import command
    except ImportError as error:
        raise ImportError(
            f"`keras-pg serve` needs {error.name}: pip install 'keras_pg[serve]'."
        ) from error
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with command.make_server(options) as server:
            for line in command.addresses(server):
                print(line, flush=True)
            threading.Event().wait()
    except KeyboardInterrupt:
        return 0


def _print_report(report):
    differences = ", ".join(f"{k} {v:.2g}" for k, v in report["max_difference"].items())
    verdict = "verified" if report["equal"] else "DIFFERS FROM THE AGENT"
    print(
        f"{report['target']}: {verdict}; {report['rows']} golden observations, "
        f"largest difference: {differences}; one observation takes "
        f"{1e6 * report['latency']['p50']:.0f} us (99th percentile "
        f"{1e6 * report['latency']['p99']:.0f} us)."
    )
    return 0 if report["equal"] else 1


if __name__ == "__main__":
    sys.exit(main())
