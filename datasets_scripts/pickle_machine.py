"""The part of Python's pickle machine that builds plain values and arrays of numbers, and runs nothing."""

import pickletools
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import numpy as np

from .schema import RowError

MAX_OPCODES = 4_000_000  # Text2Shape's largest ShapeNet pickle should have 2 million
ELEMENT_TYPES = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f4", "f8")

CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
LITERALS = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES",
    "BINBYTES8",
}  # fmt: skip

Leaf: TypeAlias = "bool | int | float | str | None"


class Name(NamedTuple):
    """A function or class that the pickle names; it is never looked up."""

    module: str
    name: str


class ElementType(NamedTuple):
    """What stands for a `numpy.dtype`."""

    code: str

    def values(self, content: object, count: int) -> list[Leaf]:
        """That many numbers from an array's bytes, which pickles of protocol 2 hold as text."""
        raw = content.encode("latin-1") if isinstance(content, str) else content
        element = np.dtype(self.code).newbyteorder("<")
        if not isinstance(raw, bytes) or len(raw) != count * element.itemsize:
            raise RowError(f"an array of {count} elements must have their bytes, got others")
        return np.frombuffer(raw, element).tolist()


class Array:
    """What stands for a `numpy.ndarray` of one axis; its bytes become numbers once they are asked for."""

    def __init__(self) -> None:
        self.element, self.count = ElementType("u1"), 0
        self.content: bytes | str = b""


class PickleMachine:
    """The part of Python's pickle machine that builds plain values.

    `pickle.Unpickler` with a `find_class` of its own is not enough: its memo can be made to ask for 32 GB by five
    bytes, and a dict key of nested tuples to hash for ever.
    """

    def __init__(self) -> None:
        self.stack: list[object] = []
        self.below: list[list[object]] = []  # the stacks under each open mark
        self.memo: dict[int, object] = {}
        self.steps: dict[str, Callable[[], None]] = {
            "EMPTY_LIST": lambda: self.push([]),
            "EMPTY_SET": lambda: self.push([]),
            "EMPTY_DICT": lambda: self.push({}),
            "EMPTY_TUPLE": lambda: self.push([]),
            "TUPLE1": lambda: self.join(1),
            "TUPLE2": lambda: self.join(2),
            "TUPLE3": lambda: self.join(3),
            "LIST": lambda: self.push(self.close_mark()),
            "TUPLE": lambda: self.push(self.close_mark()),
            "FROZENSET": lambda: self.push(self.close_mark()),
            "DICT": lambda: self.push(pairs(self.close_mark())),
            "APPEND": lambda: self.extend([self.stack.pop()]),
            "APPENDS": lambda: self.extend(self.close_mark()),
            "ADDITEMS": lambda: self.extend(self.close_mark()),
            "SETITEM": lambda: self.update([self.stack.pop(-2), self.stack.pop()]),
            "SETITEMS": lambda: self.update(self.close_mark()),
            "MARK": self.open_mark,
            "POP": self.drop,
            "POP_MARK": lambda: self.drop(marked=True),
            "DUP": lambda: self.push(self.stack[-1]),
            "MEMOIZE": lambda: self.memo.update({len(self.memo): self.stack[-1]}),
            "STACK_GLOBAL": self.push_name,
            "REDUCE": lambda: self.push(called(self.stack.pop(-2), self.stack.pop())),
            "BUILD": lambda: set_state(self.stack[-2], self.stack.pop()),
            "PROTO": lambda: None,
            "FRAME": lambda: None,
            "STOP": lambda: None,
        }

    def run(self, content: bytes) -> object:
        """The value that the pickle builds."""
        for number, (opcode, argument, _) in enumerate(pickletools.genops(content)):
            if number >= MAX_OPCODES:
                raise RowError(f"it has more than {MAX_OPCODES} opcodes")
            self.step(opcode.name, argument)
        return self.stack.pop()

    def step(self, name: str, argument: object) -> None:
        """Do what one opcode asks for."""
        if name in LITERALS:
            self.push(argument)
        elif name in CONSTANTS:
            self.push(CONSTANTS[name])
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[int(str(argument))] = self.stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            self.push(self.memo[int(str(argument))])
        elif name == "GLOBAL":
            self.push(Name(*str(argument).split(" ", 1)))
        elif name in self.steps:
            self.steps[name]()
        else:
            raise RowError(f"it holds {name}, which plain values don't need")

    def push(self, value: object) -> None:
        """Put a value on the stack, whichever it is by then: a closed mark changes it."""
        self.stack.append(value)

    def push_name(self) -> None:
        """Make the last two texts a name."""
        module, name = self.stack.pop(-2), self.stack.pop()
        if not isinstance(module, str) or not isinstance(name, str):
            raise RowError("it names a function by what isn't a text")
        self.push(Name(module, name))

    def join(self, size: int) -> None:
        """Make the last values a tuple, for which we have lists."""
        self.stack[-size:] = [self.stack[-size:]]

    def open_mark(self) -> None:
        """Begin a stack of its own."""
        self.below.append(self.stack)
        self.stack = []

    def close_mark(self) -> list[object]:
        """What came since the last mark, taken off."""
        found, self.stack = self.stack, self.below.pop()
        return found

    def drop(self, marked: bool = False) -> None:
        """Take off the last value, or all since the last mark."""
        if marked or not self.stack:
            self.close_mark()
        else:
            self.stack.pop()

    def extend(self, items: list[object]) -> None:
        """Append to the list that is last on the stack."""
        if not isinstance(self.stack[-1], list):
            raise RowError("it appends to what isn't a list")
        self.stack[-1].extend(items)

    def update(self, items: list[object]) -> None:
        """Put keys and values into the dict that is last on the stack."""
        if not isinstance(self.stack[-1], dict):
            raise RowError("it sets items of what isn't a dict")
        self.stack[-1].update(pairs(items))


def pairs(items: list[object]) -> dict[str, object]:
    """A dict of keys and values in turn; the keys as text, which is all that JSON has."""
    if any(not isinstance(key, str | int) for key in items[::2]):
        raise RowError("a dict's keys must be texts or whole numbers")
    return {str(key): value for key, value in zip(items[::2], items[1::2], strict=True)}


def called(name: object, arguments: object) -> object:
    """What calling one of the few functions that plain pickles name would give.

    Raises:
        RowError: If it is another.
    """
    if not isinstance(name, Name) or not isinstance(arguments, list):
        raise RowError("it calls what isn't a function")
    module, function = name
    module = {"numpy._core.multiarray": "numpy.core.multiarray", "__builtin__": "builtins"}.get(module, module)
    match (module, function, arguments):
        case "numpy.core.multiarray", "_reconstruct", _:
            return Array()
        case "numpy.core.multiarray", "scalar", [ElementType() as element, content]:
            return element.values(content, 1)[0]
        case "numpy", "dtype", [str(code), *_] if code in ELEMENT_TYPES:
            return ElementType(code)
        case "_codecs", "encode", [str(text), "latin1"]:
            return text
        case "collections", "defaultdict" | "OrderedDict", _:
            return {}
        case "builtins", "set" | "frozenset" | "list", [list(items)]:
            return items
    raise RowError(f"it calls `{module}.{function}`, which could do anything")


def set_state(target: object, state: object) -> None:
    """Give an array or an element type its state; both have little-endian bytes and one axis.

    Raises:
        RowError: If it is another state, or of another value.
    """
    match target, state:
        case ElementType(), [_, "<" | "|" | "=", *_]:
            return
        case Array(), [_, [int(count)], ElementType() as element, _, bytes() | str() as content] if count >= 0:
            target.count, target.element, target.content = count, element, content
        case _:
            raise RowError("it sets a state that no array of one axis has")
