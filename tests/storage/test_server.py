"""The storage server of the tests, as the JSON API's reference describes it."""

import base64
import concurrent.futures
import http.client
import json
import urllib.parse

import google_crc32c
import pytest

from tests.storage.asking import ask, ask_json, insert, name_of, read
from tests.storage.server import CHUNK_UNIT

LISTING = "/storage/v1/b/bucket/o"
UPLOAD = "/upload/storage/v1/b/bucket/o"


def begin_upload(server, name, **query):
    query = urllib.parse.urlencode({"uploadType": "resumable", **query})
    status, headers, _ = ask(server, "POST", f"{UPLOAD}?{query}", {"name": name})
    assert status == 200
    return headers["Location"].removeprefix(server.url)


def send_chunk(server, location, data, first, total):
    last = first + len(data) - 1
    status, headers, body = ask(
        server, "PUT", location, data, Content_Range=f"bytes {first}-{last}/{total}"
    )
    return status, headers.get("Range"), body


def test_an_object_is_read_as_it_was_written(server):
    status, made = insert(server, "a/ü b.bin", b"hello")
    assert status == 200
    assert read(server, "a/ü b.bin") == (200, b"hello")
    status, told = ask_json(server, "GET", name_of("a/ü b.bin"))
    assert told == made
    path = name_of("a/ü b.bin").replace("/storage/", "/download/storage/", 1)
    assert ask(server, "GET", f"{path}?alt=media")[2] == b"hello"
    assert told["name"] == "a/ü b.bin" and told["size"] == "5" and told["metageneration"] == "1"


def test_hashes_are_those_of_the_bytes(server):
    _, told = insert(server, "a", b"123456789")
    assert told["crc32c"] == "4waSgw=="  # the check value of CRC-32C, 0xE3069283
    assert told["md5Hash"] == "JfnnlDI7RTiF9RgfG2JNCw=="
    headers = ask(server, "GET", f"{name_of('a')}?alt=media")[1]
    assert headers["X-Goog-Hash"] == "crc32c=4waSgw==,md5=JfnnlDI7RTiF9RgfG2JNCw=="
    assert headers["X-Goog-Generation"] == told["generation"]


@pytest.mark.parametrize(
    ("asked", "status", "data", "content_range"),
    [
        ("bytes=0-0", 206, b"0", "bytes 0-0/10"),
        ("bytes=3-", 206, b"3456789", "bytes 3-9/10"),
        ("bytes=3-5", 206, b"345", "bytes 3-5/10"),
        ("bytes=8-99", 206, b"89", "bytes 8-9/10"),
        ("bytes=-4", 206, b"6789", "bytes 6-9/10"),
        ("bytes=-40", 206, b"0123456789", "bytes 0-9/10"),
        ("bytes=10-", 416, None, None),
        ("lines=1-2", 200, b"0123456789", None),
    ],
)
def test_ranges_are_answered_by_their_bytes(server, asked, status, data, content_range):
    insert(server, "a", b"0123456789")
    got, headers, body = ask(server, "GET", f"{name_of('a')}?alt=media", Range=asked)
    assert (got, headers["Content-Range"]) == (status, content_range)
    assert data in (None, body)


def test_of_an_empty_object_no_byte_is_a_range(server):
    insert(server, "a")
    assert read(server, "a") == (200, b"")
    assert ask(server, "GET", f"{name_of('a')}?alt=media", Range="bytes=0-0")[0] == 416


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("data", [b"", b"\r", b"a\n\n\rb\r\n", b"\n--==1=="])
def test_multipart_uploads_keep_every_byte(server, end, data):
    said = json.dumps({"name": "a", "metadata": {"who": "me"}}).encode()
    parts = [
        b"--==0==" + end + b"Content-Type: application/json" + end + end + said,
        b"--==0==" + end + b"Content-Type: text/plain" + end + end + data,
        b"--==0==--",
    ]
    kind = 'multipart/related; boundary="==0=="'
    path = f"{UPLOAD}?uploadType=multipart"
    status, told = ask_json(server, "POST", path, end.join(parts), Content_Type=kind)
    assert status == 200 and told["metadata"] == {"who": "me"}
    assert told["contentType"] == "text/plain"
    assert read(server, "a") == (200, data)


def test_bytes_of_another_hash_are_refused(server):
    location = begin_upload(server, "a")
    upload = next(iter(server._uploads.values()))
    upload.fields = {"crc32c": "AAAAAA=="}
    assert send_chunk(server, location, b"a", 0, 1)[0] == 400
    assert server.names() == []


def test_a_resumable_upload_is_there_with_its_last_chunk_and_not_before(server):
    first, second = bytes(2 * CHUNK_UNIT), b"the end"
    location = begin_upload(server, "a")
    status, kept, _ = send_chunk(server, location, first, 0, "*")
    assert (status, kept) == (308, f"bytes=0-{len(first) - 1}")
    assert server.names() == []
    total = len(first) + len(second)
    assert ask(server, "PUT", location, Content_Range="bytes */*")[0] == 308
    assert send_chunk(server, location, second, len(first), total)[0] == 200
    assert read(server, "a") == (200, first + second)
    assert ask(server, "PUT", location, Content_Range=f"bytes */{total}")[0] == 200


def test_a_chunk_that_is_not_the_last_has_whole_units(server):
    location = begin_upload(server, "a")
    assert send_chunk(server, location, bytes(CHUNK_UNIT + 1), 0, "*")[0] == 400


def test_an_empty_resumable_upload_ends_with_a_question(server):
    location = begin_upload(server, "a")
    assert ask(server, "POST", location, Content_Range="bytes */0")[0] == 200
    assert read(server, "a") == (200, b"")


def test_a_canceled_upload_leaves_nothing(server):
    location = begin_upload(server, "a")
    send_chunk(server, location, bytes(CHUNK_UNIT), 0, "*")
    assert ask(server, "DELETE", location)[0] == 499
    assert send_chunk(server, location, b"a", CHUNK_UNIT, CHUNK_UNIT + 1)[0] == 404
    assert server.names() == []


def test_of_a_chunk_that_was_cut_whole_units_are_kept(server):
    data = bytes(range(256)) * (3 * CHUNK_UNIT // 256)
    location = begin_upload(server, "a")
    server.faults.add(match="^PUT", cut=2 * CHUNK_UNIT + 5, cut_request=True, times=1)
    with pytest.raises((http.client.HTTPException, OSError)):
        send_chunk(server, location, data, 0, len(data))
    status, headers, _ = ask(server, "PUT", location, Content_Range=f"bytes */{len(data)}")
    assert (status, headers["Range"]) == (308, f"bytes=0-{2 * CHUNK_UNIT - 1}")
    assert send_chunk(server, location, data[2 * CHUNK_UNIT :], 2 * CHUNK_UNIT, len(data))[0] == 200
    assert read(server, "a") == (200, data)


def test_another_writer_between_makes_an_upload_fail_at_its_end(server):
    location = begin_upload(server, "a", ifGenerationMatch=0)
    insert(server, "a", b"theirs")
    assert send_chunk(server, location, b"ours", 0, 4)[0] == 412
    assert read(server, "a") == (200, b"theirs")


def test_an_object_is_written_once_where_it_may_not_be_there(server):
    assert insert(server, "a", b"1", ifGenerationMatch=0)[0] == 200
    status, error = insert(server, "a", b"2", ifGenerationMatch=0)
    assert status == 412 and error["error"]["code"] == 412
    assert error["error"]["errors"][0]["reason"] == "conditionNotMet"
    assert read(server, "a") == (200, b"1")


def test_of_many_writers_that_want_an_object_to_be_new_one_wins(server):
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        writers = [
            pool.submit(insert, server, "lock", str(i).encode(), ifGenerationMatch=0)
            for i in range(64)
        ]
    winners = [i for i, writer in enumerate(writers) if writer.result()[0] == 200]
    assert len(winners) == 1
    assert read(server, "lock") == (200, str(winners[0]).encode())


def test_counting_under_preconditions_loses_nothing(server):
    insert(server, "n", b"0")

    def add_one():
        while True:
            _, told = ask_json(server, "GET", name_of("n"))
            status, value = read(server, "n", generation=told["generation"])
            if status == 404:  # replaced between the two
                continue
            after = str(int(value) + 1).encode()
            if insert(server, "n", after, ifGenerationMatch=told["generation"])[0] == 200:
                return

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(add_one) for _ in range(20)]:
            done.result()
    assert read(server, "n") == (200, b"20")


def test_what_has_not_changed_is_not_sent_again(server):
    _, told = insert(server, "a", b"1")
    same = told["generation"]
    assert read(server, "a", ifGenerationNotMatch=same) == (304, b"")
    assert read(server, "a", ifGenerationNotMatch=int(same) - 1) == (200, b"1")
    assert read(server, "a", ifGenerationMatch=int(same) - 1)[0] == 412
    assert read(server, "a", ifMetagenerationMatch=2)[0] == 412


def test_patches_count_metagenerations_and_keep_the_generation(server):
    _, made = insert(server, "a", b"1")
    change = {"metadata": {"k": "v", "gone": "soon"}}
    ask_json(server, "PATCH", name_of("a"), change)
    change = {"metadata": {"gone": None}, "size": "99"}
    status, told = ask_json(server, "PATCH", f"{name_of('a')}?ifMetagenerationMatch=2", change)
    assert status == 200 and told["metageneration"] == "3" and told["size"] == "1"
    assert told["generation"] == made["generation"] and told["metadata"] == {"k": "v"}
    assert ask(server, "PATCH", f"{name_of('a')}?ifMetagenerationMatch=2", change)[0] == 412


def test_objects_are_deleted_under_preconditions(server):
    _, told = insert(server, "a", b"1")
    generation = int(told["generation"])
    assert ask(server, "DELETE", f"{name_of('a')}?ifGenerationMatch={generation - 1}")[0] == 412
    assert ask(server, "DELETE", f"{name_of('a')}?ifGenerationMatch={generation}")[0] == 204
    assert ask(server, "DELETE", name_of("a"))[0] == 404
    assert read(server, "a")[0] == 404


def list_names(server, **query):
    status, page = ask_json(server, "GET", f"{LISTING}?{urllib.parse.urlencode(query)}")
    assert status == 200
    names = [item["name"] for item in page.get("items", [])]
    return names, page.get("prefixes", []), page.get("nextPageToken")


def test_listings_are_in_order_under_a_prefix_with_a_delimiter(server):
    for name in ["b", "a/2", "a/1/x", "a/1/y", "a/10", "ä", "a"]:
        insert(server, name)
    assert list_names(server)[0] == ["a", "a/1/x", "a/1/y", "a/10", "a/2", "b", "ä"]
    assert list_names(server, delimiter="/") == (["a", "b", "ä"], ["a/"], None)
    assert list_names(server, prefix="a/", delimiter="/") == (["a/10", "a/2"], ["a/1/"], None)
    assert list_names(server, startOffset="a/1/y", endOffset="b")[0] == ["a/1/y", "a/10", "a/2"]
    assert ask(server, "GET", "/storage/v1/b/other/o")[0] == 404


@pytest.mark.parametrize("delimiter", ["", "/"])
def test_pages_together_are_the_listing(server, delimiter):
    for name in ["a/1", "a/2", "b", "c/1", "c/2", "d"]:
        insert(server, name)
    whole = list_names(server, delimiter=delimiter)
    token, names, prefixes = "", [], []
    while token is not None:
        more, folders, token = list_names(
            server, delimiter=delimiter, maxResults=2, pageToken=token
        )
        assert len(more) + len(folders) <= 2
        names, prefixes = names + more, prefixes + folders
    assert (names, prefixes, None) == whole


def test_composed_objects_are_joined_and_have_no_md5(server):
    insert(server, "a", b"1")
    _, told = insert(server, "b", b"2")
    parts = [{"name": "a"}, {"name": "b", "generation": told["generation"]}, {"name": "a"}]
    body = {"sourceObjects": parts, "destination": {"contentType": "text/plain"}}
    status, told = ask_json(server, "POST", f"{name_of('c')}/compose", body)
    assert status == 200 and told["componentCount"] == 3 and "md5Hash" not in told
    crc = base64.b64encode(google_crc32c.value(b"121").to_bytes(4, "big")).decode()
    assert read(server, "c") == (200, b"121") and told["crc32c"] == crc
    many = {"sourceObjects": [{"name": "a"}] * 33}
    assert ask(server, "POST", f"{name_of('d')}/compose", many)[0] == 400
    missing = {"sourceObjects": [{"name": "a"}, {"name": "none"}]}
    assert ask(server, "POST", f"{name_of('d')}/compose", missing)[0] == 404
    stale = {"sourceObjects": [{"name": "a", "objectPreconditions": {"ifGenerationMatch": "7"}}]}
    assert ask(server, "POST", f"{name_of('d')}/compose", stale)[0] == 412


def test_a_long_rewrite_goes_on_with_its_token(server):
    insert(server, "a", b"0123456789")
    server.rewrite_bytes = 4
    path = f"{name_of('a')}/rewriteTo/b/bucket/o/x%2Fb"
    done = []
    token = ""
    while not done or not done[-1]["done"]:
        assert "x/b" not in server.names()
        done.append(ask_json(server, "POST", f"{path}?rewriteToken={token}")[1])
        token = done[-1].get("rewriteToken", "")
    assert [x["totalBytesRewritten"] for x in done] == ["4", "8", "10"]
    assert read(server, "x/b") == (200, b"0123456789") and done[-1]["resource"]["name"] == "x/b"


def test_a_rewrite_of_what_changed_meanwhile_is_refused(server):
    insert(server, "a", b"0123456789")
    server.rewrite_bytes = 4
    path = f"{name_of('a')}/rewriteTo/b/bucket/o/b"
    token = ask_json(server, "POST", path)[1]["rewriteToken"]
    insert(server, "a", b"9876543210")
    assert ask(server, "POST", f"{path}?rewriteToken={token}")[0] == 400


def test_copies_keep_what_is_said_of_an_object(server):
    insert(server, "a", b"1")
    ask(server, "PATCH", name_of("a"), {"metadata": {"k": "v"}})
    status, told = ask_json(server, "POST", f"{name_of('a')}/copyTo/b/bucket/o/b")
    assert status == 200 and told["metadata"] == {"k": "v"} and told["metageneration"] == "1"
    assert server.names() == ["a", "b"]


def test_moves_are_under_preconditions_of_both_objects(server):
    _, told = insert(server, "a", b"1")
    insert(server, "b", b"2")
    path = f"{name_of('a')}/moveTo/o/b"
    assert ask(server, "POST", f"{path}?ifGenerationMatch=0")[0] == 412
    assert ask(server, "POST", f"{path}?ifSourceGenerationMatch=7")[0] == 412
    assert server.names() == ["a", "b"]
    status, told = ask_json(server, "POST", path)
    assert status == 200 and told["name"] == "b" and server.names() == ["b"]
    assert read(server, "b") == (200, b"1")
    assert ask(server, "POST", path)[0] == 404


def test_a_source_named_as_a_verb_is_a_source(server):
    insert(server, "b", b"1")
    assert ask(server, "POST", f"{name_of('b')}/moveTo/o/o")[0] == 200
    assert server.names() == ["o"]


def test_buckets_are_made_listed_and_deleted_when_empty(server):
    assert ask(server, "POST", "/storage/v1/b?project=p", {"name": "new"})[0] == 200
    assert ask(server, "POST", "/storage/v1/b?project=p", {"name": "new"})[0] == 409
    told = ask_json(server, "GET", "/storage/v1/b?project=p")[1]
    assert [item["name"] for item in told["items"]] == ["bucket", "new"]
    assert ask(server, "DELETE", "/storage/v1/b/new")[0] == 204
    assert ask(server, "GET", "/storage/v1/b/new")[0] == 404
    insert(server, "a")
    assert ask(server, "DELETE", "/storage/v1/b/bucket")[0] == 409


@pytest.mark.parametrize("status", [401, 403, 429, 503])
def test_faults_are_errors_in_json_so_many_times(server, status):
    insert(server, "a", b"1")
    fault = server.faults.add(match="^GET .*alt=media", status=status, times=2)
    for _ in range(2):
        code, error = ask_json(server, "GET", f"{name_of('a')}?alt=media")
        assert code == error["error"]["code"] == status
    assert ask(server, "GET", name_of("a"))[0] == 200  # another request
    assert read(server, "a") == (200, b"1") and fault.befell == 2
    assert server.count("^GET .*alt=media") == 3
    assert server.count("^GET .*alt=media", status) == 2


def test_faults_of_a_probability_are_those_of_their_seed(server):
    def befallen(seed):
        server.faults.clear()
        server.faults.add(status=503, probability=0.5, seed=seed)
        return [ask(server, "GET", LISTING)[0] for _ in range(20)]

    first = befallen(1)
    assert set(first) == {200, 503}
    assert befallen(1) == first != befallen(2)


def test_a_lost_answer_leaves_the_write_done(server):
    server.faults.add(match="^POST", status=503, late=True, times=1)
    assert insert(server, "a", b"1", ifGenerationMatch=0)[0] == 503
    assert insert(server, "a", b"1", ifGenerationMatch=0)[0] == 412
    assert read(server, "a") == (200, b"1")


def test_a_cut_answer_is_short(server):
    insert(server, "a", bytes(1000))
    server.faults.add(match="^GET", cut=10, times=1)
    with pytest.raises(http.client.IncompleteRead) as raised:
        read(server, "a")
    assert len(raised.value.partial) == 10
    assert server.count("^GET", 0) == 1
    assert read(server, "a") == (200, bytes(1000))


def test_delays_are_before_the_answer_and_hold_up_nobody_else(server):
    insert(server, "slow")
    server.faults.add(match="slow", delay=1.0)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        slow = pool.submit(read, server, "slow")
        assert insert(server, "quick")[0] == 200
        assert not slow.done()
        assert slow.result()[0] == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/elsewhere", 404),
        ("POST", f"{UPLOAD}?uploadType=other&name=a", 400),
        ("POST", f"{UPLOAD}?uploadType=media&name=", 400),
        ("POST", f"{UPLOAD}?uploadType=media&name=a&ifGenerationMatch=x", 400),
        ("POST", "/upload/storage/v1/b/none/o?uploadType=media&name=a", 404),
        ("PUT", f"{UPLOAD}?upload_id=none", 404),
        ("GET", f"{LISTING}?maxResults=0", 400),
        ("GET", f"{LISTING}?pageToken=!", 400),
    ],
)
def test_what_is_wrong_is_said_in_json(server, method, path, status):
    code, error = ask_json(server, method, path)
    assert code == status == error["error"]["code"] and error["error"]["message"]
