"""The versions of a model in the store: who signed what, and whether it still stands.

Nothing here decides anything: signatures are checked under every key the trust root
ever named, revoked ones too, so that a history can name who signed what.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from models.bundle import SIGNED_SUFFIX, VERDICT_FILE, Bundle
from models.errors import BundleError
from models.report import KINDS, Report
from sealgate.errors import StatementError
from sealgate.protocol import dsse
from sealgate.protocol.statement import Statement, VerificationSummary
from security.admission.attest import algorithm_by_name, signed_digest
from security.admission.doors import verify_bundle
from security.admission.store import read_stored, stored_tags
from security.admission.trust import ROLES, PublicKeys, TrustRoot
from security.admission.trust_store import load_trust
from security.errors import AdmissionRefused
from security.settings.admission import AdmissionSettings

__all__ = ["Version", "history", "signed_by"]


@dataclass(frozen=True)
class Version:
    """A stored version of a model.

    Attributes:
        tag: ``name:version``.
        root_sha256: root digest; empty if the version cannot be read.
        refusal: why the doors refuse it today; None if they do not.
        signed: for each signed document, the hint of the key whose signature verifies.
        verified_at: when the verdict was given, RFC 3339; empty without one.
        verdict_sha256: digest of the verdict's file, without time stamps; empty if
            there is none.
        reports: the evidence by kind, as far as it can be read.
    """

    tag: str
    root_sha256: str
    refusal: str | None
    signed: Mapping[str, str]
    verified_at: str
    verdict_sha256: str
    reports: Mapping[str, Report]


def history(name: str, settings: AdmissionSettings) -> list[Version]:
    """Every stored version of a model, the oldest version first.

    Raises:
        BundleError: there is none.
        KeyFileError, SettingsError: the trust root or policy cannot be used.
    """
    trust = load_trust(settings.trust)
    versions = [_version(tag, settings, trust) for tag in _tags(name)]
    if not versions:
        raise BundleError(f"{name} is not in the model store")
    return versions


def signed_by(hint: str, settings: AdmissionSettings) -> list[Version]:
    """Every stored version, of any model, that carries a signature by a key.

    Its `signed` names only what that key signed. A version that cannot be read at all
    is among them: nobody can say that it is not.
    """
    trust = load_trust(settings.trust)
    found = []
    for tag in _tags(None):
        version = _version(tag, settings, trust, only=hint)
        if version.signed or not version.root_sha256:
            found.append(version)
    return found


def _version(
    tag: str, settings: AdmissionSettings, trust: TrustRoot, only: str | None = None
) -> Version:
    try:
        bundle = read_stored(tag)
    except BundleError as error:
        return Version(tag, "", str(error), {}, "", "", {})
    keys = {
        hint: key
        for known in (trust.roles, trust.retired)
        for role in ROLES
        for hint, key in known.get(role, {}).items()
        if only in (None, hint)
    }
    verdict = bundle.files.get(VERDICT_FILE)
    return Version(
        tag=tag,
        root_sha256=bundle.subject.root_sha256,
        refusal=_refusal(bundle, settings),
        signed=_signed(bundle, keys, trust),
        verified_at=_verified_at(verdict, keys),
        verdict_sha256=signed_digest(verdict) if verdict else "",
        reports=_reports(bundle),
    )


def _refusal(bundle: Bundle, settings: AdmissionSettings) -> str | None:
    try:
        verify_bundle(bundle, settings)
    except AdmissionRefused as error:
        return str(error)
    return None


def _signed(bundle: Bundle, keys: PublicKeys, trust: TrustRoot) -> dict[str, str]:
    """The signed documents of a bundle, and whose signature on each verifies."""
    signed = {}
    for name, data in sorted(bundle.files.items()):
        if name.endswith((SIGNED_SUFFIX, ".sig")):
            try:
                hint = _verify(name, data, keys, trust).hint
            except StatementError:
                continue
            stem = name.removeprefix("attestations/").removesuffix(SIGNED_SUFFIX)
            signed[stem] = hint
    return signed


def _verify(
    name: str, data: bytes, keys: PublicKeys, trust: TrustRoot
) -> dsse.Verified:
    """By the algorithm that the file's name says, in the form of the key."""
    algorithm = algorithm_by_name(name)
    return dsse.verify(data, keys, algorithm=algorithm, prehash=trust.prehash)


def _verified_at(verdict: bytes | None, keys: PublicKeys) -> str:
    try:
        statement = Statement.from_json(dsse.verify(verdict or b"", keys).payload)
        return VerificationSummary.from_statement(statement).verified_at
    except StatementError:
        return ""


def _reports(bundle: Bundle) -> dict[str, Report]:
    reports = {}
    for kind in KINDS:
        try:
            reports[kind] = bundle.report(kind)
        except BundleError:
            continue
    return reports


def _tags(name: str | None) -> list[str]:
    wanted = [tag for tag in stored_tags() if name in (None, tag.partition(":")[0])]
    return sorted(wanted, key=_order)


def _order(tag: str) -> tuple[str, list[int], str]:
    """By name, then by the numbers of the version: 10 comes after 9."""
    name, _, version = tag.partition(":")
    parts = version.split(".")
    return name, [int(part) for part in parts if part.isdecimal()], version
