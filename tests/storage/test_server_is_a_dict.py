"""The storage server beside a dict, under random requests one after another."""

from urllib.parse import urlencode

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.storage.asking import ask, ask_json, insert, name_of, read
from tests.storage.server import StorageServer

# Few names, so that requests meet; of a prefix, of others, and where UTF-8's order is not obvious.
NAMES = st.sampled_from(["/x", "a", "a/b", "a/b/c", "a/c", "a-b", "b", "ä", "\U0001f600", "\uffee"])
CONDITIONS = st.sampled_from(["none", "absent", "now", "stale"])
DATA = st.binary(max_size=8)


class ServerBesideADict(RuleBasedStateMachine):
    """`model` has of each name its bytes and its generation, as far as answers tell."""

    def __init__(self):
        super().__init__()
        self.server = StorageServer().__enter__()
        self.model = {}
        self.newest = 0

    @initialize(objects=st.dictionaries(NAMES, DATA, min_size=3))
    def start(self, objects):
        for name, data in objects.items():
            self.insert(name, data, "none")

    def teardown(self):
        self.server.__exit__()

    def condition(self, kind, name, parameter="ifGenerationMatch"):
        """Query of a precondition, and whether it holds."""
        now = self.model[name][1] if name in self.model else 0
        value = {"none": None, "absent": 0, "now": now, "stale": now + 1}[kind]
        return ({} if value is None else {parameter: value}), value in (None, now)

    def wrote(self, name, data, told):
        assert int(told["generation"]) > self.newest
        self.newest = int(told["generation"])
        assert (told["name"], told["metageneration"]) == (name, "1")
        assert told["size"] == str(len(data))
        self.model[name] = data, self.newest

    @rule(name=NAMES, data=DATA, kind=CONDITIONS)
    def insert(self, name, data, kind):
        query, holds = self.condition(kind, name)
        status, told = insert(self.server, name, data, **query)
        assert status == (200 if holds else 412)
        if holds:
            self.wrote(name, data, told)

    @rule(name=NAMES, kind=CONDITIONS)
    def delete(self, name, kind):
        query, holds = self.condition(kind, name)
        text = "&".join(f"{key}={value}" for key, value in query.items())
        status = ask(self.server, "DELETE", f"{name_of(name)}?{text}")[0]
        if name not in self.model:
            assert status == 404
        else:
            assert status == (204 if holds else 412)
            if holds:
                del self.model[name]

    @rule(name=NAMES, kind=CONDITIONS)
    def read(self, name, kind):
        query, holds = self.condition(kind, name)
        status, data = read(self.server, name, **query)
        if name not in self.model:
            assert status == 404
        else:
            assert status == (200 if holds else 412)
            assert not holds or data == self.model[name][0]

    @rule(name=NAMES, kind=CONDITIONS)
    def read_if_changed(self, name, kind):
        query, same = self.condition(kind, name, "ifGenerationNotMatch")
        status, data = read(self.server, name, **query)
        if name not in self.model:
            assert status == 404
        elif query and same:
            assert status == 304
        else:
            assert (status, data) == (200, self.model[name][0])

    @rule(
        verb=st.sampled_from(["moveTo/o", "copyTo/b/bucket/o", "rewriteTo/b/bucket/o"]),
        source=NAMES,
        to=NAMES,
        kind=CONDITIONS,
        source_kind=CONDITIONS,
    )
    def transfer(self, verb, source, to, kind, source_kind):
        query, holds = self.condition(kind, to)
        more, holds_too = self.condition(source_kind, source, "ifSourceGenerationMatch")
        text = "&".join(f"{key}={value}" for key, value in {**query, **more}.items())
        target = name_of(to).rpartition("/")[2]
        path = f"{name_of(source)}/{verb}/{target}?{text}"
        status, told = ask_json(self.server, "POST", path)
        if verb.startswith("move") and source == to:
            assert status == 400
        elif source not in self.model:
            assert status == 404
        elif not (holds and holds_too):
            assert status == 412
        else:
            assert status == 200
            self.wrote(to, self.model[source][0], told.get("resource", told))
            if verb.startswith("move"):
                del self.model[source]

    @rule(to=NAMES, sources=st.lists(NAMES, min_size=1, max_size=3), kind=CONDITIONS)
    def compose(self, to, sources, kind):
        query, holds = self.condition(kind, to)
        text = "&".join(f"{key}={value}" for key, value in query.items())
        body = {"sourceObjects": [{"name": name} for name in sources]}
        status, told = ask_json(self.server, "POST", f"{name_of(to)}/compose?{text}", body)
        if not set(sources) <= set(self.model):
            assert status == 404
        else:
            assert status == (200 if holds else 412)
            if holds:
                self.wrote(to, b"".join(self.model[name][0] for name in sources), told)

    @rule(
        prefix=st.sampled_from(["", "a", "a/"]),
        delimiter=st.sampled_from(["", "/"]),
        start=st.none() | NAMES,
        end=st.none() | NAMES,
        page=st.integers(1, 4),
    )
    def list(self, prefix, delimiter, start, end, page):
        names = [n for n in sorted(self.model, key=str.encode) if n.startswith(prefix)]
        names = [n for n in names if start is None or n.encode() >= start.encode()]
        names = [n for n in names if end is None or n.encode() < end.encode()]
        inside = [bool(delimiter) and delimiter in n[len(prefix) :] for n in names]
        folders = {
            prefix + n[len(prefix) :].split("/")[0] + "/"
            for n, deep in zip(names, inside, strict=True)
            if deep
        }
        query = {"prefix": prefix, "delimiter": delimiter, "maxResults": page}
        query |= {"startOffset": start} if start is not None else {}
        query |= {"endOffset": end} if end is not None else {}
        items, prefixes = self.pages(query)
        assert items == [
            (n, str(self.model[n][1])) for n, deep in zip(names, inside, strict=True) if not deep
        ]
        assert prefixes == sorted(folders)

    def pages(self, query):
        items, prefixes, token = [], [], ""
        while token is not None:
            from_here = urlencode({**query, "pageToken": token})
            status, page = ask_json(self.server, "GET", f"/storage/v1/b/bucket/o?{from_here}")
            assert status == 200
            items += [(item["name"], item["generation"]) for item in page.get("items", [])]
            prefixes += page.get("prefixes", [])
            assert len(items) + len(prefixes) <= len(self.model)
            token = page.get("nextPageToken")
        return items, prefixes

    @invariant()
    def same_names(self):
        assert self.server.names() == sorted(self.model, key=str.encode)


TestServerBesideADict = pytest.mark.slow(ServerBesideADict.TestCase)
TestServerBesideADict.settings = settings(max_examples=20, stateful_step_count=30, deadline=None)
