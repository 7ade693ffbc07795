"""Bodies of requests that are compressed."""

import zlib


def uncompress(body, max_bytes):
    """What gzip has compressed, or b"" where `body` is anything but one whole gzip file.

    TensorFlow Serving reads what it cannot uncompress as an empty body.

    Raises:
        OverflowError: it is more than so many bytes.
    """
    decompressor = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    try:
        content = decompressor.decompress(body, max_bytes + 1)
    except zlib.error:
        return b""
    if len(content) > max_bytes:
        raise OverflowError(f"more than {max_bytes} bytes")
    return content if decompressor.eof and not decompressor.unused_data else b""
