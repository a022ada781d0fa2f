"""`python -m registryd`, and the `registryd` command."""

from registryd.cli.main import main

if __name__ == "__main__":
    main()
