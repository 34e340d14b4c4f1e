"""What a principal's scopes allow. Deny by default.

``infer:<model>`` or ``infer:*`` grants inference, and the metadata and attestations
that a caller needs for it; ``metrics`` grants the server's metrics. The check never
asks whether the model exists, so its answer does not tell.
"""

from __future__ import annotations

from security.access.claims import Principal
from security.errors import ScopeError

__all__ = ["authorize_metrics", "authorize_model", "model_scope"]


def model_scope(model: str) -> str:
    """The scope that grants one model.

    >>> model_scope("breast-cancer")
    'infer:breast-cancer'
    """
    return f"infer:{model}"


def authorize_model(principal: Principal, model: str) -> None:
    """Allow the use of a model, or raise.

    Raises:
        ScopeError: no scope of the principal grants it.
    """
    if principal.scopes.isdisjoint({model_scope(model), "infer:*"}):
        raise ScopeError(model_scope(model))


def authorize_metrics(principal: Principal) -> None:
    """Allow reading the server's metrics, or raise.

    Raises:
        ScopeError: the principal lacks the scope ``metrics``.
    """
    if "metrics" not in principal.scopes:
        raise ScopeError("metrics")
