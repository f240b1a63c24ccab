"""Native code: LLVM's language compiled for this processor, and kept on disk as object code.

Compiling takes tens of milliseconds a module, loading what was compiled before about one. The folder is the user's
cache folder, or the one that the environment variable ``MIAI_GRAPH_CACHE`` names; each object file lies beside the
source that it was made from. ``MIAI_GRAPH_NATIVE=0`` does without native code.
"""

from __future__ import annotations

import atexit
import functools
import hashlib
import os
from _thread import start_new_thread
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from ctypes import CFUNCTYPE, PYFUNCTYPE
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from threading import Lock
from time import perf_counter
from typing import Any, ParamSpec, TypeVar, cast

CACHE_VARIABLE, SWITCH_VARIABLE = "MIAI_GRAPH_CACHE", "MIAI_GRAPH_NATIVE"
SUFFIX = ".code"

OBJECT_FORMAT = 2
"""Object code of other formats is not found."""

P = ParamSpec("P")
T = TypeVar("T")

Function = Callable[..., None]
"""Of native code. It keeps the GIL free while it runs."""

Signatures = Mapping[str, Sequence[Any]]
"""The types of each function's parameters, of `ctypes`. Functions return nothing."""


@dataclass(frozen=True)
class Processor:
    """What native code is made for.

    Attributes
    ----------
    vector_bytes : the width of a vector register
    registers : how many of them there are
    """

    vector_bytes: int
    registers: int

    def width(self, itemsize: int) -> int:
        """How many numbers of so many bytes a vector holds."""
        return self.vector_bytes // itemsize


def processor_with(features: Mapping[str, bool]) -> Processor | None:
    """The processor with these features, by LLVM's names; None where native code would not be faster than NumPy."""
    if features.get("avx512f") and features.get("avx512vl"):
        return Processor(64, 32)
    if features.get("avx2") and features.get("fma"):
        return Processor(32, 16)
    if features.get("neon"):
        return Processor(16, 32)
    return None


@functools.cache
def processor() -> Processor | None:
    """This one; None where there is to be no native code."""
    if os.environ.get(SWITCH_VARIABLE, "1") == "0":
        return None
    try:
        return processor_with(undisturbed(_host_features))
    except (ImportError, OSError, RuntimeError):
        return None


def _host_features() -> Mapping[str, bool]:
    import llvmlite.binding as llvm

    features: Mapping[str, bool] = llvm.get_host_cpu_features()
    return features


@dataclass(frozen=True, eq=False)
class Library:
    """Functions of native code.

    Attributes
    ----------
    functions : by name
    seconds : how long it took to compile; 0 if that was done before
    """

    functions: Mapping[str, Function]
    seconds: float
    _code: LoadedCode = field(repr=False)


@dataclass(frozen=True, eq=False)
class LoadedCode:
    """Native code in memory.

    Attributes
    ----------
    key : of the module
    seconds : how long it took to compile; 0 if that was done before
    """

    key: str
    seconds: float

    def address(self, name: str) -> int:
        """Where a function lies."""
        address: int = _engine().get_function_address(_symbol(name, self.key))
        return address


_libraries: dict[str, Library] = {}
"""They stay: kernels hold addresses of their code."""

_addresses: dict[int, int] = {}
"""Of the functions of all libraries, by `id`."""


_Outcome = SimpleQueue[tuple[Any, BaseException | None]]
"""What a function gave, or raised."""


class _Compiler:
    """A thread in which all that is LLVM's is done.

    Who waits for it may be interrupted at any moment. Queues in C are whole after that; the locks that threads and
    futures of the standard library wait with may not be, and then all would wait for ever.
    """

    def __init__(self) -> None:
        self._calls: SimpleQueue[tuple[Callable[[], Any], _Outcome]] = SimpleQueue()
        self._is_busy = Lock()
        start_new_thread(self._work, ())

    def call(self, function: Callable[[], T]) -> T:
        """What a function gives, or raises."""
        outcome: _Outcome = SimpleQueue()
        self._calls.put((function, outcome))
        result, error = outcome.get()
        if error is not None:
            raise error
        return cast(T, result)

    def _work(self) -> None:
        while True:
            function, outcome = self._calls.get()
            with self._is_busy:
                try:
                    outcome.put((function(), None))
                except BaseException as error:
                    outcome.put((None, error))

    def finish(self) -> None:
        """Wait for what it does, and let it begin nothing more."""
        self._is_busy.acquire()


_compiler: _Compiler | None = None
_lock = Lock()


def undisturbed(function: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
    """What a function gives in a thread that signals do not reach.

    Ctrl-C may interrupt who waits for it, but not the function: LLVM's wrappers would leave locks taken and memory
    half freed. Functions are called one at a time, and must not call this one.
    """
    global _compiler
    with _lock:
        if _compiler is None:
            _compiler = _Compiler()
    return _compiler.call(functools.partial(function, *arguments, **options))


def _begin_anew() -> None:
    """In a fork of the process, whose other threads are gone."""
    global _compiler, _lock
    _compiler, _lock = None, Lock()


def _finish() -> None:
    """Python must not end while LLVM works."""
    if _compiler is not None:
        _compiler.finish()


atexit.register(_finish)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)


def library(text: str, signatures: Signatures, source: str = "", *, is_brief: bool = False) -> Library:
    """The functions of a module, compiled or from the disk. Needs a `processor`.

    Parameters
    ----------
    text : the module, in LLVM's language
    source : what it was made from, for readers of the cache folder
    is_brief : whether calls keep Python's lock, for they take less time than to give it away
    """
    key = key_of(text)
    found = _libraries.get(key)
    return undisturbed(_load_once, key, text, signatures, source, is_brief) if found is None else found


def _load_once(key: str, text: str, signatures: Signatures, source: str, is_brief: bool) -> Library:
    if key not in _libraries:
        _libraries[key] = _load(key, text, signatures, source, is_brief)
    return _libraries[key]


def address_of(function: object) -> int | None:
    """Where a function of native code lies; None for any other object."""
    return _addresses.get(id(function))


def loaded() -> list[Library]:
    """All modules that this process has compiled or loaded so far."""
    return list(_libraries.values())


def kept() -> list[Path]:
    """The files of object code on the disk."""
    return sorted(cache_folder().glob(f"*{SUFFIX}"))


@functools.cache
def key_of(text: str) -> str:
    """What code on the disk is known by."""
    return _digest(f"{_compiler_key()}\n{text}".encode()).hex()[:32]


def _path(key: str) -> Path:
    return cache_folder() / f"{key}{SUFFIX}"


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


def _read(path: Path) -> bytes | None:
    """The object code, if it is there and whole: what is damaged would crash the process. Its digest precedes it."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    length = hashlib.sha256().digest_size
    return content[length:] if len(content) > length and content[:length] == _digest(content[length:]) else None


def _load(key: str, text: str, signatures: Signatures, source: str, is_brief: bool) -> Library:
    loaded = load_code(key, text, source)
    prototype = PYFUNCTYPE if is_brief else CFUNCTYPE
    functions = {name: prototype(None, *types)(loaded.address(name)) for name, types in signatures.items()}
    _addresses.update({id(function): loaded.address(name) for name, function in functions.items()})
    return Library(functions, loaded.seconds, loaded)


def load_code(key: str, text: str, source: str) -> LoadedCode:
    """The code of a module, compiled or from the disk. To be called `undisturbed`.

    Parameters
    ----------
    key : of the text, by `key_of`
    """
    import llvmlite.binding as llvm

    path, start, seconds = _path(key), perf_counter(), 0.0
    code = _read(path)
    if code is None:
        code = _compiled(key, text)
        seconds = perf_counter() - start
        # Who cannot write there compiles each time.
        with suppress(OSError):
            _write(path.with_suffix(".ll"), f"{_as_comment(source)}{text}".encode())
            _write(path, _digest(code) + code)
    _engine().add_object_file(llvm.ObjectFileRef.from_data(code))
    _engine().finalize_object()
    return LoadedCode(key, seconds)


def _compiled(key: str, text: str) -> bytes:
    """The object code of a module."""
    import llvmlite.binding as llvm

    module = llvm.parse_assembly(text)
    for function in module.functions:
        if not function.is_declaration:
            function.name = _symbol(function.name, key)
    code: bytes = _machine().emit_object(module)
    return code


def _symbol(name: str, key: str) -> str:
    """The name of a function of a module in object code: no other module has it."""
    return f"{name}.{key}"


@functools.cache
def _engine() -> Any:
    """Owns all code that is loaded: one, since another one for each module would take ten times as long."""
    import llvmlite.binding as llvm

    return llvm.create_mcjit_compiler(llvm.parse_assembly(""), _target().create_target_machine(jit=True))


@functools.cache
def architecture() -> str:
    """LLVM's name of this processor's architecture."""
    return undisturbed(_triple).partition("-")[0]


def _triple() -> str:
    import llvmlite.binding as llvm

    triple: str = llvm.get_default_triple()
    return triple


def _as_comment(source: str) -> str:
    return "".join(f"; {line}\n" for line in source.splitlines())


def _write(path: Path, content: bytes) -> None:
    """All of it or nothing, whoever else writes or reads the same."""
    import tempfile

    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(content)
    os.replace(file.name, path)


def cache_folder() -> Path:
    """Where native code is kept."""
    import platformdirs

    return Path(os.environ.get(CACHE_VARIABLE) or platformdirs.user_cache_path("miai_graph")) / "native"


@functools.cache
def _compiler_key() -> str:
    """What object code depends on besides its source."""
    return undisturbed(_describe_compiler)


def _describe_compiler() -> str:
    import llvmlite
    import llvmlite.binding as llvm

    versions = f"{OBJECT_FORMAT} {llvmlite.__version__} {llvm.llvm_version_info}"
    return f"{versions} {_triple()} {llvm.get_host_cpu_name()} {_features()}"


def _features() -> str:
    import llvmlite.binding as llvm

    features: str = llvm.get_host_cpu_features().flatten()
    return features


def _machine() -> Any:
    """What compiles for this processor."""
    import llvmlite.binding as llvm

    return _target().create_target_machine(cpu=llvm.get_host_cpu_name(), features=_features(), opt=2, jit=True)


@functools.cache
def _target() -> Any:
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm.Target.from_default_triple()
