"""Older evidence in today's form: second signatures and time stamps, no new claim.

A statement that was signed with P-256 alone gets an ML-DSA-65 signature over the very
payload that verified, and signatures get time stamps. What is signed was checked here,
in memory, under the policy and the trust root:

1. all the evidence meets the policy, but for signatures and stamps that are missing:
   whatever signature is there must verify (checks 1 to 10, 20 to 23, 27, 29);
2. a sealed model and a model.sig are about this bundle (checks 24, 25);
3. the verdict holds (checks 11 to 15, 28, 29), or is left as it is;
4. a payload is signed once more only if the evaluation rests on it, and its P-256
   signature is of the role whose ML-DSA-65 key signs, by a key that is not revoked, not
   even one whose stamp lies before its compromise;
5. that ML-DSA-65 key holds the role in the trust root, and signs one statement of a
   kind: no key counts for two people;
6. a verdict is signed once more only if it names ML-DSA-65 of all that it rests on;
7. what was made verifies, over the same payload; and a bundle that every door admitted
   is admitted still.

Nothing else is added, and nothing there is replaced. Reports keep their bytes: to write
one in a newer schema would be to claim something anew.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from models.bundle import (
    MODEL_SIGNATURE_FILE,
    SEALED_ATTESTATION_FILE,
    mldsa_file,
)
from sealgate.errors import StatementError
from sealgate.protocol import dsse
from sealgate.protocol.statement import Statement, VerificationSummary
from security.admission import gate
from security.admission.attest import Signers, signature_files
from security.admission.confidential import check_sealed
from security.admission.doors import verify_with
from security.admission.evaluation import evaluation_steps
from security.admission.model_signature import check_signature
from security.admission.rules import Policy, Requirement
from security.admission.steps import Scene, demand
from security.admission.timestamps import Timed
from security.admission.trust import ROLES, TrustRoot
from security.errors import AdmissionRefused

__all__ = ["Plan", "Upgrade", "carry_out", "plan_upgrade", "refusal_of"]

Stamping = Callable[[bytes], bytes]


@dataclass(frozen=True)
class Second:
    """A signature that is to be made.

    Attributes:
        role: whose key makes it.
        payload: that verified.
    """

    role: str
    payload: bytes = field(repr=False)


@dataclass(frozen=True)
class Plan:
    """What an upgrade does, before it is done.

    Attributes:
        seconds: ML-DSA-65 signatures to make, by the path of their file.
        stamps: files that are there, whose signature gets a time stamp.
        left: what is not done, by path, and why.
    """

    seconds: Mapping[str, Second]
    stamps: tuple[str, ...]
    left: Mapping[str, str]


@dataclass(frozen=True)
class Upgrade:
    """What is to be written.

    Attributes:
        files: by path inside the bundle.
        signed, stamped: which of them are new, or have a stamp more.
    """

    files: Mapping[str, bytes] = field(repr=False)
    signed: Mapping[str, str]
    stamped: tuple[str, ...]


@dataclass(frozen=True)
class _Checked:
    """A P-256 signature that was checked, and what is known of it."""

    name: str
    stem: str
    first: Timed
    role: str
    second: Timed | None


def plan_upgrade(scene: Scene, keys: Mapping[str, Signers], *, stamps: bool) -> Plan:
    """Check a bundle, and say what can be added to it: 1 to 6. Nothing is signed.

    Args:
        scene: the bundle, possibly hostile, the policy, the trust root, the time.
        keys: by role, of who asks; each with an ML-DSA-65 key.
        stamps: whether signatures are to be stamped.

    Raises:
        AdmissionRefused: the first check that failed.
    """
    for role, signers in keys.items():
        _check_holder(scene.trust, role, signers)
    lenient = replace(scene, policy=_lenient(scene.policy))
    evaluation = demand(evaluation_steps(lenient))
    check_sealed(lenient)
    check_signature(lenient)
    verdicts, left = _verdicts(lenient)
    names = {name: _stem(name) for name in evaluation.signatures}
    if SEALED_ATTESTATION_FILE in scene.bundle.files:
        names[SEALED_ATTESTATION_FILE] = "sealed"
    names |= dict.fromkeys(verdicts, "verdict")
    found = [_checked(scene, name, stem) for name, stem in sorted(names.items())]
    planner = _Planner(scene, keys, verdicts, found)
    for item in found:
        planner.consider(item)
    stamped = _unstamped(scene, found) if stamps else []
    unsigned = _unsupported(scene, names.keys() | left.keys())
    return Plan(planner.seconds, tuple(stamped), left | planner.left | unsigned)


def carry_out(
    plan: Plan, scene: Scene, keys: Mapping[str, Signers], stamp: Stamping | None
) -> Upgrade:
    """Sign and stamp what was planned, and check it: 7. Nothing is written.

    Args:
        plan: of this very scene.
        scene: as for the plan: these bytes are what was checked.
        keys: as for the plan.
        stamp: gives a signed file with a time stamp more.

    Raises:
        AdmissionRefused: what was signed does not verify, or a door that admitted the
            bundle would not any more.
        SealgateError: a key or an authority of time cannot be reached.
    """
    made: dict[str, bytes] = {}
    for name, second in plan.seconds.items():
        made[name] = _sign(scene.trust, keys[second.role], second, name)
    if stamp is not None:
        made = {name: stamp(data) for name, data in made.items()}
        made |= {name: stamp(scene.bundle.files[name]) for name in plan.stamps}
    _check_doors(scene, made)
    signed = {name: second.role for name, second in plan.seconds.items()}
    return Upgrade(made, signed, () if stamp is None else plan.stamps)


def refusal_of(scene: Scene, files: Mapping[str, bytes]) -> AdmissionRefused | None:
    """Why a door refuses the bundle with files more; None where it is admitted."""
    bundle = replace(scene.bundle, files={**scene.bundle.files, **files})
    try:
        verify_with(bundle, scene.policy, scene.trust, now=scene.now)
    except AdmissionRefused as error:
        return error
    return None


def _lenient(policy: Policy) -> Policy:
    """A policy that lacks nothing but second signatures and stamps that are not there.

    Those that are there are checked even where the policy would not look at them.
    """

    def of(items: tuple[Requirement, ...]) -> tuple[Requirement, ...]:
        return tuple(replace(it, signatures="any", timestamps=False) for it in items)

    return replace(
        policy,
        requirements=of(policy.requirements),
        models=tuple(
            replace(rules, requirements=of(rules.requirements))
            for rules in policy.models
        ),
        waivers=replace(policy.waivers, signatures="any", timestamps=False),
        signatures="any",
        verdict_signatures="any",
        verdict_timestamps=False,
        verdict_recomputed=(),
    )


def _check_holder(trust: TrustRoot, role: str, signers: Signers) -> None:
    """5: the key that signs is believed, for this role."""
    key = signers.mldsa
    hint = "" if key is None else _hint(key)
    if hint not in trust.keys((role,), algorithm=dsse.ML_DSA_65):
        raise AdmissionRefused(
            2, f"the ML-DSA-65 key does not hold the role {role} in the trust root"
        )


def _verdicts(lenient: Scene) -> tuple[dict[str, VerificationSummary], dict[str, str]]:
    """3: the verdicts that hold, by path; those that do not, and why."""
    names = signature_files(lenient.bundle.files, "verdict")
    try:
        gate.verify(lenient.bundle, lenient.policy, lenient.trust, now=lenient.now)
    except AdmissionRefused as error:
        return {}, dict.fromkeys(names, f"does not hold ({error}): `admit` again")
    held = {
        name: lenient.trust.verify(lenient.bundle.files[name], ROLES) for name in names
    }
    return {
        name: VerificationSummary.from_statement(Statement.from_json(item.payload))
        for name, item in held.items()
    }, {}


def _checked(scene: Scene, name: str, stem: str) -> _Checked:
    """The signatures of a statement, from the bytes that were evaluated."""
    files, trust = scene.bundle.files, scene.trust
    first = trust.verify(files[name], ROLES)
    role = trust.role_of(first.hint) or ""
    data, second = files.get(mldsa_file(name)), None
    if data is not None and trust.has(role, dsse.ML_DSA_65):
        second = trust.verify(data, (role,), algorithm=dsse.ML_DSA_65)
    return _Checked(name, stem, first, role, second)


class _Planner:
    """Which statements get a second signature: 4 to 6, in the order of their names."""

    def __init__(
        self,
        scene: Scene,
        keys: Mapping[str, Signers],
        verdicts: Mapping[str, VerificationSummary],
        found: Sequence[_Checked],
    ) -> None:
        self.seconds: dict[str, Second] = {}
        self.left: dict[str, str] = {}
        self._scene, self._keys = scene, keys
        self._verdicts = verdicts
        self._inputs = [it for it in found if it.stem not in ("verdict", "sealed")]

    def consider(self, item: _Checked) -> None:
        """Plan a second signature of a statement, or say why not."""
        if item.second is not None:
            return
        reason = self._reason(item)
        if reason:
            self.left[item.name] = reason
        else:
            name = mldsa_file(item.name)
            self.seconds[name] = Second(item.role, item.first.payload)

    def _reason(self, item: _Checked) -> str:
        """Why a statement gets none; empty where it does."""
        trust, signers = self._scene.trust, self._keys.get(item.role)
        if item.first.hint in trust.revoked:
            return "signed by a revoked key: no other key vouches for that"
        if not trust.has(item.role, dsse.ML_DSA_65):
            return f"the trust root gives {item.role} no ML-DSA-65 key"
        if signers is None:
            return f"needs the ML-DSA-65 key of {item.role}: `--role {item.role}`"
        others = signature_files(self._scene.bundle.files, item.stem)
        if len(others) > 1 and item.first.hint != signers.hint:
            return f"another {item.role}'s, who signs it a second time with their key"
        if item.stem == "verdict":
            return self._unnamed(self._verdicts[item.name])
        return self._lost(item)

    def _lost(self, item: _Checked) -> str:
        """A verdict names what was checked; where it need not be, it stays so."""
        mode = _mode(self._scene, item.stem)
        named = all(
            dsse.ML_DSA_65 in summary.signed_with(item.name)
            for summary in self._verdicts.values()
        )
        if item.stem == "sealed" or mode != "any" or named:
            return ""
        return "the policy takes one signature, and the verdict that holds names one"

    def _unnamed(self, summary: VerificationSummary) -> str:
        """6: a verdict's second signature is of one that names those below it."""
        for item in self._inputs:
            mode = _mode(self._scene, item.stem)
            known = self._scene.trust.has(item.role, dsse.ML_DSA_65)
            needed = mode == "both" or (mode is None and known)
            if needed and dsse.ML_DSA_65 not in summary.signed_with(item.name):
                return f"names no ML-DSA-65 of {item.name}: `admit` again once it has"
        return ""


def _mode(scene: Scene, stem: str) -> str | None:
    """Which signatures the policy asks of a kind, a waiver, or the sealed model."""
    if stem.startswith("waiver-"):
        return scene.policy.waivers.signatures
    required = {item.kind: item for item in scene.required}
    return required[stem].signatures if stem in required else scene.policy.signatures


def _unstamped(scene: Scene, found: list[_Checked]) -> list[str]:
    """Files whose signature was checked, and which no trusted authority stamped."""
    names = [item.name for item in found if item.first.stamp is None]
    names += [
        mldsa_file(item.name) for item in found if item.second and not item.second.stamp
    ]
    files = scene.bundle.files
    signature = files.get(MODEL_SIGNATURE_FILE)
    if signature and scene.trust.verify(signature, ROLES).stamp is None:
        names.append(MODEL_SIGNATURE_FILE)
    return sorted(names)


def _unsupported(scene: Scene, known: set[str]) -> dict[str, str]:
    """Signed files that are not looked at, and why."""
    files, left = scene.bundle.files, {}
    for name in files:
        if name.endswith(".mldsa.sigstore.json"):
            continue
        if name.startswith("attestations/") and name not in known:
            left[name] = "the policy does not rest on it, so it was not checked"
    if MODEL_SIGNATURE_FILE in files:
        left[MODEL_SIGNATURE_FILE] = "the OpenSSF's form has one signature, by P-256"
    return left


def _sign(trust: TrustRoot, signers: Signers, second: Second, name: str) -> bytes:
    """7: a second signature, which verifies as every door will verify it."""
    if signers.mldsa is None:
        raise AdmissionRefused(2, f"{name}: no ML-DSA-65 key")
    data = dsse.sign(second.payload, signers.mldsa)
    try:
        made = trust.verify(data, (second.role,), algorithm=dsse.ML_DSA_65)
    except StatementError as error:
        raise AdmissionRefused(2, f"{name}: what was signed: {error}") from None
    if made.payload != second.payload:
        raise AdmissionRefused(2, f"{name}: another payload was signed")
    return data


def _check_doors(scene: Scene, made: Mapping[str, bytes]) -> None:
    """7: who was admitted stays admitted."""
    if refusal_of(scene, {}) is not None:
        return
    after = refusal_of(scene, made)
    if after is not None:
        raise AdmissionRefused(
            after.check, f"admitted as it is, and not upgraded: {after.reason}"
        )


def _stem(name: str) -> str:
    """The kind of a statement, or "waiver-" and the kind, of its path.

    >>> _stem("attestations/quality.2.sigstore.json")
    'quality'
    """
    return name.removeprefix("attestations/").partition(".")[0]


def _hint(key: dsse.SigningKey) -> str:
    return (dsse.KeySigner(key) if isinstance(key, dsse.PrivateKey) else key).hint
