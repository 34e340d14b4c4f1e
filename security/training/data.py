"""The rows that a configuration names: read, checked, split, always the same way."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from models.bundle import read_bundle, report_file
from models.data import datasets
from models.data.datasets import AnyDataset
from models.data.identity import CURRENT
from models.data.readers import CALLABLE, CsvFormat
from models.data.sources import ImageSchema, Schema, load_source, source_faults
from models.data.targets import Target
from models.errors import DatasetError
from models.manifest import Column
from models.report import Condition
from security.config_reader import Found
from security.errors import TrackingError
from security.tracking import dvc
from security.training.config import load_config
from security.training.config_sections import ColumnConfig, DataConfig, TrainingConfig

__all__ = [
    "data_faults",
    "earlier_split",
    "load_split",
    "read_config",
    "tracked_sources",
]


def load_split(config: TrainingConfig) -> tuple[AnyDataset, AnyDataset]:
    """The training rows and the held-out rows.

    With a file of held-out rows, what that file holds is never trained on, even where
    the source holds it too.

    Raises:
        DatasetError: as `models.data.sources.load_source` and
            `models.data.datasets.split`.
    """
    data = config.data
    if not data.source:
        whole: Any = datasets.load(data.name)
        return datasets.split(whole, key=data.split_key, holdout=data.holdout)
    schema = _schema(data)
    whole = load_source(data.source, schema, config.base)
    if not data.holdout_source:
        return datasets.split(whole, key=data.split_key, holdout=data.holdout)
    holdout = load_source(data.holdout_source, schema, config.base)
    train = datasets.without(whole, holdout)
    if not len(train):
        raise DatasetError(f"{data.source}: every row is also held out")
    return train, holdout


def tracked_sources(config: TrainingConfig) -> dict[str, Condition]:
    """What DVC has recorded of the files that the rows are from, for the evidence.

    Raises:
        TrackingError: a file is not the one that was recorded.
    """
    found: dict[str, Condition] = {}
    for prefix, key in (("data", "source"), ("holdout", "holdout_source")):
        source = getattr(config.data, key)
        if source and not source.startswith(CALLABLE):
            found |= dvc.tracked(config.base / source, prefix)
    return found


def earlier_split(
    config: TrainingConfig,
) -> tuple[AnyDataset, AnyDataset] | None:
    """As `load_split`, by an earlier version of what a row is; it reads the data anew.

    None where that would give the same rows, in other places at most: an earlier
    release cannot have booked others.
    """
    data = config.data
    moved = data.holdout_source or (data.unit and data.max_rows_per_unit)
    if data.row_identity == 1 or not (data.source and moved):
        return None
    try:
        return load_split(replace(config, data=replace(data, row_identity=1)))
    except DatasetError:  # then an earlier release could not train on it either
        return None


def read_config(path: Path, folder: Path | None) -> TrainingConfig:
    """A configuration, with the version of what a row is that a bundle was made with.

    Its held-out rows are those of that version: by another one, it may have been
    trained on some of them. Of a bundle that does not say, the configuration as it is.

    Args:
        path: of the configuration.
        folder: of the bundle, or None.

    Raises:
        TrainingError: the configuration is malformed.
        BundleError: the bundle cannot be read.
    """
    config = load_config(path)
    if folder is None or not config.data.source:
        return config
    bundle = read_bundle(folder)
    if report_file("provenance") not in bundle.files:
        return config
    recorded: Any = bundle.report("provenance").details.get("config")
    stated = recorded.get("data") if isinstance(recorded, dict) else None
    if not isinstance(stated, dict):
        return config
    version = 1 if stated.get("row_identity", 1) == 1 else CURRENT
    return replace(config, data=replace(config.data, row_identity=version))


def data_faults(config: TrainingConfig) -> Iterator[Found]:
    """Everything for which `load_split` would refuse the rows, not only the first.

    Yields:
        Where in the configuration the reason is, and the message.
    """
    data = config.data
    schema = _schema(data)
    sources = {"source": data.source, "holdout_source": data.holdout_source}
    clean = True
    for key, source in sources.items():
        if source:
            for path, message in source_faults(source, schema, config.base):
                clean = False
                yield ("data", *((key,) if path == ("source",) else path)), message
    if clean:
        try:
            load_split(config)
            tracked_sources(config)
        except (DatasetError, TrackingError) as error:
            yield ("data", "source"), str(error)


def _schema(data: DataConfig) -> Schema:
    return Schema(
        name=data.name,
        label=data.label,
        classes=data.classes,
        target=_target(data),
        aliases=data.aliases,
        columns=tuple(_column(item) for item in data.columns),
        image=_image(data),
        identifier=data.identifier,
        unit=data.unit,
        max_rows_per_unit=data.max_rows_per_unit,
        sensitive=data.sensitive,
        drop=data.drop,
        missing=data.missing,
        personal=data.personal,
        identity=data.row_identity,
        csv=CsvFormat(data.header, data.delimiter, data.encoding, data.comment),
    )


def _target(data: DataConfig) -> Target | None:
    target = data.target
    return None if target is None else Target(target.low, target.high, target.scale)


def _column(item: ColumnConfig) -> Column:
    if item.categories:
        last = len(item.categories) - 1.0
        return Column(item.name, 0.0, last, item.categories)
    if item.low is None or item.high is None:
        raise DatasetError(f"column {item.name!r} has no public range")
    return Column(item.name, item.low, item.high)


def _image(data: DataConfig) -> ImageSchema | None:
    image = data.image
    if image is None:
        return None
    channels, height, width = (1, *image.shape)[-3:]
    return ImageSchema(
        (channels, height, width), image.low, image.high, image.mean, image.std
    )
