"""Why a deployment cannot be carried out, found before anything is sent: each with the next step."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from flashkit.deploy.actual import Actual
from flashkit.deploy.confidential import looks_secret, reference_to, secrets_named
from flashkit.deploy.config import DeployConfig
from flashkit.deploy.credentials import KEY_VARIABLE
from flashkit.deploy.hardware import CpuChoice, choose_gpus
from flashkit.deploy.identity import LONGEST_NAME
from flashkit.deploy.wishes import EndpointWish, volume_keys, volume_place

_IMAGE: Final = re.compile(r"[\w][\w.-]*(:\d+)?(/[\w][\w.-]*)*(:[\w][\w.-]{0,127})?(@sha256:[0-9a-f]{64})?")
_NONE: Final = "NONE"


@dataclass(frozen=True, slots=True)
class Problem:
    """One reason, and what to do about it."""

    message: str
    hint: str

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {"message": self.message, "hint": self.hint}


@dataclass(frozen=True, slots=True)
class _Look:
    """What the checks look at."""

    wish: EndpointWish
    actual: Actual
    config: DeployConfig
    new_secrets: frozenset[str]
    is_local: bool


def find_problems(
    wishes: Sequence[EndpointWish],
    actual: Actual,
    config: DeployConfig,
    *,
    new_secrets: Iterable[str] = (),
    is_local: bool = False,
) -> list[Problem]:
    """Return everything that stands in the way; nothing on a platform that has what is asked for."""
    new = frozenset(new_secrets)
    looks = [_Look(wish, actual, config, new, is_local) for wish in wishes]
    return [problem for look in looks for check in _CHECKS for problem in check(look)]


def _check_name(look: _Look) -> Iterator[Problem]:
    name = look.wish.deployed_name
    if len(name) > LONGEST_NAME:
        yield Problem(f"{name} has more than {LONGEST_NAME} characters", "give the app or the endpoint a shorter name")
    stranger = look.actual.strangers.get(name)
    if stranger is not None and look.wish.name not in look.actual.endpoints:
        yield Problem(
            f"the name {name} is taken by endpoint {stranger.id}, which flashkit did not make",
            "delete or rename it in Runpod's console, or choose another app name: app = ... in flashkit.toml",
        )


def _check_image(look: _Look) -> Iterator[Problem]:
    wish = look.wish
    if wish.image is None and wish.name not in look.actual.endpoints:
        yield Problem(
            f"there is no image for {wish.name}",
            f"build it: flashkit build --push --tag USER/NAME:TAG; or name one: --image {wish.name}=REFERENCE, or "
            "image = ... in [tool.flashkit] of pyproject.toml",
        )
    if wish.image is not None and not _IMAGE.fullmatch(wish.image):
        yield Problem(f"{wish.image!r} is not an image reference", "write registry.example/name:tag or ...@sha256:...")


def _check_secrets(look: _Look) -> Iterator[Problem]:
    wish = look.wish
    for name, value in sorted(wish.env.items()):
        if looks_secret(name, value, plain=look.config.plain):
            secret = name.lower().replace("_", "-")
            yield Problem(
                f"{name} of {wish.name} looks like a secret, and is not sent in the clear",
                f'let the platform keep it: {name} = "{reference_to(secret)}" in [tool.flashkit.endpoints.{wish.name}'
                f".env], and --secret {secret}={name} stores it once; if it is none: plain = [{name!r}]",
            )
    if look.actual.secrets is None or look.is_local:  # this machine puts no secret into environments
        return
    missing = [name for name in secrets_named(wish.env) if name not in look.actual.secrets | look.new_secrets]
    for name in missing:
        yield Problem(
            f"{wish.name} refers to the secret {name}, which the account does not have",
            f"store it: --secret {name}=VARIABLE takes the value from a variable of this shell",
        )


def _check_calls(look: _Look) -> Iterator[Problem]:
    wish = look.wish
    if wish.calls and not look.is_local and KEY_VARIABLE not in wish.env:
        callees = ", ".join(wish.calls)
        yield Problem(
            f"{wish.name} may call {callees}, and has no key to do it with",
            f'{KEY_VARIABLE} = "{reference_to("worker-key")}" in [tool.flashkit.endpoints.{wish.name}.env] gives it '
            "one; --secret worker-key=VARIABLE stores it",
        )


def _check_volumes(look: _Look) -> Iterator[Problem]:
    wish = look.wish
    for volume in wish.volumes:
        if volume_place(volume, wish) is None:
            yield Problem(
                f"volume {volume.name} of {wish.name} has no data centre",
                f'write NetworkVolume("{volume.name}", datacenter="US-KS-2"): a volume is in one place',
            )
    keys = volume_keys(wish)
    places = [key.datacenter for key in keys]
    if len(set(places)) < len(places):
        yield Problem(f"{wish.name} has two volumes in one data centre", "an endpoint has one volume in each")
    for key in keys:
        found = look.actual.volumes_of(key)
        if len(found) > 1:
            ids = ", ".join(volume.id for volume in found)
            yield Problem(
                f"there are {len(found)} volumes named {key.name} in {key.datacenter}: {ids}",
                "rename or delete all but one in Runpod's console",
            )


def _check_registry(look: _Look) -> Iterator[Problem]:
    registry = look.wish.registry
    if registry is not None and registry not in look.actual.registries:
        have = ", ".join(sorted(look.actual.registries)) or "none"
        yield Problem(
            f"the account has no registry credential named {registry!r}",
            f"add it in Runpod's console, or name one of: {have}",
        )


def _check_stock(look: _Look) -> Iterator[Problem]:
    """Yield a problem where no data centre of the endpoint has ever what it wants."""
    wish, places = look.wish, look.actual.places
    offering = _offering(wish, look.actual)
    if places and not offering & set(wish.datacenters or places):
        elsewhere = ", ".join(sorted(offering))
        yield Problem(
            f"{_hardware(wish)} of {wish.name} is not offered in {_where(wish)}",
            f"it is in: {elsewhere}" if elsewhere else "choose other hardware: docs/reference/hardware.md lists it",
        )


def scarcity_notes(wishes: Iterable[EndpointWish], actual: Actual) -> Iterator[str]:
    """Yield what is offered where endpoints may run, and is all taken now: their workers will wait."""
    for wish in wishes:
        places = _offering(wish, actual) & set(wish.datacenters or actual.places)
        levels = {
            actual.places[place][name]
            for place in places
            for name in _wanted(wish, actual) & actual.places[place].keys()
        }
        if levels == {_NONE}:
            yield f"{_hardware(wish)} of {wish.name} is all taken in {_where(wish)} now: its workers will wait"


def _offering(wish: EndpointWish, actual: Actual) -> set[str]:
    wanted = _wanted(wish, actual)
    return {place for place, stock in actual.places.items() if wanted & stock.keys()}


def _wanted(wish: EndpointWish, actual: Actual) -> set[str]:
    """Return the GPU types or the CPU flavour that workers may get."""
    if wish.spec.cpu is not None:
        return {CpuChoice.of(wish.spec.cpu).flavor}
    return set(choose_gpus(wish.spec.gpu, actual.pools).accepted)


def _hardware(wish: EndpointWish) -> str:
    return wish.spec.cpu or " or ".join(gpu.value for gpu in wish.spec.gpu)


def _where(wish: EndpointWish) -> str:
    return ", ".join(wish.datacenters) or "any data centre"


_CHECKS: Final[tuple[Callable[[_Look], Iterator[Problem]], ...]] = (
    _check_name, _check_image, _check_secrets, _check_calls, _check_volumes, _check_registry, _check_stock,
)  # fmt: skip
