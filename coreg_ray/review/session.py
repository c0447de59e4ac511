"""What a review has come to: labels that several pages give, the journal that keeps them, the file that they end in."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from coreg_ray.errors import UserError
from coreg_ray.pure.interval import FEWEST, wilson
from coreg_ray.review.items import Items
from coreg_ray.review.journal import Entry, Journal
from coreg_ray.run.folder import JOURNAL, REVIEW, RunFolder
from coreg_ray.run.lock import alone
from coreg_ray.run.review_table import NONE_OF_THESE, NOT_SURE, ReviewTable

log = logging.getLogger(__name__)

_NO_CLASS = {NOT_SURE, NONE_OF_THESE}
HOWS, ORDERS = ("picture", "grid", "undo"), ("listed", "random", "chosen")


@dataclass(frozen=True)
class Answer:
    """What came of some labels.

    Attributes:
        stored: places in the list whose labels were stored. refused: places where another label stands than the page
            took for granted -> that label; another page has given it.
    """

    stored: list[int] = field(default_factory=list)
    refused: dict[int, str] = field(default_factory=dict)


class Session:
    """The labels of N images while people give them. All methods may be called from any thread."""

    def __init__(self, folder: RunFolder, items: Items) -> None:
        self.folder, self.items, self.journal = folder, items, Journal(folder)
        self.changes: list[int] = []  # places in the list whose labels changed, in the order in which they did
        self.trouble: str | None = None  # why review.csv lacks labels that the journal has
        self._class_names = set(items.class_names)
        self._number = {name: row for row, name in enumerate(items.ids)}
        self._labels = [items.as_shown(items.labels[name]) for name in items.ids]
        self._judged: dict[int, Entry] = {}  # by place: the last entry about it, of those given picture by picture
        self._lock = threading.RLock()
        self._unmerged = False
        self.merge()

    def __len__(self) -> int:
        return len(self._labels)

    def labels(self) -> dict[int, str]:
        """Place in the list -> label, of all images that have one."""
        with self._lock:
            return {row: label for row, label in enumerate(self._labels) if label}

    def since(self, change: int) -> dict[int, str]:
        """Labels that have changed since that many changes, by place; "" for those that were taken back."""
        with self._lock:
            return {row: self._labels[row] for row in self.changes[max(0, change) :]}

    def give(self, labels: Mapping[int, str], before: Mapping[int, str], how: str, order: str) -> Answer:
        """Store labels on disk.

        Args:
            labels: by place in the list: a class's name, `?`, `-`, or "" to take one back. before: what the page took
                each of them for; where another label stands by now, nothing is stored.

        Raises:
            ValueError: a place, label, way or order that there is not. UserError, OSError: it cannot be written, and
                nothing is changed.
        """
        if how not in HOWS or order not in ORDERS:
            raise ValueError(f"how={how!r}, order={order!r} are not among {HOWS} and {ORDERS}")
        for row, label in labels.items():
            if not 0 <= row < len(self._labels):
                raise ValueError(f"there is no image {row}; the list has {len(self._labels)}")
            if label and label not in self._class_names | _NO_CLASS:
                raise ValueError(f"{label[:60]!r} is none of the {len(self.items.class_names)} classes")
        with self._lock:
            refused = {row: self._labels[row] for row in labels if self._labels[row] != before.get(row, "")}
            stored = [row for row in labels if row not in refused]
            entries = [Entry.now(self.items.ids[row], labels[row], self._labels[row], how, order) for row in stored]
            if entries:
                self.journal.add(entries)
                self._take(entries)
                self._unmerged = True
        return Answer(stored, refused)

    @property
    def unmerged(self) -> bool:
        """Whether the journal has labels that `review.csv` may lack."""
        return self._unmerged

    def merge(self) -> None:
        """Bring the journal's labels into `review.csv`, and take over what others have written there meanwhile.

        Where that file cannot be written or read, labels stay in the journal and `trouble` says why.
        """
        with self._lock:
            try:
                self._merge()
                self.trouble = None
            except (OSError, UserError) as error:
                self.trouble = f"{REVIEW} cannot be written ({error}); every label is safe in {JOURNAL}."
                log.warning("%s", self.trouble)

    def _merge(self) -> None:
        with alone(self.folder):
            entries, merged = self.journal.read()
            table = ReviewTable.parse(self.folder.read(REVIEW)) if self.folder.exists(REVIEW) else None
            if table is None:
                raise UserError(f"{self.folder.path}/{REVIEW} is gone, or no CSV with the columns image_id and label")
            fresh = {entry.image_id: entry.label for entry in entries[merged:]}
            if fresh:
                self.folder.write(REVIEW, table.with_labels(fresh))
                self.journal.mark(len(entries))
        self._unmerged = False
        self._take_over({name: self.items.as_shown(label) for name, label in (table.labels() | fresh).items()})
        self._judge(entries)

    def _take_over(self, labels: Mapping[str, str]) -> None:
        """Labels as the file has them now."""
        for name, label in labels.items():
            row = self._number.get(name)
            if row is not None and self._labels[row] != label:
                self._labels[row] = label
                self.changes.append(row)

    def _take(self, entries: list[Entry]) -> None:
        for entry in entries:
            row = self._number[entry.image_id]
            self._labels[row] = entry.label
            self.changes.append(row)
        self._judge(entries)

    def _judge(self, entries: list[Entry]) -> None:
        """Keep what was said of pictures that came up by themselves; what a grid left out would make all look right."""
        for entry in entries:
            row = self._number.get(entry.image_id)
            if row is None:
                continue
            if entry.how == "picture" and entry.label:
                self._judged[row] = entry
            else:
                self._judged.pop(row, None)

    def obstacle(self) -> str | None:
        """Why training cannot go on with these labels, as a sentence; None where it can."""
        labels = self.labels()
        strange = {row: label for row, label in labels.items() if label not in self._class_names | _NO_CLASS}
        if strange:
            row, label = next(iter(strange.items()))
            return (
                f"{len(strange)} labels in {REVIEW} are no class: {label!r} of {self.items.ids[row]} is one. Choose a "
                "class for them first."
            )
        if not self._class_names & set(labels.values()):
            return "No image has a class yet; label some first."
        return None

    def accuracy(self) -> dict[str, Any] | None:
        """What the reviewed images say of the networks' own labels; None below `FEWEST` images.

        `order` is `random` where the images were a random choice from the list, so that the interval holds for those
        that are left, else `listed`: then they are those that the networks doubt most. Images that a person was not
        sure about, picked out, or confirmed in a grid are no evidence.
        """
        with self._lock:
            for order in ("random", "listed"):
                counted = {order, "random"}
                evidence = ((row, entry) for row, entry in self._judged.items() if entry.order in counted)
                judged = [(row, entry.label) for row, entry in evidence if entry.label != NOT_SURE]
                suggested = self.items.columns.get("suggestion")
                if suggested is None or len(judged) < FEWEST:
                    continue
                right = sum(self.items.words[suggested[row]] == label for row, label in judged if suggested[row] >= 0)
                low, high = wilson(right, len(judged))
                return {"order": order, "right": right, "count": len(judged), "low": low, "high": high}
        return None
