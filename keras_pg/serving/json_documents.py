"""JSON documents as TensorFlow Serving reads them, the large ones a piece at a time.

Python's objects take thirty times the memory of the text they come from. So of a large document
only its frame is held as objects: arrays of more than `PIECE` bytes are left out of it, unless they
are in other arrays, and a `LargeArray` in their place parses some of their elements at a time.
"""

import bisect
import codecs
import json
import math
import re
import secrets

import numpy as np
import rapidjson  # TensorFlow Serving's own parser: the same language, the same error messages

from keras_pg.serving.status import invalid, too_large

MAX_NESTING = 64
MAX_TEXT = 4096  # characters of a document in an error message
LARGE = 2**20  # bytes of a document that is read a piece at a time
PIECE = 2**18  # bytes that are parsed at once; an element that has more is parsed as a whole
MAX_OBJECTS_BYTES = 2**29  # of what is parsed at once, as Python's objects
_MAX_ARRAYS = 256  # large ones that are looked for
_ESCAPED = re.compile(rb"\\.", re.DOTALL)
# Bytes of an object for each of these: of lists and their items, of dictionaries and their keys.
_OBJECT_BYTES = {",": 44, "[": 80, "{": 256, ":": 280}


class _Decoder(rapidjson.Decoder):
    """Objects as dictionaries in which the first of equal keys wins."""

    def start_object(self):
        return []

    def end_object(self, pairs):
        members = {}
        for key, value in pairs:
            members.setdefault(key, value)
        return members


class _FrameDecoder(_Decoder):
    """Puts arrays in the place of what marks them, which is [mark, their number]."""

    mark, arrays = None, ()

    def end_object(self, pairs):
        return super().end_object([(key, self.unmarked(value)) for key, value in pairs])

    def unmarked(self, value):
        marked = isinstance(value, list) and value[:1] == [self.mark]
        return self.arrays[value[1]] if marked else value


_NUMBERS = {"number_mode": rapidjson.NM_NAN | rapidjson.NM_NATIVE}
_decode = _Decoder(**_NUMBERS)


class _ParseError(Exception):
    def __init__(self, reason, offset):
        super().__init__(reason, offset)
        self.reason, self.offset = reason, offset


def parse(body):
    """The JSON object of a request's body, which is bytes; what follows the object is ignored.

    Raises:
        RequestError: it is not JSON, not an object, or nested deeper than `MAX_NESTING`; or what
            has to be parsed at once would take more than `MAX_OBJECTS_BYTES`.
    """
    # A zero byte ends the text for the parser, so what is behind it is not looked at.
    end = body.find(b"\0")
    body = body if end < 0 else body[:end]
    if not body:
        raise invalid("JSON Parse error: The document is empty")
    try:
        arrays = _large_arrays(body)
        document = _parse_frame(body, arrays) if arrays else _first(_decode, body)[0]
    except UnicodeDecodeError as error:
        raise invalid(
            f"JSON Parse error: Invalid encoding in string. at offset: {error.start}"
        ) from None
    except _ParseError as error:
        raise invalid(f"JSON Parse error: {error.reason} at offset: {error.offset}") from None
    if not isinstance(document, dict):
        raise invalid(f"JSON Value: {to_text(document)} Is not object")
    return document


def _first(decode, text):
    """The first value of a text, and the offset of another that follows it, or else infinity."""
    if len(text) > LARGE:
        _check_objects(text)
    try:
        return decode(text), math.inf
    except rapidjson.JSONDecodeError as error:
        offset, reason = re.fullmatch(
            r"Parse error at offset (\d+): (.*)", str(error), re.DOTALL
        ).groups()
    if reason.startswith("The document root must not"):
        return decode(text[: int(offset)]), int(offset)
    raise _ParseError(reason, int(offset)) from None


def _check_objects(text):
    """Raises where a text would take too much memory as Python's objects."""
    counts = sum(np.bincount(signs, minlength=256) for _, signs in _without_strings(text))
    if sum(size * counts[ord(sign)] for sign, size in _OBJECT_BYTES.items()) > MAX_OBJECTS_BYTES:
        raise too_large(
            "The JSON of the body has too many values outside of lists of instances: as objects "
            f"they would take more than {MAX_OBJECTS_BYTES} bytes."
        )


def _without_strings(text):
    """(offset, characters as an array) of pieces of a text; what is in strings is blank."""
    in_string = escaped = False
    for begin in range(0, len(text), PIECE):
        piece = text[begin : begin + PIECE]
        piece = _ESCAPED.sub(b"  ", b" " + piece[1:] if escaped else piece)
        escaped = piece.endswith(b"\\")
        characters = np.frombuffer(piece, np.uint8)
        parity = np.cumsum(characters == ord('"'), dtype=np.int32) + in_string
        in_string = bool(parity[-1] % 2)
        yield begin, np.where(parity % 2, np.uint8(ord(" ")), characters)


# ---------------------------------------------------------------------------------- large arrays


class LargeArray:
    """A JSON array as a sequence that holds its text, not its items.

    Args:
        body: the text it is in.
        start: offset of its bracket.
    """

    def __init__(self, body, start):
        self._body = body
        # Between two of these there are whole items: the brackets, and some commas.
        self.cuts = [start]
        self.closed = False
        self._length = 0

    def __len__(self):
        return self._length

    def __iter__(self):
        for piece in self.pieces():
            yield from piece

    def __getitem__(self, index):
        if index != 0:
            raise IndexError("Only the first item can be had without the others.")
        return next(iter(self))

    def pieces(self):
        """Lists of items, one after the other."""
        for i in range(len(self.cuts) - 1):
            yield self._parse(i)

    def check(self):
        """Parses all of it, and so learns its length; raises a `_ParseError`."""
        self._length = sum(map(len, self.pieces()))

    def _parse(self, i):
        begin, end = self.cuts[i], self.cuts[i + 1]
        last = i == len(self.cuts) - 2
        text = self._body[begin + 1 : end]
        if len(self.cuts) > 2 and not text.strip(b" \t\n\r"):
            raise _ParseError("Invalid value.", end)
        try:
            return _first(_decode, b"[" + text + (b"" if last and not self.closed else b"]"))[0]
        except _ParseError as error:
            raise _ParseError(error.reason, begin + error.offset) from None


def _parse_frame(body, arrays):
    decode = _FrameDecoder(**_NUMBERS)
    decode.mark, decode.arrays = secrets.token_hex(), arrays  # a text that nobody can foresee
    frame, begin = bytearray(), 0
    places = []  # of what follows an array: in the frame, and in the body
    for number, array in enumerate(arrays):
        frame += body[begin : array.cuts[0]] + json.dumps([decode.mark, number]).encode()
        begin = array.cuts[-1] + array.closed
        places.append((len(frame), begin))
    frame += body[begin:]

    def in_body(offset):
        i = bisect.bisect_right(places, (offset, math.inf)) - 1
        return offset if i < 0 else offset - places[i][0] + places[i][1]

    failure = None
    try:
        document, end = _first(decode, bytes(frame))
        document, end = decode.unmarked(document), in_body(end)
    except _ParseError as error:
        failure = _ParseError(error.reason, in_body(error.offset))
        end = failure.offset
    # What comes first in the text is the error, and what comes behind its end is none.
    for array in arrays:
        if array.cuts[0] < end:
            array.check()
    if failure is not None:
        raise failure
    return document


def _large_arrays(body):
    """The `LargeArray`s of a text, of which only what is valid JSON needs to be understood.

    Raises:
        RequestError: it is nested too deeply for the parser, which recurses on the C stack.
        UnicodeDecodeError: it is no UTF-8.
    """
    if len(body) <= LARGE and body.count(b"[") + body.count(b"{") <= MAX_NESTING:
        return []  # as nearly all are
    _check_encoding(body)
    found, array, searched, depth = [], None, 0, 0
    for begin, characters in _without_strings(body):
        folded = characters | 0x20  # "[" and "{" are then the same, as are "]" and "}"
        steps = (folded == ord("{")).astype(np.int32) - (folded == ord("}"))
        depths = depth + np.cumsum(steps, dtype=np.int32)
        depth = int(depths[-1])
        if depths.max() > MAX_NESTING:
            raise invalid(f"JSON Parse error: nested deeper than {MAX_NESTING} levels")
        if len(body) <= LARGE:
            continue
        brackets, at = np.flatnonzero(characters == ord("[")), 0
        while True:
            if array is None:
                i = np.searchsorted(brackets, at)
                if i == len(brackets) or searched == _MAX_ARRAYS:
                    break
                searched += 1
                array, at = LargeArray(body, begin + int(brackets[i])), int(brackets[i]) + 1
                level = depths[at - 1]
            below = depths[at:] < level
            stop = at + int(np.argmax(below)) if below.any() else len(characters)
            commas = np.flatnonzero((characters[at:stop] == ord(",")) & (depths[at:stop] == level))
            if len(commas):
                array.cuts.append(begin + at + int(commas[-1]))
            if stop == len(characters):
                break
            array.closed = body[begin + stop] == ord("]")  # or else it is where parsing ends
            if begin + stop - array.cuts[0] > PIECE:
                array.cuts.append(begin + stop + (not array.closed))
                found.append(array)
            array, at = None, stop
    if array is not None and len(body) - array.cuts[0] > PIECE:
        array.cuts.append(len(body))
        found.append(array)
    return found


def _check_encoding(body):
    """Raises a `UnicodeDecodeError` unless it is UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    for begin in range(0, len(body), PIECE):
        waiting = len(decoder.getstate()[0])
        try:
            decoder.decode(body[begin : begin + PIECE], begin + PIECE >= len(body))
        except UnicodeDecodeError as error:
            error.start += begin - waiting
            raise


# ------------------------------------------------------------------------------- values as text


def signature_name(document):
    """The signature that a request asks for."""
    name = document.get("signature_name", "")
    if not isinstance(name, str):
        raise invalid(
            f"JSON Value: {to_text(document)} not formatted correctly. 'signature_name' key must "
            "be a string value."
        )
    return name


def is_array(value):
    """Whether a value of a document is an array."""
    return isinstance(value, (list, LargeArray))


def to_text(value):
    """A JSON value for an error message: objects over several lines, lists on one."""
    text = ""
    for piece in _fragments(value, 0):
        text += piece
        if len(text) > MAX_TEXT:
            return text[:MAX_TEXT] + "...TRUNCATED"
    return text


def _fragments(value, indent):
    if isinstance(value, dict) and value:
        opening = "{\n"
        for key, member in value.items():
            yield f"{opening}{' ' * (indent + 4)}{json.dumps(key)}: "
            yield from _fragments(member, indent + 4)
            opening = ",\n"
        yield "\n" + " " * indent + "}"
    elif is_array(value) and len(value):
        opening = "["
        for member in value:
            yield opening
            yield from _fragments(member, indent)
            opening = ", "
        yield "]"
    elif is_array(value):
        yield "[]"
    else:
        yield json.dumps(value[:MAX_TEXT] if isinstance(value, str) else value, ensure_ascii=False)


def type_name(value):
    """What TensorFlow Serving calls the type of a JSON value."""
    if isinstance(value, bool):
        return "True" if value else "False"
    if is_array(value):
        return "Array"
    return {dict: "Object", str: "String", type(None): "Null"}.get(type(value), "Number")
