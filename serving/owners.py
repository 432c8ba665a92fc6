"""Whose a request is: jobs are listed, and quotas counted, by owner."""

from __future__ import annotations

from fastapi import Request

ANONYMOUS = "anonymous"


def owner_of(_: Request) -> str:
    """Without API keys everyone is the same one."""
    return ANONYMOUS
