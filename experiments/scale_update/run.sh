#!/usr/bin/env bash
# Scales by gradient or by the damped closed-form mode, on held-out training images. Usage: run.sh DATA_DIR OUT_DIR
set -euo pipefail
data=$1 out=$2
for seed in 0 1 2; do
    for scales in gradient mode; do
        bayestensor run configs/mnist_fc_map.yaml data.validation=0.1667 "engine.scales=$scales" "seed=$seed" \
            train.evaluate_every=5 --data-dir "$data" --out "$out/$scales-$seed"
    done
done
