"""Choose the streams of a store that a model reads, where its configuration does not name them."""

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
    """Return the options with all streams named.

    A stream that the configuration does not name must be the only candidate. If the configuration leaves it open,
    a branch of AME-Net without a stream is disabled, an object stream replaces missing clip streams, and words are
    learned if there is no text stream. ``say`` reports each such choice.

    Args:
        say: receives a line for each choice, and for each stream that cannot be opened.

    Raises:
        DataError: listing all streams that are missing, of the wrong kind or ambiguous.
        StoreError: if a named stream cannot be opened.
    """
    problems: list[str] = []
    candidates = Candidates(store, say)
    options = _fit_to_store(options, candidates)

    def find(requested: str, kind_name: str, key: str, hint: str, also: str = "") -> str:
        if requested:
            if requested not in store:
                existing = ", ".join(store) or "no stream"
                near = did_you_mean(requested, store)
                problems.append(f"{key}={requested}: {store.path} has no such stream; it has {existing}{near}")
            elif (actual := kind(store[requested])) not in (kind_name, also):
                problems.append(f"{key}={requested} is a stream of {actual}, not of {kind_name}")
            return requested
        names = candidates.names(kind_name)
        if len(names) == 1:
            return names[0]
        if names:
            problems.append(
                f"{store.path} has several streams of {kind_name}: choose one with --set {key}=NAME, from {names}"
            )
        else:
            problems.append(candidates.none_of(kind_name, hint))
        return ""

    chosen: dict[str, Any] = {}
    extract = f"amex extract --manifest M --store {store.path}"
    if options.wants_objects:
        hint = f"make one with {extract} --stream frcnn_r50_coco, or --set model.relation_branch=false"
        chosen["objects"] = find(options.objects, "objects", "model.objects", hint)
    if options.wants_streams:
        without = "--set model.global_branch=false" if options.wants_objects else "name some with --set model.streams"
        hint = f"make one with {extract} --stream r2plus1d_18, or {without}"
        names = options.streams or candidates.names("clips")
        also = "objects" if options.takes_objects else ""
        chosen["streams"] = [find(name, "clips", "model.streams", hint, also) for name in names]
        if not names:
            find("", "clips", "model.streams", hint)
    if options.text != "words" and not options.tower:
        stream = "text_bert, or --set model.text=words" if options.takes_words else "text_clip"
        hint = f"make one with {extract} --stream {stream}"
        text = options.text or ("" if problems else candidates.text_of(chosen.get("streams", ())))
        chosen["text"] = find(text, "text", "model.text", hint)
    if problems:
        raise DataError("; ".join(problems))
    if getattr(options, "text_bag", None) == "auto":
        chosen["text_bag"] = options.text != "words" and not options.tower
    return options.model_copy(update=chosen)


def _fit_to_store(options: ModelOptions, candidates: Candidates) -> ModelOptions:
    """Change options that the user did not set and for which the store has no stream."""
    changed: dict[str, Any] = {}
    user_set = options.model_fields_set

    def change(missing: str, consequence: str, **values: Any) -> None:
        candidates.say(f"no stream of {missing} in {candidates.store.path}: {consequence}")
        changed.update(values)

    no_clips = options.wants_streams and not options.streams and candidates.lacks("clips")
    no_objects = options.wants_objects and not options.objects and candidates.lacks("objects")
    if options.wants_objects and options.wants_streams:
        if no_objects and not no_clips and "relation_branch" not in user_set:
            change("objects", "the relation branch is disabled", relation_branch=False)
        if no_clips and not no_objects and "global_branch" not in user_set:
            change("clips", "the global branch is disabled", global_branch=False)
    elif options.takes_objects and no_clips and len(objects := candidates.names("objects")) == 1:
        change("clips", f"the object stream {objects[0]} is read instead", streams=objects)
    if options.learns_words_by_default and candidates.lacks("text"):
        change("text", "words are learned from the training captions", text="words")
    return options.model_copy(update=changed)


class Candidates:
    """The streams that can replace an unnamed one: those that can be opened and have committed parts.

    Streams are opened at the first request. If all streams are named, damage in the others causes no error.

    Attributes:
        unreadable: the errors of streams that cannot be opened.
        uncommitted: names of streams without a committed part, by kind.
    """

    def __init__(self, store: Store, say: Say) -> None:
        self.store, self.say = store, say
        self.unreadable: list[StoreError] = []
        self.uncommitted: defaultdict[str, list[str]] = defaultdict(list)

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
            (by_kind if stream.commits else self.uncommitted)[kind(stream)].append(name)
        return by_kind

    def names(self, kind_name: str) -> list[str]:
        """Return the names of the candidates of a kind."""
        return self._by_kind[kind_name]

    def lacks(self, kind_name: str) -> bool:
        """Whether the store has no stream of a kind, not even a damaged or uncommitted one."""
        return not (self.names(kind_name) or self.uncommitted[kind_name] or self.unreadable)

    def none_of(self, kind_name: str, hint: str) -> str:
        """Return an error text: the store has no stream of a kind, and what to do."""
        uncommitted = self.uncommitted[kind_name]
        but = f" but {', '.join(uncommitted)}, which is empty" if uncommitted else ""
        left_out = f" (left out: {'; '.join(map(str, self.unreadable))})" if self.unreadable else ""
        return f"{self.store.path} has no stream of {kind_name}{but}{left_out}: {hint}"

    def text_of(self, streams: Collection[str]) -> str:
        """Choose the text stream whose model also made one of ``streams``, as the two towers of CLIP do.

        Such features share one space. Return an empty name unless exactly one text stream matches.
        """
        names = self.names("text")
        if len(names) < 2:
            return ""
        weights = {digest: name for name in streams if (digest := self.store[name].spec.get("weights_sha256"))}
        same_model = {
            name: partner for name in names if (partner := weights.get(self.store[name].spec.get("weights_sha256")))
        }
        if len(same_model) != 1:
            return ""
        ((name, partner),) = same_model.items()
        others = ", ".join(other for other in names if other != name)
        self.say(
            f"text stream {name}, by the model of {partner}, is read, not {others}; to choose: --set model.text=NAME"
        )
        return name
