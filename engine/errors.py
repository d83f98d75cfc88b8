"""What stops the engine from starting."""

from __future__ import annotations


class MemberError(ValueError):
    """A member (or an engine option, as the member "engine") that cannot be served. Names it and says what is valid."""

    def __init__(self, member: str, problem: str) -> None:
        super().__init__(f"{member}: {problem}")
        self.member = member
