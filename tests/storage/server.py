"""Serves the JSON API of Google Cloud Storage on loopback, from memory, and fails as told.

    with StorageServer(buckets=["bucket"]) as server:
        server.faults.add(match="^GET .*alt=media", status=503, times=3)
        os.environ.update(server.environment())

Objects are inserted (media, multipart, resumable), read (ranges too), patched, deleted, listed,
composed, rewritten, copied and moved, under preconditions. What no client of ours sends is not
here: access control, versioning, batches, other uses of HTTP than these. One lock is around every
operation, so that they happen one after another.
"""

from __future__ import annotations

import contextlib
import dataclasses
import email.parser
import email.policy
import http.server
import itertools
import json
import re
import socket
import threading
import time
import urllib.parse
from collections.abc import Mapping

from tests.storage.faults import Fault, Faults
from tests.storage.objects import ApiError, Blob, Store, invalid

CHUNK_UNIT = 256 * 1024  # of resumable uploads
_RANGE = re.compile(r"bytes=(?:(\d+)-(\d*)|-(\d+))")
_CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)")
_REASONS = {401: "authError", 403: "forbidden", 429: "rateLimitExceeded", 503: "backendError"}
_MESSAGES = {401: "Invalid Credentials", 403: "The caller does not have access to the bucket."}


@dataclasses.dataclass(frozen=True)
class Request:
    """A request as it came: `path` and `query` are decoded, `target` is not."""

    method: str
    target: str
    path: list[str]
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> dict:
        """Returns the body, read as a JSON object."""
        try:
            value = json.loads(self.body or b"{}")
        except ValueError as error:
            raise ApiError(400, "parseError", f"Parse Error: {error}") from None
        if not isinstance(value, dict):
            raise ApiError(400, "parseError", "Parse Error: the body is no JSON object.")
        return value


@dataclasses.dataclass(frozen=True)
class Answer:
    """A status, a body and headers; `of` makes one of a value for JSON."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, value: Mapping, status: int = 200) -> Answer:
        headers = {"Content-Type": "application/json; charset=UTF-8"}
        return cls(status, json.dumps(value).encode(), headers)

    @classmethod
    def refusal(cls, error: ApiError) -> Answer:
        if error.status == 304:
            return cls(304)
        detail = {"message": error.message, "domain": "global", "reason": error.reason}
        value = {"code": error.status, "message": error.message, "errors": [detail]}
        return cls.of({"error": value}, error.status)


@dataclasses.dataclass
class Upload:
    """A resumable upload under way."""

    bucket: str
    name: str
    fields: Mapping[str, object]
    query: Mapping[str, str]
    data: bytearray = dataclasses.field(default_factory=bytearray)
    done: Blob | None = None


class StorageServer:
    """The server, on a port of its own, while its context is open.

    Attributes:
      store: what it holds; tests may look and change through it.
      faults: what goes wrong.
      requests: (method, target, status) of every request so far; status 0: the connection was cut.
      rewrite_bytes: a rewrite copies so many bytes a call; None: all.
    """

    def __init__(self, buckets: tuple[str, ...] | list[str] = ("bucket",)) -> None:
        self.store, self.faults = Store(), Faults()
        self.requests: list[tuple[str, str, int]] = []
        self.rewrite_bytes: int | None = None
        for name in buckets:
            self.store.make_bucket(name)
        self._lock = threading.Lock()
        self._uploads: dict[str, Upload] = {}
        self._rewrites: dict[str, tuple[Blob, int]] = {}
        self._ids = itertools.count(1)
        self._http = _Server(("127.0.0.1", 0), _Handler)
        self._http.api = self
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True)

    def __enter__(self) -> StorageServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_port}"

    def count(self, pattern: str, status: int | None = None) -> int:
        """Returns how many requests "METHOD target" match, of those with a status."""
        return sum(
            bool(re.search(pattern, f"{method} {target}")) and status in (None, code)
            for method, target, code in list(self.requests)
        )

    def names(self, bucket: str = "bucket") -> list[str]:
        """Returns the names of the objects in a bucket, in order."""
        with self._lock:
            return sorted(self.store.bucket(bucket), key=str.encode)

    def environment(self) -> dict[str, str]:
        """Returns what makes TensorStore, gcsfs and array_record come here and nowhere else."""
        return {
            "TENSORSTORE_GCS_HTTP_URL": self.url,
            "STORAGE_EMULATOR_HOST": self.url,
            "CLOUD_STORAGE_EMULATOR_ENDPOINT": self.url,
            # No credentials are looked for at a metadata server, which takes seconds where there
            # is none; and gcsfs does not ask by gRPC what kind of bucket it has.
            "NO_GCE_CHECK": "true",
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        }

    def answer(self, request: Request) -> Answer:
        """Carries a request out, alone."""
        with self._lock:
            try:
                return self._dispatch(request)
            except ApiError as error:
                return Answer.refusal(error)

    def _dispatch(self, request: Request) -> Answer:
        match request.path:
            case ["upload", "storage", "v1", "b", bucket, "o"]:
                return self._upload(request, bucket)
            case ["storage", "v1", "b"]:
                return self._buckets(request)
            case ["storage", "v1", "b", bucket]:
                return self._bucket(request, bucket)
            case ["storage", "v1", "b", bucket, "o"] if request.method == "GET":
                return Answer.of(self.store.list(bucket, request.query))
            case ["storage", "v1", "b", bucket, "o", name]:
                return self._object(request, bucket, name)
            case ["download", "storage", "v1", "b", bucket, "o", name]:
                return self._object(request, bucket, name)
            case ["storage", "v1", "b", bucket, "o", name, *verb] if request.method == "POST":
                return self._transfer(request, bucket, name, verb)
        raise ApiError(404, "notFound", f"Nothing is served at {request.target}.")

    def _buckets(self, request: Request) -> Answer:
        if request.method == "POST":
            self.store.make_bucket(name := str(request.json()["name"]))
            return Answer.of(_bucket_resource(name))
        items = [_bucket_resource(name) for name in sorted(self.store.buckets)]
        return Answer.of({"kind": "storage#buckets", "items": items})

    def _bucket(self, request: Request, bucket: str) -> Answer:
        self.store.bucket(bucket)
        if request.method == "DELETE":
            self.store.delete_bucket(bucket)
            return Answer(204)
        return Answer.of(_bucket_resource(bucket))

    def _object(self, request: Request, bucket: str, name: str) -> Answer:
        if request.method == "DELETE":
            self.store.delete(bucket, name, request.query)
            return Answer(204)
        if request.method in ("PATCH", "PUT"):
            return Answer.of(
                self.store.patch(bucket, name, request.json(), request.query).resource()
            )
        blob = self.store.get(bucket, name, request.query)
        if request.query.get("alt") == "media":
            return _media(blob, request.headers.get("Range", ""))
        return Answer.of(blob.resource())

    def _transfer(self, request: Request, bucket: str, name: str, verb: list[str]) -> Answer:
        """Composes, copies or moves."""
        match verb:
            case ["compose"]:
                blob = self.store.compose(bucket, name, request.json(), request.query)
            case ["copyTo", "b", to_bucket, "o", to_name]:
                to = (to_bucket, to_name)
                blob = self.store.copy((bucket, name), to, request.json(), request.query)
            case ["moveTo", "o", to_name]:
                blob = self.store.move(bucket, name, to_name, request.query)
            case ["rewriteTo", "b", to_bucket, "o", to_name]:
                return self._rewrite(request, (bucket, name), (to_bucket, to_name))
            case _:
                raise ApiError(404, "notFound", f"Nothing is served at {request.target}.")
        return Answer.of(blob.resource())

    def _rewrite(self, request: Request, source: tuple[str, str], to: tuple[str, str]) -> Answer:
        """Copies a part of an object, or the last part."""
        blob = self.store.get(*source, request.query, "ifSource")
        self.store.check_write(*to, request.query)
        token = request.query.get("rewriteToken")
        begun, offset = self._rewrites.pop(token, (None, 0)) if token else (blob, 0)
        if begun != blob:
            raise invalid(f"Invalid rewriteToken {token}, or the source has changed.")
        size = len(blob.data)
        offset = size if self.rewrite_bytes is None else min(size, offset + self.rewrite_bytes)
        value = {"kind": "storage#rewriteResponse", "objectSize": str(size)}
        value |= {"totalBytesRewritten": str(offset), "done": offset == size}
        if offset < size:
            self._rewrites[token := f"rewrite-{next(self._ids)}"] = (blob, offset)
            return Answer.of(value | {"rewriteToken": token})
        copied = self.store.copy(source, to, request.json(), request.query)
        return Answer.of(value | {"resource": copied.resource()})

    def _upload(self, request: Request, bucket: str) -> Answer:
        self.store.bucket(bucket)
        if upload_id := request.query.get("upload_id"):
            return self._resume(request, upload_id)
        kind = request.query.get("uploadType")
        if kind == "resumable":
            return self._begin(request, bucket)
        if kind == "multipart":
            fields, data = _multipart(request)
        elif kind == "media":
            kept = request.headers.get("Content-Type", "application/octet-stream")
            fields, data = {"contentType": kept}, request.body
        else:
            raise invalid(f"uploadType is {kind!r}, not media, multipart or resumable.")
        name = str(fields.get("name") or request.query.get("name", ""))
        return Answer.of(self.store.insert(bucket, name, data, fields, request.query).resource())

    def _begin(self, request: Request, bucket: str) -> Answer:
        """Opens a resumable upload; its preconditions are looked at now and at its end."""
        fields = request.json()
        if kept := request.headers.get("X-Upload-Content-Type"):
            fields = {"contentType": kept} | fields
        name = str(fields.get("name") or request.query.get("name", ""))
        self.store.check_write(bucket, name, request.query)
        upload_id = f"upload-{next(self._ids)}"
        self._uploads[upload_id] = Upload(bucket, name, fields, dict(request.query))
        query = urllib.parse.urlencode({**request.query, "name": name, "upload_id": upload_id})
        path = urllib.parse.quote(bucket, safe="")
        return Answer(200, b"", {"Location": f"{self.url}/upload/storage/v1/b/{path}/o?{query}"})

    def _resume(self, request: Request, upload_id: str) -> Answer:
        """Takes a chunk of an upload, or says what came so far."""
        upload = self._uploads.get(upload_id)
        if upload is None:
            raise ApiError(404, "notFound", f"No upload {upload_id}.")
        if request.method == "DELETE":
            del self._uploads[upload_id]
            return Answer(499)
        if upload.done:
            return Answer.of(upload.done.resource())
        total = _append(upload, request)
        if total != len(upload.data):
            has = len(upload.data)
            return Answer(308, b"", {"Range": f"bytes=0-{has - 1}"} if has else {})
        data = bytes(upload.data)
        upload.done = self.store.insert(
            upload.bucket, upload.name, data, upload.fields, upload.query
        )
        return Answer.of(upload.done.resource())

    def keep_part(self, request: Request) -> None:
        """Keeps what came of a request that was cut: of a chunk, its whole units."""
        with self._lock:
            upload = self._uploads.get(request.query.get("upload_id", ""))
            match = _CONTENT_RANGE.fullmatch(request.headers.get("Content-Range", ""))
            if upload and match and match[1] and int(match[1]) == len(upload.data):
                upload.data += request.body[: len(request.body) // CHUNK_UNIT * CHUNK_UNIT]


def _append(upload: Upload, request: Request) -> int | None:
    """Adds a chunk to an upload and returns how long the object is, if the chunk says so."""
    given = request.headers.get("Content-Range", "")
    if not given:
        upload.data[:] = request.body
        return len(upload.data)
    match = _CONTENT_RANGE.fullmatch(given)
    if not match:
        raise invalid(f"Invalid Content-Range {given!r}.")
    total = None if match[3] == "*" else int(match[3])
    if match[1] is None:  # bytes */…: a question
        return total
    first, last = int(match[1]), int(match[2])
    if len(request.body) != last + 1 - first:
        raise invalid(f"Content-Range {given!r} of {len(request.body)} bytes.")
    if first > len(upload.data):
        raise ApiError(503, "backendError", f"{given!r} begins after {len(upload.data)} bytes.")
    if total != last + 1 and len(request.body) % CHUNK_UNIT:
        raise invalid(f"A chunk that is not the last has {len(request.body)} bytes.")
    upload.data += request.body[len(upload.data) - first :]
    return total


def _multipart(request: Request) -> tuple[dict, bytes]:
    """Splits a multipart upload into what is said of the object and its bytes."""
    header = f"Content-Type: {request.headers.get('Content-Type', '')}\r\n\r\n"
    parser = email.parser.BytesParser(policy=email.policy.HTTP)
    boundary = parser.parsebytes(header.encode()).get_boundary()
    if not boundary:
        raise invalid("A multipart upload has no boundary.")
    # Not by the parser of mail, which takes line ends in the bytes for its own. Some clients end
    # lines in CR LF, some in LF; a CR before the latter is the last byte of an object.
    mark = b"--" + boundary.encode()
    end = b"\r\n" if request.body.startswith(mark + b"\r\n") else b"\n"
    parts = (end + request.body).split(end + mark)[1:-1]
    split = [part.split(2 * end, maxsplit=1) for part in parts]
    if len(split) != 2 or any(len(part) != 2 for part in split):
        raise invalid(f"A multipart upload has {len(split)} parts, not 2.")
    fields = Request("", "", [], {}, {}, split[0][1]).json()
    kept = parser.parsebytes(split[1][0].lstrip() + b"\r\n\r\n")["Content-Type"]
    return ({"contentType": str(kept)} if kept else {}) | fields, split[1][1]


def _media(blob: Blob, asked: str) -> Answer:
    """Returns the bytes of an object, or those of a range."""
    size, data = len(blob.data), blob.data
    hashes = [f"crc32c={blob.crc32c}", *([f"md5={blob.md5}"] if blob.md5 else [])]
    resource = blob.resource()
    headers = {
        "Content-Type": str(resource["contentType"]),
        "ETag": resource["etag"],
        "X-Goog-Generation": resource["generation"],
        "X-Goog-Metageneration": resource["metageneration"],
        "X-Goog-Hash": ",".join(hashes),
        "X-Goog-Stored-Content-Length": str(size),
        "X-Goog-Stored-Content-Encoding": "identity",
        "Accept-Ranges": "bytes",
    }
    match = _RANGE.fullmatch(asked)
    if not match:
        return Answer(200, data, headers)
    if match[3] is not None:
        first, last = max(0, size - int(match[3])), size - 1
    else:
        first = int(match[1])
        last = min(int(match[2]), size - 1) if match[2] else size - 1
    if first > last:
        message = "The requested range cannot be satisfied."
        return Answer.refusal(ApiError(416, "requestedRangeNotSatisfiable", message))
    headers["Content-Range"] = f"bytes {first}-{last}/{size}"
    return Answer(206, data[first : last + 1], headers)


def _bucket_resource(name: str) -> dict:
    return {"kind": "storage#bucket", "id": name, "name": name, "location": "US"}


class _Server(http.server.ThreadingHTTPServer):
    """Threads that end with the tests, and room for many connections at once."""

    daemon_threads = True
    request_queue_size = 256
    api: StorageServer


class _Handler(http.server.BaseHTTPRequestHandler):
    """Reads requests, lets faults befall them, writes answers."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = 60
    server: _Server

    def handle(self) -> None:
        """Serves a connection; a client that goes away is nobody's error."""
        with contextlib.suppress(ConnectionError):
            super().handle()

    def log_message(self, *_: object) -> None:
        """Keeps quiet; `StorageServer.requests` has them."""

    def _serve(self) -> None:
        fault = self.server.api.faults.of(f"{self.command} {self.path}")
        time.sleep(fault.delay)
        self._serve_under(fault)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve

    def _serve_under(self, fault: Fault) -> None:
        api = self.server.api
        if self.headers.get("Transfer-Encoding"):
            self.close_connection = True
            return self._send(Answer.refusal(ApiError(411, "required", "Length is required.")))
        size = int(self.headers.get("Content-Length") or 0)
        if fault.cut is not None and fault.cut_request:
            api.keep_part(self._request(min(fault.cut, size)))
            return self._cut()
        request = self._request(size)
        if fault.status and not fault.late:
            return self._send(_refusal_of(fault))
        answer = api.answer(request)
        if fault.cut is not None:
            return self._cut(answer, fault.cut)
        return self._send(_refusal_of(fault) if fault.status else answer)

    def _request(self, size: int) -> Request:
        parts = urllib.parse.urlsplit(self.path)
        path = [urllib.parse.unquote(part) for part in parts.path.split("/")[1:]]
        query = dict(urllib.parse.parse_qsl(parts.query, keep_blank_values=True))
        return Request(self.command, self.path, path, query, self.headers, self.rfile.read(size))

    def _send(self, answer: Answer) -> None:
        self._record(answer.status)
        self._write(answer, answer.body)

    def _cut(self, answer: Answer | None = None, size: int = 0) -> None:
        """Ends the connection after so many bytes of an answer's body, or without an answer."""
        self._record(0)
        if answer:
            self._write(answer, answer.body[:size])
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _record(self, status: int) -> None:
        """Notes a request before its answer, so that whoever has the answer finds the note."""
        self.server.api.requests.append((self.command, self.path, status))

    def _write(self, answer: Answer, body: bytes) -> None:
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if answer.status not in (204, 304):
            self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        self.wfile.write(body)


def _refusal_of(fault: Fault) -> Answer:
    status = fault.status or 500
    message = fault.message or _MESSAGES.get(status, f"Injected {status}.")
    return Answer.refusal(ApiError(status, _REASONS.get(status, "internalError"), message))
