"""Configurations: plain Python files, validated as a whole before anything heavy starts."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Field, ValidationError, create_model, field_validator, model_validator

from ..errors import AmexError, did_you_mean, nearest
from .options import SECTIONS, AMENet, Model, ModelOptions, ObjectiveOptions, Section, YamlOff
from .own import own_options

CONFIGS = Path(__file__).parent / "configs"


class ConfigError(AmexError):
    """A configuration is invalid."""


# ``auto`` is stored as None: the value depends on the size of the training split and is set when a run begins.
Auto = BeforeValidator(lambda value: None if value == "auto" else value)


class DataOptions(Section):
    """Which clips, captions and rows a run reads, and how they form batches."""

    train: str = Field("train", description="the training split")
    val: str = Field("val", description="the validation split, which selects the checkpoint")
    select_on_test: bool = Field(
        False, description="allow data.val to share clips with the test split; test figures are then too high"
    )
    allow_overlap: bool = Field(
        False,
        description="allow data.train to share clips or videos with data.val or the test split, and these two to share "
        "videos; figures are then too high",
    )
    batch_size: Annotated[int | None, Auto] = Field(
        64,
        ge=2,
        description="pairs per step, over all processes; auto: 64 to 256 by the number of pairs, from 32 with objects",
    )
    similar: Annotated[int | None, Auto] = Field(
        0,
        ge=0,
        description="number of pairs with similar captions to place next to each other, so that batches have hard "
        "negatives, such as who acts on whom; 0: random order; auto: 8 for a model with objects",
    )
    captions: Literal["one", "all"] = Field(
        "one", description="captions of a clip in an epoch: one at random, or all of them"
    )
    together: str = Field(
        "",
        description="a key of the clips' extras that names a partner clip: partners follow each other, so that almost "
        "every batch contains both or neither, as hard negatives of each other",
    )
    max_rows: int = Field(12, ge=1, description="T: maximum rows of a clip and stream, one from each equal segment")
    rows: Literal["middle", "random"] = Field(
        "middle",
        description="which row of a segment to read if a clip has more than max_rows: the middle, or in training a "
        "random one",
    )
    max_objects: int = Field(36, ge=1, description="N: maximum objects of a row, by highest score")
    max_tokens: int = Field(30, ge=1, description="maximum tokens or words of a caption; later ones are cut")
    min_count: int = Field(1, ge=1, description="minimum count of a learned word; rarer words are unknown")
    memory_gb: float = Field(
        4.0,
        ge=0,
        description="memory for features in GB: data.val is kept in memory if it fits, data.train if both fit; else "
        "features are read again in each epoch",
    )
    workers: int = Field(2, ge=0, description="processes that prefetch training features not kept in memory")


class TrainOptions(Section):
    """Optimizer, schedule and duration of a run."""

    epochs: Annotated[int | None, Auto] = Field(
        None, ge=1, description="number of epochs; auto: enough to show each pair 15 times, more often for few pairs"
    )
    optimizer: Literal["adam", "adamw"] = Field("adam", description="the optimizer")
    lr: Annotated[float | None, Auto] = Field(
        2e-4, gt=0, description="learning rate; auto: 1e-3, without objects lower below 7,000 pairs"
    )
    weight_decay: float = Field(
        0.0, ge=0, description="weight decay of weights and embeddings, not of biases, norms or the temperature"
    )
    schedule: Literal["plateau", "cosine", "constant"] = Field(
        "plateau",
        description="learning rate schedule; plateau: halve the rate when validation rsum stalls; cosine: decay to 0 "
        "at the last epoch",
    )
    patience: int = Field(5, ge=1, description="epochs without a better rsum before plateau halves the rate")
    warmup: Annotated[int | None, Auto] = Field(
        0, ge=0, description="warmup steps, over which the rate rises; auto: a tenth of all steps"
    )
    clip_grad: float | None = Field(None, gt=0, description="maximum norm of the gradient; None: no limit")
    accumulate: int = Field(
        1, ge=1, description="batches whose gradients are summed into one step; each batch has its own negatives"
    )
    encode_at_once: int = Field(
        0,
        ge=0,
        description="pairs of a batch to encode at once, for batches that exceed memory: each pair is encoded twice, "
        "and the negatives still come from the whole batch (GradCache); 0: all",
    )
    ema: float = Field(
        0.0, ge=0, lt=1, description="decay of the moving average of weights to validate and save; 0: no average"
    )
    amp: Annotated[Literal["auto", "off", "bf16", "fp16"], YamlOff] = Field(
        "auto", description="mixed precision; auto: bf16 on a GPU, off on a CPU"
    )
    val_every: Annotated[int | None, Auto] = Field(
        1, ge=1, description="epochs between validations; auto: ten validations per run"
    )
    keep: Annotated[Literal["best", "last"] | None, Auto] = Field(
        "best", description="the checkpoint to save as best.pth; auto: last if data.val has too few clips to choose"
    )
    seed: int = Field(42, ge=0, description="seed of all random numbers")

    @field_validator("encode_at_once")
    @classmethod
    def _not_one(cls, value: int) -> int:
        if value == 1:  # batch normalisation needs a variance
            raise ValueError("encode two or more pairs at once, or 0 for all")
        return value


class Config(Section):
    """A complete configuration. Validation lists all its errors."""

    model: Model = AMENet()
    objective: ObjectiveOptions = ObjectiveOptions(**AMENet.section_defaults["objective"])
    data: DataOptions = DataOptions()
    train: TrainOptions = TrainOptions()

    @model_validator(mode="before")
    @classmethod
    def _apply_model_defaults(cls, values: Any) -> Any:
        """Fill the other sections with the defaults of the model."""
        model = values.get("model", {}) if isinstance(values, dict) else None
        options = options_of(model.get("name", "amenet")) if isinstance(model, dict) else None
        if options is None:
            return values
        completed = {}
        for section, defaults in options.section_defaults.items():
            user, defaults = values.get(section, {}), dict(defaults)
            if not isinstance(user, dict):
                continue
            if {"hinge", "contrastive"} & user.keys():
                defaults = {key: value for key, value in defaults.items() if key not in ("hinge", "contrastive")}
            completed[section] = defaults | user
        return values | completed

    @property
    def concepts(self) -> dict[str, int]:
        """Maximum number of concepts by kind; empty if neither the model nor the objective uses concepts."""
        if not (self.model.has_concepts or self.objective.concepts):
            return {}
        return {
            "entity": self.objective.entities,
            "action": self.objective.actions,
            "relation": self.objective.relations,
        }

    @property
    def reads_graphs(self) -> bool:
        """Whether training needs role graphs, for the model's input or for concepts."""
        return self.model.needs_graphs or bool(self.concepts)

    def to_json(self) -> dict[str, Any]:
        """Return values that JSON can store; ``check_config`` reads them back."""
        return self.model_dump(mode="json")


MODELS = tuple(SECTIONS)


def options_of(model: str) -> type[ModelOptions] | None:
    """Return the options class of a model by name, or of your own by ``python:MODULE:CLASS``; None if unknown."""
    return own_options(model) if is_own(model) else SECTIONS.get(model)


def is_own(model: Any) -> bool:
    return isinstance(model, str) and model.startswith("python:")


@functools.cache
def config_class(model: str) -> type[Config]:
    """Return the class of configurations of a model: ``Config``, or one with the options of your own model."""
    if not is_own(model):
        return Config
    options = own_options(model)
    return create_model("Config", __base__=Config, model=(options, options()))


def known_configs() -> list[str]:
    """Return the names of the configuration files that come with amex."""
    return sorted(path.stem for path in CONFIGS.glob("*.py") if not path.stem.startswith("_"))


def load_config(which: str, settings: Iterable[str] = ()) -> Config:
    """Read a configuration by the name of a model, by the name of a file that comes with amex, or by path.

    Args:
        which: the name or path.
        settings: ``section.key=value`` with YAML values; they override the file.

    Raises:
        ConfigError: listing all errors, one per line.
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
        # YAML reads 1e-4, which has no dot, as text.
        values.setdefault(section, {})[name] = _number(value)
    return check_config(values, which, problems)


def variants_of(which: str) -> dict[str, list[str]]:
    """Return the ``variants`` of a configuration file: name -> settings for ``load_config``.

    ``default`` is the configuration without changes.
    """
    variants = _sections(_path(which)).get("variants", {}) if which not in MODELS and not is_own(which) else {}
    if not all(isinstance(changes, list) for changes in variants.values()):
        raise ConfigError(f"{which}: write variants as {{'name': ['model.dropout=0.3', ...], ...}}")
    return {"default": []} | {str(name): [str(change) for change in changes] for name, changes in variants.items()}


def check_config(values: dict[str, Any], source: str, problems: list[str] | None = None) -> Config:
    """Validate plain values; raise a ConfigError that lists all ``problems``, known and new."""
    problems = list(problems or [])
    config = None
    try:
        model = values.get("model")
        config = config_class(model.get("name", "") if isinstance(model, dict) else "").model_validate(values)
    except ValidationError as error:
        problems += [_error_line(entry) for entry in error.errors()]
    if problems or config is None:
        lines = "\n".join(f"  {problem}" for problem in problems)
        raise ConfigError(f"{source}: {len(problems)} {'error' if len(problems) == 1 else 'errors'}\n{lines}")
    return config


def _read(which: str) -> dict[str, Any]:
    if which in MODELS or is_own(which):
        return {"model": {"name": which}}
    values = _sections(_path(which))
    values.pop("variants", None)  # read by ``amex ablate``
    return values


def _path(which: str) -> Path:
    """Return the configuration file for a name or path."""
    if which.endswith(".py"):
        return Path(which)
    if which not in known_configs():
        known = (*MODELS, *known_configs())
        listed = f"known are {', '.join(known)}, or a path to a .py file"
        raise ConfigError(f"unknown model or configuration {which!r}; {listed}{did_you_mean(which, known)}")
    return CONFIGS / f"{which}.py"


def _sections(path: Path) -> dict[str, Any]:
    """Run a configuration file and return its sections."""
    import runpy

    if not path.is_file():
        raise ConfigError(f"the configuration {path} does not exist")
    try:
        variables = runpy.run_path(os.fspath(path))
    except Exception as error:  # a user's file may raise anything
        raise ConfigError(f"{path} cannot be run: {type(error).__name__}: {error}") from error
    names = [name for name in variables if not name.startswith("_") and isinstance(variables[name], dict)]
    sections = {name: dict(variables[name]) for name in names}
    if base := variables.get("base"):
        inherited = _sections(_base(str(base), path))
        sections = {name: inherited.get(name, {}) | sections.get(name, {}) for name in {**inherited, **sections}}
    return sections


def _base(name: str, path: Path) -> Path:
    """Return the base file of the configuration in ``path``: a name of amex's, or a path relative to its folder."""
    if name.endswith(".py"):
        return path.parent / name
    if (file := CONFIGS / f"{name}.py").is_file():
        return file
    known = sorted(file.stem for file in CONFIGS.glob("*.py") if file.stem != "__init__")
    raise ConfigError(f"{path}: base={name!r} is no configuration of amex{did_you_mean(name, known)}")


def _number(value: Any) -> Any:
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _suggestion(key: str, known: list[str], model: type[Section] | None) -> str:
    """Suggest the option that is meant, as ``; did you mean 'objective.margin'?``; else return an empty text.

    Args:
        key: an unknown key.
        known: the keys of its section.
    """
    sections = {name: field.annotation for name, field in Config.model_fields.items()}
    sections["model"] = model or ModelOptions
    named: dict[str, list[str]] = {}
    for name, section in sections.items():
        for option in section.model_fields:
            named.setdefault(option, []).append(f"{name}.{option}")
    if key in named:
        return f"; did you mean {' or '.join(map(repr, named[key]))}?"
    if near := did_you_mean(key, known):
        return near
    begin_alike = [option for option in named if option[:4] == key[:4]]
    options = [option for match in nearest(key, begin_alike, 1) for option in named[match]]
    return f"; did you mean {' or '.join(map(repr, options))}?" if options else ""


# What a value must be, by the beginning of pydantic's type of error.
EXPECTED = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "a text",
    "list": "a list such as [a, b]",
    "dict": "a mapping such as {fused: 1.0}",
}


def _error_line(entry: Any) -> str:
    """Format one of pydantic's errors as a line: the key, the problem, and for an unknown key a suggestion."""
    path = list(entry["loc"])
    model = SECTIONS.get(str(path[1])) if path[0] == "model" and len(path) > 1 else None
    if model:  # the union tells its members apart by name
        path.pop(1)
    where = ".".join(str(part) for part in path)
    if entry["type"] == "extra_forbidden":
        section = model or (Config.model_fields[path[0]].annotation if len(path) > 1 else Config)
        known, key = list(section.model_fields), str(path[-1])
        near = _suggestion(key, known, model) if len(path) > 1 else did_you_mean(key, known)
        losses = "; losses are in section objective" if model else ""
        return f"{where}: unknown key" + (near or f"; known are {', '.join(known)}{losses}")
    if entry["type"].startswith("union_tag"):
        return f"model.name: known are {', '.join(MODELS)}, got {entry['input'].get('name')!r}"
    message = entry["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    kind, _, problem = entry["type"].partition("_")
    if kind in EXPECTED and problem in ("type", "parsing", "from_float"):
        message = f"must be {EXPECTED[kind]}"
    actual = "" if entry["type"] == "value_error" else f", got {entry['input']!r}"
    return f"{where}: {message}{actual}"
