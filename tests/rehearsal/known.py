"""The table of commands: what shortens each, what it must leave behind, and what is done where it cannot be run."""

from checks import (
    ARCHIVED,
    LISTED,
    PAPER,
    SHORT,
    as_alone,
    as_others,
    base_copied,
    cached,
    checked,
    compared,
    downloaded,
    evaluated,
    headline_trained,
    killed,
    made,
    not_overwritten,
    only_pytest,
    predicted,
    prepared,
    refused,
    rooms_cached,
    rooms_prepared,
    rooms_rendered,
    scannet_refused,
    slurm,
    swept,
    tabled,
    trained,
    two_machines,
    two_processes,
)
from commands import Command
from rehearsal import Known, typed

FIVE = ("nyu", "kitti", "eth3d", "scannet", "diode")
MODEL = "checkpoint=runs/quickstart/final"
ROOMS = {"hypersim_train": 6, "hypersim_val": 2, "vkitti_train": 6, "vkitti_val": 1, "nyu_test": 2}
FEW = "data.hypersim.reader.limit=4 data.vkitti.reader.limit=4"
# Files that download.py counts: the miniatures have other sizes and hashes than the published ones.
FILES = {"hypersim": 24, "vkitti": 2, "nyu": 2, "eth3d": 14, "diode": 1}
GPUS = "there are not that many GPUs: two processes on the CPU"

DATA = [
    Known("make quickstart", "get", made, "the environment is there already: the rest of the recipe, line by line"),
    Known("make test", "get", only_pytest, "it would start this test: only the recipe is looked at"),
    Known(
        r"python scripts/prepare\.py dataset=rooms .*",
        "get",
        typed(rooms_rendered, " ".join(f"prepare.size.{part}={count}" for part, count in ROOMS.items())),
    ),
    Known(r"python scripts/prepare\.py dataset=hypersim raw=data/rooms\S+ .*", "get", typed(rooms_prepared)),
    Known(r"torchrun .* scripts/cache_latents\.py \+exp=quickstart .*", "get", typed(rooms_cached)),
    Known(
        r"torchrun .* scripts/train\.py \+exp=quickstart device=cpu run_dir=runs/quickstart ?",
        "get",
        typed(trained("quickstart", 2), SHORT),
    ),
    Known(
        r"torchrun .* scripts/eval\.py dataset=rooms .*", "get", typed(evaluated(["rooms"], 4, "runs/quickstart/eval"))
    ),
    Known(r"python scripts/compare_constant\.py dataset=rooms .*", "get", typed(compared)),
    Known(
        r"python scripts/download\.py dataset=\w+ source=archive out=archives",
        "get",
        typed(downloaded(1)),
        where="archives",
    ),
    Known(
        r"python scripts/download\.py dataset=kitti source=archive_val out=archives",
        "get",
        typed(downloaded(1)),
        where="archives",
    ),
    Known(r"python scripts/prepare\.py .*prepare\.archive=.*", "get", typed(prepared(ARCHIVED)), where="archives"),
    *(
        Known(
            rf"python scripts/download\.py dataset={name} out=(RAW|downloads/{name})",
            "get",
            typed(downloaded(files), f"out=downloads/{name} verify=false"),
        )
        for name, files in FILES.items()
    ),
    Known(
        r"python scripts/download\.py dataset=kitti out=RAW",
        "get",
        typed(downloaded(697 + 652), "out=downloads/kitti split_list=own/kitti_list.txt"),
    ),
    Known(
        r"python scripts/download\.py dataset=scannet out=RAW",
        "get",
        typed(scannet_refused, "out=downloads/scannet", code=1),
    ),
    Known(
        r"python scripts/prepare\.py dataset=scannet raw=DIR .*",
        "get",
        typed(prepared(LISTED), "raw=own/scannet_frames_25k prepare.split_list=own/scannet_list.txt"),
    ),
    Known(r"python scripts/prepare\.py dataset=nyu raw=downloads/nyu out=data/nyu", "get", typed(prepared(LISTED))),
    Known(r"(.*&& )?python scripts/prepare\.py dataset=\w+ raw=downloads/\S+ .*", "get", typed(prepared(LISTED))),
    Known(r"python scripts/prepare\.py check dataset=nyu", "check", typed(checked)),
    Known(
        r"python scripts/prepare\.py check dataset=(vkitti|hypersim)",
        "check",
        typed(checked, "dataset.reader.limit=4"),
    ),
    Known(r"python scripts/prepare\.py check dataset=(kitti|scannet|diode)", "check", typed(checked)),
    Known(r"python scripts/prepare\.py check dataset=eth3d", "check", typed(checked, "dataset.reader.limit=2")),
    Known(
        r"python scripts/prepare\.py check dataset=\w+ report=archives\.txt", "check", typed(checked), where="archives"
    ),
    Known(
        r"hf download \S+ --local-dir checkpoints/stable-diffusion-2", "check", base_copied, "no hub: a random base"
    ),
]

TRAINING = [
    Known(r"python scripts/train\.py \+exp=hypersim_vkitti model\.base=\S+", "train", typed(headline_trained, PAPER)),
    Known(r"kill -(TERM|KILL) .*", "train", killed),
    Known(r"python scripts/train\.py \+exp=hypersim_vkitti", "train more", typed(trained("hypersim_vkitti"), PAPER)),
    *(
        Known(
            rf"python scripts/train\.py \+exp=\[quickstart,ablation_{name}\]",
            "train",
            typed(trained(name, **values), SHORT),
        )
        for name, values in {
            "noise_gaussian": {"noise.strength": 0.0},
            "noise_multi_resolution": {"noise.annealed": False},
            "no_pretraining": {"model.random_unet": True},
        }.items()
    ),
    *(
        Known(
            rf"python scripts/train\.py \+exp=\[hypersim_vkitti,(ablation_)?{name}\]",
            "train",
            typed(trained(name, **values), PAPER),
        )
        for name, values in {
            "hypersim_50": {"mixture.hypersim": 0.5},
            "hypersim_95": {"mixture.hypersim": 0.95},
            "hypersim_only": {"mixture.vkitti": 0.0},
            "vkitti_only": {"mixture.hypersim": 0.0},
            "marigold_v1_1": {"diffusion.rescale_betas_zero_snr": True},
        }.items()
    ),
    Known(
        r"python scripts/train\.py \+exp=\[hypersim_vkitti,dry_run\]",
        "train",
        typed(lambda *_: None, "model=tiny 'data.hypersim.transform.size=[96,128]'"),
        "the full-size model takes 15 GB and minutes: the tiny one",
    ),
    Known(r"python scripts/cache_latents\.py \+exp=\[hypersim_vkitti,cached_latents\]", "train", typed(cached, FEW)),
    Known(
        r"python scripts/train\.py \+exp=\[hypersim_vkitti,cached_latents\]",
        "train",
        typed(trained("hypersim_vkitti_cached"), f"{FEW} {PAPER} run_dir=runs/hypersim_vkitti_cached"),
    ),
    Known(
        r"python scripts/train\.py \+exp=quickstart noise=multi_resolution .*",
        "train",
        not_overwritten("quickstart", trained("quickstart")),
    ),
    Known(
        r"torchrun --standalone --nproc_per_node 2 scripts/train\.py \+exp=quickstart device=cpu",
        "train more",
        typed(as_others("two", "quickstart", 2), f"{SHORT} run_dir=runs/two"),
    ),
    Known(
        r"accelerate launch --num_processes 8 scripts/train\.py \+exp=hypersim_vkitti",
        "train more",
        two_processes(
            f"scripts/train.py +exp=hypersim_vkitti {PAPER} device=cpu run_dir=runs/eight",
            as_others("eight", "hypersim_vkitti", 2),
        ),
        GPUS,
    ),
    Known(
        r"accelerate launch .* train\.shard=true",
        "train more",
        two_processes(
            f"scripts/train.py +exp=quickstart train.shard=true {SHORT} device=cpu run_dir=runs/shard",
            as_others("shard", "quickstart", 2),
        ),
        f"{GPUS}, with the tiny base",
    ),
    Known(r"torchrun --nnodes 2 .*", "train more", two_machines, "there is one machine: two launchers on it"),
    Known(
        r"#!/bin/bash\n.*srun.*", "train more", slurm, "there is no Slurm: the script with bin/srun, until requeued"
    ),
    Known(
        r"python scripts/train\.py -m \+exp=\[quickstart,ablation_noise_gaussian\],\S+",
        "train more",
        typed(trained("noise_gaussian"), SHORT),
    ),
]

EVALUATION = [
    Known(
        r"python scripts/eval\.py -m dataset=nyu,kitti,eth3d,scannet,diode checkpoint=DIR",
        "evaluate more",
        typed(evaluated(FIVE, 2), f"limit=2 {MODEL}"),
    ),
    Known(
        r"python scripts/eval\.py -m dataset=nyu,kitti,eth3d,scannet,diode checkpoint=MODEL",
        "evaluate",
        typed(evaluated(FIVE, 1), "limit=1 checkpoint=../publishers/runs/quickstart/final"),
        where="archives",
    ),
    Known(
        r"python scripts/eval\.py dataset=nyu checkpoint=DIR",
        "evaluate",
        typed(evaluated(["nyu"], 2), f"limit=2 {MODEL}"),
    ),
    Known(
        r"accelerate launch --num_processes 4 scripts/eval\.py dataset=nyu checkpoint=DIR",
        "table",
        typed(as_alone, f"limit=2 {MODEL} output=runs/eval_accelerate"),
    ),
    Known(r"python scripts/eval\.py dataset=motorcycle \S+", "evaluate", typed(evaluated(["motorcycle"], 1))),
    Known(
        r"python scripts/eval\.py dataset=rooms \S+ sampler\.steps=4 .*",
        "evaluate",
        typed(evaluated(["rooms"], 1), "limit=1"),
    ),
    *(
        Known(
            rf"python scripts/eval\.py dataset=rooms checkpoint=runs/{run}/final output=runs/{run}/eval",
            "evaluate",
            typed(evaluated(["rooms"], 2, f"runs/{run}/eval"), "limit=2"),
        )
        for run in ("noise_gaussian", "noise_multi_resolution")
    ),
    Known(
        r"python scripts/eval\.py dataset=nyu checkpoint=DIR protocol=moge",
        "evaluate",
        typed(evaluated(["nyu"], 1, protocol="moge"), f"limit=1 {MODEL}"),
    ),
    Known(
        r"python scripts/eval\.py dataset=nyu checkpoint=DIR protocol=\w+",
        "evaluate",
        typed(refused("affine_depth"), f"limit=1 {MODEL}", code=1),
    ),
    Known(
        r"python scripts/sweep\.py curve=ensemble .*",
        "evaluate",
        typed(swept("ensemble", 2), "limit=2 ensemble_sizes=[1,2]"),
    ),
    Known(r"python scripts/sweep\.py curve=steps .*", "evaluate", typed(swept("steps", 4), "limit=2 steps=[1,2]")),
    Known(r"python scripts/infer\.py input=photos/ output=depth/ \S+", "evaluate", typed(predicted)),
    Known(
        r"python scripts/table\.py results=\[runs/eval\]",
        "table",
        typed(tabled("runs/table", ["quickstart", "Marigold v1.0"], FIVE)),
    ),
    Known(
        r"python scripts/table\.py results=\[\S+\] output=runs/noise",
        "table",
        typed(tabled("runs/noise", ["noise_gaussian", "noise_multi_resolution"], ["rooms"])),
    ),
]

TABLE = [*DATA, *TRAINING, *EVALUATION]

# What the documentation says in other words than a command in a block.
VARIATIONS = [
    *(f"python scripts/download.py dataset={name} source=archive out=archives" for name in FIVE),
    "python scripts/download.py dataset=kitti source=archive_val out=archives",
    *(f"python scripts/prepare.py check dataset={name}" for name in ("hypersim", "vkitti", *FIVE[1:])),
    *(f"python scripts/prepare.py check dataset={name} report=archives.txt" for name in FIVE),
    "python scripts/eval.py -m dataset=nyu,kitti,eth3d,scannet,diode checkpoint=MODEL",
    *(
        f"python scripts/eval.py dataset=nyu checkpoint=DIR protocol={name}"
        for name in ("moge", "ppd", "log", "disparity")
    ),
]
VARIED = [Command(text, "varied") for text in VARIATIONS]
