"""Token stores, one a file; ``from finapi_session import FileStore`` loads the one that is named."""
