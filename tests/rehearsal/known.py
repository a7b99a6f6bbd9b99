"""The table of commands: what shortens each, what it must leave behind, and what is done where it cannot be run."""

import checks
from checks import ARCHIVED, LISTED, PAPER, SHORT, as_others, evaluated, prepared, trained
from commands import Command
from rehearsal import Known, instead, typed

FIVE = ("nyu", "kitti", "eth3d", "scannet", "diode")
SUITE = "eval.py -m dataset=nyu,kitti,eth3d,scannet,diode"
MODEL = "checkpoint=runs/quickstart/final"
ONE = f"limit=1 panel.worst=1 panel.median=0 {MODEL}"
SIZES = {"hypersim_train": 6, "hypersim_val": 2, "vkitti_train": 6, "vkitti_val": 1, "nyu_test": 2}
ROOMS = " ".join(f"prepare.size.{part}={count}" for part, count in SIZES.items())
FEW = "data.hypersim.reader.limit=4 data.vkitti.reader.limit=4"
SMALL = "data.hypersim.transform.size=[96,128]"
# As download.py counts them. The miniatures have other sizes and hashes than the published files.
FILES = {"hypersim": 24, "vkitti": 2, "nyu": 2, "eth3d": 14, "diode": 1}
KITTI = "out=downloads/kitti split_list=own/kitti_list.txt"
SCANNET = "raw=own/scannet_frames_25k prepare.split_list=own/scannet_list.txt"
GPUS = "so many GPUs are not here: two processes on the CPU"
EIGHT = f"python scripts/train.py +exp=hypersim_vkitti {PAPER} device=cpu run_dir=runs/eight"
SHARD = f"python scripts/train.py +exp=quickstart train.shard=true {SHORT} device=cpu run_dir=runs/shard"
NOISE = {"gaussian": {"noise.strength": 0.0}, "multi_resolution": {"noise.annealed": False}}
ABLATIONS = {
    "ablation_hypersim_50": {"mixture.hypersim": 0.5},
    "ablation_hypersim_95": {"mixture.hypersim": 0.95},
    "ablation_hypersim_only": {"mixture.vkitti": 0.0},
    "ablation_vkitti_only": {"mixture.hypersim": 0.0},
    "marigold_v1_1": {"diffusion.rescale_betas_zero_snr": True},
}

# fmt: off
# The first entry that fits a command counts; * stands for anything.
TABLE = [
    # data
    instead("get", "make quickstart", checks.made, "the environment is here: the rest of the recipe, line by line"),
    instead("get", "make test", checks.only_pytest, "it would start this test: only the recipe is looked at"),
    typed("get", "prepare.py dataset=rooms *", checks.rooms_rendered, ROOMS),
    typed("get", "prepare.py dataset=hypersim raw=data/rooms/*", checks.rooms_prepared),
    typed("get", "torchrun * scripts/cache_latents.py +exp=quickstart *", checks.rooms_cached),
    typed("get", "torchrun * scripts/train.py +exp=quickstart * run_dir=*", trained("quickstart", 2), SHORT),
    typed("get", "torchrun * scripts/eval.py dataset=rooms *", evaluated(["rooms"], 4, "runs/quickstart/eval")),
    typed("get", "compare_constant.py dataset=rooms *", checks.compared),
    typed("get", "download.py dataset=* source=archive* out=archives", checks.downloaded(1), where="archives"),
    typed("get", "prepare.py *prepare.archive=*", prepared(ARCHIVED), where="archives"),
    *(typed("get", f"download.py dataset={name} out=*", checks.downloaded(files), f"out=downloads/{name} verify=false")
      for name, files in FILES.items()),
    typed("get", "download.py dataset=kitti out=RAW", checks.downloaded(697 + 652), KITTI),
    typed("get", "download.py dataset=scannet out=RAW", checks.scannet_refused, "out=downloads/scannet", code=1),
    typed("get", "prepare.py dataset=scannet raw=DIR *", prepared(LISTED), SCANNET),
    typed("get", "*prepare.py dataset=* raw=downloads/*", prepared(LISTED)),
    typed("check", "prepare.py check dataset=* report=archives.txt", checks.checked, where="archives"),
    *(typed("check", f"prepare.py check dataset={name}", checks.checked, "dataset.reader.limit=4")
      for name in ("vkitti", "hypersim", "kitti", "eth3d")),
    typed("check", "prepare.py check dataset=*", checks.checked),
    instead("check", "hf download * --local-dir checkpoints/stable-diffusion-2", checks.base_copied, "no hub"),
    # training
    typed("train", "train.py +exp=hypersim_vkitti model.base=checkpoints/*", checks.headline_trained, PAPER),
    Known("train", "kill *", checks.killed),
    typed("train more", "train.py +exp=hypersim_vkitti", trained("hypersim_vkitti"), PAPER),
    *(typed("train", f"train.py +exp=[quickstart,ablation_noise_{name}]", trained(f"noise_{name}", **values), SHORT)
      for name, values in NOISE.items()),
    typed("train", "train.py +exp=[quickstart,ablation_no_pretraining]",
          trained("no_pretraining", **{"model.random_unet": True}), SHORT),
    *(typed("train", f"train.py +exp=[hypersim_vkitti,{name}]",
            trained(name.removeprefix("ablation_"), **values), f"{PAPER} {SMALL}")
      for name, values in ABLATIONS.items()),
    instead("train", "train.py +exp=[hypersim_vkitti,dry_run]", checks.dry_run, "15 GB and minutes"),
    typed("train", "cache_latents.py +exp=[hypersim_vkitti,cached_latents]", checks.cached, FEW),
    typed("train", "train.py +exp=[hypersim_vkitti,cached_latents]",
          trained("cached"), f"{FEW} {PAPER} run_dir=runs/cached"),
    Known("train", "train.py +exp=quickstart noise=multi_resolution *", checks.not_overwritten("quickstart", SHORT)),
    typed("train more", "torchrun * scripts/train.py +exp=quickstart device=cpu",
          as_others("two", "quickstart", 2), f"{SHORT} run_dir=runs/two"),
    instead("train more", "accelerate launch --num_processes 8 scripts/train.py +exp=hypersim_vkitti",
            checks.two_processes(EIGHT, as_others("eight", "hypersim_vkitti", 2)), GPUS),
    instead("train more", "accelerate launch * train.shard=true",
            checks.two_processes(SHARD, as_others("shard", "quickstart", 2)), f"{GPUS}, with the tiny base"),
    instead("train more", "torchrun --nnodes 2 *", checks.two_machines, "there is one machine: two launchers on it"),
    instead("train more", "#!/bin/bash*srun*", checks.slurm, "there is no Slurm: bin/srun, until requeued"),
    typed("train more", "train.py -m +exp=[quickstart,ablation_noise_gaussian],*", trained("noise_gaussian"), SHORT),
    # evaluation
    typed("evaluate", f"{SUITE} checkpoint=MODEL", evaluated(FIVE, 1),
          f"{ONE} checkpoint=../publishers/runs/quickstart/final", where="archives"),
    typed("evaluate more", f"{SUITE} checkpoint=DIR", evaluated(FIVE, 1), ONE),
    typed("evaluate", "eval.py dataset=nyu checkpoint=DIR", evaluated(["nyu"], 1), ONE),
    typed("table", "accelerate launch --num_processes 4 scripts/eval.py dataset=nyu checkpoint=DIR",
          checks.as_alone, f"{ONE} output=runs/eval_accelerate"),
    typed("evaluate", "eval.py dataset=nyu checkpoint=DIR protocol=moge", evaluated(["nyu"], 1, protocol="moge"), ONE),
    typed("evaluate", "eval.py dataset=nyu checkpoint=DIR protocol=*", checks.refused("affine_depth"), ONE, code=1),
    typed("evaluate", "eval.py dataset=motorcycle *", evaluated(["motorcycle"], 1)),
    typed("evaluate", "eval.py dataset=rooms * sampler.steps=4 *", evaluated(["rooms"], 1), "limit=1"),
    *(typed("evaluate", f"eval.py dataset=rooms checkpoint=runs/{run}/final output=runs/{run}/eval",
            evaluated(["rooms"], 2, f"runs/{run}/eval"), "limit=2")
      for run in ("noise_gaussian", "noise_multi_resolution")),
    typed("evaluate", "sweep.py curve=ensemble *", checks.swept("ensemble", 2), "limit=2 ensemble_sizes=[1,2]"),
    typed("evaluate", "sweep.py curve=steps *", checks.swept("steps", 4), "limit=2 steps=[1,2]"),
    typed("evaluate", "infer.py input=photos/ output=depth/ *", checks.predicted),
    typed("table", "table.py results=[runs/eval]", checks.tabled("runs/table", ["quickstart", "Marigold v1.0"], FIVE)),
    typed("table", "table.py results=* output=runs/noise",
          checks.tabled("runs/noise", ["noise_gaussian", "noise_multi_resolution"], ["rooms"])),
]
# fmt: on

# What the documentation says in other words than a command in a block.
VARIATIONS = [
    *(f"download.py dataset={name} source=archive out=archives" for name in FIVE),
    "download.py dataset=kitti source=archive_val out=archives",
    *(f"prepare.py check dataset={name}" for name in ("hypersim", "vkitti", *FIVE[1:])),
    *(f"prepare.py check dataset={name} report=archives.txt" for name in FIVE),
    f"{SUITE} checkpoint=MODEL",
    *(f"eval.py dataset=nyu checkpoint=DIR protocol={name}" for name in ("moge", "ppd", "log", "disparity")),
]
VARIED = [Command(f"python scripts/{text}", "varied") for text in VARIATIONS]
