"""Before hosts work together: whether each reaches each, how fast, and what differs between them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from ipaddress import ip_address
from time import monotonic, time_ns
from typing import Any, Protocol

import numpy as np

from executors.hosts.cluster import Cluster, HostUnreachableError, Message, RemoteError
from executors.hosts.connection.addresses import parse_address, split_address
from executors.hosts.watch import ClockOffset
from miai_graph.passes.cutting import Links

ANSWER_SECONDS = 5.0
"""How long a host may take to answer."""

THIS_MACHINE = "this machine"

APART_SECONDS = 2.0
"""Clocks that are farther apart are told of."""

BLOCKED_BANDWIDTH, BLOCKED_LATENCY = 1.0, 3600.0
"""What counts as the link of two hosts that do not reach each other, so that no stages next to each other get them."""

_CLOCK_TIMES = 4
_CONSEQUENCES = {
    "miai-graph": "Install the same version on each",
    "Python": "That is allowed",
    "NumPy": "Results may differ in the last bits, and reproducible=True is refused",
    "distributed": "If connections fail, install the same version on each",
    "cryptography": "If connections fail, install the same version on each",
    "msgpack": "If connections fail, install the same version on each",
}
_NEEDED_ALIKE = "miai-graph"


class Described(Protocol):
    """A host, as far as it has described itself."""

    @property
    def address(self) -> str: ...

    @property
    def hostname(self) -> str: ...

    @property
    def versions(self) -> Mapping[str, str]: ...


@dataclass(frozen=True)
class Preflight:
    """What was found.

    Attributes
    ----------
    links : between the hosts, in their order
    problems : with which they cannot work together, each in a sentence or two
    remarks : what differs but does no harm
    offsets : by address, how far the time of day there is from that of this process
    """

    links: Links
    problems: list[str]
    remarks: list[str]
    offsets: Mapping[str, ClockOffset]


def preflight(
    cluster: Cluster, hosts: Sequence[Described], versions_here: Mapping[str, str] | None = None
) -> Preflight:
    """Let hosts reach for each other and exchange messages; compare their versions and clocks.

    All reach for each other at once; then they measure, each with no more than one other at a time.

    Parameters
    ----------
    versions_here : of this process, to compare them, too
    """
    inspection = _Inspection(cluster, hosts)
    inspection.knock()
    inspection.measure()
    offsets = {host.address: offset for host in hosts if (offset := inspection.clock_offset(host)) is not None}
    versions = {inspection.title(host): host.versions for host in hosts}
    if versions_here is not None:
        versions[THIS_MACHINE] = versions_here
    problems, remarks = version_differences(versions)
    clocks = [
        clock_difference(inspection.title(host), offsets[host.address]) for host in hosts if host.address in offsets
    ]
    return Preflight(
        Links(inspection.bandwidth, inspection.latency),
        [*inspection.problems, *problems],
        [*remarks, *filter(None, clocks)],
        offsets,
    )


class _Inspection:
    """Takes down what hosts say of each other."""

    def __init__(self, cluster: Cluster, hosts: Sequence[Described]) -> None:
        self.problems: list[str] = []
        self.bandwidth = np.full((len(hosts), len(hosts)), BLOCKED_BANDWIDTH)
        self.latency = np.full((len(hosts), len(hosts)), BLOCKED_LATENCY)
        self._cluster = cluster
        self._hosts = hosts
        self._places = places(host.address for host in hosts)
        self._silent: set[str] = set()
        self._blocked: set[tuple[str, str]] = set()

    def title(self, host: Described) -> str:
        return title(host.hostname, self._places[host.address])

    def knock(self) -> None:
        """Which hosts others can connect to."""
        addresses = [host.address for host in self._hosts]
        asked = {
            host.address: self._call(host, "knock", addresses=[each for each in addresses if each != host.address])
            for host in self._hosts
        }
        deadline = monotonic() + ANSWER_SECONDS
        found = [(host, self._answer(host, asked[host.address], deadline)) for host in self._hosts]
        for there in self._hosts:
            kept_out: dict[str, list[str]] = {}
            for host, answer in found:
                if reason := answer.get("obstacles", {}).get(there.address):
                    self._blocked.add((host.address, there.address))
                    kept_out.setdefault(reason, []).append(self.title(host))
            # What is wrong with one that does not answer at all has been said.
            if there.address not in self._silent:
                for reason, names in kept_out.items():
                    here = f"host{'s' * (len(names) > 1)} {join(names)}"
                    self.problems.append(obstacle_sentence(here, there.hostname, there.address, reason))

    def measure(self) -> None:
        """Latencies and bandwidths of all pairs that reach each other."""
        for pairs in tournament(len(self._hosts)):
            asked = {pair: self._probe(*pair) for pair in pairs if self._is_open(*pair)}
            deadline = monotonic() + ANSWER_SECONDS
            for (first, second), future in asked.items():
                self._note_link(first, second, self._answer(self._hosts[first], future, deadline))

    def clock_offset(self, host: Described) -> ClockOffset | None:
        """The best of a few round trips."""
        found: list[ClockOffset] = []
        while len(found) < _CLOCK_TIMES and host.address not in self._silent:
            asked_at = time_ns()
            answer = self._answer(host, self._call(host, "time"), monotonic() + ANSWER_SECONDS)
            half = (time_ns() - asked_at) // 2
            if "ns" in answer:
                found.append(ClockOffset(answer["ns"] - asked_at - half, half))
        return min(found, key=lambda offset: offset.uncertainty, default=None)

    def _is_open(self, first: int, second: int) -> bool:
        pair = self._hosts[first].address, self._hosts[second].address
        return not self._silent & {*pair} and not self._blocked & {pair, pair[::-1]}

    def _probe(self, first: int, second: int) -> Future[Message]:
        return self._call(self._hosts[first], "probe", address=self._hosts[second].address)

    def _note_link(self, first: int, second: int, answer: Mapping[str, Any]) -> None:
        if reason := answer.get("failed"):
            here, there = self._hosts[first], self._hosts[second]
            self.problems.append(
                f"host {self.title(here)} exchanges no messages with host {self.title(there)}: {reason}. Look what "
                f"{there.hostname} is busy with, and whether it is awake"
            )
        elif answer:
            self.latency[[first, second], [second, first]] = answer["latency"]
            self.bandwidth[first, second] = answer["bandwidth"]
            self.bandwidth[second, first] = answer["bandwidth_back"]

    def _call(self, host: Described, name: str, **content: Any) -> Future[Message]:
        return self._cluster.call(host.address, name, Message(content))

    def _answer(self, host: Described, future: Future[Message], deadline: float) -> Mapping[str, Any]:
        """What a host answers. If it does not, that is a problem, and it is not asked again."""
        try:
            return future.result(max(0.0, deadline - monotonic())).content
        except TimeoutError:
            reason = f"no answer within {ANSWER_SECONDS:g} s"
        except HostUnreachableError as error:
            reason = error.reason
        except RemoteError as error:
            reason = error.text
        if host.address not in self._silent:
            self._silent.add(host.address)
            self.problems.append(f"host {self.title(host)} does not answer: {reason}")
        return {}


def tournament(players: int) -> Iterator[list[tuple[int, int]]]:
    """Rounds in which each player meets each other once, and nobody two at a time."""
    circle: list[int | None] = [*range(players), *([None] if players % 2 else [])]
    for _ in range(len(circle) - 1):
        half = len(circle) // 2
        pairs = zip(circle[:half], reversed(circle[half:]), strict=True)
        yield [(first, second) for first, second in pairs if first is not None and second is not None]
        circle.insert(1, circle.pop())


def places(addresses: Iterable[str]) -> dict[str, str]:
    """For each address what to tell it by: the machine's, with the port where several hosts are on one machine."""
    parsed = {address: split_address(address) for address in addresses}
    machines = [machine for machine, _ in parsed.values()]
    return {
        address: machine if machines.count(machine) == 1 else f"{machine}:{port}"
        for address, (machine, port) in parsed.items()
    }


def title(name: str, place: str) -> str:
    """A host, as sentences call it."""
    return f"{name} ({place})"


def join(names: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def obstacle_sentence(here: str, there: str, address: str, reason: str) -> str:
    """That one host, or this machine, cannot connect to another one; and what to do."""
    machine, port = parse_address(address)
    advice = f"allow that port in {there}'s firewall"
    if _is_loopback(machine):
        advice = f"on other machines that address means themselves: on {there} join again with --host and its address"
    elif "unreachable" in reason or "no route" in reason:
        advice = f"bring both into one network; if they are, allow that port in {there}'s firewall"
    return f"{here} cannot reach {there} at {machine} port {port}: {reason}; {advice}"


def _is_loopback(machine: str) -> bool:
    try:
        return ip_address(machine).is_loopback
    except ValueError:
        return False


def version_differences(versions: Mapping[str, Mapping[str, str]]) -> tuple[list[str], list[str]]:
    """Problems and remarks on the versions that each host has; Python's last number does not matter."""
    problems: list[str] = []
    remarks: list[str] = []
    for package, consequence in _CONSEQUENCES.items():
        found: dict[str, list[str]] = {}
        for name, installed in versions.items():
            number = installed.get(package, "unknown")
            found.setdefault(".".join(number.split(".")[:2]) if package == "Python" else number, []).append(name)
        if len(found) > 1:
            listed = "; ".join(f"{number} on {join(names)}" for number, names in found.items())
            sentence = f"versions of {package} differ: {listed}. {consequence}"
            (problems if package == _NEEDED_ALIKE else remarks).append(sentence)
    return problems, remarks


def clock_difference(name: str, offset: ClockOffset) -> str | None:
    """A remark on a clock that is far from this machine's."""
    seconds = abs(offset.nanoseconds) / 1e9
    if seconds - offset.uncertainty / 1e9 < APART_SECONDS:
        return None
    side = "ahead of" if offset.nanoseconds > 0 else "behind"
    return (
        f"the clock of host {name} is {_spell(seconds)} {side} this machine's: connections tolerate that, but times in "
        "logs and files will not fit together. Set it"
    )


def _spell(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.1f} s"
