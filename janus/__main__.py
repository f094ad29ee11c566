"""`python -m janus`."""

from janus.cli import main

if __name__ == "__main__":
    main(prog_name="janus")
