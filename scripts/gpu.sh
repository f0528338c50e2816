#!/usr/bin/env bash
# Everything that waits for a GPU, in one run (make gpu).
#
#     scripts/gpu.sh                         # on one GPU: under 25 minutes
#     DEVICE=cpu TINY=1 scripts/gpu.sh       # the same parts with tiny sizes, on a CPU
#
# Environment variables:
#   OUT=runs/gpu        small results (at most 15 MB a file): tables, JSON, records, logs, weights
#   WORK=runs/gpu-work  large files, such as the states of the trainings: they continue from there
#   EDM=PATH            a checkout of NVlabs/edm, for the part `edm`
#   SKIP="sd diffusers" parts to leave out;  ONLY="precision"  parts to do
#   PYTHON=python       the interpreter
#
# A part that is done has a file in $OUT/done and is not run again: the same command continues. A
# part that fails is named at the end (exit status 1), with its log, $OUT/PART.log.
set -uo pipefail
cd "$(dirname "$0")/.."

DEVICE=${DEVICE:-cuda} TINY=${TINY:-} EDM=${EDM:-} SKIP=${SKIP:-} ONLY=${ONLY:-}
OUT=${OUT:-runs/gpu} WORK=${WORK:-runs/gpu-work} PYTHON=${PYTHON:-python}
PARTS="tests fixed precision edm diffusers sd calibrate train-fashion train-cifar10"
LEFT_OUT=3  # the status of a part that lacks something: neither done nor failed
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
export TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-$(mkdir -p "$WORK" && cd "$WORK" && pwd)/inductor}

cli() { "$PYTHON" -m bdia_exp "$@"; }
bench() { local name=$1; shift; "$PYTHON" "bench/$name.py" "$@"; }
pick() { if [ -n "$TINY" ]; then echo "$1"; else echo "$2"; fi; }  # TINY's value, or the other

tests() {  # what needs CUDA is skipped on a CPU
    "$PYTHON" -m pytest -q -rs -p no:cacheprovider tests/models/test_running.py \
        tests/samplers/test_fixedpoint_networks.py tests/verbs/test_sample.py \
        -k "$(pick "meta or on_a_gpu" "graph or on_a_gpu or cuda or running")"
}

fixed() {  # every bit comes back, with each way to run the network
    local images how name
    cli sample sampler=edm nfe=9 images="$(pick 2 64)" device="$DEVICE" out="$WORK/images" || return
    for how in dtype=float32 dtype=bfloat16 $(pick "" "dtype=float16 graphs=auto tf32=true"); do
        name=${how//[^a-z0-9]/-}
        cli roundtrip "$WORK/images" state=fixed sampler.gamma=0.92 nfe="$(pick 4 40)" \
            device="$DEVICE" "$how" out="$WORK/fixed-$name" | tee "$WORK/fixed.txt" || return
        grep -q "the same bits came back at both ends" "$WORK/fixed.txt" || return
        cp "$WORK/fixed-$name/record.json" "$OUT/fixed-$name.json" || return
    done
}

precision() {
    local ways=(--how dtype=bfloat16)
    [ -n "$TINY" ] || ways+=(--how dtype=float16 --how tf32=true --how graphs=auto
        --how compile=default --how "dtype=bfloat16 compile=default graphs=auto")
    bench precision --out "$OUT" --images "$(pick 66 10000)" "${ways[@]}" model=fashion_mini \
        sampler=edm nfe="$(pick 1 35)" batch="$(pick 66 500)" device="$DEVICE"
}

edm() {
    [ -n "$EDM" ] || { echo "no checkout of NVlabs/edm is given (EDM=PATH): left out"; return $LEFT_OUT; }
    local how size=(--batch "$(pick 2 64)" --steps "$(pick 2 18)" --rounds "$(pick 1 3)")
    [ -z "$TINY" ] || size+=(--tiny)
    for how in "" $(pick "" "graphs=auto dtype=bfloat16 dtype=bfloat16,graphs=auto"); do
        # shellcheck disable=SC2086
        bench against_edm --edm "$EDM" --device "$DEVICE" "${size[@]}" --out "$OUT/edm-$how" \
            ${how//,/ } || [ -f "$OUT/edm-$how/against_edm.json" ] || return
    done  # where images do not agree, it says so: the figures are kept
}

diffusers() {
    local how size=(--rounds "$(pick 1 3)" --steps "$(pick 2 10)")
    bench against_diffusers --device "$DEVICE" "${size[@]}" --out "$OUT/diffusers-tiny" || return
    [ -z "$TINY" ] || return 0
    for how in "" dtype=float16 dtype=float16,graphs=auto; do
        for network in ddpm sd; do
            # shellcheck disable=SC2086
            bench against_diffusers --$network --device "$DEVICE" "${size[@]}" \
                --out "$OUT/diffusers-$network-$how" ${how//,/ } || return
        done
    done
}

sd() {  # time and memory of Stable Diffusion's size, random weights
    local model=(model=sd15 model.checkpoint=random:0) ways=()
    [ -z "$TINY" ] || model=(model=tiny-sd)
    [ -n "$TINY" ] || ways=(--how dtype=float16 --how "dtype=float16 graphs=auto"
        --how "dtype=float16 compile=default graphs=auto")
    bench sampling --out "$OUT" --rounds "$(pick 1 3)" "${ways[@]}" "${model[@]}" \
        prompt="a red dress" sampler=ddim nfe="$(pick 2 20)" batch="$(pick 1 8)" device="$DEVICE"
}

calibrate() {
    # shellcheck disable=SC2046
    bench calibrate --out "$OUT" $(pick --forget "") --rounds "$(pick 1 5)" model=fashion_mini \
        nfe="$(pick 3 35)" batch="$(pick 16 512)" device="$DEVICE"
}

train() {  # NAME CONFIG DATA KIMG …: trains, then scores samples; kept in $OUT as float16
    local name=$1 config=$2 data=$3 kimg=$4 run=$WORK/$1
    shift 4
    [ -f "$data" ] || { echo "$data is missing (make data, make cifar10): left out"; return $LEFT_OUT; }
    "$PYTHON" scripts/train_edm.py --config "configs/training/$config.yaml" device="$DEVICE" \
        data="$data" out="$run" kimg="$kimg" "$@" || return
    cp "$run/model.json" "$OUT/$name.json" || return
    "$PYTHON" - "$run/model.safetensors" "$OUT/$name-float16.safetensors" <<'PY' || return
import sys
from safetensors.torch import load_file, save_file
save_file({name: value.half() for name, value in load_file(sys.argv[1]).items()}, sys.argv[2])
PY
    find "$OUT" -name "*.safetensors" -size +15M -exec split -b 15M {} {}.part- \; -delete
}

scored() {  # NAME KEYS…: samples of the trained network, and their score
    local name=$1
    shift
    [ -f "$WORK/$name/model.safetensors" ] || return 0
    cli sample model.checkpoint="$WORK/$name/model.safetensors" sampler=edm \
        nfe="$(pick 1 35)" images="$(pick 66 10000)" batch="$(pick 66 500)" device="$DEVICE" \
        score=true save=none out="$WORK/$name-score" "$@" || return
    cp "$WORK/$name-score/record.json" "$OUT/$name-score.json"
    cp "$WORK/$name-score/sheet.png" "$OUT/$name-sheet.png"
}

train-fashion() {
    local more=()
    [ -z "$TINY" ] || more=(batch=16 save_seconds=1)
    train fashion fashion_mini "${FASHION:-data/fashion_mnist/train.npz}" \
        "$(pick 0.032 "${FASHION_KIMG:-2000}")" "${more[@]}" || return
    scored fashion model=fashion_mini
}

train-cifar10() {  # 8 M parameters in bfloat16
    local more=(network.model_channels=32 network.num_blocks=4 batch=512) reference
    [ -z "$TINY" ] || more=(batch=16 save_seconds=1)
    train cifar10 cifar10_mini "${CIFAR10:-data/cifar10/train.npz}" \
        "$(pick 0.032 "${CIFAR10_KIMG:-4000}")" "${more[@]}" || return
    reference=${CIFAR10_REFERENCE:-data/cifar10/inception-train.npz}
    [ -f "$reference" ] || { echo "$reference is missing (make cifar10): not scored"; return $LEFT_OUT; }
    [ -n "$TINY" ] || scored cifar10 model=cifar10_mini features=inception reference="$reference"
}

among() { case " $2 " in *" $1 "*) true ;; *) false ;; esac; }

mkdir -p "$OUT/done" "$WORK"
failed=""
for part in $PARTS; do
    if among "$part" "$SKIP" || { [ -n "$ONLY" ] && ! among "$part" "$ONLY"; }; then
        echo "== $part: skipped"
    elif [ -f "$OUT/done/$part" ]; then
        echo "== $part: done before"
    else
        echo "== $part"
        began=$SECONDS
        "$part" 2>&1 | tee "$OUT/$part.log"
        case ${PIPESTATUS[0]} in
            0) echo "$((SECONDS - began)) s" | tee "$OUT/done/$part" ;;
            "$LEFT_OUT") ;;
            *) failed="$failed $part" ;;
        esac
    fi
done
[ -z "$failed" ] || { echo "failed:$failed (logs in $OUT)"; exit 1; }
echo "nothing failed: $OUT"
