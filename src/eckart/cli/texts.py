"""Options that commands on language models share: which text, cut how."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["Context"]

Context = Annotated[int, typer.Option(min=2, metavar="TOKENS", help="tokens a window")]
