"""Every test of the experiments starts without a Gin configuration."""

import gin
import pytest


@pytest.fixture(autouse=True)
def clean_gin():
    """A test that parses files locks the configuration, which the next one may set."""
    yield
    gin.clear_config()
