"""Native code that calls other native code: one function after another, in one thread or in several in step.

`work` goes through rows of four words: a function, what it is given, how many parameters that is, and the number of the
time that is written afterwards, or -1. In place of the parameters -1 stands for a barrier: all threads wait there for
each other. `lead` lets the other threads of a team begin, and works; `serve` is what those do, for good: they look out
for a beginning, for a while, sleep until they are woken, and work.

Where the processor's own counter can be trusted, times are counts, which take less time than to look at the clock. That
is done at the beginning and at the end, from which it is known what a count is worth.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

from miai_graph.kernels.compiler import native
from miai_graph.kernels.compiler.pauses import pause_for

MOST_PARAMETERS = 16
"""Functions with more are called from Python."""

NO_STAMP, BARRIER = -1, -1

LINE_BYTES = 64
"""Words that different threads write lie in cache lines of their own."""

SPINS_BEFORE_YIELDING = 500
"""Rounds of waiting at a barrier, after which other processes may have the core."""

SPINS_BETWEEN_LOOKS = 256
"""Rounds of waiting for a beginning between two looks at the clock."""

BYTES_READ = 16
"""At most, by one who is woken: bytes for runs that it had seen by itself are among them."""

NANOSECONDS = 10**9

WORK_WORDS = ("rows", "count", "stamps", "clock", "clock_id", "arrived", "own", "threads", "base", "yield")
"""What `work` is given: the rows; the place of the address of times; ``clock_gettime`` with its clock; for each thread
the line in which it says how many barriers it has reached, the number of this thread, and of all; the place of the
number of barriers before; ``sched_yield``, or 0."""

LEAD_WORDS = ("go", "base", "helpers", "threads", "tables", "own_table", "barriers", "write", "byte")
"""What `lead` is given: the place of the number of the run, and of the number of barriers before; the lines of helpers;
how many threads there are; the tables for the others, and its own; the barriers in them; ``write``, and a byte."""

SERVE_WORDS = ("go", "line", "patience", "clock", "clock_id", "read", "file")
"""What `serve` is given: see above; its own line; how many nanoseconds it looks out; ``read``, and from where."""

HELPER_WORDS = ("asleep", "table", "seen", "file")
"""The line of a helper: whether it is to be woken, what to work at, the number of its last run, where to write."""

_CLOCK = """
  call i32 %clock(i32 %clock_number, ptr %moment)
  %{name}.seconds = load i64, ptr %moment
  %{name}.rest.place = getelementptr i64, ptr %moment, i64 1
  %{name}.rest = load i64, ptr %{name}.rest.place
  %{name}.whole = mul i64 %{name}.seconds, {nanoseconds}
  %{name} = add i64 %{name}.whole, %{name}.rest
"""

_COUNTER = "declare i64 @llvm.readcyclecounter()"

_COUNT = """
  %cycles = call i64 @llvm.readcyclecounter()
  %now = add i64 %cycles, %shift
"""
"""A count, as if there was one in each nanosecond since the first time."""

_FIRST_TIME = """
  br i1 %has.times, label %first, label %begin.rows
first:
{clock}
  %first.cycles = call i64 @llvm.readcyclecounter()
  %first.shift = sub i64 %first.time, %first.cycles
  br label %begin.rows
begin.rows:
  %shift = phi i64 [ 0, %begin ], [ %first.shift, %first ]
  %first.now = phi i64 [ 0, %begin ], [ %first.time, %first ]
"""

_LAST_TIME = """
  br i1 %has.times, label %last, label %return
last:
{clock}
  %last.cycles = call i64 @llvm.readcyclecounter()
  %last.count = add i64 %last.cycles, %shift
  %nanoseconds.all = sub i64 %last.time, %first.now
  %counts.found = sub i64 %last.count, %first.now
  %counts.all = call i64 @llvm.smax.i64(i64 %counts.found, i64 1)
  %nanoseconds.float = sitofp i64 %nanoseconds.all to double
  %counts.float = sitofp i64 %counts.all to double
  %worth = fdiv double %nanoseconds.float, %counts.float
  br label %convert.head
convert.head:
  %converted = phi i64 [ 0, %last ], [ %converted.next, %convert.next ]
  %convert.more = icmp slt i64 %converted, %count
  br i1 %convert.more, label %convert, label %return
convert:
  %convert.line = getelementptr [4 x i64], ptr %rows, i64 %converted
  %convert.stamp.place = getelementptr i64, ptr %convert.line, i64 3
  %convert.stamp = load i64, ptr %convert.stamp.place
  %convert.is.timed = icmp sge i64 %convert.stamp, 0
  br i1 %convert.is.timed, label %convert.one, label %convert.next
convert.one:
  %convert.to = getelementptr i64, ptr %times, i64 %convert.stamp
  %counted = load i64, ptr %convert.to
  %counts = sub i64 %counted, %first.now
  %counts.of.it = sitofp i64 %counts to double
  %scaled = fmul double %counts.of.it, %worth
  %since.first = fptosi double %scaled to i64
  %converted.time = add i64 %first.now, %since.first
  store i64 %converted.time, ptr %convert.to
  br label %convert.next
convert.next:
  %converted.next = add i64 %converted, 1
  br label %convert.head
return:
"""

_WORK = """
define void @work(ptr %table) nounwind {{
start:
  %moment = alloca [2 x i64]
{words}
  %has.times = icmp ne ptr %stamps, null
  br i1 %has.times, label %find.times, label %find.base
find.times:
  %found.times = load ptr, ptr %stamps
  br label %find.base
find.base:
  %times = phi ptr [ null, %start ], [ %found.times, %find.times ]
  %in.team = icmp ne ptr %base, null
  br i1 %in.team, label %load.base, label %begin
load.base:
  %found.before = load atomic i64, ptr %base monotonic, align 8
  br label %begin
begin:
  %before = phi i64 [ 0, %find.base ], [ %found.before, %load.base ]
{first_time}
  br label %head

head:
  %row = phi i64 [ 0, %{begin} ], [ %row.next, %next ]
  %passed = phi i64 [ 0, %{begin} ], [ %passed.next, %next ]
  %more = icmp slt i64 %row, %count
  br i1 %more, label %body, label %end
body:
  %line = getelementptr [4 x i64], ptr %rows, i64 %row
  %function = load ptr, ptr %line
  %given.place = getelementptr i64, ptr %line, i64 1
  %given = load ptr, ptr %given.place
  %parameters.place = getelementptr i64, ptr %line, i64 2
  %parameters = load i64, ptr %parameters.place
  %stamp.place = getelementptr i64, ptr %line, i64 3
  %stamp = load i64, ptr %stamp.place
  switch i64 %parameters, label %done [ i64 {barrier}, label %barrier {cases} ]
{calls}

barrier:
  %reached = add i64 %passed, 1
  %target = add i64 %before, %reached
  %own.offset = mul i64 %own, {line_bytes}
  %own.place = getelementptr i8, ptr %arrived, i64 %own.offset
  store atomic i64 %target, ptr %own.place release, align 8
  br label %look
look:
  %other = phi i64 [ 0, %barrier ], [ %other, %spin ], [ %other.next, %there ]
  %spins = phi i64 [ 0, %barrier ], [ %spins.next, %spin ], [ %spins, %there ]
  %other.offset = mul i64 %other, {line_bytes}
  %other.place = getelementptr i8, ptr %arrived, i64 %other.offset
  %value = load atomic i64, ptr %other.place acquire, align 8
  %is.there = icmp sge i64 %value, %target
  br i1 %is.there, label %there, label %missing
there:
  %other.next = add i64 %other, 1
  %is.last = icmp sge i64 %other.next, %threads
  br i1 %is.last, label %done, label %look
missing:
  {pause}
  %spins.next = add i64 %spins, 1
  %is.long = icmp sgt i64 %spins.next, {spins}
  %can.yield = icmp ne ptr %yield, null
  %yields = and i1 %is.long, %can.yield
  br i1 %yields, label %give.way, label %spin
give.way:
  call i32 %yield()
  br label %spin
spin:
  br label %look

done:
  %passed.next = phi i64 [ %passed, %body ], [ %reached, %there ]{passed}
  %is.timed = icmp sge i64 %stamp, 0
  br i1 %is.timed, label %time, label %next
time:
{time}
  %stamp.to = getelementptr i64, ptr %times, i64 %stamp
  store i64 %now, ptr %stamp.to
  br label %next
next:
  %row.next = add i64 %row, 1
  br label %head
end:
{last_time}
  ret void
}}
"""

_LEAD = """
define void @lead(ptr %table) nounwind {{
start:
{words}
  br label %order.head
order.head:
  %ordered = phi i64 [ 1, %start ], [ %ordered.next, %order ]
  %order.more = icmp slt i64 %ordered, %threads
  br i1 %order.more, label %order, label %ordered.all
order:
  %order.offset = mul i64 %ordered, {line_bytes}
  %order.line = getelementptr i8, ptr %helpers, i64 %order.offset
  %order.to = getelementptr i64, ptr %order.line, i64 1
  %order.place = getelementptr i64, ptr %tables, i64 %ordered
  %order.table = load i64, ptr %order.place
  store i64 %order.table, ptr %order.to
  %ordered.next = add i64 %ordered, 1
  br label %order.head
ordered.all:
  %number = load i64, ptr %go
  %number.next = add i64 %number, 1
  store atomic i64 %number.next, ptr %go seq_cst, align 8
  br label %wake.head
wake.head:
  %woken = phi i64 [ 1, %ordered.all ], [ %woken.next, %woken.one ]
  %wake.more = icmp slt i64 %woken, %threads
  br i1 %wake.more, label %wake, label %woken.all
wake:
  %wake.offset = mul i64 %woken, {line_bytes}
  %wake.line = getelementptr i8, ptr %helpers, i64 %wake.offset
  %asleep = atomicrmw xchg ptr %wake.line, i64 0 seq_cst
  %is.asleep = icmp ne i64 %asleep, 0
  br i1 %is.asleep, label %ring, label %woken.one
ring:
  %file.place = getelementptr i64, ptr %wake.line, i64 3
  %file.word = load i64, ptr %file.place
  %file = trunc i64 %file.word to i32
  call i64 %write(i32 %file, ptr %byte, i64 1)
  br label %woken.one
woken.one:
  %woken.next = add i64 %woken, 1
  br label %wake.head
woken.all:
  call void @work(ptr %own_table)
  %before = load i64, ptr %base
  %after = add i64 %before, %barriers
  store atomic i64 %after, ptr %base release, align 8
  ret void
}}
"""

_SERVE = """
define void @serve(ptr %table) nounwind {{
start:
  %moment = alloca [2 x i64]
{words}
  %asleep.place = getelementptr i64, ptr %line, i64 0
  %task.place = getelementptr i64, ptr %line, i64 1
  %seen.place = getelementptr i64, ptr %line, i64 2
  %file.number = trunc i64 %file to i32
  br label %wake
wake:
  store atomic i64 0, ptr %asleep.place seq_cst, align 8
  br label %wait
wait:
  %since = phi i64 [ 0, %wake ], [ 0, %run ], [ %since.next, %patient ]
  br label %look
look:
  %round = phi i64 [ 0, %wait ], [ %round.next, %again ]
  %number = load atomic i64, ptr %go seq_cst, align 8
  %seen = load i64, ptr %seen.place
  %is.new = icmp ne i64 %number, %seen
  br i1 %is.new, label %run, label %idle
run:
  store i64 %number, ptr %seen.place
  %task = load ptr, ptr %task.place
  call void @work(ptr %task)
  br label %wait
idle:
  {pause}
  %round.next = add i64 %round, 1
  %is.enough = icmp sge i64 %round.next, {looks}
  br i1 %is.enough, label %time, label %again
again:
  br label %look
time:
{time}
  %is.first = icmp eq i64 %since, 0
  %since.next = select i1 %is.first, i64 %now, i64 %since
  %waited = sub i64 %now, %since.next
  %is.over = icmp sgt i64 %waited, %patience
  br i1 %is.over, label %lie.down, label %patient
patient:
  br label %wait
lie.down:
  store atomic i64 1, ptr %asleep.place seq_cst, align 8
  %number.last = load atomic i64, ptr %go seq_cst, align 8
  %is.late = icmp ne i64 %number.last, %seen
  br i1 %is.late, label %wake, label %sleep
sleep:
  call i64 %read(i32 %file.number, ptr %moment, i64 {bytes_read})
  br label %wake
}}
"""

_INTEGERS = {"count", "clock_id", "own", "threads", "barriers", "patience", "file"}


@functools.cache
def module_text(*, counts: bool) -> str:
    """The module with the three functions, each of a table of words.

    Parameters
    ----------
    counts : whether `work` counts cycles instead of looking at the clock each time
    """
    declaration, pause = pause_for(native.architecture())
    numbers = range(1, MOST_PARAMETERS + 1)
    work = _WORK.format(
        words=_loads(WORK_WORDS),
        barrier=BARRIER,
        cases=" ".join(f"i64 {number}, label %call.{number}" for number in numbers),
        calls="\n".join(map(_call, numbers)),
        passed="".join(f", [ %passed, %call.{number} ]" for number in numbers),
        line_bytes=LINE_BYTES,
        spins=SPINS_BEFORE_YIELDING,
        pause=pause,
        begin="begin.rows" if counts else "begin",
        first_time=_FIRST_TIME.format(clock=_clock("first.time")) if counts else "",
        time=_COUNT if counts else _clock("now"),
        last_time=_LAST_TIME.format(clock=_clock("last.time")) if counts else "",
    )
    lead = _LEAD.format(words=_loads(LEAD_WORDS), line_bytes=LINE_BYTES)
    serve = _SERVE.format(
        words=_loads(SERVE_WORDS), pause=pause, looks=SPINS_BETWEEN_LOOKS, time=_clock("now"), bytes_read=BYTES_READ
    )
    declarations = [declaration, *([_COUNTER, "declare i64 @llvm.smax.i64(i64, i64)"] if counts else [])]
    return "\n".join([*declarations, work, lead, serve])


def _clock(name: str) -> str:
    """Instructions that give the clock's time a name."""
    return _CLOCK.format(name=name, nanoseconds=NANOSECONDS)


def _loads(names: Sequence[str]) -> str:
    """Instructions that load the words of the table."""
    lines = []
    for place, name in enumerate(names):
        lines.append(f"  %{name}.word = getelementptr i64, ptr %table, i64 {place}")
        lines.append(f"  %{name} = load {'i64' if name in _INTEGERS else 'ptr'}, ptr %{name}.word")
    if "clock_id" in names:
        lines.append("  %clock_number = trunc i64 %clock_id to i32")
    return "\n".join(lines)


def _call(number: int) -> str:
    """The block that calls a function of so many parameters."""
    lines, words = [f"call.{number}:"], []
    for place in range(number):
        lines.append(f"  %word.{number}.{place}.place = getelementptr i64, ptr %given, i64 {place}")
        lines.append(f"  %word.{number}.{place} = load i64, ptr %word.{number}.{place}.place")
        words.append(f"i64 %word.{number}.{place}")
    return "\n".join([*lines, f"  call void %function({', '.join(words)})", "  br label %done"])
