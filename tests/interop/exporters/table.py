"""Results as the tables of docs/exporters.md, and why some models answer otherwise."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE / "results.json"
PAGE = HERE.parents[2] / "docs" / "exporters.md"
BEGIN, END = "<!-- measured: begin -->\n", "<!-- measured: end -->\n"

HEAD = (
    *("model", "gives", "Sealgate reads", "beside the original", "scanned"),
    "served",
)

Results = Mapping[str, Mapping[str, Any]]

# Every case that answers otherwise than its original, and why. A test holds this list
# to what was measured, both ways.
_MISSING = (
    "a missing value goes the other way at splits that scikit-learn learned one for: "
    "the converter does not write it down."
)
_ENGINE = (
    "the file lists the classes; onnxruntime answers 0 and 1, since the weights of a "
    "binary TreeEnsembleClassifier name both classes. Probabilities are right. Export "
    "classes 0 and 1, or text."
)
_ROUNDED = "numbers of 16 bits, as was asked for; the classes stay the same."
_WEIGHTS = "weights and activations of 8 bits, as was asked for."
_EXPONENT = "the file gives the trees' sum: the exponential of the loss is left out."
CHANGED: dict[str, str] = {
    "torchscript-training": (
        "BatchNormalization normalises over the rows of a request: an answer depends "
        "on the other rows. Call `eval()` first. The inspection names its Dropout "
        "(`operator-random`)."
    ),
    "quantised-dynamic": _WEIGHTS,
    "quantised-qdq": _WEIGHTS,
    "half": _ROUNDED,
    "half-inputs": _ROUNDED,
    "olive-dynamic": _WEIGHTS,
    "olive-half": _ROUNDED,
    "sklearn-forest-missing": _MISSING,
    "sklearn-forest-regressor-missing": _MISSING,
    "sklearn-isotonic": (
        "between its points the isotonic fit has other steps than in scikit-learn."
    ),
    "sklearn-tuned-threshold": (
        "the threshold is lost: the file decides by the larger probability. Deploy the "
        "probabilities, and state the threshold where the decision is made."
    ),
    "lightgbm-forest": (
        "the file puts the sum of the trees into the logistic function and divides the "
        "probability by 100, where LightGBM takes the mean first: class 1 never has "
        "more than 0.01, and is never answered."
    ),
    "xgboost-logistic": (
        "the logistic function is left out, and the base score is added as a share."
    ),
    "catboost-onetwo": _ENGINE,
    "catboost-signed": _ENGINE,
    "catboost-threshold": "the threshold is lost: the file decides at 0.5.",
    "catboost-one-vs-all": (
        "a softmax in place of a logistic function for each class: the classes are the "
        "same, the probabilities are not."
    ),
    "catboost-poisson": _EXPONENT,
    "catboost-tweedie": _EXPONENT,
    "hummingbird-xgboost": (
        "the base score, which XGBoost estimates from the labels, is left out: the "
        "logits of all rows are shifted alike."
    ),
}


def differing(result: Mapping[str, Any]) -> int:
    """Rows with another answer than the original's."""
    return int(result.get("parity", {}).get("rows_that_differ", 0))


def summary(result: Mapping[str, Any]) -> dict[str, Any]:
    """What must come out again when a case is measured anew."""
    # How often one that answers otherwise is right depends on the processor.
    scan = {} if differing(result) else result.get("scan", {})
    parity = result.get("parity", {})
    return {
        "not exported": result.get("not_exported", "").partition(":")[0],
        "refused": result.get("refused"),
        "not compared": result.get("not_compared"),
        "not scanned": result.get("not_scanned"),
        "served": result.get("served"),
        "outputs": result.get("outputs"),
        "reading": result.get("reading"),
        "notes": result.get("notes"),
        "differs": differing(result) > 0,
        "compared": sorted(parity),
        "accuracy is the original's": _same_accuracy(scan),
    }


def _same_accuracy(scan: Mapping[str, Any]) -> bool | None:
    own, wanted = scan.get("accuracy"), scan.get("accuracy_of_the_original")
    return None if None in (own, wanted) else abs(own - wanted) < 1e-3


def markdown(results: Results) -> str:
    """All tables, one for each exporter, and what is changed."""
    parts = [_counts(results), *_tables(results), *_changes(results)]
    return "\n".join(parts) + "\n"


def _counts(results: Results) -> str:
    def having(name: str) -> int:
        return sum(name in item for item in results.values())

    served = sum(item.get("served") == "same" for item in results.values())
    apart = sum(differing(item) > 0 for item in results.values())
    return (
        f"{len(results)} models were fitted. Of {having('not_exported')} there is no "
        f"export, {having('refused')} are refused; {served} are served as onnxruntime "
        f"runs them. {having('parity')} were compared with their originals: {apart} "
        f"answer otherwise. {having('scan')} were scanned.\n"
    )


def _tables(results: Results) -> Iterator[str]:
    exporters = dict.fromkeys(item["exporter"] for item in results.values())
    for exporter in exporters:
        mine = {n: r for n, r in results.items() if r["exporter"] == exporter}
        versions = {k: v for r in mine.values() for k, v in r["versions"].items()}
        listed = ", ".join(f"{name} {number}" for name, number in versions.items())
        yield f"### {exporter}\n\n{listed}\n"
        yield f"| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}"
        for name, result in mine.items():
            yield f"| {' | '.join((result['estimator'], *_cells(name, result)))} |"
        yield ""


def _cells(name: str, result: Mapping[str, Any]) -> tuple[str, ...]:
    for key, said in (("not_exported", "is not exported"), ("refused", "refused")):
        if key in result:
            return (f"{said}: {_shown(result[key])}", "", "", "", "")
    gives = ", ".join(_spec(item) for item in result["outputs"])
    reading = result.get("reading", "").removeprefix("decides by: ") or "-"
    served = "yes" if result.get("served") == "same" else _shown(result["served"])
    return (gives, reading, _beside(name, result), _scan(result), served)


def _spec(text: str) -> str:
    return f"`{text.replace('[-1', '[N').replace(',-1', ',?')}`"


def _beside(name: str, result: Mapping[str, Any]) -> str:
    if "not_compared" in result:
        return f"not compared: {_shown(result['not_compared'])}"
    count = differing(result)
    link = f" ([why](#{name}))" if name in CHANGED else ""
    rows = result["parity"]["rows"]
    return "same" if not count else f"**{count} of {rows} rows differ**{link}"


def _scan(result: Mapping[str, Any]) -> str:
    if "not_scanned" in result:
        return f"no: {_shown(result['not_scanned'])}"
    scan = result["scan"]
    own, wanted = scan["accuracy"], scan["accuracy_of_the_original"]
    if own is None:
        return "yes"
    same = "as the original" if own == wanted else f"original {wanted}"
    return f"accuracy {own:g}" + ("" if wanted is None else f", {same}")


def _shown(text: str) -> str:
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text).removeprefix("error: ")
    plain = plain.removeprefix("refused: ").replace("|", r"\|").replace("<", "&lt;")
    return plain if len(plain) < 110 else plain[:107].rstrip() + "…"


def _changes(results: Results) -> Iterator[str]:
    yield "### Where a file answers otherwise than its original\n"
    for name, why in CHANGED.items():
        result = results[name]
        parity = result["parity"]
        figures = [f"{differing(result)} of {parity['rows']} rows"]
        if "label_agreement" in parity:
            figures.append(f"same class on {parity['label_agreement']:.1%}")
        if "max_abs_difference" in parity:
            figures.append(f"numbers differ by up to {parity['max_abs_difference']:g}")
        shown = f"{result['exporter']}, {result['estimator']}"
        yield f'- <a id="{name}"></a>**{shown}** ({"; ".join(figures)}): {why}'


def page(results: Results, text: str) -> str:
    """The documentation's page with its tables made anew."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + markdown(results) + END + after
