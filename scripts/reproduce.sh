#!/usr/bin/env bash
# Make every number of docs/race.md from nothing: dense networks, every method at every ratio and
# seed, the paper's claims, the table and the plots. Typed again, it goes on where it stopped.
#
#   scripts/reproduce.sh DATA_DIR        DATA_DIR/train/CLASS/IMAGE and DATA_DIR/test/CLASS/IMAGE,
#                                        or a folder that torchvision's CIFAR-10 is in or is put in
#   scripts/reproduce.sh digits          the embedded digits
#
# Shorter, by the environment (defaults in brackets below): for two cores
#   WIDTH=0.5 DENSE_EPOCHS=15 EPOCHS=5 SEEDS=0 NETWORKS=vgg8 OVERRIDES=trainer.precision=bf16-mixed \
#   CLAIM_RATIOS='0.721 0.8'             of VGG8 at half width 82 % can go at most
set -uo pipefail
[ $# = 1 ] || { sed -n '2,11s/^# \{0,1\}//p' "$0" >&2; exit 2; }
DATA=$1
[ "$DATA" = digits ] || DATA=$(realpath -m "$DATA")
cd "$(dirname "$0")/.."
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}  # this clone, whichever is installed

OUT=${OUT:-logs/reproduce}                  # run folders
PAGE=${PAGE:-docs/race.md}                  # the table; its plots lie in a folder beside it
NETWORKS=${NETWORKS:-vgg8 resnet20}         # of conf/experiment/liang2018_NETWORK_cifar10.yaml
METHODS=${METHODS:-$(find conf/method -name '*.yaml' -exec basename {} .yaml \; | sort | xargs)}
RATIOS=${RATIOS:-0.5 0.72}
SEEDS=${SEEDS:-0 1 2}
WIDTH=${WIDTH:-1.0}                         # of VGG and ResNet20
DENSE_EPOCHS=${DENSE_EPOCHS:-100}
DENSE_LR=${DENSE_LR:-0.1}
EPOCHS=${EPOCHS:-60}                        # of each method, after the dense network
CLAIMS=${CLAIMS:-yes}                       # also the runs that check the paper's claims: ours trained
                                            # for DENSE_EPOCHS, ours at other grains and orders, and
                                            # layer-wise solvers, refit, orders and budgets, untrained
CLAIM_RATIOS=${CLAIM_RATIOS:-}              # of the former; empty: see claims_of
SOLVERS=${SOLVERS:-random magnitude lasso greedy lgd_rpp}  # layer-wise ones, of the latter
OVERRIDES=${OVERRIDES:-}                    # further keys of train.py, separated by spaces
PYTHON=${PYTHON:-python}
failed=0

claims_of() {  # NETWORK: the paper's saving, and beyond, as far as the network can
  case $1 in
    vgg8) echo 0.721 0.8 0.85 0.9 ;;
    vgg16) echo 0.598 0.8 0.85 ;;
    *) echo 0.442 0.6 0.721 ;;
  esac
}

list() { echo "$*" | tr ' ' ','; }

if [ "$DATA" = digits ]; then data=(data=digits)
elif [ -d "$DATA/train" ]; then data=(data=folder "data.dir=$DATA")
else data=(data=cifar10 "data.dir=$DATA"); fi

# One method, grain, order, ratio and seed = one folder, whatever else is asked for beside it.
# shellcheck disable=SC2016
job='${hydra:runtime.choices.method}_${grain.name}_${reorder}_r${ratio}_s${seed}'
# shellcheck disable=SC2016
untrained='${solver.name}_${grain.name}_${reorder}_${budget.name}_refit_${procedure.refit}_r${ratio}_s${seed}'

for network in $NETWORKS; do
  here=$OUT/$network
  common=(experiment="liang2018_${network}_cifar10" "${data[@]}" logger=csv)
  [ "$network" = resnet18 ] || common+=(model.width="$WIDTH")
  read -ra further <<<"$OVERRIDES"
  common+=("${further[@]}")

  "$PYTHON" train.py "${common[@]}" ratio=0 seed=0 trainer.max_epochs="$DENSE_EPOCHS" \
    optimizer.lr="$DENSE_LR" hydra.run.dir="$here/dense" || exit 1

  race() {  # FOLDER OVERRIDE...: all combinations, finished ones skipped
    "$PYTHON" train.py -m "${common[@]}" schedule.dense_epochs=0 trainer.max_epochs="$EPOCHS" \
      model.weights="$here/dense/pruned/weights.safetensors" seed="$(list $SEEDS)" \
      hydra.sweep.dir="$here/$1" hydra.sweep.subdir="$job" "${@:2}" || failed=1
  }
  race race method="$(list $METHODS)" ratio="$(list $RATIOS)"
  if [ "$CLAIMS" = yes ]; then
    race headline method=lgd_rpp ratio="$(list ${CLAIM_RATIOS:-$(claims_of "$network")})" \
      grain=column,crossbar distill=0.5 optimizer.lr="$DENSE_LR" trainer.max_epochs="$DENSE_EPOCHS"
    race claims method=lgd_rpp,lgd_rpp_uniform ratio="$(list $RATIOS)" grain=crossbar
    race claims method=lgd_rpp_uniform ratio="${RATIOS%% *}" grain=crossbar,column \
      reorder=none,importance,tetris

    oneshot() {  # OVERRIDE...: the same, pruned at the last ratio and not trained at all
      # shellcheck disable=SC2016
      "$PYTHON" train.py -m "${common[@]}" schedule=none procedure=layerwise ratio="${RATIOS##* }" \
        model.weights="$here/dense/pruned/weights.safetensors" grain=crossbar,column \
        seed="$(list $SEEDS)" 'data.calibration_seed=${seed}' hydra.sweep.dir="$here/oneshot" \
        hydra.sweep.subdir="$untrained" "$@" || failed=1
    }
    oneshot solver="$(list $SOLVERS)" procedure.refit=false,true reorder=none budget=uniform
    oneshot solver="$(list $SOLVERS)" reorder=importance,tetris budget=uniform
    oneshot solver=lgd_rpp reorder=none,importance,tetris budget=global
  fi
done

typed="NETWORKS='$NETWORKS' METHODS='$METHODS' RATIOS='$RATIOS' SEEDS='$SEEDS' WIDTH=$WIDTH \
DENSE_EPOCHS=$DENSE_EPOCHS DENSE_LR=$DENSE_LR EPOCHS=$EPOCHS CLAIMS=$CLAIMS \
CLAIM_RATIOS='$CLAIM_RATIOS' SOLVERS='$SOLVERS' OVERRIDES='$OVERRIDES' scripts/reproduce.sh DATA_DIR"
expected=()
for network in $NETWORKS; do expected+=(--network "$network"); done
for method in $METHODS; do expected+=(--method "$method"); done
for ratio in $RATIOS; do expected+=(--ratio "$ratio"); done
"$PYTHON" scripts/race_table.py "$OUT" --out "$PAGE" --command "$typed" "${expected[@]}" || exit 1
exit $failed
