"""Configurations: plain Python files, checked as a whole before anything heavy starts."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from ..errors import AmexError

CONFIGS = Path(__file__).parent / "configs"


class ConfigError(AmexError):
    """A configuration cannot be used as it is."""


class Section(BaseModel):
    """A section of a configuration. Unknown keys are errors, and no value is turned into another type silently."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


# YAML, which reads --set, and people write off for what is called off here.
Off = BeforeValidator(lambda value: "off" if value is False else value)


class AMENet(Section):
    """AME-Net. Defaults are those of docs/amenet.md: BiC-Net's where they are known, the graph's of the ARG."""

    name: Literal["amenet", "global"] = Field("amenet", description="amenet, or global: the baseline without relations")
    relation_branch: bool = Field(True, description="over the objects")
    global_branch: bool = Field(True, description="over clip and frame features")
    objects: str = Field("", description="the stream of objects; empty: the only one in the store")
    streams: list[str] = Field([], description="streams of the global branch; empty: all of clips and frames")
    text: str = Field(
        "", description="the stream of text; empty: the only one in the store; words: word vectors learned here"
    )
    dim: int = Field(1024, ge=2, description="of the joint spaces")
    dropout: float = Field(0.1, ge=0, lt=1)
    pooling: Literal["mean", "attention"] = Field("attention", description="of rows, frames and tokens")
    scaling: Literal["layernorm", "standard", "logit"] = Field(
        "layernorm",
        description="of the global branch's features; standard: each number over the training clips; logit: "
        "that of the log-odds, for features that are probabilities",
    )
    hidden: int = Field(0, ge=0, description="width of a hidden layer over the global branch's features; 0: none")
    sequence: Literal["none", "gru", "transformer"] = Field(
        "none", description="between a stream's rows, before pooling"
    )
    text_sequence: Literal["none", "gru", "transformer"] = Field("none", description="between tokens, before pooling")
    text_heads: Literal["shared", "separate"] = Field("shared", description="one text vector, or one a space")
    text_bag: bool = Field(
        False,
        description="beside tokens a bag of words, with vectors learned here, as Dual Encoding has one",
    )
    word_dim: int = Field(300, ge=1, description="of the word vectors, with text=words")
    weight: float = Field(0.5, ge=0, le=1, description="w, of the relation space in the score and in the loss")
    graph: Literal["none", "spatial", "temporal", "both", "joint"] = Field(
        "both", description="edges within frames, between neighbouring frames, both, or one graph over all objects"
    )
    graph_dim: int = Field(1024, ge=1, description="d_g, of the graph's nodes")
    graphs: int = Field(16, ge=1, description="G, graphs side by side")
    graph_layers: int = Field(1, ge=0)
    key_dim: int = Field(256, ge=1, description="d_k, of the edges' projections")
    distance: float | None = Field(
        0.2, gt=0, description="mu: spatial edges reach this share of the frame's width; None: any distance"
    )
    geometry: bool = Field(True, description="nodes and edges know the boxes")
    adversarial: Annotated[Literal["off", "reversal", "alternating"], Off] = "reversal"
    adversarial_weight: float = Field(
        0.01, ge=0, description="lambda; on Shapes 0.01 hardly aligned, 0.03 did, 0.1 left nothing to rank by"
    )
    adversarial_hidden: int = Field(512, ge=2, description="width of the modality classifiers")
    adversarial_lr: float = Field(2e-4, gt=0, description="of the classifiers, when alternating")
    ranking: Literal["hinge", "contrastive"] = Field(
        "hinge", description="the loss: a hinge with a margin, or CLIP's cross-entropy over the batch"
    )
    margin: float = Field(0.2, ge=0, description="of the hinge")
    negatives: Literal["hardest", "all"] = Field(
        "all", description="of the hinge: the hardest in the batch, or the sum over all"
    )
    temperature: float = Field(0.05, gt=0, description="of the cross-entropy, to begin with; it is learned")
    same_caption: Literal["ignored", "negative"] = Field(
        "ignored", description="what clips with one caption are to each other in a batch"
    )

    @model_validator(mode="before")
    @classmethod
    def _baseline(cls, values: Any) -> Any:
        """The baseline is the global branch alone: means, linear projections, hinge with the hardest negative."""
        if isinstance(values, dict) and values.get("name") == "global":
            fixed = {"relation_branch": False, "global_branch": True, "adversarial": "off"}
            return {"pooling": "mean", "negatives": "hardest"} | values | fixed
        return values

    @model_validator(mode="after")
    def _possible(self) -> AMENet:
        if not (self.relation_branch or self.global_branch):
            raise ValueError("at least one of relation_branch and global_branch must be on")
        if self.text_bag and self.text == "words":
            raise ValueError("text_bag stands beside token features: with text=words leave it off")
        return self


class Data(Section):
    """What of the store and the manifest is trained on."""

    train: str = Field("train", description="the split to learn from")
    val: str = Field("val", description="the split that chooses the checkpoint")
    select_on_test: bool = Field(False, description="allow data.val=test, which makes test figures too good")
    batch_size: int = Field(64, ge=2, description="pairs a step, over all processes")
    captions: Literal["one", "all"] = Field("one", description="a clip's captions an epoch: one at random, or each")
    max_rows: int = Field(12, ge=1, description="T: rows a clip and stream, in the middle of equal segments")
    max_objects: int = Field(36, ge=1, description="N: objects a row, the surest first")
    max_tokens: int = Field(30, ge=1, description="a caption's tokens or words")
    min_count: int = Field(1, ge=1, description="of words learned here: rarer ones are unknown")
    memory_gb: float = Field(4.0, ge=0, description="features up to this size are kept in memory, others read again")
    workers: int = Field(0, ge=0, description="processes that read ahead, where features do not fit into memory")

    @model_validator(mode="after")
    def _honest(self) -> Data:
        if self.val == "test" and not self.select_on_test:
            raise ValueError(
                "val=test chooses the checkpoint on the test split; if you mean it: data.select_on_test=true"
            )
        return self


class Train(Section):
    """How it is learned."""

    epochs: int = Field(100, ge=1)
    optimizer: Literal["adam", "adamw"] = "adam"
    lr: float = Field(2e-4, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    schedule: Literal["plateau", "cosine", "constant"] = Field(
        "plateau", description="plateau: halve the rate when the validation's rsum stands still"
    )
    patience: int = Field(5, ge=1, description="epochs, of the plateau")
    warmup: int = Field(0, ge=0, description="steps over which the rate rises")
    clip_grad: float | None = Field(None, gt=0, description="largest norm of the gradient")
    amp: Literal["auto", "off", "bf16", "fp16"] = Field("auto", description="auto: bf16 on a GPU, off on a CPU")
    val_every: int = Field(1, ge=1, description="epochs")
    seed: int = Field(42, ge=0)


class Config(Section):
    """A whole configuration. Validation lists everything that is wrong with it."""

    model: AMENet = AMENet()
    data: Data = Data()
    train: Train = Train()

    def plain(self) -> dict[str, Any]:
        """As JSON has it; ``Config.model_validate`` reads it back."""
        return self.model_dump(mode="json")


MODELS = ("amenet", "global")


def known_configs() -> list[str]:
    """Names of the configuration files that come with amex."""
    return sorted(path.stem for path in CONFIGS.glob("*.py") if path.stem != "__init__")


def load_config(which: str, settings: Iterable[str] = ()) -> Config:
    """A configuration by the name of a model, of a file that comes with amex, or by its path.

    Args:
        settings: ``section.key=value``, values as YAML has them, applied on top.

    Raises:
        ConfigError: listing everything that is wrong, a line each.
    """
    values = _read(which)
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
    """The ``variants`` of a configuration file: name -> settings, as ``load_config`` takes them."""
    found = _sections(_path(which)).get("variants", {}) if which not in MODELS else {}
    if not found or not all(isinstance(changes, list) for changes in found.values()):
        raise ConfigError(
            f"{which} has no variants to compare: give the file variants = {{'name': ['model.dropout=0.3', ...], ...}}"
        )
    return {str(name): [str(change) for change in changes] for name, changes in found.items()}


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
        import difflib

        near = difflib.get_close_matches(which, [*MODELS, *known_configs()], n=1)
        meant = f"did you mean {near[0]!r}? " if near else ""
        known = ", ".join((*MODELS, *known_configs()))
        raise ConfigError(f"unknown model or configuration {which!r}; {meant}There is {known}, or a path to a .py file")
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
    return {name: dict(left[name]) for name in names}


def _number(value: Any) -> Any:
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _said(entry: Any) -> str:
    """One of pydantic's errors as a line: where, what, and for an unknown key what it might have been."""
    import difflib

    where = ".".join(str(part) for part in entry["loc"])
    if entry["type"] == "extra_forbidden":
        section = Config.model_fields[entry["loc"][0]].annotation if len(entry["loc"]) > 1 else Config
        known = list(section.model_fields)
        near = difflib.get_close_matches(str(entry["loc"][-1]), known, n=1)
        return f"{where}: unknown key" + (f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(known)}")
    message = entry["msg"].removeprefix("Value error, ")
    given = "" if entry["type"] == "value_error" else f", got {entry['input']!r}"
    return f"{where}: {message}{given}"
