"""TensorStore's `gs://`, which Orbax writes arrays with, on the storage server."""

import concurrent.futures
import time

import pytest
import tensorstore as ts

from tests.storage.asking import insert

pytestmark = pytest.mark.buckets

QUICK = {"initial_delay": "5ms", "max_delay": "20ms", "max_retries": 8}
ABSENT = b"\x02"  # the generation of a key that is not there, as reads give it


def open_store(path="kv/", **retries):
    context = ts.Context({"gcs_request_retries": QUICK | retries})
    return ts.KvStore.open(f"gs://bucket/{path}", context=context).result()


def open_database(path="db/"):
    spec = {"driver": "ocdbt", "base": f"gs://bucket/{path}"}
    context = ts.Context({"gcs_request_retries": QUICK, "cache_pool": {"total_bytes_limit": 0}})
    return ts.KvStore.open(spec, context=context).result()


def test_what_is_written_is_read_listed_and_deleted(server):
    store = open_store()
    values = {f"k/{i}/ü": bytes([i]) * i * 1000 for i in range(6)}
    for name, value in values.items():
        store.write(name, value).result()
    assert {name.decode(): store[name] for name in store.list().result()} == values
    assert server.names() == [f"kv/{name}" for name in values]
    assert store.read("none").result().state == "missing"
    store.delete_range(ts.KvStore.KeyRange("k/1", "k/4")).result()
    assert [x.decode() for x in store.list().result()] == ["k/0/ü", "k/4/ü", "k/5/ü"]


def test_long_listings_come_in_pages(server):
    names = [f"{i:04}" for i in range(2500)]
    for name in names:
        server.store.insert("bucket", f"kv/{name}", b"", {}, {})
    assert [x.decode() for x in open_store().list().result()] == names
    assert server.count("^GET .*/o[?]") == 3


def test_an_array_is_read_by_its_parts(server):
    spec = {"driver": "zarr", "kvstore": "gs://bucket/array/"}
    metadata = {"shape": [64, 64], "chunks": [16, 64], "dtype": "<i4"}
    array = ts.open(spec | {"metadata": metadata}, create=True).result()
    array[...] = 7
    assert (ts.open(spec).result()[20:40, 3].read().result() == 7).all()
    assert len(server.names()) == 5  # metadata and four chunks


def test_writes_with_a_condition_are_taken_or_refused(server):
    store = open_store()
    first = store.write("a", b"1", if_equal=ABSENT).result().generation
    assert store.write("a", b"2", if_equal=ABSENT).result().generation != first
    assert store["a"] == b"1"
    second = store.write("a", b"2", if_equal=first).result().generation
    assert second != first and store["a"] == b"2"
    store.write("a", b"3", if_equal=first).result()
    assert store["a"] == b"2"
    store.write("a", None, if_equal=second).result()  # deletes
    assert store.read("a").result().state == "missing"


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_passing_errors_are_waited_out(server, status):
    fault = server.faults.add(status=status, times=3)
    store = open_store()
    store.write("a", b"1").result()
    assert fault.befell == 3
    server.faults.add(match="^GET", status=status, times=3)
    assert store["a"] == b"1"


def test_a_server_that_always_fails_is_given_up_with_its_message(server):
    server.faults.add(status=503)
    with pytest.raises(ValueError, match=r"All 2 retry attempts failed.*Injected 503"):
        open_store(max_retries=2).write("a", b"1").result()
    assert server.count("^POST") == 3


@pytest.mark.parametrize("status", [401, 403])
def test_refusals_are_not_tried_again(server, status):
    server.faults.add(status=status)
    with pytest.raises(ValueError, match="PERMISSION_DENIED"):
        open_store().write("a", b"1").result()
    assert server.count("^POST") == 1


def test_a_bucket_that_is_not_there_refuses_writes_and_holds_nothing(server):
    store = ts.KvStore.open("gs://none/kv/").result()
    with pytest.raises(ValueError, match="NOT_FOUND"):
        store.write("a", b"1").result()
    assert store.read("a").result().state == "missing"


@pytest.mark.parametrize("cut", [0, 100_000])
def test_a_body_that_ends_early_is_read_again(server, cut):
    data = bytes(range(256)) * 2000
    insert(server, "kv/a", data)
    fault = server.faults.add(match="alt=media", cut=cut, times=2)
    assert open_store()["a"] == data
    assert fault.befell == 2


def test_a_write_that_is_cut_is_written_again(server):
    data = bytes(range(256)) * 2000
    fault = server.faults.add(match="^POST", cut=1000, cut_request=True, times=2)
    store = open_store()
    store.write("a", data).result()
    assert store["a"] == data and fault.befell == 2


def test_commits_of_several_writers_lose_nothing(server):
    server.faults.add(match="^(GET|POST) .*manifest", delay=0.01)  # so that commits meet

    def write(writer):
        database = open_database()
        for i in range(5):
            database.write(f"{writer}/{i}", f"{writer} {i}".encode()).result()

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(write, writer) for writer in range(4)]:
            done.result()
    assert server.count("manifest", 412) > 0
    database = open_database()
    expected = {f"{writer}/{i}": f"{writer} {i}".encode() for writer in range(4) for i in range(5)}
    assert {name.decode(): database[name] for name in database.list().result()} == expected


def test_commits_survive_a_server_that_fails_often(server):
    server.faults.add(status=503, probability=0.2, seed=1)
    server.faults.add(match="alt=media", cut=5, probability=0.1, seed=2)
    database = open_database()
    for i in range(20):
        database.write(f"{i:02}", bytes([i])).result()
    server.faults.clear()
    again = open_database()
    assert [again[name] for name in sorted(again.list().result())] == [
        bytes([i]) for i in range(20)
    ]


def test_a_commit_whose_answer_was_lost_is_not_lost(server):
    database = open_database()
    database.write("a", b"1").result()
    fault = server.faults.add(match="^POST .*manifest", status=503, late=True, times=1)
    database.write("b", b"2").result()
    assert fault.befell == 1
    assert open_database()["b"] == b"2"


def test_a_slow_server_is_waited_for(server):
    server.faults.add(delay=0.2)
    begin = time.monotonic()
    open_store().write("a", b"1").result()
    assert time.monotonic() - begin >= 0.2
