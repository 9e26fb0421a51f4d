"""Clients of a server of `embedcomp serve`: `Client`, whose calls block, and `AsyncClient`."""

from __future__ import annotations

from embedcomp.serving.access import token_of
from embedcomp.serving.async_client import AsyncClient
from embedcomp.serving.client import Client

__all__ = ["AsyncClient", "Client", "token_of"]
