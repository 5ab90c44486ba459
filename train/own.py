"""Models of your own: ``python:MODULE:CLASS`` names a subclass of ``RetrievalModel`` in any Python module.

The class has its options in ``Options``, a subclass of ``ModelOptions``.
"""

from __future__ import annotations

import functools
from typing import Any, Literal

from pydantic import create_model

from ..errors import AmexError
from ..foreign import import_name
from .options import ModelOptions


def own_model(name: str) -> Any:
    """Import the class ``python:MODULE:CLASS``; raise an AmexError if it is not a model with options."""
    from .models.base import RetrievalModel

    model = import_name(name)
    if not isinstance(model, type) or not issubclass(model, RetrievalModel):
        raise AmexError(f"{name} is not a subclass of amex.train.models.RetrievalModel")
    options = getattr(model, "Options", None)
    if not isinstance(options, type) or not issubclass(options, ModelOptions):
        raise AmexError(f"{name}: the class needs Options, a subclass of amex.train.models.ModelOptions")
    return model


@functools.cache
def own_options(name: str) -> type[ModelOptions]:
    """Return the options class of a model of yours, with its name as the only value of ``name``."""
    options = own_model(name).Options
    return create_model(options.__name__, __base__=options, __doc__=options.__doc__, name=(Literal[name], name))
