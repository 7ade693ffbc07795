"""HTTP as uvicorn speaks it, with limits, and deaf to offers of another protocol."""

import asyncio
import contextlib

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 2**16


def impatient_protocol(seconds):
    """Uvicorn's HTTP protocol, less patient.

    It closes a connection whose request takes longer than `seconds` to come, or whose answer takes
    longer to be taken, and refuses a head larger than `MAX_HEAD_BYTES`. A request that offers to go
    on by another protocol is answered as any other.
    """

    class Protocol(HttpToolsProtocol):
        def connection_made(self, transport):
            self._timers = {}
            self._head_bytes = 0
            super().connection_made(transport)
            self._limit("reading")

        def data_received(self, data):
            self._unset_keepalive_if_required()
            self._head_bytes += len(data)
            try:
                self._parse(data)
                if self._head_bytes > MAX_HEAD_BYTES:
                    raise httptools.HttpParserError("The head is too large.")
            except httptools.HttpParserError:
                self.send_400_response("Invalid HTTP request received.")
            # Line ends alone begin no request, and have ended the time for which an answered
            # connection is kept.
            answered = self.cycle is None or self.cycle.response_complete
            if answered and "reading" not in self._timers:
                self._limit("reading")

        def on_message_begin(self):
            super().on_message_begin()
            self._limit("reading")

        def on_headers_complete(self):
            self._head_bytes = 0
            size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
            if size > MAX_HEAD_BYTES:
                raise httptools.HttpParserError("The head is too large.")
            if self.parser.get_method() == b"CONNECT":
                raise httptools.HttpParserError("There are no tunnels.")
            if not self.parser.should_upgrade():
                super().on_headers_complete()

        def on_body(self, body):
            self._head_bytes = 0  # what follows a body in chunks is limited as a head is
            super().on_body(body)

        def on_message_complete(self):
            self._head_bytes = 0
            if not self.parser.should_upgrade():
                self._end_limit("reading")
                super().on_message_complete()

        def pause_writing(self):
            super().pause_writing()
            self._limit("writing")

        def resume_writing(self):
            self._end_limit("writing")
            super().resume_writing()

        def connection_lost(self, error):
            self._end_limit("reading")
            self._end_limit("writing")
            super().connection_lost(error)

        def _parse(self, data):
            # The parser takes an `Upgrade` for accepted and drops the body, where HTTP/1.1 lets a
            # server ignore it: Java's `HttpClient` offers h2c with every request. So it gets the
            # head once more without the offer, and then what followed.
            while True:
                try:
                    return self.parser.feed_data(data)
                except httptools.HttpParserUpgrade as offer:
                    data = memoryview(data)[offer.args[0] :]
                    head = self._head_without_offer()
                    self._renew_parser()
                    self.parser.feed_data(head)

        def _head_without_offer(self):
            version = self.parser.get_http_version().encode()
            lines = [self.parser.get_method() + b" " + self.url + b" HTTP/" + version]
            lines += [name + b": " + value for name, value in self.headers if name != b"upgrade"]
            return b"\r\n".join(lines) + b"\r\n\r\n"

        def _renew_parser(self):
            # One that has read `Connection: close` reads nothing more.
            self.parser = httptools.HttpRequestParser(self)
            with contextlib.suppress(AttributeError):  # httptools before 0.6.3
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)

        def _limit(self, activity):
            # Each has a timer: the next request may come while an answer waits to be taken.
            self._end_limit(activity)
            loop = asyncio.get_running_loop()
            self._timers[activity] = loop.call_later(seconds, self.transport.abort)

        def _end_limit(self, activity):
            if (timer := self._timers.pop(activity, None)) is not None:
                timer.cancel()

    return Protocol
