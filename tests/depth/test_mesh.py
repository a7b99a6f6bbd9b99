"""Meshes, read back by a parser of their own: struct and json, as the glTF 2.0 specification says."""

import io
import json
import struct
import tempfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from marigold.depth.mesh import write_glb
from marigold.types import Camera


def parsed(data: bytes) -> SimpleNamespace:
    """The content of a GLB file, once it has what the specification demands of any such file."""
    magic, version, length, json_size, json_kind = struct.unpack_from("<4sIII4s", data)
    assert (magic, version, length, json_kind) == (b"glTF", 2, len(data), b"JSON")
    scene = json.loads(data[20 : 20 + json_size])
    size, kind = struct.unpack_from("<I4s", data, 20 + json_size)
    binary = data[28 + json_size :]
    assert (len(binary), kind, size % 4, json_size % 4) == (size, b"BIN\0", 0, 0)
    assert 0 <= size - scene["buffers"][0]["byteLength"] <= 3
    assert all(view["byteOffset"] % 4 == 0 for view in scene["bufferViews"])
    content = [binary[view["byteOffset"] :][: view["byteLength"]] for view in scene["bufferViews"]]

    def read(index: int) -> np.ndarray:
        accessor = scene["accessors"][index]
        dtype = {5126: "<f4", 5125: "<u4"}[accessor["componentType"]]
        width = {"SCALAR": 1, "VEC2": 2, "VEC3": 3}[accessor["type"]]
        return np.frombuffer(content[accessor["bufferView"]], dtype).reshape(accessor["count"], width)

    (primitive,) = scene["meshes"][scene["nodes"][scene["scenes"][scene["scene"]]["nodes"][0]]["mesh"]]["primitives"]
    position, place = (read(primitive["attributes"][name]) for name in ("POSITION", "TEXCOORD_0"))
    triangle = read(primitive["indices"]).reshape(-1, 3)
    bounds = scene["accessors"][primitive["attributes"]["POSITION"]]
    np.testing.assert_array_equal([bounds["min"], bounds["max"]], [position.min(axis=0), position.max(axis=0)])
    # Every vertex has a place in the texture and is used, and no index points beyond them.
    assert len(place) == len(position)
    np.testing.assert_array_equal(np.unique(triangle), np.arange(len(position)))
    texture = scene["materials"][primitive["material"]]["pbrMetallicRoughness"]["baseColorTexture"]["index"]
    with Image.open(io.BytesIO(content[scene["images"][scene["textures"][texture]["source"]]["bufferView"]])) as image:
        return SimpleNamespace(position=position, place=place, triangle=triangle, texture=np.asarray(image))


def mesh(depth: torch.Tensor, camera: Camera | float, image: torch.Tensor | None = None, **settings: float):
    camera = camera if isinstance(camera, Camera) else Camera.centred(camera, *depth.shape[1:])
    with tempfile.TemporaryFile() as file:
        write_glb(file, depth, camera, torch.rand(3, *depth.shape[1:]) if image is None else image, **settings)
        file.seek(0)
        return parsed(file.read())


def test_a_wall_at_two_metres():
    # 5 x 3 pixels of 2 m / 4 px = 0.5 m each; the outermost centres are 4 and 2 pixels apart.
    image = torch.linspace(0, 1, 3)[:, None].expand(3, 3, 5)  # a black, a grey and a white row
    made = mesh(torch.full((1, 3, 5), 2.0), 4.0, image)
    np.testing.assert_allclose(made.texture / 255, image.permute(1, 2, 0), atol=0.02)
    assert (len(made.position), len(made.triangle)) == (15, 16)
    # The upper left pixel: left, up, in front of a camera that looks along -Z; and there in the texture.
    np.testing.assert_array_equal(made.position[[0, -1]], [[-1, 0.5, -2], [1, -0.5, -2]])
    np.testing.assert_allclose(made.place[[0, -1]], [[0.5 / 5, 0.5 / 3], [4.5 / 5, 2.5 / 3]])
    # Counterclockwise for the camera: every normal points to it; 2 m x 1 m in all.
    a, b, c = made.position[made.triangle].transpose(1, 0, 2)
    normals = np.cross(b - a, c - a)
    assert (normals[:, 2] > 0).all()
    assert np.linalg.norm(normals, axis=1).sum() / 2 == pytest.approx(2)


def test_every_vertex_projects_back_to_its_place_in_the_image():
    depth = torch.rand(1, 6, 9, generator=torch.Generator().manual_seed(0)) / 10 + 1
    camera = Camera(7.0, 8.0, 4.0, 3.5)
    made = mesh(depth, camera)
    x, y, z = (made.position * [1, -1, -1]).T
    np.testing.assert_allclose((x / z * camera.fx + camera.cx) / 9, made.place[:, 0], atol=1e-6)
    np.testing.assert_allclose((y / z * camera.fy + camera.cy) / 6, made.place[:, 1], atol=1e-6)
    np.testing.assert_array_equal(z.astype(np.float32), depth.flatten().numpy())


def test_a_step_is_torn_and_a_slope_is_not():
    step = torch.full((1, 4, 6), 2.0)
    step[..., 3:] = 3.0
    made = mesh(step, 100.0)
    assert len(made.triangle) == 2 * (2 * 3 * 2)
    depth = made.position[made.triangle][..., 2]
    assert (depth.min(axis=1) == depth.max(axis=1)).all()
    # 2 m + 0.1 m per pixel of 2 cm: a surface seen at about 11 degrees.
    assert len(mesh(2 + 0.1 * torch.arange(6.0).expand(1, 4, 6), 100.0).triangle) == 30


@pytest.mark.parametrize("unknown", [0.0, float("nan"), float("inf")])
def test_unknown_depth_is_a_hole(unknown: float):
    depth = torch.full((1, 4, 4), 2.0)
    depth[0, 1, 1] = unknown
    made = mesh(depth, 4.0)
    # It is a corner of six of the eight triangles around it.
    assert (len(made.position), len(made.triangle)) == (15, 18 - 6)
    with pytest.raises(ValueError, match="no surface"):
        mesh(torch.full((1, 4, 4), unknown), 4.0)
