"""`tpm`: a TPM 2.0's attestation key, what is measured, and keys sealed to that."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from security.commands.options import Subparsers

__all__ = ["add_parser"]


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "tpm",
        help="attestation key, measurements and sealed model keys of a TPM 2.0",
        description="Use this machine's TPM 2.0, by tpm2-tools: the one behind "
        "/dev/tpmrm0, or the one that TPM2TOOLS_TCTI names.",
    )
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    for name, text, add in _ACTIONS:
        add(actions.add_parser(name, help=text))


def _add_create_key(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Make the attestation key in the TPM, at the handle that attestation.key "
        "names, and write its public half to attestation.public_key. Clients pin that."
    )
    parser.set_defaults(run=_create_key)


def _add_measure(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Extend a register by the SHA-256 digest of each file, in this order. Only a "
        "restart of the machine takes it back. Prints each digest."
    )
    parser.add_argument("file", type=Path, nargs="+")
    numbers = [n for n in range(24) if n not in (16, 23)]  # those can be reset
    parser.add_argument(
        "--pcr",
        type=int,
        default=15,
        choices=numbers,
        metavar="N",
        help="%(default)s",
    )
    parser.set_defaults(run=_measure)


def _add_policy(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Print what clients of this server can demand, for the attestation of their "
        "profiles: its attestation key, and what the registers of attestation.pcrs "
        "hold now."
    )
    parser.set_defaults(run=_policy)


def _add_seal_key(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Seal the model key to what registers hold now, for admission.model_key = "
        '"tpm:FILE". Move the key itself to where no server is: it is needed to seal '
        "it again after the machine has changed."
    )
    parser.add_argument(
        "--key",
        type=Path,
        metavar="FILE",
        help="the model key (default: keys/model.pem in SEALGATE_HOME)",
    )
    parser.add_argument("--pcrs", default="15", help="registers (%(default)s)")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    parser.set_defaults(run=_seal_key)


_ACTIONS: tuple[tuple[str, str, Callable[[argparse.ArgumentParser], None]], ...] = (
    ("create-key", "make the attestation key", _add_create_key),
    ("measure", "extend a register by files' digests", _add_measure),
    ("policy", "what clients can demand of this machine", _add_policy),
    ("seal-key", "seal the model key to the machine's state", _add_seal_key),
)


def _create_key(args: argparse.Namespace) -> int:
    from sealgate.protocol.dsse import key_hint  # noqa: PLC0415  (not for --help)
    from security.attestation.quotes import create_attestation_key  # noqa: PLC0415
    from security.audit.journal import record_operation  # noqa: PLC0415
    from security.settings.loading import load_settings  # noqa: PLC0415

    settings = load_settings()
    where = settings.attestation
    key = create_attestation_key(where.key, where.public_key)
    operation = {"action": "key-rotation", "reason": "attestation-added"}
    record_operation(settings.audit, [operation])
    print(f"generated {where.key}  sha256:{key_hint(key)}")
    print(f"wrote     {where.public_key}")
    return 0


def _measure(args: argparse.Namespace) -> int:
    from security.attestation.quotes import measure  # noqa: PLC0415

    for path, digest in zip(args.file, measure(args.pcr, args.file), strict=True):
        print(f"{digest}  {path}  PCR {args.pcr}")
    return 0


def _policy(args: argparse.Namespace) -> int:
    from security.attestation.quotes import client_policy  # noqa: PLC0415
    from security.settings.loading import load_settings  # noqa: PLC0415

    settings = load_settings()
    window_s = settings.sealing.key_overlap_s
    policy = client_policy(settings.attestation, window_s=window_s)
    print(json.dumps(policy, indent=2))
    _note_unmeasured(settings.attestation.registers)
    return 0


def _seal_key(args: argparse.Namespace) -> int:
    from models.files import write_atomic  # noqa: PLC0415
    from security.admission.model_keys import load_model_key  # noqa: PLC0415
    from security.admission.tpm_source import seal_model_key  # noqa: PLC0415
    from security.audit.journal import record_operation  # noqa: PLC0415
    from security.errors import KeyFileError  # noqa: PLC0415
    from security.settings.attestation import parse_registers  # noqa: PLC0415
    from security.settings.loading import load_settings  # noqa: PLC0415

    settings = load_settings()
    if args.out.exists():
        raise KeyFileError(f"{args.out}: exists already; keys are never overwritten")
    pcrs = parse_registers(args.pcrs)
    source = args.key or settings.home / "keys" / "model.pem"
    data = seal_model_key(load_model_key(source), pcrs)
    write_atomic(args.out, data, mode=0o600)
    operation = {"action": "key-rotation", "reason": "model-sealed-to-tpm"}
    record_operation(settings.audit, [operation])
    print(f"sealed    {args.out}  PCR {args.pcrs}")
    print(f"keep      {source}  elsewhere: the server needs it no more")
    _note_unmeasured(pcrs)
    return 0


def _note_unmeasured(pcrs: Sequence[int]) -> None:
    from security.attestation.quotes import read_registers, unmeasured  # noqa: PLC0415

    for index in unmeasured(read_registers(pcrs)):
        print(
            f"note: nothing was measured into PCR {index} since the machine started: "
            "it holds the same whatever runs; `tpm measure` first",
            file=sys.stderr,
        )
