"""The description of a method, without loading torch: its row in the table and its access to data."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

Source = Literal["none", "statistics", "unlabelled", "labelled"]
Test = Literal["none", "image", "stream", "other", "pool"]
State = Literal["fixed", "episodic", "online", "offline"]
Backprop = Literal["none", "norm", "partial", "full"]
Track = Literal["R", "A", "B", "C", "D", "E", "F"]

_ORDER: dict[str, tuple[str, ...]] = {
    "source": ("none", "statistics", "unlabelled", "labelled"),
    "test": ("none", "image", "stream", "other", "pool"),
    "state": ("fixed", "episodic", "online", "offline"),
    "backprop": ("none", "norm", "partial", "full"),
}

TRACKS: dict[Track, str] = {
    "R": "no test data at all",
    "A": "source-free, online on the scored stream",
    "B": "online, with source data or statistics beside the stream",
    "C": "sees unlabelled shifted images before scoring",
    "D": "sees unlabelled shifted images before scoring, then trains on labelled source data",
    "E": "other shift seen: as C, but images of another shift than the scored one",
    "F": "other shift seen: as D, but images of another shift than the scored one",
}


@dataclass(frozen=True, slots=True)
class Access:
    """The data that a method may see and the changes that it may make: the basis of a fair comparison.

    `source`: source data used while or after test data is seen. Training the classifier beforehand, which every row of
    a board shares, does not count.
    `test`: test images used without their labels: none, each image alone, the scored stream in order, a pool of another
    shift before scoring ("other"), or a pool of the scored one ("pool"): shifted images for recipes, clean ones for
    adapters, which get them in place of train images. No row of the table has "other": a run decides it.
    `state`: what persists from one prediction to the next: nothing changes (fixed), changes are undone after every
    image (episodic), changes are kept along the stream (online), or all changes precede the stream (offline).
    `backprop`: which parameters gradients change while shifted images are in use.
    """

    source: Source = "none"
    test: Test = "none"
    state: State = "fixed"
    backprop: Backprop = "none"

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) not in _ORDER[field.name]:
                raise ValueError(f"Access.{field.name} must be one of {', '.join(_ORDER[field.name])}")

    def __or__(self, other: Access) -> Access:
        """Return the union: the most that either of two composed methods may see."""
        widest = {
            name: max(getattr(self, name), getattr(other, name), key=order.index) for name, order in _ORDER.items()
        }
        return Access(**widest)

    @property
    def track(self) -> Track:
        """The track in which this access is ranked; rows of different tracks are never ranked together by default."""
        if self.test == "none":
            return "R"
        if self.test == "pool":
            return "D" if self.source == "labelled" else "C"
        if self.test == "other":
            return "F" if self.source == "labelled" else "E"
        return "A" if self.source == "none" else "B"


@dataclass(frozen=True, slots=True)
class MethodRow:
    """One method in the table: enough to list, show and plan it without importing its file.

    `path` is "module:Class". `options_of` names the method whose options this method shares (as its control),
    `starts_as` the method whose classifier it starts from, or whose training it extends: options of the same name are
    taken from that method unless given. `needs` names the recipe on whose classifier an adapter runs when it is named
    alone (None: source). `citation` is one line: authors, title, venue, year, identifier. `version` is raised when the
    same inputs give other numbers.
    """

    name: str
    kind: Literal["recipe", "adapter"]
    path: str
    summary: str
    access: Access
    citation: str
    options_of: str | None = None
    starts_as: str | None = None
    needs: str | None = None
    version: int = 1
