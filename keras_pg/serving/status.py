"""Errors of requests: a code of gRPC's, and its HTTP status."""

from grpc import StatusCode

# What TensorFlow Serving answers over HTTP; all other codes are 500.
_HTTP = {
    StatusCode.INVALID_ARGUMENT: 400,
    StatusCode.FAILED_PRECONDITION: 400,
    StatusCode.OUT_OF_RANGE: 400,
    StatusCode.UNAUTHENTICATED: 401,
    StatusCode.PERMISSION_DENIED: 403,
    StatusCode.NOT_FOUND: 404,
    StatusCode.ALREADY_EXISTS: 409,
    StatusCode.ABORTED: 409,
    StatusCode.RESOURCE_EXHAUSTED: 429,
    StatusCode.CANCELLED: 499,
    StatusCode.UNIMPLEMENTED: 501,
    StatusCode.UNAVAILABLE: 503,
    StatusCode.DEADLINE_EXCEEDED: 504,
}
_BY_NUMBER = {code.value[0]: code for code in StatusCode}


class RequestError(Exception):
    """A request that cannot be answered.

    Args:
        code: `grpc.StatusCode`.
        message: what the client is told.
        http_status: of the answer over HTTP, if not what the code has there.
    """

    def __init__(self, code, message, http_status=None):
        super().__init__(message)
        self.code = code
        self.message = message
        self.http_status = http_status or _HTTP.get(code, 500)


def invalid(message):
    """A `RequestError` of a request that no state of the server could answer."""
    return RequestError(StatusCode.INVALID_ARGUMENT, message)


def too_large(message):
    """A `RequestError` of a request that would take too much memory."""
    return RequestError(StatusCode.RESOURCE_EXHAUSTED, message, http_status=413)


def from_tensorflow(error):
    """The `RequestError` of a `tf.errors.OpError`."""
    return RequestError(_BY_NUMBER.get(error.error_code, StatusCode.UNKNOWN), error.message)
