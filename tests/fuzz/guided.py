"""One parser under atheris, a process of its own: `python guided.py PARSER [libFuzzer options]`.

Coverage leads it to inputs that random ones never reach. Ends with 0 when its time is up, else with the
input that broke what has to hold.
"""

import sys
from pathlib import Path

import atheris

sys.path[:0] = [str(Path(__file__).parents[1] / "auth"), str(Path(__file__).parents[2])]

with atheris.instrument_imports(include=["registryd", "jwt"]):
    from parsers import LONGEST, PARSERS, examine


def main() -> None:
    name, *options = sys.argv[1:]
    parser = PARSERS[name]
    atheris.Setup([sys.argv[0], *options], lambda data: examine(parser, data[:LONGEST]) and None)
    atheris.Fuzz()


main()
