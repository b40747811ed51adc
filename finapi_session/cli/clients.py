"""A client's id and secret, kept between commands: in the system's vault, or in a file of the user's own."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from ..stores.protocol import TokenStore

if TYPE_CHECKING:
    from ..environment import Environment
    from ..stores.file import FileStore

_SERVICE = "finapi_session.client"
# keyring's own line between vaults and stopgaps, such as files in plain text.
_RECOMMENDED = 1


class Client(NamedTuple):
    """A client's id and secret."""

    client_id: str
    client_secret: str


def private_files() -> FileStore:
    """Return where clients are kept whose users agreed to a file, since there is no vault."""
    from ..stores.file import FileStore

    return FileStore(FileStore().directory / "clients")


def kept_client(environment: Environment) -> Client | None:
    """Return the client that is kept for *environment*; ``OSError`` if others may open the file it is in."""
    text = private_files().get(environment.token_url)
    with suppress(Exception):
        text = text or _vault().get(environment.token_url)
        return Client(*json.loads(text)) if text else None
    return None


def keep_in_vault(client: Client, environment: Environment) -> bool:
    """Keep *client* in the system's vault, and in no file any more; tell whether there is a vault."""
    with suppress(Exception):
        _vault().set(environment.token_url, json.dumps(client))
        private_files().delete(environment.token_url)
        return True
    return False


def keep_in_file(client: Client, environment: Environment) -> None:
    """Keep *client* in a file that only this user may read; ``OSError`` if it cannot be written."""
    private_files().set(environment.token_url, json.dumps(client))


def forget_client(environment: Environment) -> None:
    """Remove the client that was kept for *environment*."""
    private_files().delete(environment.token_url)
    with suppress(Exception):
        _vault().delete(environment.token_url)


def _vault() -> TokenStore:
    """Return the system's vault, or raise: of the many ways not to have one none is worth telling apart."""
    import keyring

    from ..stores.keyring import KeyringStore

    if keyring.get_keyring().priority < _RECOMMENDED:
        raise LookupError("no vault, or one in plain text")
    return KeyringStore(_SERVICE)
