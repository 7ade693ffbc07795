"""Tensors as JSON, read and written as TensorFlow Serving reads and writes them.

Rows (`{"instances": [...]}` → `{"predictions": [...]}`) or columns (`{"inputs": ...}` →
`{"outputs": ...}`). A signature is a `SignatureDef`; tensors are NumPy arrays by name.
"""

import base64
import binascii
import json

import numpy as np
from grpc import StatusCode
from tensorflow import dtypes

from keras_pg.serving import protobuf_tensors
from keras_pg.serving.json_documents import LargeArray, is_array, to_text, type_name
from keras_pg.serving.status import RequestError, invalid

WRITTEN_AT_ONCE = 2**14  # values
_FLOATS = ("float32", "float64")


def _integers(low, high):
    return lambda leaf: type(leaf) is int and low <= leaf <= high


_ACCEPTS = {
    **dict.fromkeys(_FLOATS, lambda leaf: type(leaf) in (int, float)),
    **dict.fromkeys(("int8", "uint8", "int16", "int32"), _integers(-(2**31), 2**31 - 1)),
    "int64": _integers(-(2**63), 2**63 - 1),
    "uint32": _integers(0, 2**32 - 1),
    "uint64": _integers(0, 2**64 - 1),
    "bool": lambda leaf: type(leaf) is bool,
}


# --------------------------------------------------------------------------------------- reading


def read_inputs(document, inputs):
    """The tensors of a predict request.

    Args:
        document: what `json_documents.parse` gave.
        inputs: {name: `TensorInfo`} of the signature.

    Returns:
        {name: array}, and whether they came as rows.

    Raises:
        RequestError: with TensorFlow Serving's words.
    """
    if "instances" in document and "inputs" in document:
        raise invalid(
            f"JSON Value: {to_text(document)} Not formatted correctly expecting only one of "
            "'inputs' or 'instances' keys to exist "
        )
    if "instances" in document:
        instances = document["instances"]
        if not is_array(instances):
            raise invalid(
                f"JSON Value: {to_text(document)} Expecting 'instances' to be an list/array"
            )
        if not len(instances):
            raise invalid(f"JSON Value: {to_text(document)} No values in 'instances' array")
        return _read_rows(instances, inputs), True
    if "inputs" in document:
        return _read_columns(document["inputs"], inputs), False
    raise invalid("Missing 'inputs' or 'instances' key")


def _read_columns(value, inputs):
    if isinstance(value, dict) and not _is_base64(value):
        for name in sorted(inputs):
            if name not in value:
                raise invalid(f"Missing named input: {name} in 'inputs' object.")
        return {name: _array(value[name], info.dtype) for name, info in inputs.items()}
    if len(inputs) > 1:
        raise invalid(
            "inputs is a plain value/list, but expecting an object as multiple input tensors "
            "required as per tensorinfo_map"
        )
    [(name, info)] = inputs.items()
    return {name: _array(value, info.dtype)}


def _read_rows(instances, inputs):
    first = instances[0]
    if not isinstance(first, dict) and len(inputs) > 1:
        raise invalid(
            "instances is a plain list, but expecting list of objects as multiple input tensors "
            "required as per tensorinfo_map"
        )
    named, parts = _is_named(first), []
    for rows in _pieces(instances, len(instances)):
        part = _read_fitting_rows(rows, inputs, named)
        if part is None or (parts and _row_shapes(part) != _row_shapes(parts[0])):
            _find_misfit(instances, inputs, named)
        parts.append(part)
    return {name: _joined([part[name] for part in parts]) for name in inputs}


def _pieces(value, size):
    """The items of an array as lists, of at most so many where the array is a list itself."""
    if isinstance(value, LargeArray):
        return value.pieces()
    return (value[start : start + size] for start in range(0, len(value), size))


def _row_shapes(arrays):
    return {name: array.shape[1:] for name, array in arrays.items()}


def _joined(arrays):
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _read_fitting_rows(rows, inputs, named):
    """{name: array} if all rows fit, or else None."""
    try:
        if not named:
            return {name: _array(rows, info.dtype) for name, info in inputs.items()}
        if any(not _is_named(row) or row.keys() != inputs.keys() for row in rows):
            return None
        return {name: _array([row[name] for row in rows], i.dtype) for name, i in inputs.items()}
    except RequestError:
        return None


def _find_misfit(instances, inputs, named):
    """Raises for the first row that does not fit."""
    first, start = instances[0], 0
    for rows in _pieces(instances, 1024):  # most are passed over many at a time
        if _read_fitting_rows([first, *rows], inputs, named) is None:
            _check_rows(first, rows, start, inputs)
        start += len(rows)


def _check_rows(first_row, rows, start, inputs):
    """Raises for the first of these rows, of which the first has number `start`, that is unfit."""
    named = _is_named(first_row)
    first = {}
    for i, instance in [(0, first_row), *enumerate(rows, start)]:
        if named != _is_named(instance):
            expected, got = ("object", "list") if named else ("value/list", "object")
            raise invalid(f"Expecting {expected} but got {got} at item {i} of input list")
        items = instance if named else dict.fromkeys(inputs, instance)
        for name, value in items.items():
            try:
                if name not in inputs:
                    raise invalid(f"JSON object: does not have named input: {name}")
                row = _array(value, inputs[name].dtype)
                _check_like(row, first.setdefault(name, row))
            except RequestError as error:
                key = f" key: {name}" if named else ""
                raise invalid(
                    f"Failed to process element: {i}{key} of 'instances' list. Error: "
                    f"{error.code.name}: {error.message}"
                ) from None
        if items.keys() != inputs.keys():
            raise invalid(
                f"Failed to process element: {i} of 'instances' list. JSON object: "
                f"{to_text(instance)} keys must be equal to: {','.join(sorted(inputs))}"
            )


def _check_like(row, first):
    """Raises where a row has another size or shape than the first."""
    if row.size != first.size:
        raise invalid(f"Expecting tensor size: {first.size} but got: {row.size}")
    if row.shape != first.shape:
        expected, got = (f"[{','.join(map(str, array.shape))}]" for array in (first, row))
        raise invalid(f"Expecting shape {expected} but got: {got}")


def _is_named(instance):
    return isinstance(instance, dict) and not _is_base64(instance)


def _is_base64(value):
    return isinstance(value, dict) and list(value) == ["b64"] and isinstance(value["b64"], str)


def _array(value, dtype):
    """A value or nested lists of such as an array; all lists of a level have one length."""
    shape, first = [], value
    while is_array(first):
        shape.append(len(first))
        if not len(first):
            break
        first = first[0]
    if not isinstance(value, LargeArray):
        return _array_of_shape(value, shape, dtype)
    # Pieces that have nothing in common but the shape of their items.
    return _joined([_array_of_shape(p, [len(p), *shape[1:]], dtype) for p in value.pieces()])


def _array_of_shape(value, shape, dtype):
    leaves = []
    _collect(value, shape, 0, leaves)
    data_type = dtypes.as_dtype(dtype)
    name, numpy_type = data_type.name, data_type.as_numpy_dtype
    if name == "string":
        return np.array([_to_bytes(leaf) for leaf in leaves], object).reshape(shape)
    accepts = _ACCEPTS.get(name)
    for leaf in leaves:
        if accepts is None and not isinstance(leaf, dict):
            raise RequestError(
                StatusCode.UNIMPLEMENTED,
                f"Conversion of JSON Value: {to_text(leaf)} to type: "
                f"{protobuf_tensors.type_name(data_type)}",
            )
        if accepts is None or not accepts(leaf):
            raise _wrong_type(leaf, data_type)
    # First as wide as JSON's numbers: beyond float32 is infinite, and small integers wrap around.
    wide = np.float64 if name in _FLOATS else np.uint64 if name == "uint64" else np.int64
    with np.errstate(over="ignore"):
        return np.array(leaves, wide).astype(numpy_type).reshape(shape)


def _collect(value, shape, level, values):
    """Appends the leaves of nested lists to `values`, or says which list does not fit."""
    if not isinstance(value, list):
        if level != len(shape):
            raise invalid(
                f"JSON Value: {to_text(value)} found at incorrect level: {level + 1} in the JSON "
                f"DOM. Expected at level: {len(shape)}"
            )
        values.append(value)
        return
    if level >= len(shape):
        raise invalid(f"Encountered list at unexpected level: {level} expected < {len(shape)}")
    if len(value) != shape[level]:
        raise invalid(
            f"Encountered list at unexpected size: {len(value)} at level: {level} expected size: "
            f"{shape[level]}"
        )
    if level == len(shape) - 1 and not any(isinstance(v, list) for v in value):
        values.extend(value)
        return
    for v in value:
        _collect(v, shape, level + 1, values)


def _to_bytes(leaf):
    if isinstance(leaf, dict):
        if not _is_base64(leaf):
            raise invalid(f"JSON Value: {to_text(leaf)} not formatted correctly for base64 data")
        return _from_base64(leaf["b64"])
    if not isinstance(leaf, str):
        raise _wrong_type(leaf, dtypes.string)
    return leaf.encode()


def _wrong_type(leaf, data_type):
    return invalid(
        f"JSON Value: {to_text(leaf)} Type: {type_name(leaf)} is not of expected type: "
        f"{protobuf_tensors.type_name(data_type)}"
    )


def _from_base64(text):
    try:
        text = text.rstrip("=")
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise invalid("Unable to base64 decode") from None


def check_examples(document):
    """Raises what TensorFlow Serving says of a classify or regress request before it runs it."""
    if "context" in document:
        _check_example(document["context"])
    if "examples" not in document:
        raise invalid(
            f"JSON Value: {to_text(document)} When method is classify, key 'examples' is expected "
            "and was not found"
        )
    examples = document["examples"]
    if not is_array(examples):
        raise invalid(
            f"JSON Value: {to_text(document)} Expecting 'examples' value to be an list/array"
        )
    if not len(examples):
        raise invalid(f"JSON Value: {to_text(document)} 'examples' value is an empty array")
    for example in examples:
        _check_example(example)


def _check_example(example):
    if not isinstance(example, dict):
        raise invalid(f"Example must be JSON object but got JSON {type_name(example)}")
    for name, feature in example.items():
        kinds = []
        for value in feature if is_array(feature) else [feature]:
            if (
                value is None
                or is_array(value)
                or (isinstance(value, dict) and not _is_base64(value))
            ):
                raise invalid(
                    f"Feature: {name} has element with unexpected JSON type: {type_name(value)}"
                )
            names = {bool: "int64", int: "int64", float: "float"}
            kinds.append(names.get(type(value), "bytes"))
            if kinds[-1] != kinds[0]:
                raise invalid(
                    f"Unexpected element type in feature: {name} expecting type: {kinds[0]}"
                )


# --------------------------------------------------------------------------------------- writing


def write_outputs(outputs, as_rows):
    """The body of an answer to a predict request.

    Args:
        outputs: {name: array}; every array needs as many rows as the others, if `as_rows`.
        as_rows: whether the request came as rows.

    Returns:
        Bytes, in pieces: as Python's objects, the rows of a large answer are written in turn.

    Raises:
        RequestError: JSON has no such value, or rows differ in number.
    """
    if as_rows:
        sizes = set()
        for name, array in outputs.items():
            if array.ndim == 0:
                raise invalid(f"Tensor name: {name} has no shape information ")
            sizes.add(len(array))
            if len(sizes) > 1:
                expected = next(len(array) for array in outputs.values())
                raise invalid(
                    f"Tensor name: {name} has inconsistent batch size: {len(array)} expecting: "
                    f"{expected}"
                )
        return [b'{"predictions": [', *_write_rows(outputs), b"]}"]
    columns = [list(_write_column(name, array)) for name, array in outputs.items()]
    if len(columns) == 1:
        return [b'{"outputs": ', *columns[0], b"}"]
    pieces, separator = [b'{"outputs": {'], b""
    for name, column in zip(outputs, columns):
        pieces += [separator, _dump(name), b": ", *column]
        separator = b", "
    return [*pieces, b"}}"]


def _write_rows(arrays):
    """Rows in pieces: one array's values, or of several an object each."""
    separator = b""
    for part in _parts(arrays):
        columns = {name: _nested(name, array) for name, array in part.items()}
        if len(columns) == 1:
            [rows] = columns.values()
        else:
            rows = [dict(zip(columns, row)) for row in zip(*columns.values())]
        yield separator + _dump(rows)[1:-1]
        separator = b", "


def _write_column(name, array):
    if array.ndim == 0:
        return [_dump(_nested(name, array))]
    return [b"[", *_write_rows({name: array}), b"]"]


def _parts(arrays):
    """The arrays in parts of as many rows, some `WRITTEN_AT_ONCE` values each; at least one."""
    rows = len(next(iter(arrays.values()), ()))
    values = sum(array.size for array in arrays.values()) / max(rows, 1)
    step = max(1, int(WRITTEN_AT_ONCE // max(values, 1)))
    for start in range(0, max(rows, 1), step):
        yield {name: array[start : start + step] for name, array in arrays.items()}


def _nested(name, array):
    """An array as nested lists of what `json` writes as TensorFlow Serving would."""
    kind = array.dtype.name
    if kind in _FLOATS:
        leaves = _shortened(array.ravel(), digits=9 if kind == "float32" else 17)
    elif kind in _ACCEPTS:
        return array.tolist()
    elif array.dtype.kind in "OS":
        write = _as_base64 if name.endswith("_bytes") else _as_text
        leaves = [write(v) for v in array.ravel()]
    else:
        data_type = dtypes.as_dtype(array.dtype)
        raise invalid(
            f"Failed to write JSON value for tensor type: {protobuf_tensors.type_name(data_type)}"
        )
    nested = np.empty(len(leaves), object)
    nested[:] = leaves
    return nested.reshape(array.shape).tolist()


def _shortened(values, digits):
    """The numbers that six digits give, or where those are others, that so many digits give."""
    exact = values.tolist()
    short = [float(f"{value:.6g}") for value in exact]
    same = np.array(short).astype(values.dtype) == values
    return [s if ok else float(f"{e:.{digits}g}") for s, e, ok in zip(short, exact, same)]


def _as_base64(value):
    return {"b64": base64.b64encode(value).decode()}


def _as_text(value):
    # Surrogates stand for bytes that are no UTF-8, and `_dump` writes them as they came.
    return value.decode("utf-8", "surrogateescape")


def _dump(answer):
    return json.dumps(answer, ensure_ascii=False).encode("utf-8", "surrogateescape")


def write_error(message):
    """The body of an answer that is an error."""
    return _dump({"error": message})
