"""`keras-pg export`."""

import argparse

from keras_pg import saved_model, versions
from keras_pg.cli import agents


def run(options: argparse.Namespace) -> int:
    """Exports the policy of a saved agent, and prints where it is."""
    saved_model.check_target(options.directory, options.format)
    labels = versions.check_labels(options.label)
    agent = agents.load(options.agent)
    version = agent.export(
        options.directory, format=options.format, labels=labels, keep=options.keep
    )
    print(version)
    return 0
