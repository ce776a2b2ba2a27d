"""`python -m torch_cpullm.cli`: the same as `torch-cpullm`."""

from torch_cpullm.cli.app import app

if __name__ == "__main__":
    app(prog_name="python -m torch_cpullm.cli")
