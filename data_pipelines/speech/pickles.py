"""The steps of pickles of arrays, walked through without calling what they name.

A pickle is a program. `Pickle` follows its steps on a stack: a name is a name, the instance of a
class is a `Record` of its attributes, and of functions only those count that lay out an array,
whose result is made here. Everything else is refused by name. What a file may claim is bound by
what it holds: arrays lie over its bytes.
"""

from __future__ import annotations

import dataclasses
import pickletools
import re
from collections.abc import Callable, Hashable
from typing import Any

import ml_dtypes
import numpy as np

from lst_jax.settings import list_names, one_line

_MOST_STEPS = 2**22  # of a pickle; a checkpoint takes some 50 a tensor

_TORCH_TYPES: dict[str, Any] = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
    "ComplexFloatStorage": np.complex64,
    "ComplexDoubleStorage": np.complex128,
    "UntypedStorage": np.uint8,
}
# Names of `torch.dtype`s, which tensors of the newest types carry beside their bytes.
_TORCH_DTYPES: dict[str, Any] = {
    f"torch.{np.dtype(kind).name}": kind for kind in _TORCH_TYPES.values()
} | {
    "torch.uint16": np.uint16,
    "torch.uint32": np.uint32,
    "torch.uint64": np.uint64,
    "torch.float8_e4m3fn": ml_dtypes.float8_e4m3fn,
    "torch.float8_e5m2": ml_dtypes.float8_e5m2,
}


@dataclasses.dataclass(eq=False, repr=False)
class Record:
    """An instance of a class, which stays a description.

    Attributes:
      name: of the class with its module.
      arguments: what it would have been made with.
      state: what its attributes would have been set from, usually a mapping of them.
      entries: what it would hold as a mapping.
    """

    name: str
    arguments: Any = ()
    state: Any = None
    entries: dict[Any, Any] = dataclasses.field(default_factory=dict)

    def attribute(self, name: str) -> Any:
        """Returns an attribute, None where there is none."""
        return self.state.get(name) if isinstance(self.state, dict) else None


def describe(value: Any) -> str:
    """Returns what a value of such a file is, in a few words, however large it is."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape}"
    if isinstance(value, Record):
        return f"a {value.name}"
    if isinstance(value, dict):
        keys = [key if isinstance(key, str) else type(key).__name__ for key in value]
        return f"a mapping of {list_names(keys) or 'nothing'}"
    if isinstance(value, _Name):
        return f"the name {value.name}"
    return f"a {type(value).__name__.strip('_').lower()}"


def storage_type(kind: Any) -> Any:
    """Returns the type of the numbers in a storage that is named so."""
    name = kind.name.rpartition(".")[2] if isinstance(kind, _Name) else ""
    if name not in _TORCH_TYPES:
        raise ValueError(f"it has a storage of {describe(kind)}, expected of numbers")
    return _TORCH_TYPES[name]


def exactly(stream: Any, count: int) -> bytes:
    """Reads so many bytes, or refuses the file as cut."""
    data = stream.read(count)
    if len(data) != count:
        raise ValueError(f"it is cut: {len(data)} bytes where {count} are announced")
    return data


@dataclasses.dataclass(frozen=True)
class _Name:
    """A function or class that a pickle names."""

    name: str


@dataclasses.dataclass(eq=False)
class _Storage:
    """The numbers (S,) that tensors are views of; a tensor is no storage, as it may repeat some."""

    numbers: np.ndarray


@dataclasses.dataclass(eq=False)
class _Unmade:
    """An object whose making takes a second step, the one that sets its state."""

    kind: str
    arguments: Any
    made: Any = None


_MARK = object()
_WRAPPER = "joblib.numpy_pickle.NumpyArrayWrapper"
_DTYPE = re.compile(r"[<>=|]?(?:[biufc?][0-9]{0,2}|[SU][1-9][0-9]{0,5})")
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_EMPTY = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": set}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
# Steps that put on the stack what follows them in the file.
_VALUES = frozenset(
    code.name
    for code in pickletools.opcodes
    if code.arg and not code.stack_before
    if code.stack_after and code.stack_after != [pickletools.anyobject]
)
_NOTHING = frozenset(["PROTO", "FRAME", "READONLY_BUFFER"])


class Pickle:
    """The steps of one pickle on its stack, none of which leaves it."""

    def __init__(
        self,
        stream: Any,
        storage: Callable[[Any, str, int], np.ndarray] | None = None,
        largest: int = 0,
        *,
        lay_out: bool = True,
    ) -> None:
        """Takes a pickle where the stream stands.

        Args:
          stream: of bytes; read up to the pickle's end, and where joblib's arrays lie in it.
          storage: gives the numbers of a tensor's storage by its type, key and size.
          largest: bytes that a tensor may claim.
          lay_out: whether tensors are made of storages, or left out.
        """
        self._stream, self._storage, self._largest = stream, storage, largest
        self._lay_out = lay_out
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._steps = 0

    def run(self) -> Any:
        """Returns what the pickle describes."""
        for opcode, argument, _ in pickletools.genops(self._stream):
            self._spend(1)
            if opcode.name == "STOP":
                return self._pop()
            self._step(opcode.name, argument)
        raise ValueError("it is cut")

    def _spend(self, steps: int) -> None:
        self._steps += steps
        if self._steps > _MOST_STEPS:
            raise ValueError(f"it takes over {_MOST_STEPS} steps to read")

    def _pop(self) -> Any:
        value = self._stack.pop()
        if value is _MARK:
            raise ValueError("a mark is no value")
        return value

    def _pop_mark(self) -> list[Any]:
        """Returns what was put on the stack since the last mark."""
        for place in range(len(self._stack) - 1, -1, -1):
            if self._stack[place] is _MARK:
                break
        else:
            raise ValueError("a mark is missing")
        items = self._stack[place + 1 :]
        del self._stack[place:]
        return items

    def _step(self, step: str, argument: Any) -> None:
        stack = self._stack
        if step in _VALUES:
            stack.append(argument)
        elif step in _CONSTANTS:
            stack.append(_CONSTANTS[step])
        elif step in _EMPTY:
            stack.append(_EMPTY[step]())
        elif step in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self._memo[len(self._memo) if argument is None else argument] = stack[-1]
        elif step in ("GET", "BINGET", "LONG_BINGET"):
            value = self._memo[argument]
            made = value.made if isinstance(value, _Unmade) else None
            stack.append(value if made is None else made)
        elif step == "MARK":
            stack.append(_MARK)
        elif step == "POP":
            stack.pop()
        elif step == "POP_MARK":
            self._pop_mark()
        elif step == "DUP":
            stack.append(stack[-1])
        elif step in _TUPLES:
            stack.append(tuple(reversed([self._pop() for _ in range(_TUPLES[step])])))
        elif step == "TUPLE":
            stack.append(tuple(self._pop_mark()))
        elif step == "LIST":
            stack.append(self._pop_mark())
        elif step == "FROZENSET":
            stack.append(frozenset(map(_key, self._pop_mark())))
        elif step == "DICT":
            items = self._pop_mark()
            stack.append({})
            self._set_items(items)
        elif step in ("APPEND", "APPENDS"):
            items = [self._pop()] if step == "APPEND" else self._pop_mark()
            self._top(list, "appends to").extend(items)
        elif step == "ADDITEMS":
            items = self._pop_mark()
            self._top(set, "adds to").update(map(_key, items))
        elif step == "SETITEM":
            self._set_items([self._pop(), self._pop()][::-1])
        elif step == "SETITEMS":
            self._set_items(self._pop_mark())
        elif step == "GLOBAL":
            stack.append(_Name(argument.replace(" ", ".", 1)))
        elif step == "STACK_GLOBAL":
            name, module = self._pop(), self._pop()
            if not isinstance(name, str) or not isinstance(module, str):
                raise ValueError(f"a name is {describe(module)} and {describe(name)}")
            stack.append(_Name(f"{module}.{name}"))
        elif step == "REDUCE":
            arguments, function = self._pop(), self._pop()
            stack.append(self._call(function, arguments))
        elif step == "NEWOBJ":
            arguments, kind = self._pop(), self._pop()
            stack.append(_instance(kind, arguments))
        elif step == "NEWOBJ_EX":
            named, arguments, kind = self._pop(), self._pop(), self._pop()
            stack.append(_instance(kind, (arguments, named)))
        elif step == "BUILD":
            state = self._pop()
            stack.append(self._build(self._pop(), state))
        elif step == "BINPERSID":
            stack.append(self._persistent(self._pop()))
        elif step not in _NOTHING:
            raise ValueError(f"it takes the step {step}, which no file of arrays has")

    def _top(self, kind: type, does: str) -> Any:
        """Returns what is on top of the stack, which must be of a kind."""
        top = self._stack[-1]
        if isinstance(top, Record) and kind is dict:
            top = top.entries
        if not isinstance(top, kind):
            raise ValueError(f"it {does} {describe(top)}")
        return top

    def _set_items(self, items: list[Any]) -> None:
        target = self._top(dict, "sets items of")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_key(key)] = value

    def _call(self, function: Any, arguments: Any) -> Any:
        """Returns what a function of the few that are known would give."""
        name = function.name if isinstance(function, _Name) else ""
        module, _, last = name.rpartition(".")
        if not isinstance(arguments, tuple) or not name:
            raise ValueError(f"it calls {describe(function)}, which is not run")
        package = module.partition(".")[0]
        if package == "torch" and last in _TENSORS:
            return _TENSORS[last](self, *arguments)
        if name in ("collections.OrderedDict", "collections.defaultdict"):
            pairs = arguments[0] if last == "OrderedDict" and arguments else []
            self._spend(len(pairs))
            return {_key(key): value for key, value in pairs}
        if package == "numpy" and last in ("_reconstruct", "dtype"):
            made = _dtype(arguments[0]) if last == "dtype" else None
            return _Unmade(last, arguments, made)
        if package == "numpy" and last == "scalar":
            return _from_bytes(arguments[1], arguments[0], ())[()]
        if package == "numpy" and last == "_frombuffer":
            data, dtype, shape, order = arguments
            return _from_bytes(data, dtype, shape, order)
        if name == "_codecs.encode":
            text, encoding = arguments
            self._spend(len(text) // 64)
            if encoding not in ("latin1", "latin-1") or not isinstance(text, str):
                raise ValueError("it encodes text otherwise than latin1")
            return text.encode("latin-1")
        if package in ("builtins", "__builtin__") and last in ("bytes", "bytearray"):
            return b"" if not arguments else _bytes(*arguments)
        if name in ("builtins.set", "__builtin__.set"):
            self._spend(len(arguments[0]))
            return set(map(_key, arguments[0]))
        if name in ("copyreg._reconstructor", "copy_reg._reconstructor"):
            return _instance(arguments[0], arguments[1:])
        if module.startswith("numpy.random"):  # states of generators, which some models keep
            return Record(name, arguments)
        raise ValueError(f"it calls {one_line(name)[:80]}, which is not run; expected arrays alone")

    def _build(self, target: Any, state: Any) -> Any:
        """Returns an object with its state set."""
        if isinstance(target, Record):
            target.state = state
            return target
        if isinstance(target, dict):  # attributes of an OrderedDict, such as a module's versions
            return target
        if not isinstance(target, _Unmade):
            raise ValueError(f"it sets the state of {describe(target)}")
        if target.kind == "dtype":
            order = state[1]
            if order not in ("<", ">", "|", "=") or any(state[2:5]):
                raise ValueError("it has an array of a type other than numbers or text")
            dtype = _dtype(target.arguments[0])
            target.made = dtype if order in "|=" else dtype.newbyteorder(order)
        elif target.kind == "_reconstruct":
            _, shape, dtype, by_columns, data = state
            target.made = _from_bytes(data, dtype, shape, "F" if by_columns else "C")
        else:
            target.made = self._inline(state)
        return target.made

    def _inline(self, state: dict[str, Any]) -> np.ndarray:
        """Reads the array that joblib laid into the stream after its description."""
        dtype, shape = state["dtype"], state["shape"]
        if state.get("numpy_array_alignment_bytes") is not None:
            exactly(self._stream, exactly(self._stream, 1)[0])
        if not isinstance(dtype, np.dtype):
            raise ValueError("it has an array of a type other than numbers or text")
        data = exactly(self._stream, _count(shape) * dtype.itemsize)
        return _from_bytes(data, dtype, shape, state["order"])

    def _persistent(self, found: Any) -> Any:
        """Returns the numbers of a storage that PyTorch keeps beside the pickle."""
        what, kind, key, _, size, *view = found
        good = what == "storage" and isinstance(key, str) and isinstance(size, int) and size >= 0
        if not good or any(view) or self._storage is None:
            raise ValueError("it refers to something outside, expected a storage of tensors")
        return _Storage(self._storage(kind, key, size))

    def _tensor(
        self, storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any
    ) -> np.ndarray | None:
        """Returns the view of a storage that a tensor is."""
        if not self._lay_out:
            return None
        if not isinstance(storage, _Storage):
            raise ValueError(f"it has a tensor over {describe(storage)}, expected a storage")
        storage = storage.numbers
        size, count = storage.itemsize, _count(shape)
        whole = isinstance(offset, int) and offset >= 0 and len(strides) == len(shape)
        if not whole or not all(isinstance(x, int) and 0 <= x < 2**62 for x in strides):
            raise ValueError("it has a tensor of impossible strides")
        last = offset + sum((n - 1) * x for n, x in zip(shape, strides, strict=True))
        if count and (last >= storage.size or count * size > self._largest):
            raise ValueError(
                f"it has a tensor {shape} over {last + 1} numbers of a storage of {storage.size}"
            )
        if not count:
            return np.zeros(shape, storage.dtype)
        steps = tuple(x * size for x in strides)
        return np.lib.stride_tricks.as_strided(storage[offset:], shape, steps, writeable=False)

    def _typed_tensor(
        self, storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any
    ) -> np.ndarray | None:
        """Returns a tensor whose storage has bytes of a type that is named beside it."""
        name = rest[2].name if isinstance(rest[2], _Name) else ""
        if name not in _TORCH_DTYPES:
            raise ValueError(f"it has a tensor of {name[:80]}, expected numbers")
        typed = _Storage(storage.numbers.view(_TORCH_DTYPES[name]))
        return self._tensor(typed, offset, shape, strides)

    def _subclass(self, function: Any, kind: Any, arguments: Any, state: Any) -> Any:
        return self._call(function, arguments)


_TENSORS: dict[str, Callable[..., Any]] = {
    "_rebuild_tensor": Pickle._tensor,
    "_rebuild_tensor_v2": Pickle._tensor,
    "_rebuild_tensor_v3": Pickle._typed_tensor,
    "_rebuild_from_type_v2": Pickle._subclass,
    "_rebuild_parameter": lambda pickle, data, *rest: data,
    "Size": lambda pickle, sizes: sizes,
    "device": lambda pickle, *names: None,
}


def _key(value: Any) -> Hashable:
    """Returns a key of a mapping; hashing tuples within tuples may never end."""
    if not isinstance(value, str | bytes | int | float | None):
        raise ValueError(f"it has {describe(value)} as a key, expected text or a number")
    return value


def _instance(kind: Any, arguments: Any) -> Any:
    if not isinstance(kind, _Name):
        raise ValueError(f"it makes an instance of {describe(kind)}")
    return _Unmade("joblib", arguments) if kind.name == _WRAPPER else Record(kind.name, arguments)


def _dtype(text: Any) -> np.dtype:
    if not isinstance(text, str) or not _DTYPE.fullmatch(text):
        raise ValueError("it has an array of a type other than numbers or text")
    return np.dtype(text)


def _count(shape: Any) -> int:
    """Returns the numbers of an array; its shape must be one."""
    good = isinstance(shape, tuple) and len(shape) <= 32
    if not good or not all(type(x) is int and 0 <= x < 2**62 for x in shape):
        raise ValueError("it has an array of an impossible shape")
    count = 1
    for size in shape:
        count *= size
    return count


def _bytes(data: Any) -> bytes | bytearray:
    if isinstance(data, str):  # as Python 2 wrote them
        data = data.encode("latin-1")
    if not isinstance(data, bytes | bytearray):
        raise ValueError(f"it has {describe(data)} where the bytes of an array are expected")
    return data


def _from_bytes(data: Any, dtype: Any, shape: Any, order: Any = "C") -> np.ndarray:
    """Returns an array over bytes that hold exactly it."""
    if not isinstance(dtype, np.dtype):
        raise ValueError("it has an array of a type other than numbers or text")
    data, count = _bytes(data), _count(shape)
    if len(data) != count * dtype.itemsize or order not in ("C", "F"):
        raise ValueError(f"it has {len(data)} bytes for an array {dtype} {shape}")
    return np.frombuffer(data, dtype).reshape(shape, order=order)
