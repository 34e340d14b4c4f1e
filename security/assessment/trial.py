"""A first run of somebody's model, in a confined process: which shapes really come.

Exporters declare what they guess: one label where one for each row comes, two columns
where one comes, no shape at all. What is served is held to the manifest, so `import`
runs the model on a few made-up rows and writes down what came. A model that refuses
those rows, runs too long or crashes keeps what it declares.
"""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from sealgate.errors import JsonError
from sealgate.protocol import strict_json
from security.inspection.confined import close_everything, confine, load, run_confined
from security.inspection.findings import StructureLimits

if TYPE_CHECKING:
    from models.manifest import Manifest

__all__ = ["shapes_that_come"]

_LIMITS = StructureLimits(cpu_s=20, wall_s=30.0)
_MAX_ANSWER_BYTES = 1 << 20
_MAX_RANK = 16
# Two runs: an axis that differs between them is not fixed.
_ROWS = (2, 3)

Shape = tuple[int, ...]


def shapes_that_come(
    model: bytes, manifest: Manifest, limits: StructureLimits = _LIMITS
) -> dict[str, Shape] | None:
    """Shapes of the tensors that a model gives; -1 for an axis that varies.

    Args:
        model: the bytes of a file whose inspection found no error.
        manifest: what it declares.
        limits: of the process.

    Returns:
        By output, where a tensor came; None if it did not run.

    Raises:
        ModuleNotFoundError: onnxruntime is not installed.
    """
    parts = [manifest.to_json(), model]
    try:
        answer, code = run_confined(__name__, parts, limits, _MAX_ANSWER_BYTES)
    except OSError:
        return None
    if answer is None or code != 0 or len(answer) > _MAX_ANSWER_BYTES:
        return None
    try:  # from a process that ran hostile bytes
        seen = strict_json.loads_object(answer, max_bytes=_MAX_ANSWER_BYTES)
        return {str(name): _varying(*shapes) for name, shapes in seen.items()}
    except (JsonError, TypeError, ValueError):
        return None


def _varying(first: Any, second: Any) -> Shape:
    if not len(first) == len(second) <= _MAX_RANK:
        raise ValueError
    pairs = [(int(one), int(two)) for one, two in zip(first, second)]
    return tuple(one if one == two and one > 0 else -1 for one, two in pairs)


def _tools() -> Any:
    # Imported here: the limits must stand before a large library is loaded.
    import onnxruntime  # noqa: F401, PLC0415  (make_session could not open it)
    from numpy import shape  # noqa: PLC0415
    from numpy.random import default_rng  # noqa: PLC0415

    from models.manifest import Manifest  # noqa: PLC0415
    from models.sessions import make_session  # noqa: PLC0415

    return SimpleNamespace(
        shape=shape,
        default_rng=default_rng,
        Manifest=Manifest,
        make_session=make_session,
    )


def _main() -> int:
    _, sizes = confine(sys.argv[1])
    tools = load(_tools)
    close_everything()
    data = memoryview(sys.stdin.buffer.read())
    manifest = tools.Manifest.from_json(bytes(data[: sizes[0]]))
    session = tools.make_session(bytes(data[sizes[0] :]))
    names = [item.spec.name for item in manifest.outputs if item.form == "tensor"]
    seen: dict[str, list[list[int]]] = {name: [] for name in names}
    for rows in _ROWS:
        random = tools.default_rng(rows)
        feed = {i.spec.name: i.made_up(rows, random) for i in manifest.inputs}
        for name, value in zip(names, session.run(names, feed)):
            seen[name].append(list(tools.shape(value)))
    sys.stdout.write(json.dumps(seen))
    sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(_main())
