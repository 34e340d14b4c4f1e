"""Which functions of a model call which: circles, depth, size once inlined."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from security.inspection.findings import StructureLimits

__all__ = [
    "call_key",
    "check_calls",
    "domain_of",
    "function_keys",
    "graphs_of",
    "show",
    "uncalled",
]

_Key = tuple[str, str, str]
_Problem = tuple[str, str, str]


def check_calls(
    model: Any, functions: Mapping[_Key, Any], limits: StructureLimits
) -> _Problem | None:
    """Look for calls in a circle, calls too deep, and calls that multiply.

    Args:
        model: an onnx.ModelProto, hostile.
        functions: its functions, as `function_keys` has them.
        limits: on depth and on nodes once every call is inlined.

    Returns:
        The first problem as rule, place and message.
    """
    calls = {
        key: _calls(function.node, functions, limits)
        for key, function in functions.items()
    }
    sizes: dict[_Key, int] = {}
    depth = 0
    while len(sizes) < len(calls):
        leaves = [
            key
            for key, targets in calls.items()
            if key not in sizes
            and all(target in sizes for target in targets if target in calls)
        ]
        depth += 1
        if not leaves:
            names = ", ".join(sorted(show(key[1]) for key in calls.keys() - sizes)[:4])
            return "function-cycle", "", f"among {names}"
        if depth > limits.max_depth:
            return "nesting", "", f"calls nest over {limits.max_depth} deep"
        sizes.update({key: _size(calls[key], sizes) for key in leaves})
    total = _size(_calls(model.graph.node, functions, limits), sizes)
    if total > limits.max_expanded_nodes:
        return "expansion", "", f"{total} nodes once functions are inlined"
    return None


def uncalled(
    model: Any, functions: Mapping[_Key, Any], limits: StructureLimits
) -> list[_Key]:
    """The functions that no chain of calls from the graph reaches."""
    reached: set[_Key] = set()
    waiting = list(_calls(model.graph.node, functions, limits))
    while waiting:
        key = waiting.pop()
        if key in functions and key not in reached:
            reached.add(key)
            waiting += _calls(functions[key].node, functions, limits)
    return sorted(functions.keys() - reached)


def _calls(
    nodes: Iterable[Any], functions: Mapping[_Key, Any], limits: StructureLimits
) -> Counter[_Key]:
    """How often each function is called, and under an empty key all other nodes."""
    keys = map(call_key, _all_nodes(nodes, limits.max_depth))
    return Counter(key if key in functions else ("", "", "") for key in keys)


def _size(calls: Counter[_Key], sizes: Mapping[_Key, int]) -> int:
    return sum(count * sizes.get(key, 1) for key, count in calls.items())


def _all_nodes(nodes: Iterable[Any], depth: int) -> Iterator[Any]:
    for node in nodes:
        yield node
        if depth:
            for attribute in node.attribute:
                for graph in graphs_of(attribute):
                    yield from _all_nodes(graph.node, depth - 1)


def function_keys(model: Any) -> dict[_Key, Any]:
    """A model's functions by domain, name and overload."""
    return {
        (domain_of(item.domain), item.name, item.overload): item
        for item in model.functions
    }


def call_key(node: Any) -> _Key:
    """Which function a node calls, if there is such a one."""
    return domain_of(node.domain), node.op_type, node.overload


def graphs_of(attribute: Any) -> list[Any]:
    """The graphs in an attribute, whatever type it declares."""
    single = [attribute.g] if attribute.HasField("g") else []
    return [*single, *attribute.graphs]


def domain_of(domain: str) -> str:
    """A domain's one spelling: the standard's second name is the empty one."""
    return "" if domain == "ai.onnx" else domain


def show(text: str | bytes) -> str:
    """A name from a hostile file, quoted, in ASCII, shortened."""
    return ascii(text[:60])
