"""What a rank runs first: it takes its CPUs, then becomes the command. Started by its path, with nothing imported.

python seat.py 0 0,1,2,3 python script.py ...        local rank, CPUs, command

An OpenMP runtime looks at the affinity mask when it is loaded, so the mask has to be there before.
"""

import ctypes
import os
import signal
import sys

_SET_PARENT_DEATH_SIGNAL = 1  # linux/prctl.h


def _take_seat(local_rank: str, cpus: str, *command: str) -> None:
    launcher = os.getppid()
    ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)  # ranks do not outlive a launcher that is killed
    if os.getppid() != launcher:
        sys.exit(128 + signal.SIGTERM)
    if local_rank != "0":
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # one reader of what the user types
    os.sched_setaffinity(0, [int(cpu) for cpu in cpus.split(",")])
    os.execvp(command[0], command)


if __name__ == "__main__":
    _take_seat(*sys.argv[1:])
