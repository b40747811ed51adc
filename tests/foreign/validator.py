"""The one thing the toolkit's own validator cannot be configured to do."""

from typing import Any

from oauth2_provider.oauth2_validators import OAuth2Validator


class BothGrants(OAuth2Validator):
    """Let an application registered for the password grant ask for client tokens as well, as finAPI's may."""

    def validate_grant_type(self, client_id: str, grant_type: str, *args: Any, **kwargs: Any) -> bool:
        return grant_type == "client_credentials" or super().validate_grant_type(client_id, grant_type, *args, **kwargs)
