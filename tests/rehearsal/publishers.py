"""The publishers' files in miniature: real names, layouts, types and image sizes, a few kilobytes per image.

`write_publishers` fills a folder HOST/PATH for every address in configs/download/; `write_own_files` writes what a
user has from elsewhere. Only Virtual KITTI is complete, since its list follows a rule; KITTI's lists have their real
lengths, by which the published archives are told apart.
"""

from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

import h5py
import numpy as np
from scipy.io import savemat

from marigold.data.preparation.layouts import ETH3D_SCENES, KITTI_FOCAL
from marigold.data.splits import vkitti_lines
from miniature import depth, depth_png, encoded, field, hdf5, npy, photo, write, write_tar, write_zip

Members = Iterator[tuple[str, bytes]]
ARCHIVES = "share.phys.ethz.ch/~pf/bingkedata/marigold/evaluation_dataset"
APPLE = "raw.githubusercontent.com/apple/ml-hypersim/main"

# split, scene, camera, frame, share of pixels without geometry: above 0.03 the filter drops an image from train
HYPERSIM = (
    ("train", "ai_001_001", "cam_00", 0, 0.0),
    ("train", "ai_001_001", "cam_00", 1, 0.01),
    ("train", "ai_001_001", "cam_01", 0, 0.0),
    ("train", "ai_001_002", "cam_00", 3, 0.0),
    ("train", "ai_001_002", "cam_00", 4, 0.2),
    ("val", "ai_002_001", "cam_00", 0, 0.0),
    ("val", "ai_002_001", "cam_00", 1, 0.2),
    ("test", "ai_003_001", "cam_00", 0, 0.0),
)
HYPERSIM_DROPPED = "ai_001_002/rgb_cam_00_fr0004.png"
NYU_SCENES = ("kitchen_0001", "kitchen_0001", "bedroom_0002a", "bedroom_0002a", "office_0003", "office_0003")
NYU_TRAIN = (3, 4)  # 1-based
DIODE = [(k, n) for k in ("indoors", "outdoor") for n in range(2)]
IMAGES = 3  # the user's own
SCANNET = [(scan, frame) for scan in ("scene0011_00", "scene0015_00") for frame in (0, 100)]
# day, drive, number of frames listed, how many of them have no ground truth
KITTI_TEST = (("2011_09_26", "0002", 350, 20), ("2011_09_28", "0002", 347, 25))
KITTI_VAL = (("2011_09_26", "0001", 400, 0), ("2011_09_30", "0028", 400, 0))
KITTI_SIZES = {"2011_09_26": (375, 1242), "2011_09_28": (370, 1224), "2011_09_30": (370, 1226)}


def write_publishers(root: Path) -> None:
    write_hypersim(root)
    write_vkitti(root / "download.europe.naverlabs.com/virtual_kitti_2.0.3")
    write_nyu(root)
    write_kitti(root)
    write_eth3d(root)
    members = list(diode_members())
    host = root / "diode-dataset.s3.amazonaws.com"
    write_tar(host / "val.tar.gz", ((f"val/{name}", data) for name, data in members), "w:gz")
    write_tar(root / ARCHIVES / "diode/diode_val.tar", members, prefix="./")
    write_tar(root / ARCHIVES / "scannet/scannet_val_sampled_800_1.tar", scannet_members((480, 640)), prefix="./")


def write_own_files(readme: Path, raw: Path) -> None:
    """Images to predict on and known distances in each, and ScanNet's frames, which need a signed agreement."""
    for number in range(IMAGES):
        write(readme / f"photos/{number}.jpg", encoded(photo(900 + number, (120, 160)), "JPEG"))
        write(readme / f"points/{number}.csv", "x,y,metres\n10,10,1.5\n80,60,2.5\n150,110,4.0\n")
    for name, data in scannet_members((968, 1296)):
        write(raw / "downloads/scannet_frames_25k" / name, data)


def write_hypersim(root: Path) -> None:
    rows = [
        "scene_name,camera_name,frame_id,included_in_public_release,exclude_reason,split_partition_name",
        "ai_001_001,cam_00,2,False,content flagged,",
        *(f"{scene},{camera},{frame},True,,{split}" for split, scene, camera, frame, _ in HYPERSIM),
    ]
    name = "evermotion_dataset/analysis/metadata_images_split_scene_v1.csv"
    write(root / APPLE / name, "\n".join(rows))
    # Read only with prepare.camera_csv.
    write(root / APPLE / "contrib/mikeroberts3000/metadata_camera_parameters.csv", "scene_name\n")
    scenes = {scene for _, scene, *_ in HYPERSIM}
    for scene in scenes:
        path = f"docs-assets.developer.apple.com/ml-research/datasets/hypersim/v1/scenes/{scene}.zip"
        write_zip(root / path, hypersim_members(scene))


def hypersim_members(scene: str) -> Members:
    size = (768, 1024)
    for number, (_, its, camera, frame, hole) in enumerate(HYPERSIM):
        if its != scene:
            continue
        colour = np.stack([0.02 + 2 * field(100 + 3 * number + channel, size) for channel in range(3)], -1)
        distance = depth(number, size, 1.5, 8)
        entity = (1 + 20 * field(number, size)).astype(np.int32)
        rows = round(hole * size[0])
        entity[:rows], distance[:rows] = -1, np.nan
        images, name = f"{scene}/images/scene_{camera}", f"frame.{frame:04d}"
        yield f"{images}_final_preview/{name}.color.jpg", b"not asked for"
        yield f"{images}_final_hdf5/{name}.color.hdf5", hdf5(colour.astype(np.float16))
        yield f"{images}_geometry_hdf5/{name}.depth_meters.hdf5", hdf5(distance.astype(np.float16))
        yield f"{images}_geometry_hdf5/{name}.render_entity_id.hdf5", hdf5(entity)


def write_vkitti(folder: Path) -> None:
    """All 25,512 images of its rule, eight of them different."""
    size, kinds = (375, 1242), range(8)
    photos = [encoded(photo(200 + kind, size), "JPEG", quality=10, optimize=True) for kind in kinds]
    centimetres = [np.rint(100 * depth(kind, size, 2, 70)).astype(np.uint16) for kind in kinds]
    for sky in centimetres:
        sky[:64] = 65535
    maps = [encoded(pixels) for pixels in centimetres]
    lines = [line.split() for split in ("train", "val") for line in vkitti_lines(split)]
    for column, part, images in ((0, "rgb", photos), (1, "depth", maps)):
        names = (line[column].removeprefix(f"{part}/") for line in lines)
        write_tar(folder / f"vkitti_2.0.3_{part}.tar", zip(names, cycle(images), strict=False))


def write_nyu(root: Path) -> None:
    """The .mat as MATLAB 7.3 writes it: HDF5 behind a header of 512 bytes, axes reversed, strings by reference."""
    count, size, folder = len(NYU_SCENES), (480, 640), root / "horatio.cs.nyu.edu/mit/silberman"
    photos = np.stack([photo(300 + number, size) for number in range(count)])
    filled = np.stack([depth(number, size, 0.8, 9) for number in range(count)])
    raw = filled.copy()
    raw[:, :60, :80] = 0
    mat = folder / "nyu_depth_v2/nyu_depth_v2_labeled.mat"
    mat.parent.mkdir(parents=True)
    with h5py.File(mat, "w", userblock_size=512) as file:
        for key, array in (("images", photos.transpose(0, 3, 2, 1)), ("rawDepths", raw), ("depths", filled)):
            data = array if key == "images" else array.transpose(0, 2, 1)
            file.create_dataset(key, data=data, chunks=(1, *data.shape[1:]), compression="gzip", compression_opts=1)
        for number, scene in enumerate(NYU_SCENES):
            file[f"#refs#/{number}"] = np.array([[ord(letter)] for letter in scene], np.uint16)
        references = [file[f"#refs#/{number}"].ref for number in range(count)]
        file.create_dataset("scenes", data=np.array([references], h5py.ref_dtype), dtype=h5py.ref_dtype)
    with mat.open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\0\2IM")
    test = [number for number in range(1, count + 1) if number not in NYU_TRAIN]
    splits = {"trainNdxs": np.array(NYU_TRAIN, np.uint16)[:, None], "testNdxs": np.array(test, np.uint16)[:, None]}
    (folder / "indoor_seg_sup").mkdir()
    savemat(folder / "indoor_seg_sup/splits.mat", splits)

    def members() -> Members:
        for number, scene in enumerate(NYU_SCENES, 1):
            name = f"{'train' if number in NYU_TRAIN else 'test'}/{scene}/{{}}_{number:04d}.png"
            yield name.format("rgb"), encoded(photos[number - 1])
            yield name.format("depth"), depth_png(raw[number - 1], 1000)
            yield name.format("filled"), depth_png(filled[number - 1], 1000)

    write_tar(root / ARCHIVES / "nyuv2/nyu_labeled_extracted.tar", members(), prefix="./")


def kitti_lines(drives: tuple[tuple[str, str, int, int], ...]) -> list[str]:
    lines = []
    for day, drive, listed, without in drives:
        sync = f"{day}_drive_{drive}_sync"
        for frame in range(listed):
            truth = f"{sync}/proj_depth/groundtruth/image_02/{frame:010d}.png" if frame >= without else "None"
            lines.append(f"{day}/{sync}/image_02/data/{frame:010d}.png {truth} {KITTI_FOCAL[day]}")
    return lines


def kitti_members(drives: tuple[tuple[str, str, int, int], ...], columns: tuple[int, ...]) -> Members:
    """Images (column 0) and ground truth (1), which has a value at every fourth pixel of every fourth row."""
    images = {}
    for number, (day, size) in enumerate(KITTI_SIZES.items()):
        lidar = np.zeros(size, np.float32)
        lidar[2::4, ::4] = depth(400 + number, size, 3, 75)[2::4, ::4]
        images[day] = (encoded(photo(400 + number, size)), depth_png(lidar, 256))
    for line in kitti_lines(drives):
        names = line.split()
        yield from ((names[c], images[names[0][:10]][c]) for c in columns if names[c] != "None")


def write_kitti(root: Path) -> None:
    host = root / "s3.eu-central-1.amazonaws.com/avg-kitti"
    for drive in KITTI_TEST:
        name = f"{drive[0]}_drive_{drive[1]}"
        write_zip(host / f"raw_data/{name}/{name}_sync.zip", kitti_members((drive,), (0,)))
    # The publisher's split is not the benchmark's: test images are in its train part.
    truth = ((f"train/{name}", data) for name, data in kitti_members(KITTI_TEST, (1,)))
    write_zip(host / "data_depth_annotated.zip", truth)
    for name, drives in (("kitti_eigen_split_test", KITTI_TEST), ("kitti_sampled_val_800", KITTI_VAL)):
        write_tar(root / ARCHIVES / f"kitti/{name}.tar", kitti_members(drives, (0, 1)), prefix="./")


def write_eth3d(root: Path) -> None:
    """One image per scene. The .7z are tars, as bin/7z expects; the evaluation archive has two scenes."""
    size, host = (4032, 6048), root / "www.eth3d.net/data"
    jpg = encoded(photo(500, size), "JPEG", quality=30)
    metres = depth(500, size, 2, 40).astype("<f4")
    metres[:2000] = np.inf  # not measured
    laser = metres.tobytes()
    images = [f"images/dslr_images/DSC_{286 + number:04d}.JPG" for number in range(len(ETH3D_SCENES))]
    scenes = dict(zip(ETH3D_SCENES, images, strict=True))
    write_tar(host / "multi_view_training_dslr_jpg.7z", ((f"{scene}/{image}", jpg) for scene, image in scenes.items()))
    members = []
    for scene, image in scenes.items():
        truth = f"{scene}/{image.replace('images/', 'ground_truth_depth/', 1)}"
        write_tar(host / f"{scene}_dslr_depth.7z", [(truth, laser)], "w:gz")
        members += [(f"rgb/{scene}/{image}", jpg), (f"depth/{scene}_dslr_depth/{truth}", laser)]
    write_tar(root / ARCHIVES / "eth3d/eth3d.tar", members[:4], prefix="./")


def diode_members() -> Members:
    size = (768, 1024)
    for number, (kind, yaw) in enumerate(DIODE):
        scene = "scene_00019/scan_00183" if kind == "indoors" else "scene_00022/scan_00193"
        stem = f"{kind}/{scene}/{scene[6:11]}_{scene[-5:]}_{kind}_{10 * yaw:03d}_010"
        mask = (field(600 + number, size) < 0.9).astype(np.float32)
        metres = depth(600 + number, size, 1, 15 if kind == "indoors" else 200)[..., None]
        yield f"{stem}.png", encoded(photo(600 + number, size))
        yield f"{stem}_depth.npy", npy(metres)
        yield f"{stem}_depth_mask.npy", npy(mask)


def scannet_members(size: tuple[int, int]) -> Members:
    """size: of the images; the depth has its own."""
    for number, (scan, frame) in enumerate(SCANNET):
        metres = depth(700 + number, (480, 640), 0.6, 8)
        metres[:40] = 0
        yield f"{scan}/color/{frame:06d}.jpg", encoded(photo(700 + number, size), "JPEG")
        yield f"{scan}/depth/{frame:06d}.png", depth_png(metres, 1000)
