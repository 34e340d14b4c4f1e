"""What the subcommands of `sealgate` do."""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import json
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ParamSpec

from sealgate.async_client import AsyncClient
from sealgate.bars import cells_of, explanation_page, format_explanation
from sealgate.client import Client
from sealgate.endpoints import address, answers_to, listening
from sealgate.errors import ProfileError, ServerRefusedError
from sealgate.feedback import Ticketed
from sealgate.keys import fingerprint, load_identity_keys, parse_configs
from sealgate.monitoring import lines
from sealgate.options import Options, options_of
from sealgate.output import (
    Array,
    format_csv,
    format_json,
    format_metadata,
    format_table,
    join_columns,
    join_rows,
    named_outputs,
    output_policy_text,
    write_outputs,
    write_tickets,
)
from sealgate.passport import Passport
from sealgate.peers import is_our_end, is_ours
from sealgate.profile import Profile
from sealgate.protocol.dsse import ECDSA_P256, algorithm_of
from sealgate.protocol.hpke import (
    AEAD_AES_128_GCM,
    AEAD_CHACHA20_POLY1305,
    KEM_X25519,
    KEM_XWING,
)
from sealgate.protocol.keyconfig import KeyConfig
from sealgate.proxy import Proxy
from sealgate.receipt_numbers import Answers
from sealgate.receipts import write_numbers
from sealgate.retry import RetryPolicy
from sealgate.tables import read_inputs, read_labels

__all__ = [
    "address",
    "explain",
    "feedback",
    "health",
    "infer",
    "keys",
    "loaded",
    "metadata",
    "monitoring",
    "open_client",
    "passport",
    "profile_of",
    "proxy",
]

_MAX_PEM_BYTES = 64 << 10
_PROXY_ADDRESS = ("127.0.0.1", 8080)
# Many rows reach quotas by the minute: a command can wait for the next one.
_PATIENT = RetryPolicy(max_retries=100, max_wait_s=120.0)
_TELL_S = 5.0
_MAX_REASON_CHARACTERS = 60
_KEMS = {KEM_X25519: "X25519", KEM_XWING: "MLKEM768-X25519"}
_P = ParamSpec("_P")
_AEADS = {
    AEAD_AES_128_GCM: "AES-128-GCM",
    AEAD_CHACHA20_POLY1305: "ChaCha20-Poly1305",
}


def infer(args: argparse.Namespace) -> int:
    """Run a model on the rows of files."""
    client, model = _client(args, retry=_PATIENT)
    with client:
        description = client.metadata(model)
        answers: list[Answers] = []
        columns: list[Mapping[str, Sequence[Any]]] = []
        for path in _progress(args.input):
            inputs = read_inputs(path, description, args.input_format or "")
            columns.append(inputs.columns)
            with _naming(path, args.input), _Rows() as rows:
                answer = client.infer(
                    model,
                    inputs.arrays,
                    progress=rows,
                    tickets=args.tickets is not None,
                )
                answers.append(answer)
    outputs = join_rows(answers)
    if args.tickets is not None:
        write_tickets(args.tickets, Ticketed.joined({}, answers).tickets)
    if args.receipts is not None:
        write_numbers(args.receipts, [n for part in answers for n in part.receipts])
    if args.output is not None or args.csv:
        table = named_outputs(outputs, description, join_columns(columns))
        if args.csv:
            print(format_csv(table), end="")
        else:
            write_outputs(args.output, outputs, table)
    else:
        print(format_json(outputs) if args.json else format_table(outputs, description))
    return 0


def explain(args: argparse.Namespace) -> int:
    """Say why a model answers so, about rows of a file."""
    client, model = _client(args, retry=_PATIENT)
    with client:
        description = client.metadata(model)
        inputs = read_inputs(args.input, description, args.input_format or "")
        rows = list(dict.fromkeys(args.row or [0]))
        arrays = _chosen(inputs.arrays, rows)
        found = client.explain(
            model,
            arrays,
            of=args.of,
            method=args.method,
            pairs=args.pairs,
            samples=args.samples,
            version=args.version,
        )
    cells = [cells_of(arrays, description, place) for place in range(len(rows))]
    if args.html is not None:
        page = explanation_page(model, found, list(zip(rows, cells)), top=args.top)
        _write(args.html, page)
    if args.json:
        print(format_json(found.arrays))
        return 0
    plain = not (sys.stdout.encoding or "").lower().startswith("utf")
    for place, (row, own) in enumerate(zip(rows, cells)):
        chart = format_explanation(found, place, own, top=args.top, ascii_only=plain)
        print(f"row {row}: {chart}")
    print(f"charged as {found.evaluations} rows")
    return 0


def _chosen(arrays: Mapping[str, Array], rows: Sequence[int]) -> dict[str, Array]:
    """Some rows of every input.

    Raises:
        ProfileError: the file has no such row.
    """
    try:
        return {name: array[list(rows)] for name, array in arrays.items()}
    except IndexError:
        raise ProfileError(f"--row: no row {max(rows)} in the file") from None


def feedback(args: argparse.Namespace) -> int:
    """Send labels of earlier answers."""
    labels = read_labels(args.file)
    client, model = _client(args, retry=_PATIENT)
    with client:
        outcomes = Counter(client.feedback(model, labels))
    for outcome, count in sorted(outcomes.items()):
        print(f"{outcome}: {count}")
    return 0 if outcomes.keys() <= {"accepted", "spent"} else 1


def metadata(args: argparse.Namespace) -> int:
    """Show a model's inputs and outputs."""
    client, model = _client(args)
    with client:
        document = client.metadata(model)
    print(json.dumps(document, indent=2) if args.json else format_metadata(document))
    return 0


def monitoring(args: argparse.Namespace) -> int:
    """Show what monitoring found of a model."""
    client, model = _client(args)
    with client:
        document = client.monitoring(model)
    shown = [line for line, _ in lines(document)]
    print(json.dumps(document, indent=2) if args.json else "\n".join(shown))
    return 0


def health(args: argparse.Namespace) -> int:
    """Say whether the server is ready."""
    with open_client(profile_of(args), args) as client:
        ready = client.health()
    print("ready" if ready else "not ready")
    return 0 if ready else 1


def passport(args: argparse.Namespace) -> int:
    """Check and show a model's evidence."""
    client, model = _client(args)
    with client:
        found = client.passport(model)
    print("\n".join(_passport_lines(found)))
    return 0


def keys(args: argparse.Namespace) -> int:
    """Show, verify and save the server's keys."""
    profile = profile_of(args)
    given = tuple(map(_read_pem, args.identity))
    profile = replace(profile, identity_keys=given or profile.identity_keys)
    with open_client(profile, args) as client:
        document, attested = client.keys(), client.attested
    for config in parse_configs(document):
        print(_describe(config))
    if args.output is not None:
        _write(args.output, document)
    if profile.identity_keys:
        print(f"signed by the identity key{_algorithms(profile.identity_keys)}")
    if attested is not None:
        claims = ", ".join(f"{name} {value}" for name, value in attested.claims.items())
        print(f"attested: {attested.type}  {claims}")
    if profile.key_configs is None:
        return 0
    same = profile.key_configs == document
    print("the profile's pinned keys are " + ("these" if same else "others"))
    return 0 if same else 1


def proxy(args: argparse.Namespace) -> int:
    """Seal what any client sends, until interrupted."""
    http = args.listen
    if http is None and args.socket is None and args.grpc is None:
        http = _PROXY_ADDRESS
    for host, _ in filter(None, (http, args.grpc)):
        if not _is_loopback(host):
            if not args.allow_remote:
                raise ProfileError(
                    f"{host} is beyond this machine, and what is sent there is not "
                    "sealed; --allow-remote allows it"
                )
            print(f"warning: listening on {host}, in the open", file=sys.stderr)
    asyncio.run(_serve(_proxy_profile(args), http, args))
    return 0


async def _serve(
    profile: Profile, http: tuple[str, int] | None, args: argparse.Namespace
) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)

    def started(where: str) -> None:
        print(f"sealing {where} to {profile.url}", flush=True)

    client = AsyncClient(
        profile.url,
        token=profile.token,
        options=_options(profile, args),
        timeout_s=args.timeout,
    )
    servers = []
    if http is not None or args.socket is not None:
        servers.append(_serve_http(client, http, args, stop, started))
    if args.grpc is not None:
        servers.append(_serve_grpc(client, args, stop, started))
    async with client:
        tasks = [asyncio.ensure_future(server) for server in servers]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        stop.set()  # one that cannot listen ends the other
        await asyncio.gather(*tasks)


async def _serve_http(
    client: AsyncClient,
    http: tuple[str, int] | None,
    args: argparse.Namespace,
    stop: asyncio.Event,
    started: Callable[[str], None],
) -> None:
    host, port = http or _PROXY_ADDRESS
    local = args.socket is not None or _is_loopback(host)
    lend = _lending(args, local=local, ours=is_ours)
    with listening(host, port, args.socket) as endpoint:
        where, hosts = answers_to(endpoint, host)
        server = Proxy(client, hosts=hosts if local else None, lend=lend)
        await server.serve(endpoint, stop=stop, started=lambda: started(where))


async def _serve_grpc(
    client: AsyncClient,
    args: argparse.Namespace,
    stop: asyncio.Event,
    started: Callable[[str], None],
) -> None:
    try:
        from sealgate.rpc.listener import Listener  # noqa: PLC0415  (an extra)
    except ImportError as error:
        # Also where the library is there, but older than what was compiled for it.
        name = error.name or error
        raise ProfileError(f"--grpc needs {name}: install sealgate[grpc]") from None
    host, port = args.grpc
    lend = _lending(args, local=_is_loopback(host), ours=is_our_end)
    server = Listener(client, lend=lend)
    await server.serve(host, port, stop=stop, started=started)


def _lending(
    args: argparse.Namespace, *, local: bool, ours: Callable[_P, bool]
) -> Callable[_P, bool]:
    """Whose requests get the profile's token; from other machines, nobody's."""
    if args.no_token or not local:
        return lambda *_, **__: False
    return (lambda *_, **__: True) if args.allow_others else ours


def _proxy_profile(args: argparse.Namespace) -> Profile:
    if args.to is None:
        return loaded(args)
    if not args.profile.exists():
        return _certified(Profile(url=args.to, token=""), args)
    profile = loaded(args)
    same = profile.url.rstrip("/") == args.to.rstrip("/")
    # The token and the keys of one server are nothing to another one.
    return profile if same else _certified(Profile(url=args.to, token=""), args)


def _progress(paths: Sequence[Path]) -> Iterator[Path]:
    """The paths, one by one, saying on standard error where we are."""
    rewrite = sys.stderr.isatty()
    for number, path in enumerate(paths, start=1):
        if len(paths) > 1:
            line = f"{number}/{len(paths)} {path}"
            text = f"\r\x1b[K{line}" if rewrite else f"{line}\n"
            print(text, end="", file=sys.stderr, flush=True)
        yield path
    if len(paths) > 1 and rewrite:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)


@contextmanager
def _naming(path: Path, paths: Sequence[Path]) -> Iterator[None]:
    """Say which of several files was refused."""
    try:
        yield
    except ServerRefusedError as error:
        if len(paths) > 1:
            error.args = (f"{path}: {error}",)
        raise


class _Rows:
    """Says on standard error how many rows are answered: often, or every few seconds.

    Called after each of several requests; nothing is said of a single one.
    """

    def __init__(self) -> None:
        self._rewrite = sys.stderr.isatty()
        self._said = time.monotonic()
        self._open = False

    def __enter__(self) -> _Rows:
        return self

    def __exit__(self, *_: object) -> None:
        if self._open:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def __call__(self, done: int, of: int) -> None:
        if self._rewrite:
            self._open = True
            print(f"\r\x1b[K{done}/{of} rows", end="", file=sys.stderr, flush=True)
        elif time.monotonic() - self._said >= _TELL_S:
            self._said = time.monotonic()
            print(f"{done}/{of} rows", file=sys.stderr, flush=True)


def _passport_lines(found: Passport) -> Iterator[str]:
    yield f"{found.model}  admitted {found.verified_at}"
    for kind, report in sorted(found.reports.items()):
        for name, metric in sorted(report["metrics"].items()):
            yield f"  {kind}.{name} {metric['value']:.6g}{_interval(metric)}"
    for _, waiver in sorted(found.waivers.items()):
        yield f"  waiver: {replace(waiver, reason=_shortened(waiver.reason))}"
    if found.output_policy:
        yield f"  leaves: {output_policy_text(found.output_policy)}"
    yield f"policy sha256:{found.policy_sha256}"
    yield f"verdict sha256:{found.verdict_sha256}"


def _shortened(text: str) -> str:
    if len(text) <= _MAX_REASON_CHARACTERS:
        return text
    return text[: _MAX_REASON_CHARACTERS - 1].rstrip() + "\N{HORIZONTAL ELLIPSIS}"


def _interval(metric: dict[str, float]) -> str:
    text = f"  n={metric['n']}" if "n" in metric else ""
    if "low" in metric:
        level = f"{metric['confidence']:.0%}"
        text += f"  {level} interval {metric['low']:.4g} to {metric['high']:.4g}"
    return text


def _algorithms(pems: Iterable[str]) -> str:
    """By which algorithms, where that is more than the first one."""
    names = sorted(map(algorithm_of, load_identity_keys(pems).values()))
    return "" if set(names) == {ECDSA_P256} else f": {', '.join(dict.fromkeys(names))}"


def _describe(config: KeyConfig) -> str:
    kem = _KEMS.get(config.kem_id, f"{config.kem_id:#06x}")
    aeads = [_AEADS.get(aead, f"{aead:#06x}") for _, aead in config.symmetric]
    return f"{config.key_id:3}  {kem}  {', '.join(aeads)}  {fingerprint(config)}"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _read_pem(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_PEM_BYTES).decode("ascii", "replace")
    except OSError as error:
        raise ProfileError(f"{path}: {error.strerror}") from None


def _write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise ProfileError(f"{path}: {error.strerror}") from None


def profile_of(args: argparse.Namespace) -> Profile:
    """The profile, or one of nothing but the URL that the command line names."""
    if args.url is not None:
        return _certified(Profile(url=args.url, token=""), args)
    return loaded(args)


def loaded(args: argparse.Namespace) -> Profile:
    """The profile that the command line names, with its certificate."""
    return _certified(Profile.load(args.profile), args)


def _certified(profile: Profile, args: argparse.Namespace) -> Profile:
    """A profile with the certificate of the command line, if there is one."""
    certificate, key = args.client_certificate, args.client_key
    if certificate is None and key is None:
        return profile
    return replace(
        profile,
        client_certificate=None if certificate is None else str(certificate),
        client_key=None if key is None else str(key),
    )


def _options(profile: Profile, args: argparse.Namespace) -> Options:
    return replace(options_of(profile), authorities=args.ca, proxy=args.proxy)


def open_client(
    profile: Profile, args: argparse.Namespace, *, retry: RetryPolicy = RetryPolicy()
) -> Client:
    """A client for a profile's server, as the command line has it."""
    options = replace(_options(profile, args), retry=retry)
    return Client(
        profile.url, token=profile.token, options=options, timeout_s=args.timeout
    )


def _client(
    args: argparse.Namespace, *, retry: RetryPolicy = RetryPolicy()
) -> tuple[Client, str]:
    profile = loaded(args)
    model = args.model or profile.model
    if not model:
        raise ProfileError("no model: name one, or let the profile name it")
    return open_client(profile, args, retry=retry), model
