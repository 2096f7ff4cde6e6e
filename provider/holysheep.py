"""Checks a credential when it is saved."""

from typing import Any

from dify_plugin import ToolProvider
from dify_plugin.errors.model import CredentialsValidateFailedError

from holysheep.credentials import check_credentials
from holysheep.errors import HolySheepError
from holysheep.registry import Registry
from holysheep.settings import parse_settings


class HolySheepProvider(ToolProvider):
    """The provider of all HolySheep nodes."""

    def _validate_credentials(self, credentials: dict[str, Any]) -> None:
        # A registry of its own: a key that is only being tried leaves nothing behind.
        registry = Registry()
        try:
            check_credentials(registry.engine(parse_settings(credentials)), clock=registry.clock)
        except HolySheepError as error:
            error.conceal(str(credentials.get("api_key") or ""))
            raise CredentialsValidateFailedError(error.message) from None
        finally:
            registry.close()
