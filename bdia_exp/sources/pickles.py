"""Reads pickles as data, without executing them.

`pickletools.genops` parses the instructions. If one asks to import or call something, the request
is recorded (`Global`, `Call`). No name is ever resolved and no call is made, so a hostile file can
do nothing; the allow-list only gives a clear error message for it.
Python's own unpicklers are not used. Even with an allow-list, `BUILD` can write attributes, hashes
of nested tuples can overflow the C stack, and (in the C version) six bytes can request a memo of
many gigabytes.
"""

import pickletools
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass
from typing import Any, BinaryIO

from bdia_exp.errors import UserError, brief

# Many times more than in the largest published model, and few enough for any machine.
MAX_INSTRUCTIONS = 2_000_000

DICTS = {"builtins dict", "collections OrderedDict", "dnnlib.util EasyDict"}
OBJECT, ENCODE = "copyreg _reconstructor", "_codecs encode"
SETS, BYTES = {"builtins set", "builtins frozenset"}, "builtins bytes"
OLD_NAMES = {"__builtin__": "builtins", "copy_reg": "copyreg"}
"""Modules of Python 2, whose names Python 3 writes in protocols 0 to 2 → their names now."""
PERSISTENT_ID = "pickle persistent_id"
"""Allows persistent ids: each becomes a `Call` of this name with one argument, the id."""


@dataclass(frozen=True, eq=False)
class Global:
    """A name that the file asks to import, as "module name"; never resolved."""

    name: str


@dataclass(eq=False, repr=False)
class Call:
    """A call that the file asks for, and the state to set after it; never made."""

    name: str
    args: tuple
    state: Any = None


def asks(value: Any, *names: str) -> bool:
    """Whether a value is a call of one of these names."""
    return isinstance(value, Call) and value.name in names


def expect(value: Any, *kinds: type) -> Any:
    """`value`, if its type is exactly one of these. Raises ValueError for another type."""
    if type(value) not in kinds:
        raise ValueError(f"{type(value).__name__} where {kinds[0].__name__} belongs")
    return value


def interpret(
    stream: BinaryIO,
    allowed: Set[str],
    counter: Iterator[int],
    made: Callable[[Call], Any] = lambda call: call,
) -> Any:
    """One pickle (protocol 0 to 5) from the stream, as plain values, `Global`s and `Call`s.

    Sets become lists. `made` says what takes the place of a call. It does not use recursion, at any
    depth of nesting. `counter` counts the instructions of all pickles of a file. Raises UserError
    for a name that is not allowed, for an instruction that no file of weights needs, and after
    MAX_INSTRUCTIONS; any other exception for damaged bytes.
    """
    machine = _Machine(allowed, made)
    for op, arg, _ in pickletools.genops(stream):
        if next(counter) >= MAX_INSTRUCTIONS:
            raise UserError(
                f"refused: over {MAX_INSTRUCTIONS:,} instructions, more than in any checkpoint"
            )
        if op.name == "STOP":
            return machine.stack.pop()
        if op.name not in _INSTRUCTIONS:
            raise UserError(f"refused: no file of weights needs the pickle instruction {op.name}")
        _INSTRUCTIONS[op.name](machine, op.name, arg)
    raise ValueError("no STOP")


class _Machine:
    """The stack machine. Each method is one kind of instruction: it takes the instruction's name
    and its argument in the file."""

    def __init__(self, allowed: Set[str], made: Callable[[Call], Any]) -> None:
        self.allowed, self.made = allowed, made
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def take(self, count: int) -> list[Any]:
        items = self.stack[-count:]
        del self.stack[-count:]
        return items

    def since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.outer.pop()
        return items

    def permit(self, name: str) -> str:
        if name not in self.allowed:
            asked = brief(name.replace(" ", "."))
            raise UserError(
                f"refused: it asks for {asked}, which no file of weights needs; "
                "nothing was executed"
            )
        return name

    def skip(self, op: str, arg: Any) -> None:
        pass

    def drop(self, op: str, arg: Any) -> None:
        if op == "POP" and self.stack:
            self.stack.pop()
        else:  # protocol 0 has no other instruction to drop a mark
            self.since_mark()

    def mark(self, op: str, arg: Any) -> None:
        self.outer.append(self.stack)
        self.stack = []

    def remember(self, op: str, arg: Any) -> None:
        self.memo[len(self.memo) if op == "MEMOIZE" else arg] = self.stack[-1]

    def recall(self, op: str, arg: Any) -> None:
        self.stack.append(self.memo[arg])

    def constant(self, op: str, arg: Any) -> None:
        self.stack.append(_FIXED.get(op, arg))

    def new_list(self, op: str, arg: Any) -> None:
        items = self.since_mark() if op == "LIST" else []
        self.stack.append(items)

    def new_dict(self, op: str, arg: Any) -> None:
        items = self.since_mark() if op == "DICT" else []
        self.stack.append({})
        self._enter(items)

    def new_tuple(self, op: str, arg: Any) -> None:
        items = self.take(int(op[-1])) if op[-1].isdecimal() else self.since_mark()
        self.stack.append(tuple(items))

    def extend(self, op: str, arg: Any) -> None:
        items = self.take(1) if op == "APPEND" else self.since_mark()
        expect(self.stack[-1], list).extend(items)

    def update(self, op: str, arg: Any) -> None:
        self._enter(self.take(2) if op == "SETITEM" else self.since_mark())

    def _enter(self, items: list[Any]) -> None:
        keys = [_key(key) for key in items[::2]]
        expect(self.stack[-1], dict).update(zip(keys, items[1::2], strict=True))

    def name(self, op: str, arg: Any) -> None:
        if op == "STACK_GLOBAL":
            module, attribute = (expect(part, str) for part in self.take(2))
            arg = f"{module} {attribute}"
        module, _, attribute = str(arg).partition(" ")
        name = f"{OLD_NAMES.get(module, module)} {attribute}"
        self.stack.append(Global(self.permit(name)))

    def call(self, op: str, arg: Any) -> None:
        callee, args = self.take(2)
        result = _called(expect(callee, Global).name, expect(args, tuple))
        self.stack.append(self.made(result) if isinstance(result, Call) else result)

    def build(self, op: str, arg: Any) -> None:
        state = self.stack.pop()
        # For a dict these are attributes of its class; the entries do not depend on them.
        if isinstance(expect(self.stack[-1], Call, dict), Call):
            self.stack[-1].state = state

    def persistent(self, op: str, arg: Any) -> None:
        self.stack.append(self.made(Call(self.permit(PERSISTENT_ID), (self.stack.pop(),))))


def _key(value: Any) -> Any:
    """A key of a dict: texts and small numbers as they are, others as an object that is equal to
    itself only. The hash of a nested tuple recurses in C without a limit, and large numbers can be
    chosen to have equal hashes."""
    small = type(value) is int and abs(value) < 1 << 60
    return value if small or type(value) is str else Call("key", (value,))


def _called(name: str, args: tuple) -> Any:
    if name in DICTS and not args:
        return {}
    if name in SETS and len(args) == 1:
        return expect(args[0], list)
    if name == BYTES and not args:
        return b""
    if name == OBJECT:  # the class, its base class, and what a dict contains
        name = expect(args[0], Global).name
        return expect(args[2], dict) if name in DICTS else Call(name, ())
    return Call(name, args)


_FIXED = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_KINDS: dict[Callable[[_Machine, str, Any], None], str] = {
    _Machine.skip: "PROTO FRAME",
    _Machine.mark: "MARK",
    _Machine.drop: "POP POP_MARK",
    _Machine.remember: "MEMOIZE BINPUT LONG_BINPUT PUT",
    _Machine.recall: "BINGET LONG_BINGET GET",
    _Machine.constant: "NONE NEWTRUE NEWFALSE EMPTY_TUPLE BININT BININT1 BININT2 LONG1 LONG4 "
    "INT LONG FLOAT UNICODE BINFLOAT SHORT_BINSTRING SHORT_BINUNICODE BINUNICODE "
    "BINUNICODE8 SHORT_BINBYTES BINBYTES BINBYTES8",
    _Machine.new_list: "EMPTY_LIST EMPTY_SET LIST",
    _Machine.new_dict: "EMPTY_DICT DICT",
    _Machine.new_tuple: "TUPLE TUPLE1 TUPLE2 TUPLE3 FROZENSET",
    _Machine.extend: "APPEND APPENDS ADDITEMS",
    _Machine.update: "SETITEM SETITEMS",
    _Machine.name: "GLOBAL STACK_GLOBAL",
    _Machine.call: "REDUCE NEWOBJ",
    _Machine.build: "BUILD",
    _Machine.persistent: "BINPERSID",
}
_INSTRUCTIONS = {op: method for method, ops in _KINDS.items() for op in ops.split()}
"""All instructions that are supported, except STOP; others are refused."""
