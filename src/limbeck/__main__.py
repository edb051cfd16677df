"""`python -m limbeck`."""

from limbeck.cli import main

if __name__ == "__main__":
    main(prog_name="limbeck")
