"""Which streams of a store a model reads, where its configuration leaves that open."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection
from functools import cached_property
from typing import Any

from ..errors import did_you_mean
from ..features import Store, StoreError
from .options import ModelOptions
from .selection import DataError, kind

Say = Callable[[str], None]


def choose_streams(options: ModelOptions, store: Store, say: Say = lambda line: None) -> ModelOptions:
    """The options with streams named: those asked for, or where there is no choice, those there are.

    As far as the configuration leaves it open, a branch of AME-Net that the store has nothing for is left out, objects
    are taken in place of clips, and words are learned where no stream is of text. Each is said.

    Args:
        say: called with a line for each choice that the configuration does not name, and for each stream that cannot be
            opened and is no candidate therefore.

    Raises:
        DataError: listing all that is missing, unfit or undecided.
        StoreError: if a stream that is asked for cannot be opened.
    """
    problems: list[str] = []
    candidates = Candidates(store, say)
    options = _as_the_store_has(options, candidates)

    def find(asked: str, wanted: str, key: str, hint: str, also: str = "") -> str:
        if asked:
            if asked not in store:
                there = ", ".join(store) or "none yet"
                near = did_you_mean(asked, store)
                problems.append(f"{key}={asked}: no such stream in {store.path}; there is {there}{near}")
            elif (actual := kind(store[asked])) not in (wanted, also):
                problems.append(f"{key}={asked} is a stream of {actual}, not of {wanted}")
            return asked
        names = candidates.names(wanted)
        if len(names) == 1:
            return names[0]
        if names:
            problems.append(
                f"{store.path} has several streams of {wanted}: choose one with --set {key}=NAME, of {names}"
            )
        else:
            problems.append(candidates.none_of(wanted, hint))
        return ""

    chosen: dict[str, Any] = {}
    extract = f"amex extract --manifest M --store {store.path}"
    if options.wants_objects:
        hint = f"make one with {extract} --stream frcnn_r50_coco, or --set model.relation_branch=false"
        chosen["objects"] = find(options.objects, "objects", "model.objects", hint)
    if options.wants_streams:
        without = "--set model.global_branch=false" if options.wants_objects else "choose some with --set model.streams"
        hint = f"make one with {extract} --stream r2plus1d_18, or {without}"
        names = options.streams or candidates.names("clips")
        also = "objects" if options.takes_objects else ""
        chosen["streams"] = [find(name, "clips", "model.streams", hint, also) for name in names]
        if not names:
            find("", "clips", "model.streams", hint)
    if options.text != "words" and not options.tower:
        made = "text_bert, or --set model.text=words" if options.takes_words else "text_clip"
        hint = f"make one with {extract} --stream {made}"
        text = options.text or ("" if problems else candidates.text_of(chosen.get("streams", ())))
        chosen["text"] = find(text, "text", "model.text", hint)
    if problems:
        raise DataError("; ".join(problems))
    if getattr(options, "text_bag", None) == "auto":
        chosen["text_bag"] = options.text != "words" and not options.tower
    return options.model_copy(update=chosen)


def _as_the_store_has(options: ModelOptions, candidates: Candidates) -> ModelOptions:
    """The options, changed where they are defaults that the store has nothing for; what a user has set stays."""
    changed: dict[str, Any] = {}
    given = options.model_fields_set

    def change(missing: str, then: str, **values: Any) -> None:
        candidates.say(f"no stream of {missing} in {candidates.store.path}: {then}")
        changed.update(values)

    no_clips = options.wants_streams and not options.streams and candidates.lacks("clips")
    no_objects = options.wants_objects and not options.objects and candidates.lacks("objects")
    if options.wants_objects and options.wants_streams:
        if no_objects and not no_clips and "relation_branch" not in given:
            change("objects", "the relation branch is left out", relation_branch=False)
        if no_clips and not no_objects and "global_branch" not in given:
            change("clips", "the global branch is left out", global_branch=False)
    elif options.takes_objects and no_clips and len(objects := candidates.names("objects")) == 1:
        change("clips", f"{objects[0]} is read, which is of objects", streams=objects)
    if options.learns_words_unless_told and candidates.lacks("text"):
        change("text", "words are learned from the training captions", text="words")
    return options.model_copy(update=changed)


class Candidates:
    """The streams of a store to choose from where none is named: what can be opened and has a part.

    They are opened when they are first asked for: where all streams are named, damage in others stops nothing.

    Attributes:
        unreadable: the errors of those that cannot be opened.
        undone: by kind the names of those that are declared, and hold nothing yet.
    """

    def __init__(self, store: Store, say: Say) -> None:
        self.store, self.say = store, say
        self.unreadable: list[StoreError] = []
        self.undone: defaultdict[str, list[str]] = defaultdict(list)

    @cached_property
    def _by_kind(self) -> defaultdict[str, list[str]]:
        by_kind: defaultdict[str, list[str]] = defaultdict(list)
        for name in self.store:
            try:
                stream = self.store[name]
            except StoreError as error:
                self.unreadable.append(error)
                self.say(f"left out: {error}")
                continue
            (by_kind if stream.commits else self.undone)[kind(stream)].append(name)
        return by_kind

    def names(self, wanted: str) -> list[str]:
        """Those of a kind."""
        return self._by_kind[wanted]

    def lacks(self, wanted: str) -> bool:
        """Whether the store has none of a kind, be it damaged or without rows yet."""
        return not (self.names(wanted) or self.undone[wanted] or self.unreadable)

    def none_of(self, wanted: str, hint: str) -> str:
        """Why there is none of a kind, and what to do."""
        undone = self.undone[wanted]
        but = f" but {', '.join(undone)}, which holds nothing yet" if undone else ""
        left_out = f" (left out: {'; '.join(map(str, self.unreadable))})" if self.unreadable else ""
        return f"{self.store.path} has no stream of {wanted}{but}{left_out}: {hint}"

    def text_of(self, streams: Collection[str]) -> str:
        """Of several streams of text the one by the model that made one of ``streams``, as CLIP's two towers; or empty.

        Their features are in one space.
        """
        names = self.names("text")
        if len(names) < 2:
            return ""
        weights = {digest: name for name in streams if (digest := self.store[name].spec.get("weights_sha256"))}
        by_same = {name: made for name in names if (made := weights.get(self.store[name].spec.get("weights_sha256")))}
        if len(by_same) != 1:
            return ""
        ((name, made),) = by_same.items()
        others = ", ".join(other for other in names if other != name)
        self.say(
            f"{name} is read, and not {others}: it is by the model of {made}; --set model.text=NAME chooses another"
        )
        return name
