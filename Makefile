.PHONY: test test-slow lint format bench

test:
	pytest

test-slow:
	pytest -m slow

lint:
	ruff check .
	ruff format --check .

format:
	ruff check --fix .
	ruff format .

bench:
	python benchmarks/throughput.py
	python benchmarks/learning.py
