.PHONY: test lint format bench

test:
	pytest

lint:
	ruff check .
	ruff format --check .

format:
	ruff check --fix .
	ruff format .

bench:
	python benchmarks/throughput.py
	python benchmarks/learning.py
