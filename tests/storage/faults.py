"""What goes wrong between a client and a storage server, as a test says."""

import dataclasses
import random
import re
import threading


@dataclasses.dataclass
class Fault:
    """One thing that goes wrong with requests.

    Attributes:
      match: regular expression, found in "METHOD path?query" of a request that it befalls. The
        path is as it was sent, with names of objects percent-encoded.
      status: the answer is this error: 429, 500, 503; 401 for credentials that are refused, 403
        for a bucket that is forbidden. None: the request is answered.
      message: of the error; None: what the API says with this status.
      cut: the connection ends after so many bytes of the answer's body, or of the request's with
        `cut_request`; None: it does not.
      cut_request: whether `cut` counts bytes of the request's body. A resumable upload keeps what
        came of a chunk, in whole 256 KiB.
      delay: seconds that pass before the answer.
      late: whether the request is carried out all the same and only its answer is lost, which a
        client cannot tell from a request that never came.
      times: it happens to so many requests; None: to all.
      probability: of befalling a request that it matches.
      seed: of these draws.
    """

    match: str = ""
    status: int | None = None
    message: str | None = None
    cut: int | None = None
    cut_request: bool = False
    delay: float = 0.0
    late: bool = False
    times: int | None = None
    probability: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        self.befell = 0
        self._random = random.Random(self.seed)

    def befalls(self, request: str) -> bool:
        """Draws whether it befalls a request, and counts that it did."""
        if not re.search(self.match, request):
            return False
        if self.times is not None and self.befell >= self.times:
            return False
        if self._random.random() >= self.probability:
            return False
        self.befell += 1
        return True


class Faults:
    """The faults of a server; the first that befalls a request is its fault."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []
        self._lock = threading.Lock()

    def add(self, **fields: object) -> Fault:
        """Adds a fault; fields of `Fault`. Its `befell` counts the requests it befell."""
        fault = Fault(**fields)
        with self._lock:
            self._faults.append(fault)
        return fault

    def clear(self) -> None:
        with self._lock:
            self._faults.clear()

    def of(self, request: str) -> Fault:
        """Returns what befalls a request; nothing is a fault without fields."""
        with self._lock:
            return next((fault for fault in self._faults if fault.befalls(request)), Fault())
