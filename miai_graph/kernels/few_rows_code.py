"""LLVM code that multiplies a matrix of few rows with a large one, for any width of vectors.

The rows on the left are few, so all of them are laid out anew, transposed: one after another come the columns of A, each
padded to whole vectors by repeating its last element. Padding thus computes what the last row does, and where a block
overhangs an edge, what is computed there twice is stored twice, the same: no code for remainders is needed.

`multiply` (C = A B) takes a panel of a few vectors of B's columns through the registers, rows of A being broadcast. The
first rows copy the panel as they pass, for those that follow to read it from the nearest cache.
`multiply_transposed` (C = A Bᵀ) reads B as it lies, too, by broadcasting its elements to vectors along A's columns; this
gives Cᵀ, which is small.
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
    def rows(self) -> int:
        """How many rows of A `multiply` takes at once."""
        return 8 if self.registers >= 32 else 6

    @property
    def vectors(self) -> int:
        """How many vectors of a row of B `multiply` takes at once."""
        return 3 if self.registers >= 32 else 2

    @property
    def panel(self) -> int:
        """How many columns of B these are."""
        return self.vectors * self.width

    @property
    def tiles(self) -> dict[int, int]:
        """How many rows of B `multiply_transposed` takes at once, by the number of vectors of a column of A."""
        return {1: 16, 2: 12, 3: 8, 4: 6} if self.registers >= 32 else {1: 8, 2: 6, 3: 4}

    @property
    def least(self) -> int:
        """The least number of columns of A, and of C, for which the code is right."""
        return max(self.panel, self.width, *self.tiles.values())

    def padded(self, rows: int) -> int:
        """The length of a column of A that is laid out anew."""
        return -(-rows // self.width) * self.width


DEPTH = 128
"""How many rows of B a panel has: it stays in the nearest cache."""


class Code:
    """Writes the instructions of a function."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.vector = f"<{target.width} x float>"
        self.lines: list[str] = []
        self._names = 0
        self._block = "start"

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
        self._block = block

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
        before, head, body, end = self._block, f"{name}.head", f"{name}.body", f"{name}.end"
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
        back = self._block
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
    """The module with the functions `multiply` and `multiply_transposed`.

    Both take A, B, C and memory for scratch, then the bytes from one row of A, of B and of C to the next, then how many
    rows A has, columns A has, and columns C has.
    """
    vector = f"<{target.width} x float>"
    return "\n".join(
        [
            "declare void @llvm.prefetch.p0(ptr, i32, i32, i32)",
            "declare i64 @llvm.smin.i64(i64, i64)",
            f"; {vector}",
            _transpose(target),
            _tile(target, "first_tile", packs=True),
            _tile(target, "later_tile", packs=False),
            _multiply(target),
            *(_transposed_pass(target, vectors) for vectors in target.tiles),
            _multiply_transposed(target),
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


def _tile(target: Target, name: str, packs: bool) -> str:
    """Some rows of A times a panel of B, added to C or, where `adds` is 0, stored there.

    A is laid out anew. Rows beyond `last_row` are that one. Either copies the panel to P as it reads it, or fetches a
    column of what is read next, from F.
    """
    code = Code(target)
    stride = "%b_stride"
    rows = [code.at("%C", code.times(code.least(row, "%last_row"), "%c_stride")) for row in range(target.rows)]
    places = [place for row in rows for place in code.vectors_at(row, target.vectors)]
    sums = _sums_so_far(code, places)
    with code.carrying_loop(0, "%depth", 1, code.vector, sums) as (k, carried, following):
        a = code.at("%A", code.times(k, "%a_stride"))
        read = code.at("%B", code.times(k, stride))
        panel = [code.load(place) for place in code.vectors_at(read, target.vectors)]
        if packs:
            copy = code.at("%P", code.times(k, target.panel * FLOAT_BYTES))
            for vector, place in zip(panel, code.vectors_at(copy, target.vectors), strict=True):
                code.store(vector, place)
        else:
            code.prefetch(code.at("%P", code.times(k, "%fetch_stride")))
        for row in range(target.rows):
            number = code.broadcast(code.at(a, row * FLOAT_BYTES))
            for vector in panel:
                following.append(code.multiply_add(number, vector, carried[len(following)]))
    for value, place in zip(carried, places, strict=True):
        code.store(value, place)
    extra = "" if packs else " fetch_stride"
    return code.function(name, "A a_stride B b_stride C c_stride P depth last_row adds" + extra)


def _sums_so_far(code: Code, places: Sequence[str]) -> list[str]:
    code.do("%is_first = icmp eq i64 %adds, 0")
    code.do("br i1 %is_first, label %first, label %later")
    code.begin("later")
    found = [code.load(place) for place in places]
    code.do("br label %first")
    code.begin("first")
    return [code.value(f"phi {code.vector} [ zeroinitializer, %start ], [ {old}, %later ]") for old in found]


def _multiply(target: Target) -> str:
    code, panel = Code(target), target.panel
    panel_bytes, padded_bytes = panel * FLOAT_BYTES, _lay_out_rows(code)
    copy = code.at("%SCRATCH", code.times(padded_bytes, "%depth"))
    last_row = code.subtract("%rows", 1)
    last_column = code.subtract("%columns", panel)
    with code.loop(0, "%columns", panel) as start, code.loop(0, "%depth", DEPTH) as k:
        column = code.floats(code.least(start, last_column))
        next_column = code.floats(code.least(code.add(start, panel), last_column))
        depth = code.least(code.subtract("%depth", k), DEPTH)
        b = code.at(code.at("%B", code.times(k, "%b_stride")), column)
        next_k = code.add(k, DEPTH)
        is_last = code.value(f"icmp sge i64 {next_k}, %depth")
        ahead = code.value(f"select i1 {is_last}, i64 0, i64 {next_k}")
        ahead_column = code.value(f"select i1 {is_last}, i64 {next_column}, i64 {column}")
        fetch = code.at(code.at("%B", code.times(ahead, "%b_stride")), ahead_column)
        a = code.at("%SCRATCH", code.times(k, padded_bytes))
        c = code.at("%C", column)
        code.do(
            f"call void @first_tile(ptr {a}, i64 {padded_bytes}, ptr {b}, i64 %b_stride, ptr {c}, i64 %c_stride, "
            f"ptr {copy}, i64 {depth}, i64 {last_row}, i64 {k})"
        )
        with code.loop(target.rows, "%rows", target.rows) as row:
            line = code.least(code.value(f"udiv i64 {row}, {target.rows}"), panel_bytes // LINE_BYTES + 1)
            tile_fetch = code.at(fetch, code.times(code.subtract(line, 1), LINE_BYTES))
            tile_a = code.at(a, code.floats(row))
            tile_c = code.at(c, code.times(row, "%c_stride"))
            code.do(
                f"call void @later_tile(ptr {tile_a}, i64 {padded_bytes}, ptr {copy}, i64 {panel_bytes}, "
                f"ptr {tile_c}, i64 %c_stride, ptr {tile_fetch}, i64 {depth}, i64 {code.subtract(last_row, row)}, "
                f"i64 {k}, i64 %b_stride)"
            )
    return code.function("multiply", PARAMETERS, linkage="dso_local")


PARAMETERS = "A B C SCRATCH a_stride b_stride c_stride rows depth columns"


def _lay_out_rows(code: Code) -> str:
    """Write the call that lays A out anew, at the beginning of scratch. Gives the bytes of a column."""
    width = code.target.width
    vectors = code.value(f"udiv i64 {code.add('%rows', width - 1)}, {width}")
    padded = code.times(vectors, width)
    padded_bytes = code.floats(padded)
    code.do(
        f"call void @transpose(ptr %A, i64 %a_stride, i64 {code.subtract('%rows', 1)}, ptr %SCRATCH, "
        f"i64 {padded_bytes}, i64 {code.subtract('%depth', 1)}, i64 {padded}, i64 %depth)"
    )
    return padded_bytes


def _transposed_pass(target: Target, vectors: int) -> str:
    """Some vectors of the columns of A, laid out anew, times all of B: columns of C, one after another."""
    code, count = Code(target), target.tiles[vectors]
    with code.loop(0, "%columns", count) as start:
        first = code.least(start, code.subtract("%columns", count))
        b = code.at("%B", code.times(first, "%b_stride"))
        ahead = code.at("%B", code.times(code.add(first, count), "%b_stride"))
        rows = [code.at(b, code.times(row, "%b_stride")) for row in range(count)]
        zeros = ["zeroinitializer"] * (count * vectors)
        with code.carrying_loop(0, "%depth", 1, code.vector, zeros) as (k, carried, following):
            code.prefetch(code.at(ahead, code.times(k, LINE_BYTES)))
            a = code.at("%A", code.times(k, "%padded_bytes"))
            column = [code.load(place) for place in code.vectors_at(a, vectors)]
            offset = code.floats(k)
            for row in rows:
                number = code.broadcast(code.at(row, offset))
                for vector in column:
                    following.append(code.multiply_add(number, vector, carried[len(following)]))
        for row in range(count):
            target_row = code.at("%C", code.times(code.add(first, row), "%padded_bytes"))
            for place in code.vectors_at(target_row, vectors):
                code.store(carried.pop(0), place)
    return code.function(f"pass_{vectors}", "A padded_bytes B b_stride C depth columns")


def _multiply_transposed(target: Target) -> str:
    code, width = Code(target), target.width
    padded_bytes = _lay_out_rows(code)
    transposed = code.at("%SCRATCH", code.times(padded_bytes, "%depth"))
    most = max(target.tiles)
    pass_bytes = most * width * FLOAT_BYTES
    with code.loop(0, padded_bytes, pass_bytes) as offset:
        left = code.least(code.subtract(padded_bytes, offset), pass_bytes)
        a, c = code.at("%SCRATCH", offset), code.at(transposed, offset)
        end = code.name()
        for vectors in target.tiles:
            is_it = code.value(f"icmp eq i64 {left}, {vectors * width * FLOAT_BYTES}")
            call, following = code.name(), code.name()
            code.do(f"br i1 {is_it}, label %{call}, label %{following}")
            code.begin(call)
            code.do(
                f"call void @pass_{vectors}(ptr {a}, i64 {padded_bytes}, ptr %B, i64 %b_stride, ptr {c}, i64 %depth, "
                "i64 %columns)"
            )
            code.do(f"br label %{following}")
            code.begin(following)
        del end
    last_row = code.subtract("%rows", 1)
    padded = code.value(f"udiv i64 {padded_bytes}, {FLOAT_BYTES}")
    code.do(
        f"call void @transpose(ptr {transposed}, i64 {padded_bytes}, i64 {code.subtract('%columns', 1)}, ptr %C, "
        f"i64 %c_stride, i64 {last_row}, i64 %columns, i64 {padded})"
    )
    return code.function("multiply_transposed", PARAMETERS, linkage="dso_local")
