"""How hard is tried: profiles of `scan` and of `assess`, and budgets on any of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from security.assessment.targets.decision import parse_decision
from security.errors import AssessmentError

__all__ = ["MIN_ROWS", "PROFILES", "Options", "Profile", "Radii"]

Radii = float | tuple[float, ...] | str | None
"""One radius, several, the column that has each row's own, or the default."""

# Below this an interval spans more than a third of the scale: nothing is concluded.
MIN_ROWS = 30
# Each stated radius is attacked as hard as one alone.
_MAX_RADII = 8


@dataclass(frozen=True)
class Profile:
    """What a profile does; every check reads what concerns it.

    Attributes:
        rows: used at most, of the held-out rows, drawn with the seed.
        attacked, attacked_images: rows of a table, or images, that evasion turns.
        norms: of evasion.
        chunk: rows of one unit of work. Part of the result: random numbers are drawn
            per unit, so that the number of processes changes nothing.
        joined: chunks that are one unit of evasion where rows are narrow.
        iterations: of gradient attacks at the stated radius.
        curve_iterations: of gradient attacks at the other radii of a curve.
        climbs: gradient attacks, of losses and starts that differ in kind.
        looked: starts of each kind that are looked at, per row.
        targets: classes that targeted attacks aim at, the likeliest first.
        square_queries: of the random search, per row, at the stated radius.
        checked_rows: rows that the random search is tried on where gradient attacks
            have been before it; on all, if it breaks more of them than it should.
        boundary_rows: rows for attacks that need thousands of queries each.
        art_rows: rows on which ART's own slower attacks run beside ours.
        shadows: models that membership inference trains.
        smoothing_rows, smoothing_draws: of the certificate by randomised smoothing.
        remote_rows, remote_queries: for endpoints, unless a budget says otherwise.
    """

    rows: int
    attacked: int
    attacked_images: int
    chunk: int
    iterations: int
    curve_iterations: int
    climbs: int
    looked: int
    targets: int
    square_queries: int
    checked_rows: int
    boundary_rows: int
    art_rows: int
    shadows: int
    smoothing_rows: int
    smoothing_draws: int
    remote_rows: int
    remote_queries: int
    norms: tuple[str, ...] = ("linf", "l2")
    joined: int = 1


PROFILES: Mapping[str, Profile] = {
    "quick": Profile(
        rows=500,
        attacked=500,
        attacked_images=500,
        chunk=250,
        iterations=30,
        curve_iterations=20,
        climbs=4,
        looked=32,
        targets=3,
        square_queries=400,
        checked_rows=100,
        boundary_rows=30,
        art_rows=0,
        shadows=16,
        smoothing_rows=0,
        smoothing_draws=0,
        remote_rows=50,
        remote_queries=10_000,
    ),
    "standard": Profile(
        rows=1000,
        attacked=1000,
        attacked_images=1000,
        chunk=125,
        iterations=60,
        curve_iterations=30,
        climbs=6,
        looked=128,
        targets=5,
        square_queries=1000,
        checked_rows=250,
        boundary_rows=60,
        art_rows=30,
        shadows=32,
        smoothing_rows=50,
        smoothing_draws=1000,
        remote_rows=100,
        remote_queries=100_000,
    ),
    "thorough": Profile(
        rows=2000,
        attacked=2000,
        attacked_images=2000,
        chunk=125,
        iterations=80,
        curve_iterations=40,
        climbs=6,
        looked=256,
        targets=9,
        square_queries=2500,
        checked_rows=2000,
        boundary_rows=100,
        art_rows=100,
        shadows=64,
        smoothing_rows=200,
        smoothing_draws=10_000,
        remote_rows=200,
        remote_queries=1_000_000,
    ),
    # What `assess` puts into a bundle's evidence: quality of all rows.
    "assess": Profile(
        rows=1 << 40,
        attacked=2000,
        attacked_images=500,
        norms=("linf",),
        chunk=500,
        joined=4,
        iterations=50,
        curve_iterations=20,
        climbs=4,
        looked=32,
        targets=3,
        square_queries=100,
        checked_rows=30,
        boundary_rows=30,
        art_rows=0,
        shadows=0,
        smoothing_rows=0,
        smoothing_draws=0,
        remote_rows=0,
        remote_queries=0,
    ),
}


@dataclass(frozen=True)
class Options:
    """What the caller chose.

    Attributes:
        profile: a name in `PROFILES`.
        seed: of every random number.
        jobs: processes; None for one per processor, once what is left takes long
            enough. Changes the time, never the report.
        max_minutes: no unit of work starts later than this; None is no limit.
        max_queries: rows that a remote endpoint may be asked; None is the profile's.
        max_rows: of the held-out rows; None is the profile's.
        radius_linf, radius_l2: of the stated robust accuracy, in units of the space
            that is attacked; of several, the first is what policies read.
        checks: names of the checks to run; empty is all that apply.
        wanted: checks that run beside them, as evidence needs them, also where the
            profile leaves them out.
        norms: of evasion; none are the profile's.
        output: name of the model's output with scores or labels; None finds it.
        decision: what decides, as `parse_decision` reads it; None where it is known.
    """

    profile: str = "quick"
    seed: int = 0
    jobs: int | None = 1
    max_minutes: float | None = None
    max_queries: int | None = None
    max_rows: int | None = None
    radius_linf: Radii = None
    radius_l2: Radii = None
    checks: tuple[str, ...] = ()
    wanted: tuple[str, ...] = ()
    norms: tuple[str, ...] = ()
    output: str | None = None
    decision: str | None = None

    def __post_init__(self) -> None:
        """Refuse what makes no sense.

        Raises:
            AssessmentError: names the option.
        """
        if self.profile not in PROFILES:
            raise AssessmentError(
                f"no profile {self.profile!r}; there are: {', '.join(PROFILES)}"
            )
        for name in ("jobs", "max_minutes", "max_queries", "max_rows"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise AssessmentError(f"--{name.replace('_', '-')} must be positive")
        for norm in ("linf", "l2"):
            radii = self.radii(norm)
            if any(not 0 < value < float("inf") for value in radii):
                raise AssessmentError(f"--radius-{norm} must be positive and finite")
            if len(set(radii)) != len(radii) or len(radii) > _MAX_RADII:
                raise AssessmentError(
                    f"--radius-{norm}: up to {_MAX_RADII} radii, each once"
                )
        if self.decision is not None:
            parse_decision(self.decision)
        if self.seed < 0:
            raise AssessmentError("--seed must not be negative")

    def radii(self, norm: str) -> tuple[float, ...]:
        """The stated radii of a norm, as they were given; none for the default."""
        given: Radii = getattr(self, f"radius_{norm}")
        if isinstance(given, tuple):
            return given
        return (given,) if isinstance(given, int | float) else ()

    def radius_column(self, norm: str) -> str | None:
        """The column of the data that has each row's own radius, if one has."""
        given: Radii = getattr(self, f"radius_{norm}")
        return given if isinstance(given, str) else None

    @property
    def effort(self) -> Profile:
        """The profile's numbers; the standard ones of what it leaves out."""
        profile, more = PROFILES[self.profile], PROFILES["standard"]
        named = {*self.checks, *self.wanted}
        if self.norms:
            profile = replace(profile, norms=self.norms)
        if "smoothing" in named and not profile.smoothing_rows:
            profile = replace(
                profile,
                smoothing_rows=more.smoothing_rows,
                smoothing_draws=more.smoothing_draws,
            )
        return profile
