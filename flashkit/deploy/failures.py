"""What goes wrong between this machine and the platform that endpoints are deployed to."""

from __future__ import annotations

from flashkit.errors import ConfigurationError, PlatformError


class KeyRefused(ConfigurationError):
    """The platform does not take the account key, or the key may not do this."""

    code = "key_refused"


class DeployImpossible(ConfigurationError):
    """A deployment cannot be planned as it is wanted; `details` has every reason as `problems`."""

    code = "deploy_impossible"


class DeployRefused(PlatformError):
    """The platform refused a request; `details` has its status, its words, and what it found wrong."""

    code = "deploy_refused"


class DeployUnreachable(PlatformError):
    """The platform could not be reached, or the connection broke before its answer came."""

    code = "deploy_unreachable"


class NotThere(DeployRefused):
    """The platform has nothing of this id, or no such route."""

    code = "not_there"


class DeployStopped(PlatformError):
    """A deployment ended half-way; `details` names what was done, what failed, and what is left."""

    code = "deploy_stopped"
