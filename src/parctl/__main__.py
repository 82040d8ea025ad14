"""`python -m parctl` and the `parctl` program."""

from parctl.cli.main import main

if __name__ == "__main__":
    main()
