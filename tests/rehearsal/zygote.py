"""Runs scripts in processes forked from this one, which has their slow imports behind it and has computed nothing.

python zygote.py SOCKET: each connection sends one JSON line, what `run_script` takes, and gets the exit code.
"""

import importlib
import json
import os
import runpy
import signal
import socket
import sys

IMPORTS = """accelerate.utils torch.nn.parallel torch.utils.data torch._dynamo diffusers.models.unets.unet_2d_condition
diffusers.models.autoencoders.autoencoder_kl diffusers.schedulers.scheduling_ddim diffusers.utils.torch_utils
transformers.models.clip.modeling_clip transformers.models.clip.tokenization_clip hydra omegaconf h5py scipy.io
matplotlib.pyplot matplotlib.backends.backend_agg requests jaxtyping kornia_rs PIL.Image tqdm safetensors.torch"""


def serve(path: str) -> None:
    for name in IMPORTS.split():
        importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those who wait for the scripts
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        while True:
            connection, _ = listener.accept()
            if os.fork() == 0:
                return wait_for(connection)
            connection.close()


def wait_for(connection: socket.socket) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with connection, connection.makefile() as lines:
        request = json.loads(lines.readline())
        child = os.fork()
        if child == 0:
            os.setsid()
            return run_script(**request)
        _, status = os.waitpid(child, 0)
        connection.sendall(str(os.waitstatus_to_exitcode(status)).encode())
        os._exit(0)


def run_script(
    script: str, arguments: list[str], folder: str, environment: dict[str, str], log: str, seconds: int
) -> None:
    """As `python SCRIPT ARGUMENTS` in `folder`, for so long: ends with the script's exit code, or its traceback."""
    signal.alarm(seconds)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    path = os.path.join(folder, script)
    sys.path[:1] = [os.path.dirname(path), *environment["PYTHONPATH"].split(":")]
    sys.argv = [path, *arguments]
    runpy.run_path(path, run_name="__main__")


if __name__ == "__main__":
    serve(sys.argv[1])
