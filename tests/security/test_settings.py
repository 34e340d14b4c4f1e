"""security.settings: service.toml and variables; nothing misspelt goes unnoticed."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from security.errors import SettingsError
from security.settings.audit import WitnessAddress, WitnessSettings
from security.settings.issuers import listening_origin
from security.settings.loading import load_settings
from security.settings.runtime import ModelLimits
from tests.support.servers import ROOT


def load(folder: Path, text: str = "", **variables: str):
    (folder / "service.toml").write_text(text)
    config, home = str(folder / "service.toml"), str(folder / "home")
    return load_settings(
        {"SEALGATE_CONFIG": config, "SEALGATE_HOME": home, **variables}
    )


def test_the_shipped_file_is_read() -> None:
    loaded = load_settings({})
    assert loaded.service.environment == "development"
    assert loaded.sealing.require_sealed
    assert loaded.admission.policy == ROOT / "deploy" / "policy.toml"
    assert loaded.home == Path.cwd() / ".sealgate"


def test_defaults_are_sealed_and_bounded(tmp_path: Path) -> None:
    loaded = load(tmp_path)
    assert loaded.sealing.require_sealed
    assert loaded.service.models == ()
    assert loaded.service.max_body_bytes == 16 << 20


def test_paths_start_from_home_and_the_policy_beside_its_file(tmp_path: Path) -> None:
    loaded = load(tmp_path, '[access]\njwks = "/etc/jwks.json"')
    assert loaded.access.jwks == Path("/etc/jwks.json")
    assert loaded.admission.trust == tmp_path / "home" / "trust.json"
    assert loaded.sealing.keys == tmp_path / "home" / "keys" / "hpke"
    assert loaded.admission.policy == tmp_path / "policy.toml"


def test_a_variable_wins(tmp_path: Path) -> None:
    loaded = load(
        tmp_path,
        '[service]\nmodels = ["a:1"]\nbody_timeout_s = 3\n'
        '[access]\nissuer = "file"\naudience = "us"',
        SEALGATE_ACCESS_ISSUER="https://issuer.example",
        SEALGATE_SERVICE_MODELS="a:1.0.0, b:2.0.0",
        SEALGATE_SEALING_REQUIRE_SEALED="false",
        SEALGATE_SERVICE_MAX_BODY_BYTES="1_000",
    )
    assert loaded.access.issuer == "https://issuer.example"
    assert loaded.service.models == ("a:1.0.0", "b:2.0.0")
    assert loaded.sealing.require_sealed is False
    assert loaded.service.max_body_bytes == 1000
    assert loaded.service.body_timeout_s == 3.0


def test_several_issuers(tmp_path: Path) -> None:
    loaded = load(
        tmp_path,
        '[access]\nissuer = "one"\naudience = "us"\nmax_lifetime_s = 60\n'
        '[[access.issuers]]\nissuer = "https://two.example/"\naudience = "them"\n'
        'jwks = "https://two.example/keys"\nalgorithms = ["RS256"]\n'
        'group_claims = ["/realm_access/roles"]\n'
        '[[access.issuers]]\nissuer = "three"\naudience = "us"\n'
        'secret = "keys/three"\nalgorithms = ["HS256"]',
    )
    one, two, three = loaded.access.all_issuers
    assert (one.issuer, one.max_lifetime_s) == ("one", 60)
    assert one.jwks == tmp_path / "home" / "jwks.json"
    assert (two.jwks, two.max_lifetime_s) == ("https://two.example/keys", 3600)
    assert two.group_claims == ("/realm_access/roles",)
    assert three.secret == tmp_path / "home" / "keys" / "three"


def test_witnesses(tmp_path: Path) -> None:
    assert load(tmp_path, "").audit.witnesses == WitnessSettings()
    text = (
        "[audit.witnesses]\nrequired = 1\n"
        'ca = "witnesses.pem"\n[[audit.witnesses.witness]]\n'
        'url = "https://one.example/"\nvkeys = ["one.example+1+A", "one.example+2+B"]\n'
        '[[audit.witnesses.witness]]\nurl = "http://localhost:7380"\n'
        'vkeys = ["two.example+1+A"]\n'
    )
    loaded = load(tmp_path, text).audit.witnesses
    assert loaded.ca == tmp_path / "home" / "witnesses.pem"
    assert [each.url for each in loaded.witness] == [
        "https://one.example/",
        "http://localhost:7380",
    ]
    assert loaded.witness[0].vkeys == ("one.example+1+A", "one.example+2+B")
    table = '{required = 1, witness = [{url = "https://x", vkeys = ["x+1+A"]}]}'
    loaded = load(tmp_path, SEALGATE_AUDIT_WITNESSES=table).audit.witnesses
    assert loaded.witness == (WitnessAddress("https://x", ("x+1+A",)),)


def test_issuers_in_a_variable(tmp_path: Path) -> None:
    tables = '[{issuer = "a", audience = "x"}, {issuer = "b", audience = "y"}]'
    loaded = load(tmp_path, SEALGATE_ACCESS_ISSUERS=tables)
    assert [one.issuer for one in loaded.access.all_issuers] == ["a", "b"]


DEEP = "[" * 5000
DIGITS = "9" * 5000

ONE = '[access]\nissuer = "one"\naudience = "us"\n'

WITNESS = "[audit.witnesses]\n"
W = '{url = "https://w.example", vkeys = ["w+1+A", "w+2+B"]}'

FAULTS = [
    ("nonsense", "service.toml: Expected"),
    ("[servic]", "unknown key 'servic'; did you mean 'service'"),
    ("service = 1", "service must be a table"),
    ("[sealing]\nrequire_seald = true", "did you mean 'require_sealed'"),
    ('[sealing]\nrequire_sealed = "false"', "require_sealed: expected bool, got str"),
    ("[sealing]\nrequire_sealed = 0", "require_sealed: expected bool, got int"),
    ("[service]\nmax_body_bytes = 1.5", "max_body_bytes: expected int, got float"),
    ("[service]\nmax_body_bytes = true", "max_body_bytes: expected int, got bool"),
    ("[service]\nmax_body_bytes = 0", "service.max_body_bytes: must be positive"),
    ("[service]\nbody_timeout_s = -1", "service.body_timeout_s: must be positive"),
    ("[service]\nbody_timeout_s = nan", "service.body_timeout_s: must be positive"),
    ("[service]\ninference_timeout_s = inf", "inference_timeout_s: must be positive"),
    ("[service]\nmax_concurrency = 0", "service.max_concurrency: must be positive"),
    ("[access]\nmax_lifetime_s = 0", "access.max_lifetime_s: must be positive"),
    ("[access]\nmax_token_bytes = 0", "access.max_token_bytes: must be positive"),
    ("[sealing]\nkey_overlap_s = 0", "sealing.key_overlap_s: must be positive"),
    ("[sealing]\ndate_window_s = 0", "sealing.date_window_s: must be positive"),
    (
        "[sealing]\nkey_cache_s = 7201",
        "key_cache_s: may not exceed sealing.key_overlap_s",
    ),
    ('[sealing]\nreplay_store = "sqlite://x"', "replay_store: local, or a redis://"),
    ("[access]\nleeway_s = -1", "access.leeway_s: may not be negative"),
    ("[access]\ntoken_cache_entries = -1", "token_cache_entries: may not be negative"),
    ('[access]\nissuer = "i"', "issuer 'i': audience must be set"),
    (ONE + 'jwks = "http://issuer.example/keys"', "jwks: only https URLs"),
    (ONE + 'jwks = "https://u:p@issuer.example"', "jwks: not a URL without user"),
    (ONE + 'jwks = "https:///keys"', "jwks: not a URL without user"),
    (ONE + 'jwks = "https://x:y/"', "jwks: not a URL without user"),
    (ONE + 'algorithms = ["none"]', "algorithms: of EdDSA, Ed25519, ES256"),
    (ONE + 'algorithms = ["HS256"]', "algorithms: of EdDSA, Ed25519, ES256"),
    (ONE + "algorithms = []", "algorithms: of EdDSA, Ed25519, ES256"),
    (ONE + 'secret = "s"', 'secret needs algorithms = \\["HS256"\\]'),
    (ONE + 'secret = "s"\nalgorithms = ["HS256", "ES256"]', "secret needs algorithms"),
    (ONE + "token_types = []", "token_types: types like at\\+jwt"),
    (ONE + 'token_types = ["a b"]', "token_types: types like at\\+jwt"),
    (ONE + 'profile = "okto"', "profile: one of rfc9068, keycloak"),
    (ONE + 'relax = ["all"]', "relax: of typ-absent, iss-absent"),
    (ONE + 'relax = ["typ-absent"]', "typ-absent needs required_claims or"),
    (ONE + 'relax = ["iss-absent"]', "iss-absent needs subject_prefix"),
    (ONE + 'relax = ["aud-absent"]', "aud-absent needs clients"),
    (ONE + 'profile = "cognito"', "aud-absent needs clients"),
    (ONE + 'profile = "spiffe"', "typ-absent needs required_claims or"),
    (ONE + 'profile = "github-actions"', "public-issuer needs clients, required"),
    (ONE + 'profile = "google"', "public-issuer needs clients, required"),
    (ONE + "jwks_max_stale_s = 10", "jwks_max_stale_s: below jwks_refresh_s"),
    (ONE + 'dpop = "yes"', "dpop: of off, optional, required"),
    (ONE + 'dpop = "required"', "access.resource: must be set where DPoP"),
    (ONE + 'required_claims = ["ver="]', "required_claims: expected claim=text"),
    (ONE + 'subject_claim = ""', "'' names no claim"),
    (ONE + 'group_claims = ["/a//b"]', "'/a//b' names no claim"),
    (ONE + 'group_claims = ["/~2"]', "'/~2' names no claim"),
    (ONE + "max_lifetime_s = 0", "access.max_lifetime_s: must be positive"),
    (ONE + "jwks_retry_s = 0", "jwks_retry_s: must be positive"),
    (ONE + 'resource = "models.example"', "resource: not a URL"),
    (ONE + 'resource = "http://models.example"', "resource: expected https://"),
    (ONE + 'resource = "https://models.example/"', "resource: expected https://"),
    (WITNESS + "required = 1", "witnesses.required: 0 to 0, of 0"),
    (WITNESS + f"required = 0\nwitness = [{W}]", "witnesses.required: 1 to 1, of 1"),
    (WITNESS + f"required = 2\nwitness = [{W}]", "witnesses.required: 1 to 1, of 1"),
    (WITNESS + f"required = 1\nwitness = [{W}]\ngrace_s = 0", "grace_s: must be pos"),
    (WITNESS + "timeout_s = nan", "timeout_s: must be positive and finite"),
    (WITNESS + "witnes = []", "did you mean 'witness'"),
    (WITNESS + "witness = [1]", r"expected tables, \[audit.witnesses\] and"),
    (WITNESS + "witness = 1", r"expected tables, \[audit.witnesses\] and"),
    (WITNESS + "witness = [{ur = 1}]", "did you mean 'url'"),
    ("[audit]\nwitnesses = []", r"expected tables, \[audit.witnesses\] and"),
    ("[audit]\nwitnesses = 1", r"expected tables, \[audit.witnesses\] and"),
    (WITNESS + 'required = 1\nwitness = [{url = "https://w"}]', "1: a url and vkeys"),
    (WITNESS + 'required = 1\nwitness = [{vkeys = ["w+1+A"]}]', "1: a url and vkeys"),
    (
        WITNESS + f"required = 1\nwitness = [{W.replace('w+2', 'v+2')}]",
        "witness 1: a url and vkeys of one name are needed",
    ),
    (
        WITNESS + f"required = 1\nwitness = [{W.replace('https', 'http')}]",
        "witness 1: url: only https URLs",
    ),
    (ONE + "issuers = 1", "issuers: expected tuple"),
    (ONE + "issuers = [1]", "issuers: expected tables"),
    (ONE + 'issuers = [{issuer = "i"}]', "issuer 'i': audience must be set"),
    (ONE + 'issuers = [{issuer = "one", audience = "a"}]', "'one': is there twice"),
    (ONE + 'issuers = [{isuer = "one"}]', "did you mean 'issuer'"),
    (ONE + 'issuers = [{audience = "a"}]', "issuer '': not an identifier"),
    (ONE + 'revocation_store = "/x"', "revocation_store: local, or a redis://"),
    (
        f"[service]\nbody_timeout_s = 1{'0' * 400}",
        "body_timeout_s: expected float, got int",
    ),
    ('[service]\nmodels = "toy:1.0.0"', "models: expected tuple"),
    ("[service]\nmodels = [1]", "models: expected tuple"),
    ('[service]\nmodels = ["toy"]', "'toy' is not a full tag"),
    ('[service]\nmodels = ["toy:"]', "'toy:' is not a full tag"),
    ('[service]\nmodels = ["t y:1"]', "'t y:1' is not a full tag"),
    ('[service]\nmodels = ["../x:1"]', "'../x:1' is not a full tag"),
    ('[service]\nmodels = ["toy:1\\n"]', "is not a full tag"),
    ('[service]\nmodels = ["toy:latest"]', "'toy:latest' is not a full tag"),
    ('[service]\nmodels = ["Abc:1", "aBc:2"]', "equal but for case"),
    ('[service]\nmodels = ["a:1", "b:1", "a:1"]', "'a:1' is named twice"),
    ("[runtime]\nproviders = []", "runtime.providers: name one at least"),
    ("[runtime]\nmax_waiting = 0", "runtime.max_waiting: must be at least 1"),
    ("[runtime]\nmax_batch_delay_ms = nan", "max_batch_delay_ms: must be at least 0"),
    ("[runtime.models]\na = 1", r"expected tables, \[runtime.models.NAME"),
    ("[runtime.models.A_]\nmax_waiting = 1", "'A_' is no model's name"),
    ("[runtime.models.a]\nmax_waitin = 1", "did you mean 'max_waiting'?"),
    ("[runtime.models.a]\nmax_batch_rows = 0", "runtime.models.a.max_batch_rows"),
    ("[runtime.models.a]\nmax_waiting = true", "expected int, got bool"),
    ("[deployment]\npoll_s = 0", "deployment.poll_s: must be positive and finite"),
    ('[service]\nenvironment = "prod"', "environment: one of development, production"),
    ("[access]\njwks = 5", "jwks: expected a file or an https URL, got int"),
    (f"[service]\nmodels = {DEEP}", "nested too deeply"),
    (f"[service]\nmax_body_bytes = {DIGITS}", "service.toml: "),
]


@pytest.mark.parametrize(("text", "message"), FAULTS, ids=range(len(FAULTS)))
def test_refuses_one_fault(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        load(tmp_path, text)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("SEALGATE_ACCESS_ISUER", "x", "did you mean 'SEALGATE_ACCESS_ISSUER'"),
        ("SEALGATE_UNKNOWN", "x", "unknown key 'SEALGATE_UNKNOWN'"),
        ("SEALGATE_SEALING_REQUIRE_SEALED", "no", "expected bool, got str"),
        ("SEALGATE_SEALING_REQUIRE_SEALED", "", "expected bool, got str"),
        ("SEALGATE_SERVICE_MAX_BODY_BYTES", "16MB", "expected int, got str"),
        ("SEALGATE_SERVICE_MAX_BODY_BYTES", DIGITS, "expected int, got str"),
        ("SEALGATE_SERVICE_MAX_BODY_BYTES", DEEP, "expected int, got str"),
        ("SEALGATE_SERVICE_MODELS", "toy:latest", "'toy:latest' is not a full tag"),
    ],
)
def test_refuses_a_variable(
    tmp_path: Path, name: str, value: str, message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        load(tmp_path, **{name: value})


def test_refuses_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"none.toml: no such file or directory"):
        load_settings({"SEALGATE_CONFIG": str(tmp_path / "none.toml")})


def test_refuses_a_file_without_end(tmp_path: Path) -> None:
    (tmp_path / "service.toml").write_bytes(b"#" * ((1 << 20) + 1))
    for path in (tmp_path / "service.toml", Path("/dev/zero")):
        with pytest.raises(SettingsError, match=r"at most 1048576|not a regular file"):
            load_settings({"SEALGATE_CONFIG": str(path)})


def test_refuses_what_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "service.toml").write_bytes(b"\xff")
    with pytest.raises(SettingsError, match=r"service.toml: "):
        load_settings({"SEALGATE_CONFIG": str(tmp_path / "service.toml")})


_KEYS = ["service.max_body_bytes", "access.issuer", "sealing.require_sealed"]


@settings(deadline=None)
@given(key=st.sampled_from(_KEYS), text=st.text(st.characters(codec="utf-8")))
def test_any_text_is_read_or_refused(tmp_path_factory, key: str, text: str) -> None:
    section, name = key.split(".")
    folder = tmp_path_factory.mktemp("settings")
    for file, variables in (
        (f"[{section}]\n{name} = {text}", {}),
        ("", {f"SEALGATE_{section}_{name}".upper(): text}),
    ):
        try:
            loaded = load(folder, file, **variables)
        except SettingsError:
            continue
        assert loaded.service.max_body_bytes > 0


def test_what_a_model_does_not_set_is_the_runtimes(tmp_path: Path) -> None:
    text = (
        "[runtime]\nmax_waiting = 10\nmax_batch_rows = 4\n"
        "[runtime.models.toy]\nmax_batch_rows = 1\nmax_batch_delay_ms = 2\n"
    )
    runtime = load(tmp_path, text).runtime
    assert runtime.limits("toy") == ModelLimits(1, 2.0, 10)
    assert runtime.limits("other") == ModelLimits(4, 0.0, 10)


@pytest.mark.parametrize(
    ("host", "tls", "origin"),
    [
        ("127.0.0.1", False, "http://127.0.0.1:3001"),
        ("0.0.0.0", False, "http://127.0.0.1:3001"),
        ("::1", False, "http://[::1]:3001"),
        ("models.example", True, "https://models.example:3001"),
        # Plain HTTP beyond this machine is no name for a server.
        ("192.0.2.1", False, ""),
        ("models.example", False, ""),
        ("2001:db8::1", False, ""),
    ],
)
def test_what_a_server_is_called_by_where_it_listens(host, tls, origin):
    assert listening_origin(host, 3001, tls=tls) == origin
