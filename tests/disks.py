"""A disk that is full, as a limit on the size of files makes it."""

import contextlib
import resource
import signal


@contextlib.contextmanager
def files_of_at_most(size):
    """No file grows beyond so many bytes while the context is open."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
