#!/bin/bash
# Fifty steps of a CIFAR-10 config on the CPU, in one go, then stopped by SIGTERM and resumed: are the models the same?
#
#   experiments/cifar/steps.sh resnet20_cifar10 16     # the config, and images a step
set -u
name=$1 batch=$2 config=$(realpath "$(dirname "$0")/../../configs/$1.yaml")
short="data.limit=$((50 * batch)) data.validation=0 train.batch_size=$batch train.epochs=1 train.evaluate_every=1
  engine.warmup_epochs=0 engine.ramp_epochs=0 prune.epochs=[] prune.max_params=null dense_twin=false"
cd "$(mktemp -d)" || exit 1
echo "in $PWD"
bayestensor run "$config" $short --out whole || exit 1
python -c "
import sys
from bayestensor.experiment import session
session.SECONDS_PER_CHECKPOINT = 0.5  # not a minute: one falls between the first step and the last
from bayestensor.cli import main
main(sys.argv[1:])" run "$config" $short --out parts &
started=$!
while kill -0 $started 2>/dev/null && [ ! -e parts/checkpoints/step-000000000008 ]; do sleep 0.2; done
kill -TERM $started 2>/dev/null
wait $started
echo "stopped with code $?, checkpoints:" parts/checkpoints/*
bayestensor resume parts || exit 1
cmp whole/model.npz parts/model.npz && echo "$name: the same models, bit by bit"
python -c "import json; s = json.load(open('whole/summary.json')); print({k: s[k] for k in s if 'seconds' in k})"
