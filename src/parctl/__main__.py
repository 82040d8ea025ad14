"""`python -m parctl` and the `parctl` program."""

import sys

try:
    from parctl.cli.main import main
except KeyboardInterrupt:  # within the tenth of a second that this takes
    sys.exit(130)

if __name__ == "__main__":
    main()
