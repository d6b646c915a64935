"""Programs that the tests of a process compile once: most of the suite's time is XLA's.

A test that makes a model, a training step or a decoder once more makes new jitted functions of the
same programs. JAX keeps a program with its function, and its persistent cache is no help: programs
of several CPU devices that come from there may wait forever for each other's collectives. So within
a process the compiler's entry gives the program that it gave before for the same text, options and
devices.
"""

import contextlib
import functools
import hashlib

from jax._src import compiler


@contextlib.contextmanager
def shared_programs():
    """Compiles every program once until the end."""
    compile_program = compiler.compile_or_get_cached
    programs = {}

    @functools.wraps(compile_program)
    def compile_once(backend, computation, devices, options, host_callbacks, *rest, **others):
        # Locations are left out: the lines of the callers differ, the program does not.
        text = computation.operation.get_asm(enable_debug_info=False)
        arguments = (backend, computation, devices, options, host_callbacks, *rest)
        if host_callbacks or "callback" in text:  # what they call is in no text
            return compile_program(*arguments, **others)
        digest = hashlib.sha256(text.encode()).digest()
        places = tuple(device.id for device in devices.flat)
        key = (id(backend), options.SerializeAsString(), places, digest)
        if key not in programs:  # with its backend, whose id stays taken
            programs[key] = compile_program(*arguments, **others), backend
        return programs[key][0]

    compiler.compile_or_get_cached = compile_once
    try:
        yield
    finally:
        compiler.compile_or_get_cached = compile_program
