"""LLVM code that multiplies a matrix of few rows with a large one, for any width of vectors.

The few rows of A are laid out anew: its columns one after another, each padded to whole vectors by repeating its last
element. Each element of B, read where it lies, is broadcast and multiplied with a column of A, which adds up columns of
C. These, too, are few numbers each, and are transposed in the end. So B, which is large, is read once and never copied.

Padding computes what the last row does, and where a block overhangs an edge it is moved back: what is computed twice
is stored twice, the same. No code for remainders is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from miai_graph.kernels.compiler.llvm_code import FLOAT_BYTES, Code
from miai_graph.kernels.compiler.transposition import transposed

PARAMETERS = "A B C SCRATCH a_stride b_stride b_column_stride c_stride rows depth columns block fetch fetch_stride"


@dataclass(frozen=True)
class Target:
    """What the code is made for.

    Attributes
    ----------
    width : how many floats a vector holds, a power of two
    registers : how many vectors the processor holds, at least 16
    """

    width: int
    registers: int

    @property
    def tiles(self) -> dict[int, int]:
        """How many columns of C are added up in registers at once, by the number of vectors that each has."""
        return {1: 16, 2: 12, 3: 8, 4: 6} if self.registers >= 32 else {1: 8, 2: 6, 3: 4, 4: 3}

    @property
    def least(self) -> int:
        """The least number of columns, of A and of C, for which the code is right."""
        return max(self.width, *self.tiles.values())

    def scratch_floats(self, rows: int, depth: int, columns: int) -> int:
        """The memory for A and for C, laid out anew; tiles may overhang."""
        padded = -(-rows // self.width) * self.width
        return padded * (depth + columns + max(self.tiles.values()))


def module_text(target: Target) -> str:
    """The module with the function `multiply`.

    Its parameters, pointers and numbers of 64 bits:

    A, B, C, SCRATCH : where the matrices lie, and memory for `scratch_floats`
    a_stride, c_stride : bytes from a row to the next one
    b_stride, b_column_stride : bytes from an element of B to the next one in its column, and to that in its row
    rows, depth, columns : rows of A, columns of A, columns of B
    block : how many rows of B are used for all columns before the next ones
    fetch, fetch_stride : where in B lies what will be needed next: so many bytes beyond the block, and so many more for
        each column of C; only a hint
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
    code, width = Code(target.width), target.width
    last_i, last_j = code.subtract("%rows", width), code.subtract("%columns", width)
    with code.loop(0, "%rows", width) as i, code.loop(0, "%columns", width) as j:
        i, j = code.least(i, last_i), code.least(j, last_j)
        source, destination = code.at("%X", code.floats(j)), code.at("%Y", code.floats(i))
        vectors = []
        for place in range(width):
            row = code.least(code.add(i, place), "%x_last")
            vectors.append(code.load(code.at(source, code.times(row, "%x_stride"))))
        for place, vector in enumerate(transposed(vectors, code.shuffle)):
            row = code.least(code.add(j, place), "%y_last")
            code.store(vector, code.at(destination, code.times(row, "%y_stride")))
    return code.function("transpose", "X x_stride x_last Y y_stride y_last rows columns")


def _pass(target: Target, vectors: int) -> str:
    """So many vectors of each column of A, times a block of B, added to columns of C; stored there if `adds` is 0.

    The last tile is moved back to end at the last column. Until its sums are complete they lie where they would without
    that, lest anything be added twice to the columns that it shares with the tile before.
    """
    code, count = Code(target.width), target.tiles[vectors]
    last = code.subtract("%columns", count)
    is_complete = code.value("icmp ne i64 %completes, 0")
    with code.loop(0, "%columns", count) as start:
        first = code.least(start, last)
        row = code.at("%B", code.times(first, "%b_column_stride"))
        elements = [code.at(row, code.times(column, "%b_column_stride")) for column in range(count)]
        fetched = code.at("%F", code.times(start, "%fetch_stride"))
        sums = _sums_so_far(code, _places(code, start, count, vectors))
        with code.carrying_loop(0, "%depth", 1, sums) as (k, carried, following):
            code.prefetch(code.at(fetched, code.times(k, count * FLOAT_BYTES)))
            column = code.at("%A", code.times(k, "%column_bytes"))
            offset = code.times(k, "%b_stride")
            numbers = [code.at(element, offset) for element in elements]
            following += _add_products(code, code.vectors_at(column, vectors), numbers, carried)
        end = code.value(f"select i1 {is_complete}, i64 {first}, i64 {start}")
        for value, place in zip(carried, _places(code, end, count, vectors), strict=True):
            code.store(value, place)
    parameters = "A column_bytes B b_stride b_column_stride C depth columns adds completes F fetch_stride"
    return code.function(f"pass_{vectors}", parameters)


def _places(code: Code, start: str, count: int, vectors: int) -> list[str]:
    """Where the vectors of so many columns of C lie."""
    columns = [code.at("%C", code.times(code.add(start, column), "%column_bytes")) for column in range(count)]
    return [place for column in columns for place in code.vectors_at(column, vectors)]


def _sums_so_far(code: Code, places: Sequence[str]) -> list[str]:
    start, later, ready = code.block, code.name(), code.name()
    is_first = code.value("icmp eq i64 %adds, 0")
    code.do(f"br i1 {is_first}, label %{ready}, label %{later}")
    code.begin(later)
    found = [code.load(place) for place in places]
    code.do(f"br label %{ready}")
    code.begin(ready)
    return [code.value(f"phi {code.vector} [ zeroinitializer, %{start} ], [ {old}, %{later} ]") for old in found]


def _add_products(code: Code, vectors: Sequence[str], numbers: Sequence[str], sums: Sequence[str]) -> list[str]:
    """Each number times each vector, added to the sums. The fewer of the two stay in registers, the others pass."""
    result = list(sums)
    if len(vectors) <= len(numbers):
        held = [code.load(vector) for vector in vectors]
        for place, number in enumerate(numbers):
            passing = code.broadcast(number)
            for other, vector in enumerate(held, place * len(vectors)):
                result[other] = code.multiply_add(passing, vector, result[other])
        return result
    held = [code.broadcast(number) for number in numbers]
    for place, vector in enumerate(vectors):
        passing = code.load(vector)
        for number, other in zip(held, range(place, len(sums), len(vectors)), strict=True):
            result[other] = code.multiply_add(number, passing, result[other])
    return result


def _multiply(target: Target) -> str:
    code, width = Code(target.width), target.width
    vectors = code.divided_up("%rows", width)
    padded = code.times(vectors, width)
    column_bytes = code.floats(padded)
    last_row, last_column = code.subtract("%rows", 1), code.subtract("%columns", 1)
    last_k = code.subtract("%depth", 1)
    code.call("transpose", "%A", "%a_stride", last_row, "%SCRATCH", column_bytes, last_k, padded, "%depth")
    sums = code.at("%SCRATCH", code.times(column_bytes, "%depth"))
    group = code.divided_up(vectors, code.divided_up(vectors, max(target.tiles)))
    with code.loop(0, "%depth", "%block") as k:
        left = code.subtract("%depth", k)
        completes = code.value(f"zext i1 {code.value(f'icmp sle i64 {left}, %block')} to i64")
        sizes = (code.least(left, "%block"), "%columns", k, completes)
        a, b = code.at("%SCRATCH", code.times(k, column_bytes)), code.at("%B", code.times(k, "%b_stride"))
        of_b, hint = (b, "%b_stride", "%b_column_stride"), (code.at(b, "%fetch"), "%fetch_stride")
        with code.loop(0, vectors, group) as vector:
            offset = code.floats(code.times(vector, width))
            own_a, own_sums = code.at(a, offset), code.at(sums, offset)
            count = code.least(code.subtract(vectors, vector), group)
            for number in target.tiles:
                with code.when(code.value(f"icmp eq i64 {count}, {number}")):
                    code.call(f"pass_{number}", own_a, column_bytes, *of_b, own_sums, *sizes, *hint)
    code.call("transpose", sums, column_bytes, last_column, "%C", "%c_stride", last_row, "%columns", padded)
    return code.function("multiply", PARAMETERS, linkage="dso_local")
