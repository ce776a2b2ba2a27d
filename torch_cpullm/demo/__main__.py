"""`python -m torch_cpullm.demo`: the main job, stock against optimised, on this machine."""

from torch_cpullm.demo.app import app

if __name__ == "__main__":
    app(prog_name="python -m torch_cpullm.demo")
