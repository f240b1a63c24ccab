"""LLVM code that multiplies a matrix of few rows with a large one, for any width of vectors.

The few rows of A are laid out anew: its columns one after another, each padded to whole vectors by repeating its last
element. Each element of B, read where it lies, is broadcast and multiplied with a column of A, which adds up columns of
C. These, too, are few numbers each, and are transposed in the end. So B, which is large, is read once and never copied.

Padding computes what the last row does, and where a block overhangs an edge it is moved back: what is computed twice
is stored twice, the same. No code for remainders is needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

FLOAT_BYTES = 4
LINE_BYTES = 64


@dataclass(frozen=True)
class Target:
    """What the code is made for.

    Attributes
    ----------
    width : how many floats a vector holds
    registers : how many vectors the processor holds
    """

    width: int
    registers: int

    @property
    def tiles(self) -> dict[int, int]:
        """How many columns of C are added up in registers at once, by the number of vectors that each has."""
        return {1: 16, 2: 12, 3: 8, 4: 6} if self.registers >= 32 else {1: 8, 2: 6, 3: 4}

    @property
    def least(self) -> int:
        """The least number of columns of A, and of C, for which the code is right."""
        return max(self.width, *self.tiles.values())

    def padded(self, rows: int) -> int:
        """The length of a column of A that is laid out anew."""
        return -(-rows // self.width) * self.width


class Code:
    """Writes the instructions of a function."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.vector = f"<{target.width} x float>"
        self.lines: list[str] = []
        self._names = 0
        self.block = "start"

    def name(self) -> str:
        self._names += 1
        return f"v{self._names}"

    def do(self, instruction: str) -> None:
        self.lines.append(f"  {instruction}")

    def value(self, instruction: str) -> str:
        name = f"%{self.name()}"
        self.do(f"{name} = {instruction}")
        return name

    def begin(self, block: str) -> None:
        self.lines.append(f"{block}:")
        self.block = block

    def add(self, a: object, b: object) -> str:
        return self.value(f"add i64 {a}, {b}")

    def subtract(self, a: object, b: object) -> str:
        return self.value(f"sub i64 {a}, {b}")

    def times(self, a: object, b: object) -> str:
        return self.value(f"mul i64 {a}, {b}")

    def least(self, a: object, b: object) -> str:
        return self.value(f"call i64 @llvm.smin.i64(i64 {a}, i64 {b})")

    def floats(self, count: object) -> str:
        return self.times(count, FLOAT_BYTES)

    def at(self, pointer: str, offset_bytes: object) -> str:
        return self.value(f"getelementptr i8, ptr {pointer}, i64 {offset_bytes}")

    def load(self, pointer: str) -> str:
        return self.value(f"load {self.vector}, ptr {pointer}, align {FLOAT_BYTES}")

    def store(self, vector: str, pointer: str) -> None:
        self.do(f"store {self.vector} {vector}, ptr {pointer}, align {FLOAT_BYTES}")

    def vectors_at(self, pointer: str, count: int) -> list[str]:
        """Pointers to vectors one after another."""
        return [self.at(pointer, place * self.target.width * FLOAT_BYTES) for place in range(count)]

    def broadcast(self, pointer: str) -> str:
        """A vector of one float."""
        number = self.value(f"load float, ptr {pointer}, align {FLOAT_BYTES}")
        first = self.value(f"insertelement {self.vector} poison, float {number}, i64 0")
        return self.value(
            f"shufflevector {self.vector} {first}, {self.vector} poison, <{self.target.width} x i32> zeroinitializer"
        )

    def multiply_add(self, a: str, b: str, c: str) -> str:
        product = self.value(f"fmul contract {self.vector} {a}, {b}")
        return self.value(f"fadd contract {self.vector} {product}, {c}")

    def prefetch(self, pointer: str) -> None:
        self.do(f"call void @llvm.prefetch.p0(ptr {pointer}, i32 0, i32 2, i32 1)")

    @contextmanager
    def loop(self, start: object, stop: object, step: object) -> Iterator[str]:
        """The instructions written within are repeated while the index, which this gives, is below `stop`."""
        with self.carrying_loop(start, stop, step, "i64", ()) as (index, _, _next):
            yield index

    @contextmanager
    def carrying_loop(
        self, start: object, stop: object, step: object, type: str, first: Sequence[str]
    ) -> Iterator[tuple[str, list[str], list[str]]]:
        """A loop that carries values from one round to the next.

        Gives the index, the values, and a list to which to add the next ones. After the loop the values are those at
        its end.
        """
        name = self.name()
        before, head, body, end = self.block, f"{name}.head", f"{name}.body", f"{name}.end"
        self.do(f"br label %{head}")
        self.begin(head)
        index = f"%{name}"
        values = [f"%{self.name()}" for _ in first]
        following: list[str] = []
        place = len(self.lines)
        test = self.value(f"icmp slt i64 {index}, {stop}")
        self.do(f"br i1 {test}, label %{body}, label %{end}")
        self.begin(body)
        yield index, values, following
        next_index = self.add(index, step)
        back = self.block
        self.do(f"br label %{head}")
        phis = [f"  {index} = phi i64 [ {start}, %{before} ], [ {next_index}, %{back} ]"]
        for value, old, new in zip(values, first, following, strict=True):
            phis.append(f"  {value} = phi {type} [ {old}, %{before} ], [ {new}, %{back} ]")
        self.lines[place:place] = phis
        self.begin(end)

    def function(self, name: str, parameters: str, linkage: str = "internal") -> str:
        """The text of the function with the instructions so far; letters in capitals name pointers."""
        declared = ", ".join(
            f"{'ptr' if parameter.isupper() else 'i64'} %{parameter}" for parameter in parameters.split()
        )
        body = "\n".join([*self.lines, "  ret void"])
        return f"define {linkage} void @{name}({declared}) nounwind {{\nstart:\n{body}\n}}\n"


def module_text(target: Target) -> str:
    """The module with the function `multiply`.

    Its parameters:

    A, B, C, SCRATCH : where the matrices lie, and memory for `scratch_floats` floats
    a_stride, c_stride : bytes from a row to the next
    b_stride, b_column_stride : bytes from an element of B to the next one in its column, and in its row
    rows, depth, columns : of A, of B, of B
    block : how many rows of B are used for all columns before the next ones
    fetch, fetch_stride : what to fetch while a tile is computed: so many bytes beyond the first row of B that is in
        use, and so many more for each column
    """
    return "\n".join(
        [
            "declare void @llvm.prefetch.p0(ptr, i32, i32, i32)",
            "declare i64 @llvm.smin.i64(i64, i64)",
            _transpose(target),
            *(_pass(target, vectors) for vectors in target.tiles),
            _multiply(target),
        ]
    )


def _transpose(target: Target) -> str:
    """Y[j][i] = X[i][j] for i < rows and j < columns. Rows of X beyond x_last, and of Y beyond y_last, are those."""
    code, width = Code(target), target.width
    rows_end, columns_end = code.subtract("%rows", width), code.subtract("%columns", width)
    with code.loop(0, "%rows", width) as i, code.loop(0, "%columns", width) as j:
        i, j = code.least(i, rows_end), code.least(j, columns_end)
        source, target_column = code.at("%X", code.floats(j)), code.at("%Y", code.floats(i))
        vectors = []
        for place in range(width):
            row = code.least(code.add(i, place), "%x_last")
            vectors.append(code.load(code.at(source, code.times(row, "%x_stride"))))
        for place, vector in enumerate(_transposed(code, vectors)):
            row = code.least(code.add(j, place), "%y_last")
            code.store(vector, code.at(target_column, code.times(row, "%y_stride")))
    return code.function("transpose", "X x_stride x_last Y y_stride y_last rows columns")


def _transposed(code: Code, vectors: list[str]) -> list[str]:
    """The columns of the square matrix of these rows: blocks off the diagonal change places, ever smaller ones."""
    width = len(vectors)

    def shuffled(a: str, b: str, lanes: Sequence[int]) -> str:
        mask = ", ".join(f"i32 {lane}" for lane in lanes)
        return code.value(f"shufflevector {code.vector} {a}, {code.vector} {b}, <{width} x i32> <{mask}>")

    distance = width // 2
    while distance:
        for upper in (row for row in range(width) if not row & distance):
            a, b = vectors[upper], vectors[upper + distance]
            left = [lane + width - distance if lane & distance else lane for lane in range(width)]
            right = [lane + width if lane & distance else lane + distance for lane in range(width)]
            vectors[upper], vectors[upper + distance] = shuffled(a, b, left), shuffled(a, b, right)
        distance //= 2
    return vectors


def _pass(target: Target, vectors: int) -> str:
    """Some vectors of the columns of A, times a block of B, added to columns of C or, where `adds` is 0, stored there.

    The last tile is moved back to end at the last column, but its sums lie where they would without that.
    """
    code, count = Code(target), target.tiles[vectors]
    last = code.subtract("%columns", count)
    with code.loop(0, "%columns", count) as start:
        b = code.at("%B", code.times(code.least(start, last), "%b_column_stride"))
        fetched = code.at("%F", code.times(start, "%fetch_stride"))
        elements = [code.at(b, code.times(column, "%b_column_stride")) for column in range(count)]
        columns = [code.at("%C", code.times(code.add(start, column), "%column_bytes")) for column in range(count)]
        places = [place for column in columns for place in code.vectors_at(column, vectors)]
        sums = _sums_so_far(code, places)
        with code.carrying_loop(0, "%depth", 1, code.vector, sums) as (k, carried, following):
            code.prefetch(code.at(fetched, code.times(k, count * FLOAT_BYTES)))
            a_column = code.at("%A", code.times(k, "%column_bytes"))
            a_vectors = [code.load(place) for place in code.vectors_at(a_column, vectors)]
            offset = code.times(k, "%b_stride")
            for element in elements:
                number = code.broadcast(code.at(element, offset))
                for vector in a_vectors:
                    following.append(code.multiply_add(number, vector, carried[len(following)]))
        for value, place in zip(carried, places, strict=True):
            code.store(value, place)
    return code.function(
        f"pass_{vectors}", "A column_bytes B b_stride b_column_stride C depth columns adds F fetch_stride"
    )


def _sums_so_far(code: Code, places: Sequence[str]) -> list[str]:
    start, later, ready = code.block, code.name(), code.name()
    is_first = code.value("icmp eq i64 %adds, 0")
    code.do(f"br i1 {is_first}, label %{ready}, label %{later}")
    code.begin(later)
    found = [code.load(place) for place in places]
    code.do(f"br label %{ready}")
    code.begin(ready)
    return [code.value(f"phi {code.vector} [ zeroinitializer, %{start} ], [ {old}, %{later} ]") for old in found]


def _multiply(target: Target) -> str:
    code, width = Code(target), target.width
    vectors = code.value(f"udiv i64 {code.add('%rows', width - 1)}, {width}")
    padded = code.times(vectors, width)
    column_bytes = code.floats(padded)
    last_row = code.subtract("%rows", 1)
    code.do(
        f"call void @transpose(ptr %A, i64 %a_stride, i64 {last_row}, ptr %SCRATCH, i64 {column_bytes}, "
        f"i64 {code.subtract('%depth', 1)}, i64 {padded}, i64 %depth)"
    )
    sums = code.at("%SCRATCH", code.times(column_bytes, "%depth"))
    most = max(target.tiles)
    with code.loop(0, "%depth", "%block") as k:
        depth = code.least(code.subtract("%depth", k), "%block")
        a = code.at("%SCRATCH", code.times(k, column_bytes))
        b = code.at("%B", code.times(k, "%b_stride"))
        fetch = code.at(b, "%fetch")
        with code.loop(0, vectors, most) as vector:
            left = code.least(code.subtract(vectors, vector), most)
            offset = code.floats(code.times(vector, width))
            group_a, group_c = code.at(a, offset), code.at(sums, offset)
            for count in target.tiles:
                with code.when(f"icmp eq i64 {left}, {count}"):
                    code.do(
                        f"call void @pass_{count}(ptr {group_a}, i64 {column_bytes}, ptr {b}, i64 %b_stride, "
                        f"i64 %b_column_stride, ptr {group_c}, i64 {depth}, i64 %columns, i64 {k}, ptr {fetch}, "
                        "i64 %fetch_stride)"
                    )
                    _move_back(code, group_c, column_bytes, count)
    code.do(
        f"call void @transpose(ptr {sums}, i64 {column_bytes}, i64 {code.subtract('%columns', 1)}, ptr %C, "
        f"i64 %c_stride, i64 {last_row}, i64 %columns, i64 {padded})"
    )
    return code.function(
        "multiply",
        "A B C SCRATCH a_stride b_stride b_column_stride c_stride rows depth columns block fetch fetch_stride",
        linkage="dso_local",
    )
