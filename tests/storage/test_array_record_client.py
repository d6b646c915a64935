"""ArrayRecord's `gs://`, which reads and does not write, on the storage server."""

import pathlib

import numpy as np
import pytest
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from tests.storage.asking import insert

pytestmark = pytest.mark.buckets

RECORDS = [np.random.default_rng(i).bytes(50_000 + i) for i in range(40)]
OBJECT = "data/a b-00000-of-00001.array_record"


@pytest.fixture
def path(server, tmp_path):
    file = tmp_path / "a.array_record"
    writer = ArrayRecordWriter(str(file), "group_size:1")
    for record in RECORDS:
        writer.write(record)
    writer.close()
    insert(server, OBJECT, pathlib.Path(file).read_bytes())
    return f"gs://bucket/{OBJECT}"


def test_records_are_read_at_random(server, path):
    with ArrayRecordDataSource(path) as source:
        assert len(source) == len(RECORDS)
        assert source.__getitems__([7, 39, 0]) == [RECORDS[7], RECORDS[39], RECORDS[0]]
    answers = {status for _, _, status in server.requests[1:]}
    assert answers == {206}  # ranges, not files


@pytest.mark.parametrize("status", [429, 503])
def test_passing_errors_are_waited_out(server, path, status):
    fault = server.faults.add(match="^GET", status=status, times=1)
    with ArrayRecordDataSource(path) as source:
        assert source[3] == RECORDS[3]
    assert fault.befell == 1


def test_a_body_that_ends_early_is_read_on(server, path):
    fault = server.faults.add(match="^GET", cut=10_000, times=1)
    with ArrayRecordDataSource(path) as source:
        assert source.__getitems__(range(len(RECORDS))) == RECORDS
    assert fault.befell == 1


@pytest.mark.parametrize("status", [401, 403])
def test_refusals_are_said_at_once(server, path, status):
    server.faults.add(status=status)
    reader = ArrayRecordReader(path)
    assert not reader.ok()
    with pytest.raises(RuntimeError, match=r"Permanent error.*gs://bucket/data/a b-00000"):
        reader.read([0])


def test_an_object_that_is_not_there_has_no_records_and_is_not_ok(server):
    reader = ArrayRecordReader("gs://bucket/none")
    assert not reader.ok() and reader.num_records() == 0
    with pytest.raises(RuntimeError, match="gs://bucket/none"):
        reader.read([0])


def test_nothing_can_be_written(server):
    with pytest.raises(RuntimeError, match="No such file or directory"):
        ArrayRecordWriter("gs://bucket/new", "group_size:1").close()
    assert server.names() == []
