PYTHON ?= python3
VENV := .venv
RUN := PATH="$(CURDIR)/$(VENV)/bin:$$PATH"

.PHONY: demo grounded-demo test test-slow lint format miniatures
.DEFAULT_GOAL := demo

$(VENV)/.installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --upgrade pip
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(VENV)/.installed  ## train OSSight in the miniature world, score it, caption pictures, reload it as a stranger would
	$(RUN) accelerate launch --config_file recipes/accelerate/cpu.yaml recipes/caption.py --config recipes/ossight/quickstart.yaml
	$(RUN) python recipes/draw_scenes.py --count 6 --output outputs/ossight/quickstart/pictures
	$(RUN) python recipes/describe.py --model outputs/ossight/quickstart outputs/ossight/quickstart/pictures
	$(RUN) python recipes/stranger.py --model outputs/ossight/quickstart

grounded-demo: $(VENV)/.installed  ## find what captions name in 2,000 scenes, score it against the truth, teach it to a LLaVA
	$(RUN) accelerate launch --config_file recipes/accelerate/cpu.yaml recipes/augment.py --config recipes/grounded/quickstart.yaml
	$(RUN) python recipes/score_regions.py --run outputs/grounded/quickstart
	$(RUN) accelerate launch --config_file recipes/accelerate/cpu.yaml recipes/caption.py --config recipes/grounded/llava.yaml
	$(RUN) python recipes/draw_scenes.py --count 6 --output outputs/grounded/llava/pictures
	$(RUN) python recipes/describe.py --model outputs/grounded/llava outputs/grounded/llava/pictures

test: $(VENV)/.installed  ## the fast tests
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n auto

test-slow: $(VENV)/.installed  ## the slow tests
	$(VENV)/bin/python -m pytest -m slow

lint: $(VENV)/.installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

format: $(VENV)/.installed
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

miniatures: $(VENV)/.installed  ## pretrain the miniature towers anew, into outputs/miniature (about three hours on 2 CPU cores)
	$(RUN) accelerate launch --config_file recipes/accelerate/cpu.yaml recipes/pretrain_language.py --config recipes/miniature/qwen2.yaml
	$(RUN) accelerate launch --config_file recipes/accelerate/cpu.yaml recipes/pretrain_vision.py --config recipes/miniature/siglip.yaml
	$(RUN) accelerate launch --config_file recipes/accelerate/cpu.yaml recipes/pretrain_language.py --config recipes/miniature/gpt2.yaml
	$(RUN) accelerate launch --config_file recipes/accelerate/cpu.yaml recipes/pretrain_vision.py --config recipes/miniature/clip.yaml
	$(RUN) accelerate launch --config_file recipes/accelerate/cpu.yaml recipes/pretrain_vision.py --config recipes/miniature/clip_crops.yaml
	$(RUN) accelerate launch --config_file recipes/accelerate/cpu.yaml recipes/pretrain_detector.py --config recipes/miniature/grounding_dino.yaml
	$(RUN) accelerate launch --config_file recipes/accelerate/cpu.yaml recipes/caption.py --config recipes/miniature/llava.yaml
