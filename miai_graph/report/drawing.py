"""Where the boxes of the report's graph stand: those of layers, within each of them its layers, and within these ops.

Blocks of layers that come again and again are one box too, within which all of them stand.

Each box that can be opened has a drawing of its own inside. The page makes room for those that are opened, so nothing
is laid out again there, and what the reader has seen stays where it was.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from miai_graph.graph import Graph
from miai_graph.node import Node
from miai_graph.views.columns import BACKWARD_COLUMN, UPDATE_COLUMN, columns_of, lines_of
from miai_graph.views.folding import Piece, fold_by_layer
from miai_graph.views.graph_repeats import MOST_PIECES, Repeat, outermost_names, repeats_of
from miai_graph.views.layout import Box, Edge, Point, Spacing, layered
from miai_graph.views.wrapping import wrapped

GROUP_SIZE = 176.0, 64.0
NODE_SIZE = 156.0, 42.0
"""Width and height of closed boxes, in the page's pixels at full size."""

_SPACING = Spacing(beside=20.0, below=30.0, edge=10.0)
_WANTED_RATIO = 1.6

Pair = tuple[int, int]


@dataclass(frozen=True)
class Group(Piece):
    """Nodes that are one box until it is opened.

    parts : what is seen when it is opened; empty for a box of a single node
    times : of how many blocks that look alike it consists
    """

    parts: Sequence[Group] = ()
    times: int = 1


@dataclass
class GraphDrawing:
    """Boxes and links, as plain data (see `miai_graph.report.data`), and where each node is.

    size : of the outermost drawing
    box_of : the number of each node's own box
    """

    boxes: list[dict[str, Any]] = field(default_factory=list)
    links: list[dict[str, Any]] = field(default_factory=list)
    size: tuple[float, float] = 0.0, 0.0
    box_of: dict[Node, int] = field(default_factory=dict)


def draw(graph: Graph) -> GraphDrawing:
    """Place everything."""
    drawing = GraphDrawing()
    drawing.size = _place(drawing, layer_tree(graph), None)
    return drawing


def layer_tree(graph: Graph) -> list[Group]:
    """Layers by phase; a graph without layers is the nodes themselves."""
    if not any(node.scope for node in graph.nodes):
        return [_single(node) for node in graph.nodes]
    pieces = fold_by_layer(graph)
    groups = [_group(piece.scope, piece.phase, piece.nodes) for piece in pieces]
    return _folded(groups, repeats_of(graph, pieces)) if len(pieces) > MOST_PIECES else groups


def _folded(groups: Sequence[Group], repeats: Sequence[Repeat]) -> list[Group]:
    """The groups, with those of each repeat as one, in the place of its first."""
    folded = {min(repeat.members): _repeated(groups, repeat) for repeat in repeats}
    within = {number for repeat in repeats for number in repeat.members}
    return [
        folded.get(number, group) for number, group in enumerate(groups) if number in folded or number not in within
    ]


def _repeated(groups: Sequence[Group], repeat: Repeat) -> Group:
    parts = [groups[number] for number in repeat.members]
    nodes = [node for part in parts for node in part.nodes]
    return Group(" … ".join(outermost_names(parts)), parts[0].phase, nodes, parts, repeat.times)


def _single(node: Node) -> Group:
    return Group(node.scope, node.phase, [node])


def _group(scope: str, phase: str, nodes: Sequence[Node]) -> Group:
    return _single(nodes[0]) if len(nodes) == 1 else Group(scope, phase, nodes, _parts(scope, phase, nodes))


def _parts(scope: str, phase: str, nodes: Sequence[Node]) -> list[Group]:
    """The layers within a layer, and the nodes that are in none of them."""
    members: dict[str, list[Node]] = defaultdict(list)
    for node in nodes:
        members[_inner_scope(node, scope)].append(node)
    members.pop("", None)
    if len(members) == 1 and len(*members.values()) == len(nodes):
        (inner,) = members
        return _parts(inner, phase, nodes)
    owner = {node: inner for inner, own in members.items() if len(own) > 1 for node in own}
    _open_circles(nodes, owner)
    parts: dict[Any, list[Node]] = defaultdict(list)
    for node in nodes:
        parts[owner.get(node, node)].append(node)
    return [_group(key, phase, own) if isinstance(key, str) else _single(key) for key, own in parts.items()]


def _inner_scope(node: Node, scope: str) -> str:
    """The scope of the layer directly within `scope` that a node is in; "" if it is in none."""
    if not scope or not node.scope.startswith(f"{scope}/"):
        return ""
    return f"{scope}/{node.scope[len(scope) + 1 :].split('/', 1)[0]}"


def _open_circles(nodes: Sequence[Node], owner: dict[Node, str]) -> None:
    """Let go of the layers that would depend on each other in a circle, as where one is called twice."""
    import networkx

    while True:
        ends = ((owner.get(source, id(source)), owner.get(node, id(node))) for node in nodes for source in node.inputs)
        folded = networkx.DiGraph((source, target) for source, target in ends if source != target)
        circular = {
            end for circle in networkx.strongly_connected_components(folded) if len(circle) > 1 for end in circle
        }
        if not circular:
            return
        for node in [node for node, inner in owner.items() if inner in circular]:
            del owner[node]


def _place(drawing: GraphDrawing, groups: Sequence[Group], parent: int | None) -> tuple[float, float]:
    """Add the boxes of groups, what is within them, and the links between them. Returns width and height."""
    group_of = {node: place for place, group in enumerate(groups) for node in group.nodes}
    pairs = list(
        dict.fromkeys(
            (group_of[source], group_of[node])
            for node in group_of
            for source in node.inputs
            if source in group_of and group_of[source] != group_of[node]
        )
    )
    placed = _packed(_placed_parts(groups, pairs, columns_of(groups, pairs)))
    first = len(drawing.boxes)
    drawing.boxes += [_box(group, parent, *placed.centres[place]) for place, group in enumerate(groups)]
    drawing.links += [
        {
            "from": first + source,
            "to": first + target,
            "points": [_rounded(*point) for point in placed.routes.get((source, target), ())],
        }
        for source, target in pairs
    ]
    for number, group in enumerate(groups, first):
        if group.parts:
            drawing.boxes[number]["inside"] = _rounded(*_place(drawing, group.parts, number))
        else:
            drawing.box_of[group.nodes[0]] = number
    return placed.width, placed.height


@dataclass(frozen=True)
class _Placed:
    """Centres of boxes and routes of links, between 0 and width and height."""

    centres: Mapping[int, Point]
    routes: Mapping[Pair, Sequence[Point]]
    width: float
    height: float


def _placed_parts(groups: Sequence[Group], all_pairs: Sequence[Pair], columns: Sequence[int]) -> list[_Placed]:
    """A drawing of each part that nothing links with the others."""
    import networkx

    pairs = lines_of(all_pairs, columns)
    linked = networkx.Graph(pairs)
    linked.add_nodes_from(range(len(groups)))
    leads_back = any(
        columns[source] == UPDATE_COLUMN and columns[target] == BACKWARD_COLUMN for source, target in pairs
    )
    parts = sorted(sorted(part) for part in networkx.connected_components(linked))
    part_of = {place: number for number, part in enumerate(parts) for place in part}
    pairs_of: dict[int, list[Pair]] = defaultdict(list)
    for pair in pairs:
        pairs_of[part_of[pair[0]]].append(pair)
    result = []
    for number, part in enumerate(parts):
        boxes = [Box(place, *_size(groups[place]), column=columns[place]) for place in part]
        # Updates stand on top, beside the first layers, for both passes lead to them.
        edges = [
            Edge(a, b, upward=columns[a] > 0 or (columns[b] == UPDATE_COLUMN and not leads_back))
            for a, b in pairs_of[number]
        ]
        drawn = wrapped(layered(boxes, edges, _SPACING), boxes, edges)
        centres = {place: drawn.centres[place] for place in part}
        routes = dict(zip(pairs_of[number], drawn.routes, strict=True))
        result.append(_Placed(centres, routes, drawn.width, drawn.height))
    return result


def _packed(parts: Sequence[_Placed]) -> _Placed:
    """Drawings beside and below each other, in rows, to one that is not much wider than high."""
    area = sum((part.width + _SPACING.beside) * (part.height + _SPACING.below) for part in parts)
    widest = max([math.sqrt(_WANTED_RATIO * area), *(part.width for part in parts)])
    centres: dict[int, Point] = {}
    routes: dict[Pair, Sequence[Point]] = {}
    left = top = width = bottom = 0.0
    for part in parts:
        if left and left + part.width > widest:
            left, top = 0.0, bottom + _SPACING.below
        centres |= {place: (x + left, y + top) for place, (x, y) in part.centres.items()}
        routes |= {pair: [(x + left, y + top) for x, y in route] for pair, route in part.routes.items()}
        width, bottom = max(width, left + part.width), max(bottom, top + part.height)
        left += part.width + _SPACING.beside
    return _Placed(centres, routes, width, bottom)


def _size(group: Group) -> tuple[float, float]:
    return GROUP_SIZE if group.parts else NODE_SIZE


def _box(group: Group, parent: int | None, x: float, y: float) -> dict[str, Any]:
    width, height = _size(group)
    x, y = _rounded(x, y)
    return {
        "scope": group.scope,
        "phase": group.phase,
        "parent": parent,
        "x": x,
        "y": y,
        "width": width,
        "height": height,
        "type": str(group.nodes[-1].type),
        "inside": None,
        "times": group.times,
    }


def _rounded(x: float, y: float) -> tuple[float, float]:
    return round(x, 1), round(y, 1)
