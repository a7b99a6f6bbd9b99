"""Seconds per image of one step: the ONNX file under onnxruntime, beside the model in torch."""

import argparse
import tempfile
from pathlib import Path

import onnxruntime
import torch

from benchmarks.timing import measure
from marigold.model.backbone import VAE_FACTOR
from marigold.model.graph import write_onnx
from marigold.model.pipeline import MarigoldDepth


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="benchmark.py graph", description=__doc__)
    parser.add_argument("--checkpoint", required=True, help="a folder or a hub id")
    parser.add_argument("--size", type=int, nargs=2, default=(96, 128), help="height and width, multiples of 8")
    parser.add_argument("--rounds", type=int, default=20, help="both are measured this often, in turn; best counts")
    options = parser.parse_args(argv)
    height, width = options.size
    model = MarigoldDepth.from_pretrained(options.checkpoint)
    image = torch.rand(1, 3, height, width)
    noise = None if model.switches.silent else torch.randn(1, 4, height // VAE_FACTOR, width // VAE_FACTOR)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "depth.onnx"
        write_onnx(model, file)
        threads = onnxruntime.SessionOptions()
        threads.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(file, threads, providers=["CPUExecutionProvider"])
    feeds = {"image": image.numpy(), **({} if noise is None else {"noise": noise.numpy()})}
    steps = None if model.switches.one_pass else 1

    def in_torch() -> torch.Tensor:
        return model(image, steps=steps, latents=noise, processing_resolution=0).depth

    walls: list[tuple[float, float]] = []
    for _ in range(options.rounds):
        theirs, ours = measure(lambda: session.run(None, feeds)[0], 1), measure(in_torch, 1)
        walls.append((theirs.wall, ours.wall))
    graph, plain = (min(column) for column in zip(*walls, strict=True))
    largest = float((torch.from_numpy(theirs.result) - ours.result).abs().max())
    print(
        f"onnxruntime {graph:.3f} s, torch {plain:.3f} s per image of {height}x{width}, "
        f"{torch.get_num_threads()} thread(s); largest difference {largest:.1e}"
    )
