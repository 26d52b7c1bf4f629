#!/bin/bash
# The same on machines without a scheduler: run this on every one, with its number.
#   bash examples/cluster/torchrun.sh 0 first-machine     (on the first)
#   bash examples/cluster/torchrun.sh 1 first-machine     (on the second)
set -euo pipefail
rank=$1 first=$2
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
torchrun --nnodes 2 --nproc-per-node 4 --node-rank "$rank" --master-addr "$first" --master-port 29500 \
  -m cefam fit --config train/resnet50_clip --config trainer/ddp --trainer.num_nodes 2 --trainer.devices 4
