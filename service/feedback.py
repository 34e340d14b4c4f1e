"""Labels that come later: tickets that answers carry, and labels that bring them back.

A request for inference that has ``"parameters": {"tickets": true}`` is answered with a
ticket for each row in the answer's ``parameters``, null where the model gave no number.
A label is sent to ``POST /v2/models/{model}/feedback``::

    {"labels": [{"ticket": "EdNH…", "label": "yes", "group": "under 30"}]}

The answer says of each, in their order, what became of it. Who has no real ticket of
this model learns nothing but "refused".
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from sealgate.errors import TensorError
from sealgate.feedback import MAX_LABELS, MAX_TICKETS
from sealgate.protocol.bhttp import Request
from sealgate.protocol.tensors import Array
from security.errors import MonitoringError
from security.monitoring.cohorts import Cohorts, Feedback
from service.content import Content
from service.inference.served import Served
from service.problems import Problem
from service.telemetry.recorder import Decision

__all__ = [
    "MAX_BODY_BYTES",
    "MAX_LABELS",
    "MAX_TICKETS",
    "of_model",
    "read_labels",
    "take",
    "ticketed",
    "tickets",
]

# Of JSON without long arrays, that much is parsed at most.
MAX_BODY_BYTES = 128 << 10
_FIELDS = {"ticket", "label", "group"}
# At most one: threads that wait for the store are not there for anyone's content.
_APART = asyncio.Semaphore(1)


def of_model(version: bytes | None) -> None:
    """Refuse labels that are sent to one version.

    Raises:
        Problem: they are.
    """
    if version is not None:
        raise Problem("not-found", "labels are sent to the model, by tickets")


def ticketed(
    document: Mapping[str, Any], rows: int, model: Served, cohorts: Cohorts | None
) -> str:
    """The output that tickets are made from; "" if the request wants none.

    Raises:
        TensorError: the parameter is no boolean, or more rows than get tickets.
        Problem: this server, or this model, gives none.
    """
    parameters = document.get("parameters") or {}
    wanted = parameters.get("tickets", False)
    if not isinstance(wanted, bool):
        raise TensorError("request: tickets is not a boolean")
    if not wanted:
        return ""
    if rows > MAX_TICKETS:
        raise TensorError(f"request: at most {MAX_TICKETS} rows get tickets at once")
    output = "" if cohorts is None else cohorts.gives(model.tag)
    if output not in model.output_names:
        raise Problem("no-tickets")
    return output


def tickets(
    cohorts: Cohorts | None,
    model: Served,
    source: str,
    subject: str,
    outputs: Mapping[str, Array],
) -> dict[str, Any]:
    """The parameters of an answer: none, if `ticketed` found no ``source``.

    Raises:
        Problem: this version gives no tickets.
    """
    if not source or cohorts is None:
        return {}
    try:
        return {"tickets": cohorts.issue(model.tag, subject, outputs)}
    except MonitoringError:
        raise Problem("no-tickets") from None


async def read_labels(request: Request) -> list[Feedback]:
    """The labels that a request brings.

    Raises:
        Problem: too large, not JSON, or not of the form above.
        TensorError: its length of JSON is none.
    """
    if len(request.body) > MAX_BODY_BYTES:
        raise Problem("body-too-large", f"at most {MAX_BODY_BYTES} bytes of labels")
    content = await Content.read(request, (), max_bytes=MAX_BODY_BYTES)
    items = content.document.get("labels")
    if (
        content.document.keys() != {"labels"}
        or not isinstance(items, list)
        or not 1 <= len(items) <= MAX_LABELS
        or len(content.tail)
    ):
        raise Problem("invalid-request", f'expected "labels", 1 to {MAX_LABELS}')
    return [_label(item, at) for at, item in enumerate(items)]


async def take(
    request: Request,
    decision: Decision,
    cohorts: Cohorts | None,
    may: Callable[[str], bool],
) -> dict[str, Any]:
    """Keep labels, and say what became of each.

    Args:
        request: from who may send labels of the model.
        decision: is told how many there are.
        cohorts: keeps them.
        may: whether the sender may label a version's answers.

    Raises:
        Problem: as `read_labels`; this server takes none.
        MonitoringStoreError: as `Cohorts.accept`.
        QuotaError, QuotaStoreError: each label is charged as a row.
    """
    if cohorts is None:
        raise Problem("no-tickets")
    items = await read_labels(request)
    decision.rows = len(items)
    if decision.ticket is not None:
        await decision.ticket.charge_rows(len(items))
    model = decision.model or ""
    async with _APART:
        outcomes = await asyncio.to_thread(cohorts.accept, model, items, may=may)
    return {"outcomes": outcomes, "accepted": outcomes.count("accepted")}


def _label(item: Any, at: int) -> Feedback:
    if (
        not isinstance(item, dict)
        or not {"ticket", "label"} <= item.keys() <= _FIELDS
        or not isinstance(item["ticket"], str)
        or not isinstance(item["label"], str | int | float)
        or not isinstance(item.get("group", ""), str)
    ):
        raise Problem(
            "invalid-request",
            f"labels[{at}]: expected a ticket, a label, and perhaps a group",
        )
    return Feedback(item["ticket"], item["label"], item.get("group", ""))
