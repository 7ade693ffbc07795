"""HTTP as uvicorn speaks it, with limits, and deaf to offers of another protocol."""

import asyncio
import re

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 2**16
_END_OF_HEAD = re.compile(rb"^\r?\n", re.MULTILINE)
_OFFER = re.compile(rb"^upgrade(?=[ \t]*:)", re.IGNORECASE | re.MULTILINE)


def impatient_protocol(seconds):
    """Uvicorn's HTTP protocol, less patient.

    It closes a connection whose request takes longer than `seconds` to come, or whose answer takes
    longer to be taken, and one whose head is larger than `MAX_HEAD_BYTES`. A request that offers to
    go on by another protocol is answered as any other.
    """

    class Protocol(HttpToolsProtocol):
        def connection_made(self, transport):
            self._timers = {}
            super().connection_made(transport)
            self._await_head()
            self._limit("reading")

        def data_received(self, data):
            if not self._in_head:
                super().data_received(data)
                return
            if "reading" not in self._timers:
                self._limit("reading")
            self._head_bytes += len(data)
            super().data_received(self._without_offer(data))
            if self._head_bytes > MAX_HEAD_BYTES:
                self.transport.abort()

        def on_headers_complete(self):
            self._in_head, self._head_bytes = False, 0
            super().on_headers_complete()

        def on_message_complete(self):
            self._await_head()
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

        def _await_head(self):
            self._in_head, self._head_bytes, self._held = True, 0, b""

        def _without_offer(self, data):
            # The parser takes an `Upgrade` for accepted and drops the body, where HTTP/1.1 lets a
            # server ignore it: Java's `HttpClient` offers h2c with every request. The parser gets
            # whole lines, as one cut in two could not be told.
            data, self._held = self._held + data, b""
            if end := _END_OF_HEAD.search(data):
                head, rest = data[: end.start()], data[end.start() :]
            else:
                head, newline, self._held = data.rpartition(b"\n")
                head, rest = head + newline, b""
            return _OFFER.sub(b"ignored", head) + rest

        def _limit(self, activity):
            # Each has a timer: the next request may come while an answer waits to be taken.
            self._end_limit(activity)
            loop = asyncio.get_running_loop()
            self._timers[activity] = loop.call_later(seconds, self.transport.abort)

        def _end_limit(self, activity):
            if (timer := self._timers.pop(activity, None)) is not None:
                timer.cancel()

    return Protocol
