"""The whole chain on real data: `make quickstart` runs this.

Every step is a command that you can run yourself; each is printed before it runs.
State goes to SEALGATE_HOME (.sealgate, ignored by git). A second run keeps the keys,
and the bundle as long as it verifies and was trained under the same configuration.
"""

from __future__ import annotations

import csv
import hashlib
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from models.bundle import read_bundle, report_file
from models.data.datasets import TabularDataset, load, split
from models.errors import BundleError
from sealgate import Client, SealgateError
from sealgate.protocol import strict_json
from security.training.config import load_config

ROOT = Path(__file__).resolve().parent.parent
HOME = Path(os.environ.get("SEALGATE_HOME", ROOT / ".sealgate"))
CONFIG = Path("examples/breast_cancer.toml")
BUNDLE = HOME / "bundle"
UNPROVEN = HOME / "unproven"
MODEL = "breast-cancer"
STEPS = 6
START_TIMEOUT_S = 60


def main() -> int:
    """Run the chain; returns the exit code."""
    os.chdir(ROOT)
    HOME.mkdir(mode=0o700, parents=True, exist_ok=True)
    began = time.monotonic()
    _step(0, "Keys of the trainer, the assessor, the release manager and the server")
    _security("keygen", quiet=True)
    if not _reusable():
        shutil.rmtree(BUNDLE, ignore_errors=True)
        shutil.rmtree(HOME / "bentoml", ignore_errors=True)
        _make_bundle()
    _package()
    holdout = _holdout()
    _serve_and_ask(holdout)
    print(
        f"\nDone in {time.monotonic() - began:.0f} s. Next:\n"
        "  make serve                                            in one terminal\n"
        f"  .venv/bin/sealgate infer {MODEL} --input {_shown(HOME)}/holdout.csv\n"
        f"  .venv/bin/sealgate passport {MODEL}"
    )
    return 0


def _make_bundle() -> None:
    """Steps 1 to 3, and the verdict of step 4."""
    _step(1, "Train with differential privacy (Opacus)")
    _security("train", str(CONFIG), "--out", _shown(BUNDLE))
    _step(2, "Assess on rows that training never saw")
    _security("assess", _shown(BUNDLE), "--config", str(CONFIG))
    _step(3, "Sign the reports: the trainer its own, the assessor the others")
    _security("sign", _shown(BUNDLE), "--role", "trainer")
    _security("sign", _shown(BUNDLE), "--role", "assessor")
    _step(4, "Evaluate the policy, sign the verdict")
    _security("admit", _shown(BUNDLE))
    _security("documents", _shown(BUNDLE), "--check")


def _package() -> None:
    """The rest of step 4: one build that is refused, and one that is not."""
    print("\n      A copy without its robustness report cannot be packaged:")
    shutil.rmtree(UNPROVEN, ignore_errors=True)
    copy = UNPROVEN / "bundle"
    shutil.copytree(BUNDLE, copy)
    (copy / report_file("robustness")).unlink()
    store = {"BENTOML_HOME": str(UNPROVEN / "bentoml")}
    _security("store", _shown(copy), quiet=True, **store)
    refused = _run(["bentoml", "build"], check=False, quiet=True, **store)
    print(_indent(refused.stderr.strip()))
    if refused.returncode != 1 or list(UNPROVEN.glob("bentoml/bentos/sealgate/*")):
        raise SystemExit("error: a model without evidence was packaged")
    print("\n      The admitted bundle can:")
    _security("store", _shown(BUNDLE), quiet=True)
    shutil.rmtree(HOME / "bentoml" / "bentos", ignore_errors=True)
    built = _run(["bentoml", "build", "--output", "tag"], quiet=True)
    print(f"      built {built.stdout.strip().rpartition('__tag__:')[2]}")


def _serve_and_ask(holdout: TabularDataset) -> None:
    """Steps 5 and 6."""
    _step(5, "Serve the Bento; everything is verified again before a worker starts")
    with _server() as url:
        _step(6, "One sealed request, through the SDK")
        _security("profile", "--url", url, "--model", MODEL)
        with Client.from_profile(HOME / "profile.json") as client:
            _ask(client, holdout)
    _security("audit", "verify", quiet=True)
    # The profile is left for `make serve`, which listens elsewhere.
    _security("profile", "--model", MODEL, quiet=True)


def _ask(client: Client, holdout: TabularDataset) -> None:
    answer = client.infer(MODEL, {"features": holdout.features})
    passport = client.passport(MODEL)
    print("      row  prediction  confidence  truth")
    for row in _spread(len(holdout), 5):
        label = int(answer["label"][row])
        print(
            f"      {row:>3}  {holdout.classes[label]:<10}  "
            f"{answer['probabilities'][row, label]:>10.3f}  "
            f"{holdout.classes[int(holdout.labels[row])]}"
        )
    conditions = passport.reports["robustness"]["conditions"]
    print(
        f"      privacy      epsilon {passport.metric('privacy', 'epsilon'):.2f} "
        f"at delta {passport.metric('privacy', 'delta'):.1e}, "
        "add or remove one row\n"
        f"      robustness   {passport.metric('robustness', 'robust_accuracy'):.3f} "
        f"accurate under {conditions['attack']}, {conditions['norm']} radius "
        f"{passport.metric('robustness', 'radius'):g} of the scaled features\n"
        f"      membership   attack AUC {passport.metric('membership', 'auc'):.3f} "
        "(0.5 is guessing)\n"
        f"      verdict      sha256:{passport.verdict_sha256}"
    )


def _reusable() -> bool:
    """Whether the bundle still verifies and belongs to the configuration."""
    if not BUNDLE.exists():
        return False
    verified = _security("verify", _shown(BUNDLE), check=False, quiet=True)
    if verified.returncode:
        print(f"      rebuilding the bundle: {verified.stderr.strip()}")
        return False
    try:
        recorded = read_bundle(BUNDLE).report("provenance").conditions
    except BundleError as error:
        print(f"      rebuilding the bundle: {error}")
        return False
    config = strict_json.dumps(load_config(CONFIG).to_object())
    if recorded.get("config_sha256") != hashlib.sha256(config).hexdigest():
        print(f"      rebuilding the bundle: {CONFIG} has changed")
        return False
    print(f"      reusing {_shown(BUNDLE)}: it verifies, and {CONFIG} is unchanged")
    print("      (steps 1 to 3 and the verdict; `make clean` starts over)")
    return True


def _holdout() -> TabularDataset:
    """The rows that training never saw, also written where a person can use them."""
    data = load_config(CONFIG).data
    _, holdout = split(load(data.name), key=data.split_key, holdout=data.holdout)
    with (HOME / "holdout.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*(column.name for column in holdout.columns), "truth"])
        for row in _spread(len(holdout), 20):
            values = holdout.features[row].tolist()
            writer.writerow([*values, holdout.classes[int(holdout.labels[row])]])
    return holdout


def _spread(total: int, count: int) -> list[int]:
    """Evenly spaced row numbers: the data set is not shuffled."""
    return [index * (total - 1) // (count - 1) for index in range(count)]


@contextmanager
def _server() -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["bentoml", "serve", "sealgate:latest", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--timeout-graceful-shutdown", "10"]
    _show(command)
    log = HOME / "server.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            _resolve(command), stdout=output, stderr=subprocess.STDOUT
        )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait(url, process, log)
        for line in log.read_text().splitlines():
            if line.startswith("admitted"):
                print(f"      {line}")
        print(f"      listening on {url}")
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    with Client(url, token=str) as client:  # health is asked without a token
        while not client.health():
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"error: the server did not start:\n{log.read_text()}")
            time.sleep(0.2)


def _step(number: int, title: str) -> None:
    prefix = f"[{number}/{STEPS}]" if number else "[ - ]"
    print(f"\n{prefix} {title}", flush=True)


def _security(
    *arguments: str, check: bool = True, quiet: bool = False, **extra: str
) -> subprocess.CompletedProcess[str]:
    command = ["python", "-m", "security", *arguments]
    return _run(command, check=check, quiet=quiet, **extra)


def _run(
    command: list[str], *, check: bool = True, quiet: bool = False, **extra: str
) -> subprocess.CompletedProcess[str]:
    """Run a command and show it; ``quiet`` keeps its output for the caller."""
    _show(command)
    result = subprocess.run(
        _resolve(command),
        env={**os.environ, **extra},
        capture_output=quiet,
        text=True,
        check=False,
    )
    if check and result.returncode:
        print(_indent(result.stderr or ""), file=sys.stderr)
        raise SystemExit(f"error: {shlex.join(command)} exited {result.returncode}")
    return result


def _resolve(command: list[str]) -> list[str]:
    """The command as this environment runs it."""
    name, *arguments = command
    module = ["-m", "bentoml"] if name == "bentoml" else []
    return [sys.executable, *module, *arguments]


def _show(command: list[str]) -> None:
    print(f"      $ {shlex.join(command)}", flush=True)


def _shown(path: Path) -> str:
    """A path as a person in the project's folder would write it."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def _indent(text: str) -> str:
    return "\n".join(f"      {line}" for line in text.splitlines())


if __name__ == "__main__":
    try:
        sys.exit(main())
    except SealgateError as error:
        sys.exit(f"error: {error}")
