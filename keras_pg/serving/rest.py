"""TensorFlow Serving's REST API over the models, as an ASGI application."""

import asyncio
import json
import logging
import re
import urllib.parse

from google.protobuf import json_format
from tensorflow_serving.apis import get_model_metadata_pb2

from keras_pg.serving import json_tensors, services
from keras_pg.serving.status import RequestError, invalid

PREFIX = re.compile(r"/v1/", re.IGNORECASE)
_VERSION = r"(?:/versions/(?P<version>[0-9]+)|/labels/(?P<label>[^/:]+))?"
_INFERENCE = re.compile(
    rf"/v1/models/(?P<name>[^/:]+){_VERSION}:(?P<verb>predict|classify|regress)", re.IGNORECASE
)
_INFORMATION = re.compile(
    rf"/v1/models(?:/(?P<name>[^/:]+))?{_VERSION}(?P<metadata>/metadata)?", re.IGNORECASE
)
JSON = "application/json"
_log = logging.getLogger(__name__)
_TOO_LARGE, _GONE = object(), object()
_NOT_FOUND = (
    404,
    "text/html",
    b"<HTML><HEAD>\n<TITLE>404 Not Found</TITLE>\n</HEAD><BODY>\n"
    b"<H1>Not Found</H1>\n</BODY></HTML>\n",
)


class _EmptyError(Exception):
    """A request that TensorFlow Serving answers with 400 and nothing else."""


class Application:
    """The REST API; every answer is (status, content type, body).

    Args:
        models: `Models`.
        metrics: `Metrics`.
        executor: where requests are answered, so that connections are served meanwhile.
        max_body_bytes: larger bodies are refused with 413.
        metrics_path: where to answer with the metrics, or None.
        cors: let pages of other origins call.
    """

    def __init__(self, models, metrics, executor, *, max_body_bytes, metrics_path=None, cors=False):
        self._models = models
        self._metrics = metrics
        self._executor = executor
        self._max_body_bytes = max_body_bytes
        self._metrics_path = metrics_path
        self._cors = cors

    async def __call__(self, scope, receive, send):
        """An ASGI 3 application."""
        target = scope["raw_path"].decode("latin-1")
        if scope["query_string"]:
            target += "?" + scope["query_string"].decode("latin-1")
        origin = dict(scope["headers"]).get(b"origin", b"")
        body = await self._body(scope, receive)
        if body is _GONE:
            return
        if body is _TOO_LARGE:
            limit = f"The body is larger than {self._max_body_bytes} bytes."
            status, content_type, content = 413, JSON, json_tensors.write_error(limit)
        else:
            loop = asyncio.get_running_loop()
            status, content_type, content = await loop.run_in_executor(
                self._executor, self.answer, scope["method"], target, body, origin
            )
        headers = [(b"content-type", content_type.encode())]
        if self._cors:
            headers += [
                (b"access-control-allow-origin", b"*"),
                (b"access-control-allow-methods", b"GET, POST, OPTIONS"),
                (b"access-control-allow-headers", b"Content-Type"),
            ]
        if body is _TOO_LARGE:
            headers.append((b"connection", b"close"))  # the rest of the body is still to come
        headers.append((b"content-length", str(len(content)).encode()))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": content})

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

    # ---------------------------------------------------------------------------------- answers

    def answer(self, method, target, body, origin=b""):
        """(status, content type, body) of a request.

        Args:
            method: as sent, such as "POST".
            target: path and query, as sent.
            body: bytes.
            origin: the header of that name.
        """
        if target == self._metrics_path and method == "GET":
            return 200, "text/plain", self._metrics.text()
        if method == "OPTIONS":
            known = origin.startswith((b"http://", b"https://"))
            return (200 if known else 400), "text/html; charset=ISO-8859-1", b""
        if not PREFIX.match(target):
            return _NOT_FOUND
        try:
            return 200, JSON, self._answer(method, target, body)
        except _EmptyError:
            return 400, JSON, b""
        except RequestError as error:
            content = json_tensors.write_error(error.message)
            return error.http_status, JSON, b"" if method == "HEAD" else content
        except Exception:
            _log.exception("%s %s failed", method, target)
            return (
                500,
                JSON,
                json_tensors.write_error("Internal error; the server's log has the cause."),
            )

    def _answer(self, method, target, body):
        if method == "POST" and (match := _INFERENCE.fullmatch(target)):
            wanted = _wanted(match)
            verb = match["verb"].lower()
            with self._metrics.request(wanted[0], "REST", verb.capitalize()):
                return self._infer(verb, wanted, body)
        if method == "GET" and (match := _INFORMATION.fullmatch(target)):
            return self._inform(match)
        raise invalid(f"Malformed request: {method} {target}")

    def _infer(self, verb, wanted, body):
        document = json_tensors.parse(body)
        name = json_tensors.signature_name(document)
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
        if match["metadata"] is None:
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
