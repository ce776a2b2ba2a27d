"""The commands of `torch-cpullm`, one file each."""

import typer

from torch_cpullm.cli.bench import bench
from torch_cpullm.cli.generate import generate
from torch_cpullm.cli.launch import launch
from torch_cpullm.cli.profile import profile_command

app = typer.Typer(add_completion=False, no_args_is_help=True)


@app.callback()
def main() -> None:
    """Language models on CPUs: tools around torch_cpullm."""


# Interspersed options would be taken from the script: what follows it is its own.
app.command(context_settings={"allow_interspersed_args": False})(launch)
app.command()(bench)
app.command()(generate)
app.command("profile")(profile_command)
