"""Tensors as JSON, read and written as TensorFlow Serving reads and writes them.

Rows (`{"instances": [...]}` → `{"predictions": [...]}`) or columns (`{"inputs": ...}` →
`{"outputs": ...}`). A signature is a `SignatureDef`; tensors are NumPy arrays by name.
"""

import base64
import binascii
import json
import re

import numpy as np
import rapidjson  # TensorFlow Serving's own parser: the same language, the same error messages
from grpc import StatusCode
from tensorflow import dtypes

from keras_pg.serving.protobuf_tensors import type_name
from keras_pg.serving.status import RequestError, invalid

MAX_NESTING = 64
MAX_TEXT = 4096  # characters of a document in an error message
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
# Possessive, or the states to come back to would take a hundred times the body's size.
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)


# ------------------------------------------------------------------------------------- documents


class _Decoder(rapidjson.Decoder):
    """Objects as dictionaries in which the first of equal keys wins."""

    def start_object(self):
        return []

    def end_object(self, pairs):
        members = {}
        for key, value in pairs:
            members.setdefault(key, value)
        return members


_decode = _Decoder(number_mode=rapidjson.NM_NAN | rapidjson.NM_NATIVE)


def parse(body):
    """The JSON object of a request's body, which is bytes; what follows the object is ignored.

    Raises:
        RequestError: it is not JSON, not an object, or nested deeper than `MAX_NESTING`.
    """
    if not body:
        raise invalid("JSON Parse error: The document is empty")
    _check_nesting(body)
    try:
        document = _load(body)
    except UnicodeDecodeError as error:
        raise invalid(
            f"JSON Parse error: Invalid encoding in string. at offset: {error.start}"
        ) from None
    except rapidjson.JSONDecodeError as error:
        offset, reason = re.fullmatch(
            r"Parse error at offset (\d+): (.*)", str(error), re.DOTALL
        ).groups()
        raise invalid(f"JSON Parse error: {reason} at offset: {offset}") from None
    if not isinstance(document, dict):
        raise invalid(f"JSON Value: {_text(document)} Is not object")
    return document


def _load(body):
    try:
        return _decode(body)
    except rapidjson.JSONDecodeError as error:
        after = re.match(r"Parse error at offset (\d+): The document root must not", str(error))
        if after is None:
            raise
        return _decode(body[: int(after[1])])


def _check_nesting(body):
    # The parser recurses on the C stack, so depth is looked at before; brackets seldom are many.
    if body.count(b"[") + body.count(b"{") <= MAX_NESTING:
        return
    characters = np.frombuffer(_STRING.sub(b"", body), np.uint8)
    opening = np.isin(characters, np.frombuffer(b"[{", np.uint8)).astype(np.int64)
    closing = np.isin(characters, np.frombuffer(b"]}", np.uint8))
    if np.max(np.cumsum(opening - closing), initial=0) > MAX_NESTING:
        raise invalid(f"JSON Parse error: nested deeper than {MAX_NESTING} levels")


def signature_name(document):
    """The signature that a request asks for."""
    name = document.get("signature_name", "")
    if not isinstance(name, str):
        raise invalid(
            f"JSON Value: {_text(document)} not formatted correctly. 'signature_name' key must be "
            "a string value."
        )
    return name


def _text(value):
    """A JSON value for an error message: objects over several lines, lists on one."""
    text = ""
    for piece in _pieces(value, 0):
        text += piece
        if len(text) > MAX_TEXT:
            return text[:MAX_TEXT] + "...TRUNCATED"
    return text


def _pieces(value, indent):
    if isinstance(value, dict) and value:
        opening = "{\n"
        for key, member in value.items():
            yield f"{opening}{' ' * (indent + 4)}{json.dumps(key)}: "
            yield from _pieces(member, indent + 4)
            opening = ",\n"
        yield "\n" + " " * indent + "}"
    elif isinstance(value, list) and value:
        opening = "["
        for member in value:
            yield opening
            yield from _pieces(member, indent)
            opening = ", "
        yield "]"
    else:
        yield json.dumps(value[:MAX_TEXT] if isinstance(value, str) else value, ensure_ascii=False)


def _type(value):
    if isinstance(value, bool):
        return "True" if value else "False"
    names = {dict: "Object", list: "Array", str: "String", type(None): "Null"}
    return names.get(type(value), "Number")


# --------------------------------------------------------------------------------------- reading


def read_inputs(document, inputs):
    """The tensors of a predict request.

    Args:
        document: what `parse` gave.
        inputs: {name: `TensorInfo`} of the signature.

    Returns:
        {name: array}, and whether they came as rows.

    Raises:
        RequestError: with TensorFlow Serving's words.
    """
    if "instances" in document and "inputs" in document:
        raise invalid(
            f"JSON Value: {_text(document)} Not formatted correctly expecting only one of 'inputs' "
            "or 'instances' keys to exist "
        )
    if "instances" in document:
        instances = document["instances"]
        if not isinstance(instances, list):
            raise invalid(
                f"JSON Value: {_text(document)} Expecting 'instances' to be an list/array"
            )
        if not instances:
            raise invalid(f"JSON Value: {_text(document)} No values in 'instances' array")
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
    if not isinstance(instances[0], dict) and len(inputs) > 1:
        raise invalid(
            "instances is a plain list, but expecting list of objects as multiple input tensors "
            "required as per tensorinfo_map"
        )
    arrays = _read_fitting_rows(instances, inputs)
    if arrays is None:
        # Which row does not fit, and why? Most are passed over many at a time.
        start, step = 0, 1024
        while _read_fitting_rows([instances[0], *instances[start : start + step]], inputs):
            start += step
        _check_rows(instances, inputs, start)
    return arrays


def _read_fitting_rows(instances, inputs):
    """{name: array} if all rows fit, or else None."""
    try:
        if not _is_named(instances[0]):
            return {name: _array(instances, info.dtype) for name, info in inputs.items()}
        if any(not _is_named(row) or row.keys() != inputs.keys() for row in instances):
            return None
        return {
            name: _array([row[name] for row in instances], info.dtype)
            for name, info in inputs.items()
        }
    except RequestError:
        return None


def _check_rows(instances, inputs, start):
    """Raises for the first row from `start` on that does not fit."""
    named = _is_named(instances[0])
    first = {}
    for i, instance in [(0, instances[0]), *enumerate(instances[start:], start)]:
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
                f"{_text(instance)} keys must be equal to: {','.join(sorted(inputs))}"
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
    while isinstance(first, list):
        shape.append(len(first))
        if not first:
            break
        first = first[0]
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
                f"Conversion of JSON Value: {_text(leaf)} to type: {type_name(data_type)}",
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
                f"JSON Value: {_text(value)} found at incorrect level: {level + 1} in the JSON "
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
            raise invalid(f"JSON Value: {_text(leaf)} not formatted correctly for base64 data")
        return _from_base64(leaf["b64"])
    if not isinstance(leaf, str):
        raise _wrong_type(leaf, dtypes.string)
    return leaf.encode()


def _wrong_type(leaf, data_type):
    return invalid(
        f"JSON Value: {_text(leaf)} Type: {_type(leaf)} is not of expected type: "
        f"{type_name(data_type)}"
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
            f"JSON Value: {_text(document)} When method is classify, key 'examples' is expected "
            "and was not found"
        )
    examples = document["examples"]
    if not isinstance(examples, list):
        raise invalid(
            f"JSON Value: {_text(document)} Expecting 'examples' value to be an list/array"
        )
    if not examples:
        raise invalid(f"JSON Value: {_text(document)} 'examples' value is an empty array")
    for example in examples:
        _check_example(example)


def _check_example(example):
    if not isinstance(example, dict):
        raise invalid(f"Example must be JSON object but got JSON {_type(example)}")
    for name, feature in example.items():
        kinds = []
        for value in feature if isinstance(feature, list) else [feature]:
            if (
                value is None
                or isinstance(value, list)
                or (isinstance(value, dict) and not _is_base64(value))
            ):
                raise invalid(
                    f"Feature: {name} has element with unexpected JSON type: {_type(value)}"
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
    columns = {name: _nested(name, array) for name, array in outputs.items()}
    if len(columns) == 1:
        [answer] = columns.values()
    elif as_rows:
        answer = [dict(zip(columns, row)) for row in zip(*columns.values())]
    else:
        answer = columns
    return _dump({"predictions" if as_rows else "outputs": answer})


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
        raise invalid(f"Failed to write JSON value for tensor type: {type_name(data_type)}")
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
