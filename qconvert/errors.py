"""The one exception that means "the user can mend this".

A message says what is wrong, where, what was expected and found, and the way out. The command line prints it and ends
with exit code 2, without a traceback. Every other exception is a bug of ours and keeps its traceback.
"""


class UserError(Exception):
    """A mistake in what the user gave us: a folder, a file, a flag, a disk too small."""

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        expected: str | None = None,
        found: str | None = None,
        fix: str | None = None,
    ) -> None:
        self.what, self.where, self.expected, self.found, self.fix = what, where, expected, found, fix
        details = (("where", where), ("expected", expected), ("found", found), ("way out", fix))
        super().__init__("\n".join([what, *(f"  {label}: {text}" for label, text in details if text is not None)]))


def first_line(error: Exception) -> str:
    """The first line of an error's text that says something; some texts begin with empty ones."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "")
