"""Buckets and their objects in memory: generations, preconditions, listing.

What each method does, and which status it refuses with, is that of the JSON API of Google Cloud
Storage (cloud.google.com/storage/docs/json_api/v1): no object versioning, no access control.
"""

import base64
import binascii
import dataclasses
import datetime
import hashlib
import itertools
from collections.abc import Mapping

import google_crc32c

# Of a size that 32 bits do not hold, as the times in microseconds that they are in earnest.
_FIRST_GENERATION = 1_700_000_000_000_000
MOST_COMPOSED = 32
MOST_LISTED = 1000
Query = Mapping[str, str]


class ApiError(Exception):
    """A refusal: the HTTP status, the API's reason and a message."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status, self.reason, self.message = status, reason, message


def not_found(what: str) -> ApiError:
    return ApiError(404, "notFound", f"No such object: {what}")


def invalid(message: str) -> ApiError:
    return ApiError(400, "invalid", message)


@dataclasses.dataclass(frozen=True)
class Blob:
    """An object as it is at one generation and metageneration.

    Attributes:
      fields: what its writer said of it: contentType, cacheControl, metadata and the like.
      components: so many objects it was composed of; 0: it was written as it is.
    """

    bucket: str
    name: str
    data: bytes
    generation: int
    fields: Mapping[str, object]
    created: datetime.datetime
    updated: datetime.datetime
    metageneration: int = 1
    components: int = 0

    @property
    def crc32c(self) -> str:
        return _base64(google_crc32c.value(self.data).to_bytes(4, "big"))

    @property
    def md5(self) -> str | None:
        """Its MD5; None of a composed object, as in the API."""
        return None if self.components else _base64(hashlib.md5(self.data).digest())

    def resource(self) -> dict:
        """Returns what the API tells of it."""
        hashes = {"crc32c": self.crc32c} | ({"md5Hash": self.md5} if self.md5 else {})
        composed = {"componentCount": self.components} if self.components else {}
        return {
            "kind": "storage#object",
            "id": f"{self.bucket}/{self.name}/{self.generation}",
            "name": self.name,
            "bucket": self.bucket,
            "generation": str(self.generation),
            "metageneration": str(self.metageneration),
            "contentType": "application/octet-stream",
            "storageClass": "STANDARD",
            "size": str(len(self.data)),
            "etag": _base64(f"{self.generation}/{self.metageneration}".encode()),
            "timeCreated": _time(self.created),
            "updated": _time(self.updated),
            **hashes,
            **composed,
            **self.fields,
        }


class Store:
    """Every bucket. Not for several threads at once: the server holds a lock around each call."""

    def __init__(self) -> None:
        self.buckets: dict[str, dict[str, Blob]] = {}
        self._generations = itertools.count(_FIRST_GENERATION)

    def bucket(self, name: str) -> dict[str, Blob]:
        if name not in self.buckets:
            raise ApiError(404, "notFound", "The specified bucket does not exist.")
        return self.buckets[name]

    def make_bucket(self, name: str) -> None:
        if name in self.buckets:
            raise ApiError(409, "conflict", f"The bucket {name} exists already.")
        self.buckets[name] = {}

    def delete_bucket(self, name: str) -> None:
        if self.bucket(name):
            raise ApiError(409, "conflict", f"The bucket {name} is not empty.")
        del self.buckets[name]

    def get(self, bucket: str, name: str, query: Query, prefix: str = "if") -> Blob:
        """Returns an object under preconditions `ifGenerationMatch` … or `ifSource…`."""
        blob = self.bucket(bucket).get(name)
        generation = query.get("sourceGeneration" if prefix == "ifSource" else "generation")
        if blob is None or (generation and int(generation) != blob.generation):
            raise not_found(f"{bucket}/{name}")
        _check(blob, query, prefix)
        return blob

    def check_write(self, bucket: str, name: str, query: Query) -> None:
        """Refuses what may not replace an object (or its absence) under the preconditions."""
        _check(self.bucket(bucket).get(name), query, "if")

    def insert(
        self,
        bucket: str,
        name: str,
        data: bytes,
        fields: Mapping[str, object],
        query: Query,
        components: int = 0,
    ) -> Blob:
        """Writes an object whole; `fields` may hold hashes that it must have."""
        self.check_write(bucket, name, query)
        if not name or len(name.encode()) > 1024:
            raise invalid(f"The name of an object has {len(name.encode())} bytes, not 1 to 1024.")
        kept = {key: value for key, value in fields.items() if key in _WRITABLE}
        now, generation = _now(), next(self._generations)
        blob = Blob(bucket, name, data, generation, kept, now, now, components=components)
        for key, has in (("crc32c", blob.crc32c), ("md5Hash", blob.md5)):
            if fields.get(key, has) != has:
                raise invalid(f"Provided {key} {fields[key]} does not match calculated {has}.")
        self.bucket(bucket)[name] = blob
        return blob

    def patch(self, bucket: str, name: str, fields: Mapping[str, object], query: Query) -> Blob:
        """Changes what is said of an object; a null takes a key away, of metadata too."""
        blob = self.get(bucket, name, query)
        changed = {key: value for key, value in fields.items() if key in _WRITABLE}
        if isinstance(metadata := changed.get("metadata"), dict):
            changed["metadata"] = _merged(blob.fields.get("metadata", {}), metadata)
        new = dataclasses.replace(
            blob,
            fields=_merged(blob.fields, changed),
            metageneration=blob.metageneration + 1,
            updated=_now(),
        )
        self.bucket(bucket)[name] = new
        return new

    def delete(self, bucket: str, name: str, query: Query) -> None:
        self.get(bucket, name, query)
        del self.bucket(bucket)[name]

    def copy(
        self, source: tuple[str, str], to: tuple[str, str], fields: Mapping, query: Query
    ) -> Blob:
        """Writes an object again under another name; without `fields` with its own."""
        blob = self.get(*source, query, "ifSource")
        return self.insert(*to, blob.data, fields or blob.fields, query, blob.components)

    def move(self, bucket: str, name: str, to: str, query: Query) -> Blob:
        """Renames an object, at once: nobody sees both names or none."""
        if name == to:
            raise invalid("The source and the destination of a move are the same object.")
        moved = self.copy((bucket, name), (bucket, to), {}, query)
        del self.bucket(bucket)[name]
        return moved

    def compose(self, bucket: str, name: str, request: Mapping, query: Query) -> Blob:
        """Joins up to 32 objects to one."""
        sources = request.get("sourceObjects", [])
        if not 1 <= len(sources) <= MOST_COMPOSED:
            raise invalid(f"{len(sources)} source objects, not 1 to {MOST_COMPOSED}.")
        blobs = []
        for source in sources:
            conditions = {"generation": source.get("generation", "")}
            conditions |= {k: str(v) for k, v in source.get("objectPreconditions", {}).items()}
            blobs.append(self.get(bucket, source["name"], conditions))
        data = b"".join(blob.data for blob in blobs)
        components = sum(blob.components or 1 for blob in blobs)
        return self.insert(bucket, name, data, request.get("destination", {}), query, components)

    def list(self, bucket: str, query: Query) -> dict:
        """Returns a page of the objects, and of what they have up to a delimiter, in order."""
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        most = min(int(query.get("maxResults", MOST_LISTED)), MOST_LISTED)
        if most < 1:
            raise invalid(f"maxResults is {most}, not at least 1.")
        after = _unpack(query["pageToken"]) if query.get("pageToken") else ""
        blobs = self.bucket(bucket)
        items: list[dict] = []
        prefixes: list[str] = []
        last = ""
        for name in sorted(blobs, key=str.encode):
            if not name.startswith(prefix) or not _between(name, query):
                continue
            end = name.find(delimiter, len(prefix)) if delimiter else -1
            shown = name if end < 0 else name[: end + len(delimiter)]
            if shown.encode() <= after.encode() or (prefixes and shown == prefixes[-1]):
                continue
            if len(items) + len(prefixes) == most:
                return _page(items, prefixes) | {"nextPageToken": _base64(last.encode())}
            if end < 0:
                items.append(blobs[name].resource())
            else:
                prefixes.append(shown)
            last = shown
        return _page(items, prefixes)


# What a request may say of an object; the rest is the server's to say.
_WRITABLE = {
    *("contentType", "contentEncoding", "contentDisposition", "contentLanguage"),
    *("cacheControl", "customTime", "storageClass", "metadata"),
}


def _check(blob: Blob | None, query: Query, prefix: str) -> None:
    """Holds an object, or that there is none, to the preconditions of a request."""
    generation = blob.generation if blob else 0
    metageneration = blob.metageneration if blob else None
    for what, value in (("Generation", generation), ("Metageneration", metageneration)):
        match = query.get(f"{prefix}{what}Match")
        if match is not None and _integer(match) != value:
            message = "At least one of the pre-conditions you specified did not hold."
            raise ApiError(412, "conditionNotMet", message)
        match = query.get(f"{prefix}{what}NotMatch")
        if match is not None and _integer(match) == value:
            raise ApiError(304, "notModified", "")


def _between(name: str, query: Query) -> bool:
    encoded = name.encode()
    end = query.get("endOffset")
    return query.get("startOffset", "").encode() <= encoded and (not end or encoded < end.encode())


def _page(items: list[dict], prefixes: list[str]) -> dict:
    parts = {"items": items, "prefixes": prefixes}
    return {"kind": "storage#objects"} | {key: part for key, part in parts.items() if part}


def _merged(old: Mapping, new: Mapping) -> dict:
    return {key: value for key, value in {**old, **new}.items() if value is not None}


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise invalid(f"Invalid value {text!r}, not an integer.") from None


def _unpack(token: str) -> str:
    try:
        return base64.b64decode(token, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        raise invalid(f"Invalid page token {token!r}.") from None


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _time(moment: datetime.datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
