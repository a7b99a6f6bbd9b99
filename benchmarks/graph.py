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

REPETITIONS = 20


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="benchmark.py graph", description=__doc__)
    parser.add_argument("--checkpoint", required=True, help="a folder or a hub id")
    parser.add_argument("--size", type=int, nargs=2, default=(96, 128), help="height and width, multiples of 8")
    options = parser.parse_args(argv)
    height, width = options.size
    model = MarigoldDepth.from_pretrained(options.checkpoint)
    steps = None if model.switches.one_pass else 1
    image, noise = torch.rand(1, 3, height, width), None
    feeds = {"image": image.numpy()}
    if not model.switches.silent:
        noise = torch.randn(1, 4, height // VAE_FACTOR, width // VAE_FACTOR)
        feeds["noise"] = noise.numpy()
    # Both sides with the same threads; onnxruntime takes all cores by default.
    threads = onnxruntime.SessionOptions()
    threads.intra_op_num_threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        write_onnx(model, Path(folder, "depth.onnx"))
        session = onnxruntime.InferenceSession(Path(folder, "depth.onnx"), threads, providers=["CPUExecutionProvider"])

    def in_torch() -> torch.Tensor:
        return model(image, steps=steps, latents=noise, processing_resolution=0).depth

    difference = float((torch.from_numpy(session.run(None, feeds)[0]) - in_torch()).abs().max())
    graph, plain = measure(lambda: session.run(None, feeds), REPETITIONS), measure(in_torch, REPETITIONS)
    print(
        f"onnxruntime {graph.wall:.3f} s, torch {plain.wall:.3f} s per image of {height}x{width}, "
        f"{torch.get_num_threads()} thread(s); largest difference {difference:.1e}"
    )
