"""LLVM code that carries out what a convolution or one of its gradients consists of: copies, and products of tiles.

All are C[r, v] = Σ_k A[r, k] · B[k, v], where A's element lies at the sum of some offsets, of its row and of its step.
Of a convolution the rows are pixels and the steps are places in the window; of the gradient in the kernel the rows are
places in the window and the steps are pixels. Whatever the strides, the dilation and the padding, they are in tables
and in the code of the tiles.
"""

from __future__ import annotations

from collections.abc import Sequence

from miai_graph.kernels.compiler.llvm_code import Code
from miai_graph.kernels.compiler.transposition import transposed
from miai_graph.kernels.convolution.tiles import TILE_PARAMETERS, Target

PRODUCT_FIELDS = ("tile", "a_advance", "b_advance", "c_advance", *(name.lower() for name in TILE_PARAMETERS))
"""A product, as numbers of 64 bits: the address of its tile's function, and what that is given.

A, B and C advance by so many bytes from a block to the next one.
"""

COPY_FIELDS = (
    *("source", "source_advance", "target", "images", "source_image", "target_image"),
    *("rows", "source_row", "target_row", "row_bytes"),
)
"""A copy of images to memory with other distances between their rows, as numbers of 64 bits: addresses and bytes."""


def module_text(target: Target) -> str:
    """The module with the functions `multiply`, `gather`, `move` and `turn`.

    multiply(PRODUCTS, products, COPIES, copies, blocks) : for each block of images, the copies, then the products
    gather(SOURCE, INDEX, TARGET, vectors) : TARGET[i] = SOURCE[INDEX[i]], or 0 where the index is negative
    move(SOURCE, INDEX, TARGET, vectors) : the same of whole vectors, with the index of each one's first number
    turn(SOURCE, INDEX, TARGET, squares, vectors, column) : the same of rows of so many vectors, as many rows at a time
        as a vector has numbers, whose numbers are one behind the other in the columns, which lie so many bytes from
        each other; with the indices of the first row's first numbers
    """
    code = Code(target.width, target.number)
    return "\n".join(
        [
            f"declare {code.vector} @{_gather_name(code)}"
            f"(<{target.width} x ptr>, i32, <{target.width} x i1>, {code.vector})",
            "declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)",
            _copy(target),
            _multiply(target),
            _gather(target),
            _move(target),
            _turn(target),
        ]
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
            tables = [_address(code, product[name]) for name in ("rows", "a_runs", "b_runs", "places", "operands")]
            numbers = [product[name] for name in TILE_PARAMETERS if name.islower()]
            given = [f"ptr {pointer}" for pointer in (*matrices, *tables)] + [f"i64 {value}" for value in numbers]
            code.do(f"call void {_address(code, product['tile'])}({', '.join(given)})")
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
            f"call {code.vector} @{_gather_name(code)}({pointers} {places}, "
            f"i32 {target.number_bytes}, <{width} x i1> {mask}, {code.vector} zeroinitializer)"
        )
        code.store(found, code.at("%TARGET", code.times(first, target.number_bytes)))
    return code.function("gather", "SOURCE INDEX TARGET vectors", linkage="dso_local")


def _gather_name(code: Code) -> str:
    """That of LLVM's function."""
    return f"llvm.masked.gather.v{code.width}f{8 * code.number_bytes}.v{code.width}p0"


def _move(target: Target) -> str:
    code = Code(target.width, target.number)
    with code.loop(0, "%vectors", 1) as number:
        source = code.at("%SOURCE", code.times(_entry(code, "%INDEX", number), target.number_bytes))
        code.store(code.load(source), code.at("%TARGET", code.times(number, target.width * target.number_bytes)))
    return code.function("move", "SOURCE INDEX TARGET vectors", linkage="dso_local")


def _turn(target: Target) -> str:
    code, width = Code(target.width, target.number), target.width
    vector_bytes = width * target.number_bytes
    row_bytes = code.times("%vectors", vector_bytes)
    with code.loop(0, "%squares", 1) as square:
        start = code.at("%TARGET", code.times(square, code.times(row_bytes, width)))
        with code.loop(0, "%vectors", 1) as number:
            index = _entry(code, "%INDEX", code.add(code.times(square, "%vectors"), number))
            source = code.at("%SOURCE", code.times(index, target.number_bytes))
            columns = [code.load(code.at(source, code.times("%column", place))) for place in range(width)]
            goal = code.at(start, code.times(number, vector_bytes))
            for place, row in enumerate(transposed(columns, code.shuffle)):
                code.store(row, code.at(goal, code.times(row_bytes, place)))
    return code.function("turn", "SOURCE INDEX TARGET squares vectors column", linkage="dso_local")


def _entry(code: Code, table: str, index: str) -> str:
    entry = code.value(f"load i32, ptr {code.at(table, code.times(index, 4))}, align 4")
    return code.value(f"sext i32 {entry} to i64")
