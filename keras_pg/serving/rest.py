"""TensorFlow Serving's REST API over the models, as an ASGI application."""

import asyncio
import json
import logging
import re
import urllib.parse

from google.protobuf import json_format
from tensorflow_serving.apis import get_model_metadata_pb2

from keras_pg.serving import json_documents, json_tensors, services
from keras_pg.serving.compression import uncompress
from keras_pg.serving.services import LARGE
from keras_pg.serving.status import RequestError, invalid

PREFIX = re.compile(r"/v1/", re.IGNORECASE)
# The expressions are TensorFlow Serving's. They take all cases, and then `predict` and `metadata`
# are known by their small letters only.
_VERSION = r"(?:/versions/(?P<version>[0-9]+)|/labels/(?P<label>[^/:]+))?"
_INFERENCE = re.compile(
    rf"/v1/models/(?P<name>[^/:]+){_VERSION}:(?P<verb>classify|regress|predict)", re.IGNORECASE
)
_INFORMATION = re.compile(
    rf"/v1/models(?:/(?P<name>[^/:]+))?{_VERSION}(?:/(?P<resource>metadata))?", re.IGNORECASE
)
_VERBS = ("classify", "regress", "predict")
# What RFC 3986 lets a path and a query be made of: libevent, which TensorFlow Serving speaks HTTP
# with, refuses all others.
_CHARACTER = r"[A-Za-z0-9\-._~!$&'()*+,;=:@/]|%[0-9A-Fa-f]{2}"
_TARGET = re.compile(rf"(?:{_CHARACTER})*(?:\?(?:{_CHARACTER}|\?)*)?")
_METHODS = ("GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH")
JSON = "application/json"
_log = logging.getLogger(__name__)
_TOO_LARGE, _GONE = object(), object()


class _EmptyError(Exception):
    """A request that TensorFlow Serving answers with 400 and nothing else."""


class Application:
    """The REST API; every answer is (status, content type, body in pieces).

    Args:
        models: `Models`.
        metrics: `Metrics`.
        executor: where requests are answered, so that connections are served meanwhile.
        large_executor: the same for bodies of more than `LARGE` bytes; with one thread, the memory
            for them is that of one.
        max_body_bytes: larger bodies are refused with 413, and so is what is larger uncompressed.
        metrics_path: where to answer with the metrics, or None.
        cors: let pages of other origins call.
    """

    def __init__(
        self,
        models,
        metrics,
        executor,
        large_executor,
        *,
        max_body_bytes,
        metrics_path=None,
        cors=False,
    ):
        self._models = models
        self._metrics = metrics
        self._executor = executor
        self._large_executor = large_executor
        self._max_body_bytes = max_body_bytes
        self._metrics_path = metrics_path
        self._cors = cors

    async def __call__(self, scope, receive, send):
        """An ASGI 3 application."""
        target = scope["raw_path"].decode("latin-1")
        if scope["query_string"]:
            target += "?" + scope["query_string"].decode("latin-1")
        given = {}
        for name, value in scope["headers"]:
            given.setdefault(name, value)  # the first of a name counts
        headers = []
        body = await self._body(scope, receive)
        if body is _GONE:
            return
        if body is _TOO_LARGE:
            headers.append((b"connection", b"close"))  # the rest of the body is still to come
        elif b"gzip" in given.get(b"content-encoding", b""):
            body = await self._run(self._executor, self._uncompressed, body)
        if body is _TOO_LARGE:
            limit = f"The body is larger than {self._max_body_bytes} bytes."
            status, content_type, pieces = 413, JSON, [json_tensors.write_error(limit)]
        else:
            executor = self._executor if len(body) <= LARGE else self._large_executor
            origin = given.get(b"origin", b"")
            status, content_type, pieces = await self._run(
                executor, self.answer, scope["method"], target, body, origin
            )
        del body  # an answer may wait to be taken
        headers.append((b"content-type", content_type.encode()))
        if self._cors:
            headers += [
                (b"access-control-allow-origin", b"*"),
                (b"access-control-allow-methods", b"GET, POST, OPTIONS"),
                (b"access-control-allow-headers", b"Content-Type"),
            ]
        size = sum(map(len, pieces))
        if size <= LARGE:
            pieces = [b"".join(pieces)]
        headers.append((b"content-length", str(size).encode()))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        for i, piece in enumerate(pieces, 1):
            more = i < len(pieces)
            await send({"type": "http.response.body", "body": piece, "more_body": more})

    @staticmethod
    def _run(executor, function, *arguments):
        return asyncio.get_running_loop().run_in_executor(executor, function, *arguments)

    async def _body(self, scope, receive):
        """The request's body, `_TOO_LARGE`, or `_GONE` if the client went before its end."""
        announced = dict(scope["headers"]).get(b"content-length", b"0").lstrip(b"0")
        if announced.isdigit() and int(announced) > self._max_body_bytes:
            return _TOO_LARGE
        body, more = bytearray(), True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return _GONE
            body += message.get("body", b"")
            if len(body) > self._max_body_bytes:
                return _TOO_LARGE
            more = message.get("more_body", False)
        return bytes(body)

    def _uncompressed(self, body):
        try:
            return uncompress(body, self._max_body_bytes)
        except OverflowError:
            return _TOO_LARGE

    # ---------------------------------------------------------------------------------- answers

    def answer(self, method, target, body, origin=b""):
        """(status, content type, body in pieces) of a request.

        Args:
            method: as sent, such as "POST".
            target: path and query, as sent.
            body: bytes.
            origin: the header of that name.
        """
        if method not in _METHODS:
            return _page(501, "Not Implemented")
        if not _TARGET.fullmatch(target):
            return _page(400, "Bad Request")
        if target == self._metrics_path and method == "GET":
            return 200, "text/plain", [self._metrics.text()]
        if not PREFIX.match(target):
            return _page(404, "Not Found")
        if method == "OPTIONS":
            known = origin.startswith((b"http://", b"https://"))
            return (200 if known else 400), "text/html; charset=ISO-8859-1", []
        try:
            return 200, JSON, self._answer(method, target, body)
        except _EmptyError:
            return 400, JSON, []
        except RequestError as error:
            status, message = error.http_status, error.message
        except Exception:
            _log.exception("%s %s failed", method, target)
            status, message = 500, "Internal error; the server's log has the cause."
        return status, JSON, [] if method == "HEAD" else [json_tensors.write_error(message)]

    def _answer(self, method, target, body):
        if method == "POST" and (match := _INFERENCE.fullmatch(target)):
            wanted, verb = _wanted(match), match["verb"]
            if verb in _VERBS:
                with self._metrics.request(wanted[0], "REST", verb.capitalize()):
                    return self._infer(verb, wanted, body)
        if method == "GET" and (match := _INFORMATION.fullmatch(target)):
            return [self._inform(match)]
        raise invalid(f"Malformed request: {method} {target}")

    def _infer(self, verb, wanted, body):
        document = json_documents.parse(body)
        name = json_documents.signature_name(document)
        if verb != "predict":
            json_tensors.check_examples(document)
        _, servable = self._models.find(*wanted)
        if verb != "predict":
            raise services.no_examples(servable, verb, name)
        key = name or "serving_default"
        if key not in servable.signatures:
            raise invalid(f'Serving signature name: "{key}" not found in signature def')
        declared = servable.signatures[key].inputs
        if not declared:
            raise invalid(f"Failed to get input map for signature: {name or 'DEFAULT'}")
        inputs, as_rows = json_tensors.read_inputs(document, declared)
        return json_tensors.write_outputs(servable.predict(key, inputs), as_rows)

    def _inform(self, match):
        if match["name"] is None:
            raise invalid("Missing model name in request.")
        name, version, label = _wanted(match)
        if match["resource"] != "metadata":
            # A label is not looked at here, as in TensorFlow Serving.
            return json.dumps(
                _fields(services.status_response(self._models, name, version))
            ).encode()
        number, servable = self._models.find(name, version, label)
        signatures = get_model_metadata_pb2.SignatureDefMap(signature_def=servable.signatures)
        return json.dumps(
            {
                "model_spec": {"name": name, "version": str(number), "signature_name": ""},
                "metadata": {"signature_def": _fields(signatures)},
            }
        ).encode()


def _page(status, phrase):
    """An answer of libevent's."""
    text = (
        f"<HTML><HEAD>\n<TITLE>{status} {phrase}</TITLE>\n</HEAD><BODY>\n"
        f"<H1>{phrase}</H1>\n</BODY></HTML>\n"
    )
    return status, "text/html", [text.encode()]


def _wanted(match):
    """(name, version or None, label or None) of a path."""
    version = match["version"]
    if version is not None:
        digits = version.lstrip("0") or "0"  # Python reads no more than 4300
        if len(digits) > 19 or (version := int(digits)) >= 2**63:
            raise _EmptyError
    label = match["label"]
    return (
        urllib.parse.unquote(match["name"]),
        version,
        None if label is None else urllib.parse.unquote(label),
    )


def _fields(message):
    return json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
