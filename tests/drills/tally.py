"""What a drill counts, and the table of all of them: attempts, let in, crashed, measured."""

from dataclasses import dataclass, field

EXAMPLES = 5
"""Of what was let in or crashed, that are kept word for word."""


@dataclass
class Tally:
    """One row. `let_in` counts what should have been refused and was not, `crashed` what ended in an
    internal error, no answer at all, or the end of the process."""

    drill: str
    what: str
    attempts: int = 0
    let_in: int = 0
    crashed: int = 0
    measured: dict[str, object] = field(default_factory=dict)
    examples: list[str] = field(default_factory=list)

    def refused(self, attempts: int = 1) -> None:
        self.attempts += attempts

    def entered(self, example: str) -> None:
        self.attempts += 1
        self.let_in += 1
        self._keep(f"let in: {example}")

    def broke(self, example: str) -> None:
        self.attempts += 1
        self.crashed += 1
        self._keep(f"crashed: {example}")

    def judge(self, refused: bool, status: int, example: str) -> None:
        """One attempt by its answer; status 0 is none."""
        if status == 0 or status >= 500:
            self.broke(f"{example} -> {status}")
        elif refused:
            self.refused()
        else:
            self.entered(f"{example} -> {status}")

    def _keep(self, example: str) -> None:
        if len(self.examples) < EXAMPLES:
            self.examples.append(example[:200])

    def check(self) -> None:
        """Fails unless something was tried, and nothing let in or crashed."""
        assert self.attempts > 0, self.what
        assert (self.let_in, self.crashed) == (0, 0), "\n".join(self.examples)


def table(tallies: list[Tally]) -> str:
    lines = [f"  {'':4} {'drill':40} {'attempts':>8} {'let in':>6} {'crashed':>7}  measured"]
    for one in sorted(tallies, key=lambda one: int(one.drill[1:])):
        measured = ", ".join(f"{name} {value}" for name, value in one.measured.items())
        lines.append(
            f"  {one.drill:4} {one.what:40} {one.attempts:>8} {one.let_in:>6} {one.crashed:>7}  {measured}"
        )
        lines += [f"       {example}" for example in one.examples]
    return "\n".join(lines)
