"""The provider: accepts every key but one."""

from typing import Any

from dify_plugin import ToolProvider
from dify_plugin.errors.model import CredentialsValidateFailedError


class NoopProvider(ToolProvider):
    """Refuses the key ``wrong``."""

    def _validate_credentials(self, credentials: dict[str, Any]) -> None:
        if credentials.get("api_key") == "wrong":
            raise CredentialsValidateFailedError("The key was refused.")
