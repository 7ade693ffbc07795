"""TensorFlow Serving's `--model_config_file` for exported policies, with their labels.

    python export/models_config.py policies/cartpole --output models.config
    python export/models_config.py policies/cartpole --label stable=2 --output models.config

Every version that is there is served. A label is a name for a version, such as "stable", by which
clients ask for it; labels are kept in `labels.json` in the base directory, where
`agent.export(labels=...)` writes them too, and `--label` changes them there.
"""

import argparse
import contextlib
import fcntl
import json
import os
import pathlib
import sys


def main(arguments=None):
    """Writes the configuration; exit code 2 for a base or a label that is none."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", nargs="+", type=pathlib.Path, help="directory of the versions")
    parser.add_argument(
        "--label", action="append", default=[], metavar="NAME=VERSION", help="of the one base"
    )
    parser.add_argument(
        "--output", type=pathlib.Path, metavar="FILE", help="replaced at once; default: printed"
    )
    parser.add_argument(
        "--served-from",
        metavar="DIR",
        help="where the server finds the bases, such as /models in a container; default: here",
    )
    options = parser.parse_args(arguments)
    if options.label and len(options.base) > 1:
        parser.error("--label takes one base directory")
    try:
        for text in options.label:
            set_label(options.base[0], *text.partition("=")[::2])
        entries = [entry(base, options.served_from) for base in options.base]
    except (ValueError, OSError) as error:
        parser.error(str(error))
    config = "model_config_list {\n" + "\n".join(entries) + "\n}\n"
    if options.output is None:
        print(config, end="")
    else:
        replace(options.output, config)


def entry(base, served_from=None):
    """The `config` of one base directory; its name is the directory's."""
    base = base.resolve()
    path = base if served_from is None else pathlib.PurePosixPath(served_from) / base.name
    found = versions(base)
    if not found:
        raise ValueError(f"{base} has no version directory, such as {base}/1")
    lines = [
        f"name: {json.dumps(base.name)}",
        f"base_path: {json.dumps(str(path))}",
        'model_platform: "tensorflow"',
        "model_version_policy { all {} }",
    ]
    for label, version in sorted(labels(base).items()):
        if version not in found:
            raise ValueError(f"label {label} is of version {version}, which {base} has not")
        lines.append(f"version_labels {{ key: {json.dumps(label)} value: {version} }}")
    return "  config {\n" + "".join(f"    {line}\n" for line in lines) + "  }"


def versions(base):
    """The numbers of the version directories."""
    names = [path.name for path in base.iterdir() if path.is_dir()] if base.is_dir() else []
    return {int(name) for name in names if name.isascii() and name.isdigit()}


def labels(base):
    """{label: version} of a base directory."""
    path = base / "labels.json"
    return json.loads(path.read_text()) if path.exists() else {}


def set_label(base, label, version):
    """Gives a version the label, which the version that had it loses."""
    with locked(base):
        found = versions(base)
        if not version.isdigit() or int(version) not in found:
            raise ValueError(f"--label takes NAME=VERSION of {sorted(found)}, got {version!r}")
        named = {**labels(base), label: int(version)}
        replace(base / "labels.json", json.dumps(named, indent=2) + "\n")


@contextlib.contextmanager
def locked(base):
    """Lets no `agent.export`, which takes this lock too, publish, label or remove meanwhile."""
    descriptor = os.open(base, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def replace(path, text):
    """Writes a file that a server may be reading."""
    temporary = path.with_name(f".writing-{path.name}")
    temporary.write_text(text)
    os.replace(temporary, path)


if __name__ == "__main__":
    sys.exit(main())
