"""What stops the engine from starting."""

from __future__ import annotations


class MemberError(ValueError):
    """A member (or an engine option, as the member "engine") that cannot be served. Names it and says what is valid."""

    def __init__(self, member: str, problem: str, *, option: str = "") -> None:
        """`option`: which of the member's, or of the engine's, is wrong."""
        super().__init__(f"{member}: {problem}")
        self.member = member
        self.problem = problem
        self.option = option
