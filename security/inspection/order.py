"""Nodes in the order in which they need each other.

ONNX demands that order and its checker refuses any other. onnxruntime sorts the nodes
of the outermost graph (not those of a branch or a function), so that such a file runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from typing import Any

from security.inspection.calls import graphs_of

__all__ = ["sort_nodes"]


def sort_nodes(graph: Any) -> bool:
    """Sort the nodes of a graph where they lie; whether that changed anything.

    Where two nodes need each other, all stay where they are.
    """
    nodes = list(graph.node)
    maker = {name: index for index, node in enumerate(nodes) for name in node.output}
    needs = {
        index: {maker[name] for name in _reads(node) if name in maker} - {index}
        for index, node in enumerate(nodes)
    }
    if all(other < index for index, before in needs.items() for other in before):
        return False
    try:
        order = list(TopologicalSorter(needs).static_order())
    except CycleError:
        return False
    copies = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies[index] for index in order)
    return True


def _reads(node: Any) -> Iterator[str]:
    """The names that a node or a graph within it reads; "" is none."""
    waiting = [node]
    while waiting:
        current = waiting.pop()
        yield from (name for name in current.input if name)
        for attribute in current.attribute:
            for graph in graphs_of(attribute):
                yield from (entry.name for entry in graph.output)
                waiting += graph.node
