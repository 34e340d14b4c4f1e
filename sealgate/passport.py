"""The passport: a model's signed verdict, and the evidence behind it, checked here.

1. the verdict is signed by a key the client trusts, and passed; where the client trusts
   an ML-DSA-65 key, it is signed by such a key too, over the same payload;
2. it is about the model that was asked for;
3. each attestation and waiver it rests on is present, byte for byte;
4. each attestation and waiver is about the same files as the verdict;
5. each attestation binds the report that came with it, byte for byte, and says that it
   passed; a waiver of a check that failed excuses that.

Who may sign which attestation is the server's policy, whose digest the verdict names;
the signer of the verdict vouches for that.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sealgate.errors import JsonError, PassportError, StatementError
from sealgate.protocol import dsse, strict_json
from sealgate.protocol.offers import verdict_leaf
from sealgate.protocol.statement import (
    Resource,
    Statement,
    TestResult,
    VerificationSummary,
    Waiver,
)

__all__ = ["Passport", "verify_passport"]

MAX_REPORT_BYTES = 16 << 20
_SALT = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class Passport:
    """A verified passport.

    Attributes:
        model: ``name:version``.
        verdict_sha256: digest of the verdict as the bundle has it, without time stamps.
        verified_at: when the policy was evaluated, RFC 3339.
        policy_sha256: digest of the policy that was met.
        model_sha256: root digest of the bundle, as records and receipts name it.
        offer: the verdict's leaf in the public log of offers; empty without one.
        reports: the decoded evidence by kind.
        waivers: requirements of the policy that were let pass, by kind.
        output_policy: how much of each answer may leave; empty for all of it.
    """

    model: str
    verdict_sha256: str
    verified_at: str
    policy_sha256: str
    reports: Mapping[str, Mapping[str, Any]]
    waivers: Mapping[str, Waiver] = field(default_factory=dict)
    output_policy: Mapping[str, Any] = field(default_factory=dict)
    model_sha256: str = ""
    offer: bytes = field(default=b"", repr=False)

    def metric(self, kind: str, name: str) -> float:
        """The value of a metric.

        Raises:
            PassportError: the evidence does not state it.
        """
        try:
            return float(self.reports[kind]["metrics"][name]["value"])
        except (KeyError, TypeError, ValueError):
            raise PassportError(f"the evidence states no {kind} {name}") from None


def verify_passport(
    document: Any, *, model: str, trusted_keys: Iterable[str]
) -> Passport:
    """Check the document that ``/v2/models/{model}/attestations`` answers with.

    Args:
        document: decoded JSON, possibly hostile.
        model: name of the model that was asked for.
        trusted_keys: PEM public keys that may sign verdicts, ECDSA P-256 and
            ML-DSA-65. With one of the second kind, a verdict needs both signatures.

    Raises:
        PassportError: any of the module's checks failed.
    """
    try:
        return _verify(document, model, _keys(trusted_keys))
    except (StatementError, JsonError) as error:
        raise PassportError(f"passport of {model}: {error}") from None


def _verify(document: Any, model: str, keys: Mapping[str, dsse.PublicKey]) -> Passport:
    verdict = _bytes(document, "verdict")
    payload = dsse.verify(verdict, keys).payload
    if dsse.ML_DSA_65 in map(dsse.algorithm_of, keys.values()):
        second = _bytes(document, "verdict_mldsa")
        if dsse.verify(second, keys, algorithm=dsse.ML_DSA_65).payload != payload:
            raise PassportError(f"passport of {model}: two verdicts, not one")
    statement = Statement.from_json(payload)
    summary = VerificationSummary.from_statement(statement)
    name = statement.subjects[0].name
    if not summary.passed or name.partition(":")[0] != model:
        raise PassportError(f"passport of {model}: the verdict is for {name}")
    evidence = document.get("evidence")
    if not isinstance(evidence, dict):
        raise PassportError(f"passport of {model}: there is no evidence")
    inputs = _Inputs(statement, {resource.sha256 for resource in summary.inputs})
    waivers = _waivers(document.get("waivers", {}), inputs)
    reports = {
        kind: _report(kind, item, inputs, waivers.get(kind))
        for kind, item in evidence.items()
    }
    if inputs.left:
        raise PassportError(f"passport of {model}: evidence is missing")
    sha256 = hashlib.sha256(dsse.unstamped(verdict)).hexdigest()
    return Passport(
        model=name,
        verdict_sha256=sha256,
        verified_at=summary.verified_at,
        policy_sha256=summary.policy.sha256,
        reports=reports,
        waivers=waivers,
        output_policy=summary.output_policy or {},
        model_sha256=statement.subjects[0].sha256,
        offer=_offer(document, sha256),
    )


def _offer(document: Any, verdict_sha256: str) -> bytes:
    """The leaf that the salt which came with a passport makes of its verdict."""
    offer = document.get("offer")
    salt = offer.get("salt") if isinstance(offer, dict) else None
    if not isinstance(salt, str) or not _SALT.fullmatch(salt):
        return b""
    return verdict_leaf(verdict_sha256, bytes.fromhex(salt))


class _Inputs:
    """What a verdict rests on, and which of it has not been seen yet."""

    def __init__(self, verdict: Statement, digests: set[str]) -> None:
        self.subjects = verdict.subjects
        self.left = set(digests)
        self._digests = frozenset(digests)

    def take(self, data: bytes, kind: str, what: str) -> Statement:
        """Check 3 for a document; returns its statement."""
        sha256 = hashlib.sha256(data).hexdigest()
        if sha256 not in self._digests:
            raise PassportError(f"{kind}: the verdict does not rest on this {what}")
        self.left.discard(sha256)
        # The gate checked its signature; here the verdict's over its digest counts.
        return Statement.from_json(dsse.read_payload(data))


def _report(
    kind: str, item: Any, inputs: _Inputs, waiver: Waiver | None
) -> dict[str, Any]:
    """Checks 3 to 5 for one kind."""
    attestation, text = _bytes(item, "attestation"), _bytes(item, "report")
    sha256 = hashlib.sha256(text).hexdigest()
    further = item.get("further", [])
    if not isinstance(further, list):
        raise PassportError(f"{kind}: further attestations are malformed")
    others = [_bytes({"attestation": other}, "attestation") for other in further]
    for data in (attestation, *others):
        statement = inputs.take(data, kind, "attestation")
        result = TestResult.from_statement(statement)
        if statement.subjects != inputs.subjects or result.kind != kind:
            raise PassportError(f"{kind}: the attestation is about something else")
        passed = result.passed or (waiver is not None and waiver.check is not None)
        if result.report != Resource(result.report.name, sha256) or not passed:
            raise PassportError(f"{kind}: the report is not the one that was signed")
    return strict_json.loads_object(text, max_bytes=MAX_REPORT_BYTES)


def _waivers(value: Any, inputs: _Inputs) -> dict[str, Waiver]:
    """Checks 3 and 4 for every waiver."""
    if not isinstance(value, dict):
        raise PassportError("waivers are malformed")
    waivers = {}
    for kind in value:
        statement = inputs.take(_bytes(value, kind), kind, "waiver")
        waiver = Waiver.from_statement(statement)
        if statement.subjects != inputs.subjects or waiver.kind != kind:
            raise PassportError(f"{kind}: the waiver is for {waiver.kind}")
        waivers[kind] = waiver
    return waivers


def _keys(pems: Iterable[str]) -> dict[str, dsse.PublicKey]:
    keys: dict[str, dsse.PublicKey] = {}
    for pem in pems:
        try:
            key = dsse.parse_public(pem)
        except StatementError as error:
            raise PassportError(f"a trusted key is {error}") from None
        keys[dsse.key_hint(key)] = key
    return keys


def _bytes(value: Any, name: str) -> bytes:
    text = value.get(name) if isinstance(value, dict) else None
    if not isinstance(text, str):
        raise PassportError(f"the passport has no {name}")
    # Half a surrogate pair becomes "?", and then no digest matches.
    return text.encode(errors="replace")
