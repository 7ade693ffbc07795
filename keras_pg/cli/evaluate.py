"""`keras-pg evaluate`."""

import argparse
import json

from keras_pg import video
from keras_pg.cli import agents
from keras_pg.cli.environments import Environment


def run(options: argparse.Namespace) -> int:
    """Evaluates a saved agent and prints the result, as a line of JSON.

    With a video there is a second line, after it has been recorded: the evaluation is known then,
    whatever becomes of the video.
    """
    if options.video is not None:
        video.check_path(options.video)
    environment = Environment(options.env, dict(options.env_arg))
    agent = agents.load(options.agent)
    how = {"deterministic": not options.stochastic, "seed": options.seed}
    result = agent.evaluate(environment.copies(), episodes=options.episodes, verbose=0, **how)
    print(json.dumps({"env": options.env, "episodes": options.episodes, **result}), flush=True)
    if options.video is not None:
        recorded = agent.record(environment.drawn(), options.video, **how)
        print(json.dumps({"video": str(options.video), **recorded}))
    return 0
