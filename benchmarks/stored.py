"""Results that are kept as runs end, so that a benchmark can be interrupted and go on."""

import json
import os

from throughput import processor


def load(path, settings):
    """What is stored at a path, emptied where the settings have changed since."""
    if path.exists():
        results = json.loads(path.read_text())
        if results["settings"] == settings:
            return results
    return {"settings": settings, "processor": f"{processor()}, {os.cpu_count()} cores", "runs": []}


def add(path, settings, run):
    """Adds a run to what is stored, which another process may have added to as well."""
    results = load(path, settings)
    results["runs"].append(run)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(results) + "\n")
    temporary.replace(path)
