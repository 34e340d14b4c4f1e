"""`admit`: evaluate the policy over a bundle, and sign the verdict."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.errors import BundleError
from models.files import write_atomic
from models.report import Report
from security.commands.admit_rows import (
    GivenRows,
    add_rows,
    given_rows,
    recompute,
)
from security.commands.options import Subparsers, add_admission, admission_settings
from security.commands.signing import add_signing, signers
from security.commands.stages import Stages
from security.errors import AdmissionRefused, TrainingError
from security.settings.admission import AdmissionSettings
from security.settings.loading import load_settings

if TYPE_CHECKING:  # the module imports torch
    from models.bundle import Bundle
    from security.admission.attest import Signers
    from security.admission.evaluation import Recomputed
    from security.admission.steps import Scene
    from security.training.selection import Selection

__all__ = ["Admitted", "add_parser", "admit_bundle", "print_refusals", "run"]

# While one of these fails, a file or report comes from nobody who may vouch for it.
_UNSIGNED = frozenset({1, 2, 3, 4, 5, 20, 21})


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    from security.admission.trust import ROLES  # noqa: PLC0415

    parser = subparsers.add_parser(
        "admit",
        help="evaluate the policy over a bundle and sign the verdict",
        description="Verify a bundle's evidence against the policy, recompute what can "
        "be recomputed (digests, epsilon, structure), and sign the verdict. Nothing is "
        "written when a check fails. Where the policy asks for several signers of the "
        "verdict, each runs this command with their own key.",
    )
    parser.add_argument("bundle", type=Path, help="folder of the bundle")
    parser.add_argument(
        "--role",
        choices=ROLES,
        default="release",
        help="whose key signs, if the policy lets another role (default: release)",
    )
    add_signing(parser)
    add_rows(parser)
    parser.add_argument(
        "--all",
        action="store_true",
        help="list every check that fails, instead of the first, and sign nothing",
    )
    add_admission(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Evaluate and sign; returns the exit code."""
    admission = admission_settings(args)
    if args.all:
        scene = _scene(args.bundle, admission)
        return print_refusals(_all_refusals(args.bundle, scene, given_rows(args)))
    admitted = admit_bundle(
        args.bundle, signers(args, args.role), admission, rows=given_rows(args)
    )
    for name, size in admitted.documents.items():
        print(f"wrote {name}, {size} bytes")
    print(
        f"admitted {admitted.tag} under policy sha256:{admitted.policy_sha256}\n"
        f"verdict sha256:{admitted.verdict_sha256}"
    )
    for kind, again in admitted.recomputed.items():
        done = "was" if again else "was NOT"
        print(f"{kind}: what it claims is proved {done} recomputed from its rows")
    for waiver in admitted.waivers:
        print(f"waiver: {waiver}")
    if admitted.signed < admitted.signers:
        print(f"signed by {admitted.signed} of {admitted.signers} signers")
    return 0


@dataclass(frozen=True)
class Admitted:
    """A verdict that was signed.

    Attributes:
        tag: of the model.
        policy_sha256: of the policy's file.
        verdict_sha256: of the verdict's, without time stamps.
        documents: those that were written: name, and size in bytes.
        waivers: what was waived.
        signed: verdicts that there are now.
        signers: that the policy asks for.
        recomputed: by kind that claims a certificate, whether it was recomputed.
    """

    tag: str
    policy_sha256: str
    verdict_sha256: str
    documents: Mapping[str, int]
    waivers: Sequence[str]
    signed: int
    signers: int
    recomputed: Mapping[str, bool] = field(default_factory=dict)


def admit_bundle(
    folder: Path,
    keys: Signers,
    admission: AdmissionSettings,
    *,
    rows: GivenRows | None = None,
) -> Admitted:
    """Evaluate the policy over a bundle, write its documents, sign the verdict.

    The decision is recorded in the audit log, either way. With the held-out rows of the
    robustness report, what it claims is proved is recomputed.

    Raises:
        AdmissionRefused: a check failed; nothing was written.
        BundleError: not a bundle, or documents that are there cannot be computed.
        KeyFileError, SettingsError: the trust root or the policy cannot be used.
    """
    scene = _scene(folder, admission)
    try:
        return _sign(folder, scene, keys, rows)
    except AdmissionRefused as refusal:
        _record(scene.bundle, f"check-{refusal.check}")
        raise


def _scene(folder: Path, admission: AdmissionSettings) -> Scene:
    from models.bundle import read_bundle  # noqa: PLC0415
    from security.admission.policy import load_policy  # noqa: PLC0415
    from security.admission.steps import Scene  # noqa: PLC0415
    from security.admission.trust_store import load_trust  # noqa: PLC0415

    return Scene(
        read_bundle(folder),
        load_policy(admission.policy),
        load_trust(admission.trust),
        datetime.now(UTC),
    )


def _sign(
    folder: Path, scene: Scene, keys: Signers, rows: GivenRows | None
) -> Admitted:
    from security.admission.attest import (  # noqa: PLC0415
        place,
        signature_files,
        signed_digest,
        signed_files,
        verdict_payload,
    )
    from security.admission.evaluation import evaluation_steps  # noqa: PLC0415
    from security.admission.gate import check_keys  # noqa: PLC0415
    from security.admission.signers import write_signed  # noqa: PLC0415
    from security.admission.steps import demand  # noqa: PLC0415
    from security.commands.stamping import remind  # noqa: PLC0415

    check_keys(keys, scene)
    bundle, policy = scene.bundle, scene.policy
    # First without, so that nothing unsigned is parsed by the toolkit's libraries.
    reports = demand(evaluation_steps(scene)).reports
    privacy = reports.get("privacy")
    certified = _certificates(scene, reports, given=rows is not None)
    with Stages():
        recomputed = _recompute(bundle, privacy)
        again = recompute(folder, bundle, reports.get("robustness"), rows)
        recomputed = replace(recomputed, certified=again)
    _check_ledger(bundle, privacy)
    _check_start(bundle, privacy)
    evaluation = demand(evaluation_steps(scene, recomputed))
    waivers = evaluation.waivers
    bundle, written = _with_documents(folder, bundle)
    payload = verdict_payload(
        bundle,
        policy,
        now=scene.now,
        waivers=waivers,
        signatures=evaluation.signatures,
        recomputed=certified,
    )
    name = place(bundle, "verdict", keys.hint, signers=policy.verdict_min_signers)
    signed = signed_files(name, payload, keys)
    write_signed(folder, signed)
    remind(keys, demanded=policy.verdict_timestamps)
    _record(bundle, None)
    return Admitted(
        tag=bundle.manifest.tag,
        policy_sha256=policy.resource.sha256,
        verdict_sha256=signed_digest(signed[name]),
        documents=written,
        waivers=[str(waiver) for waiver in waivers.values()],
        signed=len(signature_files({*bundle.files, name}, "verdict")),
        signers=policy.verdict_min_signers,
        recomputed=certified,
    )


def _certificates(
    scene: Scene, reports: Mapping[str, Report], *, given: bool
) -> dict[str, bool]:
    """Of each kind that claims a certificate, whether it is recomputed.

    Raises:
        AdmissionRefused: it is not, and the policy needs it.
    """
    from security.admission.certified import claims_certificate  # noqa: PLC0415

    claims = claims_certificate(reports)
    for kind in scene.policy.verdict_recomputed:
        if kind in claims and not given:
            raise AdmissionRefused(
                10, f"{kind}: the policy needs it recomputed; give its --rows"
            )
    return dict.fromkeys(claims, given)


def _with_documents(folder: Path, bundle: Bundle) -> tuple[Bundle, dict[str, int]]:
    """The bundle with its model card and bill of materials as the evidence gives them.

    Also what was written of them, with its size.

    Written before the verdict, which binds them: no server can compute them. Evidence
    that is waived as a whole may be unreadable: then there are none.

    Raises:
        BundleError: they cannot be computed, and there are some.
    """
    from models.bundle import BOM_FILE, MODEL_CARD_FILE  # noqa: PLC0415
    from security.documents.bom import documents  # noqa: PLC0415

    try:
        computed = documents(bundle)
    except BundleError as error:
        if MODEL_CARD_FILE in bundle.files or BOM_FILE in bundle.files:
            raise
        print(f"notice: no documents: {error}", file=sys.stderr)
        return bundle, {}
    written = {}
    for name, data in computed.items():
        if bundle.files.get(name) != data:
            write_atomic(folder / name, data)
            written[name] = len(data)
    return replace(bundle, files={**bundle.files, **computed}), written


def _record(bundle: Bundle, refused: str | None) -> None:
    from security.audit.journal import record_operation  # noqa: PLC0415

    record_operation(
        load_settings().audit,
        [
            {
                "action": "admission",
                "model": bundle.manifest.tag,
                "model_sha256": bundle.subject.root_sha256,
                "outcome": "allow" if refused is None else "refuse",
                "reason": refused,
            }
        ],
    )


def print_refusals(found: Sequence[AdmissionRefused]) -> int:
    """Print every refusal as a line of its own; returns the exit code."""
    for refusal in found:
        print(f"refused: {' '.join(str(refusal).split())}", file=sys.stderr)
    if not found:
        print("nothing is refused")
    return 1 if found else 0


def _all_refusals(
    folder: Path, scene: Scene, rows: GivenRows | None
) -> list[AdmissionRefused]:
    from security.admission.evaluation import evaluation_steps  # noqa: PLC0415
    from security.admission.steps import drain  # noqa: PLC0415

    found, evaluation = drain(evaluation_steps(scene))
    if any(refusal.check in _UNSIGNED for refusal in found):
        return found
    try:
        privacy = evaluation.reports.get("privacy")
        _certificates(scene, evaluation.reports, given=rows is not None)
        recomputed = _recompute(scene.bundle, privacy)
        robust = evaluation.reports.get("robustness")
        again = recompute(folder, scene.bundle, robust, rows)
        recomputed = replace(recomputed, certified=again)
        _check_ledger(scene.bundle, privacy)
        _check_start(scene.bundle, privacy)
    except AdmissionRefused as refusal:
        return [*found, refusal]
    return drain(evaluation_steps(scene, recomputed))[0]


def _recompute(bundle: Bundle, privacy: Report | None) -> Recomputed:
    """Check 10's numbers, from code that the reports' authors did not run."""
    from security.admission.evaluation import (  # noqa: PLC0415
        Recomputed,
        states_epsilon,
    )
    from security.inspection import structure  # noqa: PLC0415  (imports onnx)

    findings = structure.inspect(bundle.model)
    severities = [finding.severity for finding in findings]
    stated = privacy is not None and states_epsilon(privacy)
    numbers = _numbers(privacy) if privacy is not None and stated else {}
    return Recomputed(
        epsilon=numbers.get("epsilon", 0.0),
        metrics={k: v for k, v in numbers.items() if k != "epsilon"},
        structure_errors=severities.count("error"),
        structure_warnings=severities.count("warning"),
    )


def _check_ledger(bundle: Bundle, privacy: Report | None) -> None:
    """Check 27 against the ledger, where this machine has one that knows the model.

    Raises:
        AdmissionRefused: the ledger booked another training under this version, or
            booked as personal what the report declares public.
    """
    from security.admission.consistency import CONTRADICTION_CHECK  # noqa: PLC0415

    folder = load_settings().home / "ledger"
    if privacy is None or not folder.is_dir():
        return
    from security.training.ledger import Ledger  # noqa: PLC0415  (imports opacus)

    accounts = Ledger(folder).accounts()
    booked = [entry.request for account in accounts for entry in account.entries]
    stated, names = privacy.conditions, {item.name for item in privacy.datasets}
    if stated.get("personal_data") is False:
        if names & {request.name for request in booked}:
            raise AdmissionRefused(
                CONTRADICTION_CHECK,
                "privacy: the data is declared public, and booked as personal",
            )
        return
    own = [item for item in booked if item.model == bundle.manifest.tag]
    same = [item for item in own if item.name in names]
    keys = ("sample_rate", "noise_multiplier", "steps", "delta", "group_size")
    claimed = tuple(stated.get(key) for key in keys)
    told = {(it.rate, it.noise, it.steps, it.delta, it.group) for it in same}
    if own and claimed not in told:
        raise AdmissionRefused(
            CONTRADICTION_CHECK,
            f"privacy: the ledger booked another training of {bundle.manifest.tag}",
        )


def _check_start(bundle: Bundle, privacy: Report | None) -> None:
    """Check 27 on random first weights: drawn again from the rules and the seed.

    Raises:
        AdmissionRefused: they are others than the report's digest says.
    """
    from security.admission.consistency import (  # noqa: PLC0415
        CONTRADICTION_CHECK,
        initial_weights,
    )

    if privacy is None or initial_weights(privacy) != "random":
        return
    from security.training import initial  # noqa: PLC0415  (imports torch)

    stated = privacy.details.get("initial_weights")
    stated = stated if isinstance(stated, dict) else {}
    seed, digest = stated.get("seed"), privacy.conditions.get("initial_weights_sha256")
    try:
        rules = initial.parse_rules(stated.get("rules"))
    except TrainingError as error:
        raise AdmissionRefused(CONTRADICTION_CHECK, f"privacy: {error}") from None
    # What is drawn is in the file: nobody can ask for more memory than that.
    numbers = sum(math.prod(rule.shape) for rule in rules)
    seed = seed if type(seed) is int and numbers <= len(bundle.model) else -1
    if seed < 0 or initial.recompute(rules, seed) != digest:
        raise AdmissionRefused(
            CONTRADICTION_CHECK,
            "privacy: the seed gives other initial weights than the report's",
        )


def _selection(stated: Mapping[str, Any]) -> Selection | None:
    """How the best of several tries was chosen, if the report says so anywhere."""
    from security.training.selection import Selection  # noqa: PLC0415  (as below)

    searched = stated.get("hyperparameters") == "private_selection"
    if not searched and not any(name.startswith("search_") for name in stated):
        return None
    return Selection(
        tries=float(stated["search_expected_tries"]),
        distribution=str(stated["search_distribution"]),
        score_noise=float(stated["search_score_noise"]),
    )


def _numbers(privacy: Report) -> dict[str, float]:
    """Epsilon, and what else a report says of the same mechanism."""
    from security.training import accounting  # noqa: PLC0415  (imports dp_accounting)

    stated = privacy.conditions
    try:
        if stated["delta"] != privacy.metrics["delta"].value:
            # The policy bounds the metric: epsilon at a laxer delta is another claim.
            raise AdmissionRefused(10, "privacy: the report states two deltas")
        if stated["steps"] != int(stated["steps"]):
            raise AdmissionRefused(10, "privacy: steps are not a whole number")
        mechanism = accounting.Mechanism(
            sample_rate=float(stated["sample_rate"]),
            noise_multiplier=float(stated["noise_multiplier"]),
            steps=int(stated["steps"]),
        )
        delta, selection = float(stated["delta"]), _selection(stated)
        epsilon = accounting.recompute_epsilon(
            mechanism.sample_rate,
            mechanism.noise_multiplier,
            mechanism.steps,
            delta,
            group=int(stated.get("group_size", 1)),
            selection=selection,
        )
        second = "epsilon_dp_accounting_rdp" if selection else "epsilon_pld"
        numbers = {"epsilon": epsilon, second: epsilon}
        if "epsilon_rdp" in privacy.metrics:
            numbers["epsilon_rdp"] = accounting.epsilon_rdp(mechanism, delta)
        return numbers
    except KeyError as error:
        raise AdmissionRefused(
            10, f"privacy: the report does not state {error}; epsilon has no basis"
        ) from None
    except (TrainingError, ValueError, OverflowError) as error:
        raise AdmissionRefused(
            10, f"privacy: epsilon cannot be recomputed: {error}"
        ) from None
