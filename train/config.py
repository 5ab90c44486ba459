"""Configurations: plain Python files, checked as a whole before anything heavy starts."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator

from ..errors import AmexError, did_you_mean
from .options import SECTIONS, AMENet, Model, ModelOptions, Objective, Off, Section

CONFIGS = Path(__file__).parent / "configs"


class ConfigError(AmexError):
    """A configuration cannot be used as it is."""


# None, a value that is settled by the size of the training split when a run begins, is called auto.
Auto = BeforeValidator(lambda value: None if value == "auto" else value)


class Data(Section):
    """What of the store and the manifest is trained on."""

    train: str = Field("train", description="the split to learn from")
    val: str = Field("val", description="the split that chooses the checkpoint")
    select_on_test: bool = Field(
        False, description="allow data.val to share clips with the test split: test figures are then too good"
    )
    allow_overlap: bool = Field(
        False,
        description="allow data.train to share clips or videos with data.val or the test split, and those two to share "
        "videos: figures are then too good",
    )
    batch_size: Annotated[int | None, Auto] = Field(
        64,
        ge=2,
        description="pairs a step, over all processes; auto: 64 to 256 by the number of pairs, with objects 32 on",
    )
    similar: Annotated[int | None, Auto] = Field(
        0,
        ge=0,
        description="so many pairs with the words of their captions in common follow one another, so that a batch has "
        "negatives that differ in little, such as who does it to whom; 0: any order; auto: 8 for a model with objects",
    )
    captions: Literal["one", "all"] = Field("one", description="a clip's captions an epoch: one at random, or each")
    together: str = Field(
        "",
        description="a key of the clips' extras that names another clip: the two follow one another, so that nearly "
        "every batch has both or none, and each is a hard negative of the other",
    )
    max_rows: int = Field(12, ge=1, description="T: rows a clip and stream, in the middle of equal segments")
    rows: Literal["middle", "random"] = Field(
        "middle",
        description="of more rows than max_rows: those in the middle of the segments, or in training random ones",
    )
    max_objects: int = Field(36, ge=1, description="N: objects a row, the surest first")
    max_tokens: int = Field(30, ge=1, description="a caption's tokens or words")
    min_count: int = Field(1, ge=1, description="of words learned here: rarer ones are unknown")
    memory_gb: float = Field(
        4.0,
        ge=0,
        description="for features of clips and captions: data.val's are kept if they fit, data.train's if both do; "
        "others are read again in each epoch",
    )
    workers: int = Field(2, ge=0, description="processes that read training features ahead, if not kept in memory")


class Train(Section):
    """How it is learned."""

    epochs: Annotated[int | None, Auto] = Field(
        None, ge=1, description="auto: as many as show each pair 15 times, on few pairs more often"
    )
    optimizer: Literal["adam", "adamw"] = "adam"
    lr: Annotated[float | None, Auto] = Field(
        2e-4, gt=0, description="auto: 1e-3; without objects less on fewer than 7,000 pairs"
    )
    weight_decay: float = Field(
        0.0, ge=0, description="of weights and embeddings; biases, norms, temperature have none"
    )
    schedule: Literal["plateau", "cosine", "constant"] = Field(
        "plateau",
        description="plateau: halve the rate when the validation's rsum stands still; cosine: let it fall to 0 at the "
        "last epoch",
    )
    patience: int = Field(5, ge=1, description="epochs without a better rsum after which plateau halves the rate")
    warmup: Annotated[int | None, Auto] = Field(
        0, ge=0, description="steps over which the rate rises; auto: a tenth of all"
    )
    clip_grad: float | None = Field(None, gt=0, description="largest norm of the gradient")
    accumulate: int = Field(
        1, ge=1, description="batches whose gradients are added up for one step; each has its own negatives"
    )
    encode_at_once: int = Field(
        0,
        ge=0,
        description="pairs of a batch that are encoded at once, for batches that do not fit in memory: each is encoded "
        "twice, the negatives are those of the whole batch (GradCache); 0: all",
    )
    ema: float = Field(
        0.0, ge=0, lt=1, description="decay of an average of the weights that is validated and kept; 0: none"
    )
    amp: Annotated[Literal["auto", "off", "bf16", "fp16"], Off] = Field(
        "auto", description="auto: bf16 on a GPU, off on a CPU"
    )
    val_every: Annotated[int | None, Auto] = Field(1, ge=1, description="epochs; auto: ten times a run")
    keep: Annotated[Literal["best", "last"] | None, Auto] = Field(
        "best", description="the checkpoint that is used; auto: the last where data.val has too few clips to choose"
    )
    seed: int = Field(42, ge=0)

    @field_validator("encode_at_once")
    @classmethod
    def _more_than_one(cls, value: int) -> int:
        if value == 1:  # batch normalisation has no variance over one
            raise ValueError("two pairs or more are encoded at once, or 0 for all")
        return value


class Config(Section):
    """A whole configuration. Validation lists everything that is wrong with it."""

    model: Model = AMENet()
    objective: Objective = Objective(**AMENet.own["objective"])
    data: Data = Data()
    train: Train = Train()

    @model_validator(mode="before")
    @classmethod
    def _as_the_model_prefers(cls, values: Any) -> Any:
        """What the other sections leave open is the model's own choice."""
        model = values.get("model", {}) if isinstance(values, dict) else None
        options = SECTIONS.get(model.get("name", "amenet")) if isinstance(model, dict) else None
        if options is None:
            return values
        chosen = {}
        for section, preferred in options.own.items():
            given, own = values.get(section, {}), dict(preferred)
            if not isinstance(given, dict):
                continue
            if {"hinge", "contrastive"} & given.keys():
                own = {key: value for key, value in own.items() if key not in ("hinge", "contrastive")}
            chosen[section] = own | given
        return values | chosen

    @property
    def concepts(self) -> dict[str, int]:
        """By kind how many concepts of captions are told apart at most; none where neither model nor objective does."""
        if not (self.model.has_concepts or self.objective.concepts):
            return {}
        return {
            "entity": self.objective.entities,
            "action": self.objective.actions,
            "relation": self.objective.relations,
        }

    @property
    def reads_graphs(self) -> bool:
        """Whether training needs role graphs, for the model's captions or for concepts."""
        return self.model.needs_graphs or bool(self.concepts)

    def plain(self) -> dict[str, Any]:
        """As JSON has it; ``Config.model_validate`` reads it back."""
        return self.model_dump(mode="json")


MODELS = tuple(SECTIONS)


def known_configs() -> list[str]:
    """Names of the configuration files that come with amex."""
    return sorted(path.stem for path in CONFIGS.glob("*.py") if not path.stem.startswith("_"))


def load_config(which: str, settings: Iterable[str] = ()) -> Config:
    """A configuration by the name of a model, of a file that comes with amex, or by its path.

    Args:
        settings: ``section.key=value``, values as YAML has them, applied on top.

    Raises:
        ConfigError: listing everything that is wrong, a line each.
    """
    values = _read(which)
    values.setdefault("model", {}).setdefault("name", "amenet")
    problems = []
    for setting in settings:
        key, equals, text = setting.partition("=")
        section, dot, name = key.strip().partition(".")
        if not equals or not dot or section not in Config.model_fields:
            known = ", ".join(f"{section}.KEY=VALUE" for section in Config.model_fields)
            problems.append(f"--set {setting}: expected one of {known}")
            continue
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            problems.append(f"--set {setting}: {text!r} cannot be read as a value")
            continue
        # YAML has no exponent without a dot: 1e-4 is text to it.
        values.setdefault(section, {})[name] = _number(value)
    return check_config(values, which, problems)


def variants_of(which: str) -> dict[str, list[str]]:
    """The ``variants`` of a configuration file: name -> settings, as ``load_config`` takes them.

    ``default`` is the configuration as it is.
    """
    found = _sections(_path(which)).get("variants", {}) if which not in MODELS else {}
    if not all(isinstance(changes, list) for changes in found.values()):
        raise ConfigError(f"{which}: variants are written {{'name': ['model.dropout=0.3', ...], ...}}")
    named = {str(name): [str(change) for change in changes] for name, changes in found.items()}
    return {"default": []} | named


def check_config(values: dict[str, Any], source: str, problems: list[str] | None = None) -> Config:
    """The configuration that plain values describe; raises ConfigError with all that is wrong with them."""
    problems = list(problems or [])
    config = None
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        problems += [_said(entry) for entry in error.errors()]
    if problems or config is None:
        lines = "\n".join(f"  {problem}" for problem in problems)
        raise ConfigError(f"{source}: {len(problems)} {'error' if len(problems) == 1 else 'errors'}\n{lines}")
    return config


def _read(which: str) -> dict[str, Any]:
    if which in MODELS:
        return {"model": {"name": which}}
    values = _sections(_path(which))
    values.pop("variants", None)  # what ``amex ablate`` compares
    return values


def _path(which: str) -> Path:
    """The configuration file that a name or a path means."""
    if which.endswith(".py"):
        return Path(which)
    if which not in known_configs():
        known = (*MODELS, *known_configs())
        there = f"there is {', '.join(known)}, or a path to a .py file"
        raise ConfigError(f"unknown model or configuration {which!r}; {there}{did_you_mean(which, known)}")
    return CONFIGS / f"{which}.py"


def _sections(path: Path) -> dict[str, Any]:
    """The sections a configuration file leaves behind when it is run."""
    import runpy

    if not path.is_file():
        raise ConfigError(f"the configuration {path} does not exist")
    try:
        left = runpy.run_path(os.fspath(path))
    except Exception as error:  # whatever a user's file may do
        raise ConfigError(f"{path} cannot be run: {type(error).__name__}: {error}") from error
    names = [name for name in left if not name.startswith("_") and isinstance(left[name], dict)]
    sections = {name: dict(left[name]) for name in names}
    if base := left.get("base"):
        shared = _sections(_base(str(base), path))
        sections = {name: shared.get(name, {}) | sections.get(name, {}) for name in {**shared, **sections}}
    return sections


def _base(name: str, path: Path) -> Path:
    """The file that the configuration in ``path`` is based on: a name of amex's, or a path from its own folder."""
    if name.endswith(".py"):
        return path.parent / name
    if (found := CONFIGS / f"{name}.py").is_file():
        return found
    known = sorted(file.stem for file in CONFIGS.glob("*.py") if file.stem != "__init__")
    raise ConfigError(f"{path}: base={name!r} is no configuration of amex{did_you_mean(name, known)}")


def _number(value: Any) -> Any:
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _elsewhere(key: str, model: type[Section] | None) -> str:
    """``; did you mean 'objective.margin'?`` for a key that another section has."""
    sections = {name: field.annotation for name, field in Config.model_fields.items()}
    sections["model"] = model or ModelOptions
    names = [f"{name}.{key}" for name, section in sections.items() if key in section.model_fields]
    return f"; did you mean {' or '.join(map(repr, names))}?" if names else ""


def _said(entry: Any) -> str:
    """One of pydantic's errors as a line: where, what, and for an unknown key what it might have been."""
    path = list(entry["loc"])
    model = SECTIONS.get(str(path.pop(1))) if path[0] == "model" and len(path) > 1 else None
    where = ".".join(str(part) for part in path)
    if entry["type"] == "extra_forbidden":
        section = model or (Config.model_fields[path[0]].annotation if len(path) > 1 else Config)
        known, key = list(section.model_fields), str(path[-1])
        near = _elsewhere(key, model) if len(path) > 1 else ""
        losses = "; losses are in the section objective" if model else ""
        return f"{where}: unknown key" + (near or did_you_mean(key, known) or f"; known are {', '.join(known)}{losses}")
    if entry["type"].startswith("union_tag"):
        return f"model.name: there is {', '.join(MODELS)}, got {entry['input'].get('name')!r}"
    message = entry["msg"].removeprefix("Value error, ")
    given = "" if entry["type"] == "value_error" else f", got {entry['input']!r}"
    return f"{where}: {message}{given}"
