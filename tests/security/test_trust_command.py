"""`trust`, as its users meet it, and what `keys` does to a signed trust root."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path

import pytest

from security.admission import trust_store
from security.admission.trust import Revocation, parse_trust
from security.admission.trust_store import load_trust
from security.commands import main
from tests.conftest import run_security, toy_settings
from tests.support.roots import hint, p256, version
from tests.support.servers import ROOT

A, B = p256("a"), p256("b")
_SECTION = re.compile(r"## Rotating the trust root\n(.*?)\n## ", re.DOTALL)
_BLOCK = re.compile(r"```console\n(.*?)```", re.DOTALL)
_COMMAND = re.compile(r"^\$ ((?:.*\\\n)*.*)", re.MULTILINE)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory with a deployment's keys."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SEALGATE_HOME", ".sealgate")
    monkeypatch.setenv("SEALGATE_CONFIG", str(ROOT / "deploy" / "service.toml"))
    assert main(["keygen"]) == 0
    return tmp_path / ".sealgate"


def place(path: Path, document: trust_store.TrustDocument) -> Path:
    path.write_bytes(document.to_json())
    return path


def test_the_example_of_the_docs(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every command of the section, as it stands."""
    (section,) = _SECTION.findall((ROOT / "docs" / "keys.md").read_text())
    before = (home / "keys" / "release.pem").read_bytes()
    lines = [
        line.replace("\\\n", " ")
        for block in _BLOCK.findall(section)
        for line in _COMMAND.findall(block)
    ]
    assert len(lines) == 18
    for line in lines:
        words = shlex.split(line)
        if words[:3] == ["python", "-m", "security"]:
            assert main(words[3:]) == 0, line + capsys.readouterr().err
        else:
            assert words[0] in ("cp", "mkdir")
            subprocess.run(words, check=True)
    shown = capsys.readouterr().out
    assert "version 2, signed by 2 of its root keys" in shown
    root = load_trust(home / "trust.json")
    assert root.version == 2
    assert len(root.keys(("release",), algorithm="ecdsa-p256-sha256")) == 2
    assert (home / "keys" / "release.pem").read_bytes() != before
    # Somebody who was away since version 1 follows, with the folder alone.
    other = home.parent / "other" / "trust.json"
    other.parent.mkdir()
    published = home.parent / "published"
    options = ["--trust", str(other)]
    assert main(["trust", "pin", str(published / "1.trust.json"), *options]) == 0
    assert main(["trust", "update", str(published), *options]) == 0
    assert load_trust(other) == root


def refused(capsys: pytest.CaptureFixture[str], code: int, words: str) -> None:
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert words in lines[0]
    assert lines[0].startswith("refused: " if code == 1 else "error: ")


def tried(
    capsys: pytest.CaptureFixture[str], code: int, words: str, *arguments: object
) -> None:
    capsys.readouterr()
    assert main([str(item) for item in arguments]) == code
    refused(capsys, code, words)


def pinned(home: Path) -> Path:
    """A deployment that believes version 1, signed by A."""
    base = load_trust(home / "trust.json")
    first = version(1, [A], base=base, expires=soon(300))
    document = place(home.parent / "1.trust.json", first)
    assert main(["trust", "pin", str(document)]) == 0
    return home / "trust.json"


def soon(days: int) -> datetime:
    return (datetime.now(UTC) + timedelta(days=days)).replace(microsecond=0)


def test_what_is_refused(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trust = pinned(home)
    base = load_trust(trust)
    fine = {"base": base, "expires": soon(300)}
    folder = home.parent
    evil = place(folder / "evil.json", version(1, [B], **fine))
    tried(capsys, 1, "version 1 was accepted here", "trust", "pin", evil)
    tried(capsys, 1, "a fork", "trust", "update", evil)
    half = place(folder / "half.json", version(2, [B], signers=[B], **fine))
    tried(capsys, 1, "of the root of version 1, where 1 must", "trust", "update", half)
    far = place(folder / "far.json", version(3, [A], **fine))
    tried(capsys, 1, "the versions between are missing", "trust", "update", far)
    late = version(2, [A], base=base, expires=soon(-1))
    old = place(folder / "old.json", late)
    tried(capsys, 1, "expired at", "trust", "pin", old, "--replace")
    tried(capsys, 2, "no such file", "trust", "update", folder / "none")
    tried(capsys, 2, "only https", "trust", "update", "http://trust.example/")
    tried(
        capsys,
        2,
        "is a root key of neither",
        "trust",
        "sign",
        evil,
        "--key",
        foreign(folder),
    )
    assert load_trust(trust) == base


def foreign(folder: Path) -> Path:
    assert main(["trust", "key", str(folder / "foreign.pem")]) == 0
    return folder / "foreign.pem"


def test_an_update_that_expired_is_kept_and_refused(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is the newest there is (5.3.8), and no door opens with it (5.3.10)."""
    trust = pinned(home)
    late = version(2, [A], base=load_trust(trust), expires=soon(-1))
    tried(
        *(capsys, 1, "expired at", "trust", "update"),
        place(home.parent / "2.trust.json", late),
    )
    tried(capsys, 1, "expired at", "trust", "show")
    # A root that nobody may use can still be replaced.
    assert main(["keys", "list"]) == 0
    assert main(["trust", "propose", "--expires-days", "30"]) == 0
    assert "version 3" in capsys.readouterr().out


def test_an_older_file_is_put_right(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trust = pinned(home)
    first = trust.read_bytes()
    second = version(2, [A], base=load_trust(trust), expires=soon(300))
    published = place(home.parent / "2.trust.json", second)
    assert main(["trust", "update", str(home.parent)]) == 0
    trust.write_bytes(first)  # from a backup
    tried(capsys, 1, "a rollback", "trust", "show")
    assert main(["trust", "update", str(published)]) == 0
    assert load_trust(trust) == second.root


def test_lost_root_keys(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trust = pinned(home)
    new = version(1, [B], base=load_trust(trust), expires=soon(300))
    file = place(home.parent / "new.json", new)
    tried(capsys, 1, "--replace forgets it", "trust", "pin", file)
    assert main(["trust", "pin", str(file), "--replace"]) == 0
    assert load_trust(trust) == new.root


def test_a_bare_one_is_not_followed_from(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Somebody has to say whose root keys these are."""
    base = load_trust(home / "trust.json")
    first = version(1, [A], base=base, expires=soon(300))
    file = place(home.parent / "1.trust.json", first)
    for source in (file, home.parent, home):
        tried(capsys, 2, "names no root keys", "trust", "update", source)
    assert load_trust(home / "trust.json").root is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--threshold", "2"), "threshold is not 1 to 1"),
        (("--threshold", "0"), "threshold is not 1 to 1"),
        (("--expires-days", "0"), "is not 1 to 3650"),
        (("--expires-days", "4000"), "is not 1 to 3650"),
        (("--drop", "abc"), "give 8 characters or more"),
        (("--drop", "0" * 64), "names 0 root keys"),
        (("--root-key", ".sealgate/keys/release.pem"), "not a PEM public key"),
    ],
)
def test_proposals_that_cannot_be(
    home: Path,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    words: str,
) -> None:
    pinned(home)
    tried(capsys, 2, words, "trust", "propose", *options)
    assert not (home / "trust.next.json").exists()


def test_a_proposal_without_root_keys(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tried(capsys, 2, "give --root-key", "trust", "propose")


def test_a_role_key_cannot_be_a_root_key(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["keys", "public", "--role", "release"]) == 0
    public = home.parent / "release.pub.pem"
    public.write_text(capsys.readouterr().out)
    words = "a key of root holds a role"
    tried(capsys, 2, words, "trust", "propose", "--root-key", public)


def test_a_root_key_is_never_overwritten(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = foreign(home.parent)
    assert file.stat().st_mode & 0o777 == 0o600
    tried(capsys, 2, "exists already", "trust", "key", file)


def test_a_signature_that_would_not_count_is_not_added(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the other form of ML-DSA-65, which only key services sign."""
    key = home.parent / "c.pem"
    assert main(["trust", "key", str(key), "--algorithm", "ml-dsa-65"]) == 0
    propose = ("trust", "propose", "--root-key", str(key.with_suffix(".pub.pem")))
    assert main([*propose, "--prehash"]) == 0
    before = (home / "trust.next.json").read_bytes()
    tried(capsys, 2, "`trust propose --prehash` is for", "trust", "sign", "--key", key)
    assert (home / "trust.next.json").read_bytes() == before


def test_who_signs_sees_what_changes(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a machine of their own, with the proposal and the version in force."""
    trust = pinned(home)
    (release, _) = load_trust(trust).keys(("release",))
    key = foreign(home.parent)
    assert main(["keys", "rotate", "--role", "monitor"]) == 0
    lost = {release: Revocation(release, "2026-01-01T00:00:00Z", "laptop lost")}
    trust_store.change(trust, lambda root: replace(root, revoked=lost))
    public = str(key.with_suffix(".pub.pem"))
    assert main(["trust", "propose", "--root-key", public]) == 0
    away = home.parent / "away"
    away.mkdir()
    for name in ("trust.json", "trust.next.json"):
        shutil.copy(home / name, away)
    capsys.readouterr()
    options = [str(away / "trust.next.json"), "--trust", str(away / "trust.json")]
    assert main(["trust", "show", *options]) == 0
    shown = capsys.readouterr().out
    changes = [line.split()[:2] for line in shown.splitlines() if line[0] in "+-"]
    assert [" ".join(change) for change in changes] == [
        *("- release", "+ monitor", "+ monitor", "+ release", "+ revoked", "+ root")
    ]
    assert f"- release {release} ecdsa-p256-sha256" in shown
    assert f"+ revoked {release} " in shown
    assert f"+ release {release} ecdsa-p256-sha256, revoked\n" in shown
    assert "notice: no root key is of ml-dsa-65: whoever can forge" in shown
    assert ": laptop lost" in shown
    assert main(["trust", "sign", "--key", str(key), *options]) == 0
    after = capsys.readouterr().out
    assert "of the root of version 1, where 1 must" in after
    assert shown.splitlines()[-1].startswith("not yet valid: ")


def test_a_key_that_goes_for_good_is_seen(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With its revoked key a role would lose that it needs two signatures."""
    trust = pinned(home)
    (gone,) = load_trust(trust).keys(("release",), algorithm="ml-dsa-65")
    lost = {gone: Revocation(gone, "2026-01-01T00:00:00Z", "laptop lost")}
    trust_store.change(trust, lambda root: replace(root, revoked=lost))
    revoked = trust_store.proposal(trust)
    assert revoked is not None
    base = parse_trust(revoked.root.to_json(), "proposal")
    second = place(trust, version(2, [A], base=base, expires=soon(300)))
    assert load_trust(second).has("release", "ml-dsa-65")
    trust_store.change(trust, lambda root: replace(root, retired={}))
    capsys.readouterr()
    assert main(["trust", "show"]) == 0
    assert f"- release {gone} ml-dsa-65, revoked\n" in capsys.readouterr().out


def test_signatures_survive_a_change_that_is_none(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`keys rotate` is run again by whoever waits for the others' signatures."""
    trust = pinned(home)
    assert main(["keys", "rotate", "--role", "release"]) == 0
    proposed = trust_store.proposal(trust)
    assert proposed is not None
    file = place(
        trust_store.proposal_file(trust),
        version(2, [A], base=proposed.root, expires=proposed.root.expires),  # type: ignore[arg-type]
    )
    before = file.read_bytes()
    assert main(["keys", "rotate", "--role", "release"]) == 0
    assert file.read_bytes() == before
    # Another change is another proposal.
    assert main(["keys", "rotate", "--role", "monitor"]) == 0
    assert b'"signatures":[]' in file.read_bytes()


@pytest.fixture
def stored(pristine: Path, tmp_path: Path) -> Path:
    """A copy of a deployment with a model in its store, under a signed trust root."""
    home = Path(shutil.copytree(pristine, tmp_path / "own"))
    base = load_trust(home / "trust.json")
    first = place(tmp_path / "1.json", version(1, [A], base=base, expires=soon(300)))
    done = run_security(home, "trust", "pin", str(first), **toy_settings(home))
    assert done.returncode == 0, done.stderr
    return home


def test_to_revoke_is_to_propose(stored: Path) -> None:
    """What would fall is known before anybody signs it; until then nothing falls."""
    trust = stored / "trust.json"
    before = trust.read_bytes()
    (release,) = load_trust(trust).keys(("release",), algorithm="ecdsa-p256-sha256")
    done = run_security(
        *(stored, "keys", "revoke", release, "--reason", "laptop lost"),
        **toy_settings(stored),
    )
    assert done.returncode == 1, done.stderr
    assert f"proposed  {stored / 'trust.next.json'}  {release}  release" in done.stdout
    assert "stored models that no longer verify: 1" in done.stdout
    assert trust.read_bytes() == before
    assert verify(stored).returncode == 0
    proposal = trust_store.proposal(trust)
    assert proposal is not None
    assert release in proposal.root.revoked
    trust_store.put(trust, version(2, [A], base=proposal.root, expires=soon(300)))
    result = verify(stored)
    assert result.returncode == 1
    assert "signed by a key that is not trusted for it" in result.stderr


def test_no_door_opens_with_one_that_expired(stored: Path) -> None:
    trust = stored / "trust.json"
    assert verify(stored).returncode == 0
    late = version(2, [A], base=load_trust(trust), expires=soon(-1))
    trust_store.put(trust, late)
    result = verify(stored)
    assert result.returncode == 1
    assert result.stderr.startswith(f"refused: trust root {trust}: expired at ")
    bundle = str(stored / "bundle")
    admitted = run_security(stored, "admit", bundle, **toy_settings(stored))
    assert admitted.returncode == 1
    assert "expired at" in admitted.stderr


def verify(home: Path) -> subprocess.CompletedProcess[str]:
    return run_security(home, "verify", "toy:1.0.0", **toy_settings(home))


# From a web server.


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def published(tmp_path: Path) -> Iterator[str]:
    """The URL of the folder `published`."""
    folder = tmp_path / "published"
    folder.mkdir()
    handler = partial(Quiet, directory=str(folder))
    server = HTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_versions_from_a_url(
    home: Path, published: str, capsys: pytest.CaptureFixture[str]
) -> None:
    trust = pinned(home)
    fine: Mapping[str, object] = {"base": load_trust(trust), "expires": soon(300)}
    folder = home.parent / "published"
    update = ("trust", "update", published)
    assert main(update) == 0  # nothing is there yet
    for number in (2, 3):
        document = version(number, [A], **fine)  # type: ignore[arg-type]
        place(folder / f"{number}.trust.json", document)
    assert main(update) == 0
    assert "version 3" in capsys.readouterr().out
    # A host that serves another version 3 than we have, or something huge.
    other = version(3, [A, B], signers=[A], **fine)  # type: ignore[arg-type]
    place(folder / "3.trust.json", other)
    tried(capsys, 1, "a fork", *update)
    (folder / "3.trust.json").write_bytes(b" " * (600 << 10))
    tried(capsys, 2, "over 524288 bytes", *update)
    (folder / "3.trust.json").unlink()
    (folder / "4.trust.json").write_bytes(b"{}")
    tried(capsys, 2, "4.trust.json", *update)
    assert load_trust(trust).version == 3


def test_hints_are_those_of_other_commands(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pinned(home)
    capsys.readouterr()
    assert main(["trust", "show"]) == 0
    assert f"  {hint(A)}  ecdsa-p256-sha256  signed" in capsys.readouterr().out
