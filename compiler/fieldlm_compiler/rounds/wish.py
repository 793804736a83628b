"""What a round is asked for."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fieldlm.core.signing import key_id
from fieldlm.formats.profile import Profile, profile_sha256
from fieldlm_compiler.learn.curate import EVAL_SHARE
from fieldlm_compiler.learn.quality.held_out import HeldOutFrom
from fieldlm_compiler.learn.redacted.second_pass import Names
from fieldlm_compiler.learn.tuning.recipe import TrainingRecipe
from fieldlm_compiler.rounds.advice import ENOUGH
from fieldlm_compiler.verify.deferral import Deferral

Begin = Literal["best", "last", "fresh"]
Adapters = Literal["one", "groups", "best"]
Classifiers = Literal["none", "best"]
UNSAID: dict[str, Any] = {
    "check_labels": False,
    "adapters": "one",
    "classifiers": "none",
    "deferral": "threshold",
    "held_out_from": None,
    "bases": None,
    "names": "listed",
}
"""Options that rounds of earlier versions could not name, and what they are then: round.json leaves them out."""


@dataclass(frozen=True, kw_only=True)
class RoundWish:
    """Everything that decides what comes of a round, beside the store and the rounds before it."""

    store: str
    base: str
    profile: Profile
    out: Path
    key: Ed25519PrivateKey
    consents: tuple[str, ...]
    bases: tuple[str, ...] = ()
    """Others that are weighed against `base`; none: there is no choice."""
    base_bundle: Path | None = None
    """The base as devices have it; none: it is compiled."""
    quants: tuple[str, ...] = ()
    name: str = ""
    system_prompt: str | None = None
    recipe: TrainingRecipe = field(default_factory=TrainingRecipe)
    begin: Begin = "best"
    """Tune from the last accepted adapter, afresh, or both and take what is better on the customers to watch."""
    adapters: Adapters = "one"
    """Whether one adapter answers all tasks, or groups of tasks have their own: all, or those that gain by it."""
    classifiers: Classifiers = "none"
    """Whether a classifier answers tasks with few answers, where it loses nothing, in the model's place."""
    deferral: Deferral = "threshold"
    """What makes p(right) of an answer: one signal, several that are weighed together, or what is better of the two."""
    eval_share: float = EVAL_SHARE
    teacher: bool = False
    """Whether what the large model answered is a label where nobody corrected it."""
    check_labels: bool = False
    """Whether training examples are left out whose label others' labels speak against."""
    names: Names = "learned"
    """How names are looked for in what devices redacted: by the learned finder, too, or by lists alone."""
    held_out_from: HeldOutFrom | None = None
    """From when on the newest examples are held out as well, beside `eval_share`."""
    enough: float = ENOUGH
    """Exact match from which the small model takes a task."""
    let_go: frozenset[str] = frozenset()
    """Tasks, by id or name, that may get worse."""
    work: Path | None = None
    """Where finished stages of the compiler lie; none: the user's cache."""

    def facts(self) -> dict[str, Any]:
        """Return the options as round.json names them."""
        unsaid = {
            "check_labels": self.check_labels,
            "adapters": self.adapters,
            "classifiers": self.classifiers,
            "names": self.names,
            "deferral": self.deferral,
            "held_out_from": asdict(self.held_out_from) if self.held_out_from else None,
        }
        return {
            "profile": self.profile.id,
            "profile_sha256": profile_sha256(self.profile),
            "signer": key_id(self.key.public_key()),
            "consents": sorted(self.consents),
            "quants": list(self.quants),
            "name": self.name,
            "system_prompt": self.system_prompt,
            "recipe": self.recipe.facts(),
            "begin": self.begin,
            "eval_share": self.eval_share,
            "teacher": self.teacher,
            "enough": self.enough,
            "let_go": sorted(self.let_go),
            **{name: value for name, value in unsaid.items() if value != UNSAID[name]},
        }
