"""gcsfs and, over it, etils.epath on the storage server; and where they are not like a disk."""

import asyncio

import fsspec
import gcsfs
import pytest
from etils import epath

from tests.storage.asking import insert

pytestmark = pytest.mark.buckets

MIB = 2**20


@pytest.fixture
def files(server, fresh_clients):
    return fsspec.filesystem("gs")


@pytest.fixture
def no_waiting(monkeypatch):
    """Waits that take no time; returns how long each was to be."""
    waits = []

    async def sleep(seconds, real=asyncio.sleep):
        if seconds:
            waits.append(seconds)
        await real(0)

    monkeypatch.setattr("gcsfs.retry.asyncio.sleep", sleep)
    return waits


@pytest.fixture
def folder(server, fresh_clients):
    return epath.Path("gs://bucket/run")


def test_files_are_listed_and_found(files):
    files.pipe({"bucket/d/a": b"1", "bucket/d/e/b": b"22", "bucket/c": b""})
    assert files.ls("bucket/d") == ["bucket/d/a", "bucket/d/e"]
    assert files.find("bucket") == ["bucket/c", "bucket/d/a", "bucket/d/e/b"]
    assert files.glob("bucket/d/*") == ["bucket/d/a", "bucket/d/e"]
    assert files.info("bucket/d/e/b")["size"] == 2 and files.isdir("bucket/d/e")
    assert files.exists("bucket/d") and not files.exists("bucket/x")


def test_ranges_are_read(files):
    files.pipe("bucket/a b", b"0123456789")
    assert files.cat("bucket/a b") == b"0123456789"
    assert files.cat_file("bucket/a b", 2, 5) == b"234"
    assert files.cat_file("bucket/a b", -3) == b"789"
    with files.open("bucket/a b") as file:
        file.seek(7)
        assert file.read(2) == b"78"


def test_large_files_go_up_in_chunks_and_come_back_the_same(server, files, tmp_path):
    data = bytes(range(256)) * (12 * MIB // 256) + b"end"
    (tmp_path / "a").write_bytes(data)
    files.put_file(tmp_path / "a", "bucket/a", chunksize=5 * MIB)
    assert server.count("upload_id", 308) == 2 and server.count("upload_id", 200) == 1
    with files.open("bucket/b", "wb", block_size=5 * MIB) as file:
        for start in range(0, len(data), MIB):
            file.write(data[start : start + MIB])
    files.get_file("bucket/b", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == files.cat("bucket/a") == data


def test_an_upload_that_is_cut_goes_on_from_what_was_kept(server, files, tmp_path, no_waiting):
    data = bytes(range(256)) * (6 * MIB // 256)
    (tmp_path / "a").write_bytes(data)
    server.faults.add(match="upload_id", cut=3 * MIB + 7, cut_request=True, times=1)
    server.faults.add(match="upload_id", status=503, times=1)
    files.put_file(tmp_path / "a", "bucket/a")
    assert files.cat("bucket/a") == data and len(no_waiting) == 2


def test_files_are_moved_copied_and_removed(server, files):
    files.pipe({"bucket/d/a": b"1", "bucket/d/e/b": b"2"})
    server.rewrite_bytes = MIB
    files.pipe("bucket/large", bytes(3 * MIB))
    files.cp_file("bucket/large", "bucket/copy")
    assert server.count("rewriteTo", 200) == 3 and files.cat("bucket/copy") == bytes(3 * MIB)
    files.mv("bucket/d", "bucket/f", recursive=True)
    assert server.names() == ["copy", "f/a", "f/e/b", "large"]
    files.rm("bucket/f", recursive=True)
    assert server.names() == ["copy", "large"]
    with pytest.raises(FileNotFoundError):
        files.rm("bucket/f", recursive=True)


def test_a_file_that_must_be_new_is_written_once(server, files):
    def write(data):
        with files.open("bucket/lock", "xb") as file:
            file.write(data)

    write(b"first")
    with pytest.raises(FileExistsError):
        write(b"second")
    with pytest.raises(FileExistsError):
        files.pipe_file("bucket/lock", b"third", mode="create")
    assert files.cat("bucket/lock") == b"first"


def test_the_answer_to_a_new_file_may_be_lost_and_then_it_seems_another_s(
    server, files, no_waiting
):
    server.faults.add(match="^POST .*multipart", status=503, late=True, times=1)
    with pytest.raises(FileExistsError):
        files.pipe_file("bucket/lock", b"mine", mode="create")
    assert files.cat("bucket/lock") == b"mine"


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_passing_errors_are_waited_out(server, files, no_waiting, status):
    files.pipe("bucket/a", b"1")
    fault = server.faults.add(status=status, times=5)
    assert files.cat("bucket/a") == b"1" and fault.befell == 5
    assert [int(wait) for wait in no_waiting] == [1, 2, 4, 8, 16]


def test_the_sixth_error_is_the_last(server, files, no_waiting):
    fault = server.faults.add(status=503)
    with pytest.raises(gcsfs.retry.HttpError, match=r"Injected 503\., 503"):
        files.cat("bucket/a")
    assert fault.befell == 6


def test_a_body_that_ends_early_is_read_again(server, files, no_waiting):
    files.pipe("bucket/a", bytes(MIB))
    server.faults.add(match="alt=media", cut=100, times=2)
    assert files.cat("bucket/a") == bytes(MIB)


def test_anonymous_callers_and_forbidden_buckets_are_refused_at_once(server, files):
    fault = server.faults.add(match="/b/bucket/", status=403)
    with pytest.raises(OSError, match=r"Forbidden: .*\n.*does not have access"):
        files.cat("bucket/a")
    assert fault.befell == 1
    server.faults.clear()
    message = "Anonymous caller does not have storage.objects.get access."
    fault = server.faults.add(status=401, message=message)
    with pytest.raises(gcsfs.retry.HttpError, match="Anonymous caller"):
        files.cat("bucket/a")
    assert fault.befell == 1


def test_expired_credentials_are_tried_six_times(server, files, no_waiting):
    fault = server.faults.add(status=401)
    with pytest.raises(gcsfs.retry.HttpError, match="Invalid Credentials, 401"):
        files.cat("bucket/a")
    assert fault.befell == 6


@pytest.mark.parametrize("status", [401, 403])
def test_what_may_not_be_seen_is_not_said_to_be_absent(server, folder, status):
    server.faults.add(status=status, message="No.")
    with pytest.raises(Exception, match=r"No\."):
        (folder / "a").exists()
    with pytest.raises(Exception, match=r"No\."):
        (folder / "a").write_text("x")


def test_listings_are_kept_for_good_unless_told_otherwise(server, fresh_clients):
    files = gcsfs.GCSFileSystem(use_listings_cache=True, skip_instance_cache=True)
    insert(server, "d/a", b"1")
    assert files.ls("bucket/d") == ["bucket/d/a"]
    insert(server, "d/b", b"2")  # by somebody else
    assert not files.exists("bucket/d/b") and files.ls("bucket/d") == ["bucket/d/a"]
    files.invalidate_cache()
    assert files.exists("bucket/d/b")


def test_paths_see_what_others_write(server, folder):
    insert(server, "run/a", b"1")
    assert [path.name for path in folder.iterdir()] == ["a"]
    insert(server, "run/b", b"2")
    assert sorted(path.name for path in folder.iterdir()) == ["a", "b"]
    assert (folder / "b").exists() and (folder / "b").read_bytes() == b"2"


def test_paths_are_written_read_listed_and_removed(server, folder):
    (folder / "a.txt").write_text("hi")
    (folder / "d" / "b.txt").write_bytes(b"\x00\xff")
    assert folder.exists() and folder.is_dir() and not (folder / "a.txt").is_dir()
    assert (folder / "a.txt").read_text() == "hi"
    assert (folder / "d/b.txt").read_bytes() == b"\x00\xff"
    assert [str(path) for path in folder.glob("*.txt")] == ["gs://bucket/run/a.txt"]
    assert sorted(path.name for path in folder.iterdir()) == ["a.txt", "d"]
    assert (folder / "a.txt").stat().length == 2
    (folder / "a.txt").unlink()
    with pytest.raises(FileNotFoundError):
        (folder / "a.txt").unlink()
    with pytest.raises(FileNotFoundError):
        (folder / "a.txt").read_text()
    folder.rmtree()
    assert server.names() == []
    folder.rmtree(missing_ok=True)


def test_folders_are_made_by_what_is_in_them(server, folder):
    folder.mkdir(parents=True, exist_ok=True)
    assert not folder.exists() and server.names() == []
    (folder / "a" / "b").write_text("x")
    assert folder.exists() and (folder / "a").is_dir()
    with pytest.raises(FileExistsError):
        folder.mkdir()


def test_files_are_renamed_and_replaced_at_once(server, folder):
    (folder / "a").write_text("1")
    (folder / "b").write_text("2")
    with pytest.raises(FileExistsError):
        (folder / "a").rename(folder / "b")
    (folder / "a").replace(folder / "b")
    assert server.names() == ["run/b"] and (folder / "b").read_text() == "1"
    assert server.count("moveTo", 200) == 1
    (folder / "b").rename(folder / "c")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        (folder / "c").rename(folder / "none" / "c")  # of a folder with nothing in it


def test_folders_are_renamed_file_by_file(server, folder):
    for name in ("a", "d/b"):
        (folder / name).write_text(name)
    folder.rename("gs://bucket/other")
    assert server.names() == ["other/a", "other/d/b"]
    assert server.count("moveTo", 200) == 2


def test_appending_replaces_what_was_there(server, folder):
    """So nothing may be appended to a file in a bucket."""
    (folder / "log").write_text("first\n")
    with pytest.warns(UserWarning, match="overwrite"), (folder / "log").open("a") as file:
        file.write("second\n")
    assert (folder / "log").read_text() == "second\n"


def test_a_file_is_there_when_it_is_closed_and_not_before(server, folder):
    with (folder / "a").open("wb") as file:
        file.write(bytes(MIB))
        file.flush()
        assert server.names() == []
    assert server.names() == ["run/a"]


def test_paths_that_must_be_new_need_the_file_system(server, folder):
    with pytest.raises(ValueError, match="'x' is not one of"):
        (folder / "lock").open("x")
    with fsspec.open("gs://bucket/run/lock", "xb") as file:
        file.write(b"mine")
    with pytest.raises(FileExistsError), fsspec.open("gs://bucket/run/lock", "xb") as file:
        file.write(b"theirs")
    assert (folder / "lock").read_bytes() == b"mine"


def test_walking_loses_the_scheme(server, folder):
    """So folders are walked with `glob` and `iterdir`."""
    (folder / "a").write_text("1")
    assert [(str(root), names) for root, _, names in folder.walk()] == [("bucket/run", ["a"])]


def test_a_bucket_that_is_not_there_is_not_found(server, fresh_clients):
    path = epath.Path("gs://none/a")
    assert not path.exists()
    with pytest.raises(FileNotFoundError):
        path.read_bytes()
    with pytest.raises(FileNotFoundError):
        path.write_bytes(b"1")
