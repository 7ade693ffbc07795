"""`keras-pg train`."""

import argparse

import keras

from keras_pg import saved_model
from keras_pg.callbacks import LearningCurve
from keras_pg.cli import agents, evaluations
from keras_pg.cli.environments import Environment
from keras_pg.cli.run_directory import HistoryFile, RunDirectory
from keras_pg.cli.verify import print_report


def run(options: argparse.Namespace) -> int:
    """Trains an agent, evaluates it, and exports it if asked to."""
    # Whatever may be wrong is looked at before any time is spent.
    if options.export is not None:
        saved_model.check_target(options.export)
    environment = Environment(options.env, dict(options.env_arg))
    agent = agents.make(options, environment)
    limit = environment.max_episode_steps or evaluations.time_limit(options.total_timesteps)
    evaluated = environment.copies(limit)
    directory = RunDirectory(options.output, options.env, _settings(options, agent))
    validation = evaluations.Validation(
        evaluated,
        options.validation_episodes,
        options.validation_freq,
        max_episode_steps=limit,
    )
    callbacks = [
        validation,  # first: the others see what it adds
        directory,
        HistoryFile(directory.path / "history.csv"),
        LearningCurve(
            directory.path / "learning_curve.png",
            title=f"{options.env}, {options.algorithm}",
        ),
    ]
    if options.learning_rate is not None and options.learning_rate[1]:
        callbacks.append(agents.LinearDecay(options.total_timesteps))

    with directory.recording():
        with directory.keeping(agent):
            agent.fit(
                environment.copies(),
                total_timesteps=options.total_timesteps,
                num_envs=options.num_envs,
                num_steps=options.num_steps,
                callbacks=callbacks,
            )
        episodes = options.episodes or validation.final_episodes(options.total_timesteps)
        result = agent.evaluate(evaluated, episodes=episodes, verbose=0)
        limited = {} if environment.max_episode_steps else {"max_episode_steps": limit}
        directory.write(evaluation={"episodes": episodes, **limited, **result})
        print(
            f"{options.env}: mean return {result['episode_return']:.1f} over {episodes} episodes, "
            f"after {directory.settings['env_steps']} steps in "
            f"{directory.settings['training_seconds']:.0f} s."
        )
        print(f"Learning curve, history, settings and agent: {directory.path}/")
        version = None if options.export is None else agent.export(options.export)
    if version is None:
        return 0
    print(f"Policy for TensorFlow Serving: {version}/")
    return print_report(saved_model.verify(version))


def _settings(options, agent):
    """What `settings.json` says of a run that has not begun."""
    serialize = keras.saving.serialize_keras_object
    networks = ("actor", "critic", "reference")
    config = serialize(agent)["config"]
    return {
        "command": ["keras-pg", *options.arguments],
        "env": options.env,
        "env_arguments": dict(options.env_arg),
        "algorithm": options.algorithm,
        "hyperparameters": {k: v for k, v in config.items() if k not in networks},
        "units": options.units,
        "optimizer": serialize(agent.optimizer),
        "learning_rate_falls_to_0": options.learning_rate is not None and options.learning_rate[1],
        "total_timesteps": options.total_timesteps,
        "num_envs": options.num_envs,
        "num_steps": options.num_steps or agent.default_num_steps,
        "seed": options.seed,
    }
