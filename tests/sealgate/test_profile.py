"""The client's profile file."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealgate import Client, Options
from sealgate.errors import ProfileError
from sealgate.profile import MAX_PROFILE_BYTES, Profile

DOCUMENT = {
    "url": "https://models.example",
    "token": "abc",
    "model": "toy",
    "key_configs": "AAEC",
    "trusted_keys": ["PEM"],
}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "profile.json"


def write(path, **changes):
    document = {k: v for k, v in (DOCUMENT | changes).items() if v is not ...}
    path.write_text(json.dumps(document))
    return path


def test_load(path):
    assert Profile.load(write(path)) == Profile(
        url="https://models.example",
        token="abc",
        model="toy",
        key_configs=b"\x00\x01\x02",
        trusted_keys=("PEM",),
    )


def test_only_url_and_token_are_needed(path):
    path.write_text('{"url": "https://a", "token": "t"}')
    assert Profile.load(path) == Profile(url="https://a", token="t")
    path.write_text('{"url": "https://a", "token": "t", "model": null}')
    assert Profile.load(path).model is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"url": ...}, "profile: url is missing or not text"),
        ({"url": ""}, "profile: url is missing or not text"),
        ({"url": 1}, "profile: url is missing or not text"),
        ({"token": ...}, "profile: token is missing or not text"),
        ({"token": ["t"]}, "profile: token is missing or not text"),
        ({"model": ""}, "profile: model is missing or not text"),
        ({"model": 1}, "profile: model is missing or not text"),
        ({"key_configs": 1}, "profile: key_configs is missing or not text"),
        ({"key_configs": "A"}, "profile: key_configs is not base64"),
        ({"key_configs": "AA\nEC"}, "profile: key_configs is not base64"),
        ({"key_configs": "\u00e9"}, "profile: key_configs is not base64"),
        ({"trusted_keys": "PEM"}, "profile: trusted_keys is not an array"),
        ({"trusted_keys": {}}, "profile: trusted_keys is not an array"),
        ({"trusted_keys": [1]}, "profile: trusted_keys is missing or not text"),
        ({"identity_keys": "PEM"}, "profile: identity_keys is not an array"),
        ({"require_passport": 1}, "profile: require_passport is not true or false"),
        ({"relay_url": 1}, "profile: relay_url is missing or not text"),
        ({"tokne": "t"}, "profile {path}: unknown field 'tokne'"),
    ],
)
def test_refused_fields(path, changes, message):
    with pytest.raises(ProfileError) as caught:
        Profile.load(write(path, **changes))
    assert str(caught.value) == message.replace("{path}", str(path))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not JSON"),
        (b"[]", "top level is not an object"),
        (b'{"token": "a", "token": "b"}', "an object repeats a key"),
        (b"\xff", "invalid UTF-8"),
        (b" " * (MAX_PROFILE_BYTES + 1), "at most 1048576 allowed"),
    ],
)
def test_refused_files(path, data, message):
    path.write_bytes(data)
    with pytest.raises(ProfileError) as caught:
        Profile.load(path)
    assert str(caught.value).startswith(f"profile {path}: ")
    assert message in str(caught.value)


def test_no_file(path):
    with pytest.raises(ProfileError, match="No such file or directory"):
        Profile.load(path)


def test_a_folder(tmp_path):
    with pytest.raises(ProfileError, match="Is a directory"):
        Profile.load(tmp_path)


def test_an_unreadable_file_does_not_repeat_the_token(path):
    with pytest.raises(ProfileError) as caught:
        Profile.load(write(path, token="hush", url=1))
    assert "hush" not in str(caught.value)


def test_repr_shows_no_secret(path):
    profile = Profile.load(write(path, token="hush"))
    assert "hush" not in repr(profile)
    assert repr(profile) == (
        "Profile(url='https://models.example', model='toy', require_passport=False, "
        "relay_url=None, client_certificate=None, client_key=None)"
    )


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)


@given(
    st.builds(
        Profile,
        url=TEXTS,
        token=TEXTS,
        model=st.none() | TEXTS,
        key_configs=st.none() | st.binary(min_size=1, max_size=40),
        trusted_keys=st.lists(TEXTS, max_size=3).map(tuple),
        identity_keys=st.lists(TEXTS, max_size=3).map(tuple),
        require_passport=st.booleans(),
        relay_url=st.none() | TEXTS,
    )
)
@settings(deadline=None, max_examples=50)
def test_round_trip(tmp_path_factory, profile):
    path = tmp_path_factory.getbasetemp() / "profile.json"
    path.write_bytes(profile.to_json())
    assert Profile.load(path) == profile


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from([*DOCUMENT, "other"]), VALUES))
@settings(deadline=None, max_examples=100)
def test_arbitrary_documents_only_raise_profile_error(tmp_path_factory, document):
    path = tmp_path_factory.getbasetemp() / "profile.json"
    path.write_text(json.dumps(document))
    try:
        Profile.load(path)
    except ProfileError:
        return


@pytest.mark.parametrize(("mode", "warned"), [(0o600, 0), (0o640, 1), (0o604, 1)])
def test_a_profile_that_others_can_read(path, caplog, mode, warned):
    write(path, token="hush").chmod(mode)
    Profile.load(path)
    assert len(caplog.records) == warned
    assert "hush" not in caplog.text


@pytest.mark.parametrize(
    ("pins", "message"),
    [
        ({"key_configs": "AAEC"}, "key_configs: the bytes of an ohttp-keys document"),
        ({"identity_keys": "PEM"}, "identity_keys: a tuple of PEM texts"),
        ({"identity_keys": b"PEM"}, "identity_keys: a tuple of PEM texts"),
        ({"identity_keys": (b"PEM",)}, "identity_keys: a tuple of PEM texts"),
        ({"trusted_keys": (b"PEM",)}, "trusted_keys: a tuple of PEM texts"),
    ],
)
def test_a_pin_of_another_type(pins, message):
    with pytest.raises(ProfileError) as caught:
        Options(**pins)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "token", ["", " ", "a b", "hush\r\nx: y", b"hush", "h\u00fcsh"]
)
def test_a_token_that_cannot_be_one_is_not_sent_and_not_repeated(token):
    with (
        Client("https://models.example", token=token) as client,
        pytest.raises(ProfileError, match="the access token is ") as caught,
    ):
        client.ready("m")
    assert "hush" not in str(caught.value)
