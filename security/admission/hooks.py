"""The gate at two of its doors: `bentoml build`, and the start of `bentoml serve`.

The third door, loading, is the runtime's: it runs `open_tag` and hands the checked
bytes to onnxruntime.

What a build refuses: a model without a valid verdict, a file that is not on the
allow-list, a link, a line of bentofile.yaml that includes nothing. What it adds: a lock
file with the digests of exactly the admitted models. A Bento without its lock, or whose
store holds other bytes under the same tag, does not start.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import attrs
from bentoml._internal.bento.build_config import BentoBuildConfig, BentoPathSpec
from bentoml.exceptions import BentoMLException
from bentoml.images import Image
from bentoml.models import BentoModel

from models.files import write_atomic
from models.names import store_tag
from sealgate.errors import SealgateError
from security.admission.confidential import open_admission
from security.admission.contents import (
    LOCK_CHECK,
    LOCK_FILE,
    check_sources,
    list_files,
    lock_document,
    lock_entry,
    read_lock,
)
from security.admission.doors import verify_bundle
from security.admission.gate import Admission
from security.admission.plan import Plan, PlanFolder, plan_of_tags
from security.admission.sources import read_mounted, read_served, served_tags
from security.admission.store import read_stored, stored_tags
from security.errors import AdmissionRefused
from security.settings.loading import Settings, load_settings
from security.settings.service import is_path

__all__ = [
    "AdmittedImage",
    "AdmittedModel",
    "admit_all",
    "current_plan",
    "locked_tags",
    "observe_refusals",
    "open_tag",
    "stored_models",
]

_observers: list[Callable[[str, SealgateError], None]] = []
_UNHASHED_PIN = re.compile(r"bentoml==[0-9.]+")


class AdmittedModel(BentoModel):
    """A reference to a bundle in the model store that only resolves when admitted."""

    def to_info(self, alias: str | None = None) -> Any:
        """Called by `bentoml build`: the first door."""
        settings = load_settings()
        try:
            _refusing(_named(self.tag, settings.service.models), settings)
        except BentoMLException as error:
            unnamed = _unnamed(settings)
            raise BentoMLException(
                f"{error}; {unnamed}" if unnamed else error
            ) from None
        return super().to_info(alias)

    def resolve(self, *args: Any, **kwargs: Any) -> Any:
        """Called by `bentoml serve` before workers start.

        What the settings name and the operator's plan serves no more, nobody loads.
        """
        settings = load_settings()
        try:
            served = current_plan(settings).tags
        except SealgateError as error:
            raise BentoMLException(f"refused: {error}") from None
        tag = _named(self.tag, served)
        if tag in served:
            _refusing(tag, settings)
        return super().resolve(*args, **kwargs)


def _named(stored: object, tags: Iterable[str]) -> str:
    """The tag that the store's tag stands for; itself, if it is none of them."""
    return next((tag for tag in tags if store_tag(tag) == str(stored)), str(stored))


class AdmittedImage(Image):
    """The image of a Bento; its last build step checks the whole of the Bento."""

    def freeze(self, bento_fs: Path, *args: Any, **kwargs: Any) -> Any:
        """Refuse unexpected sources, then lock the admitted models into the Bento."""
        source = Path(bento_fs) / "src"
        _check(source)
        settings = load_settings()
        models = settings.service.models
        mounted = [*filter(is_path, models)]
        if mounted and len(mounted) < len(models):
            raise BentoMLException(
                f"refused: service.models names {mounted[0]}, and a Bento packages "
                "what is in the model store: the command `store` puts it there"
            )
        if not models:
            raise BentoMLException("refused: service.models names no model to package")
        if mounted:
            print(
                f"notice: no model is packaged: {', '.join(mounted)} is read where "
                "this runs (the command `store` is for what is packaged)",
                file=sys.stderr,
            )
        admissions = {
            tag: _refusing(tag, settings) for tag in models if not is_path(tag)
        }
        write_atomic(source / LOCK_FILE, lock_document(admissions))
        if unnamed := _unnamed(settings):
            print(f"notice: {unnamed}", file=sys.stderr)
        return self.environment(bento_fs, *args, **kwargs)

    def environment(self, bento_fs: Path, *args: Any, **kwargs: Any) -> Any:
        """Write ``env/``: what the image installs and starts."""
        info = super().freeze(bento_fs, *args, **kwargs)
        requirements = _without_unhashed_pin(info.python_requirements)
        write_atomic(
            Path(bento_fs) / "env" / "python" / "requirements.txt",
            requirements.encode(),
        )
        return attrs.evolve(info, python_requirements=requirements)


def _check(source: Path) -> None:
    """Refuse what a Bento may not hold, and a Bento that lacks what it was to hold.

    Raises:
        BentoMLException: names the first such file or line.
    """
    try:
        check_sources(source)
        nothing = next(_matchless(source), None)
    except AdmissionRefused as error:
        raise BentoMLException(f"refused: {error.reason}") from None
    if nothing is not None:
        raise BentoMLException(
            f"refused: bentofile.yaml includes {nothing}, and there is none"
        )


def _matchless(source: Path) -> Iterator[str]:
    """The lines of bentofile.yaml that include no file.

    To `bentoml build` that is no error: the Bento lacks the files, and dies of it where
    it is served.
    """
    names = list_files(source)
    for line in BentoBuildConfig.from_file(str(source / "bentofile.yaml")).include:
        if not any(map(BentoPathSpec([line], [], str(source)).includes, names)):
            yield line


def _unnamed(settings: Settings) -> str:
    """What a build leaves out, and someone may have meant; empty if nothing."""
    left = [tag for tag in stored_tags() if tag not in settings.service.models]
    if not left:
        return ""
    more = f" and {len(left) - 3} more" if len(left) > 3 else ""
    return (
        f"service.models does not name {', '.join(left[:3])}{more} of the model "
        f"store (SEALGATE_SERVICE_MODELS={left[0]} would)"
    )


def admit_all(settings: Settings) -> list[Admission]:
    """Verify and open every model that would be served, before workers start.

    What an operator's plan names beside a model's default version may be refused: the
    workers say so, and serve the rest.

    Raises:
        BentoMLException: one line for the first model that was refused.
    """
    try:
        plan = current_plan(settings)
    except SealgateError as error:
        raise BentoMLException(f"refused: {error}") from None
    if not plan.models:
        raise BentoMLException("refused: service.models names no model to serve")
    defaults = {f"{name}:{model.default}" for name, model in plan.models.items()}
    tags = defaults if plan.generation else plan.tags
    return [_opening(tag, settings) for tag in plan.tags if tag in tags]


def current_plan(settings: Settings) -> Plan:
    """What is to be served: the operator's plan, or the models of the settings.

    Raises:
        PlanError: there is a plan, and it cannot be used.
        BentoMLException: as `locked_tags`.
    """
    plan = PlanFolder(settings.deployment.directory).read()
    return plan_of_tags(locked_tags(settings)) if plan is None else plan


def open_tag(tag: str, settings: Settings) -> Admission:
    """Read and verify a version, now, and open it: whenever a worker loads one.

    Raises:
        SealgateError: why it is refused.
    """
    return open_admission(_verified(tag, settings), settings.admission.model_key)


def locked_tags(settings: Settings) -> tuple[str, ...]:
    """The models to serve: those of the settings; inside a Bento, its lock's.

    Beside a Bento's own, what is in the folders that the settings name is served too.

    Raises:
        BentoMLException: inside a Bento whose lock is missing or malformed, or with a
            folder in which there is no bundle, or one of a Bento's own.
    """
    models = settings.service.models
    try:
        lock = _read_lock()
        if lock is None:
            return served_tags(models)
        # The lock has no order of its own; the first version of a model is its default.
        own = sorted(lock, key=_order_in(models))
        return served_tags([*own, *filter(is_path, models)])
    except SealgateError as error:
        raise BentoMLException(f"refused: {error}") from None


def stored_models(settings: Settings) -> list[AdmittedModel]:
    """Those of them that BentoML is to find in its store.

    Raises:
        BentoMLException: inside a Bento whose lock is missing or malformed.
    """
    try:
        lock = _read_lock()
    except SealgateError as error:
        raise BentoMLException(f"refused: {error}") from None
    tags = settings.service.models if lock is None else sorted(lock)
    return [AdmittedModel(store_tag(tag)) for tag in tags if not is_path(tag)]


def _order_in(tags: tuple[str, ...]) -> Callable[[str], int]:
    return lambda tag: tags.index(tag) if tag in tags else len(tags)


def observe_refusals(observe: Callable[[str, SealgateError], None]) -> None:
    """Tell a function of every model that is refused: its tag, and why."""
    _observers.append(observe)


def _refusing(tag: str, settings: Settings) -> Admission:
    """Verify, and turn any refusal into the one line that BentoML prints."""
    try:
        return _verified(tag, settings)
    except SealgateError as error:
        for observe in _observers:
            observe(tag, error)
        raise BentoMLException(f"{tag} refused: {error}") from None


def _opening(tag: str, settings: Settings) -> Admission:
    """As `_refusing`; a sealed model is opened with the deployment's key."""
    try:
        return open_tag(tag, settings)
    except SealgateError as error:
        for observe in _observers:
            observe(tag, error)
        raise BentoMLException(f"{tag} refused: {error}") from None


def _verified(tag: str, settings: Settings) -> Admission:
    """Verify what is read now; of a Bento's own it is what the lock has, check 16."""
    lock, models = _read_lock(), settings.service.models
    verify = partial(verify_bundle, settings=settings.admission, remember=True)
    if lock is None:
        return verify(read_served(tag, models))
    mounted = None if tag in lock else read_mounted(tag, models)
    if mounted is not None:
        return verify(mounted)
    admission = verify(read_stored(tag))
    if lock.get(tag) != lock_entry(admission):
        raise AdmissionRefused(
            LOCK_CHECK, "the model store holds other bytes than were packaged"
        )
    return admission


def _read_lock() -> Mapping[str, Any] | None:
    """The lock's models inside a Bento, None in a source tree.

    Raises:
        AdmissionRefused: inside a Bento, missing or malformed.
    """
    source = Path(__file__).resolve().parents[2]
    if not (source.parent / "bento.yaml").exists():
        return None
    return read_lock(source)


def _without_unhashed_pin(requirements: str) -> str:
    """Drop the pin of itself that BentoML appends.

    The compiled file has that pin already, with hashes; a line without any would make
    the installer refuse the whole file.
    """
    lines = requirements.splitlines(keepends=True)
    return "".join(line for line in lines if not _UNHASHED_PIN.fullmatch(line.strip()))
