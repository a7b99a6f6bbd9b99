"""The table of commands: what shortens each, what it must leave behind, and what is done where it cannot be run."""

import checks
import training_checks as training
from checks import ARCHIVED, FIVE, LISTED, evaluated, leaves, maps, prepared
from commands import Command
from rehearsal import Known, instead, type_it, typed
from training_checks import PAPER, SHORT, TRAIN, as_others, stepped, trained

SUITE = "eval.py -m dataset=nyu,kitti,eth3d,scannet,diode"
OURS = "checkpoint=runs/quickstart/final"  # in place of the documented one; the last override counts
ONE = f"limit=1 panel.worst=1 panel.median=0 {OURS}"
SIZES = {"hypersim_train": 6, "hypersim_val": 2, "vkitti_train": 6, "vkitti_val": 1, "nyu_test": 2}
ROOMS = " ".join(f"prepare.size.{part}={count}" for part, count in SIZES.items())
FEW = "data.hypersim.reader.limit=4 data.vkitti.reader.limit=4"
SMALL = "data.hypersim.transform.size=[96,128]"
# As download.py counts them. The miniatures have other sizes and hashes than the published files.
FILES = {"hypersim": 24, "vkitti": 2, "nyu": 2, "eth3d": 14, "diode": 1}
GPUS = "so many GPUs are not here: two processes on the CPU"
EIGHT = f"python scripts/train.py +exp=hypersim_vkitti {PAPER} device=cpu run_dir=runs/eight"
ABLATIONS = {
    "ablation_hypersim_50": {"data.hypersim.weight": 0.5},
    "ablation_hypersim_95": {"data.hypersim.weight": 0.95},
    "ablation_hypersim_only": {"data.vkitti.weight": 0.0},
    "ablation_vkitti_only": {"data.hypersim.weight": 0.0},
}
NOISES = {
    "ablation_noise_gaussian": {"recipe.noise": "gaussian"},
    "ablation_noise_multi_resolution": {"recipe.noise": "multi_resolution"},
}

RECIPES = ("marigold_v1_1", "e2e_ft", "lotus_g", "lotus_d", "genpercept", "depthmaster", "one_step")
PIXELS = "cache.enabled=false"

# fmt: off
# The first entry that fits a command counts; * stands for anything.
TABLE = [
    # data
    instead("get", "make quickstart", checks.made, "the environment is here: the rest of the recipe, line by line"),
    instead("train", "make quickstart EXP=[quickstart,marigold]", checks.made_with_noise, "its training, uncached"),
    typed("train", "train.py +exp=[quickstart,marigold]", trained("quickstart-marigold"), f"{SHORT} {PIXELS}"),
    instead("get", "python3 -m venv .venv *", checks.installable, "the environment is here"),
    instead("get", "pip install -c constraints.txt -e .", checks.installable, "the environment is here"),
    instead("get", "make test", checks.only_pytest, "it would start this test: only the recipe is looked at"),
    typed("get", "prepare.py dataset=rooms *", checks.rooms_rendered, ROOMS),
    typed("get", "prepare.py dataset=hypersim raw=data/rooms/*", checks.rooms_prepared),
    typed("get", "torchrun * scripts/cache_latents.py +exp=quickstart *", training.rooms_cached),
    typed("get", "torchrun * scripts/train.py +exp=quickstart * run_dir=*", trained("quickstart", 2), SHORT),
    typed("get", "torchrun * scripts/eval.py dataset=rooms *", evaluated(["rooms"], 4, "runs/quickstart/eval")),
    typed("get", "compare_constant.py dataset=rooms *", checks.compared),
    typed("get", "download.py -m dataset=nyu,kitti,eth3d,scannet,diode source=archive", checks.archives_downloaded),
    typed("get", "download.py dataset=kitti source=archive_val", checks.downloaded(1)),
    typed("get", "download.py dataset=* source=archive", checks.downloaded(1), where="raw"),
    *(typed("get" if name in ("hypersim", "vkitti") else "raw", f"download.py dataset={name}",
            checks.downloaded(files), "verify=false", where="readme" if name in ("hypersim", "vkitti") else "raw")
      for name, files in FILES.items()),
    typed("raw", "download.py dataset=kitti split_list=*", checks.downloaded(697 + 652), where="raw"),
    Known("unpack", "(cd downloads/eth3d *", checks.unpacked(13), where="raw"),
    Known("unpack", "tar -xzf *", checks.unpacked(1), where="raw"),
    typed("check", "MARIGOLD_DATA=elsewhere *", checks.moved),
    typed("prepare", "prepare.py -m dataset=nyu,kitti,eth3d,scannet,diode source=archive", checks.archives_prepared),
    typed("prepare", "prepare.py dataset=kitti source=archive_val", prepared({"kitti/eigen_val_800.txt": 800})),
    typed("prepare", "prepare.py dataset=hypersim workers=8", prepared(LISTED)),
    typed("prepare", "prepare.py dataset=vkitti", prepared(LISTED)),
    # As printed by a download; of the raw files, those that need no unpacking.
    typed("prepare", "prepare.py dataset=hypersim", prepared(LISTED)),
    typed("prepare", "*prepare.py dataset=* source=archive", prepared(ARCHIVED), where="raw"),
    typed("prepare", "*prepare.py dataset=*", prepared(LISTED), where="raw"),
    *(typed("check", f"prepare.py check dataset={name}", checks.checked, "dataset.reader.limit=4")
      for name in ("vkitti", "hypersim", "kitti", "eth3d")),
    typed("check", "prepare.py check dataset=*", checks.checked),
    instead("check", "hf download * --local-dir checkpoints/stable-diffusion-2 *", checks.base_copied, "no hub"),
    # training
    typed("train", "train.py +exp=hypersim_vkitti", training.headline_trained, PAPER),
    Known("train", "kill *", training.killed),
    typed("train", "train.py +exp=hypersim_vkitti validation=paper name=paper_validation",
          training.validated_on("paper_validation", "hypersim", "vkitti", "nyu", "kitti"),
          f"{PAPER} validation.sets.nyu.reader.limit=1 validation.sets.kitti.reader.limit=1"),
    Known("train", "train.py +exp=hypersim_vkitti data=mine name=mine", training.own_set),
    typed("train", "train.py +exp=hypersim_vkitti recipe=lotus_d",
          trained("hypersim_vkitti-lotus_d"), f"{PAPER} {SMALL}"),
    typed("train", "train.py +exp=hypersim_vkitti recipe=one_step recipe.mapping=log_depth name=one_step_log",
          trained("one_step_log", **{"recipe.mapping": "log_depth"}), f"{PAPER} {SMALL}"),
    typed("train more", "train.py +exp=hypersim_vkitti recipe=sharpen *", trained("sharpened"), f"{PAPER} {SMALL}"),
    *(typed("train", f"train.py +exp=quickstart recipe={name}", trained(f"quickstart-{name}", **{"recipe.name": name}),
            f"{SHORT} {PIXELS}") for name in RECIPES),
    typed("evaluate more", "train.py +exp=hypersim_vkitti data=teacher *", training.taught,
          f"{TRAIN} train.effective_batch=2 train.micro_batch=1 data.teacher.transform.size=[96,128]"),
    typed("evaluate", "export.py checkpoint=runs/hypersim_vkitti-lotus_d/final *",
          checks.exported("lotus_d_diffusers")),
    *(typed("train", f"train.py +exp=[quickstart,marigold,{name}]",
            trained(f"quickstart-marigold-{name}", **values), f"{SHORT} {PIXELS}") for name, values in NOISES.items()),
    typed("train", "train.py +exp=[quickstart,ablation_no_pretraining]",
          trained("quickstart-ablation_no_pretraining", **{"model.random_unet": True}), SHORT),
    *(typed("train", f"train.py +exp=[hypersim_vkitti,{name}]",
            trained(f"hypersim_vkitti-{name}", **values), f"{PAPER} {SMALL}")
      for name, values in ABLATIONS.items()),
    instead("train", "train.py +exp=[hypersim_vkitti,dry_run]",
            type_it(stepped("hypersim_vkitti-dry_run", 1), "model=tiny data.hypersim.transform.size=[96,128]"),
            "15 GB and minutes"),
    typed("train", "train.py +exp=quickstart model.lora.rank=4 name=lora",
          trained("lora", **{"model.lora.rank": 4}), SHORT),
    typed("train", "cache_latents.py +exp=[hypersim_vkitti,cached_latents]", training.cached, FEW),
    typed("train", "train.py +exp=[hypersim_vkitti,cached_latents]",
          trained("hypersim_vkitti-cached_latents"), f"{FEW} {PAPER}"),
    typed("train", "train.py +exp=quickstart data.hypersim.weight=0.95 * name=mixture",
          trained("mixture", **{"data.vkitti.weight": 0.05}), SHORT),
    Known("train", "train.py +exp=quickstart noise=multi_resolution", training.refused_untouched("quickstart", SHORT)),
    typed("train more", "torchrun * scripts/train.py +exp=quickstart device=cpu",
          as_others("two", "quickstart", 2), f"{SHORT} run_dir=runs/two"),
    instead("train more", "accelerate launch --num_processes 8 scripts/train.py +exp=hypersim_vkitti",
            training.two_processes(EIGHT, as_others("eight", "hypersim_vkitti", 2)), GPUS),
    instead("train more", "torchrun --nnodes 2 *", training.two_machines, "there is one machine: two launchers on it"),
    instead("train more", "#!/bin/bash*srun*", training.slurm, "there is no Slurm: bin/srun, until requeued"),
    typed("train more", "train.py -m +exp=[quickstart,marigold,ablation_noise_gaussian],*",
          trained("quickstart-marigold-ablation_noise_gaussian"), f"{SHORT} {PIXELS}"),
    # evaluation
    typed("evaluate", f"{SUITE} checkpoint=DIR", evaluated(FIVE, 1), ONE),
    typed("evaluate more", "eval.py dataset=nyu checkpoint=DIR", evaluated(["nyu"], 1), ONE),
    typed("table", "accelerate launch --num_processes 4 scripts/eval.py dataset=nyu checkpoint=DIR",
          checks.as_alone, f"{ONE} output=runs/eval_accelerate"),
    typed("evaluate", "eval.py dataset=nyu checkpoint=DIR protocol=moge", evaluated(["nyu"], 1, protocol="moge"), ONE),
    typed("evaluate", "eval.py dataset=nyu checkpoint=DIR protocol=*", checks.refused("affine_depth"), ONE, code=1),
    typed("evaluate", "eval.py dataset=motorcycle *", evaluated(["motorcycle"], 1)),
    typed("evaluate", "eval.py dataset=rooms checkpoint=runs/quickstart-*", evaluated(["rooms"], 2), "limit=2"),
    typed("evaluate", "sweep.py curve=ensemble *", checks.swept("ensemble", 2), "limit=2 ensemble_sizes=[1,2]"),
    typed("evaluate", "sweep.py curve=steps *", checks.swept("steps", 4), "limit=2 steps=[1,2]"),
    instead("evaluate", "make demo", checks.made, "the environment is here: the rest of the recipe, line by line"),
    Known("evaluate", "demo.py checkpoint=*", checks.served),
    instead("evaluate", "infer.py input=photos/ output=depth/ checkpoint=prs-eth/*",
            type_it(maps("depth/depth_npy", "depth/depth_colour", 0, 1), OURS),
            "no hub"),
    typed("evaluate", "infer.py input=photos/ output=space/ *", checks.stands_in_space),
    typed("evaluate", "infer.py input=photos/ output=metres/ *",
          maps("metres/depth_metres", "metres/depth_metres_png", 0.01, 100), OURS),
    typed("evaluate", "export.py checkpoint=runs/quickstart/final output=exported", checks.exported("exported")),
    *(typed("evaluate", f"export.py checkpoint=runs/quickstart/final output={name} *", leaves({name: 1}))
      for name in ("depth.onnx", "depth.pt2")),
    typed("evaluate", "eval.py dataset=rooms checkpoint=runs/quickstart/final points.count=50",
          evaluated(["rooms"], 2, "runs/points", "marigold+50-random-points-seed0"), "limit=2 output=runs/points"),
    typed("table", "table.py results=[runs/eval]", checks.tabled("runs/table", ["quickstart", "Marigold v1.0"], FIVE)),
    typed("table", "table.py results=[runs/eval] output=runs/noise",
          checks.tabled("runs/noise", [f"quickstart-marigold-{name}" for name in NOISES], ["rooms"])),
]
# fmt: on

# What the documentation says in other words than a command in a block.
VARIATIONS = [
    *(f"train.py +exp=quickstart recipe={name}" for name in RECIPES),
    *(f"prepare.py check dataset={name}" for name in ("hypersim", "vkitti", *FIVE[1:])),
    "train.py +exp=quickstart noise=multi_resolution",
    *(f"eval.py dataset=nyu checkpoint=DIR protocol={name}" for name in ("moge", "ppd", "log", "disparity")),
]
VARIED = [Command(f"python scripts/{text}", "varied") for text in VARIATIONS]
VARIED.append(Command("MARIGOLD_DATA=elsewhere python scripts/prepare.py dataset=nyu source=archive", "README"))
