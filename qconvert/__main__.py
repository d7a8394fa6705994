"""`python -m qconvert`: the same command line as `qconvert`."""

from qconvert.cli import main

if __name__ == "__main__":
    main(prog_name="qconvert")
