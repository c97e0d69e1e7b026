#!/usr/bin/env bash
# The network of configs/mnist_fc_map.yaml in every format. Usage: run.sh DATA_DIR OUT_DIR
set -euo pipefail
data=$1 out=$2
modes='model.shapes=[[[28,28],[25,25]],[[25,25],[10]]]' # the TT-matrix keeps the config's own modes
common=(train.epochs=20 'prune.epochs=[3,6,9,12]' prune.max_params=null engine.temperature=1.0 train.evaluate_every=5)
go() {
    local format=$1
    shift
    bayestensor run configs/mnist_fc_map.yaml "name=mnist-$format" "model.format=$format" "${common[@]}" "$@" \
        --data-dir "$data" --out "$out/$format"
}
go tt_matrix model.rank=20
go tensor_train model.rank=20 "$modes"
go cp model.rank=64 "$modes"
go tucker model.rank=12 "$modes"
go tensor_ring model.rank=8 "$modes"
go block_term model.rank=8 "$modes"
go hierarchical_tucker model.rank=12 "$modes"
go svd model.rank=20 model.shapes=null # the matrices as they are
