"""The table of commands: what shortens each, what it must leave behind, and what is done where it cannot be run."""

import checks
import training_checks as training
from checks import FIVE, evaluated, leaves, maps
from commands import Command
from rehearsal import Known, type_it, typed
from training_checks import PAIRS, PAPER, SHORT, trained

OURS = "checkpoint=runs/quickstart/final"  # in place of the documented one; the last override counts
ONE = f"limit=1 panel.worst=1 panel.median=0 {OURS}"
SIZES = {"hypersim_train": 6, "hypersim_val": 2, "vkitti_train": 6, "vkitti_val": 1, "nyu_test": 2}
ROOMS = " ".join(f"prepare.size.{part}={count}" for part, count in SIZES.items())
FEW = "data.hypersim.reader.limit=4 data.vkitti.reader.limit=4"
SMALL = "data.hypersim.transform.size=[96,128]"
PIXELS = "cache.enabled=false"

# fmt: off
# The first entry that fits a command counts; * stands for anything.
TABLE = [
    # installation and the quickstart
    Known("get", "python3 -m venv *", checks.skipped),
    Known("get", "pip install -c constraints.txt -e .", checks.skipped),
    Known("get", "make test", checks.skipped),
    Known("get", "make quickstart", checks.made),
    typed("get", "prepare.py dataset=rooms *", leaves("data/rooms/rooms.json"), ROOMS),
    typed("get", "prepare.py dataset=hypersim raw=data/rooms/*", leaves("data/rooms/hypersim/train/*/rgb_*.png")),
    typed("get", "torchrun * scripts/cache_latents.py +exp=quickstart *",
          leaves(*(f"data/rooms/latents/{name}/*/shard_*.h5" for name in ("hypersim", "vkitti")))),
    typed("get", "torchrun * scripts/train.py +exp=quickstart * run_dir=*", trained(2), SHORT),
    typed("get", "torchrun * scripts/eval.py dataset=rooms *", evaluated(["rooms"], 4, "runs/quickstart/eval")),
    typed("get", "compare_constant.py dataset=rooms *", leaves("runs/quickstart/eval/per_image.csv")),
    # Of its recipe, the lines before are those of `make quickstart`: its training alone, uncached.
    Known("train", "make quickstart EXP=[quickstart,marigold]",
          lambda *_: [Command("python scripts/train.py +exp=[quickstart,marigold]", "Makefile")]),
    # data
    typed("get", "download.py -m dataset=nyu,kitti,eth3d,scannet,diode source=archive", checks.downloaded),
    typed("get", "download.py dataset=kitti source=archive_val", checks.downloaded),
    typed("get", "download.py dataset=* source=archive", checks.downloaded, where="raw"),
    *(typed("get", f"download.py dataset={name}", checks.downloaded, "verify=false")
      for name in ("hypersim", "vkitti")),
    typed("raw", "download.py dataset=*", checks.downloaded, "verify=false", where="raw"),
    Known("unpack", "(cd downloads/eth3d *", checks.unpacked(13), "raw"),
    Known("unpack", "tar -xzf *", checks.unpacked(1), "raw"),
    *(typed("check", f"prepare.py check dataset={name}", checks.checked, "dataset.reader.limit=4")
      for name in ("vkitti", "hypersim", "kitti", "eth3d")),
    typed("check", "prepare.py check dataset=*", checks.checked),
    typed("prepare", "prepare.py -m dataset=* source=archive", checks.prepared),
    typed("prepare", "prepare.py dataset=kitti source=archive_val", checks.prepared),
    typed("prepare", "prepare.py dataset=hypersim*", checks.prepared),
    typed("prepare", "prepare.py dataset=vkitti", checks.prepared),
    typed("prepare", "*prepare.py dataset=*", checks.prepared, where="raw"),
    Known("check", "hf download * --local-dir checkpoints/stable-diffusion-2 *", checks.base_copied),
    # training
    typed("train", "train.py +exp=hypersim_vkitti", trained(), PAPER),
    typed("train", "train.py +exp=hypersim_vkitti validation=paper name=paper_validation",
          trained(validated={"hypersim", "vkitti", "nyu", "kitti"}),
          f"{PAPER} validation.sets.nyu.reader.limit=1 validation.sets.kitti.reader.limit=1"),
    Known("train", "train.py +exp=hypersim_vkitti data=mine name=mine", training.own_set),
    typed("train more", "train.py +exp=hypersim_vkitti recipe=sharpen *", trained(), f"{PAPER} {SMALL}"),
    typed("evaluate more", "train.py +exp=hypersim_vkitti data=teacher *", training.stepped,
          f"{PAIRS} data.teacher.transform.size=[96,128]"),
    # On the tiny base: the full size takes 15 GB and minutes.
    typed("train", "train.py +exp=[hypersim_vkitti,dry_run]", training.dry_run, f"model=tiny {SMALL}"),
    typed("train", "cache_latents.py +exp=[hypersim_vkitti,cached_latents]",
          leaves(*(f"data/latents/{name}/*/shard_*.h5" for name in ("hypersim", "vkitti")), count=2), FEW),
    typed("train more", "train.py +exp=[hypersim_vkitti,cached_latents]", trained(), f"{FEW} {PAPER}"),
    typed("train more", "torchrun --standalone * scripts/train.py +exp=quickstart device=cpu",
          trained(2), f"{SHORT} run_dir=runs/two"),
    # Two processes on the CPU, which accelerate's launcher would not start.
    Known("train more", "accelerate launch --num_processes 8 scripts/train.py +exp=hypersim_vkitti",
          type_it(trained(2), f"{PAPER} device=cpu run_dir=runs/eight", "accelerate launch --num_processes 8",
                  "torchrun --standalone --nproc_per_node 2")),
    Known("train more", "torchrun --nnodes 2 *", training.two_machines),
    Known("train more", "#!/bin/bash*srun*", training.slurm),
    typed("train more", "train.py -m +exp=[quickstart,*", trained(), f"{SHORT} {PIXELS}"),
    typed("train", "train.py +exp=[quickstart*", trained(), f"{SHORT} {PIXELS}"),
    typed("train", "train.py +exp=quickstart*", trained(), SHORT),
    typed("train", "train.py +exp=*", trained(), f"{PAPER} {SMALL}"),
    # evaluation
    typed("evaluate", "eval.py -m dataset=nyu,kitti,eth3d,scannet,diode checkpoint=DIR", evaluated(FIVE, 1), ONE),
    typed("evaluate more", "eval.py dataset=nyu checkpoint=DIR", evaluated(["nyu"], 1), ONE),
    typed("evaluate more", "accelerate launch --num_processes 4 scripts/eval.py dataset=nyu checkpoint=DIR",
          evaluated(["nyu"], 1, "runs/eval_accelerate"), f"{ONE} output=runs/eval_accelerate"),
    typed("evaluate", "eval.py dataset=nyu checkpoint=DIR protocol=moge", evaluated(["nyu"], 1, protocol="moge"), ONE),
    typed("evaluate", "eval.py dataset=motorcycle *", evaluated(["motorcycle"], 1)),
    typed("evaluate", "eval.py dataset=rooms * points.count=50",
          evaluated(["rooms"], 2, "runs/points", "marigold+50-random-points-seed0"), "limit=2 output=runs/points"),
    typed("evaluate", "eval.py dataset=rooms checkpoint=*", evaluated(["rooms"], 2), "limit=2"),
    *(typed("evaluate", f"sweep.py curve={curve} *", leaves(f"runs/sweep/rooms-marigold-{curve}-*/points.csv",
            f"runs/sweep/rooms-marigold-{curve}-*/curve.png", count=1), f"limit=2 {sizes}=[1,2]")
      for curve, sizes in (("ensemble", "ensemble_sizes"), ("steps", "steps"))),
    Known("evaluate", "make demo", checks.made),
    Known("evaluate", "demo.py checkpoint=*", checks.served),
    typed("evaluate", "infer.py input=photos/ output=depth/ checkpoint=*",
          maps("depth/depth_npy", "depth/depth_colour", 0, 1), OURS),
    typed("evaluate", "infer.py input=photos/ output=metres/ *",
          maps("metres/depth_metres", "metres/depth_metres_png", 0.01, 100), OURS),
    typed("evaluate", "infer.py input=photos/ output=space/ *", leaves("space/point_cloud/*.ply", "space/mesh/*.glb",
          "space/viewer/*.html", "space/exr/*.exr", count=checks.IMAGES)),
    *(typed("evaluate", f"export.py * output={name} *", leaves(name)) for name in ("depth.onnx", "depth.pt2")),
    *(typed("evaluate", f"export.py * output={name}*", checks.exported(name))
      for name in ("exported", "lotus_d_diffusers")),
    typed("table", "table.py results=[runs/eval]", checks.tabled("runs/table", ["quickstart", "Marigold v1.0"], FIVE)),
    typed("table", "table.py results=[runs/eval] output=runs/noise", checks.tabled("runs/noise",
          [f"quickstart-marigold-ablation_noise_{noise}" for noise in ("gaussian", "multi_resolution")], ["rooms"])),
]
# fmt: on

# What the documentation says in other words than a command in a block.
VARIATIONS = [
    "train.py +exp=[hypersim_vkitti,cached_latents]",
    "eval.py dataset=nyu checkpoint=DIR protocol=moge",
    *(f"prepare.py check dataset={name}" for name in ("hypersim", "vkitti", *FIVE[1:])),
]
VARIED = [Command(f"python scripts/{text}", "varied") for text in VARIATIONS]
