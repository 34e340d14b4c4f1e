"""The training configuration: every fault is one line that names its key."""

from __future__ import annotations

import tomllib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from security.errors import TrainingError
from security.training.config import load_config, parse_config
from tests.support.trained import EXAMPLE

GOOD = """
[model]
name = "m"
version = "1.0.0"
[data]
name = "breast-cancer"
split_key = "k"
[privacy]
epsilon = 3.0
sampling_rate = 0.5
steps = 10
max_grad_norm = 1.0
expected_batch = 200
[optimizer]
learning_rate = 4
"""

FAULTS = {
    "unknown section": (
        "[model]",
        "[modle]",
        "unknown key 'modle'; did you mean 'model'",
    ),
    "unknown key": (
        "epsilon = 3.0",
        "epsilom = 3.0",
        "'epsilom'; did you mean 'epsilon'",
    ),
    "missing key": ("steps = 10", "", "privacy: missing steps"),
    "missing section": ("[optimizer]\nlearning_rate = 4", "", "missing learning_rate"),
    "not a table": ("[optimizer]\nlearning_rate = 4", "", "missing learning_rate"),
    "not TOML": ("[data]", "[data", "not TOML"),
    "wrong type": ("steps = 10", "steps = 10.0", "privacy.steps: expected an integer"),
    "boolean": ("steps = 10", "steps = true", "privacy.steps: expected an integer"),
    "text": ("epsilon = 3.0", 'epsilon = "3"', "privacy.epsilon: expected a finite"),
    "nan": ("epsilon = 3.0", "epsilon = nan", "privacy.epsilon: expected a finite"),
    "infinite": (
        "epsilon = 3.0",
        "epsilon = inf",
        "privacy.epsilon: expected a finite",
    ),
    "epsilon zero": (
        "epsilon = 3.0",
        "epsilon = 0",
        "privacy.epsilon: must be above 0",
    ),
    "epsilon huge": ("epsilon = 3.0", "epsilon = 51", "at most 50"),
    "rate above 1": (
        "sampling_rate = 0.5",
        "sampling_rate = 1.1",
        "sampling_rate: must",
    ),
    "rate zero": ("sampling_rate = 0.5", "sampling_rate = 0", "sampling_rate: must"),
    "no steps": ("steps = 10", "steps = 0", "privacy.steps: must be 1"),
    "delta one": ("steps = 10", "steps = 10\ndelta = 1.0", "delta: must be between"),
    "delta zero": ("steps = 10", "steps = 10\ndelta = 0", "delta: must be between"),
    "no clipping": ("max_grad_norm = 1.0", "max_grad_norm = 0", "max_grad_norm: must"),
    "no batch": ("expected_batch = 200", "expected_batch = 0", "expected_batch: must"),
    "no learning": ("learning_rate = 4", "learning_rate = -1", "learning_rate: must"),
    "momentum": (
        "learning_rate = 4",
        "learning_rate = 4\nmomentum = 1",
        "momentum: must",
    ),
    "name": ('name = "m"', 'name = "../m"', "model.name"),
    "version": ('"1.0.0"', '"latest"', "model.version"),
    "architecture": ("[data]", 'architecture = "cnm"\n[data]', "one of linear, mlp"),
    "linear hidden": ("[data]", "hidden = [4]\n[data]", "model.hidden: widths for mlp"),
    "mlp without": ("[data]", 'architecture = "mlp"\n[data]', "widths for mlp"),
    "hidden type": ("[data]", 'hidden = ["4"]\n[data]', "expected a list of integers"),
    "data set": ('"breast-cancer"', '"breast-cancr"', "did you mean 'breast-cancer'"),
    "split key": ('split_key = "k"', 'split_key = ""', "split_key: must not be empty"),
    "holdout": ('split_key = "k"', 'split_key = "k"\nholdout = 1', "holdout: must be"),
}


def test_good():
    config = parse_config(GOOD.encode())
    assert config.privacy.delta is None
    assert config.model.architecture == "linear"
    assert config.optimizer.learning_rate == 4.0
    assert "delta" not in config.to_object()["privacy"]


def test_mlp_and_delta():
    text = GOOD.replace("[data]", 'architecture = "mlp"\nhidden = [8, 4]\n[data]')
    config = parse_config(
        text.replace("steps = 10", "steps = 10\ndelta = 1e-4").encode()
    )
    assert config.model.hidden == (8, 4)
    assert config.to_object()["privacy"]["delta"] == 1e-4


def test_the_example():
    config = load_config(EXAMPLE)
    assert config.privacy.epsilon <= 3.0
    assert config.privacy.delta is None


@pytest.mark.parametrize("fault", FAULTS)
def test_faults(fault):
    before, after, message = FAULTS[fault]
    assert before in GOOD
    with pytest.raises(TrainingError, match=message.replace("(", r"\(")) as caught:
        parse_config(GOOD.replace(before, after, 1).encode())
    assert "\n" not in str(caught.value)


def test_a_section_that_is_a_number():
    with pytest.raises(TrainingError, match="model: expected a table"):
        parse_config(b"model = 3")


def test_missing_file(tmp_path):
    with pytest.raises(TrainingError, match="No such file"):
        load_config(tmp_path / "none.toml")


def test_too_large(tmp_path):
    path = tmp_path / "large.toml"
    path.write_bytes(b"#" * (1 << 20) + b"\n")
    with pytest.raises(TrainingError, match="more than"):
        load_config(path)


@given(st.binary(max_size=300))
@settings(max_examples=200)
def test_any_bytes_are_refused_in_one_line(data):
    with pytest.raises(TrainingError):
        parse_config(data)


@given(
    section=st.sampled_from(["model", "data", "privacy", "optimizer"]),
    data=st.data(),
    value=st.sampled_from(
        ["-1", "1e999", "9" * 400, "[[1]]", "{}", "''", "1979-05-27"]
    ),
)
@settings(max_examples=200)
def test_any_value_is_taken_or_refused(section, data, value):
    document = tomllib.loads(GOOD)
    key = data.draw(st.sampled_from(sorted(document[section])))
    lines = GOOD.splitlines()
    start = lines.index(f"[{section}]")
    index = next(i for i in range(start, len(lines)) if lines[i].startswith(key + " "))
    lines[index] = f"{key} = {value}"
    refusal = ""
    try:
        parse_config("\n".join(lines).encode())
    except TrainingError as error:
        refusal = str(error)
    assert not refusal or key in refusal or "TOML" in refusal


USE = """
[use]
intended = "Teaching."
license = "MIT"
"""


def test_use_is_optional_and_only_what_was_said_is_stated():
    assert "use" not in parse_config(GOOD.encode()).to_object()
    config = parse_config((GOOD + USE).encode())
    assert config.use.intended == "Teaching."
    assert config.use.out_of_scope == ""
    assert config.to_object()["use"] == {"intended": "Teaching.", "license": "MIT"}


def test_the_example_states_its_use():
    stated = load_config(EXAMPLE).to_object()["use"]
    assert set(stated) == {"intended", "out_of_scope", "limitations", "license"}
    assert not any("\n" in text for text in stated.values())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("intented = 'x'", "use: unknown key 'intented'; did you mean 'intended'"),
        ("intended = 3", "use.intended: expected a string"),
        (f"limitations = '{'x' * 4001}'", "use.limitations: more than 4000 characters"),
    ],
)
def test_faults_of_use(text, message):
    with pytest.raises(TrainingError, match=message):
        parse_config(f"{GOOD}[use]\n{text}\n".encode())
