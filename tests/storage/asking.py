"""Requests to a storage server without a client's library."""

import http.client
import json
import urllib.parse


def ask(server, method, path, body=b"", **headers):
    """Returns status, headers and body of the answer to one request."""
    if isinstance(body, dict):
        body = json.dumps(body).encode()
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    host = urllib.parse.urlsplit(server.url).netloc
    connection = http.client.HTTPConnection(host, timeout=30)
    try:
        connection.request(method, path, body or None, names)
        with connection.getresponse() as response:
            return response.status, response.headers, response.read()
    finally:
        connection.close()


def ask_json(server, method, path, body=b"", **headers):
    """Returns status and the value of a body in JSON, None where it is empty."""
    status, _, data = ask(server, method, path, body, **headers)
    return status, json.loads(data) if data else None


def name_of(name):
    """Returns the path of an object in the bucket `bucket`."""
    return f"/storage/v1/b/bucket/o/{urllib.parse.quote(name, safe='')}"


def insert(server, name, data=b"", **query):
    """Writes an object; returns the status and what the API says of it."""
    query = urllib.parse.urlencode({"uploadType": "media", "name": name, **query})
    return ask_json(server, "POST", f"/upload/storage/v1/b/bucket/o?{query}", data)


def read(server, name, **query):
    """Returns the status and the bytes of an object."""
    query = urllib.parse.urlencode({"alt": "media", **query})
    status, _, data = ask(server, "GET", f"{name_of(name)}?{query}")
    return status, data
