#!/usr/bin/env bash
# All that a GPU is to be asked, in parts that each have a time of their own and write their JSON as
# they go:
#
#     bash benchmarks/gpu.sh                      # every part, in this order
#     bash benchmarks/gpu.sh step attacks         # some of them
#     OUT=folder bash benchmarks/gpu.sh           # where the JSON goes (benchmarks/results)
#     SHORT=1 bash benchmarks/gpu.sh ship        # a quarter of an hour; and so are all the others:
#     SHORT=1 bash benchmarks/gpu.sh to45 step psi attacks autoattack
#     REHEARSE=1 bash benchmarks/gpu.sh           # the same scripts on a CPU with tiny work
#
#   ship      a network to be shipped, with PGD-50-10 of all and AutoAttack of 1000  40 min
#   compile   does torch.compile get the presets' updates right here?                25 min
#   step      one CURE step: eager, compiled, CUDA graphs; against plain PyTorch     25 min
#   to45      preset fast: seconds to 45 %, AutoAttack, model-FLOP utilisation       30 min
#   to48      preset strong: seconds to 48.3 %                                       60 min
#   attacks   PGD against other libraries                                             5 min
#   autoattack  the ensemble against pyautoattack                                     8 min
#   psi       psi's gradient: time and memory against the steps, and JAX              6 min
#
# Nothing is installed for it: beside torch 2.11 or newer, torchvision and what most images have, it takes
# folders of unpacked wheels, PYTHONPATH=.:folder, of torchopt, optree, graphviz, cyclopts, rich-rst,
# cattrs, attrs, annotated-types and docstring-parser; and, to compare with, of torchattacks,
# foolbox, eagerpy, gitpython and pyautoattack. So it ran on Python 3.12 and torch 2.11: on one H100
# torch.compile was right about one CURE update of ResNet-18, and took 283 s of one processor core
# for it, so those of the short form compile nothing. A copy without its .git is told its commit by
# COMMIT=... CIFAR-10 is looked for in $FUNCROBUST_CACHE, or in ~/.cache/funcrobust
# (cifar10.safetensors, 184 MB); benchmarks/carry.py makes parts of 50 MB of it.
#
# A part that fails or runs out of time is named at the end, and the others are done all the same.
set -uo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3}
OUT=${OUT:-benchmarks/results}
ALL="ship compile step to45 to48 attacks autoattack psi"

if [ -n "${REHEARSE:-}" ]; then
  ON="--device cpu --threads 1 --out $OUT"
  COMPILE="--presets cpu --batch 8"
  STEP="--model preact-tiny --batch 4 --repeats 1 --no-jax --no-variants --no-compile"
  TO45="--preset cpu --epochs 1 --train-examples 256 --examples 16 --final-examples 8 --parts 1 --no-compile"
  TO48="$TO45"
  ATTACKS="--examples 4 --repeats 1 --warmup 0 --attacks PGD-10"
  AUTOATTACK="--examples 2"
  PSI="--batch 2 --steps 2 --repeats 1"
  SHIP="--examples 2 --autoattack 1 --train '--preset cpu --precision fp32 --epochs 1 --train-examples 256
    --robust-examples 8 --evaluate-examples 8 --evaluate-steps 2'"
elif [ -n "${SHORT:-}" ]; then
  ON="--device cuda --out $OUT"
  COMPILE="--presets paper-short"
  STEP="--model preact-resnet18 --batch 256 --no-jax --no-variants --no-compile"
  TO45="--preset fast --no-plain --final-examples 1000 --autoattack 500 --parts 1"
  TO48="--preset strong --no-plain --final-examples 1000 --parts 1"
  ATTACKS="--examples 500"
  AUTOATTACK="--checkpoint cifar10-linf-small --examples 300 --search"
  PSI="--batch 256 --steps 5 20"
  SHIP="--minutes 6"
else
  ON="--device cuda --out $OUT"
  COMPILE=""
  STEP="--model preact-resnet18 --batch 256"
  TO45="--preset fast --autoattack 1000"
  TO48="--preset strong --autoattack 1000"
  ATTACKS="--examples 1000"
  AUTOATTACK="--checkpoint cifar10-linf-small --examples 1000 --search"
  PSI="--batch 256"
  SHIP="--minutes 20"
fi

part() { # NAME SECONDS SCRIPT [ARGS...]
  local name=$1 limit=$2 began=$SECONDS
  shift 2
  echo "== $name (at most $((limit / 60)) min): $*"
  timeout --signal=INT --kill-after=20 "$limit" "$PYTHON" "benchmarks/$@" $ON
  local rc=$?
  echo "== $name: rc $rc after $((SECONDS - began)) s"
  [ $rc -eq 0 ] || failed+=("$name (rc $rc)")
}

failed=()
for name in ${@:-$ALL}; do
  case $name in
    ship) eval part ship 2400 ship.py "$SHIP" ;;
    compile) part compile 1500 compile_check.py $COMPILE ;;
    step) part step 1500 cure_step.py $STEP ;;
    to45) part to45 1800 fast_training.py $TO45 ;;
    to48) part to48 3600 fast_training.py $TO48 ;;
    attacks) part attacks 300 attack_throughput.py $ATTACKS ;;
    autoattack) part autoattack 480 autoattack.py $AUTOATTACK ;;
    psi) part psi 360 psi_gradient.py $PSI ;;
    *) echo "no part is called $name: $ALL" >&2; exit 2 ;;
  esac
done

if [ ${#failed[@]} -gt 0 ]; then
  echo "not done: ${failed[*]}" >&2
  exit 1
fi
