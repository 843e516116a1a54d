#!/bin/bash
# Match the photos of a folder by 32 jobs of a SLURM array, then make the model.
#
#     matching=$(sbatch --parsable --array=1-32 examples/slurm_array.sh photos outputs)
#     sbatch --dependency=afterok:$matching examples/slurm_array.sh photos outputs
#
#SBATCH --cpus-per-task=8
#SBATCH --gres=gpu:1
#SBATCH --time=04:00:00
set -euo pipefail

options=(--image_dir "$1" --outputs "$2" --matcher jamma --pairs retrieval)
if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
    options+=(--shard "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT")
else
    options+=(--merge)
fi
sfm-matchers sfm "${options[@]}"
