"""`python -m histojax`: the `histojax` command."""

from histojax.cli.main import main

if __name__ == "__main__":
    main()
