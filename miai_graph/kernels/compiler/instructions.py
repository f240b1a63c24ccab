"""The instructions of a function in LLVM's language, one after another: what all writers of native code do alike."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager


def lane_numbers(lanes: Iterable[int | None]) -> str:
    """What a shuffle takes, as its last operand; None where a lane of the result may be anything."""
    numbers = ["i32 poison" if lane is None else f"i32 {lane}" for lane in lanes]
    return f"<{len(numbers)} x i32> <{', '.join(numbers)}>"


class Instructions:
    """The instructions of a function so far. Values are given by name; integers are 64 bits wide.

    Attributes
    ----------
    text : its lines
    block : the basic block that is being written
    """

    def __init__(self) -> None:
        self.text: list[str] = []
        self.block = "start"
        self._names = 0

    def name(self) -> str:
        """One that is not in use."""
        self._names += 1
        return f"v{self._names}"

    def do(self, instruction: str) -> None:
        """Write an instruction that gives nothing."""
        self.text.append(f"  {instruction}")

    def value(self, instruction: str) -> str:
        """What an instruction gives."""
        name = f"%{self.name()}"
        self.do(f"{name} = {instruction}")
        return name

    def begin(self, block: str) -> None:
        """Begin a basic block; the one before must have ended with a branch."""
        self.text.append(f"{block}:")
        self.block = block

    def add(self, a: object, b: object) -> str:
        """a + b"""
        return self.value(f"add i64 {a}, {b}")

    def subtract(self, a: object, b: object) -> str:
        """a - b"""
        return self.value(f"sub i64 {a}, {b}")

    def times(self, a: object, b: object) -> str:
        """a · b"""
        return self.value(f"mul i64 {a}, {b}")

    def at(self, pointer: str, offset_bytes: object) -> str:
        """The pointer so many bytes further."""
        return self.value(f"getelementptr i8, ptr {pointer}, i64 {offset_bytes}")

    @contextmanager
    def when(self, condition: str) -> Iterator[None]:
        """The instructions written within run only if the condition is true."""
        inside, end = self.name(), self.name()
        self.do(f"br i1 {condition}, label %{inside}, label %{end}")
        self.begin(inside)
        yield
        self.do(f"br label %{end}")
        self.begin(end)

    @contextmanager
    def rounds(
        self, start: object, stop: object, step: object, first: Sequence[tuple[str, str]]
    ) -> Iterator[tuple[str, list[str], list[str]]]:
        """The instructions written within are repeated while the index is below `stop`.

        Gives the index, the names of what is carried from one round to the next, and a list to which to add what the
        next one gets. After the loop the names are those of what the last round gave.

        Parameters
        ----------
        first : the types of what is carried, and what the first round gets
        """
        name, before = self.name(), self.block
        index, head, body, end = f"%{name}", f"{name}.head", f"{name}.body", f"{name}.end"
        carried, following = [f"%{self.name()}" for _ in first], list[str]()
        self.do(f"br label %{head}")
        self.begin(head)
        place = len(self.text)
        more = self.value(f"icmp slt i64 {index}, {stop}")
        self.do(f"br i1 {more}, label %{body}, label %{end}")
        self.begin(body)
        yield index, carried, following
        last, next_index = self.block, self.add(index, step)
        self.do(f"br label %{head}")
        self.text[place:place] = [f"  {index} = phi i64 [ {start}, %{before} ], [ {next_index}, %{last} ]"] + [
            f"  {value} = phi {type} [ {old}, %{before} ], [ {new}, %{last} ]"
            for value, (type, old), new in zip(carried, first, following, strict=True)
        ]
        self.begin(end)
