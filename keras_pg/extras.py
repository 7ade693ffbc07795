"""How to install what keras_pg needs for some of its parts only."""


def installation(extra: str) -> str:
    """The command that installs an extra; keras_pg is on no index, so it is of a clone.

    >>> installation("onnx")
    '`pip install ".[onnx]"` in the directory of your clone of keras_pg'
    """
    return f'`pip install ".[{extra}]"` in the directory of your clone of keras_pg'
