"""`keras-pg verify`."""

import argparse
from typing import Any

from keras_pg import saved_model


def run(options: argparse.Namespace) -> int:
    """Verifies an artefact or a server, and says how it went."""
    return print_report(saved_model.verify(options.target, golden=options.golden))


def print_report(report: dict[str, Any]) -> int:
    """Prints what `saved_model.verify` returns; the exit code is 1 if there is a difference."""
    differences = ", ".join(f"{k} {v:.2g}" for k, v in report["max_difference"].items())
    verdict = "verified" if report["equal"] else "DIFFERS FROM THE AGENT"
    print(
        f"{report['target']}: {verdict}; {report['rows']} golden observations, "
        f"largest difference: {differences}; one observation takes "
        f"{1e6 * report['latency']['p50']:.0f} us (99th percentile "
        f"{1e6 * report['latency']['p99']:.0f} us)."
    )
    return 0 if report["equal"] else 1
