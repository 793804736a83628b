"""Limits of a compile, what the user will not do without: how large, how fast, how near to full weights, how right."""

from dataclasses import dataclass, fields
from pathlib import Path

from fieldlm.core.errors import InputError

# What a task may lose when nobody says otherwise: two right answers in a hundred.
MIN_TASK = 0.98


@dataclass(frozen=True, kw_only=True)
class Limits:
    """None is no limit. Megabytes are 1e6 bytes.

    `max_ram_mb` bounds weights, cache and buffers as the profile serves; `min_tokens_per_s` what one answer gets on
    this machine; `max_kl` the mean divergence from full weights in nats a token; `min_task` the share of full weights'
    right answers that must stay right.
    """

    max_ram_mb: float | None = None
    min_tokens_per_s: float | None = None
    max_bundle_mb: float | None = None
    max_kl: float | None = None
    min_task: float | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            option = "--" + field.name.replace("_", "-")
            if value is not None and not value > 0:
                raise InputError(f"{option} {value:g} leaves nothing; give a number above 0")
            if field.name == "min_task" and value is not None and value > 1:
                raise InputError(f"{option} {value:g} asks for more than full weights give; give a share, such as 0.98")

    @property
    def bound_size(self) -> bool:
        """Whether any of them says how large the mixture may be."""
        return any(each is not None for each in (self.max_ram_mb, self.max_bundle_mb, self.min_tokens_per_s))


NO_LIMITS = Limits()


@dataclass(frozen=True, kw_only=True)
class SearchRequest:
    """What the search is to go by: text to calibrate on, a task to be judged by, limits; types that are not wanted.

    `ray` is the address of a Ray cluster whose nodes make and measure the candidates; none: this machine does.
    """

    calibration: tuple[Path, ...] = ()
    task: Path | None = None
    limits: Limits = NO_LIMITS
    without: tuple[str, ...] = ()
    ray: str | None = None

    @property
    def is_wanted(self) -> bool:
        return bool(self.calibration or self.task) or self.limits != NO_LIMITS


PRESETS = SearchRequest()
