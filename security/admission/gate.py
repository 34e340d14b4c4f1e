"""The admission gate: numbered checks over bytes already read. It does no I/O.

`evaluation.evaluation_steps` decides whether a bundle's evidence meets a policy: what
the policy requires of a model of this name. First every waiver in the bundle (20 to 23,
listed in `security.admission.waivers`), then for each required kind:

1. the report and its attestation are in the bundle;
2. every attestation of it is signed by a key whose role the policy allows for this
   kind, with the algorithms and time stamps that it asks for (`steps.read_statement`),
   and together by as many different keys as the policy asks for;
3. each statement is about this bundle: root digest and model digest, both;
4. each statement is a passed test result of this kind, and binds this report's bytes;
5. the report says the same itself: kind, name, version and digests;
6. the report is fresh, by the earlier of its own time and its time stamps, and neither
   is from the future (`steps.check_stamps`);
7. no check in the report failed;
8. the report's conditions are the policy's;
9. every threshold holds, on a sample that is large enough;
10. what was recomputed here agrees with what the report claims, and epsilon is of a
    mechanism that can be accounted for.

A waiver lifts all of these for its kind, or one metric, condition or failed check.

`verify` is what the doors call. It evaluates again, and demands the signed verdict:

11. the verdict is in the bundle, each copy of it signed by a role the policy allows,
    and together by as many different keys as the policy asks for;
12. it is about this bundle, and a verification summary that passed;
13. it was made under this very policy, by digest;
14. it rests on exactly these attestations and waivers, by digest, and claims no more;
    of each it names every algorithm whose signature was checked here;
15. it is fresh, and not from the future;
28. the model card and the bill of materials are those that it was signed over. Verdicts
    of releases that bound none still count, and the admission says so.

27 is among the checks of the evidence (`consistency`), and so is a part of

29. how much of each answer may leave is as little as the policy demands, the evidence
    was measured through it, and the verdict says it (`outputs`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

from models.bundle import VERDICT_FILE, Bundle
from models.errors import BundleError
from models.report import Report, parse_time
from sealgate.errors import StatementError
from sealgate.protocol.dsse import ECDSA_P256, ML_DSA_65
from sealgate.protocol.statement import VerificationSummary, Waiver
from security.admission.attest import (
    Signers,
    documents,
    resource_uri,
    signature_files,
    signed_digest,
)
from security.admission.certified import claims_certificate
from security.admission.consistency import initial_weights
from security.admission.evaluation import (
    Evaluation,
    Recomputed,
    evaluation_steps,
    states_epsilon,
)
from security.admission.outputs import OUTPUT_CHECK
from security.admission.rules import Policy
from security.admission.steps import (
    Read,
    Scene,
    Signed,
    Steps,
    check_age,
    check_stamps,
    count_signers,
    demand,
    describe,
    drain,
    end_of,
    needs_mldsa,
    read_statement,
)
from security.admission.timestamps import Stamp
from security.admission.trust import TrustRoot
from security.errors import AdmissionRefused

__all__ = [
    "Admission",
    "Evaluation",
    "Recomputed",
    "all_refusals",
    "check_keys",
    "verify",
]


@dataclass(frozen=True)
class Admission:
    """A bundle that passed, and the documents that say so.

    Attributes:
        bundle: the bytes that were checked.
        verdict_sha256: digest of the verdict's file, without time stamps.
        reports: the parsed evidence by kind.
        waivers: what was let pass, by kind.
        expires_at: when evidence, a waiver or the verdict gets too old, or, of a
            door, when the trust root expires.
        notices: what evidence of an earlier release leaves open, one line each.
        signatures: by file of a statement or verdict, the algorithms whose signatures
            were checked.
        stamps: the trusted time stamps of the verdict's signatures.
        recomputed: by kind that claims a certificate, whether every verdict says that
            it was recomputed from its rows.
    """

    bundle: Bundle
    verdict_sha256: str
    reports: Mapping[str, Report]
    waivers: Mapping[str, Waiver] = field(default_factory=dict)
    expires_at: datetime | None = None
    notices: tuple[str, ...] = ()
    signatures: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    stamps: tuple[Stamp, ...] = ()
    recomputed: Mapping[str, bool] = field(default_factory=dict)

    def without_model(self) -> Admission:
        """This admission without its model's bytes, once they are loaded."""
        return replace(self, bundle=self.bundle.without_model())


def verify(
    bundle: Bundle, policy: Policy, trust: TrustRoot, *, now: datetime
) -> Admission:
    """All checks but 10's numbers, whose result the verdict's signer vouches for.

    Raises:
        AdmissionRefused: the first check that failed.
    """
    scene = Scene(bundle, policy, trust, now)
    return demand(_door_steps(scene, evaluation_steps(scene)))


def check_keys(keys: Signers, scene: Scene) -> None:
    """Check 11 of a verdict that is yet to be signed, as far as its keys decide it.

    Raises:
        AdmissionRefused: no door would believe a verdict by these keys.
    """
    trust, roles = scene.trust, scene.policy.verdict_signers
    role = trust.role_of(keys.hint) or ""
    if keys.hint not in trust.keys(roles, algorithm=ECDSA_P256):
        named = " or ".join(roles)
        raise AdmissionRefused(
            11, f"verdict: the key {keys.hint} does not hold the role {named}"
        )
    if not needs_mldsa(trust, role, scene.policy.verdict_signatures):
        return
    if keys.mldsa_hint is None:
        raise AdmissionRefused(
            11, f"verdict: {role} must sign with ML-DSA-65 too: --mldsa-key"
        )
    if keys.mldsa_hint not in trust.keys((role,), algorithm=ML_DSA_65):
        raise AdmissionRefused(
            11, f"verdict: the ML-DSA-65 key {keys.mldsa_hint} is not one of {role}"
        )


def all_refusals(
    bundle: Bundle,
    policy: Policy,
    trust: TrustRoot,
    *,
    now: datetime,
    recomputed: Recomputed | None = None,
    verdict: bool = True,
) -> list[AdmissionRefused]:
    """Every check that fails, in order; none if `verify` would pass.

    A check whose basis failed is not made: a report whose signature is bad is not read.
    ``recomputed`` enables check 10, which the toolkit can make and the serving image
    cannot; ``verdict`` adds checks 11 to 15.
    """
    scene = Scene(bundle, policy, trust, now)
    steps = evaluation_steps(scene, recomputed)
    return drain(_door_steps(scene, steps))[0] if verdict else drain(steps)[0]


def _door_steps(scene: Scene, evaluation_of: Steps[Evaluation]) -> Steps[Admission]:
    """An evaluation, then checks 11 to 15 for every verdict in the bundle."""
    evaluation = yield from evaluation_of
    policy, files = scene.policy, scene.bundle.files
    found: dict[str, _Verdict] = {}
    notices: list[str] = []
    names = signature_files(files, "verdict")
    if VERDICT_FILE not in names:
        yield AdmissionRefused(11, "verdict is missing: the bundle was not admitted")
    for name in names:
        found |= yield from _verdict_steps(scene, evaluation, name, notices)
    privacy = evaluation.reports.get("privacy")
    if privacy and states_epsilon(privacy) and initial_weights(privacy) is None:
        notices.append("the privacy report does not say what the weights started from")
    signers = count_signers([item.read for item in found.values()])
    if 0 < signers < policy.verdict_min_signers:
        yield AdmissionRefused(
            11,
            f"verdict needs {policy.verdict_min_signers} signers, has {signers} "
            f"in {len(names)} files",
        )
    return Admission(
        bundle=scene.bundle,
        verdict_sha256=signed_digest(files.get(VERDICT_FILE, b"")),
        reports=evaluation.reports,
        waivers=evaluation.waivers,
        expires_at=min([evaluation.expires_at, *(item.end for item in found.values())]),
        notices=tuple(notices),
        signatures={
            **evaluation.signatures,
            **{name: item.read.algorithms for name, item in found.items()},
        },
        stamps=tuple(s for item in found.values() for s in item.read.stamps),
        recomputed={
            kind: not any(kind in item.left for item in found.values())
            for kind in claims_certificate(evaluation.reports)
        },
    )


@dataclass(frozen=True)
class _Verdict:
    """One verdict: its signatures, when it gets too old, and what it left to others.

    Attributes:
        read: the statement.
        end: from then on it is too old.
        left: kinds that claim a certificate, which it did not recompute.
    """

    read: Read
    end: datetime
    left: tuple[str, ...]


def _verdict_steps(
    scene: Scene, evaluation: Evaluation, name: str, notices: list[str]
) -> Steps[dict[str, _Verdict]]:
    """Checks 11 to 15, 28, 29 for one verdict, by its name."""
    policy, what = scene.policy, describe("verdict", name)
    read = yield from read_statement(
        Signed.of(scene.bundle.files, name),
        scene,
        signers=policy.verdict_signers,
        mode=policy.verdict_signatures,
        timestamps=policy.verdict_timestamps,
        what=what,
        checks=(11, 12),
    )
    if read is None:
        return {}
    try:
        summary = VerificationSummary.from_statement(read.statement)
        verified_at = parse_time(summary.verified_at)
    except (StatementError, BundleError) as error:
        yield AdmissionRefused(12, f"{what}: {error}")
        return {}
    yield from _summary_steps(summary, scene, evaluation, what)
    if summary.documents is None:
        notices.append(f"{what} binds no documents: it is of an earlier release")
    claims = claims_certificate(evaluation.reports)
    left = tuple(kind for kind in claims if not summary.recomputed.get(kind))
    notices += [f"{what} did not recompute what {k} claims is proved" for k in left]
    max_age, now = policy.verdict_max_age, scene.now
    since = yield from check_stamps(
        verified_at, read.stamps, now=now, check=15, what=what
    )
    yield from check_age(since, max_age, now=now, check=15, what=what)
    return {name: _Verdict(read, end_of(since, max_age), left)}


def _summary_steps(
    summary: VerificationSummary, scene: Scene, evaluation: Evaluation, what: str
) -> Steps[None]:
    """What a verdict says: checks 12 to 14, 28 and 29."""
    if not summary.passed or summary.resource_uri != resource_uri(scene.bundle.subject):
        yield AdmissionRefused(12, f"{what} did not pass, or is for another model")
    if summary.policy.sha256 != scene.policy.resource.sha256:
        yield AdmissionRefused(13, f"{what} was made under another policy")
    if set(summary.inputs) != set(evaluation.inputs):
        yield AdmissionRefused(14, f"{what} rests on other attestations than these")
    lines = {str(waiver) for waiver in evaluation.waivers.values()}
    if set(summary.levels) != set(evaluation.levels) or set(summary.waivers) != lines:
        yield AdmissionRefused(14, f"{what} claims something else than was verified")
    for name, checked in evaluation.signatures.items():
        for algorithm in sorted({*checked} - {*summary.signed_with(name)}):
            yield AdmissionRefused(14, f"{what}: {algorithm} of {name} was not checked")
    if summary.documents is not None:
        present = documents(scene.bundle)
        for name in sorted({item.name for item in {*present} ^ {*summary.documents}}):
            yield AdmissionRefused(28, f"{what} was signed over another {name}")
    claims = claims_certificate(evaluation.reports)
    for kind in scene.policy.verdict_recomputed:
        if kind in claims and not summary.recomputed.get(kind):
            yield AdmissionRefused(
                14, f"{what} did not recompute {kind}, and the policy needs it"
            )
    own = scene.bundle.manifest.output_policy.to_object()
    if (summary.output_policy or {}) != own:
        yield AdmissionRefused(OUTPUT_CHECK, f"{what} says that something else leaves")
