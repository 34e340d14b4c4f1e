"""One bundle, trained once per test run with a seed, for every test that needs one."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path

from models.bundle import MANIFEST_FILE, MODEL_FILE, read_bundle, root_digest
from models.data import datasets
from models.data.datasets import TabularDataset
from models.report import Dataset, Report, Subject
from security.training.config import load_config
from security.training.config_sections import TrainingConfig
from security.training.ledger import Ledger
from security.training.noise import SeededRandomness
from security.training.run import train_bundle

EXAMPLE = Path(__file__).parents[2] / "examples" / "breast_cancer.toml"


@cache
def config() -> TrainingConfig:
    return load_config(EXAMPLE)


@cache
def rows() -> tuple[TabularDataset, TabularDataset]:
    data = config().data
    return datasets.split(
        datasets.load(data.name), key=data.split_key, holdout=data.holdout
    )


@cache
def bundle() -> Path:
    """A folder that no test may change."""
    home = Path(tempfile.mkdtemp(prefix="sealgate-trained-"))
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    return train_bundle(
        config(),
        home / "bundle",
        lambda *_: None,
        ledger=Ledger(home / "ledger"),
        randomness=SeededRandomness(7),
    )


def copy(to: Path) -> Path:
    """A folder that the test may change."""
    shutil.copytree(bundle(), to)
    return to


def replace_model(folder: Path, model: bytes) -> Path:
    """Put another model into a bundle, with a provenance report that matches it."""
    report = Report.from_json((folder / "evidence/provenance.json").read_bytes())
    (folder / MODEL_FILE).write_bytes(model)
    return rewrite_provenance(folder, report.datasets)


def rewrite_provenance(folder: Path, used: tuple[Dataset, ...]) -> Path:
    path = folder / "evidence/provenance.json"
    report = Report.from_json(path.read_bytes())
    subject: Subject = read_bundle(folder).subject
    assert subject.root_sha256 == root_digest(
        {name: (folder / name).read_bytes() for name in (MODEL_FILE, MANIFEST_FILE)}
    )
    content = {**vars(report), "subject": subject, "datasets": used}
    path.write_bytes(Report(**content).to_json())
    return folder
