"""A storage server for each test, to which the clients in this process go."""

import os

import pytest

from tests.storage.server import StorageServer

os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"  # gcsfs reads it when it is imported


@pytest.fixture
def server(monkeypatch):
    with StorageServer() as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        yield server


@pytest.fixture
def fresh_clients(monkeypatch):
    """Clients that have seen no bucket, and that keep no listings, as several processes must."""
    import fsspec
    import gcsfs
    from etils.epath import backend

    monkeypatch.setitem(fsspec.config.conf, "gcs", {"use_listings_cache": False})
    gcsfs.GCSFileSystem.clear_instance_cache()
    backend.fsspec_backend._get_filesystem.cache_clear()
    yield
    backend.fsspec_backend._get_filesystem.cache_clear()
