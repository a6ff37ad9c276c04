"""A session's state: one pydantic model of the user's, kept between turns as plain JSON.

Data never names code: what is stored are JSON values and a version number. The running program says which
model they go into, by annotating the handler's session as `Session[Notes]`. A model that changes its shape
counts up `state_version` and offers `migrate`.
"""

from __future__ import annotations

import typing
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from flashkit.errors import SessionError

if TYPE_CHECKING:
    from pydantic import BaseModel


def declared_model(function: Callable[..., Any]) -> type[BaseModel] | None:
    """Return the model that a handler's `session: Session[Model]` names, None when it names none."""
    try:
        annotation = typing.get_type_hints(function).get("session")
    except NameError:
        return None
    arguments = typing.get_args(annotation)
    if not arguments or not hasattr(arguments[0], "model_validate"):
        return None
    model: type[BaseModel] = arguments[0]
    return model


def state_version(model: type[BaseModel]) -> int:
    """Return the version of a model's shape; 1 unless it says otherwise."""
    return int(getattr(model, "state_version", 1))


def new_state(model: type[BaseModel]) -> BaseModel:
    """Return a fresh state.

    Raises:
        SessionError: The model cannot begin without values.
    """
    from pydantic import ValidationError

    try:
        return model()
    except ValidationError as exc:
        raise SessionError(
            f"a new session needs an empty {model.__name__}, but {exc.error_count()} of its fields have no default",
            hint="give every field of the state's model a default",
        ) from exc


def read_state(model: type[BaseModel], data: dict[str, Any], version: int) -> BaseModel:
    """Return a stored state in the model's present shape.

    Raises:
        SessionError: It was written by newer code, or does not fit and there is no migration.
    """
    from pydantic import ValidationError

    present = state_version(model)
    if version > present:
        raise SessionError(
            f"the session's state has version {version} of {model.__name__}, this worker's code has {present}",
            hint="deploy the newer code to this worker; the session is left as it is",
        )
    while version < present:
        migrate = getattr(model, "migrate", None)
        if migrate is None:
            raise SessionError(
                f"the session's state has version {version} of {model.__name__}, and there is no way to {present}",
                hint="add a static method migrate(data: dict, version: int) -> dict to the model",
            )
        data, version = migrate(data, version), version + 1
    try:
        return model.model_validate(data)
    except ValidationError as exc:
        raise SessionError(
            f"the session's state does not fit {model.__name__}: {exc}",
            hint="count up state_version and add a migration",
        ) from exc
