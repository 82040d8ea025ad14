"""`python -m parctl` and the `parctl` program."""

import sys

try:
    if sys.argv[1:2] == ["launch"]:
        from parctl.launcher.early import begin

        begin(sys.argv[2:])
    from parctl.cli.main import main
except KeyboardInterrupt:  # within the tenth of a second that this takes
    sys.exit(130)

if __name__ == "__main__":
    main()
