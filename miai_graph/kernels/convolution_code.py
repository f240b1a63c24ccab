"""LLVM code for convolutions and their gradients: products of matrices whose elements are found through tables.

All three are C[r, v] = Σ_k A[r, k] · B[k, v], where A's element lies at the sum of two offsets, one of its row and one
of its step. Of a convolution the rows are pixels and the steps are places in the window; of the gradient in the kernel
the rows are places in the window and the steps are pixels. Whatever the strides, the dilation and the padding, they are
in the tables. A tile of C stays in registers while its products are added up; each step broadcasts one number of A for
each row and reads a few vectors of B.

Of a depthwise convolution, A's elements are vectors too: of the channels that lie side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from miai_graph.kernels.llvm_code import NUMBER_BYTES, Code

DEPTHWISE = 0
"""The kind of product whose A is read in vectors. The other kinds are how many vectors of B each step reads."""

PRODUCT_FIELDS = (
    *("kind", "a", "a_advance", "b", "b_advance", "c", "c_advance"),
    *("rows", "steps", "places", "row_count", "step_count", "b_step", "lanes", "adds"),
)
"""A product, as numbers of 64 bits.

kind : `DEPTHWISE` or how many vectors a step reads
a, b, c : addresses; each advances by so many bytes from a block to the next one
rows, steps, places : addresses of tables of 32 bits: offsets in A of its rows, in A of its steps, in C of its rows
row_count, step_count : the rows are a multiple of a tile's
b_step : bytes from a step's vectors to those of the next one
lanes : how many numbers of the last vector belong to C
adds : whether C is added to
"""

COPY_FIELDS = (
    *("source", "source_advance", "target", "images", "source_image", "target_image"),
    *("rows", "source_row", "target_row", "row_bytes"),
)
"""A copy of images to memory with other distances between their rows, as numbers of 64 bits: addresses and bytes."""

_PRODUCT = "A B C ROWS STEPS PLACES row_count step_count b_step lanes adds"


@dataclass(frozen=True)
class Target:
    """What the code is made for.

    Attributes
    ----------
    width : how many numbers a vector holds, a power of two
    registers : how many vectors the processor holds, at least 16
    number : "float" or "double"
    """

    width: int
    registers: int
    number: str

    @property
    def number_bytes(self) -> int:
        """The size of a number."""
        return NUMBER_BYTES[self.number]

    @property
    def tiles(self) -> dict[int, int]:
        """How many rows of C are added up in registers at once, by kind."""
        many, few = {DEPTHWISE: 8, 1: 8, 2: 8, 4: 6}, {DEPTHWISE: 8, 1: 8, 2: 6}
        return many if self.registers >= 32 else few


def module_text(target: Target) -> str:
    """The module with the functions `multiply` and `gather`.

    multiply(PRODUCTS, products, COPIES, copies, blocks) : for each block of images, the copies, then the products
    gather(SOURCE, INDEX, TARGET, vectors) : TARGET[i] = SOURCE[INDEX[i]], or 0 where the index is negative
    """
    code = Code(target.width, target.number)
    suffix, mask = _suffix(code), _mask_type(code)
    pointers = f"<{target.width} x ptr>"
    return "\n".join(
        [
            f"declare {code.vector} @llvm.masked.load.{suffix}.p0(ptr, i32, {mask}, {code.vector})",
            f"declare void @llvm.masked.store.{suffix}.p0({code.vector}, ptr, i32, {mask})",
            f"declare {code.vector} @llvm.masked.gather.{suffix}.v{target.width}p0"
            f"({pointers}, i32, {mask}, {code.vector})",
            "declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)",
            *(_product(target, kind) for kind in target.tiles),
            _copy(target),
            _multiply(target),
            _gather(target),
        ]
    )


def _product(target: Target, kind: int) -> str:
    """All tiles of one product."""
    code, count, vectors = Code(target.width, target.number), target.tiles[kind], max(kind, 1)
    mask = _mask(code, "%lanes")
    with code.loop(0, "%row_count", count) as start:
        rows = [code.at("%A", _entry(code, "%ROWS", code.add(start, row))) for row in range(count)]
        places = _places(code, start, count, vectors)
        sums = _sums_so_far(code, places, vectors, mask)
        with code.carrying_loop(0, "%step_count", 1, sums) as (step, carried, following):
            offset = _entry(code, "%STEPS", step)
            elements = [code.at(row, offset) for row in rows]
            numbers = code.vectors_at(code.at("%B", code.times(step, "%b_step")), vectors)
            following += _add_products(code, kind, elements, numbers, carried)
        for place, value in enumerate(carried):
            is_last = place % vectors == vectors - 1
            _store_lanes(code, value, places[place], mask) if is_last else code.store(value, places[place])
    return code.function(f"product_{kind}", _PRODUCT)


def _entry(code: Code, table: str, index: str) -> str:
    """A table's offset."""
    entry = code.value(f"load i32, ptr {code.at(table, code.times(index, 4))}, align 4")
    return code.value(f"sext i32 {entry} to i64")


def _places(code: Code, start: str, count: int, vectors: int) -> list[str]:
    """Where the vectors of a tile of C lie."""
    rows = [code.at("%C", _entry(code, "%PLACES", code.add(start, row))) for row in range(count)]
    return [place for row in rows for place in code.vectors_at(row, vectors)]


def _sums_so_far(code: Code, places: Sequence[str], vectors: int, mask: str) -> list[str]:
    """What lies in a tile of C, or 0 if nothing is added to that."""
    start, later, ready = code.block, code.name(), code.name()
    is_first = code.value("icmp eq i64 %adds, 0")
    code.do(f"br i1 {is_first}, label %{ready}, label %{later}")
    code.begin(later)
    found = [
        _load_lanes(code, place, mask) if number % vectors == vectors - 1 else code.load(place)
        for number, place in enumerate(places)
    ]
    code.do(f"br label %{ready}")
    code.begin(ready)
    return [code.value(f"phi {code.vector} [ zeroinitializer, %{start} ], [ {old}, %{later} ]") for old in found]


def _add_products(
    code: Code, kind: int, elements: Sequence[str], vectors: Sequence[str], sums: Sequence[str]
) -> list[str]:
    held = [code.load(vector) for vector in vectors]
    result = list(sums)
    for row, element in enumerate(elements):
        factor = code.load(element) if kind == DEPTHWISE else code.broadcast(element)
        for place, vector in enumerate(held, row * len(held)):
            result[place] = code.multiply_add(factor, vector, result[place])
    return result


def _mask_type(code: Code) -> str:
    return f"<{code.width} x i1>"


def _mask(code: Code, lanes: str) -> str:
    """The first lanes, so many of them."""
    numbers = f"<{code.width} x i64>"
    first = code.value(f"insertelement {numbers} poison, i64 {lanes}, i64 0")
    limit = code.value(f"shufflevector {numbers} {first}, {numbers} poison, <{code.width} x i32> zeroinitializer")
    places = ", ".join(f"i64 {lane}" for lane in range(code.width))
    return code.value(f"icmp slt {numbers} <{places}>, {limit}")


def _suffix(code: Code) -> str:
    return f"v{code.width}f{8 * code.number_bytes}"


def _load_lanes(code: Code, pointer: str, mask: str) -> str:
    return code.value(
        f"call {code.vector} @llvm.masked.load.{_suffix(code)}.p0(ptr {pointer}, i32 {code.number_bytes}, "
        f"{_mask_type(code)} {mask}, {code.vector} zeroinitializer)"
    )


def _store_lanes(code: Code, vector: str, pointer: str, mask: str) -> None:
    code.do(
        f"call void @llvm.masked.store.{_suffix(code)}.p0({code.vector} {vector}, ptr {pointer}, "
        f"i32 {code.number_bytes}, {_mask_type(code)} {mask})"
    )


def _copy(target: Target) -> str:
    """One block's copy of rows."""
    code = Code(target.width, target.number)
    with code.loop(0, "%images", 1) as image:
        source = code.at("%SOURCE", code.times(image, "%source_image"))
        place = code.at("%TARGET", code.times(image, "%target_image"))
        with code.loop(0, "%rows", 1) as row:
            origin = code.at(source, code.times(row, "%source_row"))
            goal = code.at(place, code.times(row, "%target_row"))
            code.do(f"call void @llvm.memcpy.p0.p0.i64(ptr {goal}, ptr {origin}, i64 %row_bytes, i1 false)")
    parameters = "SOURCE TARGET images source_image target_image rows source_row target_row row_bytes"
    return code.function("copy", parameters)


def _multiply(target: Target) -> str:
    code = Code(target.width, target.number)
    with code.loop(0, "%blocks", 1) as block:
        with code.loop(0, "%copies", 1) as number:
            copy = _fields(code, "%COPIES", number, COPY_FIELDS)
            source = _address(code, copy["source"], block, copy["source_advance"])
            code.call("copy", source, _address(code, copy["target"]), *list(copy.values())[3:])
        with code.loop(0, "%products", 1) as number:
            product = _fields(code, "%PRODUCTS", number, PRODUCT_FIELDS)
            matrices = [_address(code, product[name], block, product[f"{name}_advance"]) for name in "abc"]
            tables = [_address(code, product[name]) for name in ("rows", "steps", "places")]
            for kind in target.tiles:
                with code.when(f"icmp eq i64 {product['kind']}, {kind}"):
                    code.call(f"product_{kind}", *matrices, *tables, *list(product.values())[10:])
    return code.function("multiply", "PRODUCTS products COPIES copies blocks", linkage="dso_local")


def _fields(code: Code, table: str, number: str, names: Sequence[str]) -> dict[str, str]:
    record = code.at(table, code.times(number, 8 * len(names)))
    return {
        name: code.value(f"load i64, ptr {code.at(record, 8 * place)}, align 8") for place, name in enumerate(names)
    }


def _address(code: Code, number: str, block: str = "0", advance: str = "0") -> str:
    pointer = code.value(f"inttoptr i64 {number} to ptr")
    return code.at(pointer, code.times(block, advance))


def _gather(target: Target) -> str:
    code, width = Code(target.width, target.number), target.width
    indices, pointers = f"<{width} x i32>", f"<{width} x ptr>"
    with code.loop(0, "%vectors", 1) as number:
        first = code.times(number, width)
        index = code.value(f"load {indices}, ptr {code.at('%INDEX', code.times(first, 4))}, align 4")
        mask = code.value(f"icmp sge {indices} {index}, zeroinitializer")
        places = code.value(f"getelementptr {target.number}, ptr %SOURCE, {indices} {index}")
        found = code.value(
            f"call {code.vector} @llvm.masked.gather.{_suffix(code)}.v{width}p0({pointers} {places}, "
            f"i32 {target.number_bytes}, {_mask_type(code)} {mask}, {code.vector} zeroinitializer)"
        )
        code.store(found, code.at("%TARGET", code.times(first, target.number_bytes)))
    return code.function("gather", "SOURCE INDEX TARGET vectors", linkage="dso_local")
