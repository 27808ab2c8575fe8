"""What is asked of an endpoint before a run: is it there, is the key right, which model does it serve."""

from __future__ import annotations

import os

import httpx

from loadgen.errors import TargetError
from loadgen.options import Settings

_TIMEOUT_S = 10.0


def find_model(settings: Settings) -> str | None:
    """The model to ask for: the given one, else the first that the endpoint lists; None when it lists none.

    Raises TargetError when the endpoint cannot be reached, or refuses the key.
    """
    url = f"{settings.host}/v1/models"
    headers = dict(settings.headers)
    if settings.api_key_env:
        key = os.environ.get(settings.api_key_env)
        if not key:
            raise TargetError(f"the environment variable {settings.api_key_env} (--api-key-env) is not set")
        headers["Authorization"] = f"Bearer {key}"
    try:
        answer = httpx.get(url, headers=headers, timeout=_TIMEOUT_S)
    except httpx.TimeoutException:
        raise TargetError(f"{settings.host} did not answer within {_TIMEOUT_S:g} s: is the server up?") from None
    except httpx.HTTPError as error:
        raise TargetError(
            f"{settings.host} cannot be reached ({error}): is the server up, and the URL right?"
        ) from None
    if answer.status_code in (401, 403):
        raise TargetError(f"{settings.host} refused the key (HTTP {answer.status_code}): give it with --api-key-env")
    if settings.model is not None:
        return settings.model
    try:
        models = answer.json()["data"]
        return str(models[0]["id"])
    except (ValueError, KeyError, IndexError, TypeError):
        return None
